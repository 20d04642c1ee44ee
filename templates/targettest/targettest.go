// Package targettest is the contract of [templates.Target] as a test, and the
// fleets and certificates that tests of exports need.
package targettest

import (
	"bytes"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime/metrics"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// A Case is one way to export: a target with a version and a form.
type Case struct {
	Name    string
	Target  templates.Target
	Options templates.Options

	// Golden is the directory with the files of the small fleet as they should
	// be, without those that hold keys, certificates or hashes of them. Update
	// writes it.
	Golden string
	Update bool

	// Volatile are more files that are not compared with golden ones.
	Volatile []string

	// Large is how many devices the streaming test writes; 0 means 100,000.
	Large int
}

// Run checks the whole contract.
func Run(t *testing.T, c Case) {
	t.Run("golden", func(t *testing.T) { testGolden(t, c) })
	t.Run("parse back", func(t *testing.T) { testParseBack(t, c) })
	t.Run("idempotent", func(t *testing.T) { testIdempotent(t, c) })
	t.Run("empty", func(t *testing.T) { testEmpty(t, c) })
	t.Run("hostile ids", func(t *testing.T) { testHostileIDs(t, c) })
	t.Run("hostile filters", func(t *testing.T) { testHostileFilters(t, c) })
	t.Run("hostile labels", func(t *testing.T) { testHostileLabels(t, c) })
	t.Run("interrupted", func(t *testing.T) { testInterrupted(t, c) })
	t.Run("planted files", func(t *testing.T) { testPlanted(t, c) })
	t.Run("large", func(t *testing.T) { testLarge(t, c) })
}

// small is the small fleet; where no password opens the door, each device has a
// certificate, too.
func (c Case) small(tb testing.TB) *Memory {
	tb.Helper()
	f := Small(tb, start())
	for i := range f.Devices {
		f.Devices[i].Certificate = f.Devices[i].Certificate || !c.Target.Capabilities().Password
	}
	return f
}

// expected returns how many devices of the small fleet an export has, and how many
// of them with a password: one has only a certificate.
func (c Case) expected() (devices, users int) {
	caps := c.Target.Capabilities()
	switch {
	case !caps.Password:
		return 3, 0
	case !caps.CertificateIdentity:
		return 2, 2
	}
	return 3, 2
}

// start is the date of everything in the contract.
func start() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func (c Case) write(t *testing.T, dir string, v templates.View) (templates.Summary, error) {
	t.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	o := c.Options
	if o.Now.IsZero() {
		o.Now = start()
	}
	return c.Target.Write(d, v, o)
}

func (c Case) mustWrite(t *testing.T, dir string, v templates.View) templates.Summary {
	t.Helper()
	sum, err := c.write(t, dir, v)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func (c Case) mustParse(t *testing.T, dir string) templates.Partial {
	t.Helper()
	v, err := c.Target.Parse(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	p, ok := v.(templates.Partial)
	if !ok {
		t.Fatal("Parse returns a view that is not Partial")
	}
	return p
}

func testGolden(t *testing.T, c Case) {
	dir := t.TempDir()
	c.Options.Dest = "/etc/imprint/export"
	sum := c.mustWrite(t, dir, c.small(t))
	for _, f := range sum.Files {
		if strings.HasSuffix(f.Name, ".pem") || strings.HasSuffix(f.Name, ".key") || strings.HasSuffix(f.Name, ".r0") || slices.Contains(c.Volatile, f.Name) {
			continue
		}
		got, err := os.ReadFile(filepath.Join(dir, f.Name))
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join(c.Golden, f.Name)
		if c.Update {
			if err := errors.Join(os.MkdirAll(c.Golden, 0o750), os.WriteFile(golden, got, 0o600)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not as in %s:\n%s", f.Name, golden, got)
		}
	}
}

func testParseBack(t *testing.T, c Case) {
	dir := t.TempDir()
	f := c.small(t)
	sum := c.mustWrite(t, dir, f)
	devices, users := c.expected()
	if sum.Devices != devices || sum.Users != users || !sum.Changed {
		t.Errorf("summary %+v, want %d devices, %d users, changed", sum, devices, users)
	}
	got := c.mustParse(t, dir)
	if err := templates.Compare(f, got); err != nil {
		t.Error(err)
	}
	CheckNeverWider(t, f, got)

	// The comparison sees the least difference.
	changes := map[string]func(){
		"another filter":   func() { f.Devices[1].Grants[0].Filter += "x" },
		"a right more":     func() { f.Devices[1].Grants = append(f.Devices[1].Grants, topic.Grant{Action: 1, Filter: "x"}) },
		"a right less":     func() { f.Devices[1].Grants = f.Devices[1].Grants[1:] },
		"another action":   func() { f.Devices[1].Grants[1].Action = topic.Publish },
		"another password": func() { f.Devices[0].Verifiers = Verifiers(t, "dev-1", "other") },
		"a device less":    func() { f.Devices = f.Devices[1:] },
		"another key":      func() { f.Broker = f.PKI.Node(t) },
		"another CRL":      func() { f.Lists = []templates.CRL{f.PKI.CRL(t, start(), start().AddDate(0, 0, 7))} },
		"no trust":         func() { f.Trust = nil },
	}
	for name, omitted := range map[string]bool{"another key": got.Omits().Node, "another CRL": got.Omits().CRLs, "no trust": got.Omits().Trust, "another password": !c.Target.Capabilities().Password} {
		if omitted {
			delete(changes, name)
		}
	}
	for name, change := range changes {
		whole := *f
		f.Devices = slices.Clone(f.Devices)
		for i := range f.Devices {
			f.Devices[i].Grants = slices.Clone(f.Devices[i].Grants)
		}
		change()
		if err := templates.Compare(f, got); err == nil {
			t.Errorf("%s is not noticed", name)
		}
		*f = whole
	}
}

func testIdempotent(t *testing.T, c Case) {
	dir := t.TempDir()
	f := c.small(t)
	c.mustWrite(t, dir, f)
	before := stat(t, dir)
	c.Options.Now = start().Add(time.Hour)
	if sum := c.mustWrite(t, dir, f); sum.Changed {
		t.Errorf("the same again is a change: %+v", sum.Files)
	}
	for name, info := range stat(t, dir) {
		if !os.SameFile(info, before[name]) {
			t.Errorf("%s was written again", name)
		}
	}
	f.Remove("dev-1")
	f.Rev++
	if sum := c.mustWrite(t, dir, f); !sum.Changed {
		t.Error("a device less is no change")
	}
	m, err := templates.Verify(os.DirFS(dir), nil)
	if err != nil {
		t.Fatal(err)
	}
	if devices, _ := c.expected(); m.PolicyRevision != f.Rev || m.Devices != devices-1 {
		t.Errorf("manifest at revision %d with %d devices, want %d with %d", m.PolicyRevision, m.Devices, f.Rev, devices-1)
	}
}

// stat describes the files of an export.
func stat(t *testing.T, dir string) map[string]fs.FileInfo {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]fs.FileInfo)
	for _, e := range entries {
		if out[e.Name()], err = e.Info(); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// contents reads the files of an export but the lock.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for name, info := range stat(t, dir) {
		if !info.Mode().IsRegular() {
			t.Errorf("%s is left", name)
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(name, ".lock") {
			out[name] = string(b)
		}
	}
	return out
}

func testEmpty(t *testing.T, c Case) {
	dir := t.TempDir()
	f := NewFleet(t, start())
	if sum := c.mustWrite(t, dir, f); sum.Devices != 0 {
		t.Errorf("%d devices, want 0", sum.Devices)
	}
	for e, err := range c.mustParse(t, dir).Entries() {
		t.Errorf("entry %q, %v", e.ID, err)
	}
}

// HostileIDs are names that mean something to a parser, a broker or a file
// system.
func HostileIDs() []string {
	return []string{"", " ", "a ", " a", "a\tb", "../../etc/passwd", "..", "a/../b", "a/b", `..\x`, "%2e%2e%2f",
		"x\nuser admin\ntopic #", "x\r", "a\x00b", "$SYS", "$share", "+", "#", "a+", "#a", "a:b", "a.b", "a,b", "a=b", "a;b", "a|b", "a*b",
		`"`, `'`, `\`, "`", "${clientid}", "%u", "%c", "{{.}}", "{id}", "<script>", "=cmd|..", "-1", "@x", "é", "а", "a\u202eb", "\ufeffa",
		"\xff", "admin", "root", "anonymous", "imprint-admin", "CON", strings.Repeat("a", 65), strings.Repeat("a", 1<<16)}
}

func testHostileIDs(t *testing.T, c Case) {
	dir := t.TempDir()
	f := c.small(t)
	c.mustWrite(t, dir, f)
	before := contents(t, dir)
	for _, id := range HostileIDs() {
		f.Devices[1].ID = inventory.DeviceID(id)
		_, err := c.write(t, dir, f)
		if err == nil {
			t.Errorf("id %.80q is exported", id)
		} else if len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\r\n\x00") {
			t.Errorf("the error for id %.80q repeats it: %.200q", id, err)
		}
	}
	f.Devices[1].ID = f.Devices[0].ID
	if _, err := c.write(t, dir, f); err == nil {
		t.Error("an id is exported twice")
	}
	f.Devices[1].ID = inventory.DeviceID(strings.ToUpper(string(f.Devices[0].ID)))
	if _, err := c.write(t, dir, f); err == nil {
		t.Error("two ids that differ in case are exported")
	}
	same(t, before, contents(t, dir))
}

func testHostileFilters(t *testing.T, c Case) {
	dir := t.TempDir()
	f := c.small(t)
	c.mustWrite(t, dir, f)
	before := contents(t, dir)
	for _, filter := range []string{"", " ", "a\nuser x", "a\r", "a\x00", "a\tb", " a", "a ", "a#", "#/a", "a/+b", "a/#/b", "$share/g/a", "\xff",
		"\u0085", strings.Repeat("/", 200), strings.Repeat("a", 1<<16)} {
		g := slices.Clone(f.Devices[1].Grants)
		g[len(g)-1].Filter = topic.Filter(filter)
		whole := f.Devices[1].Grants
		f.Devices[1].Grants = g
		if _, err := c.write(t, dir, f); err == nil {
			t.Errorf("filter %.80q is exported", filter)
		}
		f.Devices[1].Grants = whole
	}
	f.Devices[1].Grants = append(slices.Clone(f.Devices[1].Grants), topic.Grant{Action: 3, Filter: "x"})
	if _, err := c.write(t, dir, f); err == nil {
		t.Error("an unknown action is exported")
	}
	same(t, before, contents(t, dir))
}

// web-002 for files: free text is shown, and is never more than text.
func testHostileLabels(t *testing.T, c Case) {
	dir := t.TempDir()
	f := c.small(t)
	for _, text := range []string{"x\nuser dev-9\ntopic readwrite #", "x\r\ntopic #", "\x00", "\"},{\"username\":\"dev-9\"", "\u2028topic #", "\x1b[2J", "${x}{{.}}%u", strings.Repeat("x", 256), "\xff\xfe"} {
		f.Devices[1].Labels = inventory.Labels{{Key: "name", Value: text}}
		f.Devices[1].HardwareSerial = text
		c.mustWrite(t, dir, f)
		got := c.mustParse(t, dir)
		if err := templates.Compare(f, got); err != nil {
			t.Errorf("label %q: %v", text, err)
		}
	}
}

func same(t *testing.T, before, after map[string]string) {
	t.Helper()
	for name := range after {
		if before[name] != after[name] {
			t.Errorf("%s has changed", name)
		}
	}
	if len(before) != len(after) {
		t.Errorf("%d files, want %d", len(after), len(before))
	}
}

// broken is a view whose devices end in an error.
type broken struct {
	*Memory
	after int
}

var errBroken = errors.New("the view broke")

// Entries implements [templates.View].
func (b broken) Entries() iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		for i, e := range b.Devices {
			if i == b.after {
				yield(templates.Entry{}, errBroken)
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

func testInterrupted(t *testing.T, c Case) {
	dir := t.TempDir()
	f := c.small(t)
	c.mustWrite(t, dir, f)
	before := contents(t, dir)
	for after := range 3 {
		if _, err := c.write(t, dir, broken{f, after}); !errors.Is(err, errBroken) {
			t.Errorf("Write = %v, want %v", err, errBroken)
		}
		same(t, before, contents(t, dir))
	}

	// What an export that was killed has left does not stop the next.
	if err := os.MkdirAll(filepath.Join(dir, ".imprint-new", "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	c.mustWrite(t, dir, f)
	same(t, before, contents(t, dir))
}

func testLarge(t *testing.T, c Case) {
	if c.Large == 0 {
		c.Large = 100_000
	}
	dir := t.TempDir()
	v := NewSynthetic(t, c.Large)
	v.Certificates = !c.Target.Capabilities().Password
	c.Options.Now = time.Now()
	begin := time.Now()
	peak := peakMemory(func() {
		if sum := c.mustWrite(t, dir, v); sum.Devices != c.Large {
			t.Errorf("%d devices, want %d", sum.Devices, c.Large)
		}
	})
	t.Logf("%d devices: %.2f s, %d MiB", c.Large, time.Since(begin).Seconds(), peak>>20)
	const limit = 200 << 20
	if peak > limit {
		t.Errorf("%d MiB of memory, want at most %d", peak>>20, limit>>20)
	}
}

// peakMemory returns the most memory that the Go runtime had from the system
// while fn ran, in bytes.
func peakMemory(fn func()) uint64 {
	stop, done := make(chan struct{}), make(chan uint64)
	go func() {
		s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
		var peak uint64
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			metrics.Read(s)
			peak = max(peak, s[0].Value.Uint64()-s[1].Value.Uint64())
			select {
			case <-stop:
				done <- peak
				return
			case <-tick.C:
			}
		}
	}()
	fn()
	close(stop)
	return <-done
}
