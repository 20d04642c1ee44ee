package rabbitmq_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/rabbitmq"
	"github.com/imprint-iot/imprint/templates/rabbitmq/rabbitmqtest"
	"github.com/imprint-iot/imprint/templates/targettest"
)

const (
	adminPassword = "admin password of the test"
	patience      = 20 * time.Second
)

var passwords = map[string]string{"dev-1": "correct horse", "Dev-2": "battery staple"}

// A stand is a fleet, its export, a broker that runs it, and a driver of that.
type stand struct {
	t      *testing.T
	fleet  *targettest.Memory
	dir    *durable.Dir
	live   templates.Live
	driver templates.Driver
}

func newStand(t *testing.T) *stand {
	t.Helper()
	s := &stand{t: t, fleet: targettest.Small(t, time.Now())}
	ports := rabbitmqtest.Ports(t, 3)
	n := &s.fleet.Broker
	n.Bind, n.CertificatePort, n.PasswordPort = "127.0.0.1", ports[0], ports[1]
	url := fmt.Sprintf("http://127.0.0.1:%d", ports[2])
	n.Admin = &templates.Admin{Socket: url, Verifiers: targettest.Verifiers(t, templates.AdminName, adminPassword)}
	var err error
	if s.dir, err = durable.OpenDir(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.dir.Close() })
	if _, err := (rabbitmq.Target{}).Write(s.dir, s.fleet, templates.Options{}); err != nil {
		t.Fatal(err)
	}
	rabbitmqtest.Start(t, s.dir.Path())
	s.live = templates.Live{Dir: s.dir, Admin: url, User: templates.AdminName, Secret: inventory.NewSecret([]byte(adminPassword))}
	if s.driver, err = (rabbitmq.Target{}).Connect(s.live); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stand) deliver() templates.Summary {
	s.t.Helper()
	sum, err := s.driver.Deliver(s.t.Context(), s.fleet, templates.Options{AllowShrink: true})
	if err != nil {
		s.t.Fatal(err)
	}
	return sum
}

// options are how a device connects, by whatever it has.
func (s *stand) options(id string) *paho.ClientOptions {
	cfg := &tls.Config{RootCAs: s.fleet.PKI.Roots(), MinVersion: tls.VersionTLS12}
	o := paho.NewClientOptions().SetClientID(id).SetTLSConfig(cfg).SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(patience)
	port := s.fleet.Broker.PasswordPort
	if p := passwords[id]; p != "" {
		o.SetUsername(id).SetPassword(p)
	} else {
		port = s.fleet.Broker.CertificatePort
		cfg.Certificates = []tls.Certificate{s.fleet.PKI.Client(s.t, id)}
	}
	return o.AddBroker(fmt.Sprintf("ssl://127.0.0.1:%d", port))
}

func connect(o *paho.ClientOptions) (paho.Client, error) {
	c := paho.NewClient(o)
	t := c.Connect()
	if !t.WaitTimeout(patience) {
		return c, errors.New("no answer to CONNECT")
	}
	return c, t.Error()
}

// A session is connected again when the broker has ended it, as it does on what is not
// allowed.
type session struct {
	s  *stand
	id string
	c  paho.Client
}

func (x *session) client() paho.Client {
	x.s.t.Helper()
	if x.c != nil && x.c.IsConnectionOpen() {
		return x.c
	}
	c, err := connect(x.s.options(x.id))
	if err != nil {
		x.s.t.Fatalf("%s does not get in: %v", x.id, err)
	}
	x.c = c
	return c
}

// allowed asks the broker: a PUBLISH with QoS 1 is acknowledged or ends the session, and
// so is a SUBSCRIBE.
func (x *session) allowed(a topic.Action, name string) bool {
	x.s.t.Helper()
	c := x.client()
	if a == topic.Publish {
		t := c.Publish(name, 1, false, "x")
		return t.WaitTimeout(patience) && t.Error() == nil && c.IsConnectionOpen()
	}
	t := c.Subscribe(name, 0, nil)
	if !t.WaitTimeout(patience) || t.Error() != nil {
		return false
	}
	granted := t.(*paho.SubscribeToken).Result()[name]
	if granted < 0x80 {
		c.Unsubscribe(name).WaitTimeout(patience)
	}
	return granted < 0x80
}

// The broker decides about every device, action and topic as the reference evaluator
// does. Topics with a dot are left out: there a dot is a slash, which the export says.
func TestDecisions(t *testing.T) {
	s := newStand(t)
	sessions := map[string]*session{}
	asked := 0
	for _, d := range targettest.Decisions(t, s.fleet) {
		if strings.ContainsAny(d.Topic, ".") || len(d.Topic) > 200 {
			continue
		}
		x := sessions[d.Device]
		if x == nil {
			x = &session{s: s, id: d.Device}
			sessions[d.Device] = x
		}
		asked++
		if got := x.allowed(d.Action, d.Topic); got != d.Allowed {
			t.Errorf("%s %s %q: %t, want %t", d.Device, d.Action, d.Topic, got, d.Allowed)
		}
	}
	t.Logf("%d decisions", asked)
	// Filters with wildcards are rights of their own.
	for _, tt := range []struct {
		filter string
		want   bool
	}{
		{"fleet/dev-1/down", true}, {"#", false}, {"+/+/down", false}, {"fleet/#", false}, {"fleet/dev-1/#", false}, {"fleet/+/down", false}, {"news/all", true}, {"news/#", false}, {"$SYS/#", false},
	} {
		if got := sessions["dev-1"].allowed(topic.Receive, tt.filter); got != tt.want {
			t.Errorf("SUBSCRIBE to %q: %t, want %t", tt.filter, got, tt.want)
		}
	}
	// The client identifier of another device is of no use.
	o := s.options("dev-1").SetClientID("Dev-2")
	if c, err := connect(o); err == nil {
		t1 := c.Subscribe("fleet/dev-1/down", 1, nil)
		if t1.WaitTimeout(patience) && t1.Error() == nil && t1.(*paho.SubscribeToken).Result()["fleet/dev-1/down"] < 0x80 {
			t.Error("dev-1 has the session of Dev-2")
		}
	}
	if _, err := connect(s.options("dev-1").SetPassword("wrong")); err == nil {
		t.Error("a wrong password is let in")
	}
	if _, err := connect(s.options("dev-3").SetUsername("dev-3").SetPassword("")); err == nil {
		t.Error("a certificate and an empty password are let in: the export says that they are not")
	}
}

// A driver brings a running broker to what the fleet is, tells who has a session, and
// ends it; what is not ours it leaves alone.
func TestDriver(t *testing.T) {
	s := newStand(t)
	ctx := t.Context()
	ids := []inventory.DeviceID{"dev-1", "Dev-2", "dev-3"}
	if sum := s.deliver(); sum.Changed {
		t.Error("a broker that has everything is changed")
	}
	lost := make(chan string, 10)
	clients := map[string]paho.Client{}
	for _, id := range ids {
		c, err := connect(s.options(string(id)).SetConnectionLostHandler(func(paho.Client, error) { lost <- string(id) }))
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		clients[string(id)] = c
	}
	if live, err := s.driver.Live(ctx, ids); err != nil || len(live) != 3 {
		t.Errorf("live %v, %v", live, err)
	}
	if err := s.driver.Kick(ctx, []inventory.DeviceID{"dev-3", "unknown"}); err != nil {
		t.Fatal(err)
	}
	if who := wait(t, lost); who != "dev-3" {
		t.Errorf("%s lost its session", who)
	}
	// Who is gone from the fleet is gone from the broker, with its session.
	s.fleet.Remove("dev-1")
	if sum := s.deliver(); !sum.Changed {
		t.Error("nothing was changed")
	}
	if who := wait(t, lost); who != "dev-1" {
		t.Errorf("%s lost its session", who)
	}
	if live, err := s.driver.Live(ctx, ids); err != nil || len(live) != 1 || live[0] != "Dev-2" {
		t.Errorf("live %v, %v", live, err)
	}
	if _, err := connect(s.options("dev-1")); err == nil {
		t.Error("dev-1 is let in")
	}
	// A certificate is refused when it is in the CRL, at once.
	stolen := s.options("dev-3")
	s.fleet.PKI.Revoke(stolen.TLSConfig.Certificates[0], time.Now())
	s.fleet.Lists = []templates.CRL{s.fleet.PKI.CRL(t, time.Now(), time.Now().Add(time.Hour))}
	s.deliver()
	if _, err := connect(stolen); err == nil {
		t.Error("a revoked certificate is let in")
	}
	if c, err := connect(s.options("dev-3")); err != nil {
		t.Errorf("another certificate of the device: %v", err)
	} else {
		c.Disconnect(0)
	}
}

func wait(t *testing.T, lost <-chan string) string {
	t.Helper()
	select {
	case who := <-lost:
		return who
	case <-time.After(patience):
		t.Fatal("nobody lost a session")
		return ""
	}
}

// What cannot be reached, or does not know us, is said so, without our password.
func TestDriverRefused(t *testing.T) {
	dir, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	live := templates.Live{Dir: dir, Admin: "http://" + closed, User: "imprint", Secret: inventory.NewSecret([]byte("hush")), Timeout: time.Second}
	d, err := rabbitmq.Target{}.Connect(live)
	if err != nil {
		t.Fatal(err)
	}
	err = d.Kick(context.Background(), []inventory.DeviceID{"dev-1"})
	if !errors.Is(err, templates.ErrUnreachable) || strings.Contains(err.Error(), "hush") {
		t.Errorf("nobody there: %v", err)
	}
	for _, admin := range []string{"", "/run/x.sock", "ftp://127.0.0.1", "http://u:p@127.0.0.1", "http://127.0.0.1?x=1"} {
		live.Admin = admin
		if _, err := (rabbitmq.Target{}).Connect(live); err == nil {
			t.Errorf("administration at %q is taken", admin)
		}
	}
}
