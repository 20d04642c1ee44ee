package nats_test

import (
	"crypto/x509"
	"flag"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/nats"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func forms() []string { return []string{nats.Certificate, nats.Both, nats.Password} }

func TestTarget(t *testing.T) {
	for _, form := range forms() {
		t.Run(form, func(t *testing.T) {
			targettest.Run(t, targettest.Case{
				Name: form, Target: renamed{nats.FormTarget(form)}, Options: templates.Options{Form: form},
				Golden: filepath.Join("testdata", "golden", form), Update: *update,
			})
		})
	}
}

// The small fleet has a rule that ends in +, which the server cannot hold. Renamed is
// a target to which the fleet has a name there, and which reads it back as a +.
type renamed struct{ templates.Target }

const (
	plus  = "/cmd/+"
	named = "/cmd/one"
)

func (r renamed) Write(dst *durable.Dir, v templates.View, o templates.Options) (templates.Summary, error) {
	return r.Target.Write(dst, renamedView{v, plus, named}, o)
}

func (r renamed) Parse(src fs.FS) (templates.View, error) {
	v, err := r.Target.Parse(src)
	if err != nil {
		return nil, err
	}
	p := v.(templates.Partial)
	return renamedPartial{p, renamedView{p, named, plus}}, nil
}

type renamedView struct {
	templates.View
	from, to string
}

func (v renamedView) name(text string) string {
	if rest, ok := strings.CutSuffix(text, v.from); ok {
		return rest + v.to
	}
	return text
}

func (v renamedView) Profiles() iter.Seq2[inventory.Profile, error] {
	return func(yield func(inventory.Profile, error) bool) {
		for p, err := range v.View.Profiles() {
			p.Policy.Rules = slices.Clone(p.Policy.Rules)
			for i := range p.Policy.Rules {
				p.Policy.Rules[i].Filter = v.name(p.Policy.Rules[i].Filter)
			}
			if !yield(p, err) {
				return
			}
		}
	}
}

func (v renamedView) Entries() iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		for e, err := range v.View.Entries() {
			e.Grants = slices.Clone(e.Grants)
			for i := range e.Grants {
				e.Grants[i].Filter = topic.Filter(v.name(string(e.Grants[i].Filter)))
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

type renamedPartial struct {
	templates.Partial
	view renamedView
}

func (p renamedPartial) Entries() iter.Seq2[templates.Entry, error] { return p.view.Entries() }

// writeErr exports a fleet.
func writeErr(t *testing.T, dir string, f templates.View, o templates.Options) error {
	t.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	_, err = nats.Target().Write(d, f, o)
	return err
}

func write(t *testing.T, dir string, f templates.View, o templates.Options) {
	t.Helper()
	if err := writeErr(t, dir, f, o); err != nil {
		t.Fatal(err)
	}
}

// A configuration that somebody has changed is not read.
func TestParseRefusesChangedConfiguration(t *testing.T) {
	dir := t.TempDir()
	f := fleet(t)
	write(t, dir, f, templates.Options{Now: f.Now})
	name := filepath.Join(dir, nats.ConfName)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{"verify_and_map: true", "verify: true"},
		{"# Form: certificate", "# Form: password"},
		{"# Form: certificate", "# Form: other"},
		{"jetstream: enabled", ""},
		{`include "imprint-users.conf"`, ""},
	} {
		if err := os.WriteFile(name, []byte(strings.Replace(string(text), change[0], change[1], 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := nats.Target().Parse(os.DirFS(dir)); err == nil {
			t.Errorf("with %q in place of %q it is read", change[1], change[0])
		}
	}
}

// Without a trust domain a certificate names nobody the server could look up.
func TestTrustDomain(t *testing.T) {
	f := fleet(t)
	for _, domain := range []string{"", "a\"b", "Acme", "a b"} {
		if err := writeErr(t, t.TempDir(), inDomain{f, domain}, templates.Options{Now: f.Now}); err == nil {
			t.Errorf("trust domain %q is exported", domain)
		}
	}
	if err := writeErr(t, t.TempDir(), inDomain{f, ""}, templates.Options{Now: f.Now, Form: nats.Password}); err != nil {
		t.Error(err)
	}
}

// A certificate that names no user is told of.
func TestWarnings(t *testing.T) {
	f := fleet(t)
	f.Devices[0].Leafs = [][]byte{signed(t, f.PKI, func(c *x509.Certificate) { c.Subject.CommonName = "dev-1" }).Certificate[0]}
	f.Devices[1].Certificate = false
	for form, want := range map[string][]string{
		nats.Certificate: {"client identifier", "1 devices have a certificate without the SPIFFE ID spiffe://acme.example/device/ID"},
		nats.Both:        {"client identifier", "1 devices have no certificate", "1 devices have a certificate without"},
		nats.Password:    {"client identifier"},
	} {
		var got []string
		if err := writeErr(t, t.TempDir(), f, templates.Options{Form: form, Warn: func(text string) { got = append(got, text) }}); err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !slices.ContainsFunc(got, func(g string) bool { return strings.Contains(g, w) }) {
				t.Errorf("%s: no warning of %q in %q", form, w, got)
			}
		}
		if form == nats.Password && len(got) != len(want) {
			t.Errorf("%s: %q", form, got)
		}
	}
	f.Devices[0].Verifiers = targettest.Verifiers(t, "dev-1", "x")[:5] // without bcrypt
	if err := writeErr(t, t.TempDir(), f, templates.Options{Form: nats.Both}); err == nil {
		t.Error("the password of a device is left out beside its certificate")
	}
}

// inDomain is a fleet with another trust domain.
type inDomain struct {
	templates.View
	domain string
}

func (v inDomain) Fleet() templates.Fleet {
	return templates.Fleet{Name: v.View.Fleet().Name, TrustDomain: v.domain}
}
