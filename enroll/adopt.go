package enroll

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/bcrypt"

	"github.com/imprint-iot/imprint/inventory"
)

// An Adoption takes over a device that exists already, with the password that it
// has: its verifiers are known, the password is not.
type Adoption struct {
	Actor, Reason string
	Device        inventory.Device     // ID, HardwareSerial, Profile, Group and Labels; the rest is set here
	Verifiers     []inventory.Verifier // none: the device is registered, and enrolls

	// DryRun decides and changes nothing.
	DryRun bool

	// Planned is, in a dry run, the profile of the device as it will be by then.
	// Nil means the stored one.
	Planned *inventory.Profile
}

// Adopt takes over one device, in one change, and reports whether it changed
// anything. A device that is there with the same facts and has, or has had, a
// password with the same verifiers is left as it is, so that an import can be
// given again; one that has no password yet gets this one.
//
// The error wraps [inventory.ErrConflict] if the inventory says something else of
// the device, is a [*StateError] if it may have no credential, and wraps
// [inventory.ErrNotFound] if there is no such profile.
func (r *Registrar) Adopt(ctx context.Context, q Adoption) (bool, error) {
	if err := checkVerifiers(q.Verifiers); err != nil {
		return false, fmt.Errorf("adopting %s: %w", q.Device.ID, err)
	}
	return decide(func() (bool, error) {
		c, err := r.adoption(ctx, q)
		if err != nil || c == nil {
			return false, err
		}
		if q.DryRun {
			return true, nil
		}
		if err := r.cfg.Store.Apply(ctx, *c); err != nil {
			return false, fmt.Errorf("adopting %s: %w", q.Device.ID, err)
		}
		return true, nil
	})
}

// adoption is the change that an adoption makes; nil if there is nothing to change.
func (r *Registrar) adoption(ctx context.Context, q Adoption) (*inventory.Change, error) {
	now := r.now()
	dev := q.Device
	dev.Kind, dev.State, dev.Hosts, dev.Trust = inventory.Equipment, inventory.Registered, nil, 0
	dev.Created, dev.Updated, dev.Revision = now, now, 0
	if err := dev.Validate(); err != nil {
		return nil, err
	}
	f, err := r.adoptionFacts(ctx, &q, dev)
	if err != nil {
		return nil, err
	}
	if f.device.Revision != 0 {
		if err := sameDevice(f.device, dev); err != nil {
			return nil, err
		}
		if len(q.Verifiers) == 0 || f.hadPassword(q.Verifiers) {
			return nil, nil
		}
		if err := f.mayAdopt(); err != nil {
			return nil, err
		}
	}
	c := &inventory.Change{Event: r.event(q.Actor, "device.adopt", q.Reason, deviceObject(f.device.ID))}
	if len(q.Verifiers) > 0 {
		f.device.State, f.device.Updated = inventory.Active, now
		cred := inventory.Credential{
			Device: f.device.ID, Kind: inventory.PasswordCredential, Generation: f.next(inventory.PasswordCredential),
			State: inventory.CredentialActive, Verifiers: q.Verifiers, Created: now,
		}
		c.Credentials = append(c.Credentials, cred)
		c.Event.Objects = append(c.Event.Objects, credentialObject(&cred))
	}
	c.Devices = append(c.Devices, f.device)
	return c, nil
}

// adoptionFacts reads the device, if it is there, and makes sure that its rights can
// be filled in.
func (r *Registrar) adoptionFacts(ctx context.Context, q *Adoption, dev inventory.Device) (*facts, error) {
	f := &facts{device: dev}
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		p, err := findProfile(in, dev.Profile)
		if q.DryRun && q.Planned != nil {
			p, err = *q.Planned, nil
		}
		if err != nil {
			return err
		}
		if p.Password.None && len(q.Verifiers) > 0 {
			return &inventory.InvalidError{Field: "password of device", Value: string(dev.ID), Want: "none: devices of profile " + p.Name + " have no password"}
		}
		if _, err := RightsOf(p, dev); err != nil {
			return err
		}
		have, err := in.Device(dev.ID)
		if errors.Is(err, inventory.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		f.device = have
		f.credentials, err = collect(in.Credentials(inventory.CredentialQuery{Device: dev.ID}), 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("adopting %s: %w", dev.ID, err)
	}
	return f, nil
}

// hadPassword reports whether the device has a password with these verifiers. One
// that has been revoked has none left to compare.
func (f *facts) hadPassword(verifiers []inventory.Verifier) bool {
	return slices.ContainsFunc(f.credentials, func(c inventory.Credential) bool {
		return c.Kind == inventory.PasswordCredential && slices.EqualFunc(c.Verifiers, verifiers, equalVerifier)
	})
}

func equalVerifier(a, b inventory.Verifier) bool {
	return a.Scheme == b.Scheme && a.Iterations == b.Iterations && bytes.Equal(a.Salt, b.Salt) && bytes.Equal(a.Hash, b.Hash)
}

// mayAdopt reports whether a device that is there may get a password from elsewhere:
// only if it never had one. What has been ended here does not come back through an
// old file.
func (f *facts) mayAdopt() error {
	if err := f.mayEnroll(); err != nil {
		return err
	}
	for i := range f.credentials {
		if f.credentials[i].Kind == inventory.PasswordCredential {
			return &inventory.ConflictError{Why: inventory.Exists, Record: "device " + string(f.device.ID), Detail: "with another password"}
		}
	}
	return nil
}

// AdoptProfile stores a profile that was made of somebody else's rules, and reports
// whether it is new. One of the same name and the same rules is left as it is; with
// other rules it is a conflict: an import never changes the rights of devices that
// are here.
func (r *Registrar) AdoptProfile(ctx context.Context, actor, reason string, p inventory.Profile, dryRun bool) (bool, error) {
	if err := p.Validate(); err != nil {
		return false, err
	}
	if err := lintPolicy(p); err != nil {
		return false, err
	}
	var have inventory.Profile
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
		have, err = findProfile(in, p.Name)
		return err
	})
	switch {
	case errors.Is(err, inventory.ErrNotFound) && dryRun:
		return true, nil
	case errors.Is(err, inventory.ErrNotFound):
		p.Revision = 0
		return true, r.cfg.Store.Apply(ctx, inventory.Change{
			Event:    r.event(actor, "profile.put", reason, inventory.Object{Kind: "profile", ID: p.Name}),
			Profiles: []inventory.Profile{p},
		})
	case err != nil:
		return false, err
	case !slices.Equal(have.Policy.Rules, p.Policy.Rules):
		return false, &inventory.ConflictError{Why: inventory.Exists, Record: "profile " + p.Name, Detail: "with other rules"}
	}
	return false, nil
}

// Sizes of verifiers that come from elsewhere, in bytes.
const (
	maxAdoptedSalt       = 128
	maxAdoptedIterations = 600_000 // half a second to compare
	maxAdoptedCost       = 12      // of bcrypt, likewise
	maxAdoptedHash       = 512
	bcryptText           = 60
)

// checkVerifiers holds verifiers to the shape of their schemes: an export takes them
// for good.
func checkVerifiers(verifiers []inventory.Verifier) error {
	seen := make(map[inventory.Scheme]bool, len(verifiers))
	for _, v := range verifiers {
		if seen[v.Scheme] || !soundVerifier(v) {
			return &inventory.InvalidError{Field: "password verifier", Value: v.Scheme.String(), Want: "one of each scheme, with a salt and a hash of its size"}
		}
		seen[v.Scheme] = true
	}
	return nil
}

func soundVerifier(v inventory.Verifier) bool {
	salted := func(least, hash int) bool {
		return v.Iterations == 0 && len(v.Salt) >= least && len(v.Salt) <= maxAdoptedSalt && len(v.Hash) == hash
	}
	stretched := func(hash int) bool {
		return v.Iterations > 0 && v.Iterations <= maxAdoptedIterations && len(v.Salt) > 0 && len(v.Salt) <= maxAdoptedSalt && len(v.Hash) == hash
	}
	switch v.Scheme {
	case inventory.PBKDF2SHA512:
		return stretched(64)
	case inventory.PBKDF2SHA1:
		return stretched(moscaHash)
	case inventory.SHA512Suffix, inventory.SHA512Prefix:
		return salted(0, 64)
	case inventory.SHA256Suffix:
		return salted(0, 32)
	case inventory.RabbitSHA256:
		return salted(rabbitSalt, 32) && len(v.Salt) == rabbitSalt
	case inventory.Bcrypt:
		cost, err := bcrypt.Cost(v.Hash)
		return err == nil && cost <= maxAdoptedCost && len(v.Hash) == bcryptText && len(v.Salt) == 0 && v.Iterations == 0
	case inventory.Argon2id:
		return bytes.HasPrefix(v.Hash, []byte("$argon2id$v=19$")) && len(v.Hash) <= maxAdoptedHash && len(v.Salt) == 0 && v.Iterations == 0
	}
	return false
}
