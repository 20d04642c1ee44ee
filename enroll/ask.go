package enroll

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
)

// An Ask is what a peer sends to get a certificate.
type Ask struct {
	Peer Peer

	// Device is the device that the certificate is for. If it is empty, the
	// request has to name it.
	Device inventory.DeviceID

	// Profile, if it is set, is the only profile that the device may have.
	Profile string

	// CSR is a PKCS #10 request, in DER or as one PEM block.
	CSR []byte

	// MakeKey ignores the key in the request: imprint makes one, which is then in
	// the Enrollment and nowhere else.
	MakeKey bool

	// Password asks for a password as well. Without it a device gets none, even
	// if its profile has one.
	Password bool

	// SameNames holds a renewal to RFC 7030 §4.2.2: subject and subject
	// alternative name of the request are those of the certificate, octet for
	// octet.
	SameNames bool

	// Bindings are the values that a challengePassword in the request may have,
	// which link it to the TLS connection (RFC 7030 §3.5). Nil means that a
	// challengePassword is not looked at.
	Bindings []string
}

// ChannelBinding is the reason of a [*ca.RequestError] for a request that was made
// for another TLS connection.
const ChannelBinding ca.Reason = "channel-binding"

// A PendingError reports a request that waits for an operator. The peer asks
// again later, with the same key.
type PendingError struct {
	Device inventory.DeviceID
	Key    inventory.SPKI
}

// Error says which device waits.
func (e *PendingError) Error() string {
	return fmt.Sprintf("device %s waits for approval of its key %s", e.Device, e.Key)
}

// ErrNotApproved reports a request that an operator has turned down. It wraps
// [ErrDenied].
var ErrNotApproved = fmt.Errorf("enrollment was not approved: %w", ErrDenied)

// A CertifiedError reports a device that has a certificate for another key. It
// wraps [ErrDenied].
type CertifiedError struct{ Device inventory.DeviceID }

// Error names the device.
func (e *CertifiedError) Error() string {
	return fmt.Sprintf("device %s has a certificate already, for another key", e.Device)
}

// Unwrap returns [ErrDenied].
func (e *CertifiedError) Unwrap() error { return ErrDenied }

// EnrollFor issues a certificate to a device that p may enroll: with a token that
// is for it, or with its birth certificate. A device that is not known yet is
// registered, if the token or the maker says with which profile.
//
// What a token bought is recorded in one change with its use. The same request
// again, after an answer that was lost, gets the same certificate and costs
// nothing; if it asks for a password it gets another one, because nobody knows the
// first.
//
// Besides those of [Registrar.Enroll], the error wraps [ErrToken], [ErrScope] or
// [ErrNotApproved], or is a [*PendingError], a [*CertifiedError] or a
// [*QuotaError].
func (r *Registrar) EnrollFor(ctx context.Context, p Principal, a Ask) (*Enrollment, error) {
	if p.device != "" || !p.role.Enrolls() {
		return nil, fmt.Errorf("%s cannot enroll devices: %w", p.name, ErrDenied)
	}
	req, err := readAsk(a)
	if err != nil {
		return nil, err
	}
	return decide(func() (*Enrollment, error) {
		g, err := r.grant(ctx, p, a, req)
		if err != nil {
			return nil, err
		}
		return r.enrollGranted(ctx, p, a, g)
	})
}

// readAsk fences a request before it is known which profile its key has to suit,
// and checks that it was made for this connection.
func readAsk(a Ask) (*ca.Request, error) {
	req, err := ca.ParseRequest(a.CSR, ca.AnyKey())
	if err != nil {
		return nil, err
	}
	if a.Bindings == nil || a.MakeKey || req.Challenge == "" {
		return req, nil
	}
	for _, b := range a.Bindings {
		if subtle.ConstantTimeCompare([]byte(b), []byte(req.Challenge)) == 1 {
			return req, nil
		}
	}
	return nil, &ca.RequestError{Reason: ChannelBinding, Detail: "its challengePassword is not that of this TLS connection"}
}

// A grant is what lets a device enroll, with the facts about the device.
type grant struct {
	*facts
	key      *ca.Request
	token    *inventory.Token // nil with a birth certificate
	approve  bool
	replace  bool
	approval *inventory.Approval // nil if nobody has asked yet
}

// grant reads, in one moment, what p may do and what is known of the device.
func (r *Registrar) grant(ctx context.Context, p Principal, a Ask, req *ca.Request) (*grant, error) {
	g := &grant{key: req}
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		dev, err := r.scope(in, p, a, g)
		if err != nil {
			return err
		}
		x, err := r.at(in)
		if err != nil {
			return err
		}
		if g.facts, err = x.facts(dev); err != nil {
			return err
		}
		if g.approve {
			switch found, err := in.Approval(req.SPKI); {
			case err == nil:
				g.approval = &found
			case !errors.Is(err, inventory.ErrNotFound):
				return err
			}
		}
		return keyIsFree(in, g.facts, req)
	})
	return g, err
}

// scope finds the device that is asked for and checks that p may enroll it. A
// device that is not known is returned as it would be registered.
func (r *Registrar) scope(in inventory.Reader, p Principal, a Ask, g *grant) (inventory.Device, error) {
	now := r.now()
	fresh := inventory.Device{ID: a.Device, Kind: inventory.Equipment, State: inventory.Registered, Created: now, Updated: now}
	if p.maker != nil {
		if a.Device != "" && a.Device.Canonical() != p.born.id.Canonical() {
			return fresh, fmt.Errorf("the birth certificate is that of %s: %w", p.born.id, ErrScope)
		}
		fresh.ID, fresh.HardwareSerial, fresh.Profile, fresh.Group = p.born.id, p.born.serial, p.maker.Profile, p.maker.Group
		g.approve, g.replace = p.maker.Approve, p.maker.Replace
	} else {
		t, err := r.validToken(in, p.token, a.Peer)
		if err != nil {
			return fresh, err
		}
		g.token, g.approve, g.replace = &t, t.Approve, t.Replace
		fresh.Profile, fresh.Group = t.Profile, t.Group
		if fresh.ID == "" {
			if fresh.ID, err = namedIn(g.key); err != nil {
				return fresh, err
			}
		}
		if !t.Covers(fresh.ID) {
			return fresh, fmt.Errorf("token %s, device %s: %w", t.ID(), fresh.ID, ErrScope)
		}
	}
	dev, err := in.Device(fresh.ID)
	switch {
	case errors.Is(err, inventory.ErrNotFound) && fresh.Profile != "" && (a.Profile == "" || a.Profile == fresh.Profile):
		return fresh, nil
	case err != nil:
		return dev, err
	case dev.Kind != inventory.Equipment:
		return dev, fmt.Errorf("%s is a server: %w", dev.ID, ErrScope)
	case a.Profile != "" && a.Profile != dev.Profile:
		return dev, fmt.Errorf("device %s has profile %s: %w", dev.ID, dev.Profile, ErrScope)
	case g.token != nil && g.token.Profile != "" && g.token.Profile != dev.Profile:
		return dev, fmt.Errorf("token %s is for profile %s, device %s has %s: %w", g.token.ID(), g.token.Profile, dev.ID, dev.Profile, ErrScope)
	case p.maker != nil && dev.HardwareSerial != "" && dev.HardwareSerial != p.born.serial:
		return dev, fmt.Errorf("device %s has another serial number than the birth certificate: %w", dev.ID, ErrScope)
	}
	return dev, nil
}

// namedIn is the device that a request names itself.
func namedIn(req *ca.Request) (inventory.DeviceID, error) {
	if len(req.Names) == 0 {
		return "", &ca.RequestError{Reason: ca.IdentityMismatch, Detail: "it names no device, and nothing else does"}
	}
	return inventory.ParseDeviceID(req.Names[0])
}

// keyIsFree checks what the inventory knows of a key, and the names beside it.
func keyIsFree(in inventory.Reader, f *facts, req *ca.Request) error {
	if name := f.caKeys[req.SPKI]; name != "" {
		return fmt.Errorf("device %s: %w", f.device.ID, &ca.RequestError{Reason: ca.BlockedKey, Detail: "it is the key of issuer " + name})
	}
	use, err := in.Key(req.SPKI)
	switch {
	case err != nil:
		return err
	case use.Blocked:
		return &ca.RequestError{Reason: ca.BlockedKey, Detail: "the key has been compromised"}
	case use.Device != "" && use.Device.Canonical() != f.device.ID.Canonical():
		return &inventory.ConflictError{Why: inventory.KeyTaken, Record: "key of device " + string(f.device.ID), Detail: "it is certified for " + string(use.Device) + ": a copied flash image or a bad random source"}
	}
	return nil
}

// suits checks a request that was parsed before its profile was known.
func (r *Registrar) suits(f *facts, req *ca.Request) error {
	err := req.Allowed(f.rule.keys)
	if err == nil {
		err = req.Match(f.rule.certificate.Names(string(f.device.ID), r.cfg.TrustDomain)...)
	}
	if err != nil {
		return fmt.Errorf("device %s: %w", f.device.ID, err)
	}
	return nil
}

func (r *Registrar) enrollGranted(ctx context.Context, p Principal, a Ask, g *grant) (*Enrollment, error) {
	if err := g.mayEnroll(); err != nil {
		return nil, err
	}
	now := r.now()
	key := deviceKey{request: g.key}
	if a.MakeKey {
		var err error
		if key, err = newKey(g.rule); err != nil {
			return nil, err
		}
	} else if err := r.suits(g.facts, g.key); err != nil {
		return nil, err
	} else if have := g.current(g.key.SPKI, now); have != nil {
		return r.againFor(ctx, p, a, g.facts, have)
	}
	if err := r.mayBuy(g, now); err != nil {
		return nil, err
	}
	if err := r.approved(ctx, p, g, now); err != nil {
		return nil, err
	}
	made, err := r.make(ctx, g.facts, key, a.Password, now)
	if err != nil {
		return nil, err
	}
	c := inventory.Change{Event: r.event(p.name, "device.enroll", "")}
	if a.MakeKey {
		c.Event.Reason = "the key was made by the server"
	}
	if g.certified(now) {
		c.Event.Action = "device.rekey"
		supersede(&c, g.facts, made, now)
	}
	made.addTo(&c)
	if g.token != nil {
		c.TokenUses = []inventory.TokenUse{{Token: g.token.Hash}}
		c.Event.Objects = append(c.Event.Objects, tokenObject(g.token))
	}
	if err := r.apply(ctx, c); err != nil {
		return nil, err
	}
	return &made.Enrollment, nil
}

// mayBuy checks what is left of the token, and what the device has already.
func (r *Registrar) mayBuy(g *grant, now time.Time) error {
	if g.token != nil && g.token.Spent() {
		if g.token.Role == inventory.StationRole {
			return &QuotaError{Token: g.token.ID(), Retry: time.Hour}
		}
		return fmt.Errorf("token %s is used up: %w", g.token.ID(), ErrToken)
	}
	if g.certified(now) && !g.replace {
		return &CertifiedError{Device: g.device.ID}
	}
	if g.token != nil && g.token.PerMinute > 0 {
		if wait := r.pace.take(g.token.Hash, g.token.PerMinute, now); wait > 0 {
			return &QuotaError{Token: g.token.ID(), Retry: wait}
		}
	}
	return nil
}

// make opens the issuer and signs, in memory.
func (r *Registrar) make(ctx context.Context, f *facts, key deviceKey, password bool, now time.Time) (*issued, error) {
	issuer, err := r.open(ctx, f.issuer)
	if err != nil {
		return nil, err
	}
	made, err := r.certify(f, issuer, key, now)
	if err == nil && password {
		err = r.addPassword(made, f, now)
	}
	return made, err
}

// againFor is the answer to a request that has been answered before. A password
// that was lost with the answer is replaced.
func (r *Registrar) againFor(ctx context.Context, p Principal, a Ask, f *facts, have *inventory.Credential) (*Enrollment, error) {
	again, err := r.again(f, have)
	if err != nil || !a.Password || f.rule.profile.Password.None {
		return again, err
	}
	now := r.now()
	made := &issued{Enrollment: *again}
	if err := r.addPassword(made, f, now); err != nil {
		return nil, err
	}
	c := inventory.Change{Event: r.event(p.name, "device.password", "")}
	if p.device != "" { // a renewal: the device has a password that works
		f.overlapPassword(&c, made, now)
	} else {
		supersedeKind(&c, f, made, inventory.PasswordCredential, now)
	}
	made.Device.Updated = now
	made.addTo(&c)
	if err := r.apply(ctx, c); err != nil {
		return nil, err
	}
	return &made.Enrollment, nil
}
