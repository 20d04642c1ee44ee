package ca

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"
	"time"
)

// TestLintVerification: a proof of possession that could be used for anything else
// is not signed.
func TestLintVerification(t *testing.T) {
	i := internalIssuer(t)
	p, err := NewProfile(Config{Kind: KindVerification})
	if err != nil {
		t.Fatal(err)
	}
	key, err := GenerateKey(P256)
	if err != nil {
		t.Fatal(err)
	}
	req, err := NewRequest(key.Public(), p.KeyPolicy())
	if err != nil {
		t.Fatal(err)
	}
	s := Subject{ID: "dev-1"}
	for _, tt := range []struct {
		rule, what string
		id         asn1.ObjectIdentifier
		critical   bool
		value      []byte
	}{
		{"", "nothing", oidKeyUsage, true, []byte{3, 2, 7, 0x80}},
		{"extended-key-usage", "none", oidExtKeyUsage, false, nil},
		{"extended-key-usage", "clientAuth", oidExtKeyUsage, false, []byte{0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 2}},
		{"extended-key-usage", "clientAuth as well", oidExtKeyUsage, false, []byte{0x30, 20, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 36, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 2}},
		{"extended-key-usage", "OCSPSigning", oidExtKeyUsage, false, []byte{0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 9}},
		{"extended-key-usage", "another that Go does not know", oidExtKeyUsage, false, []byte{0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 37}},
		{"extended-key-usage", "any", oidExtKeyUsage, false, []byte{0x30, 6, 6, 4, 0x55, 0x1d, 0x25, 0}},
		{"extensions", "a name", oidSubjectAltName, false, []byte{0x30, 5, 0x86, 3, 'a', ':', 'b'}},
		{"basic-constraints", "CA:TRUE", oidBasicConstraints, true, []byte{0x30, 3, 1, 1, 0xff}},
	} {
		t.Run(tt.rule+"/"+tt.what, func(t *testing.T) {
			b, err := i.build(p, s, req, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			setExtension(b.template, pkix.Extension{Id: tt.id, Critical: tt.critical, Value: tt.value})
			d, err := i.draft(b.template, req.PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			checkRule(t, d.lint(p, s, req, b), tt.rule)
		})
	}
}
