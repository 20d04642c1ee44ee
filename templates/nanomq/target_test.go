package nanomq_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/nanomq"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTarget(t *testing.T) {
	targettest.Run(t, targettest.Case{
		Name: nanomq.ACL, Target: nanomq.FormTarget(),
		Golden: filepath.Join("testdata", "golden", nanomq.ACL), Update: *update,
	})
}

func write(t *testing.T, dir string, f templates.View, o templates.Options) templates.Summary {
	t.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	if o.Form == nanomq.HTTP {
		o.Service = service("http://127.0.0.1:8080")
	}
	sum, err := nanomq.Target().Write(d, f, o)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func service(address string) templates.Service {
	return templates.Service{URL: address, Token: inventory.NewSecret([]byte("imp_0123456789_-"))}
}

// NanoMQ speaks no TLS when it asks.
func TestServiceWithoutTLS(t *testing.T) {
	d, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	f := small(t)
	for address, ok := range map[string]bool{"http://127.0.0.1:8080": true, "http://localhost:80": true, "https://127.0.0.1:8443": false, "http://imprint.example:80": false} {
		_, err := nanomq.Target().Write(d, f, templates.Options{Form: nanomq.HTTP, Now: f.Now, Service: service(address)})
		if (err == nil) != ok {
			t.Errorf("%s: %v, want written %v", address, err, ok)
		}
	}
}

// Every device is in the rules, whatever it has: imprint serve knows its password.
func TestDevicesWithPasswords(t *testing.T) {
	f := small(t)
	dir := t.TempDir()
	if sum := write(t, dir, f, templates.Options{Now: f.Now}); sum.Devices != len(f.Devices) || sum.Users != 0 {
		t.Errorf("summary %+v, want %d devices", sum, len(f.Devices))
	}
	v, err := nanomq.Target().Parse(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := templates.Compare(f, v.(templates.Partial)); err != nil {
		t.Error(err)
	}
	f.Devices[0].Grants = nil
	if err := templates.Compare(f, v.(templates.Partial)); err == nil {
		t.Error("a device with a password that has other rights is not noticed")
	}
}

// Form "http" has the configuration and no device, whatever was there before.
func TestHTTP(t *testing.T) {
	dir := t.TempDir()
	f := small(t)
	write(t, dir, f, templates.Options{Now: f.Now})
	o := templates.Options{Form: nanomq.HTTP, Now: f.Now, Dest: "/etc/imprint/export"}
	if sum := write(t, dir, f, o); sum.Devices != 0 || !sum.Changed {
		t.Errorf("summary %+v, want no devices, changed", sum)
	}
	got, err := os.ReadFile(filepath.Join(dir, nanomq.ConfName))
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "golden", nanomq.HTTP, nanomq.ConfName)
	if *update {
		if err := os.MkdirAll(filepath.Dir(golden), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s is not as in %s:\n%s", nanomq.ConfName, golden, got)
	}
	v, err := nanomq.Target().Parse(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := templates.Compare(f, v.(templates.Partial)); err != nil {
		t.Error(err)
	}
	if sum := write(t, dir, f, o); sum.Changed {
		t.Error("the same again is a change")
	}
}

// A configuration that somebody has changed is not read.
func TestParseRefusesChangedConfiguration(t *testing.T) {
	dir := t.TempDir()
	f := small(t)
	write(t, dir, f, templates.Options{Now: f.Now})
	name := filepath.Join(dir, nanomq.ConfName)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{"allow_anonymous = false", "allow_anonymous = true"},
		{"# Form: acl", "# Form: http"},
		{"# Form: acl", "# Form: other"},
		{"fail_if_no_peer_cert = true", "fail_if_no_peer_cert = false"},
	} {
		if err := os.WriteFile(name, []byte(strings.Replace(string(text), change[0], change[1], 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := nanomq.Target().Parse(os.DirFS(dir)); err == nil {
			t.Errorf("with %q in place of %q it is read", change[1], change[0])
		}
	}
}

// What NanoMQ cannot do is said at each export, and that a fleet is too large.
func TestWarnings(t *testing.T) {
	for _, tt := range []struct {
		n    int
		form string
		many bool
	}{{10_000, nanomq.ACL, false}, {10_001, nanomq.ACL, true}, {10_001, nanomq.HTTP, false}} {
		sum := write(t, t.TempDir(), targettest.NewSynthetic(t, tt.n), templates.Options{Form: tt.form})
		text := strings.Join(sum.Warnings, "\n")
		if !strings.Contains(text, "no CRL") || strings.Contains(text, "search through the rules") != tt.many {
			t.Errorf("%d devices in form %s: warnings %q", tt.n, tt.form, text)
		}
	}
}
