package delivery

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/gob"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"filippo.io/age"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates/bundle"
)

// An OutboxConfig says where bundles go.
type OutboxConfig struct {
	// Store tells, after a crash, which staged batches the inventory has.
	Store inventory.Store

	// Keys is a directory of the fleet for the keys of spools.
	Keys *durable.Dir

	// Bundle makes the files of one device. Check, which is asked before the device
	// gets its certificate, reports that it could not.
	Bundle func(Item) ([]bundle.File, error)
	Check  func(Item) error

	// To is where the bundles go in the end: [ToDirectory] or [ToArchive].
	To Destination
}

// An Item is what one device is handed.
type Item struct {
	ID       inventory.DeviceID
	Chain    [][]byte // DER, the leaf first
	Key      []byte   // PKCS #8 DER; empty if the device has its own
	Password []byte   // empty if it has none
	Rights   enroll.Rights
}

// A Destination is a directory or an archive of bundles.
type Destination interface {
	// where returns the directory in which the spool is kept, and a name for it.
	where() (dir, name string)

	// check refuses, before anything is issued, what cannot be added to.
	check() error

	// put delivers a batch that the inventory has.
	put(batch []Item, render func(Item) ([]bundle.File, error)) error

	// finish makes durable what was put. all yields every batch of the job.
	finish(all func(func([]Item) error) error, render func(Item) ([]bundle.File, error)) error
}

// An Outbox is an [enroll.Outbox] that writes bundles.
//
// A batch is first written to a spool beside the destination, encrypted with a
// key in the fleet directory, and synced; then the inventory records it; then it
// goes to the destination. The spool stays until Close, so that a process that
// dies in between loses nothing: the next one that opens the same outbox delivers
// what the inventory has and forgets what it has not. Without its key, which is
// deleted last, a spool is worthless.
type Outbox struct {
	cfg      OutboxConfig
	parent   *durable.Dir // holds the spool
	name     string       // of the spool in parent
	spool    *durable.Dir // nil until the first batch
	identity *age.X25519Identity
	keyName  string
	next     atomic.Int64

	begun    sync.Once
	beginErr error
}

// OpenOutbox opens an outbox and delivers what an earlier process left.
func OpenOutbox(ctx context.Context, cfg OutboxConfig) (*Outbox, error) {
	dir, name := cfg.To.where()
	parent, err := durable.CreateDir(dir)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256([]byte(filepath.Join(parent.Path(), name)))
	o := &Outbox{cfg: cfg, parent: parent, name: name, keyName: "spool-" + hex.EncodeToString(id[:8]) + ".key"}
	if err := o.recover(ctx); err != nil {
		return nil, errors.Join(err, parent.Close())
	}
	return o, nil
}

const (
	segmentSuffix = ".age"
	maxKeyFile    = 256      // bytes
	maxSegment    = 64 << 20 // bytes; a batch of 256 devices takes some hundred KiB
)

// recover looks at the spool that an earlier process left.
func (o *Outbox) recover(ctx context.Context) error {
	spool, err := o.parent.Sub(o.name)
	if errors.Is(err, fs.ErrNotExist) {
		return o.cfg.Keys.Remove(o.keyName) // of a spool that never came to be
	}
	if err != nil {
		return err
	}
	o.spool = spool
	key, err := o.cfg.Keys.ReadFile(o.keyName, maxKeyFile)
	if err != nil {
		return fmt.Errorf("spool %s was left by a job of another fleet, or its key is gone: %w", spool.Path(), err)
	}
	if o.identity, err = age.ParseX25519Identity(strings.TrimSpace(string(key))); err != nil {
		return fmt.Errorf("reading key of spool %s: %w", spool.Path(), err)
	}
	segments, err := o.segments()
	if err != nil {
		return err
	}
	for _, name := range segments {
		if err := o.recoverSegment(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (o *Outbox) recoverSegment(ctx context.Context, name string) error {
	var n int64
	if _, err := fmt.Sscanf(name, segmentPattern, &n); err != nil {
		return fmt.Errorf("spool %s: %q is no part of it", o.spool.Path(), name)
	}
	o.next.Store(max(o.next.Load(), n))
	batch, err := o.load(name)
	if err != nil {
		return err
	}
	landed, err := o.landed(ctx, batch)
	if err != nil {
		return err
	}
	if !landed {
		return o.spool.Remove(name)
	}
	return o.cfg.To.put(batch, o.cfg.Bundle)
}

// landed reports whether the inventory has a batch. It was recorded by one
// change, so one device tells for all.
func (o *Outbox) landed(ctx context.Context, batch []Item) (bool, error) {
	if len(batch) == 0 {
		return false, nil
	}
	first, err := inventory.ReadCertificate(batch[0].Chain[0])
	if err != nil {
		return false, err
	}
	found := false
	err = o.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		for c, err := range in.Credentials(inventory.CredentialQuery{Device: batch[0].ID, Kind: inventory.CertificateCredential}) {
			if err != nil {
				return err
			}
			found = found || bytes.Equal(c.Certificate.DER, first.DER)
		}
		return nil
	})
	return found, err
}

// segmentPattern is the name of a segment: the order in which batches were
// staged.
const segmentPattern = "%012d" + segmentSuffix

// segments lists the segments in the spool, in order.
func (o *Outbox) segments() ([]string, error) {
	names, err := o.spool.Names()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(names, func(n string) bool {
		return !strings.HasSuffix(n, segmentSuffix) // a temporary file of a process that died
	}), nil
}

// begin makes the spool, and its key before it, unless there is one.
func (o *Outbox) begin() error {
	if o.spool != nil {
		return nil
	}
	if err := o.cfg.To.check(); err != nil {
		return err
	}
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return fmt.Errorf("making key of spool: %w", err)
	}
	if err := o.cfg.Keys.WriteFile(o.keyName, []byte(identity.String()+"\n"), 0o600); err != nil {
		return err
	}
	if o.spool, err = o.parent.Mkdir(o.name); err != nil {
		return errors.Join(err, o.cfg.Keys.Remove(o.keyName))
	}
	o.identity = identity
	return nil
}

// Stage implements [enroll.Outbox].
func (o *Outbox) Stage(ctx context.Context, batch []*enroll.Enrollment) (enroll.Staged, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if o.begun.Do(func() { o.beginErr = o.begin() }); o.beginErr != nil {
		return nil, o.beginErr
	}
	items := make([]Item, len(batch))
	for i, e := range batch {
		items[i] = Item{ID: e.Device.ID, Chain: e.Chain, Key: e.Key.Reveal(), Password: e.Password.Reveal(), Rights: e.Rights}
		if err := o.cfg.Check(items[i]); err != nil {
			return nil, err
		}
	}
	s := &staged{o: o, items: items, name: fmt.Sprintf(segmentPattern, o.next.Add(1))}
	if err := o.save(s.name, items); err != nil {
		return nil, err
	}
	return s, nil
}

func (o *Outbox) save(name string, items []Item) error {
	f, err := o.spool.Create(name, 0o600)
	if err != nil {
		return err
	}
	defer f.Abort()
	w, err := age.Encrypt(f, o.identity.Recipient())
	if err != nil {
		return fmt.Errorf("writing spool: %w", err)
	}
	enc := gob.NewEncoder(w)
	for i := range items {
		if err := enc.Encode(&items[i]); err != nil {
			return fmt.Errorf("writing spool: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("writing spool: %w", err)
	}
	return f.Commit()
}

func (o *Outbox) load(name string) ([]Item, error) {
	f, err := o.spool.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	r, err := age.Decrypt(io.LimitReader(f, maxSegment), o.identity)
	if err != nil {
		return nil, fmt.Errorf("reading spool %s: %w", o.spool.Path(), err)
	}
	var items []Item
	dec := gob.NewDecoder(bufio.NewReader(r))
	for {
		var item Item
		err := dec.Decode(&item)
		if errors.Is(err, io.EOF) {
			return items, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading spool %s: %w", o.spool.Path(), err)
		}
		items = append(items, item)
	}
}

// staged is a batch in the spool.
type staged struct {
	o     *Outbox
	items []Item
	name  string
}

// Release implements [enroll.Staged].
func (s *staged) Release() error { return s.o.cfg.To.put(s.items, s.o.cfg.Bundle) }

// Discard implements [enroll.Staged].
func (s *staged) Discard() error { return s.o.spool.Remove(s.name) }

// Finish delivers everything and removes the spool. If it is not called, or
// fails, the next process that opens the outbox has everything still.
func (o *Outbox) Finish() error {
	if o.spool == nil {
		return nil
	}
	segments, err := o.segments()
	if err != nil {
		return err
	}
	if len(segments) > 0 {
		all := func(fn func([]Item) error) error {
			for _, name := range segments {
				batch, err := o.load(name)
				if err != nil {
					return err
				}
				if err := fn(batch); err != nil {
					return err
				}
			}
			return nil
		}
		if err := o.cfg.To.finish(all, o.cfg.Bundle); err != nil {
			return err
		}
	}
	if err := errors.Join(o.spool.Close(), o.parent.RemoveAll(o.name)); err != nil {
		return err
	}
	o.spool = nil
	return o.cfg.Keys.Remove(o.keyName)
}

// Close releases the outbox without delivering: what is in the spool stays.
func (o *Outbox) Close() error {
	var err error
	if o.spool != nil {
		err = o.spool.Close()
	}
	return errors.Join(err, o.parent.Close())
}
