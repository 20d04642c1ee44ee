package enroll

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
)

// Renew issues the next certificate of a device that has shown its present one:
// for the same key (renew) or another one (rekey). Both certificates are good
// until the device has used the new one, in [Registrar.Confirm] or in a further
// Renew; so a device that loses the answer, or its power, still has one that
// works.
//
// The same request again gets the same certificate. A request for yet another key
// ends the certificate that was issued for the last one and never used.
//
// A certificate that has expired is renewed within the grace time of the profile,
// if it is the newest the device has.
//
// Besides those of [Registrar.Enroll], the error wraps [ErrNoCertificate],
// [ErrRevoked], [ErrTooOld] or [ErrScope].
func (r *Registrar) Renew(ctx context.Context, p Principal, a Ask) (*Enrollment, error) {
	if p.device == "" {
		return nil, fmt.Errorf("%s: %w", p.name, ErrNoCertificate)
	}
	if a.Device != "" && a.Device.Canonical() != p.device.Canonical() {
		return nil, fmt.Errorf("%s asks for %s: %w", p.name, a.Device, ErrScope)
	}
	req, err := readAsk(a)
	if err != nil {
		return nil, err
	}
	return decide(func() (*Enrollment, error) { return r.renewOnce(ctx, p, a, req) })
}

func (r *Registrar) renewOnce(ctx context.Context, p Principal, a Ask, req *ca.Request) (*Enrollment, error) {
	f, shown, err := r.shown(ctx, p, req)
	if err != nil {
		return nil, err
	}
	if a.Profile != "" && a.Profile != f.device.Profile {
		return nil, fmt.Errorf("device %s has profile %s: %w", f.device.ID, f.device.Profile, ErrScope)
	}
	now := r.now()
	next := f.issuedAfter(shown, req.SPKI, now)
	if !shown.Usable(now) {
		if err := f.inGrace(shown, next != nil, now); err != nil {
			return nil, err
		}
	}
	if err := f.sameNames(shown, req, a.SameNames); err != nil {
		return nil, err
	}
	if err := req.Allowed(f.rule.keys); err != nil {
		return nil, fmt.Errorf("device %s: %w", f.device.ID, err)
	}
	if next != nil {
		return r.againFor(ctx, p, a, f, next)
	}
	made, err := r.make(ctx, f, deviceKey{request: req}, a.Password, now)
	if err != nil {
		return nil, err
	}
	c := inventory.Change{Event: r.event(p.name, "device.renew", "")}
	if !shown.Usable(now) {
		c.Event.Reason = "with a certificate that expired " + shown.Certificate.NotAfter.Format(time.RFC3339)
	}
	f.overlap(&c, shown, made, now, true)
	if a.Password {
		f.overlapPassword(&c, made, now)
	}
	made.addTo(&c)
	if err := r.apply(ctx, c); err != nil {
		return nil, err
	}
	return &made.Enrollment, nil
}

// shown reads the facts about the device and the certificate that it has shown.
func (r *Registrar) shown(ctx context.Context, p Principal, req *ca.Request) (*facts, *inventory.Credential, error) {
	var f *facts
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		dev, err := in.Device(p.device)
		if err != nil {
			return err
		}
		x, err := r.at(in)
		if err != nil {
			return err
		}
		if f, err = x.facts(dev); err != nil || req == nil {
			return err
		}
		return keyIsFree(in, f, req)
	})
	if err != nil {
		return nil, nil, err
	}
	if f.device.State != inventory.Active {
		return nil, nil, fmt.Errorf("device %s is %s: %w", f.device.ID, f.device.State, ErrRevoked)
	}
	for i := range f.credentials {
		c := &f.credentials[i]
		if c.Kind == inventory.CertificateCredential && c.Certificate.Serial == p.serial {
			if c.State != inventory.CredentialActive {
				return nil, nil, fmt.Errorf("certificate %s of device %s is %s: %w", p.serial, f.device.ID, c.State, ErrRevoked)
			}
			return f, c, nil
		}
	}
	return nil, nil, ErrNoCertificate
}

// inGrace reports whether an expired certificate may still be renewed: once, but the
// same request again gets the same answer, which may have been lost.
func (f *facts) inGrace(shown *inventory.Credential, again bool, now time.Time) error {
	end := shown.Certificate.NotAfter.Add(f.rule.profile.Grace)
	if now.After(end) || !again && shown.Generation+1 != f.next(inventory.CertificateCredential) {
		return fmt.Errorf("certificate %s of device %s: %w", shown.Certificate.Serial, f.device.ID, ErrTooOld)
	}
	return nil
}

// sameNames holds the names in a request to those in the certificate.
func (f *facts) sameNames(shown *inventory.Credential, req *ca.Request, strict bool) error {
	cert, err := readLeaf(shown.Certificate.DER)
	if err != nil {
		return err
	}
	differ := func(what string) error {
		return fmt.Errorf("device %s: %w", f.device.ID, &ca.RequestError{Reason: ca.IdentityMismatch, Detail: what + " of the request must be that of the certificate"})
	}
	switch {
	case req.ChangeSubjectName:
		return differ("the subject")
	case !strict:
		names := []string{cert.Subject.CommonName}
		for _, u := range cert.URIs {
			names = append(names, u.String())
		}
		if err := req.Match(names...); err != nil {
			return fmt.Errorf("device %s: %w", f.device.ID, err)
		}
	case !bytes.Equal(req.Subject, cert.RawSubject):
		return differ("the subject")
	case !bytes.Equal(req.SAN, sanOf(cert)):
		return differ("the subject alternative name")
	}
	return nil
}

// sanOf returns the value of the subjectAltName extension, DER, or nil.
func sanOf(cert *x509.Certificate) []byte {
	for _, e := range cert.Extensions {
		if e.Id.String() == "2.5.29.17" {
			return e.Value
		}
	}
	return nil
}

// issuedAfter returns the usable certificate for a key that is newer than the one
// shown: the answer that was lost.
func (f *facts) issuedAfter(shown *inventory.Credential, key inventory.SPKI, now time.Time) *inventory.Credential {
	for i := range f.credentials {
		c := &f.credentials[i]
		if c.Kind == inventory.CertificateCredential && c.Generation > shown.Generation && c.Certificate.SPKI == key && c.Usable(now) {
			return c
		}
	}
	return nil
}

// overlap puts the new certificate beside the one in use, so that older ones are not
// needed any more, and newer ones were never used. shown says that the device has
// just used it.
func (f *facts) overlap(c *inventory.Change, used *inventory.Credential, made *issued, now time.Time, shown bool) {
	next := made.credentials[0].Generation
	for _, old := range f.credentials {
		if old.Kind != inventory.CertificateCredential || old.State != inventory.CredentialActive {
			continue
		}
		if old.Generation == used.Generation {
			old.ReplacedBy = next
			if shown && old.FirstSeen.IsZero() {
				old.FirstSeen = now
			}
		} else {
			end(&old, inventory.CredentialRevoked, inventory.Superseded, now)
			old.ReplacedBy = next
		}
		f.put(c, old)
	}
}

// Confirm takes the report of a device that it works with the certificate which it
// has shown (RFC 8995 §5.9.4): the older ones are ended, as superseded. It
// returns how many that were. If works is false the report is recorded, and
// nothing ends.
//
// The error wraps [ErrNoCertificate], [ErrRevoked] or [ErrTooOld].
func (r *Registrar) Confirm(ctx context.Context, p Principal, works bool, why string) (int, error) {
	if p.device == "" {
		return 0, fmt.Errorf("%s: %w", p.name, ErrNoCertificate)
	}
	return decide(func() (int, error) {
		f, shown, err := r.shown(ctx, p, nil)
		if err != nil {
			return 0, err
		}
		now := r.now()
		if !shown.Usable(now) {
			return 0, fmt.Errorf("certificate %s of device %s: %w", p.serial, f.device.ID, ErrTooOld)
		}
		c := inventory.Change{Event: r.event(p.name, "device.confirm", why, deviceObject(f.device.ID), credentialObject(shown))}
		if !works {
			c.Event.Action = "device.fault"
			return 0, r.cfg.Store.Apply(ctx, c)
		}
		ended := f.confirm(&c, shown, now)
		if len(c.Credentials) == 0 {
			return 0, nil
		}
		return ended, r.cfg.Store.Apply(ctx, c)
	})
}

// confirm ends what is older than the certificate shown, and notes its first use.
func (f *facts) confirm(c *inventory.Change, shown *inventory.Credential, now time.Time) int {
	ended := 0
	for _, old := range f.credentials {
		switch {
		case old.Kind != inventory.CertificateCredential || old.State != inventory.CredentialActive:
		case old.Generation == shown.Generation && old.FirstSeen.IsZero():
			old.FirstSeen = now
			c.Credentials = append(c.Credentials, old)
		case old.Generation < shown.Generation:
			end(&old, inventory.CredentialRevoked, inventory.Superseded, now)
			old.ReplacedBy = shown.Generation
			f.put(c, old)
			ended++
		}
	}
	return ended
}
