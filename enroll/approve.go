package enroll

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// maxPending bounds how many requests wait for an operator, so that a stolen
// token cannot fill the inventory.
const maxPending = 10_000

// ErrQueueFull reports that too many requests wait for an operator.
var ErrQueueFull = errors.New("too many requests wait for approval")

// approved returns nil if nobody has to approve, or somebody has. The first
// request for a key puts it into the queue.
func (r *Registrar) approved(ctx context.Context, p Principal, g *grant, now time.Time) error {
	if !g.approve {
		return nil
	}
	pending := &PendingError{Device: g.device.ID, Key: g.key.SPKI}
	if have := g.approval; have != nil {
		switch {
		case have.Device.Canonical() != g.device.ID.Canonical():
			return fmt.Errorf("the key waits for approval as that of %s: %w", have.Device, ErrScope)
		case have.State == inventory.ApprovalGranted:
			return nil
		case have.State == inventory.ApprovalPending:
			return pending
		}
		return fmt.Errorf("device %s: %w", g.device.ID, ErrNotApproved)
	}
	waiting := 0
	asked, err := r.Approvals(ctx)
	if err != nil {
		return err
	}
	for i := range asked {
		if asked[i].State == inventory.ApprovalPending {
			waiting++
		}
	}
	if waiting >= maxPending {
		return ErrQueueFull
	}
	err = r.cfg.Store.Apply(ctx, inventory.Change{
		Event: r.event(p.name, "approval.ask", "", deviceObject(g.device.ID), inventory.Object{Kind: "key", ID: inventory.SPKI(g.key.SPKI).String()}),
		Approvals: []inventory.Approval{{
			Key: g.key.SPKI, Device: g.device.ID, State: inventory.ApprovalPending, Asked: p.name, Created: now,
		}},
	})
	if err != nil {
		return fmt.Errorf("recording request: %w", err)
	}
	return pending
}

// Approvals returns all requests that wait, or have waited, for an operator.
func (r *Registrar) Approvals(ctx context.Context) ([]inventory.Approval, error) {
	var all []inventory.Approval
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
		all, err = collect(in.Approvals(), 0)
		return err
	})
	return all, err
}

// Approve grants or denies a request. The device gets its certificate, or is
// turned away, when it asks the next time. A decision can be changed until then.
func (r *Registrar) Approve(ctx context.Context, actor, why string, key inventory.SPKI, grant bool) (inventory.Approval, error) {
	return decide(func() (inventory.Approval, error) {
		var a inventory.Approval
		err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
			a, err = in.Approval(key)
			return err
		})
		if err != nil {
			return a, err
		}
		action := "approval.deny"
		want := inventory.ApprovalDenied
		if grant {
			action, want = "approval.grant", inventory.ApprovalGranted
		}
		if a.State == want {
			return a, nil
		}
		a.State, a.Decided = want, r.now()
		return a, r.cfg.Store.Apply(ctx, inventory.Change{
			Event:     r.event(actor, action, why, deviceObject(a.Device), inventory.Object{Kind: "key", ID: a.Key.String()}),
			Approvals: []inventory.Approval{a},
		})
	})
}
