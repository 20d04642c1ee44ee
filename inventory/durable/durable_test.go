package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/imprint-iot/imprint/inventory/durable"
)

func open(t testing.TB) (*durable.Dir, string) {
	t.Helper()
	path := t.TempDir()
	d, err := durable.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d, path
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func mode(t testing.TB, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}

// TestWriteFile: the mode is what was asked for, whatever the umask and the old
// file (sec-010, sec-011, brk-018), and nothing else is left.
func TestWriteFile(t *testing.T) {
	for _, umask := range []int{0, 0o22, 0o777} {
		d, path := open(t)
		file := filepath.Join(path, "f")
		if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, 0o666); err != nil {
			t.Fatal(err)
		}
		old := syscall.Umask(umask)
		err := d.WriteFile("f", []byte("new"), 0o600)
		var sub *durable.Dir
		if err == nil {
			sub, err = d.Mkdir("sub")
		}
		if err == nil {
			err = sub.WriteFile("g", []byte("x"), 0o640)
		}
		syscall.Umask(old)
		if err != nil {
			t.Fatalf("umask %o: %v", umask, err)
		}
		if got := mode(t, file); read(t, file) != "new" || got != 0o600 {
			t.Errorf("umask %o: %q, mode %o", umask, read(t, file), got)
		}
		if got := mode(t, filepath.Join(path, "sub")); got != fs.ModeDir|0o700 {
			t.Errorf("umask %o: directory of mode %o", umask, got)
		}
		if got := mode(t, filepath.Join(path, "sub", "g")); got != 0o640 {
			t.Errorf("umask %o: mode %o", umask, got)
		}
		if names, err := d.Names(); err != nil || fmt.Sprint(names) != "[f sub]" {
			t.Errorf("umask %o: %v, %v", umask, names, err)
		}
	}
}

// TestPlanted: what somebody has put in the place of a file is not written through,
// not read, and not waited for (brk-017, sec-013).
func TestPlanted(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	for name, plant := range map[string]func(string) error{
		"link":      func(p string) error { return os.Symlink(victim, p) },
		"pipe":      func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"directory": func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
			d, path := open(t)
			if err := plant(filepath.Join(path, "f")); err != nil {
				t.Fatal(err)
			}
			if err := d.WriteFile("f", []byte("x"), 0o600); !errors.Is(err, durable.ErrNotRegular) {
				t.Errorf("written: %v", err)
			}
			if b, err := d.ReadFile("f", 100); !errors.Is(err, durable.ErrNotRegular) {
				t.Errorf("read: %q, %v", b, err)
			}
			if name == "directory" {
				return
			}
			if sub, err := d.Sub("f"); !errors.Is(err, durable.ErrNotRegular) {
				t.Errorf("opened as a directory: %v, %v", sub, err)
			}
			if read(t, victim) != "mine" {
				t.Error("the victim was written to")
			}
		})
	}
	// A hard link: the other name keeps the old content.
	d, path := open(t)
	if err := os.WriteFile(filepath.Join(path, "f"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(path, "f"), filepath.Join(path, "other")); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteFile("f", []byte("new"), 0o600); err != nil || read(t, filepath.Join(path, "other")) != "old" {
		t.Errorf("%v; the other name holds %q", err, read(t, filepath.Join(path, "other")))
	}
}

func TestNamesStayInside(t *testing.T) {
	d, path := open(t)
	outside := filepath.Join(filepath.Dir(path), "outside")
	if err := os.Symlink(filepath.Dir(path), filepath.Join(path, "up")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../outside", "/tmp/outside", "up/outside", "a/../../outside", ""} {
		if err := d.WriteFile(name, []byte("x"), 0o600); err == nil {
			t.Errorf("%q was written", name)
		}
		if _, err := d.ReadFile(name, 10); err == nil {
			t.Errorf("%q was read", name)
		}
	}
	if _, err := os.Lstat(outside); err == nil {
		t.Error("a file was made outside")
	}
	if err := os.Symlink(path, outside); err != nil {
		t.Fatal(err)
	}
	if d, err := durable.OpenDir(outside); !errors.Is(err, durable.ErrNotRegular) {
		t.Errorf("a link was opened as a directory: %v, %v", d, err)
	}
	if d, err := durable.CreateDir(outside); !errors.Is(err, durable.ErrNotRegular) {
		t.Errorf("a link was opened as a directory: %v, %v", d, err)
	}
}

func TestReadFile(t *testing.T) {
	d, _ := open(t)
	if err := d.WriteFile("f", []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := d.ReadFile("f", 5); err != nil || string(b) != "12345" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := d.ReadFile("f", 4); !errors.Is(err, durable.ErrTooLarge) {
		t.Errorf("five octets with a limit of four: %v", err)
	}
	if _, err := d.ReadFile("nosuch", 4); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
}

// TestAbort: whoever gives up leaves nothing.
func TestAbort(t *testing.T) {
	d, path := open(t)
	if err := d.WriteFile("f", []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := d.Create("f", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	f.Abort()
	f.Abort()
	if err := f.Commit(); err == nil {
		t.Error("committed after Abort")
	}
	if names, _ := d.Names(); fmt.Sprint(names) != "[f]" || read(t, filepath.Join(path, "f")) != "old" {
		t.Errorf("%v, and f holds %q", names, read(t, filepath.Join(path, "f")))
	}
}

// TestReaders: a reader sees the old file or the new one, whole.
func TestReaders(t *testing.T) {
	d, path := open(t)
	content := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i%26)}, 100_000) }
	if err := d.WriteFile("f", content(0), 0o600); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				b, err := os.ReadFile(filepath.Join(path, "f"))
				if err != nil || len(b) != 100_000 || b[0] != b[len(b)-1] {
					t.Errorf("a reader saw %d octets, %v", len(b), err)
					return
				}
			}
		})
	}
	for i := range 200 {
		if err := d.WriteFile("f", content(i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
}

func TestSwap(t *testing.T) {
	d, path := open(t)
	make1 := func(name, text string) {
		t.Helper()
		sub, err := d.Mkdir(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(sub.WriteFile("f", []byte(text), 0o600), sub.Close()); err != nil {
			t.Fatal(err)
		}
	}
	make1("new", "1")
	if err := d.Swap("new", "name"); err != nil || read(t, filepath.Join(path, "name/f")) != "1" {
		t.Fatalf("into an empty place: %v", err)
	}
	make1("new", "2")
	if err := d.Swap("new", "name"); err != nil || read(t, filepath.Join(path, "name/f")) != "2" {
		t.Fatalf("over a directory: %v", err)
	}
	if names, _ := d.Names(); fmt.Sprint(names) != "[name]" {
		t.Errorf("left behind: %v", names)
	}
	if err := d.Swap("nosuch", "name"); err == nil || read(t, filepath.Join(path, "name/f")) != "2" {
		t.Errorf("with nothing to put: %v", err)
	}
	if err := errors.Join(d.SyncAll(), d.Sync(), d.RemoveAll("name"), d.Remove("nosuch")); err != nil {
		t.Error(err)
	}
}

// TestLock: one process at a time, or several that share, and the loser is told who
// has it.
func TestLock(t *testing.T) {
	d, path := open(t)
	l, err := d.Lock("lock")
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"alone", "shared"} {
		if out := child(t, path, how); out != fmt.Sprintf("in use by pid %d", os.Getpid()) {
			t.Errorf("another process, %s: %s", how, out)
		}
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if out := child(t, path, "alone"); out != "locked" {
		t.Errorf("after Unlock: %s", out)
	}
	shared, err := d.LockShared("lock")
	if err != nil {
		t.Fatal(err)
	}
	if out := child(t, path, "shared"); out != "locked" {
		t.Errorf("sharing: %s", out)
	}
	if out := child(t, path, "alone"); !strings.HasPrefix(out, "in use by") {
		t.Errorf("alone, with one that shares: %s", out)
	}
	if err := shared.Unlock(); err != nil {
		t.Error(err)
	}
}

// child takes the lock in another process.
func child(t *testing.T, path, how string) string {
	t.Helper()
	c := exec.Command(os.Args[0], "-test.run", "^TestChild$")
	c.Env = append(os.Environ(), "DURABLE_TEST_LOCK="+how+":"+path)
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return first
}

// TestChild is the other process of TestLock.
func TestChild(t *testing.T) {
	how, path, ok := strings.Cut(os.Getenv("DURABLE_TEST_LOCK"), ":")
	if !ok {
		return // a program for TestLock, no test
	}
	d, err := durable.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	take := d.Lock
	if how == "shared" {
		take = d.LockShared
	}
	l, err := take("lock")
	if held, ok := errors.AsType[*durable.InUseError](err); ok {
		_, _ = fmt.Fprintf(os.Stdout, "in use by pid %d\n", held.PID)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprintln(os.Stdout, "locked")
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
}
