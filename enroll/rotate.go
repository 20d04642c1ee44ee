package enroll

import (
	"context"
	"fmt"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// PasswordForBrokers picks the password that a broker is to take, of the good ones of
// a device: a broker has room for one hash. While a new password is on its way to the
// device that is the old one, and from the moment the device has said that it holds
// the new one, or has been seen to use it, it is that. Nil means there is none.
func PasswordForBrokers(credentials []inventory.Credential) *inventory.Credential {
	var oldest, seen *inventory.Credential
	for i := range credentials {
		c := &credentials[i]
		if c.Kind != inventory.PasswordCredential || c.State != inventory.CredentialActive {
			continue
		}
		if oldest == nil || c.Generation < oldest.Generation {
			oldest = c
		}
		if !c.FirstSeen.IsZero() && (seen == nil || c.Generation > seen.Generation) {
			seen = c
		}
	}
	if seen != nil {
		return seen
	}
	return oldest
}

// overlapPassword puts a new password beside the one that brokers take. Others that
// were on their way were never used, and end.
func (f *facts) overlapPassword(c *inventory.Change, made *issued, now time.Time) {
	keep := PasswordForBrokers(f.credentials)
	if keep == nil {
		return
	}
	for _, old := range f.credentials {
		if old.Kind != inventory.PasswordCredential || old.State != inventory.CredentialActive {
			continue
		}
		for i := range made.credentials {
			if made.credentials[i].Kind == inventory.PasswordCredential {
				old.ReplacedBy = made.credentials[i].Generation
			}
		}
		if old.Generation != keep.Generation {
			end(&old, inventory.CredentialRevoked, inventory.Superseded, now)
		}
		f.put(c, old)
	}
}

// A Rotation asks for new credentials of one device beside those that it has.
type Rotation struct {
	Actor, Reason         string
	Device                inventory.DeviceID
	Certificate, Password bool
	Out                   Outbox // where the bundle goes; must be set
}

// Rotate makes new credentials for a device that cannot ask for them itself, and hands
// out a bundle with them. The old ones stay good until the device is known to use the
// new ones: see [Registrar.Seen]. Only the certificate that the device is known to use
// stays, of older ones; new ones that were never used end.
//
// The error is a [*StateError] if the device may not have credentials.
func (r *Registrar) Rotate(ctx context.Context, q Rotation) (*Enrollment, error) {
	if !q.Certificate && !q.Password || q.Out == nil {
		return nil, fmt.Errorf("rotating %s: nothing is asked for, or nowhere to put it", q.Device)
	}
	return decide(func() (*Enrollment, error) {
		f, err := r.facts(ctx, q.Device)
		if err != nil {
			return nil, err
		}
		if err := f.mayEnroll(); err != nil {
			return nil, err
		}
		now := r.now()
		made, err := r.rotated(ctx, f, q, now)
		if err != nil {
			return nil, err
		}
		c := inventory.Change{Event: r.event(q.Actor, "device.rotate", q.Reason)}
		if q.Certificate {
			f.overlapNewest(&c, made, now)
		}
		if q.Password {
			f.overlapPassword(&c, made, now)
		}
		made.addTo(&c)
		return &made.Enrollment, r.record(ctx, c, q.Out, &made.Enrollment)
	})
}

func (r *Registrar) rotated(ctx context.Context, f *facts, q Rotation, now time.Time) (*issued, error) {
	made := &issued{Enrollment: Enrollment{Device: f.device}}
	if q.Certificate {
		key, err := newKey(f.rule)
		if err != nil {
			return nil, err
		}
		if made, err = r.make(ctx, f, key, false, now); err != nil {
			return nil, err
		}
	} else {
		rights, err := RightsOf(f.rule.profile, f.device)
		if err != nil {
			return nil, err
		}
		made.Rights, made.Device.Updated = rights, now
	}
	if q.Password {
		return made, r.addPassword(made, f, now)
	}
	return made, nil
}

// overlapNewest is overlap without a certificate that was shown: the one in use is
// the newest that was seen or, if none was, the newest.
func (f *facts) overlapNewest(c *inventory.Change, made *issued, now time.Time) {
	if used := f.inUse(now); used != nil {
		f.overlap(c, used, made, now, false)
	}
}

// inUse is the certificate that the device is taken to use, or nil.
func (f *facts) inUse(now time.Time) *inventory.Credential {
	var newest, seen *inventory.Credential
	for i := range f.credentials {
		c := &f.credentials[i]
		if c.Kind != inventory.CertificateCredential || !c.Usable(now) {
			continue
		}
		newest = c
		if !c.FirstSeen.IsZero() {
			seen = c
		}
	}
	if seen != nil {
		return seen
	}
	return newest
}

// Seen takes it as known that devices use their newest credentials, and ends the older
// ones as superseded: on evidence from elsewhere, as a broker's log, or by decision. It
// returns how many credentials have ended.
func (r *Registrar) Seen(ctx context.Context, actor, why string, ids ...inventory.DeviceID) (int, error) {
	ended := 0
	_, err := r.turn(ctx, r.event(actor, "device.seen", why), ids, func(c *inventory.Change, f *facts) error {
		if f.device.State != inventory.Active {
			return &StateError{Device: f.device.ID, State: f.device.State}
		}
		now := c.Event.Time
		before, n := len(c.Credentials), 0
		if newest := f.newest(inventory.CertificateCredential, now); newest != nil {
			n += f.confirm(c, newest, now)
		}
		n += f.confirmPassword(c, now)
		if len(c.Credentials) > before {
			f.become(c, f.device.State)
		}
		ended += n
		return nil
	})
	return ended, err
}

// newest is the newest good credential of a kind, or nil.
func (f *facts) newest(kind inventory.CredentialKind, now time.Time) *inventory.Credential {
	var newest *inventory.Credential
	for i := range f.credentials {
		if c := &f.credentials[i]; c.Kind == kind && c.Usable(now) {
			newest = c
		}
	}
	return newest
}

// confirmPassword ends what is older than the newest password, and notes its first
// use.
func (f *facts) confirmPassword(c *inventory.Change, now time.Time) int {
	newest := f.newest(inventory.PasswordCredential, now)
	if newest == nil {
		return 0
	}
	n := 0
	for _, old := range f.credentials {
		switch {
		case old.Kind != inventory.PasswordCredential || old.State != inventory.CredentialActive:
		case old.Generation == newest.Generation && old.FirstSeen.IsZero():
			old.FirstSeen = now
			c.Credentials = append(c.Credentials, old)
		case old.Generation < newest.Generation:
			end(&old, inventory.CredentialRevoked, inventory.Superseded, now)
			old.ReplacedBy = newest.Generation
			f.put(c, old)
			n++
		}
	}
	return n
}

// ConfirmPassword takes the report of a device that it holds the password which it was
// given last: brokers take that one from now on, and the older ones end. It returns how
// many that were. The error is that of [Registrar.Confirm].
func (r *Registrar) ConfirmPassword(ctx context.Context, p Principal) (int, error) {
	if p.device == "" {
		return 0, fmt.Errorf("%s: %w", p.name, ErrNoCertificate)
	}
	return decide(func() (int, error) {
		f, _, err := r.shown(ctx, p, nil)
		if err != nil {
			return 0, err
		}
		c := inventory.Change{Event: r.event(p.name, "device.confirm", "password", deviceObject(f.device.ID))}
		n := f.confirmPassword(&c, r.now())
		if len(c.Credentials) == 0 {
			return 0, nil
		}
		return n, r.cfg.Store.Apply(ctx, c)
	})
}
