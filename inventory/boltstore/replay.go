package boltstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// ErrRecover reports that a store cannot be opened for reading because its
// journal is ahead of its database, after a crash or a restore. Opening it for
// writing once puts that right.
var ErrRecover = errors.New("inventory must be opened for writing once")

// openJournal opens the journal and applies what the database does not have.
func (s *Store) openJournal(ctx context.Context, h head) error {
	flag := os.O_RDWR
	if s.cfg.ReadOnly {
		flag = os.O_RDONLY
	}
	j, err := openJournal(s.file(journalFile), derive(s.cfg.Key, "journal"), s.cfg.Instance, flag)
	if err != nil {
		return err
	}
	s.journal = j
	from := h.journal
	known, err := j.knows(from)
	if err != nil {
		return err
	}
	if !known {
		return damaged("journal", "it does not hold what the database was last written with")
	}
	r := newReplay()
	end, size, err := j.read(from, r.add)
	if err != nil {
		return err
	}
	if s.cfg.ReadOnly {
		if end != from {
			return ErrRecover
		}
		return nil
	}
	if end.offset < size {
		if err := j.cut(end); err != nil {
			return err
		}
	}
	j.end = end
	if end == from {
		return nil
	}
	c := r.change(time.Now())
	if err := s.apply(ctx, c); err != nil {
		return fmt.Errorf("replaying journal: %w", err)
	}
	return nil
}

// A replay collects journal records.
type replay struct{ n int }

func newReplay() *replay { return &replay{} }

func (r *replay) add(journalRecord) error { r.n++; return nil }

func (r *replay) change(now time.Time) change {
	return change{replayed: true, Change: inventory.Change{Event: inventory.Event{
		Time: inventory.UTC(now), Actor: "imprint", Action: "journal.replay",
	}}}
}
