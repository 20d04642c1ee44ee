package boltstore

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"

	bolt "go.etcd.io/bbolt"
)

// A backup is one stream:
//
//	"imprint backup 1\n", instance (16 bytes)
//	length (8 bytes), the journal up to the state of the database
//	length (8 bytes), the database
//	HMAC-SHA-256 over all of it
//
// so that a backup that has been cut off or changed is refused as a whole.
const backupMagic = "imprint backup 1\n"

// crlLeap is by how much a restore raises the CRL numbers if nothing tells which
// ones were given away after the backup. A number is 20 octets at most (RFC 5280
// §5.2.3), and clients only compare: a leap costs nothing.
const crlLeap = 1 << 20

// restoring is the directory in which a restore is prepared, and aside the name
// of the database that it replaced.
const (
	restoring = "restore.tmp"
	aside     = databaseFile + ".before-restore"
)

// Backup writes the store as it is at one moment to w. Changes go on meanwhile.
// The backup holds everything that the store holds, in the clear, but not the
// key of the MACs.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.calls.Done()
	err := s.view(func(tx *bolt.Tx, c *chain) error {
		h, err := readHead(c)
		if err != nil {
			return err
		}
		out := &sealedWriter{ctx: ctx, w: w, mac: hmac.New(sha256.New, derive(s.cfg.Key, "backup"))}
		header := append([]byte(backupMagic), s.cfg.Instance[:]...)
		header = binary.BigEndian.AppendUint64(header, uint64(h.journal.offset))
		if _, err := out.Write(header); err != nil {
			return err
		}
		// The journal up to here is never written again.
		if _, err := io.Copy(out, io.NewSectionReader(s.journal.file, 0, h.journal.offset)); err != nil {
			return err
		}
		if _, err := out.Write(binary.BigEndian.AppendUint64(nil, uint64(tx.Size()))); err != nil {
			return err
		}
		if err := guard(func() error { _, err := tx.WriteTo(out); return err }); err != nil {
			return err
		}
		_, err = w.Write(out.mac.Sum(nil))
		return err
	})
	if err != nil {
		return fmt.Errorf("writing backup: %w", err)
	}
	return nil
}

// A sealedWriter computes a MAC of what goes through it, and stops when the
// context ends.
type sealedWriter struct {
	ctx context.Context //nolint:containedctx // a writer lives within one call of Backup
	w   io.Writer
	mac hash.Hash
}

func (s *sealedWriter) Write(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	s.mac.Write(p)
	return s.w.Write(p)
}

// Verify reads a backup and checks everything in it, as [Store.Check] does. It
// needs room for the backup in cfg.Dir, which may be any directory; Create and
// ReadOnly do not count. A backup that cannot be restored gives an error, faults
// in its records are in the report.
func Verify(ctx context.Context, r io.Reader, cfg Config) (Report, error) {
	var report Report
	err := prepare(ctx, r, cfg, func(s *Store, _ *durable.Dir) (err error) {
		report, err = s.Check(ctx)
		return err
	})
	if err != nil {
		return report, fmt.Errorf("verifying backup: %w", err)
	}
	return report, nil
}

// Restore puts a backup in the place of the store in cfg.Dir, which must not be
// open. A database that is there is kept as inventory.db.before-restore.
//
// What the journal in the directory knows stays true: what was revoked after the
// backup is revoked, and CRL numbers continue where they were. If there is no
// journal there, or an older one, revocations made after the backup are lost,
// and the CRL numbers are raised by 1<<20, so that none is given away twice.
//
// No token is good after a restore. A backup does not know which tokens have been
// used or revoked since it was made, and the journal does not either, so all that
// are not used up in it are revoked; the audit log names them. Approvals are as they
// are in the backup: one that was denied since has to be denied again.
//
// A backup that does not verify is refused and the directory stays as it was. A
// restore that was interrupted can be started again.
func Restore(ctx context.Context, r io.Reader, cfg Config) error {
	if err := cfg.check(); err != nil {
		return fmt.Errorf("restoring: %w", err)
	}
	cfg.ReadOnly = false
	l, err := acquire(ctx, &cfg)
	if err != nil {
		return fmt.Errorf("restoring: %w", err)
	}
	err = prepare(ctx, r, cfg, func(s *Store, temp *durable.Dir) error {
		report, err := s.Check(ctx)
		if err == nil && len(report.Faults) > 0 {
			err = fmt.Errorf("%d faults, the first: %s: %w", len(report.Faults), report.Faults[0], inventory.ErrCorrupt)
		}
		if err = errors.Join(err, s.Close()); err != nil {
			return err
		}
		if err := merge(ctx, cfg, temp); err != nil {
			return err
		}
		return install(cfg.Dir)
	})
	if err = errors.Join(err, l.Unlock()); err != nil {
		return fmt.Errorf("restoring: %w", err)
	}
	return nil
}

// prepare unpacks a backup into a directory of its own, opens it and calls fn.
func prepare(ctx context.Context, r io.Reader, cfg Config, fn func(*Store, *durable.Dir) error) (err error) {
	if err := cfg.check(); err != nil {
		return err
	}
	dir := cfg.Dir
	if err := dir.RemoveAll(restoring); err != nil {
		return err
	}
	temp, err := dir.Mkdir(restoring)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, temp.Close(), dir.RemoveAll(restoring)) }()
	if err := unpack(ctx, r, cfg, temp); err != nil {
		return err
	}
	cfg.Dir, cfg.Create, cfg.ReadOnly = temp, false, true
	s, err := Open(ctx, cfg)
	if err != nil {
		return err
	}
	return errors.Join(fn(s, temp), s.Close())
}

// unpack writes the files of a backup, and takes them back if its MAC is wrong.
func unpack(ctx context.Context, r io.Reader, cfg Config, to *durable.Dir) error {
	mac := hmac.New(sha256.New, derive(cfg.Key, "backup"))
	in := &contextReader{ctx, io.TeeReader(r, mac)}
	header := make([]byte, len(backupMagic)+len(cfg.Instance))
	if _, err := io.ReadFull(in, header); err != nil {
		return cutOff(err)
	}
	switch {
	case string(header[:len(backupMagic)]) != backupMagic:
		return damaged("backup", "it is none, or of a newer version")
	case [16]byte(header[len(backupMagic):]) != cfg.Instance:
		return fmt.Errorf("backup: %w", inventory.ErrForeign)
	}
	for _, name := range []string{journalFile, databaseFile} {
		if err := unpackFile(in, to, name); err != nil {
			return err
		}
	}
	want := mac.Sum(nil)
	got := make([]byte, len(want)+1)
	if n, err := io.ReadFull(r, got); n != len(want) || !errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("backup", "it does not end where it should")
	}
	if !hmac.Equal(want, got[:len(want)]) {
		return damaged("backup", "its MAC does not verify")
	}
	return nil
}

func unpackFile(in io.Reader, to *durable.Dir, name string) error {
	var length [8]byte
	if _, err := io.ReadFull(in, length[:]); err != nil {
		return cutOff(err)
	}
	n := binary.BigEndian.Uint64(length[:])
	if n > 1<<62 {
		return damaged("backup", "a length is wrong")
	}
	f, err := to.Create(name, 0o600)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := io.CopyN(f, in, int64(n)); err != nil {
		return cutOff(err)
	}
	return f.Commit()
}

// cutOff tells the end of a backup from the failure to read it.
func cutOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("backup", "it has been cut off")
	}
	return fmt.Errorf("reading backup: %w", err)
}

type contextReader struct {
	ctx context.Context //nolint:containedctx // a reader lives within one call of Restore
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// merge brings the prepared store, which is closed, up to what the journal in
// cfg.Dir says, or raises its CRL numbers if that says nothing.
func merge(ctx context.Context, cfg Config, temp *durable.Dir) error {
	newer, err := ownJournal(cfg, temp)
	if err != nil {
		return err
	}
	cfg.Dir, cfg.Create, cfg.ReadOnly, cfg.merge = temp, false, false, true
	s, err := Open(ctx, cfg) // replays
	if err != nil {
		return err
	}
	if newer {
		return s.Close()
	}
	return errors.Join(leap(ctx, s), s.Close())
}

// ownJournal copies the journal of the fleet directory over the one from the
// backup, unless it is missing or an older state of it. If the two went different
// ways, as after a restore, what only the one from the backup has is added.
func ownJournal(cfg Config, temp *durable.Dir) (newer bool, err error) {
	key := derive(cfg.Key, "journal")
	if _, err := cfg.Dir.Stat(journalFile); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	own, err := openJournal(cfg.Dir, key, cfg.Instance, os.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, own.file.Close()) }()
	saved, err := openJournal(temp, key, cfg.Instance, os.O_RDWR)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, saved.file.Close()) }()
	nothing := func(journalRecord) error { return nil }
	end, _, err := own.read(own.end, nothing)
	if err != nil {
		return false, err
	}
	savedEnd, _, err := saved.read(saved.end, nothing)
	if err != nil {
		return false, err
	}
	if inSaved, err := saved.knows(end); err != nil || inSaved && end != savedEnd {
		return false, err // it is older
	}
	missing, err := saved.branch(own)
	if err != nil {
		return false, err
	}
	f, err := temp.Create(journalFile, 0o600)
	if err != nil {
		return false, err
	}
	defer f.Abort()
	if _, err := io.Copy(f, io.NewSectionReader(own.file, 0, end.offset)); err != nil {
		return false, err
	}
	if err := f.Commit(); err != nil {
		return false, err
	}
	return true, extend(cfg, temp, end, missing)
}

// extend adds records to the journal in dir, which ends at end.
func extend(cfg Config, dir *durable.Dir, end position, records []journalRecord) error {
	j, err := openJournal(dir, derive(cfg.Key, "journal"), cfg.Instance, os.O_RDWR)
	if err != nil {
		return err
	}
	j.end = end
	return errors.Join(j.append(records), j.file.Close())
}

// leap raises the CRL number of every issuer.
func leap(ctx context.Context, s *Store) error {
	c := inventory.Change{Event: inventory.Event{
		Time: inventory.UTC(time.Now()), Actor: "imprint", Action: "inventory.restore",
		Reason: "restored without a journal: CRL numbers continue above all that may have been used",
	}}
	err := s.Read(ctx, func(r inventory.Reader) error {
		for i, err := range r.Issuers() {
			if err != nil {
				return err
			}
			i.CRLNumber += crlLeap
			c.Issuers = append(c.Issuers, i)
			c.Event.Objects = append(c.Event.Objects, inventory.Object{Kind: "issuer", ID: i.Name, Note: fmt.Sprintf("CRL number %d", i.CRLNumber)})
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.Apply(ctx, c)
}

// install moves the prepared files into place, the database last: until it is
// there, the directory has no database, and Open says so.
func install(dir *durable.Dir) error {
	if _, err := dir.Stat(databaseFile); err == nil {
		if err := dir.Swap(databaseFile, aside); err != nil {
			return err
		}
	}
	for _, name := range []string{journalFile, databaseFile} {
		if err := dir.Swap(restoring+"/"+name, name); err != nil {
			return err
		}
	}
	return nil
}
