package main

import (
	"bufio"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
)

// ocsp asks for the status of devices: with a nonce, so that each answer has to be
// signed, and without, when all have been asked for once.
func (l *load) ocsp(devices []device) error {
	addr, _, _ := strings.Cut(l.addr, ",")
	issuer, err := readIssuer(l.fleet, devices[0].pair.Certificate[0])
	if err != nil {
		return err
	}
	conns := make([]*conn, l.clients)
	for i := range conns {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		conns[i] = &conn{c, bufio.NewReader(c)}
	}
	withNonce, without := make([][]byte, len(devices)), make([][]byte, len(devices))
	for i := range devices {
		leaf, err := x509.ParseCertificate(devices[i].pair.Certificate[0])
		if err != nil {
			return err
		}
		der, err := ocsp.CreateRequest(leaf, issuer, &ocsp.RequestOptions{Hash: crypto.SHA256})
		if err != nil {
			return err
		}
		without[i] = get("/ocsp/" + base64.StdEncoding.EncodeToString(der))
		if der, err = addNonce(der); err != nil {
			return err
		}
		withNonce[i] = post("/ocsp", "Content-Type: application/ocsp-request\r\n", der)
	}
	ask := func(requests [][]byte) func(w, i int) error {
		return func(w, i int) error {
			body, err := conns[w].do(requests[i])
			if err != nil {
				return err
			}
			// Parsed is one in a hundred: it would cost more than the server's part.
			if i%100 == 0 {
				answer, err := ocsp.ParseResponse(body, issuer)
				if err != nil || answer.Status != ocsp.Good {
					return fmt.Errorf("not good: %w", err)
				}
			}
			if len(body) < 100 {
				return fmt.Errorf("no status: %x", body)
			}
			return nil
		}
	}
	if err := l.measure("OCSP, nonce: signed now", len(devices), goalOf["OCSP now"], ask(withNonce)); err != nil {
		return err
	}
	if err := parallel(l.clients, len(devices), ask(without)); err != nil {
		return err
	}
	return l.measure("OCSP, signed before", len(devices), goalOf["OCSP before"], ask(without))
}

// addNonce puts 32 random octets (RFC 9654 §2.1) into a request that has no
// extensions.
func addNonce(request []byte) ([]byte, error) {
	in, outer, tbs := cryptobyte.String(request), cryptobyte.String(nil), cryptobyte.String(nil)
	if !in.ReadASN1(&outer, cbasn1.SEQUENCE) || !outer.ReadASN1(&tbs, cbasn1.SEQUENCE) {
		return nil, errors.New("not an OCSP request")
	}
	nonce := make([]byte, 32)
	_, _ = rand.Read(nonce) // never fails
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(tbs)
			b.AddASN1(cbasn1.Tag(2).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier([]int{1, 3, 6, 1, 5, 5, 7, 48, 1, 2})
						b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(nonce) })
					})
				})
			})
		})
	})
	return b.Bytes()
}

// readIssuer reads the certificate of the device CA, and proves that it is the
// issuer of a leaf.
func readIssuer(fleet string, leaf []byte) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(leaf)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(fleet, "issuer.pem"))
	if err != nil {
		return nil, fmt.Errorf("the certificate of the device CA has to be in FLEET/issuer.pem: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("issuer.pem: no certificate")
	}
	issuer, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	return issuer, cert.CheckSignatureFrom(issuer)
}
