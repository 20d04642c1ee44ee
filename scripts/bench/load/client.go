package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/remote"
)

// A device asks for a certificate.
type device struct {
	id    string
	key   crypto.Signer
	csr   []byte
	token string
	hash  inventory.Hash  // of the token
	pair  tls.Certificate // once it is enrolled
}

// makeDevices makes keys and requests, and a token for each, through the server's
// socket.
func makeDevices(fleet, name string, n int) ([]device, error) {
	store, err := remote.Dial(context.Background(), filepath.Join(fleet, "imprint.sock"))
	if err != nil {
		return nil, err
	}
	r, err := enroll.New(enroll.Config{
		Store: store, Organization: "acme", TrustDomain: "acme",
		Open: func(context.Context, inventory.Issuer) (*ca.Issuer, error) { return nil, ca.ErrKeyUnavailable },
	})
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	devices := make([]device, n)
	err = parallel(32, n, func(_, i int) error {
		d := &devices[i]
		d.id = fmt.Sprintf("%s-%d", name, i)
		var err error
		if d.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return err
		}
		if d.csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: d.id}}, d.key); err != nil {
			return err
		}
		secret, t, err := r.MakeToken(context.Background(), "bench", "", inventory.Token{Role: inventory.DeviceRole, Devices: []inventory.DeviceID{inventory.DeviceID(d.id)}, Profile: "default"})
		d.token, d.hash = api.TokenText(secret.Reveal()), t.Hash
		return err
	})
	return devices, errors.Join(err, store.Close())
}

// parallel calls fn for 0 to n-1. A worker whose call fails ends; the error is one
// of theirs.
func parallel(workers, n int, fn func(worker, i int) error) error {
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make(chan error, workers)
	for w := range workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := fn(w, i); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

func post(path, headers string, body []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n%s", path, headers, len(body), body)
	return b.Bytes()
}

const isPKCS10 = "Content-Type: application/pkcs10\r\n"

func enrollRequest(d *device) []byte {
	return post("/.well-known/est/simpleenroll", "Authorization: Bearer "+d.token+"\r\n"+isPKCS10, api.EncodeLine(d.csr))
}

func renewRequest(d *device) []byte {
	return post("/.well-known/est/simplereenroll", isPKCS10, api.EncodeLine(d.csr))
}

// renewCSR has the names of the certificate, and another key.
func renewCSR(d *device) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(d.pair.Certificate[0])
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: leaf.RawSubject, URIs: leaf.URIs}, key)
}

// clientConfig trusts the fleet's root.
func clientConfig(fleet string) (*tls.Config, error) {
	text, err := os.ReadFile(filepath.Join(fleet, "root/root-1.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS13}, nil
}

// A conn is one client.
type conn struct {
	c net.Conn
	r *bufio.Reader
}

func dial(addr string, config *tls.Config, pair *tls.Certificate) (*conn, error) {
	if pair != nil {
		config = config.Clone()
		config.Certificates = []tls.Certificate{*pair}
	}
	c, err := tls.Dial("tcp", addr, config)
	if err != nil {
		return nil, err
	}
	return &conn{c, bufio.NewReader(c)}, nil
}

// close ends a connection, if there is one.
func (c *conn) close() {
	if c != nil {
		_ = c.c.Close()
	}
}

// A statusError is an answer other than 200.
type statusError struct {
	code       int
	retryAfter string
	body       []byte
}

func (e *statusError) Error() string { return fmt.Sprintf("%d %.200s", e.code, e.body) }

// do sends a request and returns the body of the answer; an answer other than 200
// is a *statusError.
func (c *conn) do(req []byte) ([]byte, error) {
	if _, err := c.c.Write(req); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = &statusError{resp.StatusCode, resp.Header.Get("Retry-After"), b}
	}
	return b, err
}

// enroll returns the certificate of a device.
func (c *conn) enroll(d *device) ([]byte, error) {
	body, err := c.do(enrollRequest(d))
	if err != nil {
		return nil, err
	}
	der, err := api.DecodeLine(body)
	if err != nil {
		return nil, err
	}
	certs, err := api.ParseCertsOnly(der)
	if err != nil || len(certs) == 0 {
		return nil, fmt.Errorf("no certificate: %w", err)
	}
	return certs[0], nil
}

// dialAll opens connections, one for each pair or n without.
func dialAll(addr string, config *tls.Config, n int, pair func(i int) *tls.Certificate) ([]*conn, error) {
	conns := make([]*conn, n)
	return conns, parallel(16, n, func(_, i int) (err error) {
		conns[i], err = dial(addr, config, pair(i))
		return err
	})
}

func nobody(int) *tls.Certificate { return nil }

func closeAll(conns []*conn) {
	for _, c := range conns {
		c.close()
	}
}
