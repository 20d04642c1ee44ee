package enroll

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
)

// A CanaryPair is what imprint sends to a broker node to see what it does. Both
// certificates are of one device, one issuer and one profile, and differ in one
// thing only: Refused is in the CRL. It was never good. Accepted also has a
// password, which no broker has seen before.
//
// So a broker that lets in the one and not the other works with the CRL and with
// the users that were delivered last. No state of before is needed to say so.
type CanaryPair struct {
	Device   inventory.DeviceID
	Refused  *Enrollment
	Accepted *Enrollment
}

// canaryValidity is how long a canary's certificates are good, and so how long
// they stay in the CRL.
const canaryValidity = 24 * time.Hour

// MaxNodeName is the longest name of a broker node, in bytes: its canary's ID is
// longer.
const MaxNodeName = 40

// CanaryID is the device that stands for imprint at a broker node. It has a new one
// each month, so that none has credentials without end.
func CanaryID(node string, now time.Time) inventory.DeviceID {
	return inventory.DeviceID("canary-" + node + now.UTC().Format("-200601"))
}

// SendCanary issues a pair for a node, and ends the credentials of the pair before
// it. The error wraps [ErrNoProfile] if no profile suits.
func (r *Registrar) SendCanary(ctx context.Context, actor, node string) (*CanaryPair, error) {
	if len(node) > MaxNodeName {
		return nil, &inventory.InvalidError{Field: "name of a node", Value: node, Want: fmt.Sprintf("at most %d bytes", MaxNodeName)}
	}
	return decide(func() (*CanaryPair, error) {
		now := r.now()
		f, err := r.canaryFacts(ctx, CanaryID(node, now), now)
		if err != nil {
			return nil, err
		}
		signer, err := r.open(ctx, f.issuer)
		if err != nil {
			return nil, err
		}
		pair := &CanaryPair{Device: f.device.ID}
		c := inventory.Change{Event: r.event(actor, "canary.send", "", inventory.Object{Kind: "node", ID: node})}
		refused, err := r.canary(f, signer, now)
		if err != nil {
			return nil, err
		}
		end(&refused.credentials[0], inventory.CredentialRevoked, inventory.Superseded, now)
		accepted, err := r.canary(f, signer, now)
		if err != nil {
			return nil, err
		}
		accepted.credentials[0].Generation++
		if err := r.addPassword(accepted, f, now); err != nil {
			return nil, err
		}
		supersede(&c, f, accepted, now)
		refused.credentials[0].ReplacedBy = accepted.credentials[0].Generation
		f.put(&c, refused.credentials[0])
		accepted.addTo(&c)
		pair.Refused, pair.Accepted = &refused.Enrollment, &accepted.Enrollment
		return pair, r.apply(ctx, c)
	})
}

func (r *Registrar) canary(f *facts, signer *ca.Issuer, now time.Time) (*issued, error) {
	key, err := newKey(f.rule)
	if err != nil {
		return nil, err
	}
	return r.certify(f, signer, key, now)
}

// ErrNoProfile reports that there is no device profile to follow.
var ErrNoProfile = errors.New("no profile that suits")

// canaryFacts makes the canary a device like others: of the first profile, with
// something in the place of every group and label.
func (r *Registrar) canaryFacts(ctx context.Context, id inventory.DeviceID, now time.Time) (*facts, error) {
	var f *facts
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		x, err := r.at(in)
		if err != nil {
			return err
		}
		p, err := firstProfile(in)
		if err != nil {
			return err
		}
		dev, err := in.Device(id)
		switch {
		case errors.Is(err, inventory.ErrNotFound):
			dev = inventory.Device{ID: id, Kind: inventory.Canary, State: inventory.Registered, Created: now}
		case err != nil:
			return err
		case dev.Kind != inventory.Canary:
			return &StateError{Device: id, State: dev.State, Hint: "a device has the name of a canary"}
		}
		dev.Profile, dev.Group, dev.Labels, dev.Updated = p.Name, string(id), labelsFor(p, string(id)), now
		f, err = x.facts(dev)
		return err
	})
	if err != nil {
		return nil, err
	}
	rule := *f.rule
	cfg, err := CertificateConfig(rule.profile)
	if err != nil {
		return nil, err
	}
	cfg.Validity = ca.Duration(canaryValidity)
	if rule.certificate, err = ca.NewProfile(cfg); err != nil {
		return nil, fmt.Errorf("profile %s: %w", rule.profile.Name, err)
	}
	rule.profile.Password.None = false
	f.rule = &rule
	return f, nil
}

// firstProfile is the first profile of devices by name that makes client
// certificates.
func firstProfile(in inventory.Reader) (inventory.Profile, error) {
	for p, err := range in.Profiles() {
		if err != nil {
			return p, err
		}
		cfg, err := CertificateConfig(p)
		if err != nil {
			return p, err
		}
		if cfg.Kind == "" || cfg.Kind == ca.KindDevice {
			return p, nil
		}
	}
	return inventory.Profile{}, ErrNoProfile
}

// labelsFor fills every label that the policy asks for with text.
func labelsFor(p inventory.Profile, text string) inventory.Labels {
	m := map[string]string{}
	for _, rule := range p.Policy.Rules {
		for _, level := range rule.Placeholders() {
			if name, ok := strings.CutPrefix(level, "{label."); ok {
				m[strings.TrimSuffix(name, "}")] = text
			}
		}
	}
	return inventory.NewLabels(m)
}
