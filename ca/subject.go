package ca

import (
	"encoding/asn1"
	"fmt"
	"net"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// A Subject says whom an end-entity certificate names. It comes from the
// inventory, never from a request.
type Subject struct {
	// ID becomes the common name, which is the last and only one in the subject.
	// For a device: a letter or digit, then letters, digits, '-' or '_', at most
	// 64 in all; every other character breaks some broker. For a server: a host
	// name or an address. For a verification: the code, 1 to 64 letters, digits,
	// '.', '-' or '_'.
	ID string

	// Organization becomes O; if empty there is none. Letters, digits, spaces and
	// .-_&'() only, at most 64 characters.
	Organization string

	// TrustDomain is the SPIFFE trust domain of the fleet, in lower case. Needed
	// if the profile's SAN URI has it.
	TrustDomain string

	// HardwareSerial is for an IDevID, which needs it: the X.520 serialNumber and
	// the hwSerialNum (its ASCII octets). PrintableString, 1 to 64 characters.
	HardwareSerial string

	// DNSNames and IPAddresses are for a server, which needs one of them; at most
	// 100 in all. No wildcards.
	DNSNames    []string
	IPAddresses []net.IP
}

const maxServerNames = 100

// check checks s against what p needs. The error is a [*ConfigError].
func (s Subject) check(p *Profile) error {
	if s.Organization != "" {
		if err := checkOrganization(s.Organization, 64); err != nil {
			return err
		}
	}
	switch p.config.Kind {
	case KindServer:
		return s.checkServer()
	case KindIDevID:
		if !isPrintableString(s.HardwareSerial) || s.HardwareSerial == "" || len(s.HardwareSerial) > 64 {
			return badConfig("hardware serial", s.HardwareSerial, "1 to 64 characters of PrintableString")
		}
	case KindVerification:
		return CheckCode(s.ID)
	case KindResponder:
	case KindDevice:
		if strings.Contains(p.config.SANURI, "{trust-domain}") && !isTrustDomain(s.TrustDomain) {
			return badConfig("trust domain", s.TrustDomain, "1 to 255 lower-case letters, digits, '.', '-' or '_'")
		}
	}
	if !isDeviceID(s.ID) {
		return badConfig("id", s.ID, "1 to 64 letters, digits, '-' or '_', starting with a letter or digit")
	}
	return nil
}

func (s Subject) checkServer() error {
	if !isHostName(s.ID) && net.ParseIP(s.ID) == nil || len(s.ID) > maxCommonName {
		return badConfig("id", s.ID, "a host name or an address of at most 64 characters")
	}
	if n := len(s.DNSNames) + len(s.IPAddresses); n == 0 || n > maxServerNames {
		return badConfig("names of a server", fmt.Sprint(n), "1 to 100 DNS names and addresses")
	}
	for _, name := range s.DNSNames {
		if !isHostName(name) {
			return badConfig("DNS name", name, "a host name without wildcard")
		}
	}
	for _, ip := range s.IPAddresses {
		if ip.To16() == nil {
			return badConfig("address", ip.String(), "an IPv4 or IPv6 address")
		}
	}
	return nil
}

// checkOrganization keeps out what text forms of a name would quote differently
// (RFC 4514 §2.4), and what a reader cannot see.
func checkOrganization(s string, limit int) error {
	ok := s != "" && utf8.ValidString(s) && utf8.RuneCountInString(s) <= limit && strings.TrimSpace(s) == s
	for _, r := range s {
		ok = ok && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune(" .-_&'()", r))
	}
	if !ok {
		return badConfig("organization", s, fmt.Sprintf("1 to %d letters, digits, spaces or .-_&'()", limit))
	}
	return nil
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func isDeviceID(s string) bool {
	if len(s) == 0 || len(s) > 64 || !isAlnum(s[0]) {
		return false
	}
	for i := range len(s) {
		if !isAlnum(s[i]) && s[i] != '-' && s[i] != '_' {
			return false
		}
	}
	return true
}

// CheckCode checks the code of a [KindVerification]: 1 to 64 letters, digits, '.', '-'
// or '_'. AWS IoT Core gives 64 hexadecimal digits, which is as long as a common name
// can be (ub-common-name, RFC 5280 appendix A.1), and Azure 48. The error is a
// [*ConfigError].
func CheckCode(code string) error {
	ok := code != "" && len(code) <= maxCommonName
	for i := range len(code) {
		ok = ok && (isAlnum(code[i]) || strings.IndexByte(".-_", code[i]) >= 0)
	}
	if !ok {
		return badConfig("code", code, "1 to 64 letters, digits, '.', '-' or '_'")
	}
	return nil
}

// isTrustDomain is the grammar of the SPIFFE ID specification §2.1.
func isTrustDomain(s string) bool {
	if len(s) == 0 || len(s) > 255 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && !strings.ContainsRune(".-_", rune(c)) || c >= 'A' && c <= 'Z' {
			return false
		}
	}
	return true
}

// isHostName is the preferred name syntax of RFC 1034 §3.5, as RFC 5280 §4.2.1.6
// wants it in a dNSName. An address is none.
func isHostName(s string) bool {
	if len(s) == 0 || len(s) > 253 || net.ParseIP(s) != nil {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 || !isAlnum(label[0]) || !isAlnum(label[len(label)-1]) {
			return false
		}
		for i := range len(label) {
			if !isAlnum(label[i]) && label[i] != '-' {
				return false
			}
		}
	}
	return true
}

// isPrintableString is the alphabet of X.680 §41.4.
func isPrintableString(s string) bool {
	for i := range len(s) {
		if !isAlnum(s[i]) && !strings.ContainsRune(" '()+,-./:=?", rune(s[i])) {
			return false
		}
	}
	return true
}

// A rdn is one relative distinguished name with one value.
type rdn struct {
	oid   asn1.ObjectIdentifier
	tag   cbasn1.Tag
	value string
}

// name returns the subject in DER: O if there is one, the serial number of an
// IDevID, and the common name last, which is where Go looks, and only once, so
// that everybody else finds the same.
func (s Subject) name(k Kind) ([]byte, error) {
	var parts []rdn
	if s.Organization != "" {
		parts = append(parts, rdn{oidOrganization, cbasn1.UTF8String, s.Organization})
	}
	if k == KindIDevID {
		parts = append(parts, rdn{oidSerialNumber, cbasn1.PrintableString, s.HardwareSerial})
	}
	return encodeName(append(parts, rdn{oidCommonName, cbasn1.UTF8String, s.ID}))
}

func encodeName(parts []rdn) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, p := range parts {
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(p.oid)
					addString(b, p.tag, p.value)
				})
			})
		}
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding a name: %w", err)
	}
	return der, nil
}
