package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// bare is the least that a webhook can cost: net/http over TLS, which reads the
// question and says yes. It prints its address and its certificate, and ends with its
// standard input.
func bare() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	answer := []byte(`{"result":"allow","allowed":true}`)
	srv := &http.Server{
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 20 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
			h := w.Header()
			h.Set("Content-Type", "application/json")
			h.Set("Content-Length", strconv.Itoa(len(answer)))
			h.Set("Cache-Control", "no-store")
			_, _ = w.Write(answer)
		}),
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
		ClientAuth: tls.RequestClientCert, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}
	if _, err := fmt.Fprintln(os.Stdout, l.Addr(), base64.StdEncoding.EncodeToString(der)); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = srv.Close()
	}()
	if err := srv.Serve(tls.NewListener(l, config)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// A bareServer is bare in a process of its own, whose CPU can be told apart.
type bareServer struct {
	addr, pid string
	roots     *x509.CertPool
	stop      func()
}

func startBare() (*bareServer, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, "bare")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &bareServer{pid: strconv.Itoa(cmd.Process.Pid), roots: x509.NewCertPool(), stop: func() { _ = in.Close(); _ = cmd.Wait() }}
	text, err := bufio.NewReader(out).ReadString('\n')
	addr, encoded, ok := strings.Cut(strings.TrimSpace(text), " ")
	der, decodeErr := base64.StdEncoding.DecodeString(encoded)
	cert, certErr := x509.ParseCertificate(der)
	if err := errors.Join(err, decodeErr, certErr); err != nil || !ok {
		s.stop()
		return nil, fmt.Errorf("the server that says yes does not start: %w", err)
	}
	s.addr = addr
	s.roots.AddCert(cert)
	return s, nil
}
