package emqx_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/emqx"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTarget(t *testing.T) {
	for _, form := range []string{emqx.File, emqx.API, emqx.PostgreSQL} {
		t.Run(form, func(t *testing.T) {
			targettest.Run(t, targettest.Case{
				Name: form, Target: emqx.FormTarget(form), Options: templates.Options{Form: form},
				Golden: filepath.Join("testdata", "golden", form), Update: *update,
			})
		})
	}
}

// writeErr exports a fleet.
func writeErr(t *testing.T, dir string, f templates.View, o templates.Options) (templates.Summary, error) {
	t.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	if o.Form == emqx.HTTP {
		o.Service = templates.Service{URL: "https://imprint.example:8443", Token: inventory.NewSecret([]byte("imp_0123456789_-"))}
	}
	return emqx.Target().Write(d, f, o)
}

func write(t *testing.T, dir string, f templates.View, o templates.Options) templates.Summary {
	t.Helper()
	sum, err := writeErr(t, dir, f, o)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// The configuration of each form and version is as in the golden file, and is read
// back.
func TestConfigurations(t *testing.T) {
	for _, form := range emqx.Target().Capabilities().Forms {
		for _, version := range emqx.Target().Capabilities().Versions {
			dir := t.TempDir()
			f := small(t)
			o := templates.Options{Form: form, Version: version, Now: f.Now, Dest: "/etc/imprint/export"}
			write(t, dir, f, o)
			got, err := os.ReadFile(filepath.Join(dir, emqx.ConfName))
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", "golden", "conf", form+"-"+version+".conf")
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
				t.Errorf("%s is not as in %s:\n%s", emqx.ConfName, golden, got)
			}
			if has := strings.Contains(string(got), "verify_peer_ext_key_usage"); has != (version != emqx.V58) {
				t.Errorf("%s: verify_peer_ext_key_usage is there: %v", version, has)
			}
			v, err := emqx.Target().Parse(os.DirFS(dir))
			if err != nil {
				t.Fatal(err)
			}
			if err := templates.Compare(f, v.(templates.Partial)); err != nil {
				t.Error(err)
			}
		}
	}
}

// Form "http" has no device, whatever was there before.
func TestHTTP(t *testing.T) {
	dir := t.TempDir()
	f := small(t)
	write(t, dir, f, templates.Options{Now: f.Now})
	sum := write(t, dir, f, templates.Options{Form: emqx.HTTP, Now: f.Now})
	if sum.Devices != 0 || !sum.Changed {
		t.Errorf("summary %+v, want no devices, changed", sum)
	}
	if sum := write(t, dir, f, templates.Options{Form: emqx.HTTP, Now: f.Now}); sum.Changed {
		t.Error("the same again is a change")
	}
}

// A configuration that somebody has changed is not read.
func TestParseRefusesChangedConfiguration(t *testing.T) {
	dir := t.TempDir()
	f := small(t)
	write(t, dir, f, templates.Options{Now: f.Now})
	name := filepath.Join(dir, emqx.ConfName)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{"no_match = deny", "no_match = allow"},
		{"# Form: file", "# Form: http"},
		{"# Form: file", "# Form: other"},
		{"verify = verify_peer", "verify = verify_none"},
	} {
		if err := os.WriteFile(name, []byte(strings.Replace(string(text), change[0], change[1], 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := emqx.Target().Parse(os.DirFS(dir)); err == nil {
			t.Errorf("with %q in place of %q it is read", change[1], change[0])
		}
	}
}

// What does not fit is said: a fleet too large for the file, and certificates that do
// not say where their CRL is.
func TestWarnings(t *testing.T) {
	warns := func(n int, form, about string) bool {
		v := targettest.NewSynthetic(t, n)
		sum := write(t, t.TempDir(), v, templates.Options{Form: form})
		return strings.Contains(strings.Join(sum.Warnings, "\n"), about)
	}
	for _, tt := range []struct {
		n    int
		form string
		want bool
	}{{10_000, emqx.File, false}, {10_001, emqx.File, true}, {10_001, emqx.API, false}} {
		if got := warns(tt.n, tt.form, "search through the rules"); got != tt.want {
			t.Errorf("%d devices in form %s: warned %v, want %v", tt.n, tt.form, got, tt.want)
		}
	}
	f := small(t)
	sum := write(t, t.TempDir(), f, templates.Options{Now: f.Now})
	if text := strings.Join(sum.Warnings, "\n"); !strings.Contains(text, "without the http address of a CRL") {
		t.Errorf("warnings %q, want one about certificates without an address", text)
	}
}
