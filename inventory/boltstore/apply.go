package boltstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/imprint-iot/imprint/inventory"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// maxBatch bounds how many changes share a commit, and so how long the first of
// them waits for the last.
const maxBatch = 512

// A write is a call of Apply in the queue.
type write struct {
	change change
	err    error
	turn   chan bool // true: lead the next commit; false: done
}

// Apply implements [inventory.Store]. Calls that arrive while a commit is under
// way share the next one, and so its fsync; a lone call does not wait.
//
// Once queued, a change is waited for even if ctx ends: "canceled" would be a
// lie about a change that lands.
func (s *Store) Apply(ctx context.Context, c inventory.Change) error {
	return s.apply(ctx, change{Change: c})
}

func (s *Store) apply(ctx context.Context, c change) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.cfg.ReadOnly {
		return fmt.Errorf("changing an inventory opened for reading: %w", fs.ErrPermission)
	}
	if err := c.Validate(); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.calls.Done()

	w := &write{change: c, turn: make(chan bool, 1)}
	s.mu.Lock()
	s.queue = append(s.queue, w)
	lead := !s.leading
	s.leading = true
	s.mu.Unlock()
	if lead || <-w.turn {
		s.lead(w)
	}
	return w.err
}

// lead commits the batch that starts with first, tells the others, and hands
// over to the first of those who came meanwhile: nobody works for others longer
// than for itself.
func (s *Store) lead(first *write) {
	s.mu.Lock()
	n := min(len(s.queue), maxBatch)
	batch := s.queue[:n:n]
	s.queue = s.queue[n:]
	s.mu.Unlock()

	s.commit(batch)

	s.mu.Lock()
	var next *write
	if len(s.queue) > 0 {
		next = s.queue[0]
	} else {
		s.queue, s.leading = nil, false
	}
	s.mu.Unlock()
	if next != nil {
		next.turn <- true
	}
	for _, w := range batch {
		if w != first {
			w.turn <- false
		}
	}
}

// commit writes a batch in one transaction. A change that is refused is refused
// alone; the rest go on.
//
// If the disk fails, so do all of the batch, also those refused: they may have
// been refused because of a change that did not land. A full disk is reported
// and forgotten; after any other failure the store writes nothing more.
func (s *Store) commit(batch []*write) {
	err := s.stopped
	if err == nil {
		if err = s.write(batch); err == nil {
			return
		}
	}
	for _, w := range batch {
		w.err = err
	}
}

// write sets the error of each refused change. Its own error is the fate of the
// whole batch.
func (s *Store) write(batch []*write) error {
	seal := s.sealers.Get().(*sealer)
	defer s.sealers.Put(seal)
	before := s.journal.end
	accepted := 0
	var written *plan
	err := guard(func() error {
		return s.db.Update(func(tx *bolt.Tx) error {
			b := tx.Bucket([]byte(bucketName))
			if b == nil {
				return damaged("database", "it has no records")
			}
			p, err := newPlan(newChain(b, seal))
			if err != nil {
				return err
			}
			commit := journalRecord{kind: journalCommit, revision: p.head.revision}
			for _, w := range batch {
				if w.err = p.add(w.change); w.err == nil {
					accepted++
				}
			}
			if accepted == 0 {
				return errNothing
			}
			if len(p.journal) > 0 {
				if err := s.journal.append(append([]journalRecord{commit}, p.journal...)); err != nil {
					return err
				}
			}
			p.head.journal = s.journal.end
			written = p
			return p.flush(b, seal)
		})
	})
	if errors.Is(err, errNothing) {
		return nil
	}
	if err == nil {
		return s.verify(written)
	}
	if !s.full(err) {
		s.stopped = fmt.Errorf("%w: %w", inventory.ErrStopped, err)
		return s.stopped
	}
	// The journal may be ahead of the database only after a crash.
	if s.journal.end != before {
		if err := s.journal.cut(before); err != nil {
			s.stopped = fmt.Errorf("%w: %w", inventory.ErrStopped, err)
			return s.stopped
		}
	}
	return fmt.Errorf("%w: %w", inventory.ErrFull, err)
}

// verify looks whether what was committed can be found. If it cannot the file is damaged,
// and nothing more is written to it.
func (s *Store) verify(p *plan) error {
	err := guard(func() error {
		return s.db.View(func(tx *bolt.Tx) error {
			b := tx.Bucket([]byte(bucketName))
			if b == nil {
				return damaged("database", "it has no records")
			}
			return p.inPlace(b)
		})
	})
	if err != nil {
		s.stopped = fmt.Errorf("%w: %w", inventory.ErrStopped, err)
		return s.stopped
	}
	return nil
}

// errNothing ends a transaction in which nothing is to be written.
var errNothing = errors.New("nothing to write")

// full reports whether err says that there is no room, of a write that can be
// done again. The same number from fsync says that pages written earlier are
// lost.
func (s *Store) full(err error) bool {
	if errors.Is(err, errSync) {
		return false
	}
	// bbolt hides the number when the file cannot be made longer, before it has
	// written anything.
	if text := err.Error(); strings.HasPrefix(text, "file resize error: truncate ") {
		return strings.HasSuffix(text, unix.ENOSPC.Error()) || strings.HasSuffix(text, unix.EDQUOT.Error()) || strings.HasSuffix(text, unix.EFBIG.Error())
	}
	var path *fs.PathError
	if !errors.As(err, &path) || path.Op == "sync" {
		return false
	}
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}
