package rumqttd_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/rumqttd"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

const all = "/tenants/Acme/#"

// rules are the only ones that rumqttd has.
func rules() []topic.Rule {
	return []topic.Rule{{Action: topic.Publish, Filter: all, Shared: true}, {Action: topic.Receive, Filter: all, Shared: true}}
}

// fleet is a fleet that rumqttd can hold: three devices with certificates, and one that
// has only a password.
func fleet(t *testing.T, now time.Time) *targettest.Memory {
	t.Helper()
	f := targettest.NewFleet(t, now)
	f.Profile("tenant", rules()...)
	for _, id := range []string{"dev-1", "dev-10", "Dev-2"} {
		f.Device(t, id, "tenant", "hall", "")
	}
	f.Device(t, "dev-3", "tenant", "hall", "correct horse")
	return f
}

func start() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func write(t *testing.T, dir string, f templates.View, o templates.Options) (templates.Summary, error) {
	t.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	return rumqttd.Target().Write(d, f, o)
}

func mustWrite(t *testing.T, dir string, f templates.View, now time.Time) templates.Summary {
	t.Helper()
	sum, err := write(t, dir, f, templates.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestGolden(t *testing.T) {
	dir := t.TempDir()
	f := fleet(t, start())
	sum, err := write(t, dir, f, templates.Options{Now: start(), Dest: "/etc/imprint/export"})
	if err != nil {
		t.Fatal(err)
	}
	if sum.Devices != 3 || sum.Users != 0 || !sum.Changed || len(sum.Warnings) < 2 {
		t.Errorf("summary %+v, want 3 devices, changed, warnings of revocation and of one device left out", sum)
	}
	for _, name := range []string{rumqttd.ConfigName, rumqttd.DevicesName, templates.ReadmeName} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", "golden", name)
		if *update {
			if err := errors.Join(os.MkdirAll(filepath.Dir(golden), 0o750), os.WriteFile(golden, got, 0o600)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not as in %s:\n%s", name, golden, got)
		}
	}
}

// What was written reads back, the same again is no change, and every difference is seen.
func TestParseBack(t *testing.T) {
	dir := t.TempDir()
	f := fleet(t, start())
	mustWrite(t, dir, f, start())
	if sum := mustWrite(t, dir, f, start().Add(time.Hour)); sum.Changed {
		t.Errorf("the same again is a change: %+v", sum.Files)
	}
	v, err := rumqttd.Target().Parse(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	got := v.(templates.Partial)
	if err := templates.Compare(f, got); err != nil {
		t.Error(err)
	}
	targettest.CheckNeverWider(t, f, got)
	whole := *f
	for what, change := range map[string]func(){
		"a device less": func() { f.Devices = f.Devices[1:] },
		"another right": func() {
			f.Devices[0].Grants = []topic.Grant{{Action: topic.Publish, Filter: all}}
		},
		"another key": func() { f.Broker = f.PKI.Node(t) },
		"no trust":    func() { f.Trust = nil },
	} {
		grants := f.Devices[0].Grants
		change()
		if err := templates.Compare(f, got); err == nil {
			t.Errorf("%s is not noticed", what)
		}
		*f = whole
		f.Devices[0].Grants = grants
	}
	f.Remove("dev-1")
	if sum := mustWrite(t, dir, f, start()); !sum.Changed || sum.Devices != 2 {
		t.Errorf("summary %+v, want 2 devices, changed", sum)
	}

	ca, err := os.ReadFile(filepath.Join(dir, templates.TrustFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, rumqttd.CAName), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	v, err = rumqttd.Target().Parse(os.DirFS(dir))
	if err == nil {
		for _, e := range v.Entries() {
			err = errors.Join(err, e)
		}
	}
	if err == nil {
		t.Error("another CA is not noticed")
	}
}

// Every policy but one is refused, and what is left of one by leaving rules out as well.
func TestRefused(t *testing.T) {
	one := func(a topic.Action, filter string) topic.Rule {
		return topic.Rule{Action: a, Filter: filter, Shared: true}
	}
	for what, r := range map[string][]topic.Rule{
		"nothing":                      nil,
		"only publish":                 rules()[:1],
		"only receive":                 rules()[1:],
		"another tenant":               {one(topic.Publish, "/tenants/Other/#"), one(topic.Receive, "/tenants/Other/#")},
		"two tenants":                  append(rules(), one(topic.Receive, "/tenants/Other/#")),
		"a part of the tenant":         {one(topic.Publish, "/tenants/Acme/up/#"), one(topic.Receive, all)},
		"a tenant of each device":      {one(topic.Publish, "/tenants/{id}/#"), one(topic.Receive, "/tenants/{id}/#")},
		"everything":                   {one(topic.Publish, "#"), one(topic.Receive, "#")},
		"without the slash":            {one(topic.Publish, "tenants/Acme/#"), one(topic.Receive, "tenants/Acme/#")},
		"the topics, one level at all": {one(topic.Publish, "/tenants/Acme/+"), one(topic.Receive, "/tenants/Acme/+")},
	} {
		f := targettest.NewFleet(t, start())
		f.Profile("tenant", r...)
		f.Device(t, "dev-1", "tenant", "hall", "")
		if _, err := write(t, t.TempDir(), f, templates.Options{Now: start()}); err == nil {
			t.Errorf("%s: is exported", what)
		}
		v, _, err := templates.Narrow(f, rumqttd.Target())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := write(t, t.TempDir(), v, templates.Options{Now: start()}); err == nil {
			t.Errorf("%s: what is left of it is exported", what)
		}
	}
	if err := rumqttd.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: rules()}}); err != nil {
		t.Error(err)
	}
}

// A device whose rights are not those of its profile is refused, and so is a name of the
// fleet that is no tenant, and more than one CA.
func TestRefusedFleets(t *testing.T) {
	for what, change := range map[string]func(f *targettest.Memory) templates.View{
		"rights of one device": func(f *targettest.Memory) templates.View {
			f.Devices[1].Grants = f.Devices[1].Grants[:1]
			return f
		},
		"name of the fleet": func(f *targettest.Memory) templates.View { return named{f, "Acme Inc"} },
		"another fleet":     func(f *targettest.Memory) templates.View { return named{f, "Other"} },
		"two CAs": func(f *targettest.Memory) templates.View {
			f.Trust = append(f.Trust, targettest.NewPKI(t, start()).TrustBundle()...)
			return f
		},
	} {
		if _, err := write(t, t.TempDir(), change(fleet(t, start())), templates.Options{Now: start()}); err == nil {
			t.Errorf("%s: is exported", what)
		}
	}
	for _, id := range targettest.HostileIDs() {
		f := fleet(t, start())
		f.Devices[1].ID = inventory.DeviceID(id)
		if _, err := write(t, t.TempDir(), f, templates.Options{Now: start()}); err == nil {
			t.Errorf("id %.80q is exported", id)
		}
	}
}

// named is a fleet of another name.
type named struct {
	*targettest.Memory
	name string
}

// Fleet implements [templates.View].
func (n named) Fleet() templates.Fleet { return templates.Fleet{Name: n.name} }

func TestLarge(t *testing.T) {
	v := targettest.NewSynthetic(t, 100_000, rules()...)
	v.Certificates = true
	begin := time.Now()
	if sum := mustWrite(t, t.TempDir(), v, time.Now()); sum.Devices != v.N || !strings.Contains(strings.Join(sum.Warnings, "\n"), "10,000 connections") {
		t.Errorf("%d devices, warnings %q, want %d and one of their number", sum.Devices, sum.Warnings, v.N)
	}
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("it took %v", d)
	}
}

func FuzzDevices(f *testing.F) {
	f.Add([]byte("dev-1\ndev-2\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := rumqttd.Read(text)
		if err != nil {
			return
		}
		var b []byte
		for _, e := range entries {
			b = append(append(b, e.ID...), '\n')
		}
		if !bytes.Equal(b, text) {
			t.Errorf("%q is read as %q", text, b)
		}
	})
}
