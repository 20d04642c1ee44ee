package ca

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// lint reads back what is about to be signed and holds it against the rules for
// an end-entity certificate. It trusts neither the builder nor crypto/x509: what
// it checks comes out of the bytes.
func (d *Draft) lint(p *Profile, s Subject, req *Request, b *blueprint) error {
	der, err := d.assemble([]byte{0})
	if err != nil {
		return lintErr("encoding", "%v", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return lintErr("encoding", "%v", err)
	}
	if !bytes.Equal(c.RawTBSCertificate, d.tbs) {
		return lintErr("encoding", "it does not read back as it was written")
	}
	for _, rule := range []*LintError{
		d.issuer.lintFrame(c, b.serial),
		lintName(c.RawSubject, s, p.config.Kind),
		d.issuer.lintValidity(c, p),
		lintKey(c, p, req, b.keyID),
		lintUsage(c, p),
		lintAltNames(c, p, s, b.altNames),
		d.issuer.lintExtensions(c, p, b),
	} {
		if rule != nil {
			return rule
		}
	}
	return nil
}

// lintFrame checks version, serial number, issuer and algorithm.
func (i *Issuer) lintFrame(c *x509.Certificate, serial [16]byte) *LintError {
	switch {
	case c.Version != 3:
		return lintErr("version", "%d, want 3", c.Version)
	case c.SerialNumber.Sign() <= 0 || c.SerialNumber.BitLen() > 127 || c.SerialNumber.BitLen() <= 120:
		return lintErr("serial-number", "want 16 octets, positive")
	case !bytes.Equal(c.SerialNumber.FillBytes(make([]byte, 16)), serial[:]):
		return lintErr("serial-number", "not the one that was drawn")
	case !bytes.Equal(c.RawIssuer, i.cert.RawSubject):
		return lintErr("issuer", "its name is not the subject of the issuer")
	case bytes.Equal(c.RawIssuer, c.RawSubject):
		return lintErr("subject", "it is the issuer's")
	case !bytes.Equal(c.AuthorityKeyId, i.cert.SubjectKeyId):
		return lintErr("authority-key-identifier", "not the issuer's subject key identifier")
	case c.SignatureAlgorithm != i.alg:
		return lintErr("signature-algorithm", "%s, want %s", c.SignatureAlgorithm, i.alg)
	}
	return nil
}

// lintName checks the subject, as written: one value per part, one common name,
// and that last, so that Go (the last), OpenSSL's callers and Mosquitto (the
// first) find the same.
func lintName(raw []byte, s Subject, k Kind) *LintError {
	var want []rdn
	if s.Organization != "" {
		want = append(want, rdn{oid: oidOrganization, value: s.Organization})
	}
	if k == KindIDevID {
		want = append(want, rdn{oid: oidSerialNumber, value: s.HardwareSerial})
	}
	want = append(want, rdn{oid: oidCommonName, value: s.ID})
	in := cryptobyte.String(raw)
	var name cryptobyte.String
	if !in.ReadASN1(&name, cbasn1.SEQUENCE) || !in.Empty() {
		return lintErr("subject", "not an RDNSequence")
	}
	for _, w := range want {
		var set, pair, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		var tag cbasn1.Tag
		if !name.ReadASN1(&set, cbasn1.SET) || !set.ReadASN1(&pair, cbasn1.SEQUENCE) || !set.Empty() ||
			!pair.ReadASN1ObjectIdentifier(&oid) || !pair.ReadAnyASN1(&value, &tag) || !pair.Empty() {
			return lintErr("subject", "a part is missing, or has several values")
		}
		if !oid.Equal(w.oid) || string(value) != w.value {
			return lintErr("subject", "part %s is not as it was meant", oid)
		}
		if bytes.IndexByte(value, 0) >= 0 || tag != cbasn1.UTF8String && tag != cbasn1.PrintableString {
			return lintErr("subject", "part %s is no plain string", oid)
		}
	}
	if !name.Empty() {
		return lintErr("common-name", "it is not the last part of the subject")
	}
	return nil
}

// lintValidity checks the dates against the profile and the issuer. Both ends
// count, hence the second.
func (i *Issuer) lintValidity(c *x509.Certificate, p *Profile) *LintError {
	endless := p.config.Kind == KindIDevID && p.config.Validity == Never
	switch {
	case c.NotBefore.Before(i.cert.NotBefore):
		return lintErr("validity", "it begins before its issuer")
	case !c.NotAfter.After(c.NotBefore):
		return lintErr("validity", "it ends before it begins")
	case endless && !c.NotAfter.Equal(noExpiry()):
		return lintErr("validity", "notAfter of an IDevID is not 99991231235959Z")
	case !endless && c.NotAfter.After(i.cert.NotAfter):
		return lintErr("validity", "it ends after its issuer")
	case p.config.Validity != Never && c.NotAfter.Sub(c.NotBefore)+time.Second > time.Duration(p.config.Validity):
		return lintErr("validity", "longer than the profile allows")
	}
	return nil
}

// lintKey checks that the key is the one that was asked for, and allowed.
func lintKey(c *x509.Certificate, p *Profile, req *Request, keyID []byte) *LintError {
	if sha256.Sum256(c.RawSubjectPublicKeyInfo) != req.SPKI {
		return lintErr("public-key", "not the one in the request")
	}
	if refused := p.policy.check(c.PublicKey); refused != nil {
		return lintErr("public-key", "%s", refused.Detail)
	}
	if !bytes.Equal(c.SubjectKeyId, keyID) || p.config.Lean != (keyID == nil) {
		return lintErr("subject-key-identifier", "not as the profile has it")
	}
	if keyID != nil {
		if want, err := spkiIdentifier(c.RawSubjectPublicKeyInfo); err != nil || !bytes.Equal(want, keyID) {
			return lintErr("subject-key-identifier", "not RFC 7093 method 1")
		}
	}
	return nil
}

// lintUsage checks what the certificate may be used for.
func lintUsage(c *x509.Certificate, p *Profile) *LintError {
	var want []x509.ExtKeyUsage
	var unknown []asn1.ObjectIdentifier // to crypto/x509
	switch p.config.Kind {
	case KindDevice:
		want = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case KindServer:
		want = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	case KindResponder:
		want = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	case KindVerification:
		unknown = []asn1.ObjectIdentifier{oidDocSigning}
	case KindIDevID:
	}
	switch {
	case c.KeyUsage != x509.KeyUsageDigitalSignature:
		return lintErr("key-usage", "want digitalSignature only")
	case !c.BasicConstraintsValid || c.IsCA || c.MaxPathLen > 0 || c.MaxPathLenZero:
		return lintErr("basic-constraints", "want CA:FALSE")
	case !slices.Equal(c.ExtKeyUsage, want) || !slices.EqualFunc(c.UnknownExtKeyUsage, unknown, asn1.ObjectIdentifier.Equal):
		return lintErr("extended-key-usage", "want that of kind %s only", p.config.Kind)
	}
	return nil
}
