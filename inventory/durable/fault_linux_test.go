package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/imprint-iot/imprint/inventory/durable"
)

const (
	oldText = "old"
	newText = "new content"
)

// in has TestInChild run the job on the directory in another process, started by
// before, which may be nothing, and returns what it says and how it ends.
func in(job, dir string, attr *syscall.SysProcAttr, before ...string) (string, error) {
	argv := slices.Concat(before, []string{os.Args[0], "-test.run", "^TestInChild$"})
	c := exec.Command(argv[0], argv[1:]...)
	// The race detector would wait a second in each for races that end late.
	c.Env = append(os.Environ(), "DURABLE_TEST_JOB="+job+":"+dir, "GORACE=atexit_sleep_ms=0")
	c.SysProcAttr = attr
	out, err := c.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// TestInChild is the other process.
func TestInChild(t *testing.T) {
	job, path, ok := strings.Cut(os.Getenv("DURABLE_TEST_JOB"), ":")
	if !ok {
		return // a program for other tests, no test
	}
	runtime.LockOSThread() // strace counts the calls of each thread
	if err := map[string]func(string) error{
		"write": writeJob, "swap": swapJob, "full": fullJob, "umask": umaskJob,
	}[job](path); err != nil {
		_, _ = fmt.Fprintln(os.Stdout, "error:", err)
	}
	// At once: under -cover, what comes after the tests writes and renames files too.
	syscall.Exit(0)
}

func writeJob(path string) error {
	d, err := durable.OpenDir(path)
	if err != nil {
		return err
	}
	return d.WriteFile("f", []byte(newText), 0o600)
}

func swapJob(path string) error {
	d, err := durable.OpenDir(path)
	if err != nil {
		return err
	}
	return d.Swap("stage/sub", "sub")
}

// fullJob writes into a file system that is too small.
func fullJob(path string) error {
	if err := syscall.Mount("none", path, "tmpfs", 0, "size=64k"); err != nil {
		return fmt.Errorf("mounting: %w", err)
	}
	d, err := durable.OpenDir(path)
	if err != nil {
		return err
	}
	if err := d.WriteFile("f", []byte(oldText), 0o600); err != nil {
		return err
	}
	if err := d.WriteFile("f", bytes.Repeat([]byte("x"), 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("a megabyte into 64 kB: %w", err)
	}
	b, err := d.ReadFile("f", 100)
	names, errNames := d.Names()
	_, _ = fmt.Fprintf(os.Stdout, "f holds %q; there are %v\n", b, names)
	return errors.Join(err, errNames, d.WriteFile("f", []byte(newText), 0o600))
}

// umaskJob does everything under a umask that takes all rights, as somebody who
// has no more than those.
func umaskJob(path string) error {
	if os.Getuid() == 0 {
		if err := errors.Join(syscall.Setgid(65534), syscall.Setuid(65534)); err != nil {
			return err
		}
	}
	syscall.Umask(0o777)
	d, err := durable.CreateDir(filepath.Join(path, "a", "b"))
	if err != nil {
		return err
	}
	sub, err := d.Mkdir("sub")
	if err != nil {
		return err
	}
	if err := sub.WriteFile("f", []byte(newText), 0o640); err != nil {
		return err
	}
	for range 2 {
		for _, take := range []func(string) (*durable.Lock, error){sub.LockShared, sub.Lock} {
			l, err := take("lock")
			if err != nil {
				return err
			}
			if err := l.Unlock(); err != nil {
				return err
			}
		}
	}
	_, err = sub.ReadFile("f", 100)
	return err
}

// strace is the program and arguments that make one system call of the child fail,
// or kill it there.
func strace(t *testing.T, call, fault string) []string {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("strace is not installed: apt-get install strace")
	}
	name, when, _ := strings.Cut(call, "#")
	return []string{"strace", "-f", "-qq", "-o", filepath.Join(t.TempDir(), "trace"), "-e", "trace=" + name,
		"-e", "inject=" + name + ":" + fault + ":when=" + when}
}

const rename = "renameat,renameat2"

// TestCrash fails each step of WriteFile, and kills the process there: the file
// holds the old content or the new, whole; an error leaves nothing behind; and the
// next one to write succeeds (sto-026, brk-019).
func TestCrash(t *testing.T) {
	for _, tt := range []struct{ call, after string }{
		{"fchmod#1", oldText},
		{"fsync#1", oldText}, // of the file
		{rename + "#1", oldText},
		{"fsync#2", newText}, // of the directory
	} {
		for _, fault := range []string{"error=EIO", "error=ENOSPC", "signal=KILL"} {
			t.Run(tt.call+" "+fault, func(t *testing.T) {
				d, path := open(t)
				if err := d.WriteFile("f", []byte(oldText), 0o600); err != nil {
					t.Fatal(err)
				}
				says, err := in("write", path, nil, strace(t, tt.call, fault)...)
				killed := fault == "signal=KILL"
				if killed == (err == nil) || !killed && !strings.HasPrefix(says, "error: ") {
					t.Fatalf("the fault did not show: %v, %q", err, says)
				}
				if got := read(t, filepath.Join(path, "f")); got != tt.after {
					t.Errorf("f holds %q, want %q", got, tt.after)
				}
				names, err := d.Names()
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range names {
					temp := strings.HasPrefix(name, ".f.") && strings.HasSuffix(name, ".tmp")
					if name != "f" && (!temp || !killed) {
						t.Errorf("it left %s", name)
					}
				}
				if err := d.WriteFile("f", []byte("again"), 0o600); err != nil || read(t, filepath.Join(path, "f")) != "again" {
					t.Errorf("written again: %v", err)
				}
			})
		}
	}
}

// TestCrashOfSwap: the name is always there, with the old directory or the new.
func TestCrashOfSwap(t *testing.T) {
	for _, tt := range []struct{ call, after string }{
		{rename + "#1", oldText}, {"fsync#1", newText}, {"unlinkat#1", newText},
	} {
		for _, fault := range []string{"error=EIO", "signal=KILL"} {
			t.Run(tt.call+" "+fault, func(t *testing.T) {
				d, path := open(t)
				directory(t, path, "sub", oldText)
				directory(t, path, "stage/sub", newText)
				says, err := in("swap", path, nil, strace(t, tt.call, fault)...)
				if err == nil && !strings.HasPrefix(says, "error: ") {
					t.Fatalf("the fault did not show: %q", says)
				}
				if got := read(t, filepath.Join(path, "sub/f")); got != tt.after {
					t.Errorf("sub/f holds %q, want %q", got, tt.after)
				}
				if err := d.RemoveAll("stage"); err != nil {
					t.Fatal(err)
				}
				directory(t, path, "stage/sub", "again")
				if err := d.Swap("stage/sub", "sub"); err != nil || read(t, filepath.Join(path, "sub/f")) != "again" {
					t.Errorf("swapped again: %v", err)
				}
			})
		}
	}
}

// directory makes a directory with one file.
func directory(t *testing.T, path, name, text string) {
	t.Helper()
	dir := filepath.Join(path, name)
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "f"), []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// TestFullDisk: what does not fit leaves the old file, and no part of the new.
func TestFullDisk(t *testing.T) {
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	says, err := in("full", t.TempDir(), attr)
	if want := `f holds "old"; there are [f]`; err != nil || says != want {
		t.Errorf("%v, %s, want %s", err, says, want)
	}
}

// TestUmaskOfAnyone: no umask keeps the owner of the files out of them (sec-011).
func TestUmaskOfAnyone(t *testing.T) {
	path, err := os.MkdirTemp("", "durable-test-") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(path) })
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if says, err := in("umask", path, nil); err != nil || says != "" {
		t.Fatalf("%v, %s", err, says)
	}
	for name, want := range map[string]os.FileMode{
		"a": os.ModeDir | 0o700, "a/b": os.ModeDir | 0o700, "a/b/sub": os.ModeDir | 0o700, "a/b/sub/f": 0o640, "a/b/sub/lock": 0o600,
	} {
		if got := mode(t, filepath.Join(path, name)); got != want {
			t.Errorf("%s: mode %v, want %v", name, got, want)
		}
	}
}
