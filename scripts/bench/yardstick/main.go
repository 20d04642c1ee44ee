// Command yardstick measures what bootstrap cannot do without: for each device a
// P-256 key, x509.CreateCertificate and PBKDF2-SHA512 with 101 iterations, on all
// cores, and nothing else. It prints the CPU time for one device in microseconds.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"fmt"
	"math/big"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

func main() {
	n := flag.Int("n", 10000, "devices")
	flag.Parse()
	us, err := measure(*n)
	if err == nil {
		_, err = fmt.Fprintf(os.Stdout, "%.1f\n", us)
	}
	if err != nil {
		panic(err) // there is nobody to handle it
	}
}

func measure(n int) (float64, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return 0, err
	}
	issuer := &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, SubjectKeyId: make([]byte, 20)}
	before, err := cpu()
	if err != nil {
		return 0, err
	}
	workers := runtime.GOMAXPROCS(0)
	errs := make(chan error, workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range n / workers {
				if err := device(issuer, key); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return 0, err
	}
	after, err := cpu()
	return (after - before).Seconds() * 1e6 / float64(n/workers*workers), err
}

func device(issuer *x509.Certificate, issuerKey *ecdsa.PrivateKey) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial := make([]byte, 16)
	_, _ = rand.Read(serial)
	serial[0] &= 0x7f // positive
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		Subject:      pkix.Name{CommonName: "dev-000001", Organization: []string{"acme"}},
		NotBefore:    time.Now(), NotAfter: time.Now().AddDate(2, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if _, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey); err != nil {
		return err
	}
	_, err = pbkdf2.Key(sha512.New, "abcdefghijklmnopqrstuvwxyz012345", serial[:12], 101, 64)
	return err
}

// cpu is the user and system time of the process so far.
func cpu() (time.Duration, error) {
	var r syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()), err
}
