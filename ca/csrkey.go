package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// readPublicKey reads a SubjectPublicKeyInfo. The algorithm and the curve are
// looked at before anything is computed with the key.
func readPublicKey(spki []byte) (crypto.PublicKey, *RequestError) {
	in := cryptobyte.String(spki)
	var body, algorithm cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!algorithm.ReadASN1ObjectIdentifier(&oid) {
		return nil, refuse(Malformed, "subjectPKInfo is not in DER")
	}
	var bits []byte
	if !body.ReadASN1BitStringAsBytes(&bits) || !body.Empty() {
		return nil, refuse(Malformed, "subjectPKInfo is not in DER, or bytes follow the key")
	}
	switch {
	case oid.Equal(oidRSA):
		if !bytes.Equal(algorithm, derNull) {
			return nil, refuse(Malformed, "the parameters of an RSA key are NULL, RFC 3279 §2.3.1")
		}
	case oid.Equal(oidECPublicKey):
		var curve asn1.ObjectIdentifier
		if !algorithm.ReadASN1ObjectIdentifier(&curve) || !algorithm.Empty() || !knownCurve(curve) {
			return nil, refuse(KeyType, "unsupported elliptic curve")
		}
	case oid.Equal(oidEd25519):
		if !algorithm.Empty() {
			return nil, refuse(Malformed, "an Ed25519 key has no parameters, RFC 8410 §3")
		}
	default:
		return nil, refuse(KeyType, "unsupported key algorithm")
	}
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil || pub == nil {
		return nil, refuse(Malformed, "the public key does not decode")
	}
	// There is one DER form of a key. What differs from it has bytes left over
	// inside, and would have another SPKI hash than the same key without them.
	if canonical, err := x509.MarshalPKIXPublicKey(pub); err != nil || !bytes.Equal(canonical, spki) {
		return nil, refuse(Malformed, "subjectPKInfo is not in DER, or bytes follow the key")
	}
	return pub, nil
}

// knownCurve lists the curves that crypto/x509 can read; P-224 is among them, to
// be refused as weak and not as unknown.
func knownCurve(oid asn1.ObjectIdentifier) bool {
	for _, c := range []asn1.ObjectIdentifier{oidP224, oidP256, oidP384, oidP521} {
		if oid.Equal(c) {
			return true
		}
	}
	return false
}

// A signatureScheme is one row of the list of AlgorithmIdentifiers that may sign
// a request. Parameters are compared as bytes, so RSA-PSS with other hashes,
// masks or salts than RFC 4055 §3.1's usual ones is not in the list.
type signatureScheme struct {
	oid    asn1.ObjectIdentifier
	params []byte
	alg    x509.SignatureAlgorithm
}

func signatureSchemes() []signatureScheme {
	return []signatureScheme{
		{oidECDSAWithSHA256, nil, x509.ECDSAWithSHA256},
		{oidECDSAWithSHA384, nil, x509.ECDSAWithSHA384},
		{oidECDSAWithSHA512, nil, x509.ECDSAWithSHA512},
		{oidEd25519, nil, x509.PureEd25519},
		{oidSHA256WithRSA, derNull, x509.SHA256WithRSA},
		{oidSHA384WithRSA, derNull, x509.SHA384WithRSA},
		{oidSHA512WithRSA, derNull, x509.SHA512WithRSA},
	}
}

func pssSchemes() []signatureScheme {
	return []signatureScheme{
		{oidRSAPSS, pssParams(1, 32), x509.SHA256WithRSAPSS},
		{oidRSAPSS, pssParams(2, 48), x509.SHA384WithRSAPSS},
		{oidRSAPSS, pssParams(3, 64), x509.SHA512WithRSAPSS},
	}
}

// signatureAlgorithm reads an AlgorithmIdentifier and checks that it is strong
// and goes with pub.
func signatureAlgorithm(in cryptobyte.String, pub crypto.PublicKey) (x509.SignatureAlgorithm, *RequestError) {
	var oid asn1.ObjectIdentifier
	if !in.ReadASN1ObjectIdentifier(&oid) {
		return 0, refuse(Malformed, "signatureAlgorithm is not in DER")
	}
	for _, weak := range weakSignatures() {
		if oid.Equal(weak) {
			return 0, refuse(WeakSignature, "it is signed with a broken hash")
		}
	}
	schemes := signatureSchemes()
	if oid.Equal(oidRSAPSS) {
		schemes = pssSchemes()
	}
	for _, s := range schemes {
		if !oid.Equal(s.oid) || !bytes.Equal(in, s.params) {
			continue
		}
		if !fits(s.alg, pub) {
			return 0, refuse(BadSignature, "the signature algorithm is not one of the key's")
		}
		return s.alg, nil
	}
	if oid.Equal(oidRSAPSS) {
		return 0, refuse(WeakSignature, "RSA-PSS with unusual parameters")
	}
	return 0, refuse(BadSignature, "unknown signature algorithm or parameters")
}

// fits reports whether alg can be made with a key like pub.
func fits(alg x509.SignatureAlgorithm, pub crypto.PublicKey) bool {
	switch pub.(type) {
	case *ecdsa.PublicKey:
		return alg == x509.ECDSAWithSHA256 || alg == x509.ECDSAWithSHA384 || alg == x509.ECDSAWithSHA512
	case ed25519.PublicKey:
		return alg == x509.PureEd25519
	case *rsa.PublicKey:
		return alg != x509.PureEd25519 && alg != x509.ECDSAWithSHA256 &&
			alg != x509.ECDSAWithSHA384 && alg != x509.ECDSAWithSHA512
	}
	return false
}

// pssParams is RSASSA-PSS-params with SHA-2 hash n (1: 256, 2: 384, 3: 512 bits),
// MGF1 with the same hash and a salt as long as the hash, as RFC 4055 §3.1 has it
// and crypto/x509 reads it.
func pssParams(n byte, salt int64) []byte {
	hash := asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, int(n)}
	var b cryptobyte.Builder
	addHash := func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(hash)
			b.AddBytes(derNull)
		})
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), addHash)
		b.AddASN1(cbasn1.Tag(1).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidMGF1)
				addHash(b)
			})
		})
		b.AddASN1(cbasn1.Tag(2).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1Int64(salt)
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return []byte{0} // no DER: equal to no parameters that were read
	}
	return der
}
