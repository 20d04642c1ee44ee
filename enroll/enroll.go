// Package enroll is the registration authority: the only place where the
// inventory meets the certification authority.
//
// A [Registrar] decides whether a device may have a credential, makes it, and
// records it. The order is always the same: fence the request, decide, build and
// lint, sign in memory, apply one change, and only then let the certificate out.
// A crash in between leaves at most a signature that no one has seen, so every
// certificate that anyone ever received is in the inventory.
//
// The package knows nothing of the doors that lead to it, of brokers, or of the
// network.
package enroll

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
)

// A Config is what a Registrar needs. Store, Open, Organization and TrustDomain
// must be set.
type Config struct {
	Store inventory.Store

	// Open opens the private key of an issuer. It is called at most once for
	// each issuer, when its first signature is needed, so that work that signs
	// nothing asks for no passphrase.
	Open func(context.Context, inventory.Issuer) (*ca.Issuer, error)

	Organization string // O of every subject: the fleet's name
	TrustDomain  string // of the SPIFFE IDs in certificates

	// Schemes are the dear password verifiers (bcrypt, argon2id, pbkdf2-sha1) to compute for
	// every device, because a broker of the fleet reads nothing else.
	Schemes []inventory.Scheme

	// CRLValidity is how long a CRL is good: nextUpdate - thisUpdate. Zero means
	// 7 days.
	CRLValidity time.Duration

	// TokenSigner opens the key that signs tokens for brokers, on the curve P-256.
	// It is called until it has succeeded once. Nil means that none are made; see
	// [Registrar.MQTTToken].
	TokenSigner func(context.Context) (crypto.Signer, error)

	// TokenValidity is how long such a token is good, at most 15 minutes, which is
	// what zero means.
	TokenValidity time.Duration

	Now func() time.Time // nil means time.Now
}

// A Registrar enrolls, revokes and keeps the books. Its methods are safe for
// concurrent use.
type Registrar struct {
	cfg Config

	mu       sync.Mutex
	issuers  map[string]*ca.Issuer   // by name
	profiles map[string]*issuingRule // by name

	clock  sync.Mutex
	latest time.Time // the latest time that was decided on

	pace   pace
	alarms alarms
	tokens tokenKeyring
	makers atomic.Pointer[[]Maker]
	rules  atomic.Pointer[fleetRules] // of the last decision

	comparing chan struct{} // held by who compares a password that is dear to compare
}

// issuingRule is a device profile made ready for use.
type issuingRule struct {
	profile     inventory.Profile
	certificate *ca.Profile
	keys        ca.KeyPolicy // the first algorithm is the one imprint makes
}

// New returns a Registrar. It opens nothing yet.
func New(cfg Config) (*Registrar, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("enroll: Config.Store is not set")
	case cfg.Open == nil:
		return nil, errors.New("enroll: Config.Open is not set")
	case cfg.Organization == "" || cfg.TrustDomain == "":
		return nil, errors.New("enroll: Config.Organization or TrustDomain is not set")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.CRLValidity == 0 {
		cfg.CRLValidity = 7 * 24 * time.Hour
	}
	if cfg.TokenValidity == 0 {
		cfg.TokenValidity = maxTokenValidity
	}
	if cfg.TokenValidity < time.Second || cfg.TokenValidity > maxTokenValidity {
		return nil, fmt.Errorf("enroll: Config.TokenValidity: %s: want 1 s to %s", cfg.TokenValidity, maxTokenValidity)
	}
	for _, s := range cfg.Schemes {
		if !slices.Contains(dearSchemes, s) {
			return nil, fmt.Errorf("enroll: Config.Schemes: %s is computed for every device already", s)
		}
	}
	return &Registrar{cfg: cfg, issuers: map[string]*ca.Issuer{}, profiles: map[string]*issuingRule{}, comparing: make(chan struct{}, max(1, runtime.NumCPU()/2))}, nil
}

// SetMakers says whose birth certificates let devices enroll. It may be called
// again at any time.
func (r *Registrar) SetMakers(m []Maker) { r.makers.Store(&m) }

// OpenIssuers opens the keys of the issuers that sign certificates, so that a
// server finds out at its start that it cannot.
func (r *Registrar) OpenIssuers(ctx context.Context) error {
	var x *reading
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
		x, err = r.at(in)
		return err
	})
	if err != nil {
		return err
	}
	for _, purpose := range []inventory.Purpose{inventory.DevicePurpose, inventory.ServerPurpose} {
		iss, err := x.issuer(purpose)
		if err != nil {
			return err
		}
		if _, err := r.open(ctx, iss); err != nil {
			return err
		}
	}
	return nil
}

// now is the time that a date is decided on. It never goes back, whatever the
// clock does, so that what has expired stays so.
func (r *Registrar) now() time.Time {
	now := inventory.UTC(r.cfg.Now())
	r.clock.Lock() // not mu, which is held while a key is opened
	defer r.clock.Unlock()
	if now.Before(r.latest) {
		return r.latest
	}
	r.latest = now
	return now
}

// open returns the issuer with its key, opening it the first time.
func (r *Registrar) open(ctx context.Context, iss inventory.Issuer) (*ca.Issuer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if have := r.issuers[iss.Name]; have != nil {
		return have, nil
	}
	opened, err := r.cfg.Open(ctx, iss)
	if err != nil {
		return nil, fmt.Errorf("opening issuer %s: %w", iss.Name, err)
	}
	r.issuers[iss.Name] = opened
	return opened, nil
}

// rule returns the profile p ready for use. It is made anew when the profile has
// changed since the last time.
func (r *Registrar) rule(p inventory.Profile) (*issuingRule, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if have := r.profiles[p.Name]; have != nil && have.profile.Revision == p.Revision {
		return have, nil
	}
	cfg, err := CertificateConfig(p)
	if err != nil {
		return nil, err
	}
	made, err := newRule(p, cfg)
	if err != nil {
		return nil, err
	}
	r.profiles[p.Name] = made
	return made, nil
}

// newRule makes a profile ready for use. Only imprint's own profiles, which are
// stored nowhere, make anything but clients.
func newRule(p inventory.Profile, cfg ca.Config) (*issuingRule, error) {
	profile, err := ca.NewProfile(cfg)
	if err != nil {
		return nil, fmt.Errorf("profile %s: %w", p.Name, err)
	}
	if kind := profile.Config().Kind; !strings.HasPrefix(p.Name, "/") && kind != ca.KindDevice && kind != ca.KindIDevID {
		return nil, fmt.Errorf("profile %s: %w", p.Name, &ca.ConfigError{Field: "kind", Value: string(kind), Want: "device or idevid: imprint's servers have profiles of their own"})
	}
	return &issuingRule{profile: p, certificate: profile, keys: profile.KeyPolicy()}, nil
}

// CertificateConfig reads the certificate part of a device profile.
func CertificateConfig(p inventory.Profile) (ca.Config, error) {
	var cfg ca.Config
	if len(p.Certificate) == 0 {
		return cfg, nil
	}
	if err := json.Unmarshal(p.Certificate, &cfg); err != nil {
		return cfg, fmt.Errorf("profile %s: reading its certificate profile: %w", p.Name, err)
	}
	return cfg, nil
}

// findProfile returns the profile with the given name.
func findProfile(in inventory.Reader, name string) (inventory.Profile, error) {
	for p, err := range in.Profiles() {
		if err != nil {
			return p, err
		}
		if p.Name == name {
			return p, nil
		}
	}
	return inventory.Profile{}, fmt.Errorf("profile %s: %w", name, inventory.ErrNotFound)
}

// PutProfile stores a profile, new or changed. The policy must pass its lint:
// what would give a device a stranger's topics is refused.
func (r *Registrar) PutProfile(ctx context.Context, actor, reason string, p inventory.Profile) error {
	cfg, err := CertificateConfig(p)
	if err != nil {
		return err
	}
	if err := p.Validate(); err != nil {
		return err
	}
	if _, err := newRule(p, cfg); err != nil {
		return err
	}
	if err := lintPolicy(p); err != nil {
		return err
	}
	err = r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		have, err := findProfile(in, p.Name)
		if errors.Is(err, inventory.ErrNotFound) {
			return nil
		}
		p.Revision = have.Revision
		return err
	})
	if err != nil {
		return err
	}
	return r.cfg.Store.Apply(ctx, inventory.Change{
		Event:    r.event(actor, "profile.put", reason, inventory.Object{Kind: "profile", ID: p.Name}),
		Profiles: []inventory.Profile{p},
	})
}

// AddDevices registers devices. It issues nothing. All are registered, or none.
func (r *Registrar) AddDevices(ctx context.Context, actor, reason string, devices []inventory.Device) error {
	now := r.now()
	c := inventory.Change{Event: r.event(actor, "device.add", reason)}
	for _, d := range devices {
		d.Kind, d.State, d.Created, d.Updated, d.Revision = inventory.Equipment, inventory.Registered, now, now, 0
		c.Devices = append(c.Devices, d)
		c.Event.Objects = append(c.Event.Objects, deviceObject(d.ID))
	}
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		x, err := r.at(in)
		if err != nil {
			return err
		}
		for _, d := range c.Devices {
			if _, err := x.facts(d); err != nil {
				return fmt.Errorf("device %s: %w", d.ID, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.cfg.Store.Apply(ctx, c)
}

func (r *Registrar) event(actor, action, reason string, objects ...inventory.Object) inventory.Event {
	return inventory.Event{Time: r.now(), Actor: actor, Action: action, Reason: reason, Objects: objects}
}

func deviceObject(id inventory.DeviceID) inventory.Object {
	return inventory.Object{Kind: "device", ID: string(id)}
}

func credentialObject(c *inventory.Credential) inventory.Object {
	if c.Kind == inventory.CertificateCredential {
		return inventory.Object{Kind: "certificate", ID: c.Certificate.Serial.String(), Note: string(c.Device)}
	}
	return inventory.Object{Kind: "password", ID: fmt.Sprintf("%s/%d", c.Device, c.Generation)}
}
