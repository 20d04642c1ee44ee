// Package delivery brings what the inventory says to where it is needed: as the
// files of a broker, and as the bundles that devices are handed.
package delivery

import (
	"fmt"
	"iter"
	"time"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// A ViewConfig is what an export needs besides the inventory.
type ViewConfig struct {
	Fleet       templates.Fleet
	Node        templates.Node
	TrustBundle []byte // PEM
	CRLs        []templates.CRL
	Now         time.Time          // decides which certificates have expired
	Canary      inventory.DeviceID // exported among the devices; empty: none
}

// NewView resolves the fleet that in shows for an export. The view is valid as
// long as in is.
func NewView(in inventory.Reader, cfg ViewConfig) (templates.View, error) {
	v := &view{ViewConfig: cfg, in: in, profiles: map[string]inventory.Profile{}}
	for p, err := range in.Profiles() {
		if err != nil {
			return nil, err
		}
		v.profiles[p.Name] = p
	}
	return v, nil
}

// view implements [templates.View] on a reader. It holds nothing of the devices.
type view struct {
	ViewConfig
	in       inventory.Reader
	profiles map[string]inventory.Profile
}

func (v *view) Revision() uint64                              { return v.in.Revision() }
func (v *view) Fleet() templates.Fleet                        { return v.ViewConfig.Fleet }
func (v *view) Node() templates.Node                          { return v.ViewConfig.Node }
func (v *view) Profiles() iter.Seq2[inventory.Profile, error] { return v.in.Profiles() }
func (v *view) TrustBundle() []byte                           { return v.ViewConfig.TrustBundle }
func (v *view) CRLs() []templates.CRL                         { return v.ViewConfig.CRLs }

// Entries joins devices and credentials, which the store keeps in the same
// order: one pass over each, whatever the size of the fleet.
func (v *view) Entries() iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		canary, err := v.canary()
		if err != nil {
			yield(templates.Entry{}, err)
			return
		}
		next, stop := iter.Pull2(v.in.Credentials(inventory.CredentialQuery{All: true}))
		defer stop()
		cred, err, more := next()
		for dev, devErr := range v.in.Devices(inventory.Query{}) {
			if devErr != nil {
				yield(templates.Entry{}, devErr)
				return
			}
			var live []inventory.Credential
			for more && err == nil && cred.Device.Canonical() <= dev.ID.Canonical() {
				if cred.Device.Canonical() == dev.ID.Canonical() && cred.Usable(v.Now) {
					live = append(live, cred)
				}
				cred, err, more = next()
			}
			if err != nil {
				yield(templates.Entry{}, err)
				return
			}
			if canary != nil && canary.ID.Canonical() < dev.ID.Canonical() {
				if !yield(*canary, nil) {
					return
				}
				canary = nil
			}
			if dev.State != inventory.Active || len(live) == 0 {
				continue
			}
			entry, err := v.entry(dev, live)
			if !yield(entry, err) || err != nil {
				return
			}
		}
		if canary != nil {
			yield(*canary, nil)
		}
	}
}

// canary returns the entry of the canary, or nil.
func (v *view) canary() (*templates.Entry, error) {
	if v.Canary == "" {
		return nil, nil
	}
	dev, err := v.in.Device(v.Canary)
	if err != nil {
		return nil, err
	}
	var live []inventory.Credential
	for cred, err := range v.in.Credentials(inventory.CredentialQuery{Device: dev.ID}) {
		if err != nil {
			return nil, err
		}
		if cred.Usable(v.Now) {
			live = append(live, cred)
		}
	}
	if len(live) == 0 {
		return nil, nil
	}
	e, err := v.entry(dev, live)
	return &e, err
}

func (v *view) entry(dev inventory.Device, live []inventory.Credential) (templates.Entry, error) {
	e := templates.Entry{ID: dev.ID, HardwareSerial: dev.HardwareSerial, Profile: dev.Profile, Group: dev.Group, Labels: dev.Labels, Revision: dev.Revision}
	for i := range live {
		if c := live[i].Certificate; c != nil {
			e.Certificate, e.Leafs = true, append(e.Leafs, c.DER)
		}
	}
	if p := enroll.PasswordForBrokers(live); p != nil {
		e.Verifiers = p.Verifiers
	}
	p, ok := v.profiles[dev.Profile]
	if !ok {
		return e, fmt.Errorf("device %s: profile %q: %w", dev.ID, dev.Profile, inventory.ErrNotFound)
	}
	var err error
	if e.Grants, err = p.Policy.Resolve(enroll.Subject(dev)); err != nil {
		return e, fmt.Errorf("device %s: %w", dev.ID, err)
	}
	return e, nil
}
