package rumqttd_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates/brokertest"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/rumqttd"
	"github.com/imprint-iot/imprint/templates/targettest"
)

const secret = "observe everything"

// A listener without certificates, for the observer of the test: nobody else can see and
// send everything.
const observerConfig = `
[v4.observer]
name = "observer"
listen = "127.0.0.1:%d"
next_connection_delay_ms = 1

[v4.observer.connections]
connection_timeout_ms = 10000
max_payload_size = 262144
max_inflight_count = 100
dynamic_filters = true
auth = { "observer-1" = "observe everything" }
`

// runBroker starts rumqttd with the files of an export and returns the addresses of its
// two listeners.
func runBroker(t *testing.T, f *targettest.Memory) (certificates, passwords string) {
	t.Helper()
	ports := brokertest.Ports(t, 2)
	f.Broker.Bind, f.Broker.CertificatePort = "127.0.0.1", ports[0]
	dir := t.TempDir()
	mustWrite(t, dir, f, time.Now())
	text, err := os.ReadFile(filepath.Join(dir, rumqttd.ConfigName))
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "test.toml")
	if err := os.WriteFile(config, fmt.Appendf(text, observerConfig, ports[1]), 0o600); err != nil {
		t.Fatal(err)
	}
	certificates, plain := fmt.Sprintf("127.0.0.1:%d", ports[0]), fmt.Sprintf("127.0.0.1:%d", ports[1])
	brokertest.Start(t, exec.Command(filepath.Join(brokertest.Home(t, "rumqttd"), "bin", "rumqttd"), "--quiet", "--config", config), certificates, plain)
	return certificates, front(t, f, plain)
}

// front puts TLS before a listener that has none.
func front(t *testing.T, f *targettest.Memory, address string) string {
	t.Helper()
	cert, err := tls.X509KeyPair(f.Broker.ServerChain, f.Broker.ServerKey.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // ends the loop
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go relay(c, address)
		}
	}()
	return l.Addr().String()
}

func relay(c net.Conn, address string) {
	defer func() { _ = c.Close() }() // of a test
	b, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(b, c) // until one of them ends
		_ = b.Close()
	}()
	_, _ = io.Copy(c, b) // until one of them ends
}

// rumqttd decides as the only policy that can be exported, but for the one topic that it
// refuses.
func TestProof(t *testing.T) {
	f := fleet(t, time.Now())
	f.Remove("dev-3") // has only a password
	certificates, passwords := runBroker(t, f)
	devices := f.ProofDevices(t)
	// Another tenant's topics are asked about, too.
	other := proof.Device{Subject: topic.Subject{ID: "other-1"}, Policy: topic.Policy{Rules: []topic.Rule{
		{Action: topic.Publish, Filter: "/tenants/AcmeX/#"}, {Action: topic.Receive, Filter: "/tenants/Acm/#"}, {Action: topic.Receive, Filter: "fleet/{id}/+"},
		{Action: topic.Publish, Filter: "/tenants/Acme"}, {Action: topic.Publish, Filter: "/tenants/Acme/dev-1/+/up"}, {Action: topic.Publish, Filter: "tenants/Acme/#"},
	}}}
	r, err := (&proof.Broker{
		Target: "rumqttd", Certificates: certificates, Passwords: passwords, Roots: f.PKI.Roots(), Version: 4,
		Observer: &proof.Device{Subject: topic.Subject{ID: targettest.ObserverID}, Password: []byte(secret)},
	}).Ask(t.Context(), devices, proof.Questions(append(devices, other)))
	if err != nil {
		t.Fatal(err)
	}
	targettest.Report(t, r, func(q proof.Question) bool { return q.Topic == strings.TrimSuffix(all, "/#") })
}

// What rumqttd does not look at, as the manifest says: the date of a revocation is none of
// its business.
func TestRevokedIsLetIn(t *testing.T) {
	f := fleet(t, time.Now())
	c := f.PKI.Client(t, "dev-1")
	f.PKI.Revoke(c, f.Now)
	f.Remove("dev-1")
	certificates, _ := runBroker(t, f)
	conn, err := tls.Dial("tcp", certificates, &tls.Config{RootCAs: f.PKI.Roots(), ServerName: "localhost", Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // of a test
	// CONNECT of MQTT 3.1.1 with a clean session, keep alive 60 s, client identifier dev-1.
	if _, err := conn.Write([]byte("\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05dev-1")); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	ack := make([]byte, 4)
	if _, err := io.ReadFull(conn, ack); err != nil || ack[0] != 0x20 || ack[3] != 0 {
		t.Errorf("CONNACK %x, %v: rumqttd has learned of revocation, which is good news for its row", ack, err)
	}
}

// What rumqttd makes of an export, by its source, is the policy but for the one topic.
func TestEvaluator(t *testing.T) {
	f := fleet(t, time.Now())
	dir := t.TempDir()
	mustWrite(t, dir, f, time.Now())
	target, ok := rumqttd.Target().(interface {
		Evaluator(src fs.FS) (proof.Evaluator, error)
	})
	if !ok {
		t.Fatal("the target has no evaluator")
	}
	e, err := target.Evaluator(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := proof.Evaluate("rumqttd", e, proof.Questions(f.ProofDevices(t)))
	if err != nil {
		t.Fatal(err)
	}
	targettest.Report(t, r, func(q proof.Question) bool { return q.Topic == strings.TrimSuffix(all, "/#") })
}
