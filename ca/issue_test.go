package ca_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"pgregory.net/rapid"
)

func prepare(t testing.TB, i *ca.Issuer, p *ca.Profile, s ca.Subject) *ca.Draft {
	t.Helper()
	req, err := ca.NewRequest(catest.Key(t, ca.P256).Public(), p.KeyPolicy())
	if err != nil {
		t.Fatal(err)
	}
	d, err := i.Prepare(p, s, req)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDraftSignsOnce(t *testing.T) {
	pki := catest.New(t, nil)
	d := prepare(t, pki.Device, catest.Profile(t, ca.Config{}), deviceSubject("dev-1"))
	c := sign(t, d)
	serial := d.Serial()
	if got := c.SerialNumber.FillBytes(make([]byte, 16)); !bytes.Equal(got, serial[:]) {
		t.Errorf("serial number %x, want %x", got, serial)
	}
	if _, err := d.Sign(); !errors.Is(err, ca.ErrSpent) {
		t.Errorf("second Sign = %v, want ErrSpent", err)
	}
}

// The two seconds at the ends belong to the validity; nothing outlives its
// issuer, except an IDevID without end.
func TestValidity(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now := start
	pki := catest.New(t, func() time.Time { return now })
	end := pki.Device.Certificate().NotAfter
	never := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	birth := ca.IDevIDConfig{HardwareType: "1.3.6.1.4.1.32473.7"}
	const day = 24 * time.Hour
	for _, tt := range []struct {
		id            string
		config        ca.Config
		at            time.Time
		before, after time.Time
	}{
		{"iss-024/one day", ca.Config{Validity: ca.Duration(day)}, start, start.Add(-5 * time.Minute), start.Add(day - 5*time.Minute - time.Second)},
		{"iss-024/part of a second", ca.Config{Validity: ca.Duration(day)}, start.Add(999 * time.Millisecond), start.Add(-5 * time.Minute), start.Add(day - 5*time.Minute - time.Second)},
		{"iss-024/backdated to the issuer's first second", ca.Config{Validity: ca.Duration(2 * day), Backdate: ca.Duration(day)}, start, start.Add(-day), start.Add(day - time.Second)},
		{"iss-024/ends with the issuer", ca.Config{Validity: ca.Duration(day)}, end.Add(-day + 5*time.Minute + time.Second), end.Add(-day + time.Second), end},
		{"iss-024/clipped to the issuer", ca.Config{Validity: ca.Duration(day)}, end, end.Add(-5 * time.Minute), end},
		{"iss-024/a device that never renews", ca.Config{Validity: ca.Never}, start, start.Add(-5 * time.Minute), end},
		{"iss-024/IDevID", ca.Config{Kind: ca.KindIDevID, IDevID: birth}, start, start.Add(-5 * time.Minute), never},
		{"iss-024/IDevID with an end", ca.Config{Kind: ca.KindIDevID, IDevID: birth, Validity: ca.Duration(3650 * day)}, end, end.Add(-5 * time.Minute), end},
	} {
		t.Run(tt.id, func(t *testing.T) {
			now = tt.at
			s := deviceSubject("dev-1")
			s.HardwareSerial = "SN1"
			c := sign(t, prepare(t, pki.Device, catest.Profile(t, tt.config), s))
			if !c.NotBefore.Equal(tt.before) || !c.NotAfter.Equal(tt.after) {
				t.Errorf("valid %s to %s, want %s to %s", c.NotBefore, c.NotAfter, tt.before, tt.after)
			}
		})
	}
}

// An issuer outside of its validity issues nothing: ca-001.
func TestExpiredIssuer(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	pki := catest.New(t, clock)
	profile := catest.Profile(t, ca.Config{})
	key := catest.Key(t, ca.P256)
	req, err := ca.NewRequest(key.Public(), profile.KeyPolicy())
	if err != nil {
		t.Fatal(err)
	}
	cert := pki.Device.Certificate()
	for _, tt := range []struct {
		at   time.Time
		want error
	}{
		{cert.NotBefore.Add(-time.Second), ca.ErrExpired},
		{cert.NotBefore.Add(6 * time.Minute), nil},
		{cert.NotAfter, nil},
		{cert.NotAfter.Add(time.Second), ca.ErrExpired},
	} {
		now = tt.at
		if _, err := pki.Device.Prepare(profile, deviceSubject("dev-1"), req); !errors.Is(err, tt.want) {
			t.Errorf("ca-001 at %s: Prepare = %v, want %v", tt.at, err, tt.want)
		}
	}
	now = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	rootKey := catest.Key(t, ca.P256)
	der, err := ca.NewRoot(rootKey, ca.AuthorityConfig{Organization: "Acme", Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.NewIssuer(root, rootKey, clock); !errors.Is(err, ca.ErrExpired) {
		t.Errorf("NewIssuer in 2100 = %v, want ErrExpired", err)
	}
}

// The key decides which of two issuers with the same name one has: ca-015.
func TestNewIssuerRefuses(t *testing.T) {
	pki, twin := catest.New(t, nil), catest.New(t, nil)
	if !bytes.Equal(pki.Device.Certificate().RawSubject, twin.Device.Certificate().RawSubject) {
		t.Fatal("the two device CAs have different names")
	}
	key := catest.Key(t, ca.P256)
	if _, err := ca.NewIssuer(pki.Device.Certificate(), key, nil); !errors.Is(err, ca.ErrKeyRefused) {
		t.Errorf("ca-015: NewIssuer with another key = %v, want ErrKeyRefused", err)
	}
	leaf := pki.DeviceLeaf("dev-1")
	cert, err := x509.ParseCertificate(leaf.DER)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.NewIssuer(cert, leaf.Key, nil); err == nil {
		t.Error("NewIssuer takes an end-entity certificate")
	}
	if err := cert.CheckSignatureFrom(twin.Device.Certificate()); err == nil {
		t.Error("ca-015: a certificate verifies with the other CA of the same name")
	}
	if bytes.Equal(cert.AuthorityKeyId, twin.Device.Certificate().SubjectKeyId) {
		t.Error("ca-015: two keys have one key identifier")
	}
}

// A CA signs for its own purpose only, and a root nothing but CAs.
func TestIssuerPurpose(t *testing.T) {
	pki := catest.New(t, nil)
	device, server := catest.Profile(t, ca.Config{}), catest.Profile(t, ca.Config{Kind: ca.KindServer})
	name := ca.Subject{ID: "broker", DNSNames: []string{"broker"}}
	req, err := ca.NewRequest(catest.Key(t, ca.P256).Public(), ca.KeyPolicy{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what    string
		issuer  *ca.Issuer
		profile *ca.Profile
		subject ca.Subject
	}{
		{"root, device", pki.Root, device, deviceSubject("dev-1")},
		{"root, server", pki.Root, server, name},
		{"device CA, server", pki.Device, server, name},
		{"server CA, device", pki.Server, device, deviceSubject("dev-1")},
	} {
		_, err := tt.issuer.Prepare(tt.profile, tt.subject, req)
		if lint, ok := errors.AsType[*ca.LintError](err); !ok || lint.Rule != "issuer" {
			t.Errorf("%s: Prepare = %v, want a *LintError of rule issuer", tt.what, err)
		}
	}
}

func TestPrepareRefusesKey(t *testing.T) {
	pki := catest.New(t, nil)
	profile := catest.Profile(t, ca.Config{Keys: []ca.KeyAlgorithm{ca.P384}})
	req, err := ca.NewRequest(catest.Key(t, ca.P256).Public(), ca.KeyPolicy{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = pki.Device.Prepare(profile, deviceSubject("dev-1"), req)
	if refused, ok := errors.AsType[*ca.RequestError](err); !ok || refused.Reason != ca.KeyType {
		t.Errorf("Prepare = %v, want %q", err, ca.KeyType)
	}
	forged := &ca.Request{PublicKey: catest.Key(t, ca.P384).Public(), SPKI: [32]byte{1}}
	if _, err := pki.Device.Prepare(profile, deviceSubject("dev-1"), forged); err == nil {
		t.Error("Prepare takes a Request whose hash is not its key's")
	}
}

// A faulty signer is a signer that leaks its key: what it made is not given out.
type faultySigner struct{ crypto.Signer }

func (s faultySigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := s.Signer.Sign(random, digest, opts)
	if err == nil {
		sig[len(sig)-1] ^= 1
	}
	return sig, err
}

// brokenSigner is a token that was pulled.
type brokenSigner struct{ crypto.Signer }

func (brokenSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("CKR_DEVICE_REMOVED")
}

func TestSignerFails(t *testing.T) {
	rootKey, key := catest.Key(t, ca.P256), catest.Key(t, ca.P256)
	cert := deviceCA(t, rootKey, key)
	profile := catest.Profile(t, ca.Config{})
	for what, signer := range map[string]crypto.Signer{"faulty": faultySigner{key}, "broken": brokenSigner{key}} {
		issuer, err := ca.NewIssuer(cert, signer, nil)
		if err != nil {
			t.Fatal(err)
		}
		d := prepare(t, issuer, profile, deviceSubject("dev-1"))
		der, err := d.Sign()
		if err == nil || der != nil {
			t.Errorf("%s signer: Sign = %x, %v", what, der, err)
		}
		if what == "broken" && !errors.Is(err, ca.ErrKeyUnavailable) {
			t.Errorf("%s signer: Sign = %v, want ErrKeyUnavailable", what, err)
		}
		if der, err := issuer.CRL(crlConfig(1), list()); err == nil || der != nil {
			t.Errorf("%s signer: CRL = %x, %v", what, der, err)
		}
	}
}

// deviceCA signs a device CA for key.
func deviceCA(t testing.TB, rootKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	config := ca.AuthorityConfig{Organization: "Acme", Generation: 1}
	rootDER, err := ca.NewRoot(rootKey, config)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(rootDER)
	if err != nil {
		t.Fatal(err)
	}
	config.Purpose = ca.PurposeDevice
	csr, err := ca.NewIntermediateRequest(key, config)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.SignIntermediate(root, rootKey, csr, config)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// iss-009: if randomness repeats, so does the serial number, and whoever has it on
// record refuses; the next Prepare draws another.
func TestSerialComesFromRandomness(t *testing.T) {
	pki := catest.New(t, nil)
	profile := catest.Profile(t, ca.Config{})
	req, err := ca.NewRequest(catest.Key(t, ca.P256).Public(), profile.KeyPolicy())
	if err != nil {
		t.Fatal(err)
	}
	draw := func() [16]byte {
		d, err := pki.Device.Prepare(profile, deviceSubject("dev-1"), req)
		if err != nil {
			t.Fatal(err)
		}
		return d.Serial()
	}
	cryptotest.SetGlobalRandom(t, 1)
	first, second := draw(), draw()
	cryptotest.SetGlobalRandom(t, 1)
	if again := draw(); again != first {
		t.Errorf("the same randomness gives %x and %x", first, again)
	}
	if first == second {
		t.Errorf("two drafts have serial number %x", first)
	}
}

// Issuers and profiles are used from many goroutines at once: the bulk job.
func TestConcurrentIssue(t *testing.T) {
	pki := catest.New(t, nil)
	profile := catest.Profile(t, ca.Config{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	serials := make(map[[16]byte]bool)
	for range 8 {
		wg.Go(func() {
			for range 20 {
				req, err := ca.NewRequest(catest.Key(t, ca.P256).Public(), profile.KeyPolicy())
				if err != nil {
					t.Error(err)
					return
				}
				d, err := pki.Device.Prepare(profile, deviceSubject("dev-1"), req)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := d.Sign(); err != nil {
					t.Error(err)
				}
				mu.Lock()
				serials[d.Serial()] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(serials) != 160 {
		t.Errorf("%d serial numbers, want 160", len(serials))
	}
}

// Whatever the inventory says about a device, the certificate carries exactly
// that, and verifies.
func TestLeafSaysWhatItWasTold(t *testing.T) {
	pki := catest.New(t, nil)
	roots, issuers := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(pki.Root.Certificate())
	issuers.AddCert(pki.Device.Certificate())
	profile := catest.Profile(t, ca.Config{})
	key := catest.Key(t, ca.P256)
	id := rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9_-]{0,63}`)
	rapid.Check(t, func(r *rapid.T) {
		s := ca.Subject{ID: id.Draw(r, "id"), Organization: rapid.StringMatching(`[A-Za-z][A-Za-z .&]{0,30}[A-Za-z]`).Draw(r, "o"), TrustDomain: "acme.example"}
		req, err := ca.ParseRequest(catest.CSR(t, key, s.ID), profile.KeyPolicy())
		if err != nil {
			r.Fatal(err)
		}
		d, err := pki.Device.Prepare(profile, s, req)
		if err != nil {
			r.Fatal(err)
		}
		c := sign(t, d)
		if c.Subject.CommonName != s.ID || len(c.Subject.Names) != 2 || c.Subject.Organization[0] != s.Organization {
			r.Errorf("subject %s, want %+v", c.Subject, s)
		}
		if _, err := c.Verify(x509.VerifyOptions{Roots: roots, Intermediates: issuers, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			r.Error(err)
		}
		if sha256.Sum256(c.RawSubjectPublicKeyInfo) != req.SPKI {
			r.Error("certificate is for another key")
		}
	})
}

func TestSubjectRefused(t *testing.T) {
	pki := catest.New(t, nil)
	device := catest.Profile(t, ca.Config{})
	server := catest.Profile(t, ca.Config{Kind: ca.KindServer})
	birth := catest.Profile(t, ca.Config{Kind: ca.KindIDevID, IDevID: ca.IDevIDConfig{HardwareType: "1.3.6.1.4.1.32473.7"}})
	req, err := ca.NewRequest(catest.Key(t, ca.P256).Public(), ca.KeyPolicy{})
	if err != nil {
		t.Fatal(err)
	}
	host := []string{"broker"}
	for _, tt := range []struct {
		field   string
		issuer  *ca.Issuer
		profile *ca.Profile
		subject ca.Subject
	}{
		{"id", pki.Device, device, ca.Subject{TrustDomain: "a"}},
		{"id", pki.Device, device, ca.Subject{TrustDomain: "a", ID: "dev:1"}},
		{"id", pki.Device, device, ca.Subject{TrustDomain: "a", ID: "dev.1"}},
		{"id", pki.Device, device, ca.Subject{TrustDomain: "a", ID: "-dev"}},
		{"id", pki.Device, device, ca.Subject{TrustDomain: "a", ID: "dev 1"}},
		{"id", pki.Device, device, ca.Subject{TrustDomain: "a", ID: "dev\x001"}},
		{"id", pki.Device, device, ca.Subject{TrustDomain: "a", ID: "dév"}},
		{"id", pki.Device, device, ca.Subject{TrustDomain: "a", ID: string(bytes.Repeat([]byte("a"), 65))}},
		{"trust domain", pki.Device, device, ca.Subject{ID: "dev-1"}},
		{"trust domain", pki.Device, device, ca.Subject{ID: "dev-1", TrustDomain: "Acme.example"}},
		{"trust domain", pki.Device, device, ca.Subject{ID: "dev-1", TrustDomain: "a/b"}},
		{"organization", pki.Device, device, ca.Subject{ID: "dev-1", TrustDomain: "a", Organization: "A,CN=admin"}},
		{"organization", pki.Device, device, ca.Subject{ID: "dev-1", TrustDomain: "a", Organization: "A\nB"}},
		{"organization", pki.Device, device, ca.Subject{ID: "dev-1", TrustDomain: "a", Organization: "A\u202e"}},
		{"organization", pki.Device, device, ca.Subject{ID: "dev-1", TrustDomain: "a", Organization: " A"}},
		{"hardware serial", pki.Device, birth, ca.Subject{ID: "dev-1"}},
		{"hardware serial", pki.Device, birth, ca.Subject{ID: "dev-1", HardwareSerial: "a_b"}},
		{"id", pki.Server, server, ca.Subject{ID: "not a host", DNSNames: host}},
		{"names of a server", pki.Server, server, ca.Subject{ID: "broker"}},
		{"DNS name", pki.Server, server, ca.Subject{ID: "broker", DNSNames: []string{"*.example"}}},
		{"DNS name", pki.Server, server, ca.Subject{ID: "broker", DNSNames: []string{"192.0.2.1"}}},
		{"DNS name", pki.Server, server, ca.Subject{ID: "broker", DNSNames: []string{"a..b"}}},
		{"address", pki.Server, server, ca.Subject{ID: "broker", IPAddresses: []net.IP{{1, 2, 3}}}},
	} {
		_, err := tt.issuer.Prepare(tt.profile, tt.subject, req)
		if bad, ok := errors.AsType[*ca.ConfigError](err); !ok || bad.Field != tt.field {
			t.Errorf("%+v: Prepare = %v, want a *ConfigError about %q", tt.subject, err, tt.field)
		}
	}
}
