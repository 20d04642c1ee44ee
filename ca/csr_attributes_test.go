package ca_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
)

// challenge is a challengePassword attribute with these values.
func challenge(values ...[]byte) []byte { return seq(oid(1, 2, 840, 113549, 1, 9, 7), set(values...)) }

func utf8(s string) []byte { return tlv(12, []byte(s)) }

// changeName is a ChangeSubjectName attribute (RFC 6402 §2.8).
func changeName(values ...[]byte) []byte { return seq(oid(1, 3, 6, 1, 5, 5, 7, 7, 36), set(values...)) }

// What a request says besides its key is kept octet for octet: a server compares
// it with what it has issued.
func TestParseRequestSays(t *testing.T) {
	key := catest.Key(t, ca.P256)
	subject := name(seq(oid(2, 5, 4, 10), utf8("Acme")), cn("dev-1"))
	names := seq(tlv(0x86, []byte("urn:dev-1")), dns("dev-1"))
	extensions := extensionRequest(extension(oid(2, 5, 29, 17), names))
	critical := extensionRequest(seq(oid(2, 5, 29, 17), []byte{1, 1, 0xff}, tlv(4, names)))
	microsoft := seq(oid(1, 3, 6, 1, 4, 1, 311, 2, 1, 14), set(seq(extension(oid(2, 5, 29, 17), names))))
	unknown := seq(oid(1, 3, 6, 1, 4, 1, 32473, 1), set([]byte{5, 0}, []byte{5, 0}))
	for _, tt := range []struct {
		what      string
		subject   []byte
		attrs     []byte
		san       []byte
		challenge string
		change    bool
	}{
		{"nothing", seq(), nil, nil, "", false},
		{"a name", subject, nil, nil, "", false},
		{"names", subject, extensions, names, "", false},
		{"names, critical", subject, critical, names, "", false},
		{"names, as Windows asks", subject, microsoft, names, "", false},
		{"a challenge", subject, challenge(utf8("r1Bz+/=")), nil, "r1Bz+/=", false},
		{"a new name", subject, changeName(seq(subject)), nil, "", true},
		{"all of it", subject, bytes.Join([][]byte{unknown, changeName(seq()), challenge(utf8("x")), extensions}, nil), names, "x", true},
	} {
		t.Run(tt.what, func(t *testing.T) {
			data := hostile{key: key, subject: tt.subject, attrs: tt.attrs}.der(t)
			req, err := ca.ParseRequest(data, ca.KeyPolicy{})
			if err != nil {
				t.Fatal(err)
			}
			clear(data) // the request keeps nothing of its input
			if !bytes.Equal(req.Subject, tt.subject) {
				t.Errorf("Subject = %x, want %x", req.Subject, tt.subject)
			}
			if !bytes.Equal(req.SAN, tt.san) || (req.SAN == nil) != (tt.san == nil) {
				t.Errorf("SAN = %x, want %x", req.SAN, tt.san)
			}
			if req.Challenge != tt.challenge || req.ChangeSubjectName != tt.change {
				t.Errorf("Challenge %q, ChangeSubjectName %t", req.Challenge, req.ChangeSubjectName)
			}
		})
	}
}

func TestParseRequestChallenge(t *testing.T) {
	key := catest.Key(t, ca.P256)
	with := func(attrs ...[]byte) []byte { return hostile{key: key, attrs: bytes.Join(attrs, nil)}.der(t) }
	one := func(tag byte, s string) []byte { return with(challenge(tlv(tag, []byte(s)))) }
	long, short := strings.Repeat("a", 255), ca.KeyPolicy{}
	runCSRCases(t, []csrCase{
		{"RFC 2985", "UTF8String", one(12, "secret"), short, ""},
		{"RFC 2985", "PrintableString", one(19, "secret"), short, ""},
		{"RFC 2985", "T61String", one(20, "secret"), short, ""},
		{"RFC 2985", "IA5String", one(22, "secret"), short, ""},
		{"RFC 2985", "BMPString", one(30, "\x00s"), short, ca.Malformed},
		{"RFC 2985", "OCTET STRING", one(4, "secret"), short, ca.Malformed},
		{"RFC 2985", "SEQUENCE", with(challenge(seq(utf8("secret")))), short, ca.Malformed},
		{"RFC 2985", "255 octets", one(12, long), short, ""},
		{"RFC 2985", "256 octets", one(12, long+"a"), short, ca.Malformed},
		{"RFC 2985", "empty", one(12, ""), short, ca.Malformed},
		{"RFC 2985", "NUL", one(12, "sec\x00ret"), short, ca.Malformed},
		{"RFC 2985", "newline", one(19, "secret\n"), short, ca.Malformed},
		{"RFC 2985", "not ASCII", one(12, "gehe\u00efm"), short, ca.Malformed},
		{"RFC 2985", "no value", with(challenge()), short, ca.Malformed},
		{"RFC 2985", "two values", with(challenge(utf8("a"), utf8("b"))), short, ca.Malformed},
		{"RFC 2985", "twice", with(challenge(utf8("a")), challenge(utf8("a"))), short, ca.Malformed},
		{"RFC 2985", "a new name twice", with(changeName(seq()), changeName(seq())), short, ca.Malformed},
		{"RFC 2985", "16 attributes", with(bytes.Repeat(seq(oid(1, 2, 3), set(utf8("a"))), 15), challenge(utf8("a"))), short, ""},
		{"RFC 2985", "17 attributes", with(bytes.Repeat(seq(oid(1, 2, 3), set(utf8("a"))), 16), challenge(utf8("a"))), short, ca.Malformed},
	})
}

// OpenSSL writes the challenge as a UTF8String, and the request of a renewal with
// the names of the certificate.
func TestParseRequestOfOpenSSL(t *testing.T) {
	openssl, dir := tool(t, "openssl", "openssl"), t.TempDir()
	config := write(t, dir, "req.cnf", []byte(`[req]
prompt = no
distinguished_name = dn
attributes = attrs
req_extensions = ext
[dn]
O = Acme
CN = dev-1
[attrs]
challengePassword = 3q2+7w==
[ext]
subjectAltName = URI:spiffe://acme.example/device/dev-1
`))
	out := filepath.Join(dir, "req.der")
	mustRun(t, openssl, "req", "-new", "-config", config, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
		"-nodes", "-keyout", filepath.Join(dir, "key.pem"), "-outform", "DER", "-out", out)
	der, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	req, err := ca.ParseRequest(bytes.Clone(der), ca.AnyKey())
	if err != nil {
		t.Fatal(err)
	}
	if req.Challenge != "3q2+7w==" || !bytes.Equal(req.Subject, csr.RawSubject) {
		t.Errorf("Challenge %q, Subject %x", req.Challenge, req.Subject)
	}
	want := "3024" + "8622" + hex.EncodeToString([]byte("spiffe://acme.example/device/dev-1"))
	if got := hex.EncodeToString(req.SAN); got != want {
		t.Errorf("SAN = %s, want %s", got, want)
	}
}

// A request that was read under the widest policy is held to the one of its
// profile as if it had been read under that.
func TestRequestAllowed(t *testing.T) {
	algorithms := []ca.KeyAlgorithm{ca.P256, ca.P384, ca.P521, ca.Ed25519, ca.RSA2048, ca.RSA3072, ca.RSA4096}
	policies := map[string]ca.KeyPolicy{"by default": {}, "any": ca.AnyKey()}
	for _, alg := range algorithms {
		policies["only "+string(alg)] = ca.KeyPolicy{Allow: []ca.KeyAlgorithm{alg}}
	}
	for _, alg := range algorithms {
		key := catest.Key(t, alg)
		data := catest.CSR(t, key, "dev-1")
		req, err := ca.ParseRequest(bytes.Clone(data), ca.AnyKey())
		if err != nil {
			t.Fatalf("%s: AnyKey refuses it: %v", alg, err)
		}
		blocked := func(h [32]byte) bool { return h == req.SPKI }
		for what, policy := range policies {
			_, want := ca.ParseRequest(bytes.Clone(data), policy)
			checkSameReason(t, string(alg)+", "+what, req.Allowed(policy), want)
			policy.Blocked = blocked
			_, want = ca.ParseRequest(bytes.Clone(data), policy)
			checkSameReason(t, string(alg)+", "+what+", blocked", req.Allowed(policy), want)
		}
		checkAllowedOfOwnKey(t, key)
	}
}

func checkSameReason(t *testing.T, what string, got, want error) {
	t.Helper()
	g, okG := errors.AsType[*ca.RequestError](got)
	w, okW := errors.AsType[*ca.RequestError](want)
	if (got == nil) != (want == nil) || okG != okW || okG && g.Reason != w.Reason {
		t.Errorf("%s: Allowed = %v, want %v", what, got, want)
	}
}

// checkAllowedOfOwnKey: a request that imprint made itself can be asked too.
func checkAllowedOfOwnKey(t *testing.T, key crypto.Signer) {
	t.Helper()
	req, err := ca.NewRequest(key.Public(), ca.AnyKey())
	if err != nil {
		t.Fatal(err)
	}
	if err := req.Allowed(ca.AnyKey()); err != nil {
		t.Error(err)
	}
}

// AnyKey gives everybody a policy of their own.
func TestAnyKeyDoesNotChange(t *testing.T) {
	p := ca.AnyKey()
	p.Allow[0] = "none"
	if got := ca.AnyKey().Allow[0]; got != ca.P256 {
		t.Errorf("AnyKey has become %q", got)
	}
}
