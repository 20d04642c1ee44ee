package enroll

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// A Row is one device of a bulk job.
type Row struct {
	Line   int              // in the file, counted from 1
	Device inventory.Device // ID, HardwareSerial, Profile, Group and Labels; the rest is set here
	CSR    []byte           // PKCS #10, DER or PEM; empty: imprint makes the key
	Err    error            // why the row cannot be read; then only Line counts
}

// An Outbox keeps what devices are handed, on its way from memory to the
// operator.
type Outbox interface {
	// Stage makes a batch durable without letting anyone see it.
	Stage(ctx context.Context, batch []*Enrollment) (Staged, error)
}

// A Staged batch is waiting for the inventory. One of the methods is called,
// once. If the process dies first, the Outbox finds out for itself, the next
// time it is opened, whether the inventory has the batch.
type Staged interface {
	Release() error // the inventory has it: let it out
	Discard() error // the inventory has it not: forget it
}

// A Bulk is a bootstrap job. Actor, Rows and Out must be set.
type Bulk struct {
	Actor  string
	Reason string

	// Rows reads the job from its first row on. It is called more than once, and
	// must give the same rows each time.
	Rows func() iter.Seq2[Row, error]

	Out Outbox

	// Partial goes on without the rows that cannot be done. Otherwise one such
	// row means that nothing is done.
	Partial bool

	Rejected func(*RowError)       // is told of each bad row; may be nil
	Progress func(done, total int) // is told of rows, now and then, from any goroutine; may be nil
}

// A BulkResult counts rows.
type BulkResult struct {
	Issued    int `json:"issued"`    // got a certificate
	Unchanged int `json:"unchanged"` // had one already
	Rejected  int `json:"rejected"`
}

// ErrRejected reports that a job has rows that cannot be done, so that nothing
// was done.
var ErrRejected = errors.New("nothing was issued")

const (
	// batchSize is how many devices share a change, an audit entry and a staged
	// file. It is a compromise between the cost of an fsync and the memory of
	// all batches under way.
	batchSize = 512

	// maxRejected bounds what is remembered of bad rows.
	maxRejected = 10000
)

// Bootstrap enrolls all devices of a job that have no certificate yet.
//
// All rows are checked before the first certificate is issued. The job can be
// interrupted at any moment and given again: a device that has got its
// certificate is not given another, and what it was handed is not lost. Memory
// does not grow with the number of rows.
//
// The error wraps [ErrRejected] if rows were refused and Partial is not set.
func (r *Registrar) Bootstrap(ctx context.Context, job Bulk) (BulkResult, error) {
	b := &bulk{r: r, job: job, bad: map[int]bool{}}
	if err := b.check(ctx); err != nil {
		return b.result(), err
	}
	if n := len(b.bad); n > 0 && !job.Partial {
		return b.result(), fmt.Errorf("%d of %d rows cannot be done: %w", n, b.total, ErrRejected)
	}
	err := b.run(ctx)
	return b.result(), err
}

// bulk is a job under way.
type bulk struct {
	r     *Registrar
	job   Bulk
	total int
	done  atomic.Int64

	issued, unchanged atomic.Int64

	mu  sync.Mutex
	bad map[int]bool // lines that were refused
}

func (b *bulk) result() BulkResult {
	b.mu.Lock()
	defer b.mu.Unlock()
	return BulkResult{Issued: int(b.issued.Load()), Unchanged: int(b.unchanged.Load()), Rejected: len(b.bad)}
}

// reject notes a bad row. The error is not nil when there are too many to go on.
func (b *bulk) reject(row Row, err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bad[row.Line] {
		return nil
	}
	b.bad[row.Line] = true
	if b.job.Rejected != nil {
		b.job.Rejected(&RowError{Line: row.Line, Device: string(row.Device.ID), Err: err})
	}
	if len(b.bad) > maxRejected {
		return fmt.Errorf("more than %d rows cannot be done: %w", maxRejected, ErrRejected)
	}
	return nil
}

// batches yields the rows of the job in batches of at most n. Rows that cannot be
// read are in no batch.
func (b *bulk) batches(n int) iter.Seq2[[]Row, error] {
	return func(yield func([]Row, error) bool) {
		batch := make([]Row, 0, n)
		for row, err := range b.job.Rows() {
			if err != nil {
				yield(nil, err)
				return
			}
			if batch = append(batch, row); len(batch) < n {
				continue
			}
			if !yield(batch, nil) {
				return
			}
			batch = make([]Row, 0, n)
		}
		if len(batch) > 0 {
			yield(batch, nil)
		}
	}
}

// check goes through all rows without changing anything.
func (b *bulk) check(ctx context.Context) error {
	seen := newDuplicates()
	defer seen.close()
	for batch, err := range b.batches(1024) {
		if err != nil {
			return err
		}
		b.total += len(batch)
		if err := b.checkBatch(ctx, batch, seen); err != nil {
			return err
		}
	}
	return b.rejectDuplicates(seen)
}

func (b *bulk) checkBatch(ctx context.Context, batch []Row, seen *duplicates) error {
	plans, err := b.plan(ctx, batch)
	if err != nil {
		return err
	}
	for i, p := range plans {
		row := batch[i]
		if p.err == nil && !p.unchanged {
			p.err = b.checkRow(ctx, row, p.facts, seen)
		}
		if p.err != nil {
			if err := b.reject(row, p.err); err != nil {
				return err
			}
			continue
		}
		if err := seen.add(idKey(row.Device.ID), row.Line); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// checkRow makes sure that issuing will not fail for a reason that can be known
// now.
func (b *bulk) checkRow(ctx context.Context, row Row, f *facts, seen *duplicates) error {
	if _, err := RightsOf(f.rule.profile, f.device); err != nil {
		return err
	}
	if len(row.CSR) == 0 {
		return nil
	}
	key, err := b.r.keyFor(ctx, f, row.CSR)
	if err != nil {
		return err
	}
	return seen.add(inventory.SPKI(key.request.SPKI).String(), row.Line)
}

// A plan is what is to be done for one row.
type plan struct {
	facts     *facts
	unchanged bool
	err       error
}

// plan decides for each row, at one moment, whether it can be done and whether
// it has been done.
func (b *bulk) plan(ctx context.Context, batch []Row) ([]plan, error) {
	now := b.r.now()
	plans := make([]plan, len(batch))
	err := b.r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		x, err := b.r.at(in)
		if err != nil {
			return err
		}
		for i, row := range batch {
			plans[i], err = x.plan(row, now)
			if err != nil {
				return err
			}
		}
		return nil
	})
	return plans, err
}

// plan tells a fault of the row, which is in the plan, from a fault of the
// inventory, which is the error.
func (x *reading) plan(row Row, now time.Time) (plan, error) {
	if row.Err != nil {
		return plan{err: row.Err}, nil
	}
	want := row.Device
	want.Kind, want.State, want.Created, want.Updated, want.Revision = inventory.Equipment, inventory.Registered, now, now, 0
	if err := want.Validate(); err != nil {
		return plan{err: err}, nil
	}
	have, err := x.in.Device(want.ID)
	switch {
	case errors.Is(err, inventory.ErrNotFound):
		have = want
	case err != nil:
		return plan{}, err
	}
	if err := sameDevice(have, want); err != nil {
		return plan{err: err}, nil
	}
	if _, ok := x.profiles[have.Profile]; !ok {
		return plan{err: fmt.Errorf("profile %q: %w", have.Profile, inventory.ErrNotFound)}, nil
	}
	f, err := x.facts(have)
	if err != nil {
		return plan{}, err
	}
	if err := f.mayEnroll(); err != nil {
		return plan{err: err}, nil
	}
	return plan{facts: f, unchanged: f.certified(now)}, nil
}

// sameDevice refuses a row that says something else of a device than the
// inventory. A bulk job brings devices in; it does not change them, because that
// would change their rights.
func sameDevice(have, want inventory.Device) error {
	differs := func(what, a, b string) error {
		return &inventory.ConflictError{Why: inventory.Exists, Record: "device " + string(have.ID), Detail: fmt.Sprintf("with %s %q, not %q", what, a, b)}
	}
	switch {
	case have.ID != want.ID:
		return differs("id", string(have.ID), string(want.ID))
	case have.Kind != want.Kind:
		return &inventory.ConflictError{Why: inventory.Exists, Record: "device " + string(have.ID), Detail: "as a server"}
	case want.HardwareSerial != "" && have.HardwareSerial != want.HardwareSerial:
		return differs("serial", have.HardwareSerial, want.HardwareSerial)
	case have.Profile != want.Profile:
		return differs("profile", have.Profile, want.Profile)
	case want.Group != "" && have.Group != want.Group:
		return differs("group", have.Group, want.Group)
	}
	for _, l := range want.Labels {
		if v, _ := have.Labels.Get(l.Key); v != l.Value {
			return differs("label "+l.Key, v, l.Value)
		}
	}
	return nil
}

// run issues. Each worker carries a batch from the first row to the released
// bundle, so that while one waits for the disk the others compute.
func (b *bulk) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan []Row)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) + 2 {
		workers.Go(func() {
			for batch := range work {
				if err := b.issueBatch(ctx, batch); err != nil {
					cancel(err)
				}
			}
		})
	}
	err := b.feed(ctx, work)
	close(work)
	workers.Wait()
	if err != nil {
		return err
	}
	return context.Cause(ctx)
}

func (b *bulk) feed(ctx context.Context, work chan<- []Row) error {
	for batch, err := range b.batches(batchSize) {
		if err != nil {
			return err
		}
		select {
		case work <- b.good(batch):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// good drops the rows that were refused.
func (b *bulk) good(batch []Row) []Row {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(batch, func(row Row) bool { return b.bad[row.Line] })
}

// issueBatch issues to the devices of a batch with one change. If the change is
// refused because of one of them, each gets a change of its own.
func (b *bulk) issueBatch(ctx context.Context, batch []Row) error {
	err := b.issueTogether(ctx, batch)
	if errors.Is(err, inventory.ErrConflict) && len(batch) > 1 {
		for i := range batch {
			if err := b.issueBatch(ctx, batch[i:i+1]); err != nil {
				return err
			}
		}
		return nil
	}
	if errors.Is(err, inventory.ErrConflict) && b.job.Partial {
		return b.reject(batch[0], err)
	}
	if err == nil && b.job.Progress != nil {
		b.job.Progress(int(b.done.Add(int64(len(batch)))), b.total)
	}
	return err
}

func (b *bulk) issueTogether(ctx context.Context, batch []Row) error {
	made, unchanged, err := b.make(ctx, batch)
	if err != nil {
		return err
	}
	if len(made) == 0 {
		b.unchanged.Add(int64(unchanged))
		return nil
	}
	c := inventory.Change{Event: b.r.event(b.job.Actor, "device.bootstrap", b.job.Reason)}
	out := make([]*Enrollment, len(made))
	for i, m := range made {
		m.addTo(&c)
		out[i] = &m.Enrollment
	}
	if err := b.r.record(ctx, c, b.job.Out, out...); err != nil {
		return err
	}
	b.issued.Add(int64(len(made)))
	b.unchanged.Add(int64(unchanged))
	return nil
}

// make issues, in memory, to those devices of a batch that have no certificate.
func (b *bulk) make(ctx context.Context, batch []Row) (made []*issued, unchanged int, err error) {
	plans, err := b.plan(ctx, batch)
	if err != nil {
		return nil, 0, err
	}
	now := b.r.now()
	for i, p := range plans {
		switch {
		case p.err != nil:
			return nil, 0, &RowError{Line: batch[i].Line, Device: string(batch[i].Device.ID), Err: p.err}
		case p.unchanged:
			unchanged++
			continue
		}
		key, err := b.r.keyFor(ctx, p.facts, batch[i].CSR)
		if err != nil {
			return nil, 0, &RowError{Line: batch[i].Line, Device: string(batch[i].Device.ID), Err: err}
		}
		issuer, err := b.r.open(ctx, p.facts.issuer)
		if err != nil {
			return nil, 0, err
		}
		m, err := b.r.issue(p.facts, issuer, key, now)
		if err != nil {
			return nil, 0, err
		}
		made = append(made, m)
	}
	return made, unchanged, nil
}
