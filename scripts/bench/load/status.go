package main

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"
)

// ocsp asks for the status of devices: with a nonce, so that each answer is signed,
// and without, the second time.
func (l *load) ocsp(devices []device) error {
	httpAddr, _, _ := strings.Cut(l.addr, ",")
	issuer, err := readIssuer(l.fleet, httpAddr, devices[0].pair.Certificate[0])
	if err != nil {
		return err
	}
	requests := make([][]byte, len(devices))
	for i := range devices {
		leaf, err := x509.ParseCertificate(devices[i].pair.Certificate[0])
		if err != nil {
			return err
		}
		der, err := ocsp.CreateRequest(leaf, issuer, &ocsp.RequestOptions{Hash: crypto.SHA256})
		if err != nil {
			return err
		}
		requests[i] = []byte("GET /ocsp/" + base64.StdEncoding.EncodeToString(der) + " HTTP/1.1\r\nHost: localhost\r\n\r\n")
	}
	for _, name := range []string{"OCSP, signed now", "OCSP, signed before"} {
		if err := l.ask(name, httpAddr, requests); err != nil {
			return err
		}
	}
	return nil
}

func (l *load) ask(name, addr string, requests [][]byte) error {
	issue := rawIssue()
	conns := make([]*conn, l.clients)
	for i := range conns {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		conns[i] = &conn{c, bufio.NewReader(c)}
	}
	took := make([]time.Duration, len(requests))
	before, start := cpu(l.pid), time.Now()
	err := parallel(l.clients, len(requests), func(w, i int) error {
		began := time.Now()
		code, body, err := conns[w].do(requests[i])
		if err != nil || code != http.StatusOK || bytes.HasPrefix(body, []byte{0x30, 3}) {
			return fmt.Errorf("%d %x %w", code, body, err)
		}
		took[i] = time.Since(began)
		return nil
	})
	if err == nil {
		l.report(name, len(requests), cpu(l.pid)-before, time.Since(start), issue, took)
	}
	return err
}

// readIssuer finds the issuer of a leaf among what the server publishes.
func readIssuer(fleet, _ string, leaf []byte) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(leaf)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(fleet, "issuer.pem"))
	if err != nil {
		return nil, fmt.Errorf("the certificate of the device CA has to be in FLEET/issuer.pem: %w", err)
	}
	pool, err := parseOne(text)
	if err != nil {
		return nil, err
	}
	return pool, cert.CheckSignatureFrom(pool)
}

// idle opens connections and leaves them alone.
func (l *load) idle(config *tls.Config) error {
	before := memory(l.pid)
	conns := make([]*conn, l.n)
	err := parallel(32, l.n, func(_, i int) (err error) { conns[i], err = dial(l.addr, config, nil); return err })
	if err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	after := memory(l.pid)
	fmt.Printf("%d idle TLS connections: %d MiB, %d MiB without them, %.1f KiB each\n", l.n, after>>10, before>>10, float64(after-before)/float64(l.n))
	probe, err := dial(l.addr, config, nil)
	if err != nil {
		return err
	}
	began := time.Now()
	code, _, err := probe.do([]byte("GET /v1/trust-bundle HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	fmt.Printf("a request meanwhile: status %d, %.1f ms\n", code, float64(time.Since(began).Microseconds())/1000)
	for _, c := range conns {
		_ = c.c.Close()
	}
	return err
}

// memory is the resident memory of a process, in KiB.
func memory(pid string) int {
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n := 0
			_, _ = fmt.Sscanf(rest, "%d", &n)
			return n
		}
	}
	return 0
}
