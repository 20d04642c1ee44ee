package ca

import (
	"encoding/asn1"
	"net"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// claimedNames returns the common name and the subject alternative names of a
// request, or refuses it. It is strict about shape and about what a name may
// hold, because two common names, or a NUL in one, are read differently by
// different readers: Go takes the last, Mosquitto the first.
func (c *certificationRequest) claimedNames() ([]string, *RequestError) {
	cn, refused := readCommonName(c.subject)
	if refused != nil {
		return nil, refused
	}
	names, refused := c.readAttributes()
	if refused != nil {
		return nil, refused
	}
	if cn != "" {
		names = append([]string{cn}, names...)
	}
	return names, nil
}

// readCommonName reads an RDNSequence and returns its common name, "" if it has
// none. All other attributes of the subject are dropped.
func readCommonName(subject cryptobyte.String) (string, *RequestError) {
	cn, n := "", 0
	for !subject.Empty() {
		if n++; n > maxRDNs {
			return "", refuse(BadName, "subject of more than %d parts", maxRDNs)
		}
		var set, pair, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		var tag cbasn1.Tag
		if !subject.ReadASN1(&set, cbasn1.SET) || !set.ReadASN1(&pair, cbasn1.SEQUENCE) ||
			!pair.ReadASN1ObjectIdentifier(&oid) || !pair.ReadAnyASN1(&value, &tag) || !pair.Empty() {
			return "", refuse(Malformed, "subject is not an RDNSequence in DER")
		}
		if !set.Empty() {
			return "", refuse(BadName, "subject has a part with several values")
		}
		if !oid.Equal(oidCommonName) {
			continue
		}
		if cn != "" {
			return "", refuse(BadName, "subject has two common names")
		}
		if tag != cbasn1.UTF8String && tag != cbasn1.PrintableString {
			return "", refuse(BadName, "common name is neither a UTF8String nor a PrintableString")
		}
		if len(value) == 0 || len(value) > maxCommonName || !printable(value) {
			return "", refuse(BadName, "common name, want 1 to %d printable ASCII characters", maxCommonName)
		}
		cn = string(value)
	}
	return cn, nil
}

// printable reports whether b is printable ASCII: no control characters, no
// direction marks, no look-alikes.
func printable(b []byte) bool {
	for _, c := range b {
		if c < 0x20 || c > 0x7e {
			return false
		}
	}
	return true
}

// readAttributes walks the attributes of a request (RFC 2986 §4.1) and returns
// the names in its extension request (RFC 2985 §5.4.2, of which there may be
// one). Of the other attributes two are noted, and the rest are dropped, whatever
// they are.
func (c *certificationRequest) readAttributes() ([]string, *RequestError) {
	var names []string
	seen := make(map[string]bool)
	attributes := c.attributes
	for n := 0; !attributes.Empty(); n++ {
		if n == maxAttributes {
			return nil, refuse(Malformed, "more than %d attributes", maxAttributes)
		}
		var attribute, values, first cryptobyte.String
		var oid asn1.ObjectIdentifier
		var tag cbasn1.Tag
		if !attributes.ReadASN1(&attribute, cbasn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) ||
			!attribute.ReadASN1(&values, cbasn1.SET) || !attribute.Empty() ||
			!values.ReadAnyASN1Element(&first, &tag) {
			return nil, refuse(Malformed, "an attribute is not in DER")
		}
		kind := attributeKind(oid)
		if kind == "" {
			continue
		}
		if seen[kind] || !values.Empty() {
			return nil, refuse(Malformed, "more than one %s", kind)
		}
		seen[kind] = true
		var refused *RequestError
		switch kind {
		case extensionRequest:
			names, refused = c.readExtensionRequest(first)
		case challengePassword:
			refused = c.readChallenge(first)
		case changeSubjectName:
			c.changeName = true
		}
		if refused != nil {
			return nil, refused
		}
	}
	return names, nil
}

// The attributes that are looked at.
const (
	extensionRequest  = "extension request"
	challengePassword = "challengePassword"
	changeSubjectName = "ChangeSubjectName"
)

func attributeKind(oid asn1.ObjectIdentifier) string {
	switch {
	case oid.Equal(oidExtensionRequest), oid.Equal(oidMicrosoftExtensions):
		return extensionRequest
	case oid.Equal(oidChallengePassword):
		return challengePassword
	case oid.Equal(oidChangeSubjectName):
		return changeSubjectName
	}
	return ""
}

// readChallenge reads a challengePassword (RFC 2985 §5.4.1): a DirectoryString of
// at most 255 characters.
func (c *certificationRequest) readChallenge(value cryptobyte.String) *RequestError {
	var text cryptobyte.String
	var tag cbasn1.Tag
	if !value.ReadAnyASN1(&text, &tag) || !value.Empty() {
		return refuse(Malformed, "challengePassword is not in DER")
	}
	switch tag {
	case cbasn1.PrintableString, cbasn1.UTF8String, cbasn1.IA5String, cbasn1.T61String:
	default:
		return refuse(Malformed, "challengePassword is not a string")
	}
	if len(text) == 0 || len(text) > maxChallenge || !printable(text) {
		return refuse(Malformed, "challengePassword, want 1 to %d printable ASCII characters", maxChallenge)
	}
	c.challenge = string(text)
	return nil
}

func (c *certificationRequest) readExtensionRequest(value cryptobyte.String) ([]string, *RequestError) {
	var extensions cryptobyte.String
	if !value.ReadASN1(&extensions, cbasn1.SEQUENCE) {
		return nil, refuse(Malformed, "extension request is not a SEQUENCE")
	}
	return c.readExtensions(extensions)
}

// readExtensions walks requested extensions and returns the subject alternative
// names. No extension may appear twice (RFC 5280 §4.2).
func (c *certificationRequest) readExtensions(extensions cryptobyte.String) ([]string, *RequestError) {
	var names []string
	seen := make(map[string]bool)
	for !extensions.Empty() {
		var extension, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		var critical bool
		if !extensions.ReadASN1(&extension, cbasn1.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&oid) ||
			extension.PeekASN1Tag(cbasn1.BOOLEAN) && !extension.ReadASN1Boolean(&critical) ||
			!extension.ReadASN1(&value, cbasn1.OCTET_STRING) || !extension.Empty() {
			return nil, refuse(Malformed, "an extension is not in DER")
		}
		if seen[oid.String()] {
			return nil, refuse(Malformed, "extension %s is there twice", clip(oid.String()))
		}
		if seen[oid.String()] = true; len(seen) > maxExtensions {
			return nil, refuse(Malformed, "more than %d extensions", maxExtensions)
		}
		if !oid.Equal(oidSubjectAltName) {
			continue
		}
		c.san = value
		var refused *RequestError
		if names, refused = readAltNames(value); refused != nil {
			return nil, refused
		}
	}
	return names, nil
}

// readAltNames reads GeneralNames (RFC 5280 §4.2.1.6). The forms that no
// certificate of imprint's can repeat are refused at once, so that they are not
// dropped in silence.
func readAltNames(value cryptobyte.String) ([]string, *RequestError) {
	var list cryptobyte.String
	if !value.ReadASN1(&list, cbasn1.SEQUENCE) || !value.Empty() || list.Empty() {
		return nil, refuse(Malformed, "subject alternative name is empty or not in DER")
	}
	var names []string
	for !list.Empty() {
		if len(names) == maxNames {
			return nil, refuse(TooManyNames, "more than %d subject alternative names", maxNames)
		}
		var name cryptobyte.String
		var tag cbasn1.Tag
		if !list.ReadAnyASN1(&name, &tag) {
			return nil, refuse(Malformed, "subject alternative name is not in DER")
		}
		switch tag {
		case tagEmail, tagDNS, tagURI:
			if len(name) == 0 || len(name) > 255 || !printable(name) {
				return nil, refuse(BadName, "a subject alternative name, want 1 to 255 printable ASCII characters")
			}
			names = append(names, string(name))
		case tagIP:
			if len(name) != net.IPv4len && len(name) != net.IPv6len {
				return nil, refuse(Malformed, "an IP address has 4 or 16 bytes")
			}
			names = append(names, net.IP(name).String())
		default:
			return nil, refuse(IdentityMismatch, "it asks for a subject alternative name of a form that is never issued on request")
		}
	}
	return names, nil
}
