package doctor_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/imprint-iot/imprint/templates/doctor"
)

// today is the date of all audits here.
func today() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// A badConfig is one of testdata: files, and what is to be found in them. Lines
// before the first file are "want: RULE...", by the first part of their IDs, and if
// need be "name: FILE", "root: DIR" and "mode: FILE MODE".
type badConfig struct {
	name    string // of the case
	file    string
	want    []string
	options doctor.FileOptions
	src     fstest.MapFS
}

func badConfigs(t *testing.T) []badConfig {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d cases, %v", len(files), err)
	}
	pki := newPKI(t)
	var out []badConfig
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		c := badConfig{
			name: strings.TrimSuffix(filepath.Base(file), ".txtar"), file: ".",
			options: doctor.FileOptions{Now: today}, src: pki.files(),
		}
		for _, f := range ar.Files {
			c.src[f.Name] = &fstest.MapFile{Data: f.Data, Mode: 0o640}
		}
		for line := range strings.Lines(string(ar.Comment)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			value = strings.TrimSpace(value)
			switch key {
			case "want":
				c.want = strings.Fields(value)
			case "name":
				c.file = value
			case "root":
				c.options.Root = value
			case "mode":
				name, mode, _ := strings.Cut(value, " ")
				n, err := strconv.ParseUint(mode, 8, 32)
				if err != nil || c.src[name] == nil {
					t.Fatalf("%s: %q, %v", file, line, err)
				}
				c.src[name].Mode = fs.FileMode(n)
			}
		}
		if c.src["crls/README"] != nil {
			c.src["crls/0a1b2c3d.r0"] = c.src["crl-expired.pem"]
		}
		out = append(out, c)
	}
	return out
}

// found are the rules of findings, by the first part of their IDs.
func found(r doctor.Report) []string {
	ids := []string{}
	for _, f := range r.Findings {
		id, _, _ := strings.Cut(f.Rule, "-")
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func dump(r doctor.Report) string {
	var b strings.Builder
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%s %s:%d %s: %s\n", f.Severity, f.File, f.Line, f.Rule, f.Detail)
	}
	fmt.Fprintf(&b, "checked %q\nunknown %q", r.Checked, r.Unknown)
	return b.String()
}

func TestBadConfigurations(t *testing.T) {
	for _, c := range badConfigs(t) {
		t.Run(c.name, func(t *testing.T) {
			r, err := doctor.Files(c.src, c.file, c.options)
			if err != nil {
				t.Fatal(err)
			}
			if got := found(r); !slices.Equal(got, c.want) {
				t.Errorf("found %v, want %v\n%s", got, c.want, dump(r))
			}
			if kind, _, _ := strings.Cut(c.name, "-"); r.Kind != kind {
				t.Errorf("kind %q, want %q", r.Kind, kind)
			}
			for _, f := range r.Findings {
				if f.Title == "" || f.Why == "" || f.Fix == "" || f.Severity == "" {
					t.Errorf("finding of no rule: %+v", f)
				}
				if strings.Contains(f.Detail, "secret\"") || strings.Contains(f.Detail, "AAEC") || strings.Contains(f.Detail, "%!") {
					t.Errorf("a secret or a format in %q", f.Detail)
				}
				if f.File == "" || c.src[f.File] == nil && !strings.HasPrefix(f.File, "extensions/") {
					t.Errorf("%s is in file %q", f.Rule, f.File)
				}
			}
		})
	}
}

// TestEveryRuleHasACase: a rule that nothing bad was ever shown to may never speak.
func TestEveryRuleHasACase(t *testing.T) {
	have := map[string]bool{}
	for _, c := range badConfigs(t) {
		for _, id := range c.want {
			have[id] = true
		}
	}
	for _, c := range endpoints() {
		for _, id := range c.want {
			have[id] = true
		}
	}
	last := ""
	for _, r := range doctor.Rules() {
		id, name, _ := strings.Cut(r.ID, "-")
		if !have[id] {
			t.Errorf("%s has no case", r.ID)
		}
		if r.ID <= last || name == "" || r.Title == "" || r.Why == "" || r.Fix == "" || strings.HasSuffix(r.Title, ".") {
			t.Errorf("rule %+v", r)
		}
		last = r.ID
		delete(have, id)
	}
	for id := range have {
		t.Errorf("a case wants %s, which is no rule", id)
	}
}

func TestSameFindingsAreCut(t *testing.T) {
	var acl strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&acl, "user dev-%d\ntopic #\n", i)
	}
	src := fstest.MapFS{
		"mosquitto.conf": {Data: []byte("listener 1883 127.0.0.1\nacl_file acl\n")},
		"acl":            {Data: []byte(acl.String())},
	}
	r, err := doctor.Files(src, "mosquitto.conf", doctor.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Findings) != 20 || !strings.Contains(r.Findings[19].Detail, "and 980 more") {
		t.Errorf("%d findings\n%s", len(r.Findings), dump(r))
	}
}

func TestPlaces(t *testing.T) {
	src := fstest.MapFS{
		"etc/mosquitto.conf": {Data: []byte("# nothing\nlistener 1883\nacl_file acl\n")},
		"etc/acl":            {Data: []byte("user a\n\ntopic #\n")},
	}
	r, err := doctor.Files(src, "etc/mosquitto.conf", doctor.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"MQ001-plaintext-listener": "etc/mosquitto.conf:2", "MQ004-wildcard-access": "etc/acl:3"}
	for _, f := range r.Findings {
		if got := fmt.Sprintf("%s:%d", f.File, f.Line); got != want[f.Rule] {
			t.Errorf("%s at %s, want %s", f.Rule, got, want[f.Rule])
		}
	}
	if len(r.Findings) != 2 || r.Worst() != doctor.Error {
		t.Errorf("worst %q\n%s", r.Worst(), dump(r))
	}
}

func TestWhatCannotBeRead(t *testing.T) {
	src := fstest.MapFS{
		"mosquitto.conf": {Data: []byte("listener 1883 127.0.0.1\nacl_file /elsewhere/rules\nplugin /usr/lib/other.so\ninclude_dir /etc/more\n")},
		"notes.txt":      {Data: []byte("nothing")},
	}
	r, err := doctor.Files(src, ".", doctor.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Findings) != 0 || len(r.Unknown) != 3 {
		t.Errorf("%s", dump(r))
	}
	if _, err := doctor.Files(src, "notes.txt", doctor.FileOptions{}); !errors.Is(err, doctor.ErrUnknownKind) {
		t.Errorf("a text: %v", err)
	}
	if _, err := doctor.Files(src, "gone", doctor.FileOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := doctor.Files(src, "notes.txt", doctor.FileOptions{Kind: "other"}); !errors.Is(err, doctor.ErrUnknownKind) {
		t.Errorf("no kind: %v", err)
	}
	if _, err := doctor.Files(os.DirFS(t.TempDir()), ".", doctor.FileOptions{}); !errors.Is(err, doctor.ErrUnknownKind) {
		t.Errorf("an empty directory: %v", err)
	}
}

// TestRelativePaths: they start where the broker was started, which nobody knows, so
// a file that is not found is not missing.
func TestRelativePaths(t *testing.T) {
	src := fstest.MapFS{
		"opt/vernemq/etc/vernemq.conf": {Data: []byte("vmq_acl.acl_file = ./etc/vmq.acl\nvmq_passwd.password_file = ./data/vmq.passwd\n")},
		"opt/vernemq/etc/vmq.acl":      {Data: []byte("user a\ntopic #\n")},
	}
	r, err := doctor.Files(src, "opt/vernemq/etc/vernemq.conf", doctor.FileOptions{Root: "/"})
	if err != nil {
		t.Fatal(err)
	}
	if got := found(r); !slices.Equal(got, []string{"MQ004", "MQ012"}) || len(r.Unknown) != 1 {
		t.Errorf("found %v\n%s", got, dump(r))
	}
}
