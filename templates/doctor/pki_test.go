package doctor_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"testing/fstest"
	"time"
)

const days = 24 * time.Hour

// A pki is a CA, and certificates and CRLs in all conditions.
type pki struct {
	t    testing.TB
	now  time.Time
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	list fstest.MapFS
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	p := &pki{t: t, now: today(), list: fstest.MapFS{}}
	p.key = p.newKey()
	good := p.newCA(2000 * days)
	p.ca = good
	put := func(name, kind string, der ...[]byte) {
		var b bytes.Buffer
		for _, d := range der {
			if err := pem.Encode(&b, &pem.Block{Type: kind, Bytes: d}); err != nil {
				t.Fatal(err)
			}
		}
		p.list[name] = &fstest.MapFile{Data: b.Bytes(), Mode: 0o640}
	}
	put("ca.pem", "CERTIFICATE", good.Raw)
	put("ca-expired.pem", "CERTIFICATE", p.newCA(-days).Raw)
	put("ca-soon.pem", "CERTIFICATE", p.newCA(60*days).Raw)
	key := p.newKey()
	put("server.pem", "CERTIFICATE", p.server(key, 300*days))
	put("server-expired.pem", "CERTIFICATE", p.server(key, -days))
	put("server-soon.pem", "CERTIFICATE", p.server(key, 20*days))
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	put("server-weak.pem", "CERTIFICATE", p.server(weak, 300*days))
	put("crl.pem", "X509 CRL", p.crl(-8*days, -days), p.crl(-days, 7*days)) // the old one too
	put("crl-expired.pem", "X509 CRL", p.crl(-8*days, -days))
	put("crl-half.pem", "X509 CRL", p.crl(-6*days, 2*days))
	put("key.pem", "PRIVATE KEY", []byte("not looked at"))
	put("key-open.pem", "PRIVATE KEY", []byte("not looked at"))
	p.list["key-open.pem"].Mode = 0o644
	p.list["certs/server.pem"], p.list["certs/ca.pem"] = p.list["server.pem"], p.list["ca.pem"]
	p.list["certs/key.pem"], p.list["certs/key-open.pem"] = p.list["key.pem"], p.list["key-open.pem"]
	own := p.key
	p.key = p.newKey()
	put("crl-foreign.pem", "X509 CRL", p.crl(-days, 7*days))
	p.key = own
	return p
}

// files is a copy that a case can add its own to.
func (p *pki) files() fstest.MapFS {
	out := fstest.MapFS{}
	for name, f := range p.list {
		c := *f
		out[name] = &c
	}
	return out
}

func (p *pki) newKey() *ecdsa.PrivateKey {
	p.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	return k
}

func (p *pki) newCA(left time.Duration) *x509.Certificate {
	p.t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"},
		NotBefore: p.now.Add(-1000 * days), NotAfter: p.now.Add(left),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, p.key.Public(), p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	c, err = x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

func (p *pki) server(key crypto.Signer, left time.Duration) []byte {
	p.t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "broker"},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: p.now.Add(-100 * days), NotAfter: p.now.Add(left),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, p.ca, key.Public(), p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	return der
}

func (p *pki) crl(from, to time.Duration) []byte {
	p.t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: p.now.Add(from), NextUpdate: p.now.Add(to),
	}, p.ca, p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	return der
}

// identity is a server certificate with its key, for a live endpoint.
func (p *pki) identity(key crypto.Signer, left time.Duration) tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{p.server(key, left)}, PrivateKey: key}
}
