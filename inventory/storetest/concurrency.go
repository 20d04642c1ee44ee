package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
)

// writers is how many goroutines write at a time.
const writers = 64

func testEvents(t *testing.T, f Factory) {
	s := f.New(t)
	for i := range 10 {
		c := inventory.Change{Event: event(fmt.Sprintf("test.event-%d", i+1))}
		if i == 4 {
			c.Event.Time = day.AddDate(-1, 0, 0) // the clock was put back: the number still orders
		}
		apply(t, s, c)
	}
	s = f.Reopen(t, s)
	read(t, s, func(r inventory.Reader) error {
		if n, _, err := inventory.VerifyChain(r.Events(0)); n != 10 || err != nil {
			t.Errorf("%d events, %v", n, err)
		}
		for from, want := range map[uint64]int{0: 10, 1: 10, 7: 4, 10: 1, 11: 0, 1 << 40: 0} {
			all, err := collect(r.Events(from))
			if len(all) != want || err != nil {
				t.Errorf("%d events from %d, want %d: %v", len(all), from, want, err)
			}
			if want > 0 && all[0].Seq != max(from, 1) {
				t.Errorf("the first event from %d is %d", from, all[0].Seq)
			}
		}
		return nil
	})
}

// testOneMoment writes inside a read: that must not wait for the read to end,
// and the read must not see it.
func testOneMoment(t *testing.T, f Factory) {
	s := f.New(t)
	add(t, s, device("dev-1"))
	read(t, s, func(r inventory.Reader) error {
		for i := range 200 {
			add(t, s, device(fmt.Sprintf("later-%d", i)))
		}
		all, err := collect(r.Devices(inventory.Query{}))
		if len(all) != 1 || r.Revision() != 1 {
			t.Errorf("a change made during Read is seen by it: %d devices at revision %d", len(all), r.Revision())
		}
		if _, err := r.Device("later-0"); !errors.Is(err, inventory.ErrNotFound) {
			t.Errorf("a device added during Read: %v", err)
		}
		if n, _, err := inventory.VerifyChain(r.Events(0)); n != 1 || err != nil {
			t.Errorf("%d events, %v", n, err)
		}
		return err
	})
	if n := revision(t, s); n != 201 {
		t.Errorf("revision %d after the read, want 201", n)
	}
}

func testReadError(t *testing.T, f Factory) {
	s := f.New(t)
	if err := s.Read(t.Context(), func(inventory.Reader) error { return errStop }); !errors.Is(err, errStop) {
		t.Errorf("got %v, want the error of the function", err)
	}
	add(t, s, device("dev-1"))
}

// testContext checks that a change is applied or not, and that the answer says
// which, whenever the context ends.
func testContext(t *testing.T, f Factory) {
	s := f.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := inventory.Change{Event: event("device.add"), Devices: []inventory.Device{device("dev-0")}}
	if err := s.Apply(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply with a dead context: %v", err)
	}
	called := false
	if err := s.Read(ctx, func(inventory.Reader) error { called = true; return nil }); !errors.Is(err, context.Canceled) || called {
		t.Errorf("Read with a dead context: %v, called: %t", err, called)
	}
	var wg sync.WaitGroup
	applied := make([]bool, writers)
	for i := range writers {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			go cancel()
			err := s.Apply(ctx, inventory.Change{Event: event("device.add"), Devices: []inventory.Device{device(fmt.Sprintf("dev-%d", i+1))}})
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("Apply: %v", err)
			}
			applied[i] = err == nil
		})
	}
	wg.Wait()
	read(t, s, func(r inventory.Reader) error {
		for i, want := range applied {
			_, err := r.Device(inventory.DeviceID(fmt.Sprintf("dev-%d", i+1)))
			if got := err == nil; got != want {
				t.Errorf("device %d is there: %t, Apply said %t", i+1, got, want)
			}
		}
		return nil
	})
}

func testClosed(t *testing.T, f Factory) {
	s := f.New(t)
	add(t, s, device("dev-1"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(t.Context(), inventory.Change{Event: event("device.add"), Devices: []inventory.Device{device("dev-2")}}); err == nil {
		t.Error("Apply after Close succeeds")
	}
	if err := s.Read(t.Context(), func(inventory.Reader) error { return nil }); err == nil {
		t.Error("Read after Close succeeds")
	}
}

// testSameIDManyWriters lets many enrol one ID with different keys: exactly one
// wins.
func testSameIDManyWriters(t *testing.T, f Factory) {
	s := f.New(t)
	var wins atomic.Int32
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			id := []string{"dev-1", "Dev-1", "DEV-1"}[i%3]
			d := device(id)
			d.State = inventory.Active
			err := s.Apply(t.Context(), inventory.Change{
				Event: event("device.enroll"), Devices: []inventory.Device{d},
				Credentials: []inventory.Credential{certificate(id, 1, fmt.Sprint("s", i), fmt.Sprint("k", i))},
			})
			switch {
			case err == nil:
				wins.Add(1)
			case !errors.Is(err, inventory.ErrConflict):
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if n := wins.Load(); n != 1 {
		t.Errorf("%d writers enrolled the device, want 1", n)
	}
	if all := credentials(t, s, inventory.CredentialQuery{All: true}); len(all) != 1 {
		t.Errorf("%d credentials, want 1", len(all))
	}
	if n := revision(t, s); n != 1 {
		t.Errorf("revision %d, want 1", n)
	}
}

// testEnrolAndRevoke lets a device be renewed and revoked at the same time. In
// whatever order it happens, a revoked device ends without an active credential.
func testEnrolAndRevoke(t *testing.T, f Factory) {
	s := f.New(t)
	for round := range 20 {
		id := fmt.Sprintf("dev-%d", round)
		d := device(id)
		d.State = inventory.Active
		apply(t, s, inventory.Change{Devices: []inventory.Device{d}, Credentials: []inventory.Credential{certificate(id, 1, id, id)}})
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				next := certificate(id, uint32(i+2), id+"/"+strconv.Itoa(i), id)
				err := s.Apply(t.Context(), inventory.Change{Event: event("device.renew"), Credentials: []inventory.Credential{next}})
				if err != nil && !errors.Is(err, inventory.ErrConflict) {
					t.Errorf("renewing: %v", err)
				}
			})
		}
		wg.Go(func() { revokeDevice(t, s, id) })
		wg.Wait()
		if d := mustDevice(t, s, id); d.State != inventory.Revoked {
			t.Errorf("device %s is %s", id, d.State)
		}
		if all := credentials(t, s, inventory.CredentialQuery{Device: d.ID, State: inventory.CredentialActive}); len(all) != 0 {
			t.Errorf("revoked device %s has %d active credentials", id, len(all))
		}
	}
}

// revokeDevice revokes a device with all it has, as often as others get in
// between.
func revokeDevice(t *testing.T, s inventory.Store, id string) {
	for {
		c := inventory.Change{Event: event("device.revoke")}
		err := s.Read(t.Context(), func(r inventory.Reader) error {
			d, err := r.Device(inventory.DeviceID(id))
			if err != nil {
				return err
			}
			d.State = inventory.Revoked
			c.Devices = []inventory.Device{d}
			all, err := collect(r.Credentials(inventory.CredentialQuery{Device: d.ID}))
			for _, x := range all {
				c.Credentials = append(c.Credentials, revoke(x, inventory.KeyCompromise))
			}
			return err
		})
		if err == nil {
			err = s.Apply(t.Context(), c)
		}
		if err == nil {
			return
		}
		if !errors.Is(err, inventory.ErrConflict) {
			t.Errorf("revoking: %v", err)
			return
		}
	}
}

// testManyWriters counts up one record from many goroutines, each change
// deciding on what it read: no step is lost, the log has no gap, and a refused
// change does not harm its neighbours.
func testManyWriters(t *testing.T, f Factory) {
	s := f.New(t)
	add(t, s, device("counter"))
	const each = 5
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for n := range each {
				own := device(fmt.Sprintf("own-%d-%d", i, n))
				if err := s.Apply(t.Context(), inventory.Change{Event: event("device.add"), Devices: []inventory.Device{own}}); err != nil {
					t.Errorf("adding: %v", err)
				}
				if err := count(t, s); err != nil {
					t.Errorf("counting: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if d := mustDevice(t, s, "counter"); len(d.HardwareSerial) != writers*each%200 {
		t.Errorf("counted to %d, want %d", len(d.HardwareSerial), writers*each%200)
	}
	s = f.Reopen(t, s)
	read(t, s, func(r inventory.Reader) error {
		want := uint64(1 + 2*writers*each)
		if n, _, err := inventory.VerifyChain(r.Events(0)); n != want || err != nil {
			t.Errorf("%d events, want %d: %v", n, want, err)
		}
		all, err := collect(r.Devices(inventory.Query{}))
		if len(all) != 1+writers*each {
			t.Errorf("%d devices, want %d", len(all), 1+writers*each)
		}
		return err
	})
}

// count makes the counter's serial one character longer, modulo 200.
func count(t *testing.T, s inventory.Store) error {
	for {
		var d inventory.Device
		err := s.Read(t.Context(), func(r inventory.Reader) (err error) {
			d, err = r.Device("counter")
			return err
		})
		if err != nil {
			return err
		}
		d.HardwareSerial += "x"
		d.HardwareSerial = d.HardwareSerial[:len(d.HardwareSerial)%200]
		err = s.Apply(t.Context(), inventory.Change{Event: event("device.change"), Devices: []inventory.Device{d}})
		if !errors.Is(err, inventory.ErrConflict) {
			return err
		}
	}
}
