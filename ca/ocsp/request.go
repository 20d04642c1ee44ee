// Package ocsp reads OCSP requests and signs the answers (RFC 6960, RFC 9654). It
// knows no policy: whether a certificate is good is for the caller to say.
//
// golang.org/x/crypto/ocsp looks at the first of several certificates only and
// has no nonce, so both ends are written here; it is the second reader in the
// tests.
package ocsp

import (
	"bytes"
	"crypto"
	"crypto/sha1" //nolint:gosec // names an issuer, RFC 6960 §4.1.1; signs nothing
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Fences of a request.
const (
	// MaxRequestSize is the size of the largest request that is read, in bytes.
	MaxRequestSize = 4 << 10

	maxIDs    = 16
	maxNonce  = 128 // RFC 9654 §2.1
	maxSerial = 20  // RFC 5280 §4.1.2.2
)

// ErrRequest reports what is not an OCSP request that is answered here: the peer
// gets malformedRequest.
var ErrRequest = errors.New("malformed OCSP request")

// A CertID names a certificate by its issuer and serial number.
type CertID struct {
	Hash     crypto.Hash // crypto.SHA1 or crypto.SHA256
	NameHash []byte      // of the issuer's subject
	KeyHash  []byte      // of the issuer's public key
	Serial   []byte      // big endian, without leading zeros

	raw []byte // DER, as received: an answer repeats it octet for octet
}

// A Request asks for the status of certificates.
type Request struct {
	IDs   []CertID // 1 to 16
	Nonce []byte   // 1 to 128 octets; nil if there is none
}

var (
	oidSHA1   = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidSHA256 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidNonce  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
	oidBasic  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
)

func malformed(what string) error { return fmt.Errorf("%s: %w", what, ErrRequest) }

func context(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }

// ParseRequest reads an OCSPRequest in DER. A signature on it is not looked at:
// whoever asks may know the answer. What is returned shares memory with der. The
// error wraps [ErrRequest].
func ParseRequest(der []byte) (*Request, error) {
	if len(der) > MaxRequestSize {
		return nil, malformed("too large")
	}
	in := cryptobyte.String(der)
	var outer, tbs, list cryptobyte.String
	if !in.ReadASN1(&outer, cbasn1.SEQUENCE) || !in.Empty() || !outer.ReadASN1(&tbs, cbasn1.SEQUENCE) {
		return nil, malformed("not an OCSPRequest")
	}
	if !outer.SkipOptionalASN1(context(0)) || !outer.Empty() {
		return nil, malformed("after the request")
	}
	var version cryptobyte.String
	var explicit bool
	if !tbs.ReadOptionalASN1(&version, &explicit, context(0)) {
		return nil, malformed("version")
	}
	if explicit {
		var v int64
		if !version.ReadASN1Integer(&v) || v != 0 || !version.Empty() {
			return nil, malformed("version")
		}
	}
	if !tbs.SkipOptionalASN1(context(1)) || !tbs.ReadASN1(&list, cbasn1.SEQUENCE) || list.Empty() {
		return nil, malformed("requestList")
	}
	r := &Request{}
	for !list.Empty() {
		var one cryptobyte.String
		if len(r.IDs) == maxIDs || !list.ReadASN1(&one, cbasn1.SEQUENCE) {
			return nil, malformed("requestList")
		}
		id, err := readCertID(&one)
		if err != nil {
			return nil, err
		}
		if !one.SkipOptionalASN1(context(0)) || !one.Empty() {
			return nil, malformed("singleRequestExtensions")
		}
		r.IDs = append(r.IDs, id)
	}
	if err := r.readExtensions(&tbs); err != nil {
		return nil, err
	}
	return r, nil
}

func readCertID(in *cryptobyte.String) (CertID, error) {
	var whole, body, alg, serial cryptobyte.String
	var name, key cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !in.ReadASN1Element(&whole, cbasn1.SEQUENCE) {
		return CertID{}, malformed("CertID")
	}
	rest := whole
	if !rest.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1(&alg, cbasn1.SEQUENCE) || !alg.ReadASN1ObjectIdentifier(&oid) {
		return CertID{}, malformed("hashAlgorithm")
	}
	if !alg.Empty() { // parameters: NULL, or none
		var null cryptobyte.String
		if !alg.ReadASN1(&null, cbasn1.NULL) || !null.Empty() || !alg.Empty() {
			return CertID{}, malformed("hashAlgorithm")
		}
	}
	id := CertID{raw: whole}
	switch {
	case oid.Equal(oidSHA1):
		id.Hash = crypto.SHA1
	case oid.Equal(oidSHA256):
		id.Hash = crypto.SHA256
	default:
		return CertID{}, malformed("hashAlgorithm")
	}
	if !body.ReadASN1(&name, cbasn1.OCTET_STRING) || !body.ReadASN1(&key, cbasn1.OCTET_STRING) ||
		len(name) != id.Hash.Size() || len(key) != id.Hash.Size() ||
		!body.ReadASN1(&serial, cbasn1.INTEGER) || !body.Empty() {
		return CertID{}, malformed("CertID")
	}
	// Positive, and in the shortest form.
	if len(serial) == 0 || len(serial) > maxSerial+1 || serial[0]&0x80 != 0 || len(serial) > 1 && serial[0] == 0 && serial[1]&0x80 == 0 {
		return CertID{}, malformed("serialNumber")
	}
	id.NameHash, id.KeyHash, id.Serial = name, key, bytes.TrimLeft(serial, "\x00")
	return id, nil
}

// readExtensions takes the nonce. What else is there is ignored, unless it is
// critical (RFC 6960 §4.4).
func (r *Request) readExtensions(tbs *cryptobyte.String) error {
	var wrapped, list cryptobyte.String
	var present bool
	if !tbs.ReadOptionalASN1(&wrapped, &present, context(2)) || !tbs.Empty() {
		return malformed("requestExtensions")
	}
	if !present {
		return nil
	}
	if !wrapped.ReadASN1(&list, cbasn1.SEQUENCE) || !wrapped.Empty() {
		return malformed("requestExtensions")
	}
	for !list.Empty() {
		var e, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		critical := false
		if !list.ReadASN1(&e, cbasn1.SEQUENCE) || !e.ReadASN1ObjectIdentifier(&oid) ||
			e.PeekASN1Tag(cbasn1.BOOLEAN) && !e.ReadASN1Boolean(&critical) ||
			!e.ReadASN1(&value, cbasn1.OCTET_STRING) || !e.Empty() {
			return malformed("requestExtensions")
		}
		if !oid.Equal(oidNonce) {
			if critical {
				return malformed("critical extension")
			}
			continue
		}
		var nonce cryptobyte.String
		if r.Nonce != nil || !value.ReadASN1(&nonce, cbasn1.OCTET_STRING) || !value.Empty() || len(nonce) == 0 || len(nonce) > maxNonce {
			return malformed("nonce")
		}
		r.Nonce = nonce
	}
	return nil
}

// An IssuerID is what a CertID says of its issuer, in both hashes.
type IssuerID struct {
	name1, key1     [sha1.Size]byte
	name256, key256 [sha256.Size]byte
}

// IssuerOf computes the hashes of an issuer once.
func IssuerOf(issuer *x509.Certificate) (IssuerID, error) {
	in := cryptobyte.String(issuer.RawSubjectPublicKeyInfo)
	var spki cryptobyte.String
	var key asn1.BitString
	if !in.ReadASN1(&spki, cbasn1.SEQUENCE) || !spki.SkipASN1(cbasn1.SEQUENCE) || !spki.ReadASN1BitString(&key) {
		return IssuerID{}, errors.New("reading the issuer's public key")
	}
	return IssuerID{
		sha1.Sum(issuer.RawSubject), sha1.Sum(key.Bytes), //nolint:gosec // see the import
		sha256.Sum256(issuer.RawSubject), sha256.Sum256(key.Bytes),
	}, nil
}

// Issued reports whether a CertID names a certificate of this issuer.
func (i *IssuerID) Issued(id CertID) bool {
	if id.Hash == crypto.SHA1 {
		return bytes.Equal(id.NameHash, i.name1[:]) && bytes.Equal(id.KeyHash, i.key1[:])
	}
	return bytes.Equal(id.NameHash, i.name256[:]) && bytes.Equal(id.KeyHash, i.key256[:])
}
