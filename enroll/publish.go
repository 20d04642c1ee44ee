package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
)

// A CRL is the published list of one issuer.
type CRL struct {
	Issuer     string
	DER        []byte
	Number     uint64
	ThisUpdate time.Time
	NextUpdate time.Time
	Entries    int
}

// ErrNotRecorded reports a CRL that is newer than the inventory: the inventory
// has been put back to an older state.
var ErrNotRecorded = errors.New("the CRL is newer than the inventory")

// PublishCRL returns the CRL of an issuer. If the one published before, have,
// still says what the inventory says and is in the first half of its life, that
// is the answer and nothing is signed; otherwise, or if force is set, a new one
// with the next number is signed and recorded. have is DER and may be empty.
//
// A number is recorded before the CRL that bears it is returned, so no two CRLs
// ever share one.
func (r *Registrar) PublishCRL(ctx context.Context, actor, issuer string, have []byte, force bool) (CRL, error) {
	now := r.now()
	var rec inventory.Issuer
	var entries []inventory.Revocation
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		for iss, err := range in.Issuers() {
			if err != nil {
				return err
			}
			if iss.Name == issuer {
				rec = iss
			}
		}
		if rec.Name == "" || rec.State == inventory.IssuerPending {
			return fmt.Errorf("issuer %s: %w", issuer, inventory.ErrNotFound)
		}
		for rev, err := range in.Revocations(rec.KeyID) {
			if err != nil {
				return err
			}
			if stillListed(rev, rec, now) {
				entries = append(entries, rev)
			}
		}
		return nil
	})
	if err != nil {
		return CRL{}, err
	}
	old, err := readCRL(rec, have)
	if err != nil {
		return CRL{}, err
	}
	if !force && old != nil && fresh(old, rec, now) && sameEntries(old, entries) {
		return CRL{Issuer: issuer, DER: have, Number: rec.CRLNumber, ThisUpdate: old.ThisUpdate, NextUpdate: old.NextUpdate, Entries: len(entries)}, nil
	}
	return r.signCRL(ctx, actor, rec, entries, now)
}

// stillListed says whether a CRL has to name a certificate: until one CRL has
// been published after it expired (RFC 5280 §3.3), so that nobody who checks a
// signature made before misses it.
func stillListed(rev inventory.Revocation, rec inventory.Issuer, now time.Time) bool {
	return !now.After(rev.NotAfter) || !rec.CRLThisUpdate.After(rev.NotAfter)
}

func fresh(old *ca.CRLReader, rec inventory.Issuer, now time.Time) bool {
	half := old.ThisUpdate.Add(old.NextUpdate.Sub(old.ThisUpdate) / 2)
	return old.Number == rec.CRLNumber && now.Before(half) && !now.Before(old.ThisUpdate)
}

// readCRL checks that a published CRL is one of rec's. A CRL that cannot be read
// is replaced; one with a higher number than the inventory knows is an alarm.
func readCRL(rec inventory.Issuer, der []byte) (*ca.CRLReader, error) {
	if len(der) == 0 {
		return nil, nil
	}
	old, err := ca.ReadCRL(der)
	if err != nil {
		return nil, nil
	}
	cert, err := x509.ParseCertificate(rec.Certificate)
	if err != nil {
		return nil, fmt.Errorf("reading certificate of issuer %s: %w", rec.Name, err)
	}
	if old.CheckSignatureFrom(cert) != nil {
		return nil, nil
	}
	if old.Number > rec.CRLNumber {
		return nil, fmt.Errorf("issuer %s: number %d was published, the inventory knows only %d: %w", rec.Name, old.Number, rec.CRLNumber, ErrNotRecorded)
	}
	return old, nil
}

// sameEntries compares what is listed with what is to be: both are in the order of
// serial numbers.
func sameEntries(old *ca.CRLReader, want []inventory.Revocation) bool {
	if old.Entries != len(want) {
		return false
	}
	i := 0
	for e := range old.All() {
		if e.Serial != want[i].Serial || e.Reason != int(want[i].Reason) {
			return false
		}
		i++
	}
	return true
}

func (r *Registrar) signCRL(ctx context.Context, actor string, rec inventory.Issuer, entries []inventory.Revocation, now time.Time) (CRL, error) {
	issuer, err := r.open(ctx, rec)
	if err != nil {
		return CRL{}, err
	}
	if now.Before(rec.CRLThisUpdate) { // the clock went back: thisUpdate may not
		now = rec.CRLThisUpdate
	}
	validity := r.cfg.CRLValidity
	if rec.Purpose == inventory.RootPurpose {
		validity = rootCRLValidity
	}
	out := CRL{Issuer: rec.Name, Number: rec.CRLNumber + 1, ThisUpdate: now, NextUpdate: now.Add(validity), Entries: len(entries)}
	out.DER, err = issuer.CRL(ca.CRLConfig{Number: out.Number, ThisUpdate: out.ThisUpdate, NextUpdate: out.NextUpdate}, revoked(entries))
	if err != nil {
		return CRL{}, fmt.Errorf("signing CRL of %s: %w", rec.Name, err)
	}
	rec.CRLNumber, rec.CRLThisUpdate, rec.CRLNextUpdate = out.Number, out.ThisUpdate, out.NextUpdate
	err = r.cfg.Store.Apply(ctx, inventory.Change{
		Event:   r.event(actor, "crl.publish", "", inventory.Object{Kind: "crl", ID: rec.Name, Note: fmt.Sprintf("number %d, %d entries", out.Number, out.Entries)}),
		Issuers: []inventory.Issuer{rec},
	})
	if err != nil {
		return CRL{}, fmt.Errorf("recording CRL of %s: %w", rec.Name, err)
	}
	return out, nil
}

// rootCRLValidity is long because the root is opened rarely.
const rootCRLValidity = 365 * 24 * time.Hour

func revoked(entries []inventory.Revocation) iter.Seq2[ca.Revoked, error] {
	return func(yield func(ca.Revoked, error) bool) {
		for _, e := range entries {
			if !yield(ca.Revoked{Serial: e.Serial, Time: e.Time, Reason: int(e.Reason)}, nil) {
				return
			}
		}
	}
}
