package flashmq_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/flashmq"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTarget(t *testing.T) {
	for _, form := range []string{flashmq.Either, flashmq.Both} {
		t.Run(form, func(t *testing.T) {
			targettest.Run(t, targettest.Case{
				Name: form, Target: flashmq.FormTarget(form), Options: templates.Options{Form: form},
				Golden: filepath.Join("testdata", "golden", form), Update: *update,
			})
		})
	}
}

func writeErr(t *testing.T, dir string, f templates.View, o templates.Options) (templates.Summary, error) {
	t.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	return flashmq.Target().Write(d, f, o)
}

// write exports a fleet.
func write(t *testing.T, dir string, f templates.View, o templates.Options) templates.Summary {
	t.Helper()
	sum, err := writeErr(t, dir, f, o)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// Every export says that there is no CRL, and form "both" who cannot connect.
func TestWarnings(t *testing.T) {
	f := targettest.Small(t, start())
	for form, want := range map[string]string{
		flashmq.Either: "FlashMQ reads no CRL",
		flashmq.Both:   "2 devices have no certificate and cannot connect",
	} {
		sum := write(t, t.TempDir(), f, templates.Options{Form: form, Now: f.Now})
		if got := strings.Join(sum.Warnings, "\n"); !strings.Contains(got, want) || !strings.Contains(got, "no CRL") {
			t.Errorf("form %s warns of %q, want %q and the CRL", form, got, want)
		}
	}
	f.Broker.Bind = "::1"
	if _, err := writeErr(t, t.TempDir(), f, templates.Options{Now: f.Now}); err == nil {
		t.Error("an IPv6 address is exported")
	}
}

// A configuration that somebody has changed is not read.
func TestParseRefusesChangedConfiguration(t *testing.T) {
	dir := t.TempDir()
	f := targettest.Small(t, start())
	write(t, dir, f, templates.Options{Now: f.Now})
	name := filepath.Join(dir, flashmq.ConfName)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{"allow_anonymous false", "allow_anonymous true"},
		{"# Form: either", "# Form: both"},
		{"tlsv1.2", "tlsv1.1"},
		{"  client_verification_ca_file", "#  client_verification_ca_file"},
	} {
		if err := os.WriteFile(name, []byte(strings.Replace(string(text), change[0], change[1], 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := flashmq.Target().Parse(os.DirFS(dir)); err == nil {
			t.Errorf("with %q in place of %q it is read", change[1], change[0])
		}
	}
}
