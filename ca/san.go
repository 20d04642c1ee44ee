package ca

import (
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// parseOID reads an object identifier in dotted form, with 3 to 20 arcs.
func parseOID(s string) (asn1.ObjectIdentifier, error) {
	arcs := strings.Split(s, ".")
	if len(arcs) < 3 || len(arcs) > 20 {
		return nil, errors.New("not an object identifier")
	}
	oid := make(asn1.ObjectIdentifier, len(arcs))
	for i, a := range arcs {
		n, err := strconv.ParseInt(a, 10, 32)
		if err != nil || n < 0 || strconv.FormatInt(n, 10) != a {
			return nil, fmt.Errorf("arc %d is not a number", i+1)
		}
		oid[i] = int(n)
	}
	if oid[0] > 2 || oid[0] < 2 && oid[1] > 39 {
		return nil, errors.New("no such root of object identifiers")
	}
	return oid, nil
}

// altNames returns the value of the subject alternative name extension, nil if
// the certificate has none. It is encoded here, because crypto/x509 knows no
// other names, and the encoding of hardwareModuleName in common libraries (an
// implicit tag on hwSerialNum) makes Mbed TLS and wolfSSL refuse the certificate.
func altNames(p *Profile, s Subject) ([]byte, error) {
	var b cryptobyte.Builder
	none := false
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		switch p.config.Kind {
		case KindDevice:
			if none = p.config.SANURI == noSANURI; none {
				return
			}
			addString(b, tagURI, fillSANURI(p.config.SANURI, s.ID, s.TrustDomain))
		case KindServer:
			for _, name := range s.DNSNames {
				addString(b, tagDNS, name)
			}
			for _, ip := range s.IPAddresses {
				b.AddASN1(tagIP, func(b *cryptobyte.Builder) { b.AddBytes(shortIP(ip)) })
			}
		case KindResponder, KindVerification:
			none = true
		case KindIDevID:
			addHardwareModuleName(b, p.extensions.hardwareType, []byte(s.HardwareSerial))
			if p.config.IDevID.PermanentIdentifier {
				addPermanentIdentifier(b, p.extensions.hardwareType, s.HardwareSerial)
			}
		}
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding subject alternative name: %w", err)
	}
	if none {
		return nil, nil
	}
	return der, nil
}

// shortIP returns an address in 4 bytes if it is an IPv4 address: RFC 5280
// §4.2.1.6 knows no mapped form.
func shortIP(ip net.IP) net.IP {
	if v4 := ip.To4(); v4 != nil {
		return v4
	}
	return ip
}

func addString(b *cryptobyte.Builder, tag cbasn1.Tag, s string) {
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes([]byte(s)) })
}

// addHardwareModuleName writes RFC 4108 §5:
//
//	HardwareModuleName ::= SEQUENCE {
//	    hwType OBJECT IDENTIFIER,
//	    hwSerialNum OCTET STRING }
func addHardwareModuleName(b *cryptobyte.Builder, hwType asn1.ObjectIdentifier, serial []byte) {
	addOtherName(b, oidHardwareModuleName, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(hwType)
		b.AddASN1OctetString(serial)
	})
}

// addPermanentIdentifier writes RFC 4043 §2:
//
//	PermanentIdentifier ::= SEQUENCE {
//	    identifierValue UTF8String OPTIONAL,
//	    assigner OBJECT IDENTIFIER OPTIONAL }
func addPermanentIdentifier(b *cryptobyte.Builder, assigner asn1.ObjectIdentifier, value string) {
	addOtherName(b, oidPermanentIdentifier, func(b *cryptobyte.Builder) {
		addString(b, cbasn1.UTF8String, value)
		b.AddASN1ObjectIdentifier(assigner)
	})
}

// addOtherName writes the otherName choice of GeneralName, RFC 5280 §4.2.1.6.
func addOtherName(b *cryptobyte.Builder, id asn1.ObjectIdentifier, sequence cryptobyte.BuilderContinuation) {
	b.AddASN1(tagOtherName, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(id)
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, sequence)
		})
	})
}
