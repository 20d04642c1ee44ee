package doctor_test

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/doctor"
	"github.com/imprint-iot/imprint/templates/mosquitto"
	"github.com/imprint-iot/imprint/templates/mosquitto/mosquittotest"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// An endpoint is something that listens, and what is to be found there.
type endpoint struct {
	name    string
	want    []string
	unknown string // part of what is not known
	start   func(t *testing.T) (addr string, o doctor.EndpointOptions)
}

func endpoints() []endpoint {
	return []endpoint{
		{"mosquitto, plaintext and anonymous", []string{"MQ002", "MQ025", "MQ901", "MQ904"}, "", func(t *testing.T) (string, doctor.EndpointOptions) {
			addr := freeAddr(t)
			mosquittotest.Start(t, "allow_anonymous true", listener(addr))
			return addr, doctor.EndpointOptions{}
		}},
		{"mosquitto, TLS and anonymous", []string{"MQ002", "MQ010", "MQ025", "MQ904"}, "", func(t *testing.T) (string, doctor.EndpointOptions) {
			addr := freeAddr(t)
			pki, lines := serverFiles(t)
			mosquittotest.Start(t, slices.Concat([]string{"allow_anonymous true", listener(addr)}, lines)...)
			return addr, doctor.EndpointOptions{Roots: pki.Roots()}
		}},
		{"mosquitto, TLS and a default login", []string{"MQ010", "MQ025"}, "", func(t *testing.T) (string, doctor.EndpointOptions) {
			addr := freeAddr(t)
			pki, lines := serverFiles(t)
			file := filepath.Join(t.TempDir(), "passwd")
			if err := os.WriteFile(file, []byte("guest:"+mosquittoHash(t, "guest")+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			mosquittotest.Start(t, slices.Concat([]string{"allow_anonymous false", "password_file " + file, listener(addr)}, lines)...)
			return addr, doctor.EndpointOptions{Roots: pki.Roots()}
		}},
		{"mosquitto, an export, certificates", nil, "lets in with a certificate", func(t *testing.T) (string, doctor.EndpointOptions) {
			cert, _, o := hardened(t)
			return cert, o
		}},
		{"mosquitto, an export, passwords", []string{"MQ010"}, "", func(t *testing.T) (string, doctor.EndpointOptions) {
			_, password, o := hardened(t)
			return password, o
		}},
		{"old TLS, a weak key, another's name, an unknown root", []string{"MQ013", "MQ021", "MQ022", "MQ902", "MQ903"}, "whom it lets in", func(t *testing.T) (string, doctor.EndpointOptions) {
			key, err := rsa.GenerateKey(rand.Reader, 1024)
			if err != nil {
				t.Fatal(err)
			}
			c := newPKI(t).identity(key, 10*days)
			addr := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
			return addr, doctor.EndpointOptions{Now: today, ServerName: "broker.example", Roots: x509.NewCertPool()}
		}},
		{"an expired certificate", []string{"MQ010", "MQ020"}, "", func(t *testing.T) (string, doctor.EndpointOptions) {
			p := &pki{t: t, now: today()}
			p.key = p.newKey()
			p.ca = p.newCA(2000 * days)
			roots := x509.NewCertPool()
			roots.AddCert(p.ca)
			c := p.identity(p.newKey(), -days)
			addr := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS12})
			return addr, doctor.EndpointOptions{Now: today, Roots: roots}
		}},
		{"TLS 1.2 with a certificate required", nil, "lets in with a certificate", func(t *testing.T) (string, doctor.EndpointOptions) {
			p := newPKI(t)
			roots := x509.NewCertPool()
			roots.AddCert(p.ca)
			c := p.identity(p.newKey(), 300*days)
			addr := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{c}, MaxVersion: tls.VersionTLS12, ClientAuth: tls.RequireAnyClientCert})
			return addr, doctor.EndpointOptions{Now: today, Roots: roots}
		}},
		{"no MQTT", nil, "neither MQTT nor TLS", func(t *testing.T) (string, doctor.EndpointOptions) {
			return serve(t, func(c net.Conn) { _, _ = c.Write([]byte("220 smtp.example ESMTP\r\n")) }), doctor.EndpointOptions{}
		}},
		{"silence", nil, "neither MQTT nor TLS", func(t *testing.T) (string, doctor.EndpointOptions) {
			return serve(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), doctor.EndpointOptions{Timeout: 100 * time.Millisecond}
		}},
	}
}

func TestEndpoints(t *testing.T) {
	for _, e := range endpoints() {
		t.Run(e.name, func(t *testing.T) {
			addr, o := e.start(t)
			r, err := doctor.Endpoint(t.Context(), addr, o)
			if err != nil {
				t.Fatal(err)
			}
			if got := found(r); !slices.Equal(got, e.want) {
				t.Errorf("found %v, want %v\n%s", got, e.want, dump(r))
			}
			if unknown := strings.Join(r.Unknown, "\n"); e.unknown == "" && unknown != "" || !strings.Contains(unknown, e.unknown) {
				t.Errorf("unknown is %q, want %q", r.Unknown, e.unknown)
			}
			if r.Subject != addr || r.Kind != doctor.KindEndpoint {
				t.Errorf("report on %q, a %q", r.Subject, r.Kind)
			}
		})
	}
}

func TestNoEndpoint(t *testing.T) {
	if _, err := doctor.Endpoint(t.Context(), freeAddr(t), doctor.EndpointOptions{}); !errors.Is(err, doctor.ErrNoEndpoint) {
		t.Errorf("a closed port: %v", err)
	}
	if _, err := doctor.Endpoint(t.Context(), "broker", doctor.EndpointOptions{}); err == nil {
		t.Error("an address without a port is taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := doctor.Endpoint(ctx, freeAddr(t), doctor.EndpointOptions{}); err == nil {
		t.Error("a canceled audit goes on")
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", mosquittotest.Ports(t, 1)[0])
}

// listener is the line of mosquitto.conf for an address.
func listener(addr string) string {
	host, port, _ := strings.Cut(addr, ":")
	return "listener " + port + " " + host
}

// serverFiles are a CA and the lines that make a listener one with TLS.
func serverFiles(t *testing.T) (*targettest.PKI, []string) {
	t.Helper()
	pki := targettest.NewPKI(t, time.Now())
	n := pki.Node(t)
	dir := t.TempDir()
	chain, key := filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem")
	for name, text := range map[string][]byte{chain: n.ServerChain, key: n.ServerKey.Reveal()} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return pki, []string{"certfile " + chain, "keyfile " + key}
}

func mosquittoHash(t *testing.T, password string) string {
	t.Helper()
	salt := []byte("twelve bytes")
	sum, err := pbkdf2.Key(sha512.New, password, salt, 101, 64)
	if err != nil {
		t.Fatal(err)
	}
	return "$7$101$" + base64.StdEncoding.EncodeToString(salt) + "$" + base64.StdEncoding.EncodeToString(sum)
}

// hardened runs an export of imprint, and returns its two addresses.
func hardened(t *testing.T) (certificates, passwords string, o doctor.EndpointOptions) {
	t.Helper()
	fleet := targettest.Small(t, time.Now())
	ports := mosquittotest.Ports(t, 2)
	n := &fleet.Broker
	n.Bind, n.CertificatePort, n.PasswordPort = "127.0.0.1", ports[0], ports[1]
	d, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if _, err := (mosquitto.Target{}).Write(d, fleet, templates.Options{}); err != nil {
		t.Fatal(err)
	}
	mosquittotest.Start(t, "include_dir "+d.Path())
	addr := func(port uint16) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	return addr(ports[0]), addr(ports[1]), doctor.EndpointOptions{Roots: fleet.PKI.Roots(), ServerName: "localhost"}
}

// serve answers each connection, until the test ends.
func serve(t *testing.T, answer func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }() // of a test
				answer(c)
			}()
		}
	}()
	return l.Addr().String()
}

// serveTLS is a broker that refuses everybody.
func serveTLS(t *testing.T, c *tls.Config) string {
	t.Helper()
	return serve(t, func(conn net.Conn) {
		s := tls.Server(conn, c)
		if _, err := s.Read(make([]byte, 512)); err != nil {
			return
		}
		_, _ = s.Write([]byte{0x20, 2, 0, 5})
	})
}
