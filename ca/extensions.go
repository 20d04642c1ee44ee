package ca

import (
	"crypto/x509/pkix"
	"encoding/asn1"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// profileExtensions are the extensions that are the same in every certificate of
// a profile, encoded once.
type profileExtensions struct {
	head         []pkix.Extension // key usage, extended key usage, basic constraints
	tail         []pkix.Extension // CRL distribution points, authority information access
	hardwareType asn1.ObjectIdentifier
}

func encodeProfile(c Config) (e profileExtensions, err error) {
	e.head = []pkix.Extension{
		// KeyUsage ::= BIT STRING with digitalSignature (0) only. Seven bits of
		// the one byte are unused.
		{Id: oidKeyUsage, Critical: true, Value: []byte{3, 2, 7, 0x80}},
		// BasicConstraints with cA at its default FALSE, which DER leaves out.
		{Id: oidBasicConstraints, Critical: true, Value: []byte{0x30, 0}},
	}
	if purpose := purposeOf(c.Kind); purpose != nil {
		value, err := asn1.Marshal([]asn1.ObjectIdentifier{purpose})
		if err != nil {
			return e, err
		}
		e.head = append(e.head, pkix.Extension{Id: oidExtKeyUsage, Value: value})
	}
	if c.Kind == KindResponder {
		// RFC 6960 §4.2.2.2.1: the responder's own status is not asked for, or that
		// would never end. Its life is short instead.
		e.head = append(e.head, pkix.Extension{Id: oidOCSPNoCheck, Value: []byte{5, 0}})
	}
	if c.Kind == KindIDevID {
		if e.hardwareType, err = parseOID(c.IDevID.HardwareType); err != nil {
			return e, err
		}
	}
	if len(c.CRLDistributionPoints) > 0 {
		value, err := distributionPoints(c.CRLDistributionPoints)
		if err != nil {
			return e, err
		}
		e.tail = append(e.tail, pkix.Extension{Id: oidCRLDistribution, Value: value})
	}
	if len(c.OCSP)+len(c.CAIssuers) > 0 {
		value, err := authorityInfo(c.OCSP, c.CAIssuers)
		if err != nil {
			return e, err
		}
		e.tail = append(e.tail, pkix.Extension{Id: oidAuthorityInfo, Value: value})
	}
	return e, nil
}

// purposeOf is the one extended key usage of a kind, nil for none: RFC 8995 §2.3
// wants an IDevID not limited.
func purposeOf(k Kind) asn1.ObjectIdentifier {
	switch k {
	case KindDevice:
		return oidClientAuth
	case KindServer:
		return oidServerAuth
	case KindResponder:
		return oidOCSPSigning
	case KindVerification:
		// Without any it would be good for all (RFC 5280 §4.2.1.12), a TLS client
		// among them, and brokers trust the CA that has signed it.
		return oidDocSigning
	case KindIDevID:
	}
	return nil
}

// distributionPoints encodes one DistributionPoint per URL, RFC 5280 §4.2.1.13.
func distributionPoints(urls []string) ([]byte, error) {
	var b cryptobyte.Builder
	name := cbasn1.Tag(0).ContextSpecific().Constructed()
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, u := range urls {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(name, func(b *cryptobyte.Builder) { // distributionPoint
					b.AddASN1(name, func(b *cryptobyte.Builder) { // fullName
						addString(b, tagURI, u)
					})
				})
			})
		}
	})
	return b.Bytes()
}

// authorityInfo encodes AuthorityInfoAccessSyntax, RFC 5280 §4.2.2.1.
func authorityInfo(ocsp, caIssuers []string) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		add := func(method asn1.ObjectIdentifier, urls []string) {
			for _, u := range urls {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(method)
					addString(b, tagURI, u)
				})
			}
		}
		add(oidOCSP, ocsp)
		add(oidCAIssuers, caIssuers)
	})
	return b.Bytes()
}

// authorityKeyExtension encodes an authority key identifier with keyIdentifier
// only, RFC 5280 §4.2.1.1.
func authorityKeyExtension(id []byte) (pkix.Extension, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(id) })
	})
	value, err := b.Bytes()
	return pkix.Extension{Id: oidAuthorityKeyID, Value: value}, err
}

// subjectKeyExtension encodes a subject key identifier, RFC 5280 §4.2.1.2.
func subjectKeyExtension(id []byte) (pkix.Extension, error) {
	var b cryptobyte.Builder
	b.AddASN1OctetString(id)
	value, err := b.Bytes()
	return pkix.Extension{Id: oidSubjectKeyID, Value: value}, err
}
