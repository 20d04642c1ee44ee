package ca_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
)

// A csrCase is a hostile request. With want "" it must pass.
type csrCase struct {
	id, what string
	data     []byte
	policy   ca.KeyPolicy
	want     ca.Reason
}

func runCSRCases(t *testing.T, cases []csrCase) {
	t.Helper()
	for _, tt := range cases {
		t.Run(tt.id+"/"+tt.what, func(t *testing.T) {
			req, err := ca.ParseRequest(bytes.Clone(tt.data), tt.policy)
			if tt.want == "" {
				if err != nil {
					t.Fatalf("ParseRequest = %v, want no error", err)
				}
				if req.PublicKey == nil || req.SPKI == [32]byte{} {
					t.Errorf("the request has no key: %+v", req)
				}
				return
			}
			refused, ok := errors.AsType[*ca.RequestError](err)
			if !ok {
				t.Fatalf("ParseRequest = %v, %v, want a *RequestError", req, err)
			}
			if refused.Reason != tt.want {
				t.Errorf("Reason = %q, want %q (%v)", refused.Reason, tt.want, err)
			}
			if req != nil {
				t.Errorf("a refused request is returned: %+v", req)
			}
		})
	}
}

func TestParseRequestKeys(t *testing.T) {
	p256, p384, p521 := catest.Key(t, ca.P256), catest.Key(t, ca.P384), catest.Key(t, ca.P521)
	ed, rsa2048 := catest.Key(t, ca.Ed25519), rsaKey(t, 2048)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	withSPKI := func(spki []byte) []byte { return hostile{key: p256, spki: spki}.der(t) }
	curve := func(arcs ...int) []byte {
		return withSPKI(spki(seq(oid(1, 2, 840, 10045, 2, 1), oid(arcs...)), append([]byte{4}, make([]byte, 64)...)))
	}
	algorithm := func(arcs ...int) []byte { return withSPKI(spki(seq(oid(arcs...)), make([]byte, 64))) }
	small := func(point string) []byte {
		raw, err := hex.DecodeString(point)
		if err != nil {
			t.Fatal(err)
		}
		return withSPKI(spki(seq(oid(1, 3, 101, 112)), raw))
	}
	withFactor := new(big.Int).Mul(oddNumber(t, 2038), big.NewInt(743))
	other := hostile{key: p256, spki: mustSPKI(t, catest.Key(t, ca.P256).Public())}

	runCSRCases(t, []csrCase{
		{"csr-001", "P-256", catest.CSR(t, p256, "dev-1"), ca.KeyPolicy{}, ""},
		{"csr-001", "P-384", catest.CSR(t, p384, "dev-1"), ca.KeyPolicy{}, ""},
		{"csr-001", "Ed25519 where allowed", catest.CSR(t, ed, "dev-1"), ca.AnyKey(), ""},
		{"csr-001", "RSA-2048 where allowed", catest.CSR(t, rsa2048, "dev-1"), ca.AnyKey(), ""},
		{"csr-001", "RSA-2048 by default", catest.CSR(t, rsa2048, "dev-1"), ca.KeyPolicy{}, ca.KeyType},
		{"csr-001", "Ed25519 by default", catest.CSR(t, ed, "dev-1"), ca.KeyPolicy{}, ca.KeyType},
		{"csr-003", "signed by another key", other.der(t), ca.KeyPolicy{}, ca.BadSignature},
		{"csr-004", "RSA-1024", withSPKI(rsaSPKI(oddNumber(t, 1024), 65537)), ca.AnyKey(), ca.WeakKey},
		{"csr-004", "RSA-1024, RSA not allowed at all", withSPKI(rsaSPKI(oddNumber(t, 1024), 65537)), ca.KeyPolicy{}, ca.WeakKey},
		{"csr-005", "RSA-512", withSPKI(rsaSPKI(oddNumber(t, 512), 65537)), ca.AnyKey(), ca.WeakKey},
		{"csr-005", "RSA-768", withSPKI(rsaSPKI(oddNumber(t, 768), 65537)), ca.AnyKey(), ca.WeakKey},
		{"csr-005", "RSA-2049", withSPKI(rsaSPKI(oddNumber(t, 2049), 65537)), ca.AnyKey(), ca.KeyType},
		{"csr-007", "exponent 1", withSPKI(rsaSPKI(rsa2048.N, 1)), ca.AnyKey(), ca.WeakKey},
		{"csr-007", "exponent 3", withSPKI(rsaSPKI(rsa2048.N, 3)), ca.AnyKey(), ca.WeakKey},
		{"csr-007", "even exponent", withSPKI(rsaSPKI(rsa2048.N, 65536)), ca.AnyKey(), ca.WeakKey},
		{"csr-007", "even modulus", withSPKI(rsaSPKI(new(big.Int).Sub(rsa2048.N, big.NewInt(1)), 65537)), ca.AnyKey(), ca.WeakKey},
		{"csr-010", "RSA-16384", withSPKI(rsaSPKI(oddNumber(t, 16384), 65537)), ca.AnyKey(), ca.WeakKey},
		{"csr-011", "RSA-65536", withSPKI(rsaSPKI(oddNumber(t, 65536), 65537)), ca.AnyKey(), ca.WeakKey},
		{"csr-012", "RSA of 1,048,576 bits", withSPKI(rsaSPKI(oddNumber(t, 1048576), 65537)), ca.AnyKey(), ca.TooLarge},
		{"csr-013", "divisible by 743", withSPKI(rsaSPKI(withFactor, 65537)), ca.AnyKey(), ca.WeakKey},
		{"csr-015", "ROCA", withSPKI(rsaSPKI(rocaModulus(t), 65537)), ca.AnyKey(), ca.WeakKey},
		{"csr-017", "P-224", mustCSR(t, p224), ca.AnyKey(), ca.WeakKey},
		{"csr-018", "P-521 by default", catest.CSR(t, p521, ""), ca.KeyPolicy{}, ca.KeyType},
		{"csr-018", "P-521 where allowed", catest.CSR(t, p521, ""), ca.AnyKey(), ""},
		{"csr-020", "DSA", algorithm(1, 2, 840, 10040, 4, 1), ca.AnyKey(), ca.KeyType},
		{"csr-020", "GOST R 34.10-2012", algorithm(1, 2, 643, 7, 1, 1, 1, 1), ca.AnyKey(), ca.KeyType},
		{"csr-020", "SM2", curve(1, 2, 156, 10197, 1, 301), ca.AnyKey(), ca.KeyType},
		{"csr-020", "secp256k1", curve(1, 3, 132, 0, 10), ca.AnyKey(), ca.KeyType},
		{"csr-020", "brainpoolP256r1", curve(1, 3, 36, 3, 3, 2, 8, 1, 1, 7), ca.AnyKey(), ca.KeyType},
		{"csr-020", "explicit curve", withSPKI(spki(seq(oid(1, 2, 840, 10045, 2, 1), seq()), make([]byte, 65))), ca.AnyKey(), ca.KeyType},
		{"csr-020", "point not on the curve", curve(1, 2, 840, 10045, 3, 1, 7), ca.AnyKey(), ca.Malformed},
		{"csr-020", "Ed25519 point of order 1", withSPKI(spki(seq(oid(1, 3, 101, 112)), append([]byte{1}, make([]byte, 31)...))), ca.AnyKey(), ca.WeakKey},
		{"csr-020", "Ed25519 point of order 2", small("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"), ca.AnyKey(), ca.WeakKey},
		{"csr-020", "Ed25519 point of order 4", small("0000000000000000000000000000000000000000000000000000000000000080"), ca.AnyKey(), ca.WeakKey},
		{"csr-020", "Ed25519 point of order 8", small("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), ca.AnyKey(), ca.WeakKey},
		{"csr-020", "Ed25519 point of order 8, the other", small("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), ca.AnyKey(), ca.WeakKey},
		{"csr-020", "Ed25519 point of order 1, not canonical", small("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"), ca.AnyKey(), ca.WeakKey},
		{"csr-022", "ML-DSA-44", algorithm(2, 16, 840, 1, 101, 3, 4, 3, 17), ca.AnyKey(), ca.KeyType},
		{"csr-022", "X25519", algorithm(1, 3, 101, 110), ca.AnyKey(), ca.KeyType},
		{"csr-022", "no such algorithm", algorithm(1, 3, 6, 1, 4, 1, 32473, 1), ca.AnyKey(), ca.KeyType},
	})
}

func mustSPKI(t testing.TB, pub any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestParseRequestSignatures(t *testing.T) {
	p256, rsa2048 := catest.Key(t, ca.P256), rsaKey(t, 2048)
	null := []byte{5, 0}
	pss := func(alg x509.SignatureAlgorithm) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{SignatureAlgorithm: alg}, rsa2048)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	with := func(alg []byte) []byte { return hostile{key: rsa2048, alg: alg, sig: make([]byte, 256)}.der(t) }
	runCSRCases(t, []csrCase{
		{"csr-024", "MD5", with(seq(oid(1, 2, 840, 113549, 1, 1, 4), null)), ca.AnyKey(), ca.WeakSignature},
		{"csr-024", "MD2", with(seq(oid(1, 2, 840, 113549, 1, 1, 2), null)), ca.AnyKey(), ca.WeakSignature},
		{"csr-024", "SHA-1", with(seq(oid(1, 2, 840, 113549, 1, 1, 5), null)), ca.AnyKey(), ca.WeakSignature},
		{"csr-024", "ECDSA with SHA-1", hostile{key: p256, alg: seq(oid(1, 2, 840, 10045, 4, 1))}.der(t), ca.AnyKey(), ca.WeakSignature},
		{"csr-024", "PSS with no parameters", with(seq(oid(1, 2, 840, 113549, 1, 1, 10))), ca.AnyKey(), ca.WeakSignature},
		{"csr-024", "PSS with its default, SHA-1", with(seq(oid(1, 2, 840, 113549, 1, 1, 10), seq())), ca.AnyKey(), ca.WeakSignature},
		{"csr-024", "PSS with SHA-256", pss(x509.SHA256WithRSAPSS), ca.AnyKey(), ""},
		{"csr-024", "PSS with SHA-384", pss(x509.SHA384WithRSAPSS), ca.AnyKey(), ""},
		{"csr-024", "PSS with SHA-512", pss(x509.SHA512WithRSAPSS), ca.AnyKey(), ""},
		{"csr-024", "PKCS #1 with SHA-512", pss(x509.SHA512WithRSA), ca.AnyKey(), ""},
		{"csr-025", "RSA algorithm, ECDSA key", hostile{key: p256, alg: seq(oid(1, 2, 840, 113549, 1, 1, 11), null)}.der(t), ca.AnyKey(), ca.BadSignature},
		{"csr-025", "ECDSA algorithm, RSA key", with(seq(oid(1, 2, 840, 10045, 4, 3, 2))), ca.AnyKey(), ca.BadSignature},
		{"csr-025", "Ed25519 algorithm, RSA key", with(seq(oid(1, 3, 101, 112))), ca.AnyKey(), ca.BadSignature},
		{"csr-025", "an algorithm nobody knows", with(seq(oid(1, 3, 6, 1, 4, 1, 32473, 1))), ca.AnyKey(), ca.BadSignature},
		{"csr-025", "ECDSA with parameters", hostile{key: p256, alg: seq(oid(1, 2, 840, 10045, 4, 3, 2), null)}.der(t), ca.AnyKey(), ca.BadSignature},
	})
}

// What a request asks for beyond its key is not in Request, so it cannot be
// copied. It does not spoil the request either.
func TestParseRequestDropsExtensions(t *testing.T) {
	key := catest.Key(t, ca.P256)
	yes := []byte{1, 1, 0xff}
	purposes := seq(oid(1, 3, 6, 1, 5, 5, 7, 3, 1), oid(2, 5, 29, 37, 0), oid(1, 3, 6, 1, 5, 5, 7, 3, 3))
	attrs := map[string][]byte{
		"csr-026/CA:TRUE":                     extension(oid(2, 5, 29, 19), seq(yes)),
		"csr-026/CA:TRUE, critical":           seq(oid(2, 5, 29, 19), yes, tlv(4, seq(yes))),
		"csr-027/keyCertSign and cRLSign":     extension(oid(2, 5, 29, 15), []byte{3, 2, 1, 6}),
		"csr-028/serverAuth, any, codeSign":   extension(oid(2, 5, 29, 37), purposes),
		"csr-029/nameConstraints":             extension(oid(2, 5, 29, 30), seq()),
		"csr-029/policyMappings":              extension(oid(2, 5, 29, 33), seq()),
		"csr-029/subjectInfoAccess":           extension(oid(1, 3, 6, 1, 5, 5, 7, 1, 11), seq()),
		"csr-029/SCT list":                    extension(oid(1, 3, 6, 1, 4, 1, 11129, 2, 4, 2), tlv(4, nil)),
		"csr-029/must-staple":                 extension(oid(1, 3, 6, 1, 5, 5, 7, 1, 24), seq([]byte{2, 1, 5})),
		"csr-032/SAN of the same device":      san(dns("dev-1")),
		"csr-029/an extension that is broken": extension(oid(2, 5, 29, 19), []byte{0xff, 0xff}),
	}
	pki := catest.New(t, nil)
	profile := catest.Profile(t, ca.Config{})
	for id, ext := range attrs {
		t.Run(id, func(t *testing.T) {
			csr := hostile{key: key, subject: name(cn("dev-1")), attrs: extensionRequest(ext)}.der(t)
			req, err := ca.ParseRequest(csr, profile.KeyPolicy())
			if err != nil {
				t.Fatal(err)
			}
			d, err := pki.Device.Prepare(profile, deviceSubject("dev-1"), req)
			if err != nil {
				t.Fatal(err)
			}
			checkPlainDeviceLeaf(t, sign(t, d), "dev-1")
		})
	}
}

func deviceSubject(id string) ca.Subject {
	return ca.Subject{ID: id, Organization: catest.Organization, TrustDomain: catest.TrustDomain}
}

func sign(t testing.TB, d *ca.Draft) *x509.Certificate {
	t.Helper()
	der, err := d.Sign()
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// checkPlainDeviceLeaf checks that a certificate carries what the profile and the
// inventory say, and nothing else.
func checkPlainDeviceLeaf(t *testing.T, c *x509.Certificate, id string) {
	t.Helper()
	if got, want := c.Subject.String(), "CN="+id+",O="+catest.Organization; got != want {
		t.Errorf("subject %q, want %q", got, want)
	}
	if c.IsCA || c.KeyUsage != x509.KeyUsageDigitalSignature || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("CA %t, key usage %b, extended %v", c.IsCA, c.KeyUsage, c.ExtKeyUsage)
	}
	var ids []string
	for _, e := range c.Extensions {
		ids = append(ids, e.Id.String())
	}
	slices.Sort(ids)
	want := []string{"2.5.29.14", "2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.35", "2.5.29.37"}
	if !slices.Equal(ids, want) {
		t.Errorf("extensions %v, want %v", ids, want)
	}
	if len(c.URIs) != 1 || c.URIs[0].String() != "spiffe://"+catest.TrustDomain+"/device/"+id || len(c.DNSNames) > 0 {
		t.Errorf("names %v %v", c.URIs, c.DNSNames)
	}
}

func TestParseRequestNames(t *testing.T) {
	key := catest.Key(t, ca.P256)
	subject := func(raw []byte) []byte { return hostile{key: key, subject: raw}.der(t) }
	attrs := func(raw []byte) []byte { return hostile{key: key, attrs: raw}.der(t) }
	names := func(n ...[]byte) []byte { return attrs(extensionRequest(san(n...))) }
	var many [][]byte
	for i := range 20000 {
		many = append(many, dns(fmt.Sprint("a", i)))
	}
	nine, hundreds, short := many[:9], many[:500], ca.KeyPolicy{}
	cnOf := func(tag byte, s string) []byte {
		return subject(name(seq(oid(2, 5, 4, 3), tlv(tag, []byte(s)))))
	}
	other := tlv(0xa0, oid(1, 3, 6, 1, 5, 5, 7, 8, 4), tlv(0xa0, seq()))

	runCSRCases(t, []csrCase{
		{"csr-030", "SAN twice in one request", attrs(extensionRequest(san(dns("a")), san(dns("b")))), short, ca.Malformed},
		{"csr-031", "two extension requests", attrs(append(extensionRequest(san(dns("a"))), extensionRequest(san(dns("b")))...)), short, ca.Malformed},
		{"csr-031", "two values in one extension request", attrs(seq(oid(1, 2, 840, 113549, 1, 9, 14), set(seq(san(dns("a"))), seq(san(dns("b")))))), short, ca.Malformed},
		{"csr-031", "one of each OID", attrs(append(extensionRequest(san(dns("a"))), seq(oid(1, 3, 6, 1, 4, 1, 311, 2, 1, 14), set(seq(san(dns("b")))))...)), short, ca.Malformed},
		{"csr-033", "otherName", names(other), short, ca.IdentityMismatch},
		{"csr-033", "registeredID", names(tlv(0x88, []byte{42})), short, ca.IdentityMismatch},
		{"csr-033", "directoryName", names(tlv(0xa4, name(cn("x")))), short, ca.IdentityMismatch},
		{"csr-034", "NUL in dNSName", names(dns("dev-1\x00.evil")), short, ca.BadName},
		{"csr-034", "newline in a URI", names(tlv(0x86, []byte("a:\nb"))), short, ca.BadName},
		{"csr-035", "bytes after GeneralNames", attrs(extensionRequest(extension(oid(2, 5, 29, 17), append(seq(dns("a")), 0)))), short, ca.Malformed},
		{"csr-035", "no GeneralNames", names(), short, ca.Malformed},
		{"csr-035", "address of 5 bytes", names(tlv(0x87, make([]byte, 5))), short, ca.Malformed},
		{"csr-036", "20,000 names", names(many...), short, ca.TooLarge},
		{"csr-036", "500 names", names(hundreds...), short, ca.TooManyNames},
		{"csr-036", "9 names", names(nine...), short, ca.TooManyNames},
		{"csr-036", "8 names", names(many[:8]...), short, ""},
		{"csr-037", "two common names", subject(name(cn("admin"), cn("dev-1"))), short, ca.BadName},
		{"csr-037", "the same twice", subject(name(cn("dev-1"), cn("dev-1"))), short, ca.BadName},
		{"csr-038", "multi-valued part", subject(seq(set(cn("admin"), cn("dev-1")))), short, ca.BadName},
		{"csr-040", "NUL", subject(name(cn("dev-1\x00evil"))), short, ca.BadName},
		{"csr-041", "newline", subject(name(cn("dev-1\nadmin"))), short, ca.BadName},
		{"csr-041", "carriage return", subject(name(cn("dev-1\r"))), short, ca.BadName},
		{"csr-041", "tab", subject(name(cn("dev\t1"))), short, ca.BadName},
		{"csr-041", "DEL", subject(name(cn("dev-1\x7f"))), short, ca.BadName},
		{"csr-041", "line separator U+2028", subject(name(cn("dev\u20281"))), short, ca.BadName},
		{"csr-043", "right-to-left override", subject(name(cn("dev\u202e1"))), short, ca.BadName},
		{"csr-043", "zero-width joiner", subject(name(cn("dev\u200d1"))), short, ca.BadName},
		{"csr-043", "byte order mark", subject(name(cn("\ufeffdev-1"))), short, ca.BadName},
		{"csr-043", "UniversalString", cnOf(28, "\x00\x00\x00d"), short, ca.BadName},
		{"csr-043", "BMPString", cnOf(30, "\x00d"), short, ca.BadName},
		{"csr-043", "T61String", cnOf(20, "dev-1"), short, ca.BadName},
		{"csr-043", "PrintableString", cnOf(19, "dev-1"), short, ""},
		{"csr-047", "empty", subject(name(cn(""))), short, ca.BadName},
		{"csr-047", "64 bytes", subject(name(cn(strings.Repeat("a", 64)))), short, ""},
		{"csr-047", "65 bytes", subject(name(cn(strings.Repeat("a", 65)))), short, ca.BadName},
		{"csr-047", "10 KB", subject(name(cn(strings.Repeat("a", 10000)))), short, ca.BadName},
		{"csr-047", "64 KB", subject(name(cn(strings.Repeat("a", 65536)))), short, ca.TooLarge},
		{"csr-047", "1 MB", subject(name(cn(strings.Repeat("a", 1<<20)))), short, ca.TooLarge},
		{"csr-047", "17 parts", subject(name(slices.Repeat([][]byte{seq(oid(2, 5, 4, 11), tlv(12, []byte("x")))}, 17)...)), short, ca.BadName},
		{"csr-047", "no subject, challengePassword", attrs(seq(oid(1, 2, 840, 113549, 1, 9, 7), set(tlv(12, []byte("secret"))))), short, ""},
	})
}

// A request that names somebody else is told apart by Match: names are compared
// byte for byte, whatever form they had.
func TestRequestMatch(t *testing.T) {
	key := catest.Key(t, ca.P256)
	for _, tt := range []struct {
		id, what string
		cn       string
		san      [][]byte
		match    bool
	}{
		{"csr-001", "its own name", "dev-1", nil, true},
		{"csr-001", "its own name and URI", "dev-1", [][]byte{tlv(0x86, []byte("spiffe://acme.example/device/dev-1"))}, true},
		{"csr-001", "no name", "", nil, true},
		{"csr-032", "another device", "dev-1", [][]byte{dns("dev-2")}, false},
		{"csr-032", "admin", "dev-1", [][]byte{dns("admin")}, false},
		{"csr-032", "everybody", "dev-1", [][]byte{dns("*")}, false},
		{"csr-032", "a wildcard", "dev-1", [][]byte{dns("*.example.com")}, false},
		{"csr-032", "another common name", "admin", nil, false},
		{"csr-033", "e-mail", "dev-1", [][]byte{tlv(0x81, []byte("dev-1@example.com"))}, false},
		{"csr-033", "address", "dev-1", [][]byte{tlv(0x87, net.IPv4(127, 0, 0, 1).To4())}, false},
		{"csr-033", "another URI", "dev-1", [][]byte{tlv(0x86, []byte("spiffe://acme.example/device/dev-2"))}, false},
		{"csr-048", "another case", "DEV-1", nil, false},
	} {
		t.Run(tt.id+"/"+tt.what, func(t *testing.T) {
			h := hostile{key: key}
			if tt.cn != "" {
				h.subject = name(cn(tt.cn))
			}
			if tt.san != nil {
				h.attrs = extensionRequest(san(tt.san...))
			}
			req, err := ca.ParseRequest(h.der(t), ca.KeyPolicy{})
			if err != nil {
				t.Fatal(err)
			}
			err = req.Match("dev-1", "spiffe://acme.example/device/dev-1")
			if refused, ok := errors.AsType[*ca.RequestError](err); tt.match != (err == nil) || !tt.match && (!ok || refused.Reason != ca.IdentityMismatch) {
				t.Errorf("Match of %v = %v", req.Names, err)
			}
		})
	}
}

// A key on the block list stays out for ever: compromised, known to everybody, or
// one of imprint's own.
func TestParseRequestBlocked(t *testing.T) {
	pki := catest.New(t, nil)
	weak, mine := catest.Key(t, ca.P256), catest.Key(t, ca.P256)
	blocked := make(map[[32]byte]bool)
	for _, pub := range []any{weak.Public(), pki.Device.Certificate().PublicKey} {
		h, err := ca.SPKIHash(pub)
		if err != nil {
			t.Fatal(err)
		}
		blocked[h] = true
	}
	policy := ca.KeyPolicy{Blocked: func(h [32]byte) bool { return blocked[h] }}
	issuers := hostile{key: mine, spki: mustSPKI(t, pki.Device.Certificate().PublicKey)}
	runCSRCases(t, []csrCase{
		{"csr-016", "on the list", catest.CSR(t, weak, ""), policy, ca.BlockedKey},
		{"csr-063", "a CA's own key", issuers.der(t), policy, ca.BlockedKey},
		{"csr-016", "not on the list", catest.CSR(t, mine, ""), policy, ""},
	})
	if _, err := ca.NewRequest(weak.Public(), policy); err == nil {
		t.Error("NewRequest takes a blocked key")
	}
}

func TestParseRequestShape(t *testing.T) {
	key := catest.Key(t, ca.P256)
	good := catest.CSR(t, key, "dev-1")
	point := mustSPKI(t, key.Public())[26:]
	rsaKey := mustSPKI(t, &rsaKey(t, 2048).PublicKey)
	deep := func(levels int) []byte {
		der := []byte{5, 0}
		for range levels {
			der = seq(der)
		}
		return hostile{key: key, attrs: seq(oid(1, 2, 3), set(der))}.der(t)
	}
	padding := func(n int) []byte {
		return hostile{key: key, attrs: seq(oid(1, 2, 3), set(tlv(4, make([]byte, n))))}.der(t)
	}
	huge := append([]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff}, make([]byte, 94)...)
	short := ca.KeyPolicy{}
	sig := ed25519.Sign(catest.Key(t, ca.Ed25519).(ed25519.PrivateKey), good)

	runCSRCases(t, []csrCase{
		{"csr-049", "1 MB of padding", padding(1 << 20), short, ca.TooLarge},
		{"csr-049", "one byte above the limit", make([]byte, ca.MaxRequestSize+1), short, ca.TooLarge},
		{"csr-049", "15 KB of padding", padding(15 << 10), short, ""},
		{"csr-052", "byte after the request", append(bytes.Clone(good), 0), short, ca.Malformed},
		{"csr-052", "element after the signature", hostile{key: key, tail: []byte{5, 0}}.der(t), short, ca.Malformed},
		{"csr-052", "byte after the key", hostile{key: key, spki: spki(seq(oid(1, 2, 840, 10045, 2, 1), oid(1, 2, 840, 10045, 3, 1, 7)), append(point, 0))}.der(t), short, ca.Malformed},
		{"csr-052", "byte after the RSA key", hostile{key: key, spki: spki(seq(oid(1, 2, 840, 113549, 1, 1, 1), []byte{5, 0}), append(rsaKey[24:], 0))}.der(t), ca.AnyKey(), ca.Malformed},
		{"csr-052", "RSA key without NULL", hostile{key: key, spki: spki(seq(oid(1, 2, 840, 113549, 1, 1, 1)), rsaKey[24:])}.der(t), ca.AnyKey(), ca.Malformed},
		{"csr-052", "bytes after the ECDSA signature", hostile{key: key, sig: append(seq([]byte{2, 1, 1}, []byte{2, 1, 1}), 0)}.der(t), short, ca.BadSignature},
		{"csr-052", "Ed25519 signature of something else", hostile{key: catest.Key(t, ca.Ed25519), sig: sig}.der(t), ca.AnyKey(), ca.BadSignature},
		{"csr-054", "version 1", hostile{key: key, version: 1}.der(t), short, ca.Malformed},
		{"csr-054", "version -1", hostile{key: key, version: -1}.der(t), short, ca.Malformed},
		{"csr-055", "nested 20,000 deep", deep(20000), short, ca.TooLarge},
		{"csr-055", "nested 3,800 deep", deep(3800), short, ""},
		{"csr-056", "2 GB in 100 bytes", huge, short, ca.Malformed},
		{"csr-056", "indefinite length", append([]byte{0x30, 0x80}, good[4:]...), short, ca.Malformed},
		{"csr-056", "nothing", nil, short, ca.Malformed},
	})
}

func TestParseRequestTruncated(t *testing.T) {
	good := catest.CSR(t, catest.Key(t, ca.P256), "dev-1")
	t.Run("csr-053", func(t *testing.T) {
		for n := range good {
			_, err := ca.ParseRequest(good[:n:n], ca.KeyPolicy{})
			if refused, ok := errors.AsType[*ca.RequestError](err); !ok || refused.Reason != ca.Malformed {
				t.Fatalf("%d of %d bytes: %v, want %q", n, len(good), err, ca.Malformed)
			}
		}
	})
}

func TestParseRequestPEM(t *testing.T) {
	der := catest.CSR(t, catest.Key(t, ca.P256), "dev-1")
	block := toPEM("CERTIFICATE REQUEST", der)
	headers := bytes.Replace(block, []byte("-----\n"), []byte("-----\nProc-Type: 4,ENCRYPTED\n\n"), 1)
	broken := append([]byte("-----BEGIN CERTIFICATE REQUEST-----\n!\n"), block...)
	short := ca.KeyPolicy{}
	runCSRCases(t, []csrCase{
		{"csr-058", "one block", block, short, ""},
		{"csr-058", "NEW", toPEM("NEW CERTIFICATE REQUEST", der), short, ""},
		{"csr-058", "CRLF", bytes.ReplaceAll(block, []byte("\n"), []byte("\r\n")), short, ""},
		{"csr-058", "no newline at the end", bytes.TrimSpace(block), short, ""},
		{"csr-058", "headers", headers, short, ca.Malformed},
		{"csr-058", "text before", append([]byte("hello\n"), block...), short, ca.Malformed},
		{"csr-058", "text after", append(bytes.Clone(block), "hello\n"...), short, ca.Malformed},
		{"csr-058", "two blocks", append(bytes.Clone(block), block...), short, ca.Malformed},
		{"csr-058", "a broken one, then a good one", broken, short, ca.Malformed},
		{"csr-058", "wrong type", toPEM("CERTIFICATE", der), short, ca.Malformed},
		{"csr-058", "byte after the DER inside", toPEM("CERTIFICATE REQUEST", append(bytes.Clone(der), 0)), short, ca.Malformed},
	})
}

// Whoever sends a private key is told so, and no copy of it stays in memory.
func TestParseRequestPrivateKey(t *testing.T) {
	ecKey, ok := catest.Key(t, ca.P256).(*ecdsa.PrivateKey)
	if !ok {
		t.Fatal("a P-256 key is no *ecdsa.PrivateKey")
	}
	sec1, err := x509.MarshalECPrivateKey(ecKey)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(ecKey)
	if err != nil {
		t.Fatal(err)
	}
	pkcs1 := x509.MarshalPKCS1PrivateKey(rsaKey(t, 2048))
	csr := toPEM("CERTIFICATE REQUEST", catest.CSR(t, ecKey, ""))
	encrypted := seq(seq(oid(1, 2, 840, 113549, 1, 5, 13), seq()), tlv(4, make([]byte, 32)))
	for what, data := range map[string][]byte{
		"PKCS #8":           pkcs8,
		"SEC 1":             sec1,
		"PKCS #1":           pkcs1,
		"encrypted PKCS #8": encrypted,
		"PEM":               toPEM("PRIVATE KEY", pkcs8),
		"EC PEM":            toPEM("EC PRIVATE KEY", sec1),
		"after the CSR":     append(bytes.Clone(csr), toPEM("PRIVATE KEY", pkcs8)...),
		"before the CSR":    append(toPEM("ENCRYPTED PRIVATE KEY", encrypted), csr...),
		"under a false tag": toPEM("CERTIFICATE REQUEST", pkcs8),
	} {
		t.Run("csr-060/"+what, func(t *testing.T) {
			_, err := ca.ParseRequest(data, ca.KeyPolicy{})
			if refused, ok := errors.AsType[*ca.RequestError](err); !ok || refused.Reason != ca.PrivateKey {
				t.Fatalf("ParseRequest = %v, want %q", err, ca.PrivateKey)
			}
			if len(bytes.Trim(data, "\x00")) != 0 {
				t.Error("the key is still in memory")
			}
		})
	}
}

// The fence costs little, whatever comes. The best of several runs is compared,
// because other work on the machine is not the parser's fault.
func TestParseRequestCost(t *testing.T) {
	key := catest.Key(t, ca.P256)
	rsaCSR := func(bits int) []byte {
		return hostile{key: key, spki: rsaSPKI(oddNumber(t, bits), 65537)}.der(t)
	}
	var names [][]byte
	for i := range 20000 {
		names = append(names, dns(fmt.Sprint("a", i)))
	}
	huge := append([]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff}, make([]byte, 94)...)
	for _, tt := range []struct {
		id    string
		data  []byte
		limit time.Duration
	}{
		{"csr-010", rsaCSR(16384), time.Millisecond},
		{"csr-011", rsaCSR(65536), time.Millisecond},
		{"csr-012", rsaCSR(1048576), time.Millisecond},
		{"csr-036", hostile{key: key, attrs: extensionRequest(san(names...))}.der(t), 5 * time.Millisecond},
		{"csr-056", huge, time.Millisecond},
	} {
		t.Run(tt.id, func(t *testing.T) {
			best := time.Hour
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			const runs = 20
			for range runs {
				start := time.Now()
				if _, err := ca.ParseRequest(tt.data, ca.AnyKey()); err == nil {
					t.Fatal("accepted")
				}
				best = min(best, time.Since(start))
			}
			runtime.ReadMemStats(&after)
			if best > tt.limit && !raceEnabled {
				t.Errorf("takes %s, want at most %s", best, tt.limit)
			}
			if per := (after.TotalAlloc - before.TotalAlloc) / runs; per > 1<<20 {
				t.Errorf("allocates %d bytes, want at most 1 MiB", per)
			}
		})
	}
}
