package foreign

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// ErrProblems reports that devices of a plan cannot be taken over, so that nothing
// was done.
var ErrProblems = errors.New("nothing was imported")

// ApplyOptions say how a plan is carried out.
type ApplyOptions struct {
	Actor, Reason string // for the audit log

	// DryRun checks everything and changes nothing.
	DryRun bool

	// Partial goes on without the devices that cannot be taken over. Otherwise one
	// of them means that nothing is done.
	Partial bool

	Rejected func(name string, err error) // is told of each such device; may be nil
	Progress func(done, total int)        // is told of devices, now and then; may be nil
}

// A Result counts what a plan has come to; after a dry run, what it would.
type Result struct {
	Profiles  int `json:"profiles"`  // new
	Adopted   int `json:"adopted"`   // devices that are new, or have a password now
	Unchanged int `json:"unchanged"` // devices that were there, just so
	Rejected  int `json:"rejected"`
}

// workers is how many devices are on their way at once: a store makes those durable
// together that come together.
const workers = 32

// Apply hands a plan to a registrar: the profiles that its devices need, and then
// each device in a change of its own. It can be interrupted at any moment and given
// again: what is there is left as it is.
//
// All devices are checked before the first is taken over. The error wraps
// [ErrProblems] if some cannot be and Partial is not set, is that of
// [enroll.Registrar.AdoptProfile] if a profile is refused, as one with rules that
// reach beyond a device's own topics and are not declared shared, or else that of the
// store.
func (p *Plan) Apply(ctx context.Context, r *enroll.Registrar, o ApplyOptions) (Result, error) {
	run := &application{plan: p, r: r, o: o, planned: map[string]*inventory.Profile{}, bad: make([]bool, len(p.Devices))}
	if err := run.profiles(ctx, true); err != nil {
		return run.result, err
	}
	for i := range p.Devices {
		if problems := p.Devices[i].Problems; len(problems) > 0 {
			run.reject(i, errors.New(problems[0]))
		}
	}
	if err := run.devices(ctx, true); err != nil {
		return run.result, err
	}
	if n := run.result.Rejected; n > 0 && !o.Partial {
		return run.result, fmt.Errorf("%d of %d devices cannot be taken over: %w", n, len(p.Devices), ErrProblems)
	}
	if o.DryRun {
		return run.result, nil
	}
	run.result.Profiles, run.result.Adopted, run.result.Unchanged, run.done = 0, 0, 0, 0
	if err := run.profiles(ctx, false); err != nil {
		return run.result, err
	}
	err := run.devices(ctx, false)
	return run.result, err
}

// An application is a plan being carried out.
type application struct {
	plan    *Plan
	r       *enroll.Registrar
	o       ApplyOptions
	planned map[string]*inventory.Profile

	mu     sync.Mutex
	bad    []bool // devices that were rejected
	result Result
	done   int
}

// reject notes a device that cannot be taken over.
func (a *application) reject(i int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.bad[i] {
		return
	}
	a.bad[i] = true
	a.result.Rejected++
	if a.o.Rejected != nil {
		a.o.Rejected(a.plan.Devices[i].Name, err)
	}
}

// profiles stores the profiles that a device needs, which can be taken over.
func (a *application) profiles(ctx context.Context, dryRun bool) error {
	needed := map[string]bool{}
	for i := range a.plan.Devices {
		if d := &a.plan.Devices[i]; len(d.Problems) == 0 && !a.bad[i] {
			needed[d.Profile] = true
		}
	}
	for i := range a.plan.Profiles {
		p := &a.plan.Profiles[i]
		if !needed[p.Name] {
			continue
		}
		a.planned[p.Name] = p
		fresh, err := a.r.AdoptProfile(ctx, a.o.Actor, a.o.Reason, *p, dryRun)
		if err != nil {
			return err
		}
		if fresh {
			a.result.Profiles++
		}
	}
	return nil
}

// devices takes over all devices that are not rejected, several at once.
func (a *application) devices(ctx context.Context, dryRun bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan int)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range work {
				if err := a.device(ctx, i, dryRun); err != nil {
					cancel(err)
				}
			}
		})
	}
	a.feed(ctx, work)
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}

func (a *application) feed(ctx context.Context, work chan<- int) {
	for i := range a.plan.Devices {
		if a.rejected(i) {
			continue
		}
		select {
		case work <- i:
		case <-ctx.Done():
			return
		}
	}
}

func (a *application) rejected(i int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bad[i]
}

// device takes over one device. That the inventory refuses it is no error of the
// whole, unless all of it has been checked before.
func (a *application) device(ctx context.Context, i int, dryRun bool) error {
	d := &a.plan.Devices[i]
	changed, err := a.r.Adopt(ctx, enroll.Adoption{
		Actor: a.o.Actor, Reason: a.o.Reason, Device: d.record(), Verifiers: d.Verifiers,
		DryRun: dryRun, Planned: a.planned[d.Profile],
	})
	if refused(err) && (dryRun || a.o.Partial) {
		a.reject(i, err)
		return nil
	}
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if changed {
		a.result.Adopted++
	} else {
		a.result.Unchanged++
	}
	if a.done++; !dryRun && a.o.Progress != nil && (a.done%1000 == 0 || a.done == len(a.plan.Devices)-a.result.Rejected) {
		a.o.Progress(a.done, len(a.plan.Devices))
	}
	return nil
}

// refused tells a device that cannot be taken over from a store that cannot be
// written.
func refused(err error) bool {
	_, invalid := errors.AsType[*inventory.InvalidError](err)
	_, unresolved := errors.AsType[*topic.PolicyError](err)
	return invalid || unresolved || errors.Is(err, inventory.ErrConflict) || errors.Is(err, inventory.ErrNotFound) || errors.Is(err, enroll.ErrDenied)
}
