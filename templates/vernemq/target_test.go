package vernemq_test

import (
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
	"github.com/imprint-iot/imprint/templates/targettest"
	"github.com/imprint-iot/imprint/templates/vernemq"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTarget(t *testing.T) {
	for _, form := range []string{vernemq.File, vernemq.PostgreSQL} {
		t.Run(form, func(t *testing.T) {
			targettest.Run(t, targettest.Case{
				Name: form, Target: renamed{vernemq.FormTarget(form)}, Options: templates.Options{Form: form},
				Golden: filepath.Join("testdata", "golden", form), Update: *update,
			})
		})
	}
}

// The small fleet has a rule that ends in +, which VerneMQ cannot express. Renamed is
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

func writeErr(t *testing.T, dir string, f templates.View, o templates.Options) (templates.Summary, error) {
	t.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	return vernemq.Target().Write(d, f, o)
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

// Form "webhooks" has the configuration and no device, whatever was there before.
func TestWebhooks(t *testing.T) {
	dir := t.TempDir()
	f := small(t)
	write(t, dir, f, templates.Options{Form: vernemq.File, Now: f.Now})
	asking := templates.Options{Form: vernemq.Webhooks, Now: f.Now, Dest: "/etc/imprint/export", Service: templates.Service{URL: "https://imprint.example:8443", Token: inventory.NewSecret([]byte("imp_0123456789_-"))}}
	sum := write(t, dir, f, asking)
	if sum.Devices != 0 || !sum.Changed {
		t.Errorf("summary %+v, want no devices, changed", sum)
	}
	got, err := os.ReadFile(filepath.Join(dir, vernemq.ConfName))
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "golden", vernemq.Webhooks, vernemq.ConfName)
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
		t.Errorf("%s is not as in %s:\n%s", vernemq.ConfName, golden, got)
	}
	v, err := vernemq.Target().Parse(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := templates.Compare(f, v.(templates.Partial)); err != nil {
		t.Error(err)
	}
	if sum := write(t, dir, f, asking); sum.Changed {
		t.Error("the same again is a change")
	}
}

// A configuration that somebody has changed is not read.
func TestParseRefusesChangedConfiguration(t *testing.T) {
	dir := t.TempDir()
	f := small(t)
	write(t, dir, f, templates.Options{Now: f.Now})
	name := filepath.Join(dir, vernemq.ConfName)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{"allow_anonymous = off", "allow_anonymous = on"},
		{"# Form: file", "# Form: webhooks"},
		{"# Form: file", "# Form: other"},
		{"require_certificate = on", "require_certificate = off"},
	} {
		if err := os.WriteFile(name, []byte(strings.Replace(string(text), change[0], change[1], 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := vernemq.Target().Parse(os.DirFS(dir)); err == nil {
			t.Errorf("with %q in place of %q it is read", change[1], change[0])
		}
	}
}

// small is the small fleet of targettest with a rule that VerneMQ can express.
func small(t *testing.T) *targettest.Memory {
	t.Helper()
	f := targettest.ProofFleet(t, start(), rules()...)
	withoutObserver(f)
	return f
}
