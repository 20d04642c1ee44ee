package mosquitto_test

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/mosquitto"
	"github.com/imprint-iot/imprint/templates/mosquitto/mosquittotest"
	"github.com/imprint-iot/imprint/templates/targettest"
)

const adminPassword = "admin password of the test"

// A stand is a fleet, its export and a broker that runs it.
type stand struct {
	t      *testing.T
	fleet  *targettest.Memory
	dir    *durable.Dir
	form   string
	broker *mosquittotest.Broker
	socket string
}

var passwords = map[string]string{"dev-1": "correct horse", "Dev-2": "battery staple"}

// newStand starts a broker with an export of the small fleet.
func newStand(t *testing.T, form string) *stand {
	t.Helper()
	s := &stand{t: t, fleet: targettest.Small(t, time.Now()), form: form}
	if form == mosquitto.Pattern {
		s.fleet = targettest.NewFleet(t, time.Now())
		s.fleet.Profile("sensor",
			topic.Rule{Action: topic.Publish, Filter: "fleet/{id}/up/#"},
			topic.Rule{Action: topic.Receive, Filter: "fleet/{id}/down"},
			topic.Rule{Action: topic.Receive, Filter: "news/all", Shared: true})
		s.fleet.Device(t, "dev-1", "sensor", "hall", passwords["dev-1"])
		s.fleet.Device(t, "Dev-2", "sensor", "hall", passwords["Dev-2"])
		s.fleet.Device(t, "dev-3", "sensor", "hall", "")
	}
	ports := mosquittotest.Ports(t, 2)
	n := &s.fleet.Broker
	n.Bind, n.CertificatePort, n.PasswordPort = "127.0.0.1", ports[0], ports[1]
	s.broker = mosquittotest.New(t)
	s.socket = filepath.Join(s.broker.Dir, "admin.sock")
	n.Admin = &templates.Admin{Socket: s.socket, Verifiers: targettest.Verifiers(t, templates.AdminName, adminPassword)}
	s.dir = openDir(t, t.TempDir())
	s.export(templates.Options{})
	s.broker = mosquittotest.New(t, "include_dir "+s.dir.Path())
	if err := s.broker.Run(); err != nil {
		t.Fatalf("%v\n%s", err, s.broker.Log())
	}
	return s
}

func openDir(t testing.TB, path string) *durable.Dir {
	t.Helper()
	d, err := durable.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func (s *stand) export(o templates.Options) templates.Summary {
	s.t.Helper()
	o.Form = s.form
	sum, err := mosquitto.Target{}.Write(s.dir, s.fleet, o)
	if err != nil {
		s.t.Fatal(err)
	}
	return sum
}

// login is how a device with a password connects, under its own name.
func (s *stand) login(id string) mosquittotest.Login {
	return mosquittotest.Login{
		Addr:     fmt.Sprintf("127.0.0.1:%d", s.fleet.Broker.PasswordPort),
		TLS:      &tls.Config{RootCAs: s.fleet.PKI.Roots(), MinVersion: tls.VersionTLS12},
		ClientID: id, User: id, Password: passwords[id],
	}
}

// certLogin is how a device with a certificate connects.
func (s *stand) certLogin(c tls.Certificate) mosquittotest.Login {
	return mosquittotest.Login{
		Addr: fmt.Sprintf("127.0.0.1:%d", s.fleet.Broker.CertificatePort),
		TLS:  &tls.Config{RootCAs: s.fleet.PKI.Roots(), Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS12},

		ClientID: c.Leaf.Subject.CommonName,
	}
}

func (s *stand) admin() *mosquittotest.Client {
	s.t.Helper()
	return mosquittotest.MustConnect(s.t, mosquittotest.Login{Addr: s.socket, ClientID: "admin", User: templates.AdminName, Password: adminPassword})
}

// device connects a device by whatever it has.
func (s *stand) device(id string) *mosquittotest.Client {
	s.t.Helper()
	if passwords[id] != "" {
		return mosquittotest.MustConnect(s.t, s.login(id))
	}
	return mosquittotest.MustConnect(s.t, s.certLogin(s.fleet.PKI.Client(s.t, id)))
}

var forms = []string{mosquitto.Auto, mosquitto.Pattern, mosquitto.Expanded, mosquitto.Dynsec}

// The broker decides about every device, action and topic as the reference
// evaluator does, in each form of the export.
func TestBrokerDecidesAsPolicy(t *testing.T) {
	for _, form := range forms {
		t.Run(form, func(t *testing.T) {
			s := newStand(t, form)
			admin := s.admin()
			decisions := targettest.Decisions(t, s.fleet)
			allowed := 0
			for _, e := range s.fleet.Devices {
				dev := s.device(string(e.ID))
				mine := slices.DeleteFunc(slices.Clone(decisions), func(d targettest.Decision) bool { return d.Device != string(e.ID) })
				checkPublish(t, dev, mine)
				checkReceive(t, form, dev, admin, mine)
				for _, d := range mine {
					if d.Allowed {
						allowed++
					}
				}
			}
			t.Logf("%d decisions, %d of them to allow", len(decisions), allowed)
			if allowed < 20 || len(decisions)-allowed < 100 {
				t.Error("too few decisions to mean anything")
			}
		})
	}
}

func checkPublish(t *testing.T, dev *mosquittotest.Client, decisions []targettest.Decision) {
	t.Helper()
	for _, d := range decisions {
		if d.Action != topic.Publish {
			continue
		}
		code := dev.Publish(d.Topic, "up")
		if got := code == mosquittotest.Success || code == mosquittotest.NoSubscribers; got != d.Allowed || (!got && code != mosquittotest.NotAuthorized) {
			t.Errorf("%s publishes to %q: code %#x, want allowed = %t", d.Device, d.Topic, code, d.Allowed)
		}
	}
}

// checkReceive subscribes to each topic and looks at what arrives. With an ACL
// file every subscription succeeds.
func checkReceive(t *testing.T, form string, dev, admin *mosquittotest.Client, decisions []targettest.Decision) {
	t.Helper()
	dev.Subscribe("news/all")
	for _, d := range decisions {
		if d.Action != topic.Receive {
			continue
		}
		want := d.Allowed || form != mosquitto.Dynsec
		if code := dev.Subscribe(d.Topic); (code < 0x80) != want {
			t.Errorf("%s subscribes to %q: code %#x, want success = %t", d.Device, d.Topic, code, want)
		}
	}
	got := dev.Until(sentinel(admin, decisions))
	for _, d := range decisions {
		if d.Action != topic.Receive || d.Topic == "news/all" {
			continue
		}
		if got := slices.Contains(got, d.Topic+" down"); got != d.Allowed {
			t.Errorf("%s receives %q: %t, want %t", d.Device, d.Topic, got, d.Allowed)
		}
	}
}

// sentinel publishes to every topic and then, where everybody listens, the text
// it returns: messages of one client arrive in order.
func sentinel(admin *mosquittotest.Client, decisions []targettest.Decision) string {
	for _, d := range decisions {
		if d.Action == topic.Receive {
			admin.Publish(d.Topic, "down")
		}
	}
	end := "end of " + decisions[0].Device
	admin.Publish("news/all", end)
	return end
}

// A subscription to more than a device may receive brings what it may receive
// (ACL file) or is refused (dynamic security).
func TestBrokerSubscribeWide(t *testing.T) {
	for _, form := range forms {
		t.Run(form, func(t *testing.T) {
			s := newStand(t, form)
			admin := s.admin()
			for _, e := range s.fleet.Devices {
				p := s.fleet.Models[slices.IndexFunc(s.fleet.Models, func(p inventory.Profile) bool { return p.Name == e.Profile })].Policy
				dev := s.device(string(e.ID))
				for _, f := range append(targettest.Filters(s.fleet), "$share/g/fleet/dev-3/#", "$share/g/#") {
					code := dev.Subscribe(f)
					if form != mosquitto.Dynsec {
						continue // nothing is refused
					}
					want := false
					if filter, err := topic.ParseFilter(f); err == nil {
						want = p.DecideSubscribe(targettest.Subject(e), filter).Allowed
					}
					if got := code < 0x80; got != want {
						t.Errorf("%s subscribes to %q: code %#x, want allowed = %t", e.ID, f, code, want)
					}
				}
				mine := slices.DeleteFunc(targettest.Decisions(t, s.fleet), func(d targettest.Decision) bool {
					return d.Device != string(e.ID) || d.Action != topic.Receive
				})
				for _, got := range dev.Until(sentinel(admin, mine)) {
					name, _, _ := strings.Cut(got, " ")
					if !p.Decide(targettest.Subject(e), topic.Receive, topic.Name(name)).Allowed {
						t.Errorf("%s has received %q", e.ID, got)
					}
				}
			}
		})
	}
}

// Who may log in, and as whom.
func TestBrokerIdentity(t *testing.T) {
	for _, form := range forms {
		t.Run(form, func(t *testing.T) {
			s := newStand(t, form)
			admin := s.admin()

			// A wrong password, another's password, none at all, no name.
			for _, change := range []func(*mosquittotest.Login){
				func(l *mosquittotest.Login) { l.Password = "wrong" },
				func(l *mosquittotest.Login) { l.Password = passwords["Dev-2"] },
				func(l *mosquittotest.Login) { l.Password = "" },
				func(l *mosquittotest.Login) { l.User, l.Password = "", "" },
				func(l *mosquittotest.Login) { l.User, l.ClientID = "DEV-1", "DEV-1" },
				func(l *mosquittotest.Login) { l.User, l.ClientID = "dev-3", "dev-3" }, // has only a certificate
			} {
				l := s.login("dev-1")
				change(&l)
				if _, code, err := mosquittotest.Connect(t, l); err == nil && code == mosquittotest.Success {
					t.Errorf("%q with client identifier %q may connect", l.User, l.ClientID)
				}
			}

			// On the certificate listener the name in CONNECT is ignored.
			l := s.certLogin(s.fleet.PKI.Client(t, "dev-3"))
			l.User, l.Password, l.ClientID = "dev-1", passwords["dev-1"], "dev-1"
			dev3 := mosquittotest.MustConnect(t, l)
			admin.Subscribe("fleet/#")
			if code := dev3.Publish("fleet/dev-1/up/a", "no"); code != mosquittotest.NotAuthorized {
				t.Errorf("dev-3 publishes as dev-1: code %#x", code)
			}
			if code := dev3.Publish("fleet/dev-3/up/a", "yes"); code != mosquittotest.Success {
				t.Errorf("dev-3 publishes: code %#x", code)
			}
			if got := admin.Next(); got != "fleet/dev-3/up/a yes" {
				t.Errorf("got %q", got)
			}
			s.broker.WaitLog("as dev-3 (p5, c1, k60, u'dev-3')")

			// Without a certificate, or with one of another CA.
			l = s.certLogin(targettest.NewPKI(t, time.Now()).Client(t, "dev-3"))
			if _, _, err := mosquittotest.Connect(t, l); err == nil {
				t.Error("a certificate of another CA is accepted")
			}
			l.TLS.Certificates = nil
			if _, _, err := mosquittotest.Connect(t, l); err == nil {
				t.Error("a client without a certificate is accepted")
			}
		})
	}
}

// Whatever client identifier a device asks for, it gets its own: nobody takes
// over the session of another, on either listener.
func TestBrokerClientIDHijack(t *testing.T) {
	for _, form := range forms {
		t.Run(form, func(t *testing.T) {
			s := newStand(t, form)
			a := s.login("dev-1")
			a.Keep = true
			victim := mosquittotest.MustConnect(t, a)
			victim.Subscribe("fleet/dev-1/down")

			b := s.login("Dev-2")
			b.ClientID = "dev-1"
			c := s.certLogin(s.fleet.PKI.Client(t, "dev-3"))
			c.ClientID = "dev-1"
			for _, l := range []mosquittotest.Login{b, c} {
				mosquittotest.MustConnect(t, l)
			}
			s.admin().Publish("fleet/dev-1/down", "still here")
			if got := victim.Next(); got != "fleet/dev-1/down still here" {
				t.Errorf("got %q", got)
			}
			if n := strings.Count(s.broker.Log(), "Client dev-1 already connected"); n != 0 {
				t.Errorf("the session of dev-1 was taken over %d times", n)
			}
		})
	}
}

// A revoked certificate is refused once the broker has the new CRL; a removed
// password ends its session.
func TestBrokerRevocation(t *testing.T) {
	for _, form := range forms {
		t.Run(form, func(t *testing.T) {
			s := newStand(t, form)
			good, bad := s.fleet.PKI.Client(t, "dev-3"), s.fleet.PKI.Client(t, "dev-3")
			mosquittotest.MustConnect(t, s.certLogin(bad)).Close()
			session := mosquittotest.MustConnect(t, s.login("dev-1"))
			stays := mosquittotest.MustConnect(t, s.login("Dev-2"))

			now := time.Now()
			s.fleet.PKI.Revoke(bad, now)
			s.fleet.Lists = []templates.CRL{s.fleet.PKI.CRL(t, now.Add(-time.Minute), now.AddDate(0, 0, 7))}
			s.fleet.Remove("dev-1")
			sum := s.export(templates.Options{})
			if !sum.Changed {
				t.Error("Changed = false after a revocation")
			}
			s.broker.Reload()

			if _, _, err := mosquittotest.Connect(t, s.certLogin(bad)); err == nil {
				t.Error("a revoked certificate is accepted")
			}
			mosquittotest.MustConnect(t, s.certLogin(good))
			if form == mosquitto.Dynsec {
				return // reads its file at the start only
			}
			session.WaitEnded()
			if _, code, _ := mosquittotest.Connect(t, s.login("dev-1")); code != mosquittotest.NotAuthorized {
				t.Errorf("a removed device connects: code %#x", code)
			}
			if code := stays.Publish("fleet/Dev-2/up/a", ""); code >= 0x80 {
				t.Errorf("an untouched session: code %#x", code)
			}
		})
	}
}

// rev-009: past nextUpdate of a CRL the broker refuses every certificate. An
// export with such a CRL is refused, see TestStaleCRL; here it gets old in place.
func TestBrokerExpiredCRL(t *testing.T) {
	s := newStand(t, mosquitto.Auto)
	good := s.fleet.PKI.Client(t, "dev-3")
	mosquittotest.MustConnect(t, s.certLogin(good))
	now := time.Now()
	s.fleet.Lists = []templates.CRL{s.fleet.PKI.CRL(t, now.Add(-2*time.Hour), now.Add(-time.Hour))}
	sum := s.export(templates.Options{Now: now.Add(-90 * time.Minute)}) // when it was still good
	if len(sum.Warnings) != 0 {
		t.Errorf("warnings %q", sum.Warnings)
	}
	s.broker.Reload()
	if _, _, err := mosquittotest.Connect(t, s.certLogin(good)); err == nil {
		t.Error("an expired CRL lets certificates through")
	}
	mosquittotest.MustConnect(t, s.login("dev-1")) // passwords do not depend on it
}

// A fleet without devices: the broker starts and denies everything.
func TestBrokerEmptyFleet(t *testing.T) {
	f := targettest.NewFleet(t, time.Now())
	ports := mosquittotest.Ports(t, 2)
	f.Broker.CertificatePort, f.Broker.PasswordPort = ports[0], ports[1]
	s := &stand{t: t, fleet: f, dir: openDir(t, t.TempDir()), form: mosquitto.Auto}
	s.export(templates.Options{})
	s.broker = mosquittotest.Start(t, "include_dir "+s.dir.Path())
	dev := mosquittotest.MustConnect(t, s.certLogin(f.PKI.Client(t, "dev-1")))
	for _, name := range []string{"x", "fleet/dev-1/up", "$SYS/x"} {
		if code := dev.Publish(name, ""); code != mosquittotest.NotAuthorized {
			t.Errorf("publishing to %q: code %#x", name, code)
		}
	}
}

// The configuration as it is, started as root: the broker drops to the user
// mosquitto, who can read the files because they were given to the owner of the
// directory. If it could not read its ACL file, it would allow everything.
func TestBrokerOwnUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: the broker runs as this user, who owns the files")
	}
	f := targettest.Small(t, time.Now())
	ports := mosquittotest.Ports(t, 2)
	f.Broker.Bind, f.Broker.CertificatePort, f.Broker.PasswordPort = "127.0.0.1", ports[0], ports[1]
	s := &stand{t: t, fleet: f, dir: openDir(t, t.TempDir()), form: mosquitto.Auto}
	chownMosquitto(t, s.dir.Path())
	s.export(templates.Options{})
	s.broker = mosquittotest.New(t)
	if err := s.broker.RunFile(filepath.Join(s.dir.Path(), mosquitto.ConfName)); err != nil {
		t.Fatalf("%v\n%s", err, s.broker.Log())
	}
	for range 2 {
		dev := mosquittotest.MustConnect(t, s.login("dev-1"))
		if code := dev.Publish("fleet/dev-1/up/a", ""); code >= 0x80 {
			t.Errorf("its own topic: code %#x", code)
		}
		if code := dev.Publish("fleet/dev-3/up/a", ""); code != mosquittotest.NotAuthorized {
			t.Errorf("a foreign topic: code %#x", code)
		}
		mosquittotest.MustConnect(t, s.certLogin(f.PKI.Client(t, "dev-3")))
		s.export(templates.Options{})
		s.broker.Reload()
	}
	if strings.Contains(s.broker.Log(), "Error") {
		t.Errorf("the broker complains:\n%s", s.broker.Log())
	}
}
