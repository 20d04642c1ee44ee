package ca_test

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
)

func list(revoked ...ca.Revoked) iter.Seq2[ca.Revoked, error] {
	return func(yield func(ca.Revoked, error) bool) {
		for _, r := range revoked {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func crlConfig(number uint64) ca.CRLConfig {
	now := time.Now()
	return ca.CRLConfig{Number: number, ThisUpdate: now, NextUpdate: now.Add(7 * 24 * time.Hour)}
}

func makeCRL(t testing.TB, i *ca.Issuer, number uint64, revoked ...ca.Revoked) []byte {
	t.Helper()
	der, err := i.CRL(crlConfig(number), list(revoked...))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func revokedLeaf(t testing.TB, leaf catest.Leaf) ca.Revoked {
	t.Helper()
	c, err := x509.ParseCertificate(leaf.DER)
	if err != nil {
		t.Fatal(err)
	}
	r := ca.Revoked{Time: time.Now(), Reason: 1}
	c.SerialNumber.FillBytes(r.Serial[:])
	return r
}

func TestCRL(t *testing.T) {
	for _, alg := range []ca.KeyAlgorithm{ca.P256, ca.P384, ca.Ed25519, ca.RSA3072} {
		t.Run(string(alg), func(t *testing.T) {
			pki := catest.NewWith(t, alg, nil)
			good, bad := pki.DeviceLeaf("good"), pki.DeviceLeaf("bad")
			der := makeCRL(t, pki.Device, 7, revokedLeaf(t, bad))
			l, err := x509.ParseRevocationList(der)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.CheckSignatureFrom(pki.Device.Certificate()); err != nil {
				t.Error(err)
			}
			if l.Number.Uint64() != 7 || len(l.RevokedCertificateEntries) != 1 || l.RevokedCertificateEntries[0].ReasonCode != 1 {
				t.Errorf("number %v, entries %v", l.Number, l.RevokedCertificateEntries)
			}
			verifyRevocation(t, pki, alg, der, good, bad)
		})
	}
}

// verifyRevocation lets OpenSSL and Mbed TLS tell a revoked certificate from a
// good one.
func verifyRevocation(t *testing.T, pki *catest.PKI, alg ca.KeyAlgorithm, der []byte, good, bad catest.Leaf) {
	t.Helper()
	openssl, dir := tool(t, "openssl", "openssl"), t.TempDir()
	root := write(t, dir, "root.pem", pki.RootPEM())
	issuer := write(t, dir, "issuer.pem", ca.CertificatePEM(pki.Device.Certificate().Raw))
	crl := write(t, dir, "crl.pem", ca.CRLPEM(der))
	if out := mustRun(t, openssl, "crl", "-in", crl, "-verify", "-CAfile", issuer, "-noout"); !strings.Contains(out, "verify OK") {
		t.Errorf("openssl crl -verify: %s", out)
	}
	goodFile, badFile := write(t, dir, "good.pem", good.PEM), write(t, dir, "bad.pem", bad.PEM)
	check := []string{"verify", "-x509_strict", "-crl_check", "-CRLfile", crl, "-CAfile", root, "-untrusted", issuer}
	mustRun(t, openssl, append(check, goodFile)...)
	if out, err := run(t, "", openssl, append(check, badFile)...); err == nil || !strings.Contains(out, "certificate revoked") {
		t.Errorf("openssl verify of the revoked: %v, %s", err, out)
	}
	if alg == ca.Ed25519 {
		return // Mbed TLS knows no Ed25519 in X.509
	}
	mbedTLS := compileC(t, "verify_mbedtls.c", "libmbedtls-dev", "-lmbedx509", "-lmbedcrypto")
	goodChain, badChain := write(t, dir, "good-chain.pem", good.Chain), write(t, dir, "bad-chain.pem", bad.Chain)
	out, err := run(t, fmt.Sprintln(root, goodChain, crl)+fmt.Sprintln(root, badChain, crl), mbedTLS)
	if err != nil {
		t.Fatal(err)
	}
	const revoked = "error -0x2700 flags 0x2" // MBEDTLS_X509_BADCERT_REVOKED
	if got := lines(t, out, 2); got[0] != "ok" || got[1] != revoked {
		t.Errorf("mbedtls: %q, want ok and %q", got, revoked)
	}
}

// rev-008: RFC 5280 §5.1.2.6 wants no list rather than an empty one.
func TestCRLWithoutEntries(t *testing.T) {
	pki := catest.New(t, nil)
	for _, i := range []*ca.Issuer{pki.Root, pki.Device, pki.Server} {
		der := makeCRL(t, i, 1)
		text := mustRun(t, tool(t, "openssl", "openssl"), "crl", "-in", write(t, t.TempDir(), "crl.pem", ca.CRLPEM(der)), "-noout", "-text")
		if !strings.Contains(text, "No Revoked Certificates.") {
			t.Errorf("openssl: %s", text)
		}
		// With the list, a SEQUENCE of no bytes would stand before the [0] of
		// the extensions.
		if bytes.Contains(der, []byte{0x30, 0x00, 0xa0}) {
			t.Error("the CRL has an empty list")
		}
	}
}

// rev-013: reasons that must not be written are not.
func TestCRLReasons(t *testing.T) {
	pki := catest.New(t, nil)
	for reason := -1; reason <= 11; reason++ {
		der, err := pki.Device.CRL(crlConfig(1), list(ca.Revoked{Serial: [16]byte{1}, Time: time.Now(), Reason: reason}))
		if reason < 0 || reason == 7 || reason == 8 || reason > 10 {
			if _, ok := errors.AsType[*ca.ConfigError](err); !ok {
				t.Errorf("reason %d: %v, want a *ConfigError", reason, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("reason %d: %v", reason, err)
			continue
		}
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		e := l.RevokedCertificateEntries[0]
		if e.ReasonCode != reason || (len(e.Extensions) == 0) != (reason == 0) {
			t.Errorf("reason %d reads back as %d with %d extensions", reason, e.ReasonCode, len(e.Extensions))
		}
		for _, x := range append(e.Extensions, l.Extensions...) {
			if x.Critical {
				t.Errorf("reason %d: extension %s is critical", reason, x.Id)
			}
		}
	}
}

func TestCRLRefuses(t *testing.T) {
	pki := catest.New(t, nil)
	now := time.Now()
	one := ca.Revoked{Serial: [16]byte{1}, Time: now}
	broken := errors.New("disk on fire")
	for _, tt := range []struct {
		name    string
		config  ca.CRLConfig
		revoked iter.Seq2[ca.Revoked, error]
	}{
		{"no number", ca.CRLConfig{ThisUpdate: now, NextUpdate: now.Add(time.Hour)}, list()},
		{"no thisUpdate", ca.CRLConfig{Number: 1, NextUpdate: now.Add(time.Hour)}, list()},
		{"nextUpdate before thisUpdate", ca.CRLConfig{Number: 1, ThisUpdate: now, NextUpdate: now.Add(-time.Hour)}, list()},
		{"serial number zero", crlConfig(1), list(ca.Revoked{Time: now})},
		{"negative serial number", crlConfig(1), list(ca.Revoked{Serial: [16]byte{0x80}, Time: now})},
		{"no revocation time", crlConfig(1), list(ca.Revoked{Serial: [16]byte{1}})},
		{"the same twice", crlConfig(1), list(one, one)},
	} {
		if _, err := pki.Device.CRL(tt.config, tt.revoked); err == nil {
			t.Errorf("%s: no error", tt.name)
		} else if _, ok := errors.AsType[*ca.ConfigError](err); !ok {
			t.Errorf("%s: %v, want a *ConfigError", tt.name, err)
		}
	}
	failing := func(yield func(ca.Revoked, error) bool) {
		if yield(one, nil) {
			yield(ca.Revoked{}, broken)
		}
	}
	if der, err := pki.Device.CRL(crlConfig(1), failing); !errors.Is(err, broken) || der != nil {
		t.Errorf("a list that breaks off: %v, want %v", err, broken)
	}
}

func manyRevoked(n int) iter.Seq2[ca.Revoked, error] {
	at := time.Now()
	return func(yield func(ca.Revoked, error) bool) {
		for i := range n {
			r := ca.Revoked{Serial: [16]byte{0x40}, Time: at, Reason: 1 + i%5}
			binary.BigEndian.PutUint64(r.Serial[8:], uint64(i))
			if !yield(r, nil) {
				return
			}
		}
	}
}

// 100,000 entries are made in less than a second, the best of three.
func TestCRLOfMany(t *testing.T) {
	pki := catest.New(t, nil)
	best := time.Hour
	var der []byte
	for range 3 {
		start := time.Now()
		var err error
		if der, err = pki.Device.CRL(crlConfig(1), manyRevoked(100_000)); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	t.Logf("100,000 entries: %s, %d bytes", best, len(der))
	if best > time.Second && !raceEnabled {
		t.Errorf("takes %s, want less than 1 s", best)
	}
	if l, err := x509.ParseRevocationList(der); err != nil || len(l.RevokedCertificateEntries) != 100_000 {
		t.Errorf("reads back wrong: %v", err)
	}
}
