package rabbitmq

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // the name of a file, as OpenSSL and OTP make it
	"crypto/x509"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// crlName is the name of the file in which OTP looks for a CRL: the hash of the
// issuer's name as OpenSSL makes it (openssl crl -hash) and ".r0".
func crlName(der []byte) (string, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return "", fmt.Errorf("reading CRL: %w", err)
	}
	canon, err := canonicalName(list.RawIssuer)
	if err != nil {
		return "", err
	}
	sum := sha1.Sum(canon) //nolint:gosec // as above
	return fmt.Sprintf("%08x%s", binary.LittleEndian.Uint32(sum[:4]), crlSuffix), nil
}

// canonicalName is the canonical encoding of OpenSSL's X509_NAME (crypto/x509/x_name.c):
// the RDNs without the SEQUENCE around them, every text as UTF8String in lower case,
// without white space at its ends and with one space for any inside.
func canonicalName(raw []byte) ([]byte, error) {
	bad := fmt.Errorf("reading the name of a CRL's issuer: unexpected shape")
	in := cryptobyte.String(raw)
	var rdns cryptobyte.String
	if !in.ReadASN1(&rdns, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, bad
	}
	var out cryptobyte.Builder
	for !rdns.Empty() {
		var set cryptobyte.String
		if !rdns.ReadASN1(&set, cbasn1.SET) {
			return nil, bad
		}
		out.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
			for !set.Empty() {
				var attribute, value cryptobyte.String
				var oid cryptobyte.String
				var tag cbasn1.Tag
				if !set.ReadASN1(&attribute, cbasn1.SEQUENCE) || !attribute.ReadASN1Element(&oid, cbasn1.OBJECT_IDENTIFIER) || !attribute.ReadAnyASN1(&value, &tag) {
					b.SetError(bad)
					return
				}
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddBytes(oid)
					b.AddASN1(cbasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes(canonicalText(value)) })
				})
			}
		})
	}
	return out.Bytes()
}

// canonicalText lowers ASCII letters only, as OpenSSL does.
func canonicalText(s []byte) []byte {
	s = bytes.Join(bytes.FieldsFunc(s, func(r rune) bool { return r == ' ' || '\t' <= r && r <= '\r' }), []byte(" "))
	for i, c := range s {
		if 'A' <= c && c <= 'Z' {
			s[i] = c - 'A' + 'a'
		}
	}
	return s
}
