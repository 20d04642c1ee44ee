package server

import (
	"encoding/asn1"

	"github.com/imprint-iot/imprint/ca"
)

// Object identifiers of RFC 5480, RFC 3279 and RFC 2985.
var (
	oidECKey     = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidP256      = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	oidP384      = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
	oidP521      = asn1.ObjectIdentifier{1, 3, 132, 0, 35}
	oidEd25519   = asn1.ObjectIdentifier{1, 3, 101, 112}
	oidRSA       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidChallenge = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
)

// An attribute is one element of CsrAttrs.
type attribute struct {
	Type   asn1.ObjectIdentifier
	Values []any `asn1:"set"`
}

// attributesFor encodes CsrAttrs: the kind of key wanted, the first that the
// profile allows, and challengePassword, which says that linking identity and
// proof of possession is understood.
func attributesFor(keys []ca.KeyAlgorithm) ([]byte, error) {
	elements := []any{oidChallenge}
	if len(keys) > 0 {
		switch keys[0] {
		case ca.P256:
			elements = append(elements, attribute{oidECKey, []any{oidP256}})
		case ca.P384:
			elements = append(elements, attribute{oidECKey, []any{oidP384}})
		case ca.P521:
			elements = append(elements, attribute{oidECKey, []any{oidP521}})
		case ca.Ed25519:
			elements = append(elements, oidEd25519)
		case ca.RSA2048:
			elements = append(elements, attribute{oidRSA, []any{2048}})
		case ca.RSA3072:
			elements = append(elements, attribute{oidRSA, []any{3072}})
		case ca.RSA4096:
			elements = append(elements, attribute{oidRSA, []any{4096}})
		}
	}
	var raws []asn1.RawValue
	for _, e := range elements {
		der, err := marshalAttribute(e)
		if err != nil {
			return nil, err
		}
		raws = append(raws, asn1.RawValue{FullBytes: der})
	}
	return asn1.Marshal(raws)
}

// marshalAttribute encodes an AttrOrOID. encoding/asn1 knows no SET OF any.
func marshalAttribute(e any) ([]byte, error) {
	a, ok := e.(attribute)
	if !ok {
		return asn1.Marshal(e)
	}
	var values []byte
	for _, v := range a.Values {
		der, err := asn1.Marshal(v)
		if err != nil {
			return nil, err
		}
		values = append(values, der...)
	}
	return asn1.Marshal(struct {
		Type   asn1.ObjectIdentifier
		Values asn1.RawValue
	}{a.Type, asn1.RawValue{Class: asn1.ClassUniversal, Tag: asn1.TagSet, IsCompound: true, Bytes: values}})
}
