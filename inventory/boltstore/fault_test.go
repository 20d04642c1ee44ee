package boltstore_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
)

// TestFaultChild is the other process of TestDiskFaults: it makes changes, one
// after the other, and says what became of each.
func TestFaultChild(t *testing.T) {
	dir := os.Getenv("BOLTSTORE_TEST_FAULT")
	if dir == "" {
		return // a program for TestDiskFaults, no test
	}
	runtime.LockOSThread() // strace counts the calls of each thread
	s := open(t, config(t, dir))
	for i := range 12 {
		err := s.Apply(t.Context(), enrol(t, fmt.Sprintf("fault-%d", i)))
		word := "failed"
		switch {
		case err == nil:
			word = "ok"
		case errors.Is(err, inventory.ErrFull):
			word = "full"
		case errors.Is(err, inventory.ErrStopped):
			word = "stopped"
		}
		_, _ = fmt.Fprintln(os.Stdout, "said", word)
	}
}

// TestDiskFaults makes one system call of the store fail. After a failed fsync
// nothing more is written (sto-007); a full disk is told and forgotten (sto-001).
// What was acknowledged is there when the store is opened again, and all is right.
func TestDiskFaults(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("strace is not installed: apt-get install strace")
	}
	for _, tt := range []struct{ fault, want string }{
		{"fdatasync:error=EIO:when=4", "stopped"},
		{"fdatasync:error=ENOSPC:when=4", "stopped"}, // pages written earlier are lost
		{"pwrite64:error=EIO:when=7", "stopped"},
		{"pwrite64:error=ENOSPC:when=7", "full"},
		{"pwrite64:error=EDQUOT:when=9", "full"},
	} {
		t.Run(tt.fault, func(t *testing.T) {
			dir := t.TempDir()
			s := fleet(t, dir)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			call, _, _ := strings.Cut(tt.fault, ":")
			c := exec.Command("strace", "-f", "-qq", "-o", filepath.Join(t.TempDir(), "trace"), "-e", "trace="+call, "-e", "inject="+tt.fault,
				os.Args[0], "-test.run", "^TestFaultChild$")
			c.Env = append(os.Environ(), "BOLTSTORE_TEST_FAULT="+dir)
			out, err := c.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			var said []string
			for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
				if word, ok := strings.CutPrefix(lines.Text(), "said "); ok {
					said = append(said, word)
				}
			}
			story := strings.Join(said, " ")
			if len(said) != 12 || !strings.Contains(story, tt.want) || strings.Contains(story, "failed") ||
				strings.Contains(story, "stopped ok") || tt.want == "full" && !strings.HasSuffix(story, "ok") {
				t.Fatalf("the changes were: %s", story)
			}
			s = open(t, config(t, dir))
			clean(t, s)
			err = s.Read(t.Context(), func(in inventory.Reader) error {
				for i, word := range said {
					_, err := in.Device(inventory.DeviceID(fmt.Sprintf("fault-%d", i)))
					if word == "ok" && err != nil || word == "full" && err == nil {
						t.Errorf("fault-%d was %s, and now: %v", i, word, err)
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}
