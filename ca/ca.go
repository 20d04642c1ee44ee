// Package ca is the certification authority of a fleet: keys, issuers, requests,
// certificates and CRLs. It is pure PKI (RFC 5280, 2986, 5958): it has never
// heard of devices, stores or HTTP.
//
// # The hierarchy
//
// A root, which can be kept offline, signs one issuing CA per purpose: device CA,
// server CA, factory CA. Each issuing CA has pathLen 0 and one extended key
// usage, so a stolen device CA makes no broker. A new generation of an issuer has
// a new key and a name of its own ("Acme Device CA D2"): with the same name twice
// verifiers cannot tell a chain from a loop. There are no name constraints:
// RFC 5280 wants them critical, and Mbed TLS refuses to load such a CA.
//
// # Issuing
//
// An identity is built, never copied. From a certification request [ParseRequest]
// takes a public key and the proof that the sender holds its private half. What a
// certificate says comes from a [Profile], which a person wrote, and a [Subject],
// which the inventory knows:
//
//	req, err := ca.ParseRequest(csr, profile.KeyPolicy())
//	draft, err := issuer.Prepare(profile, subject, req) // built and linted
//	der, err := draft.Sign()                            // the linted bytes, signed
//
// [Issuer.Prepare] lets crypto/x509 build the bytes to be signed, reads them back
// and holds them against the rules; [Draft.Sign] signs exactly those bytes.
// Nothing else in this package signs an end-entity certificate.
//
// # What is never done
//
// No subject or extension of a request is copied. No SHA-1: key identifiers are
// RFC 7093 method 1. No key is overwritten. No CA certificate is made from a
// device's request: only [SignIntermediate], which needs the root's key, makes
// one.
package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// noExpiry is the notAfter of a certificate with no well-defined expiration
// date, RFC 5280 §4.1.2.5.
func noExpiry() time.Time { return time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }

// newSerial draws a serial number: 16 random octets, positive and with a non-zero
// first octet, so it is 16 octets long in DER as well and no two lines of a
// factory need to talk about numbers.
func newSerial() (s [16]byte, err error) {
	for s[0] == 0 {
		if _, err := rand.Read(s[:]); err != nil {
			return s, fmt.Errorf("drawing a serial number: %w", err)
		}
		s[0] &= 0x7f
	}
	return s, nil
}

// SPKIHash returns the SHA-256 hash of the DER SubjectPublicKeyInfo of pub: the
// name of a key wherever keys are compared or blocked.
func SPKIHash(pub crypto.PublicKey) ([32]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [32]byte{}, fmt.Errorf("encoding public key: %w", err)
	}
	return sha256.Sum256(der), nil
}

// keyIdentifier is RFC 7093 §2 method 1: the leftmost 160 bits of the SHA-256
// hash of the BIT STRING subjectPublicKey, without tag, length and unused bits.
func keyIdentifier(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encoding public key: %w", err)
	}
	return spkiIdentifier(der)
}

func spkiIdentifier(spki []byte) ([]byte, error) {
	in := cryptobyte.String(spki)
	var body cryptobyte.String
	var key asn1.BitString
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) || !body.SkipASN1(cbasn1.SEQUENCE) || !body.ReadASN1BitString(&key) {
		return nil, fmt.Errorf("encoding public key: unexpected shape")
	}
	h := sha256.Sum256(key.Bytes)
	return h[:20], nil
}

// equalKeys reports whether two public keys are the same.
func equalKeys(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
