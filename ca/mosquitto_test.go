package ca_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
)

// A broker is a real Mosquitto that wants a client certificate and takes the
// user name from it.
type broker struct {
	port int
	log  string
	dir  string
}

// startBroker runs Mosquitto until the test ends. crl may be nil.
func startBroker(t *testing.T, pki *catest.PKI, crl []byte) *broker {
	t.Helper()
	path, pub := tool(t, "mosquitto", "mosquitto"), tool(t, "mosquitto_pub", "mosquitto-clients")
	b := &broker{dir: t.TempDir(), port: freePort(t)}
	b.log = filepath.Join(b.dir, "log")
	server := pki.ServerLeaf("localhost")
	write(t, b.dir, "server.pem", server.Chain)
	write(t, b.dir, "server.key", catest.KeyPEM(t, server.Key))
	write(t, b.dir, "root.pem", pki.RootPEM())
	write(t, b.dir, "trust.pem", ca.CertificatePEM(pki.Root.Certificate().Raw, pki.Device.Certificate().Raw))
	conf := fmt.Sprintf(`listener %d 127.0.0.1
allow_anonymous false
require_certificate true
use_identity_as_username true
cafile %[2]s/trust.pem
certfile %[2]s/server.pem
keyfile %[2]s/server.key
log_dest file %[2]s/log
log_type all
connection_messages true
`, b.port, b.dir)
	if crl != nil {
		conf += "crlfile " + write(t, b.dir, "crl.pem", crl) + "\n"
	}
	// A broker that starts as root becomes another user, who could not read this
	// directory.
	conf += "user root\n"
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, "-c", write(t, b.dir, "mosquitto.conf", []byte(conf))) // #nosec G204 -- the test's own tool
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() }) // killed: the error says so
	probe := pki.DeviceLeaf("probe")
	waitFor(t, "the broker to answer", func() bool { return b.publish(t, pub, probe) == nil })
	return b
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // only its number is wanted
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal("not a TCP address")
	}
	return addr.Port
}

// waitFor polls until ok, for at most 10 seconds.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

// publish connects with the certificate and publishes one message.
func (b *broker) publish(t *testing.T, pub string, leaf catest.Leaf) error {
	t.Helper()
	certFile := write(t, b.dir, "client.pem", leaf.Chain)
	keyFile := write(t, b.dir, "client.key", catest.KeyPEM(t, leaf.Key))
	out, err := run(t, "", pub, "-h", "localhost", "-p", fmt.Sprint(b.port), "--cafile", filepath.Join(b.dir, "root.pem"),
		"--cert", certFile, "--key", keyFile, "-t", "t", "-m", "m", "-q", "1")
	if err != nil {
		return fmt.Errorf("mosquitto_pub: %w: %s", err, out)
	}
	return nil
}

var userName = regexp.MustCompile(`(?m), u'([^']*)'\)\.$`)

// lastUser returns the user name of the newest connection in the broker's log.
func (b *broker) lastUser(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(b.log)
	if err != nil {
		t.Fatal(err)
	}
	all := userName.FindAllStringSubmatch(string(data), -1)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1][1]
}

// TestSameIdentityEverywhere: Go, OpenSSL and the broker read the same single
// identity from every certificate (two common names once made a device "admin").
func TestSameIdentityEverywhere(t *testing.T) {
	openssl, pub := tool(t, "openssl", "openssl"), tool(t, "mosquitto_pub", "mosquitto-clients")
	pki := catest.New(t, nil)
	b := startBroker(t, pki, nil)
	ids := []string{"dev-1", "D", "0_-9", "UPPER_lower-42", strings.Repeat("x", 64)}
	for _, id := range ids {
		for profileName, config := range profiles() {
			if config.Kind == ca.KindServer {
				continue
			}
			s := deviceSubject(id)
			s.Organization, s.HardwareSerial = "CN admin", "SN0001"
			leaf := pki.Issue(pki.Device, catest.Profile(t, config), ca.P256, s)
			cert, err := x509.ParseCertificate(leaf.DER)
			if err != nil {
				t.Fatal(err)
			}
			if cert.Subject.CommonName != id {
				t.Errorf("Go reads %q, want %q", cert.Subject.CommonName, id)
			}
			text := mustRun(t, openssl, "x509", "-in", write(t, t.TempDir(), "leaf.pem", leaf.PEM), "-noout", "-subject", "-nameopt", "multiline")
			if names := regexp.MustCompile(`(?m)^ *commonName *= (.*)$`).FindAllStringSubmatch(text, -1); len(names) != 1 || names[0][1] != id {
				t.Errorf("OpenSSL reads %q, want %q alone", names, id)
			}
			if err := b.publish(t, pub, leaf); err != nil {
				t.Errorf("%s, %s: %v", id, profileName, err)
				continue
			}
			waitFor(t, "the broker to know "+id, func() bool { return b.lastUser(t) == id })
		}
	}
}

// A revoked certificate is turned away by the broker, and its neighbour is not.
// With nothing revoked the broker starts as well.
func TestBrokerReadsCRL(t *testing.T) {
	pub := tool(t, "mosquitto_pub", "mosquitto-clients")
	pki := catest.New(t, nil)
	good, bad := pki.DeviceLeaf("good"), pki.DeviceLeaf("bad")
	t.Run("one revoked", func(t *testing.T) {
		b := startBroker(t, pki, ca.CRLPEM(makeCRL(t, pki.Device, 1, revokedLeaf(t, bad))))
		if err := b.publish(t, pub, good); err != nil {
			t.Error(err)
		}
		if err := b.publish(t, pub, bad); err == nil {
			t.Error("the revoked certificate is let in")
		}
	})
	t.Run("rev-008 none revoked", func(t *testing.T) {
		b := startBroker(t, pki, ca.CRLPEM(makeCRL(t, pki.Device, 1)))
		if err := b.publish(t, pub, bad); err != nil {
			t.Error(err)
		}
	})
}
