package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/imprint-iot/imprint/templates/mosquitto/mosquittotest"
	"github.com/imprint-iot/imprint/templates/rabbitmq/rabbitmqtest"
)

// The fleet of TestEnforce: so many devices with each kind of credential, of which
// so many are revoked while they work.
const (
	perKind     = 50
	revokedEach = 10
	beat        = 100 * time.Millisecond // a device publishes, and is sent something, so often
)

// liveBroker is a running broker that a fleet works with.
type liveBroker struct {
	name     string
	certPort uint16
	passPort uint16
}

// runsMosquitto makes Mosquitto known to the fleet under a name and starts it.
func runsMosquitto(r *running, name string, args ...string) (*liveBroker, *mosquittotest.Broker) {
	r.t.Helper()
	ports := mosquittotest.Ports(r.t, 2)
	dir, err := os.MkdirTemp("", "imprint") // the path of a socket has at most 107 bytes
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r.imprint(append([]string{
		"broker", "add", name, "--out", filepath.Join(dir, "mq"), "--admin", filepath.Join(dir, "admin.sock"), "--pid-file", filepath.Join(dir, "pid"),
		"--host", "localhost", "--certificate-port", fmt.Sprint(ports[0]), "--password-port", fmt.Sprint(ports[1]), "--bind", "127.0.0.1",
	}, args...)...)
	b := mosquittotest.Start(r.t, "pid_file "+filepath.Join(dir, "pid"), "include_dir "+filepath.Join(dir, "mq"))
	return &liveBroker{name: name, certPort: ports[0], passPort: ports[1]}, b
}

// A thing is a device that works: it publishes, receives, and comes back whenever it
// is thrown out, as devices do.
type thing struct {
	id     string
	byCert bool
	client paho.Client

	connects atomic.Int64 // how often it was let in
	lost     atomic.Int64 // how often it was thrown out
	lastIn   atomic.Int64 // Unix nanoseconds of the last message delivered to it
	lastOut  atomic.Int64 // of the last message of it that others saw
	gap      atomic.Int64 // the longest time between two of those, ns
}

// bundleOf reads what a device was handed.
func bundleOf(r *running, id string, byCert bool, b *liveBroker) *paho.ClientOptions {
	r.t.Helper()
	dir := filepath.Join(r.dir, "bundles", id)
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			r.t.Fatal(err)
		}
		return text
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(read("trust.pem"))
	cfg := &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}
	o := paho.NewClientOptions().SetClientID(id).SetTLSConfig(cfg).SetProtocolVersion(4).SetOrderMatters(false).
		SetAutoReconnect(true).SetMaxReconnectInterval(beat).SetKeepAlive(30 * time.Second).SetConnectTimeout(5 * time.Second)
	port := b.passPort
	if byCert {
		port = b.certPort
		pair, err := tls.X509KeyPair(read("chain.pem"), read("key.pem"))
		if err != nil {
			r.t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	} else {
		o.SetUsername(id).SetPassword(strings.TrimSpace(string(read("password"))))
	}
	return o.AddBroker(fmt.Sprintf("ssl://127.0.0.1:%d", port))
}

// newThing connects a device.
func newThing(r *running, id string, byCert bool, b *liveBroker) *thing {
	r.t.Helper()
	d := &thing{id: id, byCert: byCert}
	o := bundleOf(r, id, byCert, b)
	o.SetOnConnectHandler(func(c paho.Client) {
		d.connects.Add(1)
		c.Subscribe("devices/"+id+"/down/#", 0, func(paho.Client, paho.Message) { d.lastIn.Store(time.Now().UnixNano()) })
	})
	o.SetConnectionLostHandler(func(paho.Client, error) { d.lost.Add(1) })
	d.client = paho.NewClient(o)
	if token := d.client.Connect(); !token.WaitTimeout(20*time.Second) || token.Error() != nil {
		r.t.Fatalf("%s does not get in: %v", id, token.Error())
	}
	r.t.Cleanup(func() { d.client.Disconnect(0) })
	return d
}

// work makes devices publish, and a gateway send to and hear from all of them, until
// stop is called.
func work(r *running, things []*thing, gateway paho.Client) (stop func()) {
	r.t.Helper()
	byID := map[string]*thing{}
	for _, d := range things {
		byID[d.id] = d
	}
	token := gateway.Subscribe("devices/+/up/#", 0, func(_ paho.Client, m paho.Message) {
		d := byID[strings.Split(m.Topic(), "/")[1]]
		now := time.Now().UnixNano()
		if last := d.lastOut.Swap(now); last != 0 {
			d.gap.Store(max(d.gap.Load(), now-last))
		}
	})
	if !token.WaitTimeout(10*time.Second) || token.Error() != nil {
		r.t.Fatal(token.Error())
	}
	done := make(chan struct{})
	var wait sync.WaitGroup
	for _, d := range things {
		wait.Go(func() {
			tick := time.NewTicker(beat)
			defer tick.Stop()
			for {
				select {
				case <-done:
					return
				case <-tick.C:
					if d.client.IsConnectionOpen() {
						d.client.Publish("devices/"+d.id+"/up/x", 0, false, "1")
					}
					gateway.Publish("devices/"+d.id+"/down/x", 0, false, "1")
				}
			}
		})
	}
	return sync.OnceFunc(func() { close(done); wait.Wait() })
}

// enforceFleet makes a fleet with devices and a gateway that may talk to all.
func enforceFleet(t *testing.T) *running {
	t.Helper()
	r := newFleet(t)
	gateway := "name: gateway\npassword: {none: true}\ntopics:\n  - receive: devices/+/up/#\n    shared: true\n  - publish: devices/+/down/#\n    shared: true\n"
	list := "id,profile\ngateway,gateway\n"
	for i := range 2 * perKind {
		list += fmt.Sprintf("dev-%d,default\n", i)
	}
	for name, text := range map[string]string{"gateway.yaml": gateway, "devices.csv": list} {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.imprint("profile", "add", "gateway.yaml")
	r.imprint("bootstrap", "devices.csv", "--out", "bundles")
	return r
}

// checkEnforced lets a whole fleet work at a broker, revokes some of it, and sees that
// those are gone and the others have noticed nothing.
func checkEnforced(t *testing.T, r *running, b *liveBroker) {
	t.Helper()
	r.imprint("broker", "sync", b.name)
	o := bundleOf(r, "gateway", true, b)
	gateway := paho.NewClient(o)
	if token := gateway.Connect(); !token.WaitTimeout(20*time.Second) || token.Error() != nil {
		t.Fatalf("the gateway does not get in: %v", token.Error())
	}
	defer gateway.Disconnect(0)
	var things []*thing
	for i := range 2 * perKind {
		things = append(things, newThing(r, fmt.Sprintf("dev-%d", i), i < perKind, b))
	}
	stop := work(r, things, gateway)
	defer stop()
	eventually(t, 20*time.Second, "everybody is heard and hears", func() bool {
		for _, d := range things {
			if d.lastIn.Load() == 0 || d.lastOut.Load() == 0 {
				return false
			}
		}
		return true
	})
	for _, d := range things {
		d.gap.Store(0)
		d.lost.Store(0)
	}
	var doomed, others []*thing
	args := []string{"device", "revoke", "--output", "json"}
	for i, d := range things {
		if i%perKind < revokedEach {
			doomed, args = append(doomed, d), append(args, d.id)
		} else {
			others = append(others, d)
		}
	}
	out := r.imprint(args...)
	receipt := time.Now()
	counts := make([]int64, len(doomed))
	for i, d := range doomed {
		counts[i] = d.connects.Load()
	}
	time.Sleep(2 * time.Second) // the time in which nobody may come back: they try ten times a second
	stop()
	for i, d := range doomed {
		if d.lost.Load() == 0 {
			t.Errorf("%s (certificate: %t) has kept its session", d.id, d.byCert)
		}
		if n := d.connects.Load(); n != counts[i] {
			t.Errorf("%s (certificate: %t) came back", d.id, d.byCert)
		}
		if last := time.Unix(0, d.lastIn.Load()); last.After(receipt) {
			t.Errorf("%s was sent a message %s after the receipt", d.id, last.Sub(receipt))
		}
	}
	var longest time.Duration
	for _, d := range others {
		if n := d.lost.Load(); n != 0 {
			t.Errorf("%s was thrown out %d times, and is good", d.id, n)
		}
		longest = max(longest, time.Duration(d.gap.Load()))
	}
	if longest > time.Second {
		t.Errorf("the others were interrupted for %s", longest)
	}
	took := receiptTook(t, out)
	if took > 2*time.Second {
		t.Errorf("revoked and gone after %s, want at most 2 s", took)
	}
	t.Logf("%s: %d revoked and gone in %s; the longest pause of the %d others was %s", b.name, len(doomed), took.Round(time.Millisecond), len(others), longest.Round(time.Millisecond))
	if pending := r.imprint("revocations", "pending", "--output", "json"); strings.TrimSpace(pending) != "[]" {
		t.Errorf("pending: %s", pending)
	}
}

// receiptTook reads the one receipt of a revocation.
func receiptTook(t *testing.T, out string) time.Duration {
	t.Helper()
	var got struct {
		Receipts []struct {
			Took  time.Duration `json:"tookNanoseconds"`
			Count int           `json:"count"`
		} `json:"receipts"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Receipts) != 1 {
		t.Fatalf("receipts: %v\n%s", err, out)
	}
	if got.Receipts[0].Count != 2*revokedEach {
		t.Errorf("the receipt counts %d sessions", got.Receipts[0].Count)
	}
	return got.Receipts[0].Took
}

func eventually(t *testing.T, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after %s: %s", patience, what)
		}
	}
}

// Revoked is gone: on each kind of broker, sessions by certificate and by password end
// while devices work, and nobody else notices.
func TestEnforceMosquittoFiles(t *testing.T) {
	r := enforceFleet(t)
	b, _ := runsMosquitto(r, "files")
	checkEnforced(t, r, b)
}

func TestEnforceMosquittoDynsec(t *testing.T) {
	r := enforceFleet(t)
	b, _ := runsMosquitto(r, "dynsec", "--form", "dynsec")
	checkEnforced(t, r, b)
}

func TestEnforceRabbitMQ(t *testing.T) {
	r := enforceFleet(t)
	ports := rabbitmqtest.Ports(t, 3)
	files := filepath.Join(r.dir, "rabbit")
	admin := fmt.Sprintf("http://127.0.0.1:%d", ports[2])
	r.imprint("broker", "add", "rabbit", "--target", "rabbitmq", "--out", files, "--admin", admin, "--host", "localhost",
		"--certificate-port", fmt.Sprint(ports[0]), "--password-port", fmt.Sprint(ports[1]), "--bind", "127.0.0.1")
	rabbitmqtest.Start(t, files)
	checkEnforced(t, r, &liveBroker{name: "rabbit", certPort: ports[0], passPort: ports[1]})
}
