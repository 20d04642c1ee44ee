package enroll

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
)

// A KeyRef is a private key and where it is kept.
type KeyRef struct {
	URI    string // KMS URI, as the store keeps it
	Signer crypto.Signer
}

// A Foundation is what a fleet starts with: one root, and one issuer for devices
// and one for servers under it. All fields but Profiles must be set.
type Foundation struct {
	Actor        string
	Organization string
	Now          func() time.Time

	Root, Device, Server KeyRef

	Profiles []inventory.Profile
}

// Validities of issuers. An issuer outlives every certificate it signs, so a
// device CA is good for as long as the longest-lived device plus the time it
// issues; the root outlives them all.
const (
	rootValidity   = 30 * 365 * 24 * time.Hour
	issuerValidity = 15 * 365 * 24 * time.Hour
)

// Found makes the hierarchy and writes it into an empty store as one change.
func Found(ctx context.Context, store inventory.Store, f Foundation) error {
	now := inventory.UTC(f.Now())
	rootDER, err := ca.NewRoot(f.Root.Signer, f.authority(inventory.RootPurpose, 1))
	if err != nil {
		return fmt.Errorf("making root: %w", err)
	}
	c := inventory.Change{Profiles: f.Profiles, Event: inventory.Event{Time: now, Actor: f.Actor, Action: "fleet.init"}}
	root, err := issuerRecord(inventory.RootPurpose, 1, rootDER, f.Root)
	if err != nil {
		return err
	}
	c.Issuers = append(c.Issuers, root)
	for _, x := range []struct {
		purpose inventory.Purpose
		key     KeyRef
	}{{inventory.DevicePurpose, f.Device}, {inventory.ServerPurpose, f.Server}} {
		der, err := f.intermediate(rootDER, x.purpose, x.key)
		if err != nil {
			return fmt.Errorf("making %s issuer: %w", x.purpose, err)
		}
		rec, err := issuerRecord(x.purpose, 1, der, x.key)
		if err != nil {
			return err
		}
		c.Issuers = append(c.Issuers, rec)
	}
	for _, iss := range c.Issuers {
		c.Event.Objects = append(c.Event.Objects, inventory.Object{Kind: "issuer", ID: iss.Name, Note: iss.KeyID.String()})
	}
	for _, p := range c.Profiles {
		if err := lintPolicy(p); err != nil {
			return err
		}
		c.Event.Objects = append(c.Event.Objects, inventory.Object{Kind: "profile", ID: p.Name})
	}
	return store.Apply(ctx, c)
}

func (f Foundation) authority(purpose inventory.Purpose, generation uint32) ca.AuthorityConfig {
	return authorityConfig(f.Organization, purpose, generation, f.Now)
}

func authorityConfig(organization string, purpose inventory.Purpose, generation uint32, now func() time.Time) ca.AuthorityConfig {
	validity := issuerValidity
	if purpose == inventory.RootPurpose {
		validity = rootValidity
	}
	return ca.AuthorityConfig{Organization: organization, Generation: generation, Purpose: ca.Purpose(purpose.String()), Validity: validity, Now: now}
}

func (f Foundation) intermediate(rootDER []byte, purpose inventory.Purpose, key KeyRef) ([]byte, error) {
	root, err := x509.ParseCertificate(rootDER)
	if err != nil {
		return nil, err
	}
	csr, err := ca.NewIntermediateRequest(key.Signer, f.authority(purpose, 1))
	if err != nil {
		return nil, err
	}
	return ca.SignIntermediate(root, f.Root.Signer, csr, f.authority(purpose, 1))
}

// issuerName is the name of an issuer in the inventory: "device-1".
func issuerName(purpose inventory.Purpose, generation uint32) string {
	return fmt.Sprintf("%s-%d", purpose, generation)
}

func issuerRecord(purpose inventory.Purpose, generation uint32, der []byte, key KeyRef) (inventory.Issuer, error) {
	rec := inventory.Issuer{Name: issuerName(purpose, generation), Purpose: purpose, Generation: generation, State: inventory.IssuerActive, Key: key.URI}
	return rec, fillIssuer(&rec, der, key.Signer.Public())
}

// fillIssuer takes what a CA certificate says over into its record.
func fillIssuer(rec *inventory.Issuer, der []byte, pub crypto.PublicKey) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("reading certificate of issuer %s: %w", rec.Name, err)
	}
	spki, err := ca.SPKIHash(pub)
	if err != nil {
		return err
	}
	have, err := ca.SPKIHash(cert.PublicKey)
	if err != nil {
		return err
	}
	if have != spki || len(cert.SubjectKeyId) != len(rec.KeyID) {
		return fmt.Errorf("certificate of issuer %s: it is for another key", rec.Name)
	}
	copy(rec.KeyID[:], cert.SubjectKeyId)
	rec.SPKI, rec.Certificate, rec.NotAfter, rec.State = spki, der, cert.NotAfter.UTC(), inventory.IssuerActive
	return nil
}

// RequestIssuer starts the next generation of an issuer: it records the new key
// as pending and returns the PKCS #10 request, in DER, that the root is to sign.
// newKey makes the key of the issuer with the given name.
func (r *Registrar) RequestIssuer(ctx context.Context, actor string, purpose inventory.Purpose, newKey func(name string) (KeyRef, error)) (inventory.Issuer, []byte, error) {
	var rec inventory.Issuer
	if purpose != inventory.DevicePurpose && purpose != inventory.ServerPurpose {
		return rec, nil, &inventory.InvalidError{Field: "purpose", Value: purpose.String(), Want: "device or server"}
	}
	generation := uint32(1)
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		for iss, err := range in.Issuers() {
			if err != nil {
				return err
			}
			if iss.Purpose != purpose {
				continue
			}
			if iss.State == inventory.IssuerPending {
				return fmt.Errorf("issuer %s waits for its certificate already: %w", iss.Name, ErrDenied)
			}
			generation = max(generation, iss.Generation+1)
		}
		return nil
	})
	if err != nil {
		return rec, nil, err
	}
	key, err := newKey(issuerName(purpose, generation))
	if err != nil {
		return rec, nil, err
	}
	csr, err := ca.NewIntermediateRequest(key.Signer, authorityConfig(r.cfg.Organization, purpose, generation, r.cfg.Now))
	if err != nil {
		return rec, nil, err
	}
	spki, err := ca.SPKIHash(key.Signer.Public())
	if err != nil {
		return rec, nil, err
	}
	rec = inventory.Issuer{Name: issuerName(purpose, generation), Purpose: purpose, Generation: generation, State: inventory.IssuerPending, Key: key.URI, SPKI: spki}
	err = r.cfg.Store.Apply(ctx, inventory.Change{
		Event:   r.event(actor, "issuer.request", "", inventory.Object{Kind: "issuer", ID: rec.Name}),
		Issuers: []inventory.Issuer{rec},
	})
	return rec, csr, err
}

// SignIssuer answers the request of RequestIssuer with a certificate in DER. It
// runs beside the root key, which may be on a machine that never sees the
// inventory.
func SignIssuer(rootDER []byte, root crypto.Signer, csr []byte, purpose inventory.Purpose, generation uint32, now func() time.Time) ([]byte, error) {
	cert, err := x509.ParseCertificate(rootDER)
	if err != nil {
		return nil, fmt.Errorf("reading root certificate: %w", err)
	}
	if len(cert.Subject.Organization) != 1 {
		return nil, errors.New("the root certificate names no organization: it was not made by imprint")
	}
	return ca.SignIntermediate(cert, root, csr, authorityConfig(cert.Subject.Organization[0], purpose, generation, now))
}

// InstallIssuer activates a pending issuer with the certificate that the root
// has signed. From then on it signs what its predecessor signed; the predecessor
// still signs CRLs. With standby it only stands by, until [Registrar.ActivateIssuer].
func (r *Registrar) InstallIssuer(ctx context.Context, actor string, der []byte, standby bool) (inventory.Issuer, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return inventory.Issuer{}, fmt.Errorf("reading certificate: %w", err)
	}
	spki, err := ca.SPKIHash(cert.PublicKey)
	if err != nil {
		return inventory.Issuer{}, err
	}
	var rec inventory.Issuer
	err = r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		signed := false
		for iss, err := range in.Issuers() {
			if err != nil {
				return err
			}
			if iss.SPKI == spki {
				rec = iss
			}
			if iss.Purpose == inventory.RootPurpose && bytes.Equal(iss.KeyID[:], cert.AuthorityKeyId) {
				root, err := x509.ParseCertificate(iss.Certificate)
				if err != nil {
					return err
				}
				signed = cert.CheckSignatureFrom(root) == nil
			}
		}
		switch {
		case rec.Name == "":
			return fmt.Errorf("no issuer waits for a certificate of this key: %w", inventory.ErrNotFound)
		case !signed:
			return &inventory.InvalidError{Field: "certificate", Value: cert.Subject.CommonName, Want: "a signature of this fleet's root"}
		}
		return nil
	})
	if err != nil || rec.State != inventory.IssuerPending {
		return rec, err
	}
	if err := fillIssuer(&rec, der, cert.PublicKey); err != nil {
		return rec, err
	}
	if standby {
		rec.State = inventory.IssuerStandby
	}
	return rec, r.cfg.Store.Apply(ctx, inventory.Change{
		Event:   r.event(actor, "issuer.install", "", inventory.Object{Kind: "issuer", ID: rec.Name, Note: rec.KeyID.String()}),
		Issuers: []inventory.Issuer{rec},
	})
}
