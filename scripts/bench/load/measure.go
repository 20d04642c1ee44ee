package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// load is what one run measures.
type load struct {
	fleet, addr, pid string
	n, clients       int
}

// rounds is into how many parts a measurement is cut; the middle one counts.
const rounds = 3

func (l *load) run(mode string) error {
	config, err := clientConfig(l.fleet)
	if err != nil {
		return err
	}
	switch mode {
	case "idle":
		return l.idle(config)
	case "hostile":
		return l.hostile(config)
	case "enroll", "renew", "ocsp":
	default:
		return errUsage
	}
	devices, err := makeDevices(l.fleet, fmt.Sprintf("%s-%d", mode, time.Now().UnixNano()), l.n)
	if err != nil {
		return err
	}
	if mode == "enroll" {
		return l.enroll("simpleenroll, keep-alive", devices, config, goalOf[fmt.Sprintf("enroll %d", l.clients)])
	}
	if err := l.enrollAll(devices, config); err != nil {
		return err
	}
	if mode == "ocsp" {
		return l.ocsp(devices)
	}
	return l.renew(devices, config)
}

// A limit is what a request may cost: CPU as a multiple of ISSUE, and the time that
// 99 of 100 take at most. Zero is no limit.
type limit struct {
	ratio float64
	p99   time.Duration
}

var goalOf = map[string]limit{
	"enroll 16":   {2.3, 12 * time.Millisecond},
	"enroll 64":   {2.1, 0},
	"renew":       {2.1, 0},
	"renew new":   {4.7, 0},
	"OCSP now":    {0.5, 0},
	"OCSP before": {0.15, 0},
}

// enroll sends all requests over as many connections as there are clients.
func (l *load) enroll(name string, devices []device, config *tls.Config, goal limit) error {
	conns, err := dialAll(l.addr, config, l.clients, nobody)
	defer closeAll(conns)
	if err != nil {
		return err
	}
	requests := make([][]byte, len(devices))
	for i := range devices {
		requests[i] = enrollRequest(&devices[i])
	}
	return l.measure(name, len(devices), goal, func(w, i int) error {
		_, err := conns[w].do(requests[i])
		return err
	})
}

// renew measures half of the devices on connections that have been used before,
// and the other half with a new connection each.
func (l *load) renew(devices []device, config *tls.Config) error {
	requests := make([][]byte, len(devices))
	for i := range devices {
		var err error
		if devices[i].csr, err = renewCSR(&devices[i]); err != nil {
			return err
		}
		requests[i] = renewRequest(&devices[i])
	}
	half := len(devices) / 2
	conns, err := dialAll(l.addr, config, half, func(i int) *tls.Certificate { return &devices[i].pair })
	defer closeAll(conns)
	if err != nil {
		return err
	}
	// A server that speaks TLS 1.3 reads the client's certificate after Dial has
	// returned: an answer proves that it has.
	if err := parallel(l.clients, half, func(_, i int) error { _, err := conns[i].do(get("/.well-known/est/cacerts")); return err }); err != nil {
		return err
	}
	err = l.measure("simplereenroll, keep-alive", half, goalOf["renew"], func(_, i int) error {
		_, err := conns[i].do(requests[i])
		return err
	})
	if err != nil {
		return err
	}
	return l.measure("simplereenroll, new connection", half, goalOf["renew new"], func(_, i int) error {
		c, err := dial(l.addr, config, &devices[half+i].pair)
		if err != nil {
			return err
		}
		defer c.close()
		_, err = c.do(requests[half+i])
		return err
	})
}

func get(path string) []byte { return []byte("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n") }

func (l *load) enrollAll(devices []device, config *tls.Config) error {
	conns, err := dialAll(l.addrTLS(), config, 16, nobody)
	defer closeAll(conns)
	if err != nil {
		return err
	}
	return parallel(len(conns), len(devices), func(w, i int) error {
		leaf, err := conns[w].enroll(&devices[i])
		devices[i].pair = tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: devices[i].key}
		return err
	})
}

// addrTLS is where TLS is, also if the load goes to another listener: the second
// part of ADDR.
func (l *load) addrTLS() string {
	if _, after, ok := strings.Cut(l.addr, ","); ok {
		return after
	}
	return l.addr
}

// measure calls do for 0 to n-1 and prints what one costs the server.
func (l *load) measure(name string, n int, goal limit, do func(worker, i int) error) error {
	var ratios, each, issue []float64
	var took []time.Duration
	var wall time.Duration
	part := n / rounds
	for r := range rounds {
		yard := rawIssue()
		times := make([]time.Duration, part)
		before, start := cpu(l.pid), time.Now()
		err := parallel(l.clients, part, func(w, i int) error {
			began := time.Now()
			err := do(w, r*part+i)
			times[i] = time.Since(began)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		wall += time.Since(start)
		used := float64((cpu(l.pid) - before).Microseconds()) / float64(part)
		yard = (yard + rawIssue()) / 2
		each, issue = append(each, used), append(issue, float64(yard.Nanoseconds())/1000)
		ratios = append(ratios, used/issue[r])
		took = append(took, times...)
	}
	slices.Sort(took)
	ratio, p99 := median(ratios), took[len(took)*99/100]
	fmt.Printf("%-31s clients %3d  %6.0f/s  CPU %4.0f us = %.2f x ISSUE (%.0f us; rounds %.2f)%s  p50 %.1f  p99 %.1f ms%s\n",
		name, l.clients, float64(len(took))/wall.Seconds(), median(each), ratio, median(issue), ratios, verdict(ratio, goal.ratio),
		ms(took[len(took)/2]), ms(p99), verdict(ms(p99), ms(goal.p99)))
	return nil
}

func verdict(v, limit float64) string {
	switch {
	case limit == 0:
		return ""
	case v <= limit:
		return fmt.Sprintf(" <= %.3g PASS", limit)
	}
	return fmt.Sprintf(" > %.3g over", limit)
}

func median(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// cpu is the user and system time of a process, in steps of 10 ms.
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
		begin := own()
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
		all = append(all, (own()-begin)/n)
	}
	slices.Sort(all)
	return all[2]
}

// own is the CPU of this process.
func own() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
