package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/imprint-iot/imprint/inventory/durable"
)

// TestReadWhileReplaced: a file that is replaced all the time is read all the
// same, whole, also if the rename comes between the look and the open.
func TestReadWhileReplaced(t *testing.T) {
	d, path := open(t)
	const size = 10_000
	for _, name := range []string{"f", "a", "b"} {
		if err := os.WriteFile(filepath.Join(path, name), bytes.Repeat([]byte(name), size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // as fast as it goes, which WriteFile with its fsync is not
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			name := filepath.Join(path, string(rune('a'+i%2)))
			if err := errors.Join(os.Link(name, name+".new"), os.Rename(name+".new", filepath.Join(path, "f"))); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 5000 {
		b, err := d.ReadFile("f", size)
		if err != nil || len(b) != size || b[0] != b[size-1] {
			t.Errorf("read %d octets, %v", len(b), err)
			break
		}
	}
	close(stop)
	wg.Wait()
}

// TestNoLimit: the largest limit there is does not turn into none at all.
func TestNoLimit(t *testing.T) {
	d, _ := open(t)
	if err := d.WriteFile("f", []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := d.ReadFile("f", math.MaxInt64); err != nil || string(b) != "12345" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := d.ReadFile("f", 0); !errors.Is(err, durable.ErrTooLarge) {
		t.Errorf("with a limit of 0: %q, %v", b, err)
	}
}

// TestMoved: a directory held open is the same one after its path has become
// another's.
func TestMoved(t *testing.T) {
	_, above := open(t)
	path := filepath.Join(above, "fleet")
	d, err := durable.CreateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if err := errors.Join(os.Rename(path, path+".moved"), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteFile("f", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(path+".moved", "f")); got != "x" {
		t.Errorf("the file holds %q", got)
	}
	if _, err := os.Lstat(filepath.Join(path, "f")); err == nil {
		t.Error("the file is in the directory that took the path")
	}
}

// TestLockPlanted: a lock file that leads to another file is not taken, because
// taking it would write over that file (brk-017).
func TestLockPlanted(t *testing.T) {
	for name, plant := range map[string]func(victim, lock string) error{
		"symbolic link": os.Symlink, "hard link": os.Link,
	} {
		t.Run(name, func(t *testing.T) {
			d, path := open(t)
			victim := filepath.Join(path, "victim")
			if err := os.WriteFile(victim, []byte("mine"), 0o640); err != nil {
				t.Fatal(err)
			}
			before := mode(t, victim)
			if err := plant(victim, filepath.Join(path, "lock")); err != nil {
				t.Fatal(err)
			}
			for _, take := range []func(string) (*durable.Lock, error){d.Lock, d.LockShared} {
				if _, err := take("lock"); !errors.Is(err, durable.ErrNotRegular) {
					t.Errorf("locked: %v", err)
				}
			}
			if got := read(t, victim); got != "mine" || mode(t, victim) != before {
				t.Errorf("the victim holds %q, mode %v", got, mode(t, victim))
			}
		})
	}
}

// TestStalePID: who is gone without a word is not named for those who share the
// lock now.
func TestStalePID(t *testing.T) {
	d, path := open(t)
	if err := os.WriteFile(filepath.Join(path, "lock"), []byte("123456789\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := d.LockShared("lock")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := child(t, path, "alone"), "in use by pid 0"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if got := (&durable.InUseError{Path: "fleet"}).Error(); got != "fleet: in use by another process" {
		t.Error(got)
	}
}

// TestSwapThroughLink: neither path of an exchange leads out of the directory.
func TestSwapThroughLink(t *testing.T) {
	d, path := open(t)
	outside := t.TempDir()
	directory(t, outside, "sub", "theirs")
	directory(t, path, "sub", "ours")
	if err := os.Symlink(outside, filepath.Join(path, "stage")); err != nil {
		t.Fatal(err)
	}
	if err := d.Swap("stage/sub", "sub"); err == nil {
		t.Error("swapped with a directory outside")
	}
	if a, b := read(t, filepath.Join(path, "sub/f")), read(t, filepath.Join(outside, "sub/f")); a != "ours" || b != "theirs" {
		t.Errorf("inside %q, outside %q", a, b)
	}
}

// TestExchangeSlowly: also after a crash has left the third name behind.
func TestExchangeSlowly(t *testing.T) {
	for _, crashed := range []bool{false, true} {
		d, path := open(t)
		directory(t, path, "new", "2")
		directory(t, path, "name", "1")
		if crashed {
			directory(t, path, "name.old", "0")
		}
		if err := d.ExchangeSlowly("new", "name"); err != nil {
			t.Fatal(err)
		}
		if a, b := read(t, filepath.Join(path, "name/f")), read(t, filepath.Join(path, "new/f")); a != "2" || b != "1" {
			t.Errorf("name holds %q, new %q", a, b)
		}
		if names, err := d.Names(); err != nil || fmt.Sprint(names) != "[name new]" {
			t.Errorf("%v, %v", names, err)
		}
		if err := d.ExchangeSlowly("nosuch", "name"); err == nil || read(t, filepath.Join(path, "name/f")) != "2" {
			t.Errorf("with nothing to put: %v", err)
		}
	}
}

// TestMakeThroughLink: a link where a directory is to be made is not followed, and
// what it leads to keeps its mode.
func TestMakeThroughLink(t *testing.T) {
	d, path := open(t)
	outside := t.TempDir()
	if err := errors.Join(os.Chmod(outside, 0o755), os.Symlink(outside, filepath.Join(path, "sub"))); err != nil {
		t.Fatal(err)
	}
	if sub, err := d.Mkdir("sub"); !errors.Is(err, durable.ErrNotRegular) {
		t.Errorf("made: %v, %v", sub, err)
	}
	if sub, err := durable.CreateDir(filepath.Join(path, "sub")); !errors.Is(err, durable.ErrNotRegular) {
		t.Errorf("made: %v, %v", sub, err)
	}
	if got := mode(t, outside).Perm(); got != 0o755 {
		t.Errorf("the mode outside is %o", got)
	}
}
