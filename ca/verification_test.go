package ca_test

import (
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
)

// code is as long as those of AWS IoT Core, and as a common name can be.
const code = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// TestVerification: any CA signs the proof that one has its key, a root as well.
// Everybody finds the code in it, and nobody takes it for a client or a server.
func TestVerification(t *testing.T) {
	openssl := tool(t, "openssl", "openssl")
	for _, alg := range []ca.KeyAlgorithm{ca.P256, ca.P384, ca.RSA3072} {
		pki := catest.NewWith(t, alg, nil)
		dir := t.TempDir()
		root := write(t, dir, "root.pem", pki.RootPEM())
		for name, issuer := range map[string]*ca.Issuer{"root": pki.Root, "device": pki.Device, "server": pki.Server} {
			c := sign(t, prepare(t, issuer, catest.Profile(t, ca.Config{Kind: ca.KindVerification}), ca.Subject{ID: code}))
			if got := c.Subject.String(); got != "CN="+code {
				t.Errorf("%s %s: subject %s", alg, name, got)
			}
			if life := c.NotAfter.Sub(c.NotBefore) + time.Second; life != 24*time.Hour {
				t.Errorf("%s %s: good for %s, want 24h", alg, name, life)
			}
			leaf := write(t, dir, name+"-leaf.pem", ca.CertificatePEM(c.Raw))
			parent := write(t, dir, name+".pem", ca.CertificatePEM(issuer.Certificate().Raw))
			verify := []string{"verify", "-x509_strict", "-CAfile", root, "-untrusted", parent}
			mustRun(t, openssl, append(verify, leaf)...)
			mustRun(t, openssl, "verify", "-partial_chain", "-trusted", parent, leaf) // the CA alone, as it is registered
			for _, purpose := range []string{"sslclient", "sslserver", "smimesign", "timestampsign"} {
				if out, err := run(t, "", openssl, append(verify, "-purpose", purpose, leaf)...); err == nil {
					t.Errorf("%s %s: good for %s: %s", alg, name, purpose, out)
				}
			}
			for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageOCSPSigning} {
				if err := verifyFor(c, pki, usage); err == nil {
					t.Errorf("%s %s: Go takes it for usage %d", alg, name, usage)
				}
			}
			if err := verifyFor(c, pki, x509.ExtKeyUsageAny); err != nil {
				t.Errorf("%s %s: %v", alg, name, err)
			}
		}
	}
}

func verifyFor(c *x509.Certificate, pki *catest.PKI, usage x509.ExtKeyUsage) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(pki.Root.Certificate())
	between.AddCert(pki.Device.Certificate())
	between.AddCert(pki.Server.Certificate())
	_, err := c.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

func TestVerificationRefuses(t *testing.T) {
	for _, validity := range []ca.Duration{ca.Duration(24*time.Hour + time.Second), ca.Never} {
		_, err := ca.NewProfile(ca.Config{Kind: ca.KindVerification, Validity: validity})
		if bad, ok := errors.AsType[*ca.ConfigError](err); !ok || bad.Field != "validity" {
			t.Errorf("validity %s: NewProfile = %v, want a *ConfigError about validity", validity, err)
		}
	}
	pki := catest.New(t, nil)
	profile := catest.Profile(t, ca.Config{Kind: ca.KindVerification})
	req, err := ca.NewRequest(catest.Key(t, ca.P256).Public(), profile.KeyPolicy())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		code string
		ok   bool
	}{
		{code, true},
		{"x", true},
		{"-_.A9", true},
		{"", false},
		{code + "0", false},
		{"a b", false},
		{"a\n", false},
		{"a\x00", false},
		{"a/CN=dev-1", false},
		{"ä", false},
		{"*", false},
	} {
		_, err := pki.Device.Prepare(profile, ca.Subject{ID: tt.code}, req)
		bad, is := errors.AsType[*ca.ConfigError](err)
		if tt.ok && err != nil || !tt.ok && (!is || bad.Field != "code") {
			t.Errorf("code %q: Prepare = %v", tt.code, err)
		}
	}
}
