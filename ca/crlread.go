package ca

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// A CRLReader reads a CRL of imprint's own without taking it apart: a million
// entries cost no memory. [x509.ParseRevocationList] needs some 400 bytes for each.
type CRLReader struct {
	Number                 uint64
	ThisUpdate, NextUpdate time.Time
	Entries                int

	issuer    []byte // DER
	entries   []byte // the contents of revokedCertificates
	tbs       []byte
	signature []byte
}

// errCRL reports a list that is none of ours. Which octet it was helps nobody.
var errCRL = errors.New("reading CRL: it is none of imprint's own")

// ReadCRL reads a CRL in DER, as strictly as [Issuer.CRL] writes it: version 2, no
// extensions but the authority key identifier and the CRL number, no entry
// extensions but the reason, serial numbers of at most 16 octets.
func ReadCRL(der []byte) (*CRLReader, error) {
	in := cryptobyte.String(der)
	var list, tbs, body, alg, issuer, revoked, extensions cryptobyte.String
	var signature []byte
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() || !list.ReadASN1Element(&tbs, cbasn1.SEQUENCE) ||
		!list.ReadASN1(&alg, cbasn1.SEQUENCE) || !list.ReadASN1BitStringAsBytes(&signature) || !list.Empty() {
		return nil, errCRL
	}
	r := &CRLReader{tbs: tbs, signature: signature}
	var version int
	var same cryptobyte.String
	if !tbs.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1Integer(&version) || version != 1 ||
		!body.ReadASN1(&same, cbasn1.SEQUENCE) || !bytes.Equal(same, alg) || !body.ReadASN1Element(&issuer, cbasn1.SEQUENCE) {
		return nil, errCRL
	}
	var ok bool
	if r.ThisUpdate, ok = readTime(&body); !ok {
		return nil, errCRL
	}
	if r.NextUpdate, ok = readTime(&body); !ok {
		return nil, errCRL
	}
	r.issuer = issuer
	if body.PeekASN1Tag(cbasn1.SEQUENCE) {
		if !body.ReadASN1(&revoked, cbasn1.SEQUENCE) || revoked.Empty() {
			return nil, errCRL
		}
		r.entries = revoked
	}
	if !body.ReadASN1(&extensions, cbasn1.Tag(0).ContextSpecific().Constructed()) || !body.Empty() || !r.readExtensions(extensions) {
		return nil, errCRL
	}
	for rest := cryptobyte.String(r.entries); !rest.Empty(); r.Entries++ {
		if _, ok := readEntry(&rest); !ok {
			return nil, errCRL
		}
	}
	return r, nil
}

func (r *CRLReader) readExtensions(in cryptobyte.String) bool {
	var list cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() {
		return false
	}
	for !list.Empty() {
		var e, oid, value cryptobyte.String
		if !list.ReadASN1(&e, cbasn1.SEQUENCE) || !e.ReadASN1(&oid, cbasn1.OBJECT_IDENTIFIER) || !e.ReadASN1(&value, cbasn1.OCTET_STRING) || !e.Empty() {
			return false
		}
		switch string(oid) {
		case "\x55\x1d\x14": // cRLNumber, RFC 5280 §5.2.3
			if r.Number != 0 || !value.ReadASN1Integer(&r.Number) || r.Number == 0 || !value.Empty() {
				return false
			}
		case "\x55\x1d\x23": // authorityKeyIdentifier
		default:
			return false
		}
	}
	return r.Number != 0
}

// All yields the entries in the order of the list.
func (r *CRLReader) All() iter.Seq[Revoked] {
	return func(yield func(Revoked) bool) {
		for rest := cryptobyte.String(r.entries); !rest.Empty(); {
			e, ok := readEntry(&rest)
			if !ok || !yield(e) { // ReadCRL has read them all before
				return
			}
		}
	}
}

// CheckSignatureFrom reports whether a CA has signed the list.
func (r *CRLReader) CheckSignatureFrom(issuer *x509.Certificate) error {
	if !bytes.Equal(issuer.RawSubject, r.issuer) {
		return fmt.Errorf("CRL of another issuer than %q", clip(issuer.Subject.CommonName))
	}
	alg, refused := algorithmOf(issuer.PublicKey)
	if refused != nil {
		return refused
	}
	if err := issuer.CheckSignature(signatureOf(alg), r.tbs, r.signature); err != nil {
		return fmt.Errorf("checking CRL of %q: %w", clip(issuer.Subject.CommonName), err)
	}
	return nil
}

// readEntry reads what [Revoked.append] writes.
func readEntry(in *cryptobyte.String) (r Revoked, ok bool) {
	var e, serial cryptobyte.String
	if !in.ReadASN1(&e, cbasn1.SEQUENCE) || !e.ReadASN1(&serial, cbasn1.INTEGER) || len(serial) == 0 {
		return r, false
	}
	if len(serial) > 1 && serial[0] == 0 && serial[1] >= 0x80 {
		serial = serial[1:]
	} else if serial[0] >= 0x80 || len(serial) > 1 && serial[0] == 0 {
		return r, false
	}
	if len(serial) > len(r.Serial) {
		return r, false
	}
	copy(r.Serial[len(r.Serial)-len(serial):], serial)
	if r.Time, ok = readTime(&e); !ok {
		return r, false
	}
	if !e.Empty() {
		const head = "\x30\x0c\x30\x0a\x06\x03\x55\x1d\x15\x04\x03\x0a\x01"
		if len(e) != len(head)+1 || string(e[:len(head)]) != head {
			return r, false
		}
		r.Reason = int(e[len(head)])
	}
	return r, r.check() == nil
}

func readTime(in *cryptobyte.String) (t time.Time, ok bool) {
	if in.PeekASN1Tag(cbasn1.UTCTime) {
		ok = in.ReadASN1UTCTime(&t)
	} else {
		ok = in.ReadASN1GeneralizedTime(&t)
	}
	return t, ok
}
