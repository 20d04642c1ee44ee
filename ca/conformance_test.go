package ca_test

import (
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
)

// A chain is one certificate of the matrix with its files.
type chain struct {
	name                      string
	purpose                   string // of openssl verify
	ed25519                   bool   // somewhere in the chain
	root, issuer, leaf, whole string // files
}

// profiles are one profile of every kind and every option.
func profiles() map[string]ca.Config {
	keys := []ca.KeyAlgorithm{ca.P256, ca.P384, ca.P521, ca.Ed25519, ca.RSA2048, ca.RSA3072, ca.RSA4096}
	hardware := ca.IDevIDConfig{HardwareType: "1.3.6.1.4.1.32473.7"}
	both := ca.IDevIDConfig{HardwareType: "1.3.6.1.4.1.32473.7", PermanentIdentifier: true}
	return map[string]ca.Config{
		"device": {Keys: keys},
		"lean":   {Keys: keys, Lean: true, SANURI: "none"},
		"urls": {Keys: keys, CRLDistributionPoints: []string{"http://pki.acme.example/d1.crl"},
			OCSP: []string{"http://ocsp.acme.example/"}, CAIssuers: []string{"http://pki.acme.example/d1.cer"}},
		"server":    {Kind: ca.KindServer, Keys: keys},
		"idevid":    {Kind: ca.KindIDevID, Keys: keys, IDevID: hardware},
		"permanent": {Kind: ca.KindIDevID, Keys: keys, IDevID: both},
	}
}

// issueMatrix issues one certificate for every profile, key algorithm and CA
// algorithm.
func issueMatrix(t *testing.T) []chain {
	dir := t.TempDir()
	keys := make(map[ca.KeyAlgorithm]crypto.Signer)
	for _, alg := range profiles()["device"].Keys {
		keys[alg] = catest.Key(t, alg)
	}
	var chains []chain
	for _, caAlg := range []ca.KeyAlgorithm{ca.P256, ca.P384, ca.Ed25519, ca.RSA3072} {
		pki := catest.NewWith(t, caAlg, nil)
		root := write(t, dir, string(caAlg)+"-root.pem", pki.RootPEM())
		for profileName, config := range profiles() {
			profile := catest.Profile(t, config)
			issuer, purpose, s := pki.Device, "sslclient", deviceSubject("dev-1")
			s.HardwareSerial = "SN 0001:2"
			if config.Kind == ca.KindServer {
				issuer, purpose = pki.Server, "sslserver"
				s = ca.Subject{ID: "broker.acme.example", DNSNames: []string{"broker.acme.example"},
					IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1), net.ParseIP("2001:db8::1")}}
			}
			issuing := write(t, dir, string(caAlg)+purpose+".pem", ca.CertificatePEM(issuer.Certificate().Raw))
			for keyAlg, key := range keys {
				id := fmt.Sprintf("%s-%s-%s", profileName, keyAlg, caAlg)
				req, err := ca.NewRequest(key.Public(), profile.KeyPolicy())
				if err != nil {
					t.Fatal(err)
				}
				d, err := issuer.Prepare(profile, s, req)
				if err != nil {
					t.Fatalf("%s: %v", id, err)
				}
				leaf := sign(t, d)
				chains = append(chains, chain{
					name: id, purpose: purpose, root: root, issuer: issuing,
					ed25519: caAlg == ca.Ed25519 || keyAlg == ca.Ed25519,
					leaf:    write(t, dir, id+".pem", ca.CertificatePEM(leaf.Raw)),
					whole:   write(t, dir, id+"-chain.pem", ca.CertificatePEM(leaf.Raw, issuer.Certificate().Raw)),
				})
			}
		}
	}
	return chains
}

// TestAcceptedEverywhere: every certificate that can be issued is accepted by the
// four libraries that fleets are made of.
func TestAcceptedEverywhere(t *testing.T) {
	openssl, certtool := tool(t, "openssl", "openssl"), tool(t, "certtool", "gnutls-bin")
	mbedTLS := compileC(t, "verify_mbedtls.c", "libmbedtls-dev", "-lmbedx509", "-lmbedcrypto")
	wolfSSL := compileC(t, "verify_wolfssl.c", "libwolfssl-dev", "-lwolfssl")
	chains := issueMatrix(t)

	t.Run("openssl", func(t *testing.T) {
		for _, c := range chains {
			mustRun(t, openssl, "verify", "-x509_strict", "-purpose", c.purpose, "-CAfile", c.root, "-untrusted", c.issuer, c.leaf)
		}
	})
	t.Run("gnutls", func(t *testing.T) {
		for _, c := range chains {
			out := mustRun(t, certtool, "--verify", "--load-ca-certificate", c.root, "--infile", c.whole)
			if !strings.Contains(out, "Chain verification output: Verified.") {
				t.Errorf("%s: %s", c.name, out)
			}
		}
	})
	t.Run("mbedtls", func(t *testing.T) {
		var in strings.Builder
		for _, c := range chains {
			fmt.Fprintln(&in, c.root, c.whole)
		}
		out, err := run(t, in.String(), mbedTLS)
		if err != nil {
			t.Fatal(err, out)
		}
		for i, line := range lines(t, out, len(chains)) {
			// Mbed TLS knows no Ed25519 in X.509 and refuses the whole
			// certificate. The day it does not, P-256 need not be the default.
			if ok := line == "ok"; ok == chains[i].ed25519 {
				t.Errorf("%s: %s", chains[i].name, line)
			}
		}
	})
	t.Run("wolfssl", func(t *testing.T) {
		var in strings.Builder
		for _, c := range chains {
			fmt.Fprintln(&in, c.root, c.issuer, c.leaf)
		}
		out, err := run(t, in.String(), wolfSSL)
		if err != nil {
			t.Fatal(err, out)
		}
		for i, line := range lines(t, out, len(chains)) {
			if line != "ok" {
				t.Errorf("%s: %s", chains[i].name, line)
			}
		}
	})
	t.Run("all refuse a stranger", func(t *testing.T) {
		c := chains[slices.IndexFunc(chains, func(c chain) bool { return !c.ed25519 })]
		dir := t.TempDir()
		stranger := write(t, dir, "root.pem", catest.New(t, nil).RootPEM())
		if out, err := run(t, "", openssl, "verify", "-CAfile", stranger, "-untrusted", c.issuer, c.leaf); err == nil {
			t.Errorf("openssl: %s", out)
		}
		if out, err := run(t, "", certtool, "--verify", "--load-ca-certificate", stranger, "--infile", c.whole); err == nil {
			t.Errorf("gnutls: %s", out)
		}
		if out, _ := run(t, fmt.Sprintln(stranger, c.whole), mbedTLS); !strings.HasPrefix(out, "error ") {
			t.Errorf("mbedtls: %s", out)
		}
		if out, _ := run(t, fmt.Sprintln(stranger, c.issuer, c.leaf), wolfSSL); !strings.HasPrefix(out, "error ") {
			t.Errorf("wolfssl: %s", out)
		}
	})
	t.Logf("%d chains", len(chains))
}

// lines splits what a verifier said; it must have said n lines.
func lines(t *testing.T, out string, n int) []string {
	t.Helper()
	got := strings.Split(strings.TrimSpace(out), "\n")
	if len(got) != n {
		t.Fatalf("%d answers for %d chains: %s", len(got), n, out)
	}
	return got
}

// What the certificates say, as OpenSSL reads it.
func TestReadByOpenSSL(t *testing.T) {
	openssl := tool(t, "openssl", "openssl")
	pki := catest.New(t, nil)
	dir := t.TempDir()
	show := func(profile string, s ca.Subject, i *ca.Issuer) string {
		leaf := pki.Issue(i, catest.Profile(t, profiles()[profile]), ca.P256, s)
		return mustRun(t, openssl, "x509", "-in", write(t, dir, profile+".pem", leaf.PEM), "-noout", "-text", "-nameopt", "oneline,utf8,-esc_msb")
	}
	s := deviceSubject("dev-1")
	s.Organization, s.HardwareSerial = "Müller & Söhne", "SN0001"
	server := ca.Subject{ID: "broker.acme.example", DNSNames: []string{"broker.acme.example", "localhost"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}}
	for _, tt := range []struct {
		profile string
		text    string
		want    []string
	}{
		{"device", show("device", s, pki.Device), []string{
			"Version: 3 (0x2)", "Subject: O = Müller & Söhne, CN = dev-1\n", "URI:spiffe://acme.example/device/dev-1\n",
			"X509v3 Key Usage: critical\n                Digital Signature\n", "TLS Web Client Authentication\n", "CA:FALSE", "X509v3 Subject Key Identifier"}},
		{"urls", show("urls", s, pki.Device), []string{
			"URI:http://pki.acme.example/d1.crl", "OCSP - URI:http://ocsp.acme.example/", "CA Issuers - URI:http://pki.acme.example/d1.cer"}},
		{"server", show("server", server, pki.Server), []string{
			"Subject: CN = broker.acme.example\n", "DNS:broker.acme.example, DNS:localhost, IP Address:192.0.2.1\n", "TLS Web Server Authentication\n"}},
		{"permanent", show("permanent", s, pki.Device), []string{
			"Subject: O = Müller & Söhne, serialNumber = SN0001, CN = dev-1\n", "Not After : Dec 31 23:59:59 9999 GMT",
			"othername: 1.3.6.1.5.5.7.8.4", "othername: Permanent Identifier"}},
	} {
		for _, want := range tt.want {
			if !strings.Contains(tt.text, want) {
				t.Errorf("%s: no %q in\n%s", tt.profile, want, tt.text)
			}
		}
	}
	if lean := show("lean", s, pki.Device); strings.Contains(lean, "Subject Key Identifier") || strings.Contains(lean, "Alternative Name") {
		t.Errorf("a lean certificate is not lean:\n%s", lean)
	}
	if idevid := show("idevid", s, pki.Device); strings.Contains(idevid, "Extended Key Usage") {
		t.Errorf("an IDevID has an extended key usage:\n%s", idevid)
	}
}

// The bytes of the names that no library encodes for us: RFC 4108 §5 and
// RFC 4043 §2. hwSerialNum is a plain OCTET STRING (tag 04); with an implicit tag
// Mbed TLS and wolfSSL refuse the certificate.
func TestIDevIDNames(t *testing.T) {
	pki := catest.New(t, nil)
	s := deviceSubject("dev-1")
	s.HardwareSerial = "SN1"
	leaf := pki.Issue(pki.Device, catest.Profile(t, profiles()["permanent"]), ca.P256, s)
	const want = "3040" +
		"a01e" + "06082b06010505070804" + "a012" + "3010" + "06092b0601040181fd5907" + "0403534e31" +
		"a01e" + "06082b06010505070803" + "a012" + "3010" + "0c03534e31" + "06092b0601040181fd5907"
	cert, err := x509.ParseCertificate(leaf.DER)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range cert.Extensions {
		if e.Id.String() == "2.5.29.17" {
			if got := hex.EncodeToString(e.Value); got != want {
				t.Errorf("subject alternative name\n got %s\nwant %s", got, want)
			}
			return
		}
	}
	t.Error("no subject alternative name")
}

// A handshake must fit one TCP segment of a small device: what a P-256 device
// sends stays below 1,200 bytes, 900 when lean.
func TestChainSize(t *testing.T) {
	pki := catest.New(t, nil)
	s := deviceSubject("dev-0123456789")
	s.HardwareSerial = "SN0123456789"
	for profile, limit := range map[string]int{"device": 1000, "lean": 900, "urls": 1200, "idevid": 1000, "permanent": 1050} {
		leaf := pki.Issue(pki.Device, catest.Profile(t, profiles()[profile]), ca.P256, s)
		got := len(leaf.DER) + len(pki.Device.Certificate().Raw)
		t.Logf("%s: leaf %d bytes, with its issuer %d", profile, len(leaf.DER), got)
		if got > limit {
			t.Errorf("%s: %d bytes are sent, at most %d", profile, got, limit)
		}
	}
}
