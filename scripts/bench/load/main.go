// Command load puts an enrollment server under load, for scripts/bench/serve,
// scripts/bench/serve-kill and scripts/bench/decide.
//
//	load enroll FLEET ADDR PID N CLIENTS   EST simpleenroll with one-time tokens, keep-alive
//	load renew  FLEET ADDR PID N CLIENTS   simplereenroll over mutual TLS, keep-alive, then with new connections
//	load ocsp   FLEET ADDR PID N CLIENTS   OCSP over HTTP, ADDR is that of HTTP: signed for each request, then before
//	load idle   FLEET ADDR PID N           N connections that do nothing
//	load kill   FLEET PROGRAM N            kill -9 at random under 64 clients, N times
//	load decide FLAGS                      what brokers ask, at a given rate; -help says more
//	load recipient FILE                    an age key for what bootstrap hands out
//
// The server's CPU is what /proc says of PID. ISSUE is parsing and checking a request
// and x509.CreateCertificate, on one core, in the same run.
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
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/remote"
)

func main() {
	args := append(os.Args[1:], "", "", "")
	var err error
	switch mode := args[0]; {
	case mode == "decide":
		err = decide(os.Args[2:])
	case mode == "bare":
		err = bare()
	case mode == "recipient" && len(os.Args) == 3:
		err = recipient(args[1])
	case len(os.Args) < 5:
		fmt.Fprintln(os.Stderr, "usage: load enroll|renew|ocsp|idle FLEET ADDR PID N CLIENTS, load kill FLEET PROGRAM N, load decide FLAGS, load recipient FILE")
		os.Exit(64)
	case mode == "kill":
		err = kill(args[1], args[2], number(args[3]))
	default:
		l := &load{fleet: args[1], addr: args[2], pid: args[3], n: number(args[4]), clients: 1}
		if len(os.Args) > 6 {
			l.clients = number(args[5])
		}
		err = l.run(mode)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		fmt.Fprintln(os.Stderr, "load: not a number:", s)
		os.Exit(64)
	}
	return n
}

type load struct {
	fleet, addr, pid string
	n, clients       int
}

// A device asks for a certificate.
type device struct {
	id    string
	key   crypto.Signer
	csr   []byte
	token string
	pair  tls.Certificate
}

func (l *load) run(mode string) error {
	roots, err := readRoots(l.fleet)
	if err != nil {
		return err
	}
	config := &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}
	if mode == "idle" {
		return l.idle(config)
	}
	devices, err := makeDevices(l.fleet, fmt.Sprintf("%s-%d", mode, time.Now().UnixNano()%1e9), l.n)
	if err != nil {
		return err
	}
	if mode == "enroll" {
		return l.measure("simpleenroll, keep-alive", devices, config, enrollRequest, false)
	}
	if err := l.enrollAll(devices, config); err != nil {
		return err
	}
	if mode == "ocsp" {
		return l.ocsp(devices)
	}
	for i := range devices {
		d := &devices[i]
		d.csr, err = renewCSR(d)
		if err != nil {
			return err
		}
	}
	half := len(devices) / 2
	if err := l.measure("simplereenroll, keep-alive", devices[:half], config, renewRequest, false); err != nil {
		return err
	}
	return l.measure("simplereenroll, new connection", devices[half:], config, renewRequest, true)
}

func readRoots(fleet string) (*x509.CertPool, error) {
	text, err := os.ReadFile(filepath.Join(fleet, "root/root-1.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pool, nil
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
		return nil, err
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
		secret, _, err := r.MakeToken(context.Background(), "bench", "", inventory.Token{Role: inventory.DeviceRole, Devices: []inventory.DeviceID{inventory.DeviceID(d.id)}, Profile: "default"})
		d.token = api.TokenText(secret.Reveal())
		return err
	})
	return devices, err
}

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

func request(path, auth string, body []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Type: application/pkcs10\r\nContent-Length: %d\r\n\r\n%s", path, auth, len(body), body)
	return b.Bytes()
}

func enrollRequest(d *device) []byte {
	return request("/.well-known/est/simpleenroll", "Authorization: Bearer "+d.token+"\r\n", api.EncodeLine(d.csr))
}

func renewRequest(d *device) []byte {
	return request("/.well-known/est/simplereenroll", "", api.EncodeLine(d.csr))
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

func (c *conn) do(req []byte) (int, []byte, error) {
	if _, err := c.c.Write(req); err != nil {
		return 0, nil, err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

func (l *load) enrollAll(devices []device, config *tls.Config) error {
	conns := make([]*conn, 16)
	return parallel(len(conns), len(devices), func(w, i int) error {
		d := &devices[i]
		if conns[w] == nil {
			var err error
			if conns[w], err = dial(l.addrTLS(), config, nil); err != nil {
				return err
			}
		}
		code, body, err := conns[w].do(enrollRequest(d))
		if err != nil || code != http.StatusOK {
			return fmt.Errorf("enrolling: %d %s %w", code, body, err)
		}
		leaf, err := readLeaf(body)
		d.pair = tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: d.key}
		return err
	})
}

// addrTLS is where TLS is, also if the load goes to another listener: the second
// part of ADDR.
func (l *load) addrTLS() string {
	_, after, ok := strings.Cut(l.addr, ",")
	if ok {
		return after
	}
	return l.addr
}

func readLeaf(line []byte) ([]byte, error) {
	der, err := api.DecodeLine(line)
	if err != nil {
		return nil, err
	}
	certs, err := api.ParseCertsOnly(der)
	if err != nil || len(certs) == 0 {
		return nil, fmt.Errorf("no certificate: %w", err)
	}
	return certs[0], nil
}

// measure sends one request for each device, and prints what it costs the server.
// A renewal over a kept connection needs the device's own: connections are made
// before the clock starts.
func (l *load) measure(name string, devices []device, config *tls.Config, ask func(*device) []byte, fresh bool) error {
	issue := rawIssue()
	took := make([]time.Duration, len(devices))
	requests := make([][]byte, len(devices))
	for i := range devices {
		requests[i] = ask(&devices[i])
	}
	mutual := devices[0].pair.Certificate != nil
	var conns []*conn
	if mutual && !fresh {
		conns = make([]*conn, len(devices))
		if err := parallel(16, len(devices), func(_, i int) (err error) { conns[i], err = dial(l.addr, config, &devices[i].pair); return err }); err != nil {
			return err
		}
	} else if !fresh {
		conns = make([]*conn, l.clients)
		if err := parallel(16, l.clients, func(_, i int) (err error) { conns[i], err = dial(l.addr, config, nil); return err }); err != nil {
			return err
		}
	}
	before := cpu(l.pid)
	start := time.Now()
	err := parallel(l.clients, len(devices), func(w, i int) error {
		began := time.Now()
		var c *conn
		switch {
		case fresh:
			var err error
			if c, err = dial(l.addr, config, &devices[i].pair); err != nil {
				return err
			}
			defer func() { _ = c.c.Close() }()
		case mutual:
			c = conns[i]
		default:
			c = conns[w]
		}
		code, body, err := c.do(requests[i])
		if err != nil || code != http.StatusOK {
			return fmt.Errorf("%d %s %w", code, body, err)
		}
		took[i] = time.Since(began)
		return nil
	})
	if err != nil {
		return err
	}
	wall := time.Since(start)
	l.report(name, len(devices), cpu(l.pid)-before, wall, issue, took)
	for _, c := range conns {
		_ = c.c.Close()
	}
	return nil
}

func (l *load) report(name string, n int, used, wall, issue time.Duration, took []time.Duration) {
	slices.Sort(took)
	each := used / time.Duration(n)
	fmt.Printf("%-32s clients %3d  %6.0f/s  server CPU %4d us  = %.2f x ISSUE (%d us)  p50 %.1f ms  p99 %.1f ms\n",
		name, l.clients, float64(n)/wall.Seconds(), each.Microseconds(), float64(each)/float64(issue), issue.Microseconds(),
		float64(took[len(took)/2].Microseconds())/1000, float64(took[len(took)*99/100].Microseconds())/1000)
}

// cpu is the user and system time of a process.
func cpu(pid string) time.Duration {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// rawIssue is the CPU of one ISSUE, the median of five.
func rawIssue() time.Duration {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	caKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, _ := x509.CreateCertificate(rand.Reader, template, template, caKey.Public(), caKey)
	issuer, _ := x509.ParseCertificate(der)
	csrDER, _ := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev"}}, key)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csrDER})
	var all []time.Duration
	for range 5 {
		const n = 300
		begin := thread()
		for range n {
			block, _ := pem.Decode(text)
			csr, err := x509.ParseCertificateRequest(block.Bytes)
			if err != nil || csr.CheckSignature() != nil {
				return 1
			}
			leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: csr.Subject, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
			out, err := x509.CreateCertificate(rand.Reader, leaf, issuer, csr.PublicKey, caKey)
			if err != nil {
				return 1
			}
			_ = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: out})
		}
		all = append(all, (thread()-begin)/n)
	}
	slices.Sort(all)
	return all[2]
}

// thread is the CPU of this process.
func thread() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
