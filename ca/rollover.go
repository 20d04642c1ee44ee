package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"math/big"
	"time"
)

// Link certifies the key and the name of one root with another one, in DER: the
// certificates that RFC 4210 §4.4 calls NewWithOld (subject is the new root, issuer
// the old one) and OldWithNew. With the first, who trusts only the old root accepts
// what stands under the new one; with the second, the other way round.
//
// The link is good while both roots are. It has the subject key identifier of its
// subject, so that it takes the root's place in a path, and an authority key
// identifier that names the issuer's key: the two roots have names of their own, so
// no verifier takes it for self-signed.
//
// The error is a [*LintError] if one of the two is not a root, or is over.
func Link(subject, issuer *x509.Certificate, key crypto.Signer, now func() time.Time) ([]byte, error) {
	if now == nil {
		now = time.Now
	}
	for _, root := range []*x509.Certificate{subject, issuer} {
		if !root.IsCA || root.MaxPathLen != -1 || len(root.ExtKeyUsage) > 0 || root.CheckSignatureFrom(root) != nil {
			return nil, lintErr("link", "%q is not a root", clip(root.Subject.CommonName))
		}
	}
	if bytes.Equal(subject.RawSubject, issuer.RawSubject) || equalKeys(subject.PublicKey, issuer.PublicKey) {
		return nil, lintErr("link", "a link is between two roots with names and keys of their own")
	}
	signer, err := NewIssuer(issuer, key, now)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	begin := now().UTC().Truncate(time.Second).Add(-caBackdate)
	for _, root := range []*x509.Certificate{subject, issuer} {
		if begin.Before(root.NotBefore) {
			begin = root.NotBefore
		}
	}
	end := subject.NotAfter
	if issuer.NotAfter.Before(end) {
		end = issuer.NotAfter
	}
	if !end.After(now()) {
		return nil, lintErr("link", "one of the roots has expired on %s", end.Format(time.DateOnly))
	}
	return signCA(&x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:]), RawSubject: subject.RawSubject,
		NotBefore: begin, NotAfter: end,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: -1,
		SubjectKeyId: subject.SubjectKeyId, AuthorityKeyId: issuer.SubjectKeyId,
	}, signer.cert, subject.PublicKey, key)
}
