package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/client"
	"github.com/imprint-iot/imprint/inventory/durable"
)

// Options are what a program gives the agent beside its configuration.
type Options struct {
	Log *slog.Logger     // nil means none
	Now func() time.Time // the system's clock; nil means [time.Now]
}

// An agent works on one state directory.
type agent struct {
	cfg   Config
	log   *slog.Logger
	dir   *durable.Dir
	lock  *durable.Lock
	clock *clock
	token string // text form; empty: none

	status  Status
	bundled time.Time // when the trust bundle was asked for last
	told    bool      // the server wants the next pair now

	stop func(step string) error // tests end the agent after any step with it
}

// open takes the state directory.
func open(cfg Config, o Options) (*agent, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	dir, lock, err := openState(cfg.State)
	if err != nil {
		return nil, err
	}
	return &agent{
		cfg: cfg, log: o.Log, dir: dir, lock: lock, clock: newClock(o.Now, dir),
		status: Status{Device: cfg.Device}, stop: func(string) error { return nil },
	}, nil
}

func (a *agent) close() error { return errors.Join(a.lock.Unlock(), a.dir.Close()) }

// Enroll gets the device its first pair, with a token in its text form, or, if it is
// empty, with the pair that the configuration names. If the device has a pair
// already it does nothing. The error is a [*client.ProblemError] if the server
// refuses; one that wraps [client.ErrPending] is worth another try.
func Enroll(ctx context.Context, cfg Config, o Options, token string) (Status, error) {
	a, err := open(cfg, o)
	if err != nil {
		return Status{}, err
	}
	a.token = strings.TrimSpace(token)
	err = a.enroll(ctx)
	return a.status, errors.Join(err, a.close())
}

func (a *agent) enroll(ctx context.Context) error {
	if n, err := current(a.dir); err != nil || n > 0 {
		if err == nil {
			a.report(Waiting, time.Time{}, nil)
		}
		return err
	}
	if a.token == "" && a.cfg.Certificate == "" {
		return fmt.Errorf("%w: a token, or certificate and private_key, are required to enroll", ErrConfig)
	}
	for {
		step, err := a.next()
		if err == nil && step == nil {
			a.report(Waiting, time.Time{}, nil)
			return nil
		}
		if err == nil {
			err = step(ctx)
		}
		if err != nil {
			a.report(NoPair, time.Time{}, err)
			return err
		}
	}
}

// Run keeps the pair alive until ctx ends.
func Run(ctx context.Context, cfg Config, o Options) error {
	a, err := open(cfg, o)
	if err != nil {
		return err
	}
	a.run(ctx)
	return a.close()
}

// Waits of run when nothing fails.
const (
	checkEvery   = time.Hour // in case the clock is put right, or a person acts
	bundleEvery  = 24 * time.Hour
	endedRecheck = maxWait
)

func (a *agent) run(ctx context.Context) {
	tries := 0
	for {
		wait, err := a.round(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			tries = 0
		} else {
			tries++
			var asked time.Duration
			if p, ok := errors.AsType[*client.ProblemError](err); ok {
				asked = p.RetryAfter
			}
			wait = backoff(tries, asked)
			if a.status.State == Ended {
				wait = endedRecheck
			}
			a.status.Tries, a.status.Next = tries, a.clock.now().Add(wait)
			a.writeStatus()
			a.log.Warn("will try again", slog.Any("state", a.status.State), slog.Any("code", a.status.Code), slog.Any("err", err), slog.Any("in", wait.Round(time.Second)))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// round does all that is due, and returns how long nothing is.
func (a *agent) round(ctx context.Context) (time.Duration, error) {
	for {
		step, err := a.next()
		if err != nil {
			a.report(a.stateNow(), time.Time{}, err)
			return 0, err
		}
		if step == nil {
			break
		}
		if err := step(ctx); err != nil {
			a.report(a.stateNow(), time.Time{}, err)
			return 0, err
		}
	}
	a.followBundle(ctx)
	n, err := current(a.dir)
	if err != nil || n == 0 {
		a.report(NoPair, time.Time{}, err)
		return checkEvery, err
	}
	if a.followOrders(ctx, n); a.told {
		return time.Second, nil
	}
	p, err := readPair(a.dir, a.cfg.Key, n)
	if err != nil {
		a.report(a.stateNow(), time.Time{}, err)
		return 0, err
	}
	at := RenewAt(a.cfg.Device, p.tls.Leaf.NotBefore, p.tls.Leaf.NotAfter)
	a.report(Waiting, at, nil)
	return min(max(at.Sub(a.clock.now()), time.Second), checkEvery), nil
}

// stateNow is the state that a failure leaves.
func (a *agent) stateNow() State {
	n, err := current(a.dir)
	all, listErr := pairs(a.dir)
	switch {
	case err != nil || listErr != nil:
		return Renewing
	case n == 0:
		return NoPair
	case len(all) > 0 && all[len(all)-1] > n:
		return Proving
	}
	return Renewing
}

// report says what the agent does, for people.
func (a *agent) report(state State, next time.Time, err error) {
	s := Status{Device: a.cfg.Device, State: state, Next: next, Tries: a.status.Tries}
	if a.status.State == Ended && err != nil {
		s.State = Ended
	}
	if err == nil {
		s.Tries = 0
	} else {
		s.Code, s.Hint = codeOf(err)
		s.Error = err.Error()
	}
	if n, cerr := current(a.dir); cerr == nil && n > 0 {
		if p, perr := readPair(a.dir, a.cfg.Key, n); perr == nil {
			s.Serial, s.NotAfter = p.tls.Leaf.SerialNumber.Text(16), p.tls.Leaf.NotAfter
		}
	}
	a.status = s
	a.writeStatus()
}

// codeOf says in a word, and in a sentence, what is wrong.
func codeOf(err error) (code, hint string) {
	if p, ok := errors.AsType[*client.ProblemError](err); ok {
		switch p.Code {
		case api.CodeCertRevoked, api.CodeDeviceState:
			hint = "the device is not wanted any more; if that is wrong, register it anew and enroll it with a token"
		case api.CodeCertExpired, api.CodeCertUnknown:
			hint = "remove the state directory and enroll with a token, or with the birth certificate"
		case api.CodeTokenInvalid:
			hint = "ask for another token"
		}
		if p.Status == http.StatusInsufficientStorage || p.Code == api.CodeFull {
			hint = "the server's disk is full"
		}
		return p.Code, hint
	}
	switch {
	case errors.Is(err, ErrConfig):
		return "config", "correct the configuration"
	case errors.Is(err, errBroker):
		return "broker", "the old pair stays in use; does the broker know the new certificate's issuer?"
	case errors.Is(err, errKey):
		return "key", ""
	case isDisk(err):
		return "disk", "the old pair stays in use; make room, or make the directory writable"
	}
	return "network", ""
}

func isDisk(err error) bool {
	_, path := errors.AsType[*os.PathError](err)
	_, link := errors.AsType[*os.LinkError](err)
	return path || link
}

// writeStatus keeps the status. On a full disk it cannot, and that is no reason to
// stop.
func (a *agent) writeStatus() {
	a.status.Updated = a.clock.now().UTC().Truncate(time.Second)
	b, err := json.MarshalIndent(a.status, "", "  ")
	if err == nil {
		err = a.dir.WriteFile(statusFile, append(b, '\n'), 0o600)
	}
	if err != nil {
		a.log.Debug("status not written", slog.Any("err", err))
	}
}
