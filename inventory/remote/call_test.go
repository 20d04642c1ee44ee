package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/remote"
)

// An error is on this side what it is on the other.
func TestErrors(t *testing.T) {
	conflict := &inventory.ConflictError{Why: inventory.TokenSpent, Record: "token 0123", Detail: "a \"detail\""}
	invalid := &inventory.InvalidError{Field: "device id", Value: "a/b", Want: "letters"}
	tests := []struct {
		err  error
		want []error
	}{
		{inventory.ErrNotFound, []error{inventory.ErrNotFound}},
		{fmt.Errorf("applying: %w", conflict), []error{inventory.ErrConflict}},
		{inventory.ErrConflict, []error{inventory.ErrConflict}},
		{inventory.ErrCorrupt, []error{inventory.ErrCorrupt}},
		{inventory.ErrForeign, []error{inventory.ErrForeign}},
		{inventory.ErrVersion, []error{inventory.ErrVersion}},
		{fmt.Errorf("%w: no space", inventory.ErrFull), []error{inventory.ErrFull}},
		{inventory.ErrStopped, []error{inventory.ErrStopped}},
		{&fs.PathError{Op: "open", Path: "x", Err: fs.ErrPermission}, []error{fs.ErrPermission}},
		{fs.ErrClosed, []error{fs.ErrClosed}},
		{context.Canceled, []error{context.Canceled}},
		{context.DeadlineExceeded, []error{context.DeadlineExceeded}},
		{fmt.Errorf("%w and %w", inventory.ErrCorrupt, fs.ErrPermission), []error{inventory.ErrCorrupt, fs.ErrPermission}},
		{invalid, nil},
		{errors.New("something else"), nil},
	}
	for _, tt := range tests {
		s, _, stop := serveFake(t, &fake{apply: func(inventory.Change) error { return tt.err }}, time.Minute)
		got := s.Apply(t.Context(), someChange())
		if got == nil || got.Error() != tt.err.Error() {
			t.Errorf("got %v, want %v", got, tt.err)
		}
		for _, want := range tt.want {
			if !errors.Is(got, want) {
				t.Errorf("%v does not wrap %v", got, want)
			}
		}
		for _, other := range tests {
			if errors.Is(got, other.err) && !errors.Is(tt.err, other.err) {
				t.Errorf("%v wraps %v", got, other.err)
			}
		}
		c, isConflict := errors.AsType[*inventory.ConflictError](got)
		if _, want := errors.AsType[*inventory.ConflictError](tt.err); isConflict != want || isConflict && *c != *conflict {
			t.Errorf("conflict %+v of %v", c, tt.err)
		}
		i, isInvalid := errors.AsType[*inventory.InvalidError](got)
		if _, want := errors.AsType[*inventory.InvalidError](tt.err); isInvalid != want || isInvalid && *i != *invalid {
			t.Errorf("invalid %+v of %v", i, tt.err)
		}
		stop()
	}
	s, _, _ := serveFake(t, &fake{}, time.Minute)
	err := s.Read(t.Context(), func(r inventory.Reader) error {
		_, err := r.Device("nobody")
		if !errors.Is(err, inventory.ErrNotFound) {
			t.Errorf("in a reading: %v", err)
		}
		for _, err := range r.Profiles() {
			if !errors.Is(err, inventory.ErrCorrupt) {
				t.Errorf("in a sequence: %v", err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A reading that cannot be begun says why.
func TestReadRefused(t *testing.T) {
	f := &fake{}
	s, _, _ := serveFake(t, f, time.Minute)
	f.read = inventory.ErrStopped
	if err := s.Read(t.Context(), func(inventory.Reader) error { return nil }); !errors.Is(err, inventory.ErrStopped) {
		t.Errorf("got %v", err)
	}
}

// A reading in which nothing is asked ends, and says so to whoever asks then.
func TestIdle(t *testing.T) {
	f := &fake{devices: 600}
	s, _, _ := serveFake(t, f, 200*time.Millisecond)
	err := s.Read(t.Context(), func(r inventory.Reader) error {
		until(t, "the end of a reading in which nothing is asked", func() bool { return f.reading.Load() == 0 })
		for range 2 {
			if _, err := r.Key(inventory.SPKI{}); err == nil || !strings.Contains(err.Error(), "nothing was asked for 200ms") {
				t.Errorf("a question too late: %v", err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A client that does not take what it has asked for does not hold the store either.
func TestFullPipe(t *testing.T) {
	f := &fake{devices: 1 << 30}
	_, path, _ := serveFake(t, f, 200*time.Millisecond)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ask := []byte(remote.Hello)
	ask = append(ask, remote.Frame('r', nil)...)
	ask = append(ask, remote.Frame('D', []byte("{}"))...)
	for range 1000 {
		ask = append(ask, remote.Frame('n', []byte{0, 0, 0, 1})...)
	}
	_, _ = c.Write(ask) // until it is hung up on
	until(t, "the end of a reading whose answers are not taken", func() bool { return f.reads.Load() > 1 && f.reading.Load() == 0 })
}

// A server that stops answers the change that it has, and ends what only waits.
func TestStop(t *testing.T) {
	arrived, finish := make(chan struct{}), make(chan struct{})
	f := &fake{devices: 600, apply: func(inventory.Change) error {
		close(arrived)
		<-finish
		return nil
	}}
	s, _, stop := serveFake(t, f, time.Hour)
	applied := make(chan error, 1)
	go func() { applied <- s.Apply(context.Background(), someChange()) }()
	<-arrived
	stopped := make(chan struct{})
	err := s.Read(t.Context(), func(r inventory.Reader) error {
		go func() { stop(); close(stopped) }()
		until(t, "the end of the reading", func() bool { return f.reading.Load() == 0 })
		_, err := r.Device("x")
		if err == nil || errors.Is(err, inventory.ErrNotFound) || !strings.Contains(err.Error(), "the server is stopping") {
			t.Errorf("a question to a server that stops: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	close(finish)
	if err := <-applied; err != nil {
		t.Errorf("the change was made, and Apply says %v", err)
	}
	<-stopped
	if err := s.Apply(t.Context(), someChange()); !errors.Is(err, remote.ErrNoServer) {
		t.Errorf("when the server has stopped: %v", err)
	}
}

// A server that dies before it answers leaves it open whether the change has landed.
func TestApplyUnanswered(t *testing.T) {
	s, socket, stop := serveFake(t, &fake{}, time.Hour)
	stop()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	heard := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = c.Write([]byte(remote.Hello))
		}
		var got []byte
		for b := make([]byte, 1); err == nil && !bytes.HasSuffix(got, remote.Frame('.', nil)); got = append(got, b...) {
			_, err = c.Read(b)
		}
		heard <- errors.Join(err, c.Close())
	}()
	err = s.Apply(t.Context(), someChange())
	if err == nil || !strings.Contains(err.Error(), "not known whether the change was made") {
		t.Errorf("got %v", err)
	}
	if err := <-heard; err != nil {
		t.Error(err)
	}
}

// A change that the server refuses before it has come whole is refused with its
// reason, not with that of the connection.
func TestRefusedHalfWay(t *testing.T) {
	f := &fake{}
	got := remote.Converse(t.Context(), f, remote.Extra{}, append(append([]byte(remote.Hello), remote.Frame('A', nil)...), remote.Frame('D', nil)...))
	if want := string(remote.Frame('!', remote.EncodeFault(errors.New("a change is one event and its records")))); string(got) != remote.Hello+want {
		t.Errorf("got %q", got)
	}
	// Half a change is none.
	change := append([]byte(remote.Hello), remote.Frame('A', nil)...)
	e := someChange().Event
	b, err := e.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	applied := false
	f.apply = func(inventory.Change) error { applied = true; return nil }
	remote.Converse(t.Context(), f, remote.Extra{}, append(change, remote.Frame('E', b)...))
	if applied {
		t.Error("half a change was applied")
	}
	remote.Converse(t.Context(), f, remote.Extra{}, append(append(change, remote.Frame('E', b)...), remote.Frame('.', nil)...))
	if !applied {
		t.Error("a whole change was not")
	}
}

// What a store cannot do is refused, not done in part.
func TestNoExtra(t *testing.T) {
	s, _, _ := serveFake(t, &fake{}, time.Hour)
	var report struct{}
	if err := s.Check(t.Context(), &report); err == nil || err.Error() != "the store cannot be checked" {
		t.Errorf("Check: %v", err)
	}
	if err := s.Backup(t.Context(), &strings.Builder{}); err == nil || err.Error() != "the store makes no backups" {
		t.Errorf("Backup: %v", err)
	}
}

func TestFaults(t *testing.T) {
	err := &inventory.ConflictError{Why: inventory.BadTransition, Record: "r", Detail: "d"}
	got, ok := errors.AsType[*inventory.ConflictError](remote.DecodeFault(remote.EncodeFault(err)))
	if !ok || !reflect.DeepEqual(got, err) {
		t.Errorf("got %+v, want %+v", got, err)
	}
	for _, b := range []string{"", "{", `{"kinds":["nonsense"]}`, "null"} {
		if err := remote.DecodeFault([]byte(b)); err == nil {
			t.Errorf("%q is no error", b)
		}
	}
	long := remote.EncodeFault(errors.New(strings.Repeat("x", 2<<20)))
	if len(long) > remote.MaxFrame {
		t.Errorf("an error of %d octets", len(long))
	}
}
