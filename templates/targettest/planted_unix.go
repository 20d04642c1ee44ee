//go:build unix

package targettest

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/imprint-iot/imprint/inventory/durable"
)

// testPlanted puts links and pipes where the files of an export go: they are
// replaced, never followed, and what they lead to stays as it is. An old file
// with a loose mode does not lend it to the new one.
func testPlanted(t *testing.T, c Case) {
	f := Small(t, start())
	clean := t.TempDir()
	sum := c.mustWrite(t, clean, f)
	want := contents(t, clean)

	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, plant := range map[string]func(string) error{
		"symlink":   func(p string) error { return os.Symlink(victim, p) },
		"hard link": func(p string) error { return os.Link(victim, p) },
		"pipe":      func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"loose": func(p string) error {
			return errors.Join(os.WriteFile(p, []byte("old"), 0o600), os.Chmod(p, 0o666))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range sum.Files {
				if err := plant(filepath.Join(dir, f.Name)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Symlink(outside, filepath.Join(dir, ".imprint-new")); err != nil {
				t.Fatal(err)
			}
			c.Options.AllowShrink, c.Options.Dest = true, clean
			c.mustWrite(t, dir, f)
			for n, text := range contents(t, dir) {
				if n != "manifest.json" && text != want[n] {
					t.Errorf("%s is not the export's", n)
				}
			}
			info := stat(t, dir)
			for _, f := range sum.Files {
				if got := info[f.Name].Mode(); got != f.Mode {
					t.Errorf("%s has mode %v, want %v", f.Name, got, f.Mode)
				}
			}
			if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
				t.Errorf("the victim is now %q, %v", b, err)
			}
		})
	}

	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(clean, link); err != nil {
		t.Fatal(err)
	}
	if _, err := durable.OpenDir(link); !errors.Is(err, durable.ErrNotRegular) {
		t.Errorf("OpenDir of a link = %v, want %v", err, durable.ErrNotRegular)
	}
}
