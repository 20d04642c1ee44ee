package ca_test

import (
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
)

func issueBench(b *testing.B) (*ca.Issuer, *ca.Profile, ca.Subject, *ca.Request) {
	b.Helper()
	pki := catest.New(b, nil)
	profile := catest.Profile(b, ca.Config{})
	req, err := ca.NewRequest(catest.Key(b, ca.P256).Public(), profile.KeyPolicy())
	if err != nil {
		b.Fatal(err)
	}
	s := ca.Subject{ID: "dev-1", Organization: catest.Organization, TrustDomain: catest.TrustDomain}
	return pki.Device, profile, s, req
}

// BenchmarkIssue is Prepare and Sign: a certificate that was linted.
func BenchmarkIssue(b *testing.B) {
	issuer, profile, s, req := issueBench(b)
	for b.Loop() {
		d, err := issuer.Prepare(profile, s, req)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := d.Sign(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIssueParallel is BenchmarkIssue on every core, with one issuer.
func BenchmarkIssueParallel(b *testing.B) {
	issuer, profile, s, req := issueBench(b)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			d, err := issuer.Prepare(profile, s, req)
			if err != nil {
				b.Error(err)
				return
			}
			if _, err := d.Sign(); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkCreateCertificate is the yardstick: x509.CreateCertificate of the same
// certificate, without any check.
func BenchmarkCreateCertificate(b *testing.B) {
	key, parentKey := catest.Key(b, ca.P256), catest.Key(b, ca.P256)
	der, err := ca.NewRoot(parentKey, ca.AuthorityConfig{Organization: "Acme", Generation: 1})
	if err != nil {
		b.Fatal(err)
	}
	parent, err := x509.ParseCertificate(der)
	if err != nil {
		b.Fatal(err)
	}
	issuer, profile, s, req := issueBench(b)
	d, err := issuer.Prepare(profile, s, req)
	if err != nil {
		b.Fatal(err)
	}
	if der, err = d.Sign(); err != nil {
		b.Fatal(err)
	}
	like, err := x509.ParseCertificate(der)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{
		RawSubject: like.RawSubject, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), URIs: like.URIs,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, SubjectKeyId: like.SubjectKeyId,
	}
	for b.Loop() {
		template.SerialNumber = new(big.Int).SetInt64(1 << 60)
		if _, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParseRequest is the fence with the proof of possession.
func BenchmarkParseRequest(b *testing.B) {
	csr := catest.CSR(b, catest.Key(b, ca.P256), "dev-1")
	for b.Loop() {
		if _, err := ca.ParseRequest(csr, ca.KeyPolicy{}); err != nil {
			b.Fatal(err)
		}
	}
}
