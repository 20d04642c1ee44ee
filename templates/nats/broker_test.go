package nats_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/nats"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// A site is a fleet with a running server.
type site struct {
	*server
	t     *testing.T
	fleet *targettest.Memory
	form  string
	dir   string
	port  uint16
}

// run exports a fleet and starts a server with it. There is an observer besides, who
// may do everything.
func run(t *testing.T, form string, f *targettest.Memory) *site {
	t.Helper()
	s := &site{t: t, fleet: f, form: form, dir: t.TempDir(), port: freePort(t)}
	f.Broker.Bind, f.Broker.CertificatePort, f.Broker.PasswordPort = "127.0.0.1", s.port, s.port+1
	if form == nats.Password {
		f.Broker.CertificatePort, f.Broker.PasswordPort = s.port+1, s.port
	}
	s.export()
	s.server = start(t, s.dir, s.port)
	t.Logf("nats-server %s", natsserver.VERSION)
	return s
}

// export writes the fleet, and adds the observer to it.
func (s *site) export() {
	s.t.Helper()
	name := filepath.Join(s.dir, nats.UsersName)
	write(s.t, s.dir, s.fleet, templates.Options{Form: s.form, AllowShrink: true})
	text, err := os.ReadFile(name)
	if err != nil {
		s.t.Fatal(err)
	}
	observer := map[string]string{
		nats.Certificate: `  { user: "spiffe://` + targettest.TrustDomain + `/device/` + targettest.ObserverID + `" }`,
		nats.Both:        `  { user: "spiffe://` + targettest.TrustDomain + `/device/` + targettest.ObserverID + `", password: "` + hash + `" }`,
		nats.Password:    `  { user: "` + targettest.ObserverID + `", password: "` + hash + `" }`,
	}[s.form]
	out := strings.Replace(string(text), "users = [\n", "users = [\n"+observer+"\n", 1)
	if err := os.WriteFile(name, []byte(out), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// login is how a device connects.
func (s *site) login(id string) login {
	s.t.Helper()
	l := login{port: s.port, roots: s.fleet.PKI.Roots(), clientID: id}
	if s.form != nats.Certificate {
		l.user, l.password = id, "correct horse"
		if id == "Dev-2" {
			l.password = "battery staple"
		}
	}
	if s.form != nats.Password {
		c := s.fleet.PKI.Client(s.t, id)
		l.cert = &c
	}
	return l
}

// The server decides as the policy.
func TestProof(t *testing.T) {
	for _, form := range []string{nats.Certificate, nats.Password} { // of both, the proof sends one
		t.Run(form, func(t *testing.T) {
			s := run(t, form, fleet(t))
			l := s.login(targettest.ObserverID)
			b := &proof.Broker{
				Target: "nats " + form, Roots: s.fleet.PKI.Roots(),
				Observer: &proof.Device{Subject: topic.Subject{ID: targettest.ObserverID}, Certificate: l.cert, Password: []byte(l.password)},
			}
			address := fmt.Sprintf("127.0.0.1:%d", s.port)
			if form == nats.Password {
				b.Passwords = address
			} else {
				b.Certificates = address
			}
			all := devices(t, s.fleet)
			r, err := b.Ask(t.Context(), all, proof.Questions(all))
			if err != nil {
				t.Fatal(err)
			}
			targettest.Report(t, r, nil)
		})
	}
}

// What the evaluator says of odd lists of users is what the server does.
func TestEvaluatorIsTheServer(t *testing.T) {
	for _, tt := range mistakes() {
		t.Run(tt.name, func(t *testing.T) {
			dir, port := t.TempDir(), freePort(t)
			conf := fmt.Sprintf("server_name: x\nmqtt { listen: \"127.0.0.1:%d\" }\n%s", port, mistakenConf)
			observer := `users = [ { user: "observer-1", password: "` + hash + `" },`
			for name, text := range map[string]string{nats.ConfName: conf, nats.UsersName: strings.Replace(tt.users, "users = [", observer, 1)} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			start(t, dir, port)
			l := login{port: port, plain: true, clientID: "dev-1", user: "dev-1", password: "correct horse"}
			d := connect(t, l)
			l.clientID, l.user = "observer-1", "observer-1"
			o := connect(t, l)
			allowed := func(text string) bool {
				if tt.verb == proof.Subscribe {
					return d.subscribe(text, 0) != 0x80
				}
				if o.subscribe("#", 0) != 0 {
					t.Fatal("the observer may not observe")
				}
				d.publish(text, "asked", false)
				o.publish("done", "done", false)
				return o.receive() == "asked"
			}
			if tt.allowed != "" && !allowed(tt.allowed) {
				t.Errorf("%s %q is refused", tt.verb, tt.allowed)
			}
			if tt.denied != "" && allowed(tt.denied) {
				t.Errorf("%s %q is allowed", tt.verb, tt.denied)
			}
		})
	}
}

// A device that is gone at a reload loses its session, and the next one is refused;
// the others go on.
func TestRevoke(t *testing.T) {
	for _, form := range forms() {
		t.Run(form, func(t *testing.T) {
			s := run(t, form, fleet(t))
			gone, stays := connect(t, s.login("dev-1")), connect(t, s.login("Dev-2"))
			s.fleet.Remove("dev-1")
			s.export()
			begin := time.Now()
			s.reload(t)
			gone.end("revoked")
			t.Logf("ended after %s", time.Since(begin).Round(time.Millisecond))
			if c, err := dial(t, s.login("dev-1")); err == nil {
				t.Errorf("a revoked device gets in: %v", c)
			}
			if code := stays.subscribe("news/all", 1); code != 1 {
				t.Errorf("another device is at %#x", code)
			}
		})
	}
}

// Rights that are taken away end with the reload for what is published and for
// subscriptions of QoS 0. One of QoS 1 goes on until the session ends, and no longer,
// also if the session is kept. This is why a device is taken out of the export for one
// reload when it loses rights.
func TestRightsTakenAway(t *testing.T) {
	s := run(t, nats.Certificate, fleet(t))
	l := s.login("dev-1")
	l.keep = true
	d := connect(t, l)
	for f, qos := range map[string]byte{"news/all": 1, "fleet/dev-1/down": 1, "fleet/dev-1/cmd/#": 0} {
		if code := d.subscribe(f, qos); code != qos {
			t.Fatalf("%s: %#x", f, code)
		}
	}
	d.publish("fleet/dev-1/state", "kept", true)
	o := connect(t, s.login(targettest.ObserverID))

	e := &s.fleet.Devices[0]
	whole := e.Grants
	e.Grants = slices.DeleteFunc(slices.Clone(whole), func(g topic.Grant) bool {
		return g.Filter == "news/all" || g.Filter == "fleet/dev-1/state" || g.Filter == "fleet/dev-1/cmd/#"
	})
	if e.ID != "dev-1" || len(e.Grants) != len(whole)-4 {
		t.Fatalf("%+v", e)
	}
	s.export()
	s.reload(t)
	o.publish("fleet/dev-1/cmd/x", "secret", false)
	o.publish("news/all", "goes on", false)
	o.publish("fleet/dev-1/down", "own", false)
	for _, want := range []string{"goes on", "own"} {
		if got := d.receive(); got != want {
			t.Errorf("it is sent %q, want %q", got, want)
		}
	}
	for _, f := range []string{"news/all", "fleet/dev-1/cmd/#"} {
		if code := d.subscribe(f, 0); code != 0x80 {
			t.Errorf("it may subscribe to %s again: %#x", f, code)
		}
	}

	narrow := slices.Clone(s.fleet.Devices)
	s.fleet.Remove("dev-1")
	s.export()
	s.reload(t)
	d.end("it is not in the export")
	o.publish("news/all", "secret", false)
	o.publish("fleet/dev-1/down", "waits", false)
	s.fleet.Devices = narrow
	s.export()
	s.reload(t)
	d = connect(t, l)
	o.publish("news/all", "secret", false)
	o.publish("fleet/dev-1/down", "own", false)
	for _, want := range []string{"waits", "own"} {
		if got := d.receive(); got != want {
			t.Errorf("it is sent %q, want %q", got, want)
		}
	}
	eventually(t, "what a device may no longer retain is gone", func() bool {
		n := connect(t, s.login(targettest.ObserverID))
		defer n.drop()
		n.subscribe("fleet/dev-1/#", 0)
		n.publish("fleet/dev-1/done", "done", false)
		return n.receive() == "done"
	})
}

// What is waiting for a device does not go to another one with its client identifier.
// That this one ends its session cannot be helped.
func TestClientIdentifierOfAnother(t *testing.T) {
	s := run(t, nats.Certificate, fleet(t))
	l := s.login("dev-1")
	l.keep = true
	d := connect(t, l)
	if code := d.subscribe("fleet/dev-1/down", 1); code != 1 {
		t.Fatalf("%#x", code)
	}
	thief := s.login("Dev-2")
	thief.clientID, thief.keep = "dev-1", true
	c := connect(t, thief)
	d.end("its client identifier is in use")
	if code := c.subscribe("fleet/Dev-2/down", 1); code != 1 {
		t.Fatalf("%#x", code)
	}
	c.drop()

	o := connect(t, s.login(targettest.ObserverID))
	o.publish("fleet/dev-1/down", "for dev-1", false)
	c = connect(t, thief)
	o.publish("fleet/dev-1/down", "for dev-1", false)
	o.publish("fleet/Dev-2/down", "for Dev-2", false)
	if got := c.receive(); got != "for Dev-2" {
		t.Errorf("another device is sent %q", got)
	}
	c.drop()
	d = connect(t, l)
	if got := d.receive(); got != "for dev-1" {
		t.Errorf("the device itself is sent %q", got)
	}
}

// QoS 1 and 2, sessions that stay, and retained messages need no right besides the
// device's own.
func TestSessionOfRestrictedDevice(t *testing.T) {
	s := run(t, nats.Certificate, fleet(t))
	l := s.login("dev-1")
	l.keep = true
	d := connect(t, l)
	for filter, qos := range map[string]byte{"fleet/dev-1/cmd/#": 2, "fleet/dev-1/state": 1} {
		if code := d.subscribe(filter, qos); code != qos {
			t.Errorf("%s: %#x, want %d", filter, code, qos)
		}
	}
	d.publish("fleet/dev-1/state", "on", true)
	if got := d.receive(); got != "on" {
		t.Errorf("its own state is %q", got)
	}
	d.drop()
	o := connect(t, s.login(targettest.ObserverID))
	o.publish("fleet/dev-1/cmd/a.b//c", "while away", false)
	d = connect(t, l)
	if got := d.receive(); got != "while away" || !d.present {
		t.Errorf("%q, session present %v", got, d.present)
	}
}

// Topics with the server's own wildcards and prefixes do not widen anything.
func TestServersOwnTopics(t *testing.T) {
	s := run(t, nats.Certificate, fleet(t))
	d, o := connect(t, s.login("dev-1")), connect(t, s.login(targettest.ObserverID))
	for _, f := range []string{
		"fleet/*/down", "fleet/>", ">", "*", "*/*", "fleet/dev-10/>", "$SYS/#", "$JS/#", "$JS/EVENT/#", "$MQTT/#", "$MQTT/msgs/#",
		"$MQTT/sub/x", "$MQTT/sub/+", "$MQTT/sub/#", "$MQTT/rmsgs/#", "$MQTT/deliver/pubrel/#", "_INBOX/#", "imprint/nothing", "#/down", "fleet/dev-1/state/#",
	} {
		if code := d.subscribe(f, 0); code != 0x80 {
			t.Errorf("subscribing to %q: %#x", f, code)
		}
	}
	for _, f := range []string{"#", "$JS/#", "$MQTT/#", "$SYS/#", "_INBOX/#"} {
		o.subscribe(f, 0)
	}
	for _, n := range []string{"fleet/*/up", "fleet/>", ">", "*", "$JS/API/STREAM/NAMES", "$MQTT/msgs/fleet/dev-10/down", "$MQTT/sub/x", "$SYS/REQ/SERVER/PING", "imprint/nothing"} {
		d.publish(n, "wide", false)
	}
	o.publish("x", "done", false)
	if got := o.receive(); got != "done" {
		t.Errorf("%q has been published", got)
	}
}

// A forbidden retained message is not kept.
func TestForbiddenRetained(t *testing.T) {
	s := run(t, nats.Certificate, fleet(t))
	connect(t, s.login("dev-1")).publish("fleet/dev-10/state", "false", true)
	o := connect(t, s.login(targettest.ObserverID))
	o.subscribe("fleet/#", 0)
	o.publish("fleet/x", "done", false)
	if got := o.receive(); got != "done" {
		t.Errorf("%q is retained", got)
	}
}

// An empty fleet lets nobody in, and neither does the user at the end of the list.
func TestNobody(t *testing.T) {
	for _, form := range forms() {
		f := targettest.NewFleet(t, time.Now())
		s := run(t, form, f)
		if c, err := dial(t, s.login("dev-1")); err == nil {
			t.Errorf("%s: a device gets in: %v", form, c)
		}
		l := s.login("imprint:nobody")
		for _, password := range []string{"", "x", "\x00", strings.Repeat("\x00", 72)} {
			l.password = password
			if c, err := dial(t, l); err == nil {
				t.Errorf("%s: nobody gets in with password %q: %v", form, password, c)
			}
		}
		l = s.login("dev-1")
		l.cert = nil
		if c, err := dial(t, l); err == nil {
			t.Errorf("%s: somebody gets in without a certificate: %v", form, c)
		}
	}
}
