package enroll

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// facts is what a decision about one device rests on.
type facts struct {
	device      inventory.Device
	credentials []inventory.Credential // of the device, all that there ever were
	rule        *issuingRule
	issuer      inventory.Issuer
	caKeys      map[inventory.SPKI]string // the fleet's own keys, which no device may have
	trust       uint32                    // the newest root that a bundle made now has
	link        []byte                    // DER, for a server's chain while its root is new to some; may be empty
}

// A reading is one moment of the inventory, with what every decision needs of it
// read once.
type reading struct {
	r        *Registrar
	in       inventory.Reader
	issuers  []inventory.Issuer
	rollover *Rollover // the last one; nil if there was none
	caKeys   map[inventory.SPKI]string
	profiles map[string]inventory.Profile
}

// at prepares for decisions on what in shows.
func (r *Registrar) at(in inventory.Reader) (*reading, error) {
	x := &reading{r: r, in: in, caKeys: map[inventory.SPKI]string{}, profiles: map[string]inventory.Profile{}}
	for iss, err := range in.Issuers() {
		if err != nil {
			return nil, err
		}
		x.issuers = append(x.issuers, iss)
		x.caKeys[iss.SPKI] = iss.Name
	}
	for p, err := range in.Profiles() {
		if err != nil {
			return nil, err
		}
		x.profiles[p.Name] = p
	}
	var err error
	x.rollover, err = currentRollover(in)
	return x, err
}

// issuer returns the newest active issuer for a purpose.
func (x *reading) issuer(purpose inventory.Purpose) (inventory.Issuer, error) {
	var newest inventory.Issuer
	for _, iss := range x.issuers {
		if iss.Purpose == purpose && iss.State == inventory.IssuerActive && iss.Generation > newest.Generation {
			newest = iss
		}
	}
	if newest.Name == "" {
		return newest, fmt.Errorf("%w for %s certificates", ErrNoIssuer, purpose)
	}
	return newest, nil
}

// newestRoot is the generation of the newest root that is trusted.
func (x *reading) newestRoot() uint32 {
	var newest uint32
	for i := range x.issuers {
		if iss := &x.issuers[i]; iss.Purpose == inventory.RootPurpose && vouches(iss) {
			newest = max(newest, iss.Generation)
		}
	}
	return newest
}

// facts reads what is known of a registered device.
func (r *Registrar) facts(ctx context.Context, id inventory.DeviceID) (*facts, error) {
	var f *facts
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		x, err := r.at(in)
		if err != nil {
			return err
		}
		dev, err := in.Device(id)
		if err != nil {
			return err
		}
		f, err = x.facts(dev)
		return err
	})
	return f, err
}

// facts reads what is known around dev, which need not be stored yet.
func (x *reading) facts(dev inventory.Device) (*facts, error) {
	f := &facts{device: dev, caKeys: x.caKeys, trust: x.newestRoot()}
	purpose, profile := inventory.ServerPurpose, serverProfile
	if dev.Kind != inventory.Server {
		var ok bool
		purpose = inventory.DevicePurpose
		if profile, ok = x.profiles[dev.Profile]; !ok {
			return nil, fmt.Errorf("profile %q: %w", dev.Profile, inventory.ErrNotFound)
		}
	}
	var err error
	if f.rule, err = x.r.rule(profile); err != nil {
		return nil, err
	}
	if f.issuer, err = x.issuer(purpose); err != nil {
		return nil, err
	}
	if v := x.rollover; v != nil && v.Phase == PhaseIssue && dev.Kind == inventory.Server {
		f.link = v.NewWithOld
	}
	if dev.Revision == 0 {
		return f, nil
	}
	for c, err := range x.in.Credentials(inventory.CredentialQuery{Device: dev.ID}) {
		if err != nil {
			return nil, err
		}
		f.credentials = append(f.credentials, c)
	}
	return f, nil
}

// mayEnroll reports whether the device is in a state in which it may get a
// credential: all that is not expressly allowed is not.
func (f *facts) mayEnroll() error {
	switch f.device.State {
	case inventory.Registered, inventory.Active:
		return nil
	case inventory.Suspended:
		return &StateError{Device: f.device.ID, State: f.device.State, Hint: "resume it first"}
	case inventory.Revoked, inventory.Retired:
		return &StateError{Device: f.device.ID, State: f.device.State, Hint: "it can have no credential again; register the hardware under a new id"}
	}
	return &StateError{Device: f.device.ID, State: f.device.State}
}

// current returns the usable certificate for a key, or nil.
func (f *facts) current(key inventory.SPKI, now time.Time) *inventory.Credential {
	for i := range f.credentials {
		c := &f.credentials[i]
		if c.Kind == inventory.CertificateCredential && c.Certificate.SPKI == key && c.Usable(now) {
			return c
		}
	}
	return nil
}

// certified reports whether the device has a usable certificate.
func (f *facts) certified(now time.Time) bool {
	for i := range f.credentials {
		if c := &f.credentials[i]; c.Kind == inventory.CertificateCredential && c.Usable(now) {
			return true
		}
	}
	return false
}

// next is the generation that the next credential of a kind gets.
func (f *facts) next(kind inventory.CredentialKind) uint32 {
	var last uint32
	for i := range f.credentials {
		if c := &f.credentials[i]; c.Kind == kind {
			last = max(last, c.Generation)
		}
	}
	return last + 1
}

// Rights are what a device may do, with its names filled in.
type Rights struct {
	Publish []string `json:"publish"`
	Receive []string `json:"receive"`
}

// RightsOf resolves the policy of a profile for a device. What cannot be filled
// in is an error: a device whose label is missing would otherwise find out in
// the field.
func RightsOf(p inventory.Profile, d inventory.Device) (Rights, error) {
	rights := Rights{Publish: []string{}, Receive: []string{}}
	grants, err := p.Policy.Resolve(Subject(d))
	if err != nil {
		return rights, fmt.Errorf("device %s: %w", d.ID, err)
	}
	for _, g := range grants {
		if g.Action == topic.Publish {
			rights.Publish = append(rights.Publish, string(g.Filter))
		} else {
			rights.Receive = append(rights.Receive, string(g.Filter))
		}
	}
	return rights, nil
}

// Subject is d as a topic policy sees it.
func Subject(d inventory.Device) topic.Subject {
	return topic.Subject{ID: string(d.ID), Group: d.Group, Labels: d.Labels.Get}
}

// lintPolicy refuses a policy that gives a device a stranger's topics.
func lintPolicy(p inventory.Profile) error {
	var errs []error
	for _, f := range p.Policy.Lint() {
		if f.Severity == topic.Error {
			errs = append(errs, fmt.Errorf("profile %s: %w", p.Name, &topic.PolicyError{Rule: f.Rule, Filter: p.Policy.Rules[f.Rule-1].Filter, Reason: f.Text}))
		}
	}
	return errors.Join(errs...)
}
