// Package boltstore keeps an inventory in one bbolt file: the store of a single
// server or a command line.
//
// A fleet directory holds three files of it: inventory.db, the database;
// journal, what a restore must not undo; and lock, held while the store is open.
//
// The database is only as trustworthy as its pages, which bbolt does not
// protect. So each value carries a MAC that also names its neighbour, with a key
// that is kept elsewhere: whoever changes, removes or adds a record without the
// key, be it a person or a worn-out disk, makes every read that passes there fail
// with [inventory.ErrCorrupt]. No read returns a doubtful record, and none says
// "not found" unless that is proved.
//
// A restore ends all enrollment and API tokens, because it does not know which were
// used or revoked since the backup: see [Restore]. A database that was put back by
// hand is treated so where the journal shows it; one that lost its last commit in a
// crash is not, and keeps its tokens.
//
// A database is bound to its fleet by an instance ID. It survives kill -9 and
// power cuts at any moment; after a failed fsync it writes nothing more until it
// is opened again.
package boltstore

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"

	bolt "go.etcd.io/bbolt"
)

// The files of a store in its directory.
const (
	databaseFile = "inventory.db"
	journalFile  = "journal"
	lockFile     = "lock"
)

// A Config says which store to open.
type Config struct {
	// Dir is the fleet directory. It stays open as long as the store.
	Dir *durable.Dir

	// Instance is the ID of the fleet. A database with another one is refused
	// with [inventory.ErrForeign].
	Instance [16]byte

	// Key is the key of all MACs. It is kept apart from the directory's database
	// and its backups. Zero is refused.
	Key [32]byte

	// Create makes a new store, where there must be none. Without it there must
	// be one, with at least its first change.
	Create bool

	// ReadOnly opens the store for reading. Several processes can read at a time,
	// but not while one writes.
	ReadOnly bool

	// Mapped is how much of the database may stay mapped into the process, in
	// bytes. Zero means 32 MiB, for a command that reads all of a large fleet once;
	// a server, which looks at the same pages again and again, sets a negative
	// number, which is no limit.
	Mapped int64

	// Wait is how long to wait for another process. Zero means 2 s.
	Wait time.Duration

	// merge accepts a journal that went another way than the database, as a
	// restore may meet it: all of it is applied again.
	merge bool
}

// A Store is an [inventory.Store] in a file.
type Store struct {
	cfg     Config
	db      *bolt.DB
	lock    *durable.Lock
	sealers sync.Pool // of *sealer
	journal *journal  // of the leader; nil if read-only

	mu      sync.Mutex
	queue   []*write
	leading bool
	closed  bool
	calls   sync.WaitGroup // calls under way

	stopped error // of the leader
}

var _ inventory.Store = (*Store)(nil)

// defaultMapped is the default of Config.Mapped.
const defaultMapped = 32 << 20

// initialMap is the address space taken for the database at once, so that it is
// never mapped again while it grows: that would make every writer wait for all
// reads to end, and a write inside a read wait for ever. It costs no memory.
const initialMap = 64 << 30

// Open opens a store. The error wraps [inventory.ErrCorrupt],
// [inventory.ErrForeign] or [inventory.ErrVersion] if the files are not what they
// should be, and then nothing has been written; it is a [*durable.InUseError] if
// another process has the store open.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("opening inventory: %w", err)
	}
	l, err := acquire(ctx, &cfg)
	if err != nil {
		return nil, fmt.Errorf("opening inventory: %w", err)
	}
	s := &Store{cfg: cfg, lock: l}
	key := derive(cfg.Key, "record")
	s.sealers.New = func() any {
		seal := newSealer(key)
		if cfg.Mapped >= 0 {
			seal.trim = s.trim
		}
		return seal
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening inventory: %w", err), s.release())
	}
	return s, nil
}

// check reports what is missing, and fills in what may be.
func (cfg *Config) check() error {
	switch {
	case cfg.Dir == nil:
		return errors.New("Config.Dir must be set")
	case cfg.Key == [32]byte{} || cfg.Instance == [16]byte{}:
		return errors.New("Config.Key and Config.Instance must be set")
	case cfg.Create && cfg.ReadOnly:
		return errors.New("Config.Create and Config.ReadOnly exclude each other")
	}
	if cfg.Mapped == 0 {
		cfg.Mapped = defaultMapped
	}
	if cfg.Wait == 0 {
		cfg.Wait = 2 * time.Second
	}
	return nil
}

// derive makes the key of one use from the key of the store.
func derive(key [32]byte, use string) []byte {
	m := hmac.New(sha256.New, key[:])
	m.Write([]byte("imprint boltstore 1 " + use))
	return m.Sum(nil)
}

func (s *Store) open(ctx context.Context) error {
	if s.cfg.Create {
		if err := s.create(); err != nil {
			return err
		}
	}
	if err := checkFile(s.cfg.Dir); err != nil {
		return err
	}
	var file *os.File
	open := func(_ string, flag int, _ fs.FileMode) (_ *os.File, err error) {
		// Whatever name bbolt knows it by; and one that is not there is not made.
		file, err = s.cfg.Dir.Root().OpenFile(databaseFile, flag&^os.O_CREATE, 0)
		return file, err
	}
	err := guard(func() (err error) {
		s.db, err = bolt.Open(databaseFile, 0o600, &bolt.Options{
			Timeout:         s.cfg.Wait,
			ReadOnly:        s.cfg.ReadOnly,
			FreelistType:    bolt.FreelistMapType,
			InitialMmapSize: mapSize(),
			OpenFile:        open,
		})
		return err
	})
	if err != nil {
		if file != nil {
			_ = file.Close() // bbolt leaves it open when it panics, and else has closed it
		}
		return fmt.Errorf("database: %w", err)
	}
	var h head
	err = s.view(func(_ *bolt.Tx, c *chain) (err error) {
		h, err = readHead(c)
		return err
	})
	if err != nil {
		return err
	}
	if h.instance != s.cfg.Instance {
		return fmt.Errorf("database: %w", inventory.ErrForeign)
	}
	return s.openJournal(ctx, h)
}

// mapSize is initialMap where addresses are long enough.
func mapSize() int {
	const long = ^uint(0)>>32 != 0
	if long {
		return initialMap
	}
	return 0
}

// create makes an empty database and journal. The database comes last, so that
// one that is there has a journal.
func (s *Store) create() error {
	for _, name := range []string{databaseFile, journalFile} {
		if _, err := s.cfg.Dir.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("creating %s: %w", name, fs.ErrExist), err)
		}
	}
	start, err := createJournal(s.cfg.Dir, derive(s.cfg.Key, "journal"), s.cfg.Instance)
	if err != nil {
		return err
	}
	return createDatabase(s.cfg.Dir, newSealer(derive(s.cfg.Key, "record")),
		head{schema: schemaVersion, instance: s.cfg.Instance, journal: start})
}

// view calls fn in a read transaction.
func (s *Store) view(fn func(*bolt.Tx, *chain) error) error {
	tx, err := s.db.Begin(false)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // the only error is that it is over already
	var b *bolt.Bucket
	err = guard(func() error {
		if b = tx.Bucket([]byte(bucketName)); b == nil {
			return damaged("database", "it has no records")
		}
		return nil
	})
	if err != nil {
		return err
	}
	seal := s.sealers.Get().(*sealer)
	defer s.sealers.Put(seal)
	return fn(tx, newChain(b, seal))
}

// enter counts a call, unless the store is closed.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("inventory: %w", fs.ErrClosed)
	}
	s.calls.Add(1)
	return nil
}

// Read implements [inventory.Store].
func (s *Store) Read(ctx context.Context, fn func(inventory.Reader) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.calls.Done()
	return s.view(func(_ *bolt.Tx, c *chain) error {
		h, err := readHead(c)
		if err != nil {
			return err
		}
		return fn(&reader{ctx: ctx, chain: c, head: h})
	})
}

// Close implements [inventory.Store].
func (s *Store) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	s.calls.Wait()
	return s.release()
}

func (s *Store) release() error {
	var errs []error
	if s.journal != nil {
		errs = append(errs, s.journal.file.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	return errors.Join(append(errs, s.lock.Unlock())...)
}

// acquire waits for other processes at most cfg.Wait. A reader shares the lock
// with other readers.
func acquire(ctx context.Context, cfg *Config) (*durable.Lock, error) {
	take := cfg.Dir.Lock
	if cfg.ReadOnly {
		take = cfg.Dir.LockShared
	}
	deadline := time.Now().Add(cfg.Wait)
	for {
		l, err := take(lockFile)
		if _, busy := errors.AsType[*durable.InUseError](err); !busy || time.Now().After(deadline) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
