package enroll_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
)

// An outbox keeps in memory what is staged and what was let out, and fails on
// demand.
type outbox struct {
	mu       sync.Mutex
	staged   int
	discards int
	out      map[inventory.DeviceID][]*enroll.Enrollment

	failStage, failRelease func(n int) error // n counts from 1
	releases               int
}

type batch struct {
	o     *outbox
	items []*enroll.Enrollment
}

func (o *outbox) Stage(_ context.Context, items []*enroll.Enrollment) (enroll.Staged, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.staged++; o.failStage != nil {
		if err := o.failStage(o.staged); err != nil {
			return nil, err
		}
	}
	return &batch{o, items}, nil
}

func (b *batch) Release() error {
	b.o.mu.Lock()
	defer b.o.mu.Unlock()
	if b.o.releases++; b.o.failRelease != nil {
		if err := b.o.failRelease(b.o.releases); err != nil {
			return err
		}
	}
	if b.o.out == nil {
		b.o.out = map[inventory.DeviceID][]*enroll.Enrollment{}
	}
	for _, e := range b.items {
		b.o.out[e.Device.ID] = append(b.o.out[e.Device.ID], e)
	}
	return nil
}

func (b *batch) Discard() error {
	b.o.mu.Lock()
	defer b.o.mu.Unlock()
	b.o.discards++
	return nil
}

// rows makes a job of devices with these ids.
func rows(ids ...string) func() iter.Seq2[enroll.Row, error] {
	return func() iter.Seq2[enroll.Row, error] {
		return func(yield func(enroll.Row, error) bool) {
			for i, id := range ids {
				row := enroll.Row{Line: i + 2, Device: inventory.Device{ID: inventory.DeviceID(id), Profile: "default"}}
				if !yield(row, nil) {
					return
				}
			}
		}
	}
}

func numbered(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("dev-%05d", i)
	}
	return ids
}

// complete checks that each device has one certificate, and that what it was handed
// is that one.
func (o *outbox) complete(t *testing.T, b *bench, ids []string) {
	t.Helper()
	for _, id := range ids {
		_, creds := b.facts(id)
		out := o.out[inventory.DeviceID(id)]
		if len(creds) != 2 || len(out) != 1 || string(out[0].Certificate.DER) != string(creds[0].Certificate.DER) {
			t.Fatalf("%s: %d credentials, handed out %d times", id, len(creds), len(out))
		}
	}
}

func TestBootstrap(t *testing.T) {
	b := newBench(t, "dev-00007") // known, without credentials
	o := &outbox{}
	ids := numbered(1500)
	var last int
	var mu sync.Mutex
	job := enroll.Bulk{Actor: "test", Rows: rows(ids...), Out: o, Progress: func(done, total int) {
		mu.Lock()
		defer mu.Unlock()
		if total != 1500 {
			t.Errorf("progress of %d rows", total)
		}
		last = max(last, done)
	}}
	result, err := b.Bootstrap(t.Context(), job)
	if err != nil || result != (enroll.BulkResult{Issued: 1500}) || last != 1500 {
		t.Fatalf("%+v, %v, progress up to %d", result, err, last)
	}
	o.complete(t, b, ids)
	before := b.revision()
	if result, err = b.Bootstrap(t.Context(), job); err != nil || result != (enroll.BulkResult{Unchanged: 1500}) || b.revision() != before {
		t.Errorf("again: %+v, %v, %d changes", result, err, b.revision()-before)
	}
}

// TestBootstrapFaults fails at every place where a batch can fail. What was let out
// is on record, and a second run completes the job.
func TestBootstrapFaults(t *testing.T) {
	broken := errors.New("broken")
	third := func(n int) error {
		if n == 3 {
			return broken
		}
		return nil
	}
	for name, fault := range map[string]func(*bench, *outbox){
		"stage":   func(_ *bench, o *outbox) { o.failStage = third },
		"release": func(_ *bench, o *outbox) { o.failRelease = third },
		"apply": func(b *bench, _ *outbox) {
			var n atomic.Int64 // batches are applied by several at once
			b.store.fail(func(inventory.Change) error { return third(int(n.Add(1))) }, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			o := &outbox{}
			ids := numbered(3000)
			fault(b, o)
			if _, err := b.Bootstrap(t.Context(), enroll.Bulk{Actor: "test", Rows: rows(ids...), Out: o}); !errors.Is(err, broken) {
				t.Fatalf("%v, want the fault", err)
			}
			o.failStage, o.failRelease = nil, nil
			b.store.fail(nil, nil)
			for id, out := range o.out {
				if _, creds := b.facts(string(id)); len(creds) != 2 || string(out[0].Certificate.DER) != string(creds[0].Certificate.DER) {
					t.Fatalf("%s was let out and is not on record", id)
				}
			}
			result, err := b.Bootstrap(t.Context(), enroll.Bulk{Actor: "test", Rows: rows(ids...), Out: o})
			if err != nil || result.Issued+result.Unchanged != 3000 || result.Unchanged == 0 {
				t.Errorf("the second run: %+v, %v", result, err)
			}
			if name == "apply" && o.discards == 0 {
				t.Error("the batch that was not recorded is still staged")
			}
		})
	}
}

func TestBootstrapCancelled(t *testing.T) {
	b := newBench(t)
	o := &outbox{}
	ids := numbered(3000)
	ctx, cancel := context.WithCancel(t.Context())
	o.failStage = func(int) error { cancel(); return nil }
	if _, err := b.Bootstrap(ctx, enroll.Bulk{Actor: "test", Rows: rows(ids...), Out: o}); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want %v", err, context.Canceled)
	}
	o.failStage = nil
	if _, err := b.Bootstrap(t.Context(), enroll.Bulk{Actor: "test", Rows: rows(ids...), Out: o}); err != nil {
		t.Fatal(err)
	}
	o.complete(t, b, ids)
}

// TestBootstrapRejects: one bad row and nothing is done, unless Partial is set.
func TestBootstrapRejects(t *testing.T) {
	ids := numbered(100)
	ids[60], ids[90] = "DEV-00003", "dev-00004" // twins of lines 5 and 6
	ids[50] = "admin"
	b := newBench(t)
	for _, partial := range []bool{false, true} {
		o := &outbox{}
		bad := map[int]bool{}
		result, err := b.Bootstrap(t.Context(), enroll.Bulk{Actor: "test", Rows: rows(ids...), Out: o, Partial: partial, Rejected: func(e *enroll.RowError) { bad[e.Line] = true }})
		if len(bad) != 3 || !bad[52] || !bad[62] || !bad[92] {
			t.Errorf("refused lines %v, want 52, 62 and 92", bad)
		}
		switch {
		case !partial && (!errors.Is(err, enroll.ErrRejected) || result.Issued != 0 || o.staged != 0):
			t.Errorf("%+v, %v; %d batches were staged", result, err, o.staged)
		case partial && (err != nil || result != (enroll.BulkResult{Issued: 97, Rejected: 3})):
			t.Errorf("partial: %+v, %v", result, err)
		}
	}
	// A device in a state that allows nothing, and one with another key.
	if _, err := b.Suspend(t.Context(), "test", "", "dev-00001"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Bootstrap(t.Context(), enroll.Bulk{Actor: "test", Rows: rows("dev-00001"), Out: &outbox{}}); !errors.Is(err, enroll.ErrRejected) {
		t.Errorf("a suspended device: %v", err)
	}
}

// TestBootstrapCSR: devices that bring their keys; a key that comes twice is found
// before anything is issued.
func TestBootstrapCSR(t *testing.T) {
	b := newBench(t)
	key := catest.Key(t, ca.P256)
	job := func(twice bool) func() iter.Seq2[enroll.Row, error] {
		a, c := catest.CSR(t, key, "dev-a"), catest.CSR(t, catest.Key(t, ca.P256), "dev-c")
		if twice {
			c = catest.CSR(t, key, "dev-c")
		}
		return func() iter.Seq2[enroll.Row, error] {
			return func(yield func(enroll.Row, error) bool) {
				for i, row := range []enroll.Row{
					{Device: inventory.Device{ID: "dev-a", Profile: "quiet"}, CSR: a},
					{Device: inventory.Device{ID: "dev-b", Profile: "quiet"}},
					{Device: inventory.Device{ID: "dev-c", Profile: "quiet"}, CSR: c},
				} {
					row.Line = i + 2
					if !yield(row, nil) {
						return
					}
				}
			}
		}
	}
	var refused *enroll.RowError
	_, err := b.Bootstrap(t.Context(), enroll.Bulk{Actor: "test", Rows: job(true), Out: &outbox{}, Rejected: func(e *enroll.RowError) { refused = e }})
	if !errors.Is(err, enroll.ErrRejected) || refused == nil || refused.Line != 4 || !errors.Is(refused, inventory.ErrConflict) {
		t.Errorf("one key in two requests: %v, %v", err, refused)
	}
	o := &outbox{}
	result, err := b.Bootstrap(t.Context(), enroll.Bulk{Actor: "test", Rows: job(false), Out: o})
	if err != nil || result.Issued != 3 {
		t.Fatalf("%+v, %v", result, err)
	}
	if e := o.out["dev-a"][0]; !e.Key.IsZero() || !e.Password.IsZero() {
		t.Error("a device that has its key, and no password, is handed one")
	}
	if e := o.out["dev-b"][0]; e.Key.IsZero() {
		t.Error("dev-b has no key")
	}
}

// TestDuplicates: whatever the length of a run, the lines of equal keys are found,
// and no others.
func TestDuplicates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.SliceOf(rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"})).Draw(t, "keys")
		got, err := enroll.Candidates(rapid.IntRange(1, 8).Draw(t, "length"), keys)
		if err != nil {
			t.Fatal(err)
		}
		lines := map[string][]int{}
		for i, key := range keys {
			lines[key] = append(lines[key], i+1)
		}
		want := 0
		for _, l := range lines {
			if len(l) > 1 {
				want++
			}
		}
		for _, group := range got {
			if !slices.Equal(group, lines[keys[group[0]-1]]) {
				t.Fatalf("lines %v, want %v", group, lines[keys[group[0]-1]])
			}
		}
		if len(got) != want {
			t.Fatalf("%d groups, want %d", len(got), want)
		}
	})
}
