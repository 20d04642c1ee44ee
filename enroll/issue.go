package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
)

// A Request asks for the credentials of one device.
type Request struct {
	Actor  string // who asks, for the audit log
	Reason string // why, free text; may be empty
	Device inventory.DeviceID

	// CSR is a PKCS #10 request, in DER or as one PEM block. If it is empty,
	// imprint makes the key; then it is in the Enrollment, and nowhere else.
	CSR []byte

	// Out, if it is set, gets the enrollment before it is recorded and lets it
	// out after, so that a key made here is not lost in a crash between the two.
	Out Outbox

	// Rekey replaces the credentials that the device has: the certificates are
	// revoked as superseded and the password is ended.
	Rekey bool
}

// An Enrollment is what a device is handed. It holds secrets: it exists once.
type Enrollment struct {
	Device      inventory.Device
	Certificate *inventory.Certificate
	Chain       [][]byte         // DER: the leaf, then the issuers up to, but without, the root
	Key         inventory.Secret // PKCS #8 DER; zero if the device has made its own
	Password    inventory.Secret // zero if the profile has none, or if Unchanged
	Rights      Rights

	// Unchanged says that the device had this certificate for this key already:
	// a request that is repeated after a lost answer gets the same answer.
	Unchanged bool
}

// How often a decision is taken anew. A serial number that was used before means a
// broken random source, with 127 random bits already the first time; facts that
// have changed since they were read mean company.
const (
	serialTries = 3
	staleTries  = 8
)

// Enroll issues a certificate, and a password if the profile has one, to a
// device that is registered.
//
// When Enroll returns, both and their audit entry are durable. A crash before
// that leaves at most a signature that no one has seen.
//
// The error is a [*ca.RequestError] if the request was refused, a [*StateError]
// if the device may not have a certificate, wraps [ErrDenied] if it has one
// already, and wraps [inventory.ErrNotFound] if there is no such device.
func (r *Registrar) Enroll(ctx context.Context, q Request) (*Enrollment, error) {
	return decide(func() (*Enrollment, error) {
		f, err := r.facts(ctx, q.Device)
		if err != nil {
			return nil, err
		}
		return r.enroll(ctx, q, f)
	})
}

// decide calls fn, which reads facts, decides and applies, and calls it again when
// the facts have changed meanwhile: who repeats a request that is still under way
// then finds its answer.
func decide[T any](fn func() (T, error)) (T, error) {
	serials, stale := 0, 0
	for {
		v, err := fn()
		c, ok := errors.AsType[*inventory.ConflictError](err)
		switch {
		case ok && c.Why == inventory.SerialTaken:
			if serials++; serials == serialTries {
				return v, fmt.Errorf("drew %d serial numbers in a row that were used before, the random source is broken: %w", serials, err)
			}
		case ok && (c.Why == inventory.Stale || c.Why == inventory.Exists || c.Why == inventory.TokenSpent):
			if stale++; stale == staleTries {
				return v, err
			}
		default:
			return v, err
		}
	}
}

func (r *Registrar) enroll(ctx context.Context, q Request, f *facts) (*Enrollment, error) {
	if err := f.mayEnroll(); err != nil {
		return nil, err
	}
	key, err := r.keyFor(ctx, f, q.CSR)
	if err != nil {
		return nil, err
	}
	now := r.now()
	if have := f.current(key.request.SPKI, now); have != nil && !q.Rekey {
		return r.again(f, have)
	}
	if f.certified(now) && !q.Rekey {
		return nil, &CertifiedError{Device: f.device.ID}
	}
	issuer, err := r.open(ctx, f.issuer)
	if err != nil {
		return nil, err
	}
	made, err := r.issue(f, issuer, key, now)
	if err != nil {
		return nil, err
	}
	c := inventory.Change{Event: r.event(q.Actor, "device.enroll", q.Reason)}
	if q.Rekey {
		c.Event.Action = "device.rekey"
		supersede(&c, f, made, now)
	}
	made.addTo(&c)
	if err := r.record(ctx, c, q.Out, &made.Enrollment); err != nil {
		return nil, err
	}
	return &made.Enrollment, nil // only now may anyone see it
}

// record applies the change that an enrollment, or many, are part of, and lets
// them out.
func (r *Registrar) record(ctx context.Context, c inventory.Change, out Outbox, made ...*Enrollment) error {
	if out == nil {
		return r.apply(ctx, c)
	}
	staged, err := out.Stage(ctx, made)
	if err != nil {
		return fmt.Errorf("writing bundles: %w", err)
	}
	if err := r.apply(ctx, c); err != nil {
		return errors.Join(err, staged.Discard())
	}
	if err := staged.Release(); err != nil {
		return fmt.Errorf("releasing bundles: %w", err)
	}
	return nil
}

func (r *Registrar) apply(ctx context.Context, c inventory.Change) error {
	if err := r.cfg.Store.Apply(ctx, c); err != nil {
		return fmt.Errorf("recording certificates: %w", err)
	}
	return nil
}

// again is the answer to a request that has been answered before.
func (r *Registrar) again(f *facts, have *inventory.Credential) (*Enrollment, error) {
	rights, err := RightsOf(f.rule.profile, f.device)
	if err != nil {
		return nil, err
	}
	return &Enrollment{
		Device: f.device, Certificate: have.Certificate, Chain: [][]byte{have.Certificate.DER, f.issuer.Certificate},
		Rights: rights, Unchanged: true,
	}, nil
}

// A deviceKey is the key a certificate is asked for.
type deviceKey struct {
	request *ca.Request
	private inventory.Secret // PKCS #8 DER, if imprint made the key
}

// keyFor takes the key from a CSR, or makes one. The fence comes first, then the
// names, then what the inventory knows of the key.
func (r *Registrar) keyFor(ctx context.Context, f *facts, csr []byte) (deviceKey, error) {
	if len(csr) == 0 {
		return newKey(f.rule)
	}
	req, err := ca.ParseRequest(csr, f.rule.keys)
	if err != nil {
		return deviceKey{}, fmt.Errorf("device %s: %w", f.device.ID, err)
	}
	if err := req.Match(string(f.device.ID)); err != nil {
		return deviceKey{}, fmt.Errorf("device %s: %w", f.device.ID, err)
	}
	err = r.cfg.Store.Read(ctx, func(in inventory.Reader) error { return keyIsFree(in, f, req) })
	return deviceKey{request: req}, err
}

func newKey(rule *issuingRule) (deviceKey, error) {
	key, err := ca.GenerateKey(rule.keys.Allow[0])
	if err != nil {
		return deviceKey{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return deviceKey{}, fmt.Errorf("encoding key: %w", err)
	}
	req, err := ca.NewRequest(key.Public(), rule.keys)
	return deviceKey{request: req, private: inventory.NewSecret(der)}, err
}

// issued is an enrollment that no one has seen yet, with its records.
type issued struct {
	Enrollment
	credentials []inventory.Credential
}

// issue makes all the credentials that a device gets, in memory.
func (r *Registrar) issue(f *facts, issuer *ca.Issuer, key deviceKey, now time.Time) (*issued, error) {
	made, err := r.certify(f, issuer, key, now)
	if err == nil {
		err = r.addPassword(made, f, now)
	}
	return made, err
}

// certify builds, lints and signs, in memory.
func (r *Registrar) certify(f *facts, issuer *ca.Issuer, key deviceKey, now time.Time) (*issued, error) {
	return r.certifyAs(f, r.subject(f.device), issuer, key, now)
}

// certifyAs is certify for a certificate that names somebody else than the device.
func (r *Registrar) certifyAs(f *facts, subject ca.Subject, issuer *ca.Issuer, key deviceKey, now time.Time) (*issued, error) {
	dev := f.device
	rights, err := RightsOf(f.rule.profile, dev)
	if err != nil {
		return nil, err
	}
	draft, err := issuer.Prepare(f.rule.certificate, subject, key.request)
	if err != nil {
		return nil, fmt.Errorf("preparing certificate of %s: %w", dev.ID, err)
	}
	der, err := draft.Sign()
	if err != nil {
		return nil, fmt.Errorf("signing certificate of %s: %w", dev.ID, err)
	}
	cert, err := inventory.ReadCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", dev.ID, err)
	}
	dev.State, dev.Updated = inventory.Active, now
	if !key.private.IsZero() { // with the key goes a bundle, in which the roots are
		dev.Trust = max(dev.Trust, f.trust)
	}
	made := &issued{Enrollment: Enrollment{
		Device: dev, Certificate: cert, Chain: [][]byte{der, f.issuer.Certificate}, Key: key.private, Rights: rights,
	}}
	if len(f.link) > 0 {
		made.Chain = append(made.Chain, f.link)
	}
	made.credentials = append(made.credentials, inventory.Credential{
		Device: dev.ID, Kind: inventory.CertificateCredential, Generation: f.next(inventory.CertificateCredential),
		State: inventory.CredentialActive, Certificate: cert, Created: now,
	})
	return made, nil
}

// addPassword makes a password, if the profile has one.
func (r *Registrar) addPassword(made *issued, f *facts, now time.Time) error {
	rule := f.rule.profile.Password
	if rule.None || f.device.Kind == inventory.Server {
		return nil
	}
	made.Password = NewPassword(rule.Length)
	verifiers, err := Verifiers(made.Password, r.dearFor(rule))
	if err != nil {
		return fmt.Errorf("password of %s: %w", f.device.ID, err)
	}
	made.credentials = append(made.credentials, inventory.Credential{
		Device: f.device.ID, Kind: inventory.PasswordCredential, Generation: f.next(inventory.PasswordCredential),
		State: inventory.CredentialActive, Verifiers: verifiers, Created: now,
	})
	return nil
}

// dearFor merges what the fleet and the profile want beyond the cheap schemes.
func (r *Registrar) dearFor(rule inventory.PasswordRule) []inventory.Scheme {
	if len(rule.Schemes) == 0 {
		return r.cfg.Schemes
	}
	all := append(slices.Clone(r.cfg.Schemes), rule.Schemes...)
	slices.Sort(all)
	return slices.Compact(all)
}

// addTo puts the records of m into c, and their names into its event.
func (m *issued) addTo(c *inventory.Change) {
	c.Devices = append(c.Devices, m.Device)
	c.Event.Objects = append(c.Event.Objects, deviceObject(m.Device.ID))
	for i := range m.credentials {
		c.Credentials = append(c.Credentials, m.credentials[i])
		c.Event.Objects = append(c.Event.Objects, credentialObject(&m.credentials[i]))
	}
}

// supersede ends the credentials that the new ones take the place of.
func supersede(c *inventory.Change, f *facts, by *issued, now time.Time) {
	supersedeKind(c, f, by, inventory.CertificateCredential, now)
	supersedeKind(c, f, by, inventory.PasswordCredential, now)
}

func supersedeKind(c *inventory.Change, f *facts, by *issued, kind inventory.CredentialKind, now time.Time) {
	for _, old := range f.credentials {
		if old.Kind != kind || old.State == inventory.CredentialRevoked {
			continue
		}
		end(&old, inventory.CredentialRevoked, inventory.Superseded, now)
		for i := range by.credentials {
			if by.credentials[i].Kind == old.Kind {
				old.ReplacedBy = by.credentials[i].Generation
			}
		}
		f.put(c, old)
	}
}
