package ca

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/url"
	"testing"
	"time"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

func internalIssuer(t testing.TB) *Issuer {
	t.Helper()
	key := func() crypto.Signer {
		k, err := GenerateKey(P256)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	rootKey, deviceKey := key(), key()
	config := AuthorityConfig{Organization: "Acme", Generation: 1}
	rootDER, err := NewRoot(rootKey, config)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(rootDER)
	if err != nil {
		t.Fatal(err)
	}
	config.Purpose = PurposeDevice
	csr, err := NewIntermediateRequest(deviceKey, config)
	if err != nil {
		t.Fatal(err)
	}
	der, err := SignIntermediate(root, rootKey, csr, config)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	i, err := NewIssuer(cert, deviceKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// setExtension replaces, adds or (with a nil value) removes an extension.
func setExtension(c *x509.Certificate, e pkix.Extension) {
	var out []pkix.Extension
	for _, have := range c.ExtraExtensions {
		if !have.Id.Equal(e.Id) {
			out = append(out, have)
		}
	}
	if e.Value != nil {
		out = append(out, e)
	}
	c.ExtraExtensions = out
}

// TestLint builds what the builder never builds, one mistake at a time: iss-021
// and I7. Every mistake is seen, by the rule that is about it.
func TestLint(t *testing.T) {
	i := internalIssuer(t)
	p, err := NewProfile(Config{CRLDistributionPoints: []string{"http://a.example/crl"}})
	if err != nil {
		t.Fatal(err)
	}
	s := Subject{ID: "dev-1", Organization: "Acme", TrustDomain: "acme.example"}
	key, err := GenerateKey(P256)
	if err != nil {
		t.Fatal(err)
	}
	other, err := GenerateKey(P256)
	if err != nil {
		t.Fatal(err)
	}
	req, err := NewRequest(key.Public(), p.KeyPolicy())
	if err != nil {
		t.Fatal(err)
	}
	text := func(id asn1.ObjectIdentifier, v string) rdn { return rdn{id, cbasn1.UTF8String, v} }
	subject := func(parts ...rdn) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			if c.RawSubject, err = encodeName(parts); err != nil {
				t.Fatal(err)
			}
		}
	}
	raw := func(id asn1.ObjectIdentifier, critical bool, value []byte) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			setExtension(c, pkix.Extension{Id: id, Critical: critical, Value: value})
		}
	}
	o := text(oidOrganization, "Acme")
	for _, tt := range []struct {
		rule, what string
		change     func(*x509.Certificate)
	}{
		{"", "nothing", func(*x509.Certificate) {}},
		{"serial-number", "zero", func(c *x509.Certificate) { c.SerialNumber = new(big.Int) }},
		{"serial-number", "one", func(c *x509.Certificate) { c.SerialNumber = big.NewInt(1) }},
		{"serial-number", "17 octets", func(c *x509.Certificate) { c.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 127) }},
		{"serial-number", "another", func(c *x509.Certificate) { c.SerialNumber = new(big.Int).Xor(c.SerialNumber, big.NewInt(1)) }},
		{"subject", "two common names", subject(o, text(oidCommonName, "admin"), text(oidCommonName, "dev-1"))},
		{"common-name", "a second one behind", subject(o, text(oidCommonName, "dev-1"), text(oidCommonName, "admin"))},
		{"subject", "common name not last", subject(text(oidCommonName, "dev-1"), o)},
		{"subject", "somebody else", subject(o, text(oidCommonName, "dev-2"))},
		{"subject", "NUL", subject(o, text(oidCommonName, "dev-1\x00"))},
		{"subject", "no common name", subject(o)},
		{"subject", "as a T61String", subject(o, rdn{oidCommonName, 20, "dev-1"})},
		{"validity", "one second too long", func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(time.Second) }},
		{"validity", "one second too early", func(c *x509.Certificate) { c.NotBefore = c.NotBefore.Add(-time.Second) }},
		{"validity", "before its issuer", func(c *x509.Certificate) {
			c.NotBefore = i.cert.NotBefore.Add(-time.Second)
			c.NotAfter = c.NotBefore.Add(time.Hour)
		}},
		{"validity", "after its issuer", func(c *x509.Certificate) {
			c.NotAfter = i.cert.NotAfter.Add(time.Second)
			c.NotBefore = c.NotAfter.Add(-time.Hour)
		}},
		{"validity", "ends before it begins", func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(-time.Second) }},
		{"key-usage", "none", raw(oidKeyUsage, true, nil)},
		{"key-usage", "keyCertSign as well", raw(oidKeyUsage, true, []byte{3, 2, 2, 0x84})},
		{"extensions", "key usage not critical", raw(oidKeyUsage, false, []byte{3, 2, 7, 0x80})},
		{"basic-constraints", "none", raw(oidBasicConstraints, true, nil)},
		{"basic-constraints", "CA:TRUE", raw(oidBasicConstraints, true, []byte{0x30, 3, 1, 1, 0xff})},
		{"extended-key-usage", "none", raw(oidExtKeyUsage, false, nil)},
		{"extended-key-usage", "serverAuth", raw(oidExtKeyUsage, false, []byte{0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1})},
		{"extended-key-usage", "any", raw(oidExtKeyUsage, false, []byte{0x30, 6, 6, 4, 0x55, 0x1d, 0x25, 0})},
		{"subject-alternative-name", "somebody else", raw(oidSubjectAltName, false, []byte{0x30, 5, 0x86, 3, 'a', ':', 'b'})},
		{"subject-alternative-name", "none", raw(oidSubjectAltName, false, nil)},
		{"subject-alternative-name", "a DNS name", raw(oidSubjectAltName, false, []byte{0x30, 3, 0x82, 1, 'a'})},
		{"authority-key-identifier", "another", raw(oidAuthorityKeyID, false, []byte{0x30, 3, 0x80, 1, 9})},
		{"subject-key-identifier", "another", raw(oidSubjectKeyID, false, []byte{4, 1, 9})},
		{"subject-key-identifier", "none", raw(oidSubjectKeyID, false, nil)},
		{"extensions", "other URLs", raw(oidCRLDistribution, false, nil)},
		{"extensions", "name constraints", raw(asn1.ObjectIdentifier{2, 5, 29, 30}, false, []byte{0x30, 7, 0xa0, 5, 0x30, 3, 0x82, 1, 'a'})},
		{"extensions", "an unknown one", raw(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 1}, false, []byte{5, 0})},
		{"extensions", "an unknown critical one", raw(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 1}, true, []byte{5, 0})},
		{"encoding", "an extension twice", func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, c.ExtraExtensions[0]) }},
		{"extensions", "URIs besides", func(c *x509.Certificate) {
			c.IssuingCertificateURL = []string{"http://evil.example/"}
			c.URIs = []*url.URL{}
		}},
	} {
		t.Run(tt.rule+"/"+tt.what, func(t *testing.T) {
			b, err := i.build(p, s, req, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			tt.change(b.template)
			d, err := i.draft(b.template, req.PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			checkRule(t, d.lint(p, s, req, b), tt.rule)
		})
	}
	t.Run("public-key/another", func(t *testing.T) {
		b, err := i.build(p, s, req, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		d, err := i.draft(b.template, other.Public())
		if err != nil {
			t.Fatal(err)
		}
		checkRule(t, d.lint(p, s, req, b), "public-key")
	})
}

func checkRule(t *testing.T, err error, rule string) {
	t.Helper()
	if rule == "" {
		if err != nil {
			t.Errorf("lint = %v, want no error", err)
		}
		return
	}
	if lint, ok := errors.AsType[*LintError](err); !ok || lint.Rule != rule {
		t.Errorf("lint = %v, want rule %s", err, rule)
	}
}

// iss-021: what is signed is what was linted, byte for byte.
func TestSignedIsLinted(t *testing.T) {
	i := internalIssuer(t)
	p, err := NewProfile(Config{})
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
	d, err := i.Prepare(p, Subject{ID: "dev-1", TrustDomain: "a"}, req)
	if err != nil {
		t.Fatal(err)
	}
	linted := string(d.tbs)
	der, err := d.Sign()
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if string(c.RawTBSCertificate) != linted {
		t.Errorf("signed  %x\nlinted %x", c.RawTBSCertificate, linted)
	}
	if err := c.CheckSignatureFrom(i.cert); err != nil {
		t.Error(err)
	}
}

// iss-011, iss-013: serial numbers are 16 octets, positive, and never the same;
// every bit but the first is as often 0 as 1.
func TestSerials(t *testing.T) {
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	seen := make(map[[16]byte]struct{}, n)
	var counts [16][256]int
	for range n {
		s, err := newSerial()
		if err != nil {
			t.Fatal(err)
		}
		if s[0] == 0 || s[0] > 0x7f {
			t.Fatalf("serial number %x is not 16 octets and positive", s)
		}
		seen[s] = struct{}{}
		for i, octet := range s {
			counts[i][octet]++
		}
	}
	if len(seen) != n {
		t.Errorf("%d of %d serial numbers are repeated", n-len(seen), n)
	}
	// A fair coin is more than 7 standard deviations off once in 10^11. Without
	// the first octet 0 the others of that octet are 64 in 127.
	for bit := range 128 {
		got := 0
		for octet, n := range counts[bit/8] {
			got += n * (octet >> (7 - bit%8) & 1)
		}
		want := float64(n) / 2
		if bit < 8 {
			want = float64(n) * 64 / 127
		}
		if bit == 0 {
			want = 0
		}
		if d := float64(got) - want; d*d > 49*float64(n)/4 {
			t.Errorf("bit %d is set in %d of %d", bit, got, n)
		}
	}
}
