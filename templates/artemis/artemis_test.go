package artemis_test

import (
	"crypto/pbkdf2"
	"crypto/sha1"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"pgregory.net/rapid"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/artemis"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// broker.xml is as it should be but for the cluster user, who is of the key.
func TestGoldenBroker(t *testing.T) {
	d, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	if _, err := artemis.Lenient().Write(d, targettest.Small(t, time.Now()), templates.Options{Dest: "/etc/imprint/export"}); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(read(t, d.Path(), artemis.BrokerName)) {
		if !strings.Contains(line, "<cluster-") {
			lines = append(lines, line)
		}
	}
	golden := filepath.Join("testdata", "golden", artemis.BrokerName)
	if *update {
		if err := os.WriteFile(golden, []byte(strings.Join(lines, "")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(lines, ""); got != read(t, filepath.Dir(golden), artemis.BrokerName) {
		t.Errorf("%s is not as in %s:\n%s", artemis.BrokerName, golden, got)
	}
}

// A password hash as Artemis itself makes it, of "correct horse".
func TestVector(t *testing.T) {
	salt := make([]byte, 32)
	for i := range salt {
		salt[i] = byte(i)
	}
	hash, err := pbkdf2.Key(sha1.New, "correct horse", salt, 1024, 64)
	if err != nil {
		t.Fatal(err)
	}
	f := targettest.NewFleet(t, time.Now())
	f.Profile("sensor", topic.Rule{Action: topic.Publish, Filter: "fleet/{id}/up"})
	f.Device(t, "dev-1", "sensor", "", "correct horse")
	f.Devices[0].Verifiers = []inventory.Verifier{{Scheme: inventory.PBKDF2SHA1, Iterations: 1024, Salt: salt, Hash: hash}}
	dir := t.TempDir()
	export(t, artemis.Target(), dir, f)
	const want = "dev-1=ENC(1024:000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F:3EFCE0D2CDFA9488864BA5999D698F1B640EAFE5EF303E8CD876CE672C38F14DFA17066A52677D3BE48C8256D14A288148F3DB89876A03EF15607525418EF8FB)\n"
	if got := read(t, dir, artemis.UsersName); !strings.HasSuffix(got, want) {
		t.Errorf("%s has\n%s, want\n%s", artemis.UsersName, got, want)
	}
}

// What Artemis cannot keep to is refused, and nothing else.
func TestRules(t *testing.T) {
	for _, tt := range []struct {
		action topic.Action
		filter string
		exact  bool
	}{
		{topic.Publish, "fleet/{id}/up", true},
		{topic.Publish, "fleet/{id}/+", true},
		{topic.Publish, "fleet/{label.site}/+/#", true},
		{topic.Receive, "fleet/{id}/#", true},
		{topic.Receive, "fleet/{id}/+/down", true},
		{topic.Receive, "fleet/{id}/a.b & <c>", true},
		{topic.Receive, "fleet/{id}/+", false},
		{topic.Receive, "fleet/{id}/+/#", false},
		{topic.Publish, "+/{id}/up", false},
		{topic.Publish, "fleet/{id}/a(b)", false},
		{topic.Publish, "fleet/{id}/a|b", false},
		{topic.Publish, "fleet/{id}/*", false},
		{topic.Publish, "fleet/{id}/[a]", false},
		{topic.Publish, `fleet/{id}/\d`, false},
		{topic.Publish, "fleet/{id}/a::b", false},
		{topic.Receive, "$share/g/fleet/{id}", false},
	} {
		err := artemis.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: []topic.Rule{{Action: tt.action, Filter: tt.filter}}}})
		bad, ok := errors.AsType[*templates.InexpressibleError](err)
		if (err == nil) != tt.exact || err != nil && (!ok || len(bad.Choices) == 0) {
			t.Errorf("%s %s: %v, want exact: %t", tt.action, tt.filter, err, tt.exact)
		}
	}
}

// A filter that Artemis takes for as specific as one around it is refused.
func TestTie(t *testing.T) {
	f := targettest.NewFleet(t, time.Now())
	f.Profile("a", topic.Rule{Action: topic.Publish, Filter: "cmd/+/#", Shared: true}, topic.Rule{Action: topic.Publish, Filter: "cmd/a/#", Shared: true})
	f.Device(t, "dev-1", "a", "hall", "correct horse")
	d, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	_, err = artemis.Target().Write(d, f, templates.Options{})
	if _, ok := errors.AsType[*templates.InexpressibleError](err); !ok {
		t.Errorf("Write = %v, want an InexpressibleError", err)
	}
}

// A certificate with another subject than Artemis looks for is not left to fail there.
func TestSubject(t *testing.T) {
	f := targettest.NewFleet(t, time.Now())
	f.Profile("a", topic.Rule{Action: topic.Publish, Filter: "fleet/{id}/up"})
	f.Device(t, "dev-1", "a", "hall", "")
	f.Devices[0].Leafs = [][]byte{f.PKI.Client(t, "dev-2").Leaf.Raw}
	d, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	_, err = artemis.Target().Write(d, f, templates.Options{})
	if _, ok := errors.AsType[*templates.EntryError](err); !ok {
		t.Errorf("Write = %v, want an EntryError", err)
	}
}

// Whatever filters devices have, and however they overlap: a device may use a topic if
// one of its filters matches it, as Artemis decides.
func TestOverlaps(t *testing.T) {
	levels := rapid.SampledFrom([]string{"aa", "bb", "cc", "+"})
	filters := rapid.Custom(func(t *rapid.T) topic.Filter {
		f := rapid.SampledFrom([]string{"aa", "bb"}).Draw(t, "first")
		for range rapid.IntRange(0, 3).Draw(t, "levels") {
			f += "/" + levels.Draw(t, "level")
		}
		if rapid.Bool().Draw(t, "open") {
			f += "/#"
		}
		return topic.Filter(f)
	})
	f := targettest.NewFleet(t, time.Now())
	f.Profile("any")
	for _, id := range []string{"dev-1", "dev-2", "dev-3"} {
		f.Device(t, id, "any", "hall", "")
	}
	var names []string
	for _, a := range []string{"aa", "bb"} {
		names = append(names, a)
		for _, b := range []string{"aa", "bb", "dd"} {
			names = append(names, a+"/"+b)
			for _, c := range []string{"aa", "cc", "dd"} {
				names = append(names, a+"/"+b+"/"+c, a+"/"+b+"/"+c+"/aa", a+"/"+b+"/"+c+"/dd", a+"/"+b+"/"+c+"/aa/x/y")
			}
		}
	}
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		for i := range f.Devices {
			f.Devices[i].Grants = nil
			for _, own := range rapid.SliceOfN(filters, 0, 3).Draw(rt, "filters") {
				f.Devices[i].Grants = append(f.Devices[i].Grants, topic.Grant{Action: topic.Publish, Filter: own})
			}
		}
		export(t, artemis.Target(), dir, f)
		e := evaluator(t, dir)
		for _, d := range f.Devices {
			for _, name := range names {
				want := proof.Denied
				if slices.ContainsFunc(d.Grants, func(g topic.Grant) bool { return g.Filter.Match(topic.Name(name)) }) {
					want = proof.Allowed
				}
				got, err := e.Answer(proof.Question{Device: string(d.ID), Verb: proof.Publish, Topic: name})
				if err != nil || got != want {
					rt.Fatalf("%s publish %s: %v, %v, want %v", d.ID, name, got, err, want)
				}
			}
		}
	})
}

func evaluator(t *testing.T, dir string) proof.Evaluator {
	t.Helper()
	read, ok := artemis.Target().(interface {
		Evaluator(src fs.FS) (proof.Evaluator, error)
	})
	if !ok {
		t.Fatal("the target has no evaluator")
	}
	e, err := read.Evaluator(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// What is read is what would be written, or an error.
func FuzzParse(f *testing.F) {
	fleet := targettest.Small(f, time.Now())
	dir := f.TempDir()
	write(f, dir, fleet)
	files := fstest.MapFS{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			f.Fatal(err)
		}
		files[e.Name()] = &fstest.MapFile{Data: b, Mode: 0o600}
	}
	names := []string{artemis.UsersName, artemis.CertificatesName, artemis.RolesName, artemis.BrokerName}
	for i, name := range names {
		whole := string(files[name].Data)
		f.Add(i, whole)
		f.Add(i, strings.Replace(whole, "dev-1", "dev-3", 1))
		f.Add(i, whole[:len(whole)/2])
	}
	f.Fuzz(func(t *testing.T, i int, text string) {
		if i < 0 || i >= len(names) {
			return
		}
		changed := fstest.MapFS{}
		for name, file := range files {
			changed[name] = file
		}
		changed[names[i]] = &fstest.MapFile{Data: []byte(text), Mode: 0o600}
		v, err := artemis.Lenient().Parse(changed)
		if err != nil {
			return
		}
		again := *fleet
		again.Devices = nil
		for e, err := range v.Entries() {
			if err != nil {
				return
			}
			again.Devices = append(again.Devices, e)
		}
		out := t.TempDir()
		write(t, out, &again)
		for _, name := range names {
			if got := read(t, out, name); got != string(changed[name].Data) {
				t.Errorf("%s, read and written again, is\n%q\nnot\n%q", name, got, changed[name].Data)
			}
		}
	})
}

func write(tb testing.TB, dir string, v templates.View) {
	tb.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	if _, err := artemis.Lenient().Write(d, v, templates.Options{Dest: "/etc/imprint/artemis"}); err != nil {
		tb.Fatal(fmt.Errorf("writing: %w", err))
	}
}
