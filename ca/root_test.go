package ca_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
)

func newRoot(t testing.TB, key crypto.Signer, c ca.AuthorityConfig) *x509.Certificate {
	t.Helper()
	der, err := ca.NewRoot(key, c)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestNewRoot(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 5, time.UTC)
	key := catest.Key(t, ca.P384)
	c := newRoot(t, key, ca.AuthorityConfig{Organization: "Acme", Generation: 2, Now: func() time.Time { return now }})
	if got, want := c.Subject.String(), "CN=Acme Root R2,O=Acme"; got != want {
		t.Errorf("subject %q, want %q", got, want)
	}
	if c.MaxPathLen != -1 || len(c.ExtKeyUsage) > 0 || c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("pathLen %d, extended key usage %v, key usage %b", c.MaxPathLen, c.ExtKeyUsage, c.KeyUsage)
	}
	if c.SignatureAlgorithm != x509.ECDSAWithSHA384 {
		t.Errorf("signature %s", c.SignatureAlgorithm)
	}
	if begin, end := time.Date(2026, 4, 30, 12, 0, 0, 0, time.UTC), now.Truncate(time.Second).Add(25*365*24*time.Hour-time.Second); !c.NotBefore.Equal(begin) || !c.NotAfter.Equal(end) {
		t.Errorf("valid %s to %s, want %s to %s", c.NotBefore, c.NotAfter, begin, end)
	}
	// RFC 7093 method 1, by hand: the bit string is the last 97 bytes.
	spki := c.RawSubjectPublicKeyInfo
	if h := sha256.Sum256(spki[len(spki)-97:]); !bytes.Equal(c.SubjectKeyId, h[:20]) || !bytes.Equal(c.AuthorityKeyId, h[:20]) {
		t.Errorf("subject key identifier %x, want %x", c.SubjectKeyId, h[:20])
	}
	if err := c.CheckSignatureFrom(c); err != nil {
		t.Error(err)
	}
}

func TestSignIntermediate(t *testing.T) {
	rootKey := catest.Key(t, ca.P256)
	short := ca.AuthorityConfig{Organization: "Acme", Generation: 1, Validity: 100 * 24 * time.Hour}
	root := newRoot(t, rootKey, short)
	for _, tt := range []struct {
		purpose ca.Purpose
		name    string
		usage   x509.ExtKeyUsage
	}{
		{ca.PurposeDevice, "Acme Device CA D3", x509.ExtKeyUsageClientAuth},
		{ca.PurposeServer, "Acme Server CA S3", x509.ExtKeyUsageServerAuth},
		{ca.PurposeFactory, "Acme Factory CA F3", x509.ExtKeyUsageClientAuth},
	} {
		config := ca.AuthorityConfig{Organization: "Acme", Generation: 3, Purpose: tt.purpose, CRLDistributionPoints: []string{"http://a.example/root.crl"}}
		key := catest.Key(t, ca.P256)
		// The request says CN=admin and CA:FALSE; nothing of that matters.
		csr := hostile{key: key, subject: name(cn("admin")), attrs: extensionRequest(extension(oid(2, 5, 29, 19), seq()))}.der(t)
		der, err := ca.SignIntermediate(root, rootKey, csr, config)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if c.Subject.CommonName != tt.name || c.Issuer.CommonName != "Acme Root R1" {
			t.Errorf("names %q from %q, want %q", c.Subject.CommonName, c.Issuer.CommonName, tt.name)
		}
		if !c.IsCA || !c.MaxPathLenZero || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{tt.usage}) {
			t.Errorf("%s: CA %t, pathLen 0 %t, extended key usage %v", tt.name, c.IsCA, c.MaxPathLenZero, c.ExtKeyUsage)
		}
		if !c.NotAfter.Equal(root.NotAfter) {
			t.Errorf("%s ends %s, its root %s", tt.name, c.NotAfter, root.NotAfter)
		}
		if !bytes.Equal(c.AuthorityKeyId, root.SubjectKeyId) || !sameKey(c.PublicKey, key.Public()) || len(c.CRLDistributionPoints) != 1 {
			t.Errorf("%s: key identifiers or key are wrong", tt.name)
		}
		for _, e := range c.Extensions {
			if critical := e.Id.String() == "2.5.29.15" || e.Id.String() == "2.5.29.19"; e.Critical != critical {
				t.Errorf("%s: extension %s critical is %t", tt.name, e.Id, e.Critical)
			}
		}
		if err := c.CheckSignatureFrom(root); err != nil {
			t.Error(err)
		}
	}
}

func TestSignIntermediateRefuses(t *testing.T) {
	rootKey, key := catest.Key(t, ca.P256), catest.Key(t, ca.P256)
	good := ca.AuthorityConfig{Organization: "Acme", Generation: 1, Purpose: ca.PurposeDevice}
	root := newRoot(t, rootKey, ca.AuthorityConfig{Organization: "Acme", Generation: 1})
	device := deviceCA(t, rootKey, key)
	late := good
	late.Now = func() time.Time { return root.NotAfter.Add(time.Second) }
	rootPurpose := good
	rootPurpose.Purpose = ca.PurposeRoot
	csr := catest.CSR(t, catest.Key(t, ca.P256), "")
	for what, sign := range map[string]func() ([]byte, error){
		"another root's key":     func() ([]byte, error) { return ca.SignIntermediate(root, key, csr, good) },
		"an issuing CA for root": func() ([]byte, error) { return ca.SignIntermediate(device, key, csr, good) },
		"purpose root":           func() ([]byte, error) { return ca.SignIntermediate(root, rootKey, csr, rootPurpose) },
		"after the end (ca-002)": func() ([]byte, error) { return ca.SignIntermediate(root, rootKey, csr, late) },
		"the root's own key":     func() ([]byte, error) { return ca.SignIntermediate(root, rootKey, catest.CSR(t, rootKey, ""), good) },
		"a request that is none": func() ([]byte, error) { return ca.SignIntermediate(root, rootKey, csr[1:], good) },
		"a CA with a P-521 key": func() ([]byte, error) {
			return ca.SignIntermediate(root, rootKey, catest.CSR(t, catest.Key(t, ca.P521), ""), good)
		},
		"a root for purpose dev.": func() ([]byte, error) { return ca.NewRoot(rootKey, good) },
		"a request of a root":     func() ([]byte, error) { return ca.NewIntermediateRequest(key, rootPurpose) },
		"a root with P-521": func() ([]byte, error) {
			return ca.NewRoot(catest.Key(t, ca.P521), ca.AuthorityConfig{Organization: "Acme", Generation: 1})
		},
	} {
		if der, err := sign(); err == nil || der != nil {
			t.Errorf("%s: %x, %v", what, der, err)
		}
	}
	for field, c := range map[string]ca.AuthorityConfig{
		"organization": {Generation: 1},
		"generation":   {Organization: "Acme"},
		"purpose":      {Organization: "Acme", Generation: 1, Purpose: "broker"},
		"validity":     {Organization: "Acme", Generation: 1, Purpose: ca.PurposeDevice, Validity: time.Minute},
		"crl-distribution-points": {Organization: "Acme", Generation: 1, Purpose: ca.PurposeDevice,
			CRLDistributionPoints: []string{"x"}},
	} {
		_, err := ca.NewIntermediateRequest(key, c)
		if bad, ok := errors.AsType[*ca.ConfigError](err); !ok || bad.Field != field {
			t.Errorf("%+v: %v, want a *ConfigError about %s", c, err, field)
		}
	}
	if _, err := ca.NewRoot(key, ca.AuthorityConfig{Organization: strings.Repeat("a", 41), Generation: 1}); err == nil {
		t.Error("an organization of 41 characters is taken")
	}
}

func TestBundle(t *testing.T) {
	pki := catest.New(t, nil)
	root, device := pki.Root.Certificate(), pki.Device.Certificate()
	bundle := ca.CertificatePEM(root.Raw, device.Raw)
	certs, err := ca.ParseCertificatesPEM(bundle)
	if err != nil {
		t.Fatal(err)
	}
	if len(certs) != 2 || !certs[0].Equal(root) || !certs[1].Equal(device) {
		t.Errorf("%d certificates come back", len(certs))
	}
	one := ca.CertificatePEM(root.Raw)
	for what, data := range map[string][]byte{
		"CRLF":              bytes.ReplaceAll(bundle, []byte("\n"), []byte("\r\n")),
		"blank lines":       append([]byte("\n\n"), append(bytes.Clone(one), "\n\n"...)...),
		"no newline at end": bytes.TrimSpace(bundle),
	} {
		if _, err := ca.ParseCertificatesPEM(data); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	key := catest.KeyPEM(t, catest.Key(t, ca.P256))
	for what, data := range map[string][]byte{
		"nothing":      nil,
		"white space":  []byte(" \n"),
		"text before":  append([]byte("# root\n"), one...),
		"text between": append(append(bytes.Clone(one), "# device\n"...), one...),
		"text behind":  append(bytes.Clone(one), "# end\n"...),
		"a key":        append(bytes.Clone(one), key...),
		"half a block": bundle[:len(bundle)-40],
		"headers":      bytes.Replace(one, []byte("-----\n"), []byte("-----\nA: b\n\n"), 1),
		"no DER":       toPEM("CERTIFICATE", []byte("x")),
		"byte behind":  toPEM("CERTIFICATE", append(bytes.Clone(root.Raw), 0)),
		"65":           bytes.Repeat(one, 65),
		"too large":    bytes.Repeat([]byte("\n"), 1<<20+1),
	} {
		if certs, err := ca.ParseCertificatesPEM(data); err == nil {
			t.Errorf("%s: %d certificates are read", what, len(certs))
		}
	}
	out := mustRun(t, tool(t, "openssl", "openssl"), "x509", "-in", write(t, t.TempDir(), "root.pem", one), "-noout", "-fingerprint", "-sha256")
	_, want, _ := strings.Cut(strings.TrimSpace(out), "=")
	if got := ca.Fingerprint(root.Raw); !strings.EqualFold(got, strings.ReplaceAll(want, ":", "")) {
		t.Errorf("fingerprint %s, openssl says %s", got, want)
	}
	if raw, err := hex.DecodeString(ca.Fingerprint(nil)); err != nil || len(raw) != 32 {
		t.Errorf("fingerprint of nothing: %v", err)
	}
}

func FuzzParseCertificatesPEM(f *testing.F) {
	pki := catest.New(f, nil)
	f.Add(pki.RootPEM())
	f.Add(ca.CertificatePEM(pki.Root.Certificate().Raw, pki.Device.Certificate().Raw))
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := ca.ParseCertificatesPEM(data)
		if err != nil {
			return
		}
		var ders [][]byte
		for _, c := range certs {
			ders = append(ders, c.Raw)
		}
		again, err := ca.ParseCertificatesPEM(ca.CertificatePEM(ders...))
		if err != nil || len(again) != len(certs) {
			t.Fatalf("%d certificates come back as %d: %v", len(certs), len(again), err)
		}
	})
}
