package api

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"slices"
)

// EncodeLine returns the base64 form of EST (RFC 8951 §3.1) in the only shape
// that every client reads: one line, and one newline at its end. libest wants the
// newline, and strongSwan no other.
func EncodeLine(der []byte) []byte {
	b := base64.StdEncoding.AppendEncode(make([]byte, 0, base64.StdEncoding.EncodedLen(len(der))+1), der)
	return append(b, '\n')
}

// DecodeLine reads base64 as EST clients write it: in lines or not, with or
// without anything but its characters between them.
func DecodeLine(text []byte) ([]byte, error) {
	packed := slices.DeleteFunc(slices.Clone(text), func(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' })
	der := make([]byte, base64.StdEncoding.DecodedLen(len(packed)))
	n, err := base64.StdEncoding.Decode(der, packed)
	if err != nil || bytes.ContainsAny(packed, "\r\n") {
		return nil, errors.New("not base64")
	}
	return der[:n], nil
}

// Object identifiers of RFC 5652.
var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
)

type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"explicit,optional,tag:0"`
}

type signedData struct {
	Version      int
	Digests      []asn1.RawValue `asn1:"set"`
	Content      contentInfo
	Certificates asn1.RawValue   `asn1:"optional,tag:0"`
	CRLs         asn1.RawValue   `asn1:"optional,tag:1"`
	Signers      []asn1.RawValue `asn1:"set"`
}

// CertsOnly returns certificates as a "certs-only" CMC Simple PKI Response
// (RFC 7030 §4.1.3): a SignedData that signs nothing, DER.
func CertsOnly(ders ...[]byte) ([]byte, error) {
	inner, err := asn1.Marshal(signedData{
		Version: 1,
		Digests: []asn1.RawValue{},
		Content: contentInfo{Type: oidData},
		Certificates: asn1.RawValue{
			Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: bytes.Join(ders, nil),
		},
		Signers: []asn1.RawValue{},
	})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(contentInfo{
		Type:    oidSignedData,
		Content: asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: inner},
	})
}

// maxCertificates is how many certificates an answer may hold.
const maxCertificates = 64

// ParseCertsOnly reads what CertsOnly writes and returns the certificates, each
// in DER and not parsed.
func ParseCertsOnly(der []byte) ([][]byte, error) {
	bad := errors.New("not a certs-only SignedData")
	var outer contentInfo
	if rest, err := asn1.Unmarshal(der, &outer); err != nil || len(rest) > 0 || !outer.Type.Equal(oidSignedData) {
		return nil, bad
	}
	var inner signedData
	if rest, err := asn1.Unmarshal(outer.Content.Bytes, &inner); err != nil || len(rest) > 0 {
		return nil, bad
	}
	var out [][]byte
	for rest := inner.Certificates.Bytes; len(rest) > 0; {
		var c asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &c); err != nil || c.Tag != asn1.TagSequence || len(out) == maxCertificates {
			return nil, bad
		}
		out = append(out, c.FullBytes)
	}
	return out, nil
}
