package agent

import "context"

// StopAfter runs one round of the agent and ends it after the n-th step, as a power
// cut would: nothing that comes later happens. It returns the name of the step, or
// "" if the round had fewer.
func StopAfter(ctx context.Context, cfg Config, o Options, token string, n int) (step string, err error) {
	a, err := open(cfg, o)
	if err != nil {
		return "", err
	}
	a.token = token
	cut := false
	a.stop = func(name string) error {
		if n--; n == 0 {
			step, cut = name, true
			return errCut
		}
		return nil
	}
	if token != "" {
		err = a.enroll(ctx)
	} else {
		_, err = a.round(ctx)
	}
	_ = a.close()
	if cut {
		return step, nil
	}
	return "", err
}

type cutError struct{}

func (cutError) Error() string { return "the power is gone" }

var errCut = cutError{}

// Backoff is for tests.
var Backoff = backoff
