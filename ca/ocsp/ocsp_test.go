package ocsp_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"github.com/imprint-iot/imprint/ca/ocsp"
)

// A pki is an issuer with a responder of some kind of key.
type pki struct {
	issuer, responder *x509.Certificate
	key               crypto.Signer
	leaf              *x509.Certificate
}

func sign(t testing.TB, c, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func ecKey(t testing.TB, c elliptic.Curve) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// newPKI makes an issuer for client certificates, which may delegate answering all
// the same.
func newPKI(t testing.TB, key crypto.Signer) *pki {
	t.Helper()
	caKey := ecKey(t, elliptic.P256())
	p := &pki{key: key}
	p.issuer = sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Device CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, SubjectKeyId: []byte{1, 2, 3},
	}, nil, caKey.Public(), caKey)
	p.responder = sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "ocsp"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		ExtraExtensions: []pkix.Extension{{Id: []int{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: []byte{5, 0}}},
	}, p.issuer, key.Public(), caKey)
	p.leaf = sign(t, &x509.Certificate{SerialNumber: new(big.Int).SetBytes([]byte{0xff, 1, 2, 3}), Subject: pkix.Name{CommonName: "dev-1"}}, p.issuer, ecKey(t, elliptic.P256()).Public(), caKey)
	return p
}

func openssl(t *testing.T, dir string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is required: install the Debian package openssl")
	}
	cmd := exec.Command("openssl", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func (p *pki) files(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, c := range map[string]*x509.Certificate{"issuer.pem": p.issuer, "leaf.pem": p.leaf} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// What openssl asks is read, and what is answered openssl believes, whatever key
// the responder has.
func TestOpenSSL(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384()), "RSA": rsaKey, "Ed25519": ed} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t, key)
			dir := p.files(t)
			for _, hash := range []string{"-sha1", "-sha256"} {
				openssl(t, dir, "ocsp", "-issuer", "issuer.pem", hash, "-cert", "leaf.pem", "-serial", "0x1234", "-reqout", "req.der")
				der, err := os.ReadFile(filepath.Join(dir, "req.der"))
				if err != nil {
					t.Fatal(err)
				}
				req, err := ocsp.ParseRequest(der)
				if err != nil || len(req.IDs) != 2 || len(req.Nonce) == 0 {
					t.Fatalf("%+v, %v", req, err)
				}
				id, err := ocsp.IssuerOf(p.issuer)
				if err != nil || !id.Issued(req.IDs[0]) || new(big.Int).SetBytes(req.IDs[0].Serial).Cmp(p.leaf.SerialNumber) != 0 {
					t.Errorf("the first is not that of the leaf: %v", err)
				}
				r, err := ocsp.NewResponder(p.responder, key, p.issuer)
				if err != nil {
					t.Fatal(err)
				}
				now := time.Now()
				answer, err := r.Sign([]ocsp.Single{
					{ID: req.IDs[0], State: ocsp.Revoked, RevokedAt: now.Add(-time.Minute), Reason: 1, ThisUpdate: now, NextUpdate: now.Add(time.Hour)},
					{ID: req.IDs[1], ThisUpdate: now, NextUpdate: now.Add(time.Hour)},
				}, req.Nonce, now)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "resp.der"), answer, 0o600); err != nil {
					t.Fatal(err)
				}
				if !bytes.Contains(answer, req.Nonce) {
					t.Errorf("%s: the answer lacks the nonce of the request", hash)
				}
				out := openssl(t, dir, "ocsp", "-issuer", "issuer.pem", hash, "-cert", "leaf.pem", "-serial", "0x1234", "-no_nonce", "-respin", "resp.der", "-CAfile", "issuer.pem", "-partial_chain")
				for _, want := range []string{"Response verify OK", "leaf.pem: revoked", "Reason: keyCompromise", "0x1234: unknown"} {
					if !strings.Contains(out, want) {
						t.Errorf("%s: openssl says %q, want %q", hash, out, want)
					}
				}
			}
		})
	}
}

// golang.org/x/crypto/ocsp is the second reader.
func TestGoReader(t *testing.T) {
	p := newPKI(t, ecKey(t, elliptic.P256()))
	for _, own := range []bool{false, true} {
		var r *ocsp.Responder
		var err error
		if own {
			q := newOwn(t)
			p, r = q.pki, q.r
		} else if r, err = ocsp.NewResponder(p.responder, p.key, p.issuer); err != nil {
			t.Fatal(err)
		}
		der, err := xocsp.CreateRequest(p.leaf, p.issuer, &xocsp.RequestOptions{Hash: crypto.SHA256})
		if err != nil {
			t.Fatal(err)
		}
		req, err := ocsp.ParseRequest(der)
		if err != nil || req.Nonce != nil {
			t.Fatal(err)
		}
		now := time.Now()
		for _, state := range []ocsp.State{ocsp.Unknown, ocsp.Good, ocsp.Revoked} {
			answer, err := r.Sign([]ocsp.Single{{ID: req.IDs[0], State: state, RevokedAt: now, ThisUpdate: now, NextUpdate: now.Add(time.Hour)}}, nil, now)
			if err != nil {
				t.Fatal(err)
			}
			got, err := xocsp.ParseResponseForCert(answer, p.leaf, p.issuer)
			want := map[ocsp.State]int{ocsp.Unknown: xocsp.Unknown, ocsp.Good: xocsp.Good, ocsp.Revoked: xocsp.Revoked}[state]
			if err != nil || got.Status != want {
				t.Errorf("state %d is read as %+v, %v", state, got, err)
			}
		}
	}
	for _, f := range []ocsp.Failure{ocsp.MalformedRequest, ocsp.InternalError, ocsp.TryLater, ocsp.Unauthorized} {
		_, err := xocsp.ParseResponse(f.Response(), nil)
		if bad, ok := errors.AsType[xocsp.ResponseError](err); !ok || int(bad.Status) != int(f) {
			t.Errorf("failure %d is read as %v", f, err)
		}
	}
}

type own struct {
	*pki
	r *ocsp.Responder
}

// newOwn makes an issuer that answers itself.
func newOwn(t *testing.T) own {
	t.Helper()
	key := ecKey(t, elliptic.P256())
	p := &pki{key: key}
	p.issuer = sign(t, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, key.Public(), key)
	p.leaf = sign(t, &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "dev-1"}}, p.issuer, ecKey(t, elliptic.P256()).Public(), key)
	r, err := ocsp.NewResponder(p.issuer, key, p.issuer)
	if err != nil {
		t.Fatal(err)
	}
	return own{p, r}
}

func TestNewResponder(t *testing.T) {
	p, q := newPKI(t, ecKey(t, elliptic.P256())), newPKI(t, ecKey(t, elliptic.P256()))
	for name, try := range map[string]func() error{
		"a leaf":           func() error { _, err := ocsp.NewResponder(p.leaf, p.key, p.issuer); return err },
		"another issuer's": func() error { _, err := ocsp.NewResponder(q.responder, q.key, p.issuer); return err },
		"another key":      func() error { _, err := ocsp.NewResponder(p.responder, q.key, p.issuer); return err },
	} {
		if try() == nil {
			t.Errorf("%s may answer", name)
		}
	}
}

func TestMalformed(t *testing.T) {
	p := newPKI(t, ecKey(t, elliptic.P256()))
	good, err := xocsp.CreateRequest(p.leaf, p.issuer, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ocsp.ParseRequest(good); err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{
		"empty": nil, "too large": make([]byte, ocsp.MaxRequestSize+1), "bytes after it": append(bytes.Clone(good), 0),
		"another hash":             bytes.Replace(good, []byte{0x2b, 0x0e, 3, 2, 0x1a}, []byte{0x2b, 0x0e, 3, 2, 0x1b}, 1),
		"no request":               {0x30, 4, 0x30, 2, 0x30, 0},
		"a negative serial number": bytes.Replace(good, []byte{2, 5, 0, 0xff, 1, 2, 3}, []byte{2, 5, 0xff, 0xff, 1, 2, 3}, 1),
	} {
		if _, err := ocsp.ParseRequest(der); !errors.Is(err, ocsp.ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range good {
		if _, err := ocsp.ParseRequest(good[:n]); err == nil {
			t.Errorf("%d of %d octets are read", n, len(good))
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	p := newPKI(f, ecKey(f, elliptic.P256()))
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		der, err := xocsp.CreateRequest(p.leaf, p.issuer, &xocsp.RequestOptions{Hash: hash})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	r, err := ocsp.NewResponder(p.responder, p.key, p.issuer)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		req, err := ocsp.ParseRequest(der)
		if err != nil {
			return
		}
		if len(req.IDs) == 0 || len(req.IDs) > 16 || len(req.Nonce) > 128 {
			t.Errorf("%d ids, a nonce of %d", len(req.IDs), len(req.Nonce))
		}
		now := time.Now()
		answer, err := r.Sign([]ocsp.Single{{ID: req.IDs[0], State: ocsp.Good, ThisUpdate: now, NextUpdate: now}}, req.Nonce, now)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := xocsp.ParseResponse(answer, p.issuer); err != nil {
			t.Errorf("the answer to %x cannot be read: %v", der, err)
		}
	})
}

// rev-016: an answer that nobody would believe is not signed.
func TestEndedResponder(t *testing.T) {
	p := newPKI(t, ecKey(t, elliptic.P256()))
	r, err := ocsp.NewResponder(p.responder, p.key, p.issuer)
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := r.Sign(nil, nil, r.Until().Add(time.Second)); err == nil || answer != nil {
		t.Error("rev-016: signed with a certificate that has ended")
	}
}
