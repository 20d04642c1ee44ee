package remote_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
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
	stop := start(t, func(ctx context.Context) error {
		return remote.Serve(ctx, l, x.store, remote.Extra{
			Backup: x.store.Backup,
			Check:  func(ctx context.Context) (any, error) { return x.store.Check(ctx) },
		})
	})
	x.stop = sync.OnceFunc(func() {
		stop()
		if err := x.store.Close(); err != nil {
			t.Error(err)
		}
	})
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

// A bootstrap of a thousand devices is one change, with an event that is longer than
// a frame.
func TestLargeChange(t *testing.T) {
	const devices = 1000
	s, _ := serve(t, t.TempDir(), true)
	now := inventory.UTC(time.Now())
	c := inventory.Change{
		Event:    inventory.Event{Time: now, Actor: "test", Action: "fleet.bootstrap"},
		Profiles: []inventory.Profile{{Name: "default", Certificate: make([]byte, 2*remote.MaxFrame)}},
	}
	for i := range devices {
		id := inventory.DeviceID(fmt.Sprintf("dev-%05d", i))
		c.Devices = append(c.Devices, inventory.Device{ID: id, Kind: inventory.Equipment, Profile: "default", State: inventory.Active, Created: now, Updated: now})
		c.Credentials = append(c.Credentials, inventory.Credential{
			Device: id, Kind: inventory.PasswordCredential, Generation: 1, State: inventory.CredentialActive, Created: now,
			Verifiers: []inventory.Verifier{{Scheme: inventory.SHA256Suffix, Salt: make([]byte, 16), Hash: make([]byte, 32)}},
		})
		c.Event.Objects = append(c.Event.Objects, inventory.Object{Kind: "device", ID: string(id), Note: strings.Repeat("n", 2000)})
	}
	if err := s.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	err := s.Read(t.Context(), func(r inventory.Reader) error {
		for e, err := range r.Events(0) {
			if err != nil || len(e.Objects) != devices || e.Objects[devices-1] != c.Event.Objects[devices-1] {
				t.Errorf("event with %d objects, %v", len(e.Objects), err)
			}
		}
		for p, err := range r.Profiles() {
			if err != nil || len(p.Certificate) != 2*remote.MaxFrame {
				t.Errorf("profile with %d octets, %v", len(p.Certificate), err)
			}
		}
		n := 0
		for x, err := range r.Credentials(inventory.CredentialQuery{All: true}) {
			if err != nil || len(x.Verifiers) != 1 {
				return fmt.Errorf("%s: %w", x.Device, err)
			}
			n++
		}
		if n != devices {
			t.Errorf("%d credentials, want %d", n, devices)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A sequence can be read again, as with a store at hand, and be left early as often as
// one likes; only those that are being read at a time are counted.
func TestSequences(t *testing.T) {
	s, _, _ := serveFake(t, &fake{devices: 600}, time.Minute)
	err := s.Read(t.Context(), func(r inventory.Reader) error {
		devices := r.Devices(inventory.Query{})
		for range 3 {
			n := 0
			for _, err := range devices {
				if err != nil {
					return err
				}
				n++
			}
			if n != 600 {
				t.Errorf("%d devices, want 600", n)
			}
		}
		for range 200 {
			for _, err := range devices {
				if err != nil {
					return err
				}
				break
			}
		}
		if err := nest(r, 200); err == nil || !strings.Contains(err.Error(), "too many sequences") {
			t.Errorf("200 sequences at a time: %v", err)
		}
		return nest(r, 50)
	})
	if err != nil {
		t.Error(err)
	}
}

// nest reads depth sequences at a time.
func nest(r inventory.Reader, depth int) error {
	for _, err := range r.Devices(inventory.Query{}) {
		if err != nil || depth == 0 {
			return err
		}
		return nest(r, depth-1)
	}
	return nil
}
