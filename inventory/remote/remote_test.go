package remote_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/remote"
	"github.com/imprint-iot/imprint/inventory/storetest"
)

// A served store is a boltstore, and the way to it.
type served struct {
	dir   string
	store *boltstore.Store
	stop  func()
}

func open(t *testing.T, dir string, create bool) *boltstore.Store {
	t.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	s, err := boltstore.Open(t.Context(), boltstore.Config{Dir: d, Instance: [16]byte{1}, Key: [32]byte{2}, Create: create})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve serves the store in dir and returns the way to it.
func serve(t *testing.T, dir string, create bool) (*remote.Store, *served) {
	t.Helper()
	x := &served{dir: dir, store: open(t, dir, create)}
	path := filepath.Join(dir, "s.sock")
	l, err := remote.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- remote.Serve(ctx, l, x.store, remote.Extra{
			Backup: x.store.Backup,
			Check:  func(ctx context.Context) (any, error) { return x.store.Check(ctx) },
		})
	}()
	stopped := false
	x.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := errors.Join(<-done, x.store.Close()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(x.stop)
	s, err := remote.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return s, x
}

func TestContract(t *testing.T) {
	all := map[inventory.Store]*served{}
	start := func(t *testing.T, dir string, create bool) inventory.Store {
		t.Helper()
		s, x := serve(t, dir, create)
		all[s] = x
		return s
	}
	storetest.Run(t, storetest.Factory{
		New: func(t *testing.T) inventory.Store { t.Helper(); return start(t, t.TempDir(), true) },
		Reopen: func(t *testing.T, s inventory.Store) inventory.Store {
			t.Helper()
			all[s].stop()
			return start(t, all[s].dir, false)
		},
	})
}

// addDevices registers n devices and returns the store.
func addDevices(t *testing.T, s inventory.Store, n int) {
	t.Helper()
	now := inventory.UTC(time.Now())
	c := inventory.Change{Event: inventory.Event{Time: now, Actor: "test", Action: "device.add"}}
	c.Profiles = []inventory.Profile{{Name: "default"}}
	for i := range n {
		c.Devices = append(c.Devices, inventory.Device{
			ID: inventory.DeviceID(fmt.Sprintf("dev-%05d", i)), Kind: inventory.Equipment, Profile: "default", State: inventory.Registered, Created: now, Updated: now,
		})
	}
	if err := s.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

// A query can be asked while another one is being read, at the same moment.
func TestNestedQueries(t *testing.T) {
	s, x := serve(t, t.TempDir(), true)
	addDevices(t, s, 1000)
	seen := 0
	err := s.Read(t.Context(), func(r inventory.Reader) error {
		for d, err := range r.Devices(inventory.Query{}) {
			if err != nil {
				return err
			}
			if seen == 10 {
				// What happens meanwhile is not seen.
				now := inventory.UTC(time.Now())
				err := x.store.Apply(t.Context(), inventory.Change{
					Event:   inventory.Event{Time: now, Actor: "test", Action: "device.add"},
					Devices: []inventory.Device{{ID: "zz", Kind: inventory.Equipment, Profile: "default", State: inventory.Registered, Created: now, Updated: now}},
				})
				if err != nil {
					return err
				}
			}
			for other, err := range r.Devices(inventory.Query{After: d.ID, Limit: 3}) {
				if err != nil || other.ID <= d.ID {
					return fmt.Errorf("after %s: %s, %w", d.ID, other.ID, err)
				}
				break
			}
			if _, err := r.Device(d.ID); err != nil {
				return err
			}
			seen++
		}
		return nil
	})
	if err != nil || seen != 1000 {
		t.Errorf("%d devices, %v", seen, err)
	}
}

func TestBackupAndCheck(t *testing.T) {
	s, _ := serve(t, t.TempDir(), true)
	addDevices(t, s, 100)
	var report boltstore.Report
	if err := s.Check(t.Context(), &report); err != nil || report.Devices != 100 || len(report.Faults) > 0 {
		t.Errorf("report %+v, %v", report, err)
	}
	path := filepath.Join(t.TempDir(), "backup")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Backup(t.Context(), f), f.Close()); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	scratch, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = scratch.Close() }()
	got, err := boltstore.Verify(t.Context(), in, boltstore.Config{Dir: scratch, Instance: [16]byte{1}, Key: [32]byte{2}})
	if err != nil || got.Devices != 100 {
		t.Errorf("backup: %+v, %v", got, err)
	}
}

func TestListen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s.sock")
	l, err := remote.Listen(path)
	if err != nil {
		t.Fatalf("with a path longer than that of a socket: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := remote.Listen(path); err == nil {
		t.Error("the socket of a live process was replaced")
	}
	// What a killed process leaves behind.
	u := l.(interface{ File() (*os.File, error) })
	f, err := u.File()
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	stale := filepath.Join(t.TempDir(), "stale")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	again, err := remote.Listen(stale)
	if err != nil {
		t.Fatalf("the socket of a dead process: %v", err)
	}
	if err := errors.Join(again.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket is still there")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Listen(file); err == nil {
		t.Error("a file was replaced by a socket")
	}
}

// A peer that says nonsense is turned away, and others are served.
func TestNonsense(t *testing.T) {
	s, x := serve(t, t.TempDir(), true)
	addDevices(t, s, 1)
	const hello = "imprint store 1\n"
	for _, text := range []string{"", "GET / HTTP/1.1\r\n\r\n", hello + "A\xff\xff\xff\xff", hello + "A\x00\x00\x00\x00D\x00\x00\x00\x01x", hello + "r\x00\x00\x00\x00?\x00\x00\x00\x00", hello + "r\x00\x00\x00\x00n\x00\x00\x00\x00"} {
		c, err := net.Dial("unix", filepath.Join(x.dir, "s.sock"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	err := s.Read(t.Context(), func(r inventory.Reader) error { _, err := r.Device("dev-00000"); return err })
	if err != nil {
		t.Error(err)
	}
	// A client that dies in the middle of a reading holds nothing: the store closes.
	ctx, cancel := context.WithCancel(t.Context())
	err = s.Read(ctx, func(inventory.Reader) error { cancel(); return nil })
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	closed := make(chan struct{})
	go func() { x.stop(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("a reading that was cut off still holds the store")
	}
}
