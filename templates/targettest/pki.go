package targettest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// TrustDomain is that of the SPIFFE IDs in the certificates.
const TrustDomain = "acme.example"

// A PKI is what an export needs of a CA, made with crypto/x509 alone so that
// tests of targets do not depend on package ca: a root, a CA for devices and one
// for servers, and the certificate of a server at localhost.
type PKI struct {
	Root, Device, Server *CA

	now     time.Time
	serial  int64
	revoked []x509.RevocationListEntry
	number  int64
}

// A CA is a certificate and its key.
type CA struct {
	Certificate *x509.Certificate
	Key         *ecdsa.PrivateKey
}

// NewPKI makes a PKI whose certificates are valid from one hour before now for
// ten years.
func NewPKI(tb testing.TB, now time.Time) *PKI {
	tb.Helper()
	p := &PKI{now: now}
	p.Root = p.newCA(tb, "Acme Root R1", nil, nil)
	p.Device = p.newCA(tb, "Acme Device CA D1", p.Root, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth})
	p.Server = p.newCA(tb, "Acme Server CA S1", p.Root, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth})
	return p
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func (p *PKI) template(name string) *x509.Certificate {
	p.serial++
	return &x509.Certificate{
		SerialNumber: big.NewInt(p.serial),
		Subject:      pkix.Name{Organization: []string{"Acme"}, CommonName: name},
		NotBefore:    p.now.Add(-time.Hour),
		NotAfter:     p.now.AddDate(10, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

func (p *PKI) newCA(tb testing.TB, name string, parent *CA, usage []x509.ExtKeyUsage) *CA {
	tb.Helper()
	t := p.template(name)
	t.IsCA, t.BasicConstraintsValid, t.ExtKeyUsage = true, true, usage
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	ca := &CA{Key: newKey(tb)}
	if parent == nil {
		parent = &CA{t, ca.Key}
	}
	ca.Certificate = p.sign(tb, t, parent, ca.Key)
	return ca
}

func (p *PKI) sign(tb testing.TB, t *x509.Certificate, parent *CA, key *ecdsa.PrivateKey) *x509.Certificate {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, t, parent.Certificate, key.Public(), parent.Key)
	if err != nil {
		tb.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// Client makes a client certificate with the common name id and a SPIFFE ID in
// acme.example; its chain has the issuing CA.
func (p *PKI) Client(tb testing.TB, id string) tls.Certificate {
	tb.Helper()
	t := p.template(id)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	t.URIs = []*url.URL{{Scheme: "spiffe", Host: TrustDomain, Path: "/device/" + id}}
	key := newKey(tb)
	leaf := p.sign(tb, t, p.Device, key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw, p.Device.Certificate.Raw}, PrivateKey: key, Leaf: leaf}
}

// Revoke puts a certificate on the CRLs made from now on.
func (p *PKI) Revoke(c tls.Certificate, at time.Time) {
	p.revoked = append(p.revoked, x509.RevocationListEntry{SerialNumber: c.Leaf.SerialNumber, RevocationTime: at, ReasonCode: int(inventory.KeyCompromise)})
}

// CRL makes the next CRL of the device CA.
func (p *PKI) CRL(tb testing.TB, thisUpdate, nextUpdate time.Time) templates.CRL {
	tb.Helper()
	p.number++
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(p.number), ThisUpdate: thisUpdate, NextUpdate: nextUpdate, RevokedCertificateEntries: p.revoked,
	}, p.Device.Certificate, p.Device.Key)
	if err != nil {
		tb.Fatal(err)
	}
	return templates.CRL{
		Issuer: "device-1", DER: der, Number: uint64(p.number),
		ThisUpdate: thisUpdate, NextUpdate: nextUpdate, Entries: len(p.revoked),
	}
}

// TrustBundle is what client certificates are checked with, in PEM.
func (p *PKI) TrustBundle() []byte {
	return append(certPEM(p.Root.Certificate.Raw), certPEM(p.Device.Certificate.Raw)...)
}

// Roots is what clients check the server with.
func (p *PKI) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.Root.Certificate)
	return pool
}

// Node makes the broker node: localhost, with a certificate.
func (p *PKI) Node(tb testing.TB) templates.Node {
	tb.Helper()
	t := p.template("broker-1")
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	t.DNSNames = []string{"localhost"}
	t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	key := newKey(tb)
	leaf := p.sign(tb, t, p.Server, key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return templates.Node{
		Name: "broker-1", Hosts: []string{"localhost", "127.0.0.1"},
		ServerChain: append(certPEM(leaf.Raw), certPEM(p.Server.Certificate.Raw)...),
		ServerKey:   inventory.NewSecret(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
