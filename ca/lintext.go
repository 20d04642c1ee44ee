package ca

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
)

// lintAltNames checks the names that crypto/x509 can read against the subject.
// Those that it cannot (otherName) are compared as bytes in lintExtensions.
func lintAltNames(c *x509.Certificate, p *Profile, s Subject, altNames []byte) *LintError {
	wrong := lintErr("subject-alternative-name", "not that of the subject")
	if len(c.EmailAddresses) > 0 {
		return wrong
	}
	switch p.config.Kind {
	case KindDevice:
		if len(c.DNSNames)+len(c.IPAddresses) > 0 {
			return wrong
		}
		if p.config.SANURI == noSANURI {
			if len(c.URIs) > 0 || altNames != nil {
				return wrong
			}
			return nil
		}
		if len(c.URIs) != 1 || c.URIs[0].String() != fillSANURI(p.config.SANURI, s.ID, s.TrustDomain) {
			return wrong
		}
	case KindServer:
		if len(c.URIs) > 0 || !slices.Equal(c.DNSNames, s.DNSNames) || len(c.IPAddresses) != len(s.IPAddresses) {
			return wrong
		}
		for n, ip := range c.IPAddresses {
			if !ip.Equal(s.IPAddresses[n]) {
				return wrong
			}
		}
	case KindResponder, KindVerification:
		if altNames != nil {
			return wrong
		}
	case KindIDevID:
		if len(c.URIs)+len(c.DNSNames)+len(c.IPAddresses) > 0 || altNames == nil {
			return wrong
		}
	}
	return nil
}

// lintExtensions checks that the extensions are those of the allow-list, each at
// most once and each critical or not as RFC 5280 §4.2.1 has it, and that they say
// what the profile says.
func (i *Issuer) lintExtensions(c *x509.Certificate, p *Profile, b *blueprint) *LintError {
	for n, e := range c.Extensions {
		id := e.Id.String()
		for _, before := range c.Extensions[:n] {
			if before.Id.Equal(e.Id) {
				return lintErr("extensions", "%s is there twice", id)
			}
		}
		critical := false
		var value []byte // nil: checked in its parsed form
		switch {
		case e.Id.Equal(oidKeyUsage), e.Id.Equal(oidBasicConstraints):
			critical = true
		case e.Id.Equal(oidSubjectAltName):
			value = b.altNames
			if value == nil {
				return lintErr("extensions", "%s is not in the profile", id)
			}
		case e.Id.Equal(oidAuthorityKeyID):
			value = i.aki.Value
		case e.Id.Equal(oidOCSPNoCheck) && p.config.Kind == KindResponder:
			value = []byte{5, 0}
		case e.Id.Equal(oidExtKeyUsage), e.Id.Equal(oidSubjectKeyID), e.Id.Equal(oidCRLDistribution), e.Id.Equal(oidAuthorityInfo):
		default:
			return lintErr("extensions", "%s is not on the list", id)
		}
		if e.Critical != critical {
			return lintErr("extensions", "%s: critical is %t", id, e.Critical)
		}
		if value != nil && !bytes.Equal(e.Value, value) {
			return lintErr("extensions", "%s is not as it was built", id)
		}
	}
	if p.config.Kind == KindResponder && !hasExtension(c, oidOCSPNoCheck) {
		return lintErr("extensions", "a responder without id-pkix-ocsp-nocheck")
	}
	if len(c.UnhandledCriticalExtensions) > 0 {
		return lintErr("extensions", "a critical extension that nobody understands")
	}
	if !slices.Equal(c.CRLDistributionPoints, p.config.CRLDistributionPoints) ||
		!slices.Equal(c.OCSPServer, p.config.OCSP) || !slices.Equal(c.IssuingCertificateURL, p.config.CAIssuers) {
		return lintErr("extensions", "the URLs are not those of the profile")
	}
	return nil
}

func hasExtension(c *x509.Certificate, id asn1.ObjectIdentifier) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(id) })
}
