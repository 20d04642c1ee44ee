package inventory

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// A DeviceID names one device. It is the common name of the device's
// certificates, its MQTT user name and a level of its topics, so its alphabet is
// what every broker reads the same way: 1 to 64 of [A-Za-z0-9_-], starting with
// a letter or a digit. IDs are unique ignoring case; the case given first is
// kept.
//
// The zero value is no device.
type DeviceID string

// maxDeviceID is the longest device ID in bytes. X.520 allows 64 characters for
// a common name (RFC 5280 appendix A, ub-common-name).
const maxDeviceID = 64

// reserved lists, in lower case, the names that a broker, an operating system or
// imprint itself gives a meaning of its own.
var reserved = map[string]bool{
	"admin": true, "administrator": true, "root": true, "anonymous": true, "guest": true,
	"system": true, "default": true, "imprint": true, "imprint-admin": true, "all": true,
	"con": true, "nul": true, "aux": true, "prn": true, "unknown": true, "none": true, "null": true,
	"com1": true, "com2": true, "com3": true, "com4": true, "com5": true, "com6": true, "com7": true, "com8": true, "com9": true,
	"lpt1": true, "lpt2": true, "lpt3": true, "lpt4": true, "lpt5": true, "lpt6": true, "lpt7": true, "lpt8": true, "lpt9": true,
}

// ParseDeviceID reads a device ID. Nothing is trimmed or replaced: what is not
// exactly an ID is refused with an [*InvalidError].
func ParseDeviceID(s string) (DeviceID, error) {
	if err := parseWord("device id", s); err != nil {
		return "", err
	}
	if reserved[strings.ToLower(s)] {
		return "", &InvalidError{Field: "device id", Value: s, Want: "a name that is not reserved"}
	}
	return DeviceID(s), nil
}

// Canonical is the form in which two IDs are compared: lower case.
func (id DeviceID) Canonical() string { return strings.ToLower(string(id)) }

// parseWord checks the alphabet that device IDs, groups, profile names and label
// keys share. The hint names the two characters that people use most.
func parseWord(field, s string) error {
	const want = "1 to 64 letters, digits, '-' or '_', starting with a letter or digit"
	if s == "" || len(s) > maxDeviceID || s[0] == '-' || s[0] == '_' {
		return &InvalidError{Field: field, Value: s, Want: want}
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == ':' || c == '.':
			return &InvalidError{Field: field, Value: s, Want: want + " (use '-' in place of '" + string(c) + "')"}
		default:
			return &InvalidError{Field: field, Value: s, Want: want}
		}
	}
	return nil
}

// A Serial is the serial number of a certificate: 16 octets, positive, big
// endian. The text form is 32 hexadecimal digits.
type Serial [16]byte

// String is the text form, lower-case hexadecimal.
func (s Serial) String() string { return hex.EncodeToString(s[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (s Serial) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// IsZero reports whether s is no serial number.
func (s Serial) IsZero() bool { return s == Serial{} }

// ParseSerial reads the text form: up to 32 hexadecimal digits, in either case,
// with or without the colons that OpenSSL prints.
func ParseSerial(text string) (Serial, error) {
	bad := &InvalidError{Field: "serial number", Value: text, Want: "up to 32 hexadecimal digits"}
	digits := strings.ReplaceAll(text, ":", "")
	if digits == "" || len(digits) > 2*len(Serial{}) {
		return Serial{}, bad
	}
	var s Serial
	raw, err := hex.DecodeString(strings.Repeat("0", 2*len(s)-len(digits)) + digits)
	if err != nil {
		return Serial{}, bad
	}
	copy(s[:], raw)
	return s, nil
}

// An SPKI is the SHA-256 hash of a DER SubjectPublicKeyInfo (RFC 5280 §4.1.2.7):
// it names a key pair. The text form is "spki-sha256:" and 64 hexadecimal digits,
// so that it cannot be taken for the fingerprint of a certificate.
type SPKI [sha256.Size]byte

const spkiPrefix = "spki-sha256:"

// String is the text form.
func (k SPKI) String() string { return spkiPrefix + hex.EncodeToString(k[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (k SPKI) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// IsZero reports whether k is no key.
func (k SPKI) IsZero() bool { return k == SPKI{} }

// ParseSPKI reads the text form.
func ParseSPKI(text string) (SPKI, error) {
	var k SPKI
	digits, ok := strings.CutPrefix(text, spkiPrefix)
	raw, err := hex.DecodeString(digits)
	if !ok || err != nil || len(raw) != len(k) {
		return SPKI{}, &InvalidError{Field: "key hash", Value: text, Want: spkiPrefix + " and 64 hexadecimal digits"}
	}
	copy(k[:], raw)
	return k, nil
}

// A Fingerprint is the SHA-256 hash of a whole certificate in DER.
type Fingerprint [sha256.Size]byte

// String is the text form: 64 hexadecimal digits.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// ParseGroup reads the name of a group, which has the alphabet of a device ID.
// The empty string is no group.
func ParseGroup(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	return s, parseWord("group", s)
}

// ParseProfileName reads the name of a device profile, which has the alphabet of
// a device ID.
func ParseProfileName(s string) (string, error) { return s, parseWord("profile", s) }

// ParseInstance reads an instance ID: 32 hexadecimal digits, as in a UUID
// without dashes.
func ParseInstance(s string) ([16]byte, error) {
	var id [16]byte
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(id) {
		return id, fmt.Errorf("instance id: %w", &InvalidError{Field: "instance id", Value: s, Want: "32 hexadecimal digits"})
	}
	copy(id[:], raw)
	return id, nil
}
