package enroll

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
)

// A RolloverPhase says how far the replacement of a root is.
//
//	trust   both roots are trusted everywhere; all is still issued under the old
//	issue   everything new is issued under the new root; both are trusted
//	done    the old root is trusted no more
//	back    on the way back: all is issued under the old root again; both are trusted
//	aborted the new root is trusted no more
type RolloverPhase string

// The phases. From trust and issue there is a way back; from done there is none.
const (
	PhaseTrust   RolloverPhase = "trust"
	PhaseIssue   RolloverPhase = "issue"
	PhaseDone    RolloverPhase = "done"
	PhaseBack    RolloverPhase = "back"
	PhaseAborted RolloverPhase = "aborted"
)

// A Rollover is the replacement of a root by the next one, with the issuers under
// it. The link certificates let those who trust one of the two accept what stands
// under the other.
type Rollover struct {
	Generation uint32        `json:"generation"` // of the new root
	Phase      RolloverPhase `json:"phase"`
	Began      time.Time     `json:"began"`
	Moved      time.Time     `json:"moved"` // when it came into this phase

	Old []string `json:"old"` // names of the issuers that go: the root, and all under it
	New []string `json:"new"` // names of those that take their place, the root first

	NewWithOld []byte `json:"newWithOld"` // DER: the new root, certified by the old one
	OldWithNew []byte `json:"oldWithNew"` // DER: the old root, certified by the new one

	revision uint64 // of the work
	name     string
}

// Over reports whether nothing is left to be done.
func (v *Rollover) Over() bool { return v.Phase == PhaseDone || v.Phase == PhaseAborted }

const rolloverKind = "rollover"

// RolloverKeys are what a rollover begins with: the old root's key, and the keys of
// the new root and of the issuers under it.
type RolloverKeys struct {
	Old               crypto.Signer
	Root              KeyRef
	Device, ServerKey KeyRef
}

// A StrandedError reports devices that a step would cut off: they could not verify
// the broker any more, or the broker not them. It wraps [ErrDenied].
type StrandedError struct {
	Phase   RolloverPhase // that was refused
	Count   int
	Devices []inventory.DeviceID // the first of them, at most 10,000
}

// Error counts them and names the first.
func (e *StrandedError) Error() string {
	return fmt.Sprintf("%d devices would be stranded in phase %s, %s first", e.Count, e.Phase, e.Devices[0])
}

// Unwrap returns [ErrDenied].
func (e *StrandedError) Unwrap() error { return ErrDenied }

// ErrNoRollover reports that no root is being replaced.
var ErrNoRollover = errors.New("no root is being replaced")

// CurrentRollover returns the rollover that is under way, or the last one. The error
// wraps [ErrNoRollover] if there never was one.
func (r *Registrar) CurrentRollover(ctx context.Context) (*Rollover, error) {
	var v *Rollover
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
		v, err = currentRollover(in)
		return err
	})
	if err == nil && v == nil {
		err = ErrNoRollover
	}
	return v, err
}

func currentRollover(in inventory.Reader) (*Rollover, error) {
	var last *Rollover
	for w, err := range in.Works(rolloverKind) {
		if err != nil {
			return nil, err
		}
		v := &Rollover{revision: w.Revision, name: w.Name}
		if err := json.Unmarshal(w.Body, v); err != nil {
			return nil, fmt.Errorf("reading rollover %s: %w", w.Name, err)
		}
		if last == nil || v.Generation > last.Generation {
			last = v
		}
	}
	return last, nil
}

// links returns the link certificates while both roots are trusted, DER.
func links(in inventory.Reader) ([][]byte, error) {
	v, err := currentRollover(in)
	if err != nil || v == nil || v.Over() {
		return nil, err
	}
	return [][]byte{v.NewWithOld, v.OldWithNew}, nil
}

// StartRollover makes the next root, the issuers under it and the links, and lets
// brokers and devices be told to trust it: all in one change. Nothing is issued under
// it yet. The error wraps [ErrDenied] if a rollover is under way.
func (r *Registrar) StartRollover(ctx context.Context, actor, why string, newKeys func(root, device, server string) (RolloverKeys, error)) (*Rollover, error) {
	old, trusted, generations, err := r.beforeRollover(ctx)
	if err != nil {
		return nil, err
	}
	next := func(p inventory.Purpose) uint32 { return generations[p] + 1 }
	names := make(map[inventory.Purpose]string)
	for _, p := range rolledPurposes() {
		names[p] = issuerName(p, next(p))
	}
	keys, err := newKeys(names[inventory.RootPurpose], names[inventory.DevicePurpose], names[inventory.ServerPurpose])
	if err != nil {
		return nil, err
	}
	oldRoot, err := x509.ParseCertificate(old[inventory.RootPurpose].Certificate)
	if err != nil {
		return nil, fmt.Errorf("reading certificate of the root: %w", err)
	}
	rootDER, err := ca.NewRoot(keys.Root.Signer, authorityConfig(r.cfg.Organization, inventory.RootPurpose, next(inventory.RootPurpose), r.cfg.Now))
	if err != nil {
		return nil, fmt.Errorf("making root: %w", err)
	}
	root, err := x509.ParseCertificate(rootDER)
	if err != nil {
		return nil, err
	}
	now := r.now()
	v := &Rollover{Generation: next(inventory.RootPurpose), Phase: PhaseTrust, Began: now, Moved: now, Old: trusted, name: names[inventory.RootPurpose]}
	if v.NewWithOld, err = ca.Link(root, oldRoot, keys.Old, r.cfg.Now); err != nil {
		return nil, err
	}
	if v.OldWithNew, err = ca.Link(oldRoot, root, keys.Root.Signer, r.cfg.Now); err != nil {
		return nil, err
	}
	c := inventory.Change{Event: r.event(actor, "rollover.start", why)}
	for _, x := range []struct {
		purpose inventory.Purpose
		key     KeyRef
		state   inventory.IssuerState
	}{
		{inventory.RootPurpose, keys.Root, inventory.IssuerActive},
		{inventory.DevicePurpose, keys.Device, inventory.IssuerStandby},
		{inventory.ServerPurpose, keys.ServerKey, inventory.IssuerStandby},
	} {
		der := rootDER
		if x.purpose != inventory.RootPurpose {
			if der, err = r.under(root, keys.Root.Signer, x.purpose, next(x.purpose), x.key); err != nil {
				return nil, fmt.Errorf("making %s issuer: %w", x.purpose, err)
			}
		}
		rec, err := issuerRecord(x.purpose, next(x.purpose), der, x.key)
		if err != nil {
			return nil, err
		}
		rec.State = x.state
		c.Issuers = append(c.Issuers, rec)
		v.New = append(v.New, rec.Name)
		c.Event.Objects = append(c.Event.Objects, inventory.Object{Kind: "issuer", ID: rec.Name, Note: rec.KeyID.String()})
	}
	return v, r.putRollover(ctx, c, v)
}

func rolledPurposes() []inventory.Purpose {
	return []inventory.Purpose{inventory.RootPurpose, inventory.DevicePurpose, inventory.ServerPurpose}
}

// under signs an issuer with a root.
func (r *Registrar) under(root *x509.Certificate, rootKey crypto.Signer, purpose inventory.Purpose, generation uint32, key KeyRef) ([]byte, error) {
	cfg := authorityConfig(r.cfg.Organization, purpose, generation, r.cfg.Now)
	csr, err := ca.NewIntermediateRequest(key.Signer, cfg)
	if err != nil {
		return nil, err
	}
	return ca.SignIntermediate(root, rootKey, csr, cfg)
}

// beforeRollover finds what is to be replaced: the newest active issuer of each
// purpose, the names of all that are trusted, and the last generations there are.
func (r *Registrar) beforeRollover(ctx context.Context) (old map[inventory.Purpose]inventory.Issuer, names []string, last map[inventory.Purpose]uint32, err error) {
	old, last = make(map[inventory.Purpose]inventory.Issuer), make(map[inventory.Purpose]uint32)
	err = r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		v, err := currentRollover(in)
		if err != nil {
			return err
		}
		if v != nil && !v.Over() {
			return fmt.Errorf("root %d is being replaced, in phase %s: %w", v.Generation-1, v.Phase, ErrDenied)
		}
		x, err := r.at(in)
		if err != nil {
			return err
		}
		for _, iss := range x.issuers {
			last[iss.Purpose] = max(last[iss.Purpose], iss.Generation)
		}
		for _, p := range rolledPurposes() {
			if old[p], err = x.issuer(p); err != nil {
				return err
			}
		}
		for _, iss := range x.issuers {
			if iss.State != inventory.IssuerRetired && iss.State != inventory.IssuerPending {
				names = append(names, iss.Name)
			}
		}
		return nil
	})
	return old, names, last, err
}

func (r *Registrar) putRollover(ctx context.Context, c inventory.Change, v *Rollover) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding rollover: %w", err)
	}
	c.Event.Objects = append(c.Event.Objects, inventory.Object{Kind: "rollover", ID: v.name, Note: string(v.Phase)})
	c.Works = append(c.Works, inventory.Work{Kind: rolloverKind, Name: v.name, Body: body, Updated: c.Event.Time, Revision: v.revision})
	return r.cfg.Store.Apply(ctx, c)
}

// AdvanceRollover takes a rollover into its next phase: from trust to issue, from
// issue to done, from back to aborted. Unless force is set the error is a
// [*StrandedError] if devices would be cut off.
func (r *Registrar) AdvanceRollover(ctx context.Context, actor, why string, force bool) (*Rollover, error) {
	return r.moveRollover(ctx, actor, "rollover.advance", why, force, func(v *Rollover) (RolloverPhase, error) {
		if to := v.next(); to != "" {
			return to, nil
		}
		return "", fmt.Errorf("the rollover to root %d is %s: %w", v.Generation, v.Phase, ErrDenied)
	})
}

// AbortRollover goes back to the old root: at once if no device has a certificate
// under the new one only, and otherwise by way of the phase back, in which devices
// renew under the old one, and AdvanceRollover from there.
func (r *Registrar) AbortRollover(ctx context.Context, actor, why string) (*Rollover, error) {
	abort := func(to RolloverPhase) (*Rollover, error) {
		return r.moveRollover(ctx, actor, "rollover.abort", why, false, func(v *Rollover) (RolloverPhase, error) {
			if v.Phase != PhaseTrust && v.Phase != PhaseIssue {
				return "", fmt.Errorf("the rollover to root %d is %s: %w", v.Generation, v.Phase, ErrDenied)
			}
			return to, nil
		})
	}
	v, err := abort(PhaseAborted)
	if is := (*StrandedError)(nil); errors.As(err, &is) {
		return abort(PhaseBack)
	}
	return v, err
}

func (r *Registrar) moveRollover(ctx context.Context, actor, action, why string, force bool, next func(*Rollover) (RolloverPhase, error)) (*Rollover, error) {
	return decide(func() (*Rollover, error) {
		c := inventory.Change{Event: r.event(actor, action, why)}
		var v *Rollover
		err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
			if v, err = currentRollover(in); err != nil {
				return err
			}
			if v == nil {
				return ErrNoRollover
			}
			to, err := next(v)
			if err != nil {
				return err
			}
			s, err := r.standing(in, v)
			if err != nil {
				return err
			}
			if stranded := s.strandedIn(to); stranded.Count > 0 {
				if !force {
					return stranded
				}
				c.Event.Reason = fmt.Sprintf("%s (forced: %d devices stranded)", why, stranded.Count)
			}
			v.Phase, v.Moved = to, c.Event.Time
			c.Issuers, err = v.issuers(in)
			return err
		})
		if err != nil {
			return v, err
		}
		return v, r.putRollover(ctx, c, v)
	})
}

// issuers returns the issuers of both roots in the states that the phase wants, as
// far as they are in others.
func (v *Rollover) issuers(in inventory.Reader) ([]inventory.Issuer, error) {
	newState, newRoot := inventory.IssuerStandby, inventory.IssuerActive
	switch v.Phase {
	case PhaseTrust, PhaseBack:
	case PhaseIssue:
		newState = inventory.IssuerActive
	case PhaseDone:
		newState = inventory.IssuerActive
	case PhaseAborted:
		newState, newRoot = inventory.IssuerRetired, inventory.IssuerRetired
	}
	want := map[string]inventory.IssuerState{}
	if v.Phase == PhaseDone {
		for _, name := range v.Old {
			want[name] = inventory.IssuerRetired
		}
	}
	for i, name := range v.New {
		want[name] = newState
		if i == 0 {
			want[name] = newRoot
		}
	}
	var changed []inventory.Issuer
	for iss, err := range in.Issuers() {
		if err != nil {
			return nil, err
		}
		if state, ok := want[iss.Name]; ok && iss.State != state {
			iss.State = state
			changed = append(changed, iss)
		}
	}
	return changed, nil
}
