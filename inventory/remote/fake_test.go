package remote_test

import (
	"context"
	"errors"
	"iter"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/remote"
)

// A fake is a store that does what a test wants.
type fake struct {
	apply   func(inventory.Change) error
	read    error        // what Read returns instead of reading
	reading atomic.Int32 // readings under way
	reads   atomic.Int32 // readings that have been begun
	devices int          // how many it says it has
}

func (f *fake) Apply(_ context.Context, c inventory.Change) error {
	if f.apply == nil {
		return nil
	}
	return f.apply(c)
}

func (f *fake) Read(_ context.Context, fn func(inventory.Reader) error) error {
	f.reads.Add(1)
	f.reading.Add(1)
	defer f.reading.Add(-1)
	if f.read != nil {
		return f.read
	}
	return fn(facts{f})
}

func (f *fake) Close() error { return nil }

// facts is the reader of a fake: some devices, and nothing else.
type facts struct{ *fake }

func (f facts) Revision() uint64 { return 7 }
func (f facts) Device(inventory.DeviceID) (inventory.Device, error) {
	return inventory.Device{}, inventory.ErrNotFound
}
func (f facts) Devices(inventory.Query) iter.Seq2[inventory.Device, error] {
	return func(yield func(inventory.Device, error) bool) {
		for range f.devices {
			if !yield(inventory.Device{ID: "dev", Profile: "default"}, nil) {
				return
			}
		}
	}
}
func (f facts) Credentials(inventory.CredentialQuery) iter.Seq2[inventory.Credential, error] {
	return none[inventory.Credential]
}
func (f facts) Key(inventory.SPKI) (inventory.KeyUse, error) { return inventory.KeyUse{}, nil }
func (f facts) Revocations(inventory.KeyID) iter.Seq2[inventory.Revocation, error] {
	return none[inventory.Revocation]
}
func (f facts) Profiles() iter.Seq2[inventory.Profile, error] { return none[inventory.Profile] }
func (f facts) Issuers() iter.Seq2[inventory.Issuer, error]   { return none[inventory.Issuer] }
func (f facts) Token(inventory.Hash) (inventory.Token, error) {
	return inventory.Token{}, inventory.ErrNotFound
}
func (f facts) Tokens(inventory.TokenID) iter.Seq2[inventory.Token, error] {
	return none[inventory.Token]
}
func (f facts) Approval(inventory.SPKI) (inventory.Approval, error) {
	return inventory.Approval{}, inventory.ErrNotFound
}
func (f facts) Approvals() iter.Seq2[inventory.Approval, error] { return none[inventory.Approval] }
func (f facts) Work(string, string) (inventory.Work, error) {
	return inventory.Work{}, inventory.ErrNotFound
}
func (f facts) Works(string) iter.Seq2[inventory.Work, error]   { return none[inventory.Work] }
func (f facts) Events(uint64) iter.Seq2[inventory.Event, error] { return none[inventory.Event] }

// none yields an error, so that this way is gone as well.
func none[T any](yield func(T, error) bool) {
	var zero T
	yield(zero, inventory.ErrCorrupt)
}

// serveFake serves f with some patience until the test ends or stop is called.
func serveFake(t *testing.T, f inventory.Store, patience time.Duration) (s *remote.Store, path string, stop func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s.sock")
	l, err := remote.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	stop = start(t, func(ctx context.Context) error { return remote.ServeImpatiently(ctx, l, f, patience) })
	if s, err = remote.Dial(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	return s, path, stop
}

// start runs a server until the test ends, or stop is called.
func start(t *testing.T, serve func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx) }()
	stopped := false
	stop = func() {
		cancel()
		if stopped {
			return
		}
		stopped = true
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the server does not stop")
		}
	}
	t.Cleanup(stop)
	return stop
}

// until waits for what another process or goroutine does.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if <-tick.C; time.Now().After(deadline) {
			t.Fatalf("waited 10 s for this: %s", what)
		}
	}
}

// someChange is a change that is valid.
func someChange() inventory.Change {
	now := inventory.UTC(time.Now())
	return inventory.Change{
		Event:   inventory.Event{Time: now, Actor: "test", Action: "device.add"},
		Devices: []inventory.Device{{ID: "zz", Kind: inventory.Equipment, Profile: "default", State: inventory.Registered, Created: now, Updated: now}},
	}
}

// scripted greets one peer with text, and hangs up.
func scripted(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = c.Write([]byte(text))
			err = errors.Join(err, c.Close())
		}
		done <- err
	}()
	t.Cleanup(func() {
		if err := errors.Join(l.Close(), <-done); err != nil {
			t.Error(err)
		}
	})
	return path
}
