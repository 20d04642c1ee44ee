package mochi_test

import (
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	mqtt "github.com/mochi-mqtt/server/v2"

	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/mochi"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

const loaded = "fleet is loaded"

// A site is a fleet with a running broker.
type site struct {
	*server
	t     *testing.T
	fleet *targettest.Memory
	dir   string
	cert  map[string]tls.Certificate
}

// run exports a fleet and starts a broker with it.
func run(t *testing.T, f *targettest.Memory) *site {
	t.Helper()
	s := &site{t: t, fleet: f, dir: t.TempDir(), cert: map[string]tls.Certificate{}}
	f.Broker.Bind = "127.0.0.1"
	f.Broker.CertificatePort, f.Broker.PasswordPort = freePorts(t)
	s.export()
	s.server = start(t, s.dir)
	t.Logf("mochi %s", mqtt.Version)
	return s
}

func (s *site) export() {
	s.t.Helper()
	write(s.t, s.dir, s.fleet, templates.Options{AllowShrink: true, Now: s.fleet.Now})
}

// reload exports the fleet and lets the broker read it again.
func (s *site) reload() {
	s.t.Helper()
	s.export()
	s.hup(s.t, loaded)
}

// login is how a device of the fleet connects: dev-1, Dev-2 and the observer by
// password, the others by certificate.
func (s *site) login(id string) login {
	s.t.Helper()
	l := login{roots: s.fleet.PKI.Roots(), clientID: id, port: s.fleet.Broker.PasswordPort, user: id}
	switch id {
	case "dev-1":
		l.password = "correct horse"
	case "Dev-2":
		l.password = "battery staple"
	case targettest.ObserverID:
		l.password = "observe everything"
	default:
		l.port, l.user = s.fleet.Broker.CertificatePort, ""
		c, ok := s.cert[id]
		if !ok {
			c = s.fleet.PKI.Client(s.t, id)
			s.cert[id] = c
		}
		l.cert = &c
	}
	return l
}

func fleet(t *testing.T) *targettest.Memory {
	t.Helper()
	return targettest.ProofFleet(t, time.Now(), rules()...)
}

// The broker decides as the policy, for both versions of MQTT.
func TestProof(t *testing.T) {
	for _, version := range []int{4, 5} {
		t.Run(fmt.Sprintf("MQTT %d", version), func(t *testing.T) {
			s := run(t, fleet(t))
			all := s.fleet.ProofDevices(t)
			r, err := (&proof.Broker{
				Target: "mochi hook", Roots: s.fleet.PKI.Roots(), Version: version, Observer: s.fleet.ProofObserver(t), BindsClientID: true,
				Certificates: fmt.Sprintf("127.0.0.1:%d", s.fleet.Broker.CertificatePort), Passwords: fmt.Sprintf("127.0.0.1:%d", s.fleet.Broker.PasswordPort),
			}).Ask(t.Context(), all, proof.Questions(all))
			if err != nil {
				t.Fatal(err)
			}
			targettest.Report(t, r, nil)
		})
	}
}

// Go reads the source without a complaint.
func TestVet(t *testing.T) {
	if out, err := exec.Command("go", "vet", "./_broker").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := exec.Command("gofmt", "-l", "_broker").CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

// A device that is revoked loses its session at a reload and does not get in again;
// its will is not published, and what waited for it is gone.
func TestRevoke(t *testing.T) {
	s := run(t, fleet(t))
	o := connect(t, s.login(targettest.ObserverID))
	o.subscribe("#", 0)
	for _, id := range []string{"dev-1", "dev-3"} {
		l := s.login(id)
		l.will, l.keep = "fleet/"+id+"/state", true
		d := connect(t, l)
		if code := d.subscribe("fleet/"+id+"/down", 1); code != 1 {
			t.Fatalf("%#x", code)
		}
		devices := slices.Clone(s.fleet.Devices)
		s.fleet.Remove(id)
		begin := time.Now()
		s.reload()
		d.end("revoked")
		t.Logf("%s: ended after %s", id, time.Since(begin).Round(time.Millisecond))
		if _, err := dial(t, l); err == nil {
			t.Errorf("%s gets in again", id)
		}
		o.say("x", "done")
		if got := o.receive(); got != "done" {
			t.Errorf("%s has still said %q", id, got)
		}
		s.fleet.Devices = devices
		s.reload()
		if d := connect(t, l); d.present {
			t.Errorf("%s finds its old session", id)
		}
	}
	o.say("x", "done")
	if got := o.receive(); got != "done" {
		t.Errorf("somebody has said %q", got)
	}
}

// Another certificate of a device may be revoked, and its password may change: that
// ends the sessions that came by the old one.
func TestRevokedCredential(t *testing.T) {
	s := run(t, fleet(t))
	old := s.login("dev-3")
	delete(s.cert, "dev-3")
	d := connect(t, old)
	s.fleet.PKI.Revoke(*old.cert, time.Now())
	s.fleet.Lists[0] = s.fleet.PKI.CRL(t, time.Now(), time.Now().Add(time.Hour))
	s.reload()
	d.end("its certificate is revoked")
	if _, err := dial(t, old); err == nil {
		t.Error("a revoked certificate gets in")
	}
	connect(t, s.login("dev-3")) // with another one

	d = connect(t, s.login("dev-1"))
	for i := range s.fleet.Devices {
		if s.fleet.Devices[i].ID == "dev-1" {
			s.fleet.Devices[i].Verifiers = targettest.Verifiers(t, "dev-1", "another horse")
		}
	}
	s.reload()
	d.end("its password is another one")
	if _, err := dial(t, s.login("dev-1")); err == nil {
		t.Error("the old password gets in")
	}
	l := s.login("dev-1")
	l.password = "another horse"
	connect(t, l)
}

// Without a signal the broker sees a new export within seconds.
func TestWatch(t *testing.T) {
	s := run(t, fleet(t))
	d := connect(t, s.login("dev-1"))
	s.fleet.Remove("dev-1")
	s.export()
	d.end("revoked, without a signal")
}

// Files that cannot be read change nothing.
func TestBrokenFiles(t *testing.T) {
	s := run(t, fleet(t))
	d := connect(t, s.login("dev-1"))
	for _, tt := range []struct{ file, text string }{
		{mochi.DevicesName, "{"},
		{mochi.DevicesName, `{"imprint":2,"devices":[]}`},
		{mochi.DevicesName, `{"imprint":1,"devices":[{"id":"dev-1","superuser":true}]}`},
		{mochi.DevicesName, `{"imprint":1,"devices":[{"id":"dev-1","publish":[""]}]}`},
		{mochi.DevicesName, `{"imprint":1,"devices":[{"id":"dev-1"},{"id":"dev-1"}]}`},
		{templates.CRLFile, ""},
		{templates.TrustFile, ""},
		{templates.TrustFile, "-----BEGIN X-----\n-----END X-----\n"},
		{templates.KeyFile, "x"},
	} {
		name := filepath.Join(s.dir, tt.file)
		good, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		s.hup(t, "fleet is not loaded")
		if code := d.say("fleet/dev-1/state", "on"); code >= 0x80 {
			t.Errorf("%s %q: its right is gone: %#x", tt.file, tt.text, code)
		}
		connect(t, s.login("dev-3")).drop()
		if err := os.WriteFile(name, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.hup(t, loaded)
}

// With a CRL that has expired no certificate gets in; passwords do.
func TestExpiredCRL(t *testing.T) {
	s := run(t, targettest.ProofFleet(t, time.Now().AddDate(0, -1, 0), rules()...))
	if _, err := dial(t, s.login("dev-3")); err == nil {
		t.Error("a certificate gets in")
	}
	connect(t, s.login("dev-1"))
}

// A client is who it proves to be, under its own identifier.
func TestIdentity(t *testing.T) {
	s := run(t, fleet(t))
	for _, tt := range []struct {
		name   string
		id     string
		change func(l *login)
		want   bool
	}{
		{"by password", "dev-1", func(*login) {}, true},
		{"by certificate", "dev-3", func(*login) {}, true},
		{"by certificate, with its name", "dev-3", func(l *login) { l.user = "dev-3" }, true},
		{"with another name", "dev-3", func(l *login) { l.user = "dev-10" }, false},
		{"another client identifier", "dev-3", func(l *login) { l.clientID = "dev-10" }, false},
		{"no client identifier", "dev-3", func(l *login) { l.clientID = "" }, false},
		{"another case", "dev-3", func(l *login) { l.clientID = "DEV-3" }, false},
		{"a device without a certificate", "dev-3", func(l *login) { c := s.fleet.PKI.Client(t, "dev-1"); l.cert, l.clientID = &c, "dev-1" }, false},
		{"a device that is not there", "dev-3", func(l *login) { c := s.fleet.PKI.Client(t, "dev-4"); l.cert, l.clientID = &c, "dev-4" }, false},
		{"no certificate", "dev-3", func(l *login) { l.cert = nil }, false},
		{"another password", "dev-1", func(l *login) { l.password = "battery staple" }, false},
		{"no password", "dev-1", func(l *login) { l.password = "" }, false},
		{"another user", "dev-1", func(l *login) { l.user = "Dev-2" }, false},
		{"another identifier", "dev-1", func(l *login) { l.clientID = "Dev-2" }, false},
		{"no identifier", "dev-1", func(l *login) { l.clientID = "" }, false},
		{"a device without a password", "dev-1", func(l *login) { l.user, l.clientID = "dev-3", "dev-3" }, false},
		{"without TLS", "dev-1", func(l *login) { l.plain = true }, false},
		{"a certificate where passwords are asked for", "dev-3", func(l *login) { l.port = s.fleet.Broker.PasswordPort }, false},
		{"a password where certificates are asked for", "dev-1", func(l *login) { l.port = s.fleet.Broker.CertificatePort }, false},
		{"a will of its own", "dev-1", func(l *login) { l.will = "fleet/dev-1/state" }, true},
		{"a will of another", "dev-1", func(l *login) { l.will = "fleet/dev-10/state" }, false},
		{"a will for many", "dev-1", func(l *login) { l.will = "fleet/dev-1/up/#" }, false},
		{"a will for the system", "observer-1", func(l *login) { l.will = "$SYS/broker/version" }, false},
	} {
		l := s.login(tt.id)
		tt.change(&l)
		c, err := dial(t, l)
		if (err == nil) != tt.want {
			t.Errorf("%s: %v, want in: %v", tt.name, err, tt.want)
		}
		if c != nil {
			c.drop()
		}
	}
}

// A topic alias is no way around the rules, and works within them.
func TestTopicAlias(t *testing.T) {
	s := run(t, fleet(t))
	d, o := connect(t, s.login("dev-1")), connect(t, s.login(targettest.ObserverID))
	o.subscribe("#", 0)
	alias := func(n uint16) *packets.Properties { return &packets.Properties{TopicAlias: &n} }
	for _, tt := range []struct {
		name    string
		alias   uint16
		allowed bool
	}{
		{"fleet/dev-10/state", 1, false},
		{"", 1, false}, // it has not been taken
		{"fleet/dev-1/state", 2, true},
		{"", 2, true},
		{"fleet/dev-10/state", 2, false},
		{"", 2, true}, // what it was before
	} {
		code := d.publish(packets.Publish{Topic: tt.name, Payload: []byte("alias"), Properties: alias(tt.alias)})
		if (code < 0x80) != tt.allowed {
			t.Errorf("%q with alias %d: %#x, want allowed %v", tt.name, tt.alias, code, tt.allowed)
		}
		o.say("x", "done")
		got := o.receive()
		if (got == "alias") != tt.allowed {
			t.Errorf("%q with alias %d: %q arrives", tt.name, tt.alias, got)
		}
		if got == "alias" {
			o.receive()
		}
	}
}

// An alias of a topic whose right is taken away is none any more, also with QoS 0.
func TestRightsTakenAway(t *testing.T) {
	s := run(t, fleet(t))
	l := s.login("dev-1")
	l.will = "fleet/dev-1/state"
	d, o := connect(t, l), connect(t, s.login(targettest.ObserverID))
	o.subscribe("#", 0)
	if code := d.subscribe("news/all", 1); code != 1 {
		t.Fatalf("%#x", code)
	}
	one := uint16(1)
	d.publish(packets.Publish{Topic: "fleet/dev-1/state", Payload: []byte("on"), Properties: &packets.Properties{TopicAlias: &one}})
	if got := o.receive(); got != "on" {
		t.Fatal(got)
	}
	for i := range s.fleet.Devices {
		e := &s.fleet.Devices[i]
		e.Grants = slices.DeleteFunc(slices.Clone(e.Grants), func(g topic.Grant) bool {
			return strings.HasPrefix(string(g.Filter), "news") || strings.HasSuffix(string(g.Filter), "/state")
		})
	}
	s.reload()
	if code := d.publish(packets.Publish{Payload: []byte("wide"), Properties: &packets.Properties{TopicAlias: &one}}); code < 0x80 {
		t.Errorf("by its alias: %#x", code)
	}
	p := packets.NewControlPacket(packets.PUBLISH)
	*p.Content.(*packets.Publish) = packets.Publish{Payload: []byte("wide"), Properties: &packets.Properties{TopicAlias: &one}}
	if err := d.send(p); err != nil {
		t.Fatal(err)
	}
	d.say("fleet/dev-1/up/x", "up")
	if got := o.receive(); got != "up" {
		t.Errorf("%q is published", got)
	}
	o.say("news/all", "secret")
	if got := o.receive(); got != "secret" {
		t.Fatal(got)
	}
	o.say("fleet/dev-1/down", "own")
	if got := o.receive(); got != "own" {
		t.Fatal(got)
	}
	if code := d.subscribe("fleet/dev-1/down", 0); code != 0 {
		t.Errorf("%#x", code)
	}
	o.say("fleet/dev-1/down", "now")
	if got := d.receive(); got != "now" {
		t.Errorf("it is sent %q", got)
	}
	o.receive()
	l = s.login("dev-3")
	l.will = "fleet/dev-3/up"
	last := connect(t, l)
	d.drop()
	last.drop() // and its will may be published
	if got := o.receive(); got != "will of dev-3" {
		t.Errorf("%q is published", got)
	}
}

// Shared subscriptions and odd filters are no way around the rules.
func TestOddFilters(t *testing.T) {
	s := run(t, fleet(t))
	d, o := connect(t, s.login("dev-1")), connect(t, s.login(targettest.ObserverID))
	for _, f := range []string{
		"$share/g/fleet/dev-10/down", "$SHARE/g/#", "$Share/g/fleet/dev-1/down", "$share/g/news/all", "$queue/#", "$SYS/#", "$sys/#",
		"fleet/dev-1/cmd+", "fleet/dev-1/+", "fleet/dev-1/down#", "+/+/+", "fleet/dev-1/down/#", "fleet/+/down",
	} {
		if code := d.subscribe(f, 0); code < 0x80 {
			t.Errorf("%q: %#x", f, code)
		}
	}
	for _, f := range []string{"$SYS/#", "$share/g/#", "$SHARE/g/x"} {
		if code := o.subscribe(f, 0); code < 0x80 {
			t.Errorf("by #, %q: %#x", f, code)
		}
	}
}

// An empty fleet lets nobody in.
func TestNobody(t *testing.T) {
	s := run(t, targettest.NewFleet(t, time.Now()))
	for _, id := range []string{"dev-1", "dev-3"} {
		if _, err := dial(t, s.login(id)); err == nil {
			t.Errorf("%s gets in", id)
		}
	}
}
