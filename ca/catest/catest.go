// Package catest makes small hierarchies of CAs for the tests of other packages:
// a root, a device CA and a server CA, all P-256, in a millisecond.
package catest

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
)

// Organization and TrustDomain are in every certificate made here.
const (
	Organization = "Acme"
	TrustDomain  = "acme.example"
)

// A PKI is a hierarchy with its keys in memory.
type PKI struct {
	Root, Device, Server *ca.Issuer

	tb testing.TB
}

// A Leaf is an end-entity certificate with its key and its issuers.
type Leaf struct {
	Key   crypto.Signer
	DER   []byte
	Chain []byte // PEM: the leaf, then its issuing CA
	PEM   []byte // PEM: the leaf alone
}

// New makes a hierarchy. now is the time for everything it decides; nil means
// time.Now.
func New(tb testing.TB, now func() time.Time) *PKI {
	tb.Helper()
	return NewWith(tb, ca.P256, now)
}

// NewWith is New with CA keys of another algorithm.
func NewWith(tb testing.TB, alg ca.KeyAlgorithm, now func() time.Time) *PKI {
	tb.Helper()
	p := &PKI{tb: tb}
	rootKey := Key(tb, alg)
	der, err := ca.NewRoot(rootKey, ca.AuthorityConfig{Organization: Organization, Generation: 1, Now: now})
	if err != nil {
		tb.Fatal(err)
	}
	p.Root = p.issuer(der, rootKey, now)
	p.Device = p.Intermediate(alg, ca.AuthorityConfig{Organization: Organization, Generation: 1, Purpose: ca.PurposeDevice, Now: now}, rootKey)
	p.Server = p.Intermediate(alg, ca.AuthorityConfig{Organization: Organization, Generation: 1, Purpose: ca.PurposeServer, Now: now}, rootKey)
	return p
}

// Intermediate makes another issuing CA under the root, whose key the caller
// has.
func (p *PKI) Intermediate(alg ca.KeyAlgorithm, c ca.AuthorityConfig, rootKey crypto.Signer) *ca.Issuer {
	p.tb.Helper()
	key := Key(p.tb, alg)
	csr, err := ca.NewIntermediateRequest(key, c)
	if err != nil {
		p.tb.Fatal(err)
	}
	der, err := ca.SignIntermediate(p.Root.Certificate(), rootKey, csr, c)
	if err != nil {
		p.tb.Fatal(err)
	}
	return p.issuer(der, key, c.Now)
}

func (p *PKI) issuer(der []byte, key crypto.Signer, now func() time.Time) *ca.Issuer {
	p.tb.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		p.tb.Fatal(err)
	}
	i, err := ca.NewIssuer(cert, key, now)
	if err != nil {
		p.tb.Fatal(err)
	}
	return i
}

// Profile makes a profile or fails the test.
func Profile(tb testing.TB, c ca.Config) *ca.Profile {
	tb.Helper()
	p, err := ca.NewProfile(c)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// Key makes a private key or fails the test.
func Key(tb testing.TB, alg ca.KeyAlgorithm) crypto.Signer {
	tb.Helper()
	key, err := ca.GenerateKey(alg)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// KeyPEM returns a private key as unencrypted PKCS #8 in PEM.
func KeyPEM(tb testing.TB, key crypto.Signer) []byte {
	tb.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// CSR makes a certification request with a common name, or without one if id is
// empty, in DER.
func CSR(tb testing.TB, key crypto.Signer, id string) []byte {
	tb.Helper()
	t := &x509.CertificateRequest{}
	if id != "" {
		t.Subject.CommonName = id
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, t, key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// DeviceLeaf issues a certificate to a device, for a new P-256 key.
func (p *PKI) DeviceLeaf(id string) Leaf {
	p.tb.Helper()
	return p.Issue(p.Device, Profile(p.tb, ca.Config{}), ca.P256,
		ca.Subject{ID: id, Organization: Organization, TrustDomain: TrustDomain})
}

// ServerLeaf issues a certificate to a server named name (a host name), which is
// also reachable at 127.0.0.1.
func (p *PKI) ServerLeaf(name string) Leaf {
	p.tb.Helper()
	return p.Issue(p.Server, Profile(p.tb, ca.Config{Kind: ca.KindServer}), ca.P256, ca.Subject{
		ID: name, Organization: Organization, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
}

// Issue issues a certificate for a new key.
func (p *PKI) Issue(i *ca.Issuer, profile *ca.Profile, alg ca.KeyAlgorithm, s ca.Subject) Leaf {
	p.tb.Helper()
	key := Key(p.tb, alg)
	req, err := ca.NewRequest(key.Public(), profile.KeyPolicy())
	if err != nil {
		p.tb.Fatal(err)
	}
	d, err := i.Prepare(profile, s, req)
	if err != nil {
		p.tb.Fatal(err)
	}
	der, err := d.Sign()
	if err != nil {
		p.tb.Fatal(err)
	}
	return Leaf{Key: key, DER: der, PEM: ca.CertificatePEM(der), Chain: ca.CertificatePEM(der, i.Certificate().Raw)}
}

// RootPEM returns the trust anchor in PEM.
func (p *PKI) RootPEM() []byte { return ca.CertificatePEM(p.Root.Certificate().Raw) }
