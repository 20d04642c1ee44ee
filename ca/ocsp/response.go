package ocsp

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // KeyHash of a ResponderID, RFC 6960 §4.2.1
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// A Failure is an answer without a status, which is not signed (RFC 6960 §4.2.1).
type Failure uint8

// The failures.
const (
	MalformedRequest Failure = 1
	InternalError    Failure = 2
	TryLater         Failure = 3
	Unauthorized     Failure = 6 // RFC 5019 §2.2.3: not a certificate that this responder speaks of
)

// Response returns the failure as an OCSPResponse, DER.
func (f Failure) Response() []byte { return []byte{0x30, 3, 0x0a, 1, byte(f)} }

// A State is what is known of a certificate. The zero State is Unknown: only what
// is known to be good is called so.
type State uint8

// The states.
const (
	Unknown State = iota
	Good
	Revoked
)

// A Single is the status of one certificate.
type Single struct {
	ID         CertID
	State      State
	RevokedAt  time.Time // if it is revoked
	Reason     int       // CRLReason of RFC 5280 §5.3.1; 0 is left out
	ThisUpdate time.Time
	NextUpdate time.Time
}

// A Responder signs answers. It is safe for concurrent use if its key is.
type Responder struct {
	key     crypto.Signer
	opts    crypto.SignerOpts
	alg     []byte // AlgorithmIdentifier, DER
	keyHash [sha1.Size]byte
	cert    []byte // DER; nil if the issuer itself signs
	until   time.Time
}

// NewResponder returns a responder for certificates of issuer. cert is one that
// the issuer has delegated answering to, with the purpose OCSPSigning, or the
// issuer's own; key is its key.
func NewResponder(cert *x509.Certificate, key crypto.Signer, issuer *x509.Certificate) (*Responder, error) {
	own := bytes.Equal(cert.Raw, issuer.Raw)
	if !own {
		if err := cert.CheckSignatureFrom(issuer); err != nil {
			return nil, fmt.Errorf("OCSP responder: %w", err)
		}
		if !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
			return nil, errors.New("OCSP responder: the certificate is not for signing OCSP answers")
		}
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(cert.PublicKey) {
		return nil, errors.New("OCSP responder: the key is not that of the certificate")
	}
	id, err := IssuerOf(cert)
	if err != nil {
		return nil, err
	}
	r := &Responder{key: key, keyHash: id.key1, until: cert.NotAfter}
	if !own {
		r.cert = cert.Raw
	}
	return r, r.algorithm()
}

// Until is when the responder's certificate ends: after that nobody believes it.
func (r *Responder) Until() time.Time { return r.until }

func (r *Responder) algorithm() error {
	var oid asn1.ObjectIdentifier
	null := false
	switch k := r.key.Public().(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P384():
			oid, r.opts = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, crypto.SHA384
		case elliptic.P521():
			oid, r.opts = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, crypto.SHA512
		default:
			oid, r.opts = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, crypto.SHA256
		}
	case *rsa.PublicKey:
		oid, r.opts, null = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, crypto.SHA256, true
	case ed25519.PublicKey:
		oid, r.opts = asn1.ObjectIdentifier{1, 3, 101, 112}, crypto.Hash(0)
	default:
		return fmt.Errorf("OCSP responder: no signature with a key of type %T", k)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if null {
			b.AddASN1NULL()
		}
	})
	var err error
	r.alg, err = b.Bytes()
	return err
}

// Sign answers with the status of certificates, and with the nonce of the request
// if there was one. It returns an OCSPResponse in DER.
//
// The signature is not verified before it leaves, as that of a certificate is:
// that would cost three times what signing costs, and a responder's key is good
// for a month and for nothing else.
//
// It refuses to sign after the responder's certificate has ended, when nobody would
// believe it.
func (r *Responder) Sign(singles []Single, nonce []byte, producedAt time.Time) ([]byte, error) {
	if producedAt.After(r.until) {
		return nil, fmt.Errorf("signing OCSP answer: the responder's certificate ended %s", r.until.UTC().Format(time.RFC3339))
	}
	var data cryptobyte.Builder
	data.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(context(2), func(b *cryptobyte.Builder) { b.AddASN1OctetString(r.keyHash[:]) }) // byKey
		addTime(b, producedAt)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for i := range singles {
				singles[i].add(b)
			}
		})
		if nonce != nil {
			b.AddASN1(context(1), func(b *cryptobyte.Builder) { addNonce(b, nonce) })
		}
	})
	tbs, err := data.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding OCSP answer: %w", err)
	}
	signature, err := crypto.SignMessage(r.key, rand.Reader, tbs, r.opts)
	if err != nil {
		return nil, fmt.Errorf("signing OCSP answer: %w", err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Enum(0) // successful
		b.AddASN1(context(0), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidBasic)
				b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // BasicOCSPResponse
						b.AddBytes(tbs)
						b.AddBytes(r.alg)
						b.AddASN1BitString(signature)
						if r.cert != nil {
							b.AddASN1(context(0), func(b *cryptobyte.Builder) {
								b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(r.cert) })
							})
						}
					})
				})
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding OCSP answer: %w", err)
	}
	return der, nil
}

func (s *Single) add(b *cryptobyte.Builder) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(s.ID.raw)
		switch s.State {
		case Good:
			b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(*cryptobyte.Builder) {})
		case Revoked:
			b.AddASN1(context(1), func(b *cryptobyte.Builder) {
				addTime(b, s.RevokedAt)
				if s.Reason != 0 {
					b.AddASN1(context(0), func(b *cryptobyte.Builder) { b.AddASN1Enum(int64(s.Reason)) })
				}
			})
		case Unknown:
			b.AddASN1(cbasn1.Tag(2).ContextSpecific(), func(*cryptobyte.Builder) {})
		}
		addTime(b, s.ThisUpdate)
		b.AddASN1(context(0), func(b *cryptobyte.Builder) { addTime(b, s.NextUpdate) })
	})
}

func addNonce(b *cryptobyte.Builder, nonce []byte) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidNonce)
			b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(nonce) })
		})
	})
}

// addTime writes whole seconds: RFC 5280 §4.1.2.5.2 has no fractions.
func addTime(b *cryptobyte.Builder, t time.Time) {
	b.AddASN1GeneralizedTime(t.UTC().Truncate(time.Second))
}
