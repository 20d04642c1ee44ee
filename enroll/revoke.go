package enroll

import (
	"context"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// Revoke ends devices for good: none of their credentials is valid again, and
// they cannot have new ones. All devices are revoked, or none; it returns how
// many were not revoked before.
//
// To revoke twice is no error and keeps the first date; the reason may only be
// raised to KeyCompromise. KeyCompromise also blocks the keys of all
// certificates that the device ever had.
func (r *Registrar) Revoke(ctx context.Context, actor, why string, reason inventory.Reason, ids ...inventory.DeviceID) (int, error) {
	return r.turn(ctx, r.event(actor, "device.revoke", why), ids, func(c *inventory.Change, f *facts) error {
		if f.device.State == inventory.Retired {
			return &StateError{Device: f.device.ID, State: f.device.State, Hint: "its credentials have been revoked"}
		}
		f.end(c, inventory.Revoked, reason)
		return nil
	})
}

// Retire takes devices out of service for good, with the reason
// cessationOfOperation. Otherwise it is like Revoke.
func (r *Registrar) Retire(ctx context.Context, actor, why string, ids ...inventory.DeviceID) (int, error) {
	return r.turn(ctx, r.event(actor, "device.retire", why), ids, func(c *inventory.Change, f *facts) error {
		if f.device.State == inventory.Revoked {
			return &StateError{Device: f.device.ID, State: f.device.State}
		}
		f.end(c, inventory.Retired, inventory.CessationOfOperation)
		return nil
	})
}

// Suspend holds all credentials of devices (certificateHold) until Resume. All
// are suspended, or none; it returns how many were not suspended before.
func (r *Registrar) Suspend(ctx context.Context, actor, why string, ids ...inventory.DeviceID) (int, error) {
	return r.turn(ctx, r.event(actor, "device.suspend", why), ids, func(c *inventory.Change, f *facts) error {
		switch f.device.State {
		case inventory.Suspended:
			return nil
		case inventory.Registered, inventory.Active:
		case inventory.Revoked, inventory.Retired:
			return &StateError{Device: f.device.ID, State: f.device.State}
		}
		for _, cred := range f.credentials {
			if cred.State == inventory.CredentialActive {
				end(&cred, inventory.CredentialHeld, inventory.CertificateHold, c.Event.Time)
				f.put(c, cred)
			}
		}
		f.become(c, inventory.Suspended)
		return nil
	})
}

// Resume undoes Suspend, and nothing else: what was revoked stays revoked. All
// are resumed, or none; it returns how many were suspended.
func (r *Registrar) Resume(ctx context.Context, actor, why string, ids ...inventory.DeviceID) (int, error) {
	return r.turn(ctx, r.event(actor, "device.resume", why), ids, func(c *inventory.Change, f *facts) error {
		switch f.device.State {
		case inventory.Registered, inventory.Active:
			return nil
		case inventory.Suspended:
		case inventory.Revoked, inventory.Retired:
			return &StateError{Device: f.device.ID, State: f.device.State, Hint: "there is no way back"}
		}
		for _, cred := range f.credentials {
			if cred.State == inventory.CredentialHeld {
				cred.State, cred.RevokedAt, cred.Reason = inventory.CredentialActive, time.Time{}, inventory.Unspecified
				f.put(c, cred)
			}
		}
		back := inventory.Registered
		if len(f.credentials) > 0 {
			back = inventory.Active
		}
		f.become(c, back)
		return nil
	})
}

// turn lets step add to one change for each device, and applies it. It returns
// how many devices have changed.
func (r *Registrar) turn(ctx context.Context, e inventory.Event, ids []inventory.DeviceID, step func(*inventory.Change, *facts) error) (int, error) {
	return decide(func() (int, error) { return r.turnOnce(ctx, e, ids, step) })
}

func (r *Registrar) turnOnce(ctx context.Context, e inventory.Event, ids []inventory.DeviceID, step func(*inventory.Change, *facts) error) (int, error) {
	c := inventory.Change{Event: e}
	seen := make(map[string]bool, len(ids))
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		for _, id := range ids {
			if seen[id.Canonical()] {
				continue
			}
			seen[id.Canonical()] = true
			dev, err := in.Device(id)
			if err != nil {
				return err
			}
			f := &facts{device: dev}
			for cred, err := range in.Credentials(inventory.CredentialQuery{Device: dev.ID}) {
				if err != nil {
					return err
				}
				f.credentials = append(f.credentials, cred)
			}
			if err := step(&c, f); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || len(c.Devices) == 0 {
		return 0, err
	}
	return len(c.Devices), r.cfg.Store.Apply(ctx, c)
}

// end revokes every credential of the device that is not revoked yet.
func (f *facts) end(c *inventory.Change, state inventory.DeviceState, reason inventory.Reason) {
	changed := f.device.State != state
	for _, cred := range f.credentials {
		raise := cred.State == inventory.CredentialRevoked && reason == inventory.KeyCompromise && cred.Reason != reason
		if cred.State == inventory.CredentialRevoked && !raise {
			continue
		}
		changed = true
		end(&cred, inventory.CredentialRevoked, reason, c.Event.Time)
		f.put(c, cred)
	}
	if !changed {
		return
	}
	if reason == inventory.KeyCompromise {
		for _, cred := range f.credentials {
			if cred.Kind == inventory.CertificateCredential {
				c.BlockedKeys = append(c.BlockedKeys, cred.Certificate.SPKI)
			}
		}
	}
	f.become(c, state)
}

// end changes the state of a credential. The date of the first revocation stays.
func end(cred *inventory.Credential, state inventory.CredentialState, reason inventory.Reason, now time.Time) {
	cred.State, cred.Reason = state, reason
	if cred.RevokedAt.IsZero() {
		cred.RevokedAt = now
	}
	if state == inventory.CredentialRevoked {
		cred.Verifiers = nil
	}
}

func (f *facts) put(c *inventory.Change, cred inventory.Credential) {
	c.Credentials = append(c.Credentials, cred)
	c.Event.Objects = append(c.Event.Objects, credentialObject(&cred))
}

func (f *facts) become(c *inventory.Change, state inventory.DeviceState) {
	dev := f.device
	dev.State, dev.Updated = state, c.Event.Time
	c.Devices = append(c.Devices, dev)
	c.Event.Objects = append(c.Event.Objects, inventory.Object{Kind: "device", ID: string(dev.ID), Note: state.String()})
}
