package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
)

// A CertificateStatus is what the inventory says of a serial number at one moment.
// The zero value is a certificate that is not known, which is not a good one.
type CertificateStatus struct {
	Known   bool             // issued by this issuer
	Revoked bool             // or held
	Reason  inventory.Reason // if it is revoked
	At      time.Time        // when it was revoked
}

// Status returns the status of certificates of one issuer, in the order of
// serials: what an OCSP responder says.
func (r *Registrar) Status(ctx context.Context, issuer inventory.KeyID, serials ...inventory.Serial) ([]CertificateStatus, error) {
	out := make([]CertificateStatus, len(serials))
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		for i, s := range serials {
			var err error
			if out[i], err = statusOf(in, issuer, s); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

func statusOf(in inventory.Reader, issuer inventory.KeyID, serial inventory.Serial) (CertificateStatus, error) {
	for c, err := range in.Credentials(inventory.CredentialQuery{Serial: serial}) {
		if err != nil {
			return CertificateStatus{}, err
		}
		if c.Certificate.Issuer != issuer {
			continue
		}
		st := CertificateStatus{Known: true}
		if rev, is := c.Revocation(); is {
			st.Revoked, st.Reason, st.At = true, rev.Reason, rev.Time
		}
		return st, nil
	}
	return CertificateStatus{}, nil
}

// Issuers returns all issuers, also those that are pending or retired.
func (r *Registrar) Issuers(ctx context.Context) ([]inventory.Issuer, error) {
	var all []inventory.Issuer
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
		all, err = collect(in.Issuers(), 0)
		return err
	})
	return all, err
}

// EnrollResponder issues a certificate with which a server answers OCSP requests
// for one issuer (RFC 6960 §4.2.2.2). Its key is made here and lives in memory
// only, so a new one is made whenever a server starts; the certificate before it
// is revoked as superseded.
func (r *Registrar) EnrollResponder(ctx context.Context, actor string, issuer inventory.Issuer) (*Enrollment, error) {
	id := inventory.DeviceID("ocsp-" + issuer.Name)
	return decide(func() (*Enrollment, error) {
		f, err := r.responderFacts(ctx, id, issuer)
		if err != nil {
			return nil, err
		}
		if err := f.mayEnroll(); err != nil {
			return nil, err
		}
		key, err := newKey(f.rule)
		if err != nil {
			return nil, err
		}
		signer, err := r.open(ctx, issuer)
		if err != nil {
			return nil, err
		}
		made, err := r.certify(f, signer, key, r.now())
		if err != nil {
			return nil, err
		}
		c := inventory.Change{Event: r.event(actor, "responder.enroll", "")}
		supersede(&c, f, made, r.now())
		made.addTo(&c)
		return &made.Enrollment, r.apply(ctx, c)
	})
}

// responderProfile is what an OCSP responder follows.
var responderProfile = inventory.Profile{Name: "/responder", Certificate: []byte(`{"kind":"ocsp-responder"}`), Password: inventory.PasswordRule{None: true}}

func (r *Registrar) responderFacts(ctx context.Context, id inventory.DeviceID, issuer inventory.Issuer) (*facts, error) {
	f, err := r.serverFacts(ctx, id)
	if err != nil {
		return nil, err
	}
	f.issuer = issuer
	f.rule, err = r.rule(responderProfile)
	return f, err
}

// ErrClock reports a clock that cannot be right.
var ErrClock = errors.New("the clock is wrong")

// CheckClock compares the clock with the last entry of the audit log: what is
// issued under a wrong clock is good too early, or for too long. ahead is how far
// the clock may have gone on since; an inventory that has rested for longer needs
// somebody to say that the time is right. The error wraps [ErrClock].
func (r *Registrar) CheckClock(ctx context.Context, ahead time.Duration) error {
	var last time.Time
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		for e, err := range in.Events(in.Revision()) {
			if err != nil {
				return err
			}
			last = e.Time
		}
		return nil
	})
	if err != nil || last.IsZero() {
		return err
	}
	now := inventory.UTC(r.cfg.Now())
	switch {
	case now.Add(maxClockBack).Before(last):
		return fmt.Errorf("it is %s, and the last entry of the audit log was made %s: %w", now.Format(time.RFC3339), last.Format(time.RFC3339), ErrClock)
	case ahead > 0 && now.After(last.Add(ahead)):
		return fmt.Errorf("it is %s, long after the last entry of the audit log of %s: %w", now.Format(time.RFC3339), last.Format(time.RFC3339), ErrClock)
	}
	return nil
}

// maxClockBack is how far a clock may be set back, as by NTP.
const maxClockBack = 5 * time.Minute

// TrustBundle returns the roots of the fleet, DER, and the link certificates
// between them while a root is being replaced.
func (r *Registrar) TrustBundle(ctx context.Context) ([][]byte, error) {
	var ders [][]byte
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
		ders, err = trusted(in)
		return err
	})
	return ders, err
}

// trusted returns the roots that somebody is told to trust, and the links between
// them.
func trusted(in inventory.Reader) ([][]byte, error) {
	var ders [][]byte
	for iss, err := range in.Issuers() {
		if err != nil {
			return nil, err
		}
		if iss.Purpose == inventory.RootPurpose && vouches(&iss) {
			ders = append(ders, iss.Certificate)
		}
	}
	between, err := links(in)
	return append(ders, between...), err
}

// vouches reports whether anybody is to trust an issuer.
func vouches(iss *inventory.Issuer) bool {
	return iss.State == inventory.IssuerActive || iss.State == inventory.IssuerStandby
}

// CACertificates returns what RFC 7030 §4.1.3 calls the CA certificates: the
// roots, and the issuers of devices below them, DER.
func (r *Registrar) CACertificates(ctx context.Context) ([][]byte, error) {
	ders, err := r.TrustBundle(ctx)
	if err != nil {
		return nil, err
	}
	all, err := r.Issuers(ctx)
	for i := range all {
		if all[i].Purpose != inventory.RootPurpose && vouches(&all[i]) {
			ders = append(ders, all[i].Certificate)
		}
	}
	return ders, err
}

// readLeaf parses a certificate that this fleet has issued.
func readLeaf(der []byte) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading certificate: %w", err)
	}
	return cert, nil
}

// KeysOf says which keys certificates for a profile may have, for a device that
// asks before it makes one (RFC 7030 §4.5). Without a profile it is what every
// profile allows by default.
func (r *Registrar) KeysOf(ctx context.Context, profile string) ([]ca.KeyAlgorithm, error) {
	if profile == "" {
		return []ca.KeyAlgorithm{ca.P256, ca.P384}, nil
	}
	var rule *issuingRule
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		p, err := findProfile(in, profile)
		if err == nil {
			rule, err = r.rule(p)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return rule.keys.Allow, nil
}
