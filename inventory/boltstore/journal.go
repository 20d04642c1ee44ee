package boltstore

import (
	"bytes"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
)

// The journal is what a restore of the database must not undo: which
// credentials were revoked or held, which devices were taken out of service,
// which keys were blocked, and which CRL numbers were given away. It is a file
// of its own that only grows, and it is durable before the database is. When the
// store is opened, whatever the journal has and the database has not, because it
// was put back from a backup or because of a crash in between, is applied again.
//
//	header: "imprint journal 1\n", instance, MAC
//	record: length of the payload (4 bytes), payload, MAC
//
// The records of one commit begin with one that says on which revision of the
// database it was made. So a crash, which leaves one commit that the database does
// not have, can be told from a database that was put back.
//
// Each MAC also covers the one before it, so records can neither be changed,
// moved nor left out; only the end can be cut off, and the head of the database
// says where the end was at its last change.
const (
	journalMagic  = "imprint journal 1\n"
	journalHeader = int64(len(journalMagic) + 16 + macSize)

	// maxJournalRecord is far above the largest record, a device with all labels.
	maxJournalRecord = 1 << 16
)

// What a journal record says. The values are stored.
const (
	journalRevoked    byte = 'R' // a certificate was revoked or held
	journalResumed    byte = 'U' // a hold was undone
	journalPassword   byte = 'P' // a password was revoked or held
	journalDevice     byte = 'D' // a device was suspended, revoked or retired
	journalBlockedKey byte = 'B' // a key may not be certified again
	journalCRL        byte = 'N' // a CRL number was used
	journalCommit     byte = 'S' // what follows is one commit, made on this revision
)

// A journalRecord is one line of the journal. Which fields count depends on kind.
type journalRecord struct {
	kind       byte
	revision   uint64 // of the change it is part of; of the database before a commit
	revocation inventory.Revocation
	password   inventory.Credential // without verifiers
	device     inventory.Device
	key        inventory.SPKI
	issuer     inventory.KeyID
	number     uint64
	time       time.Time // thisUpdate of the CRL
}

func (r *journalRecord) encode() ([]byte, error) {
	b := binary.BigEndian.AppendUint64([]byte{r.kind}, r.revision)
	switch r.kind {
	case journalRevoked, journalResumed:
		return r.revocation.AppendBinary(b)
	case journalPassword:
		return r.password.AppendBinary(b)
	case journalDevice:
		return r.device.AppendBinary(b)
	case journalBlockedKey:
		return append(b, r.key[:]...), nil
	case journalCommit:
		return b, nil
	}
	b = append(b, r.issuer[:]...)
	b = binary.BigEndian.AppendUint64(b, r.number)
	return binary.BigEndian.AppendUint64(b, uint64(r.time.Unix())), nil
}

func decodeJournalRecord(b []byte) (r journalRecord, err error) {
	if len(b) < 9 {
		return r, damaged("journal", "a record is too short")
	}
	r.kind, r.revision = b[0], binary.BigEndian.Uint64(b[1:])
	b = b[9:]
	switch r.kind {
	case journalRevoked, journalResumed:
		r.revocation, err = inventory.DecodeRevocation(b)
	case journalPassword:
		r.password, err = inventory.DecodeCredential(b)
	case journalDevice:
		r.device, err = inventory.DecodeDevice(b)
	case journalBlockedKey:
		if copy(r.key[:], b) != len(b) || len(b) != len(r.key) {
			err = damaged("journal", "a record has the wrong length")
		}
	case journalCRL:
		if len(b) != len(r.issuer)+16 {
			return r, damaged("journal", "a record has the wrong length")
		}
		b = b[copy(r.issuer[:], b):]
		r.number = binary.BigEndian.Uint64(b)
		r.time = time.Unix(int64(binary.BigEndian.Uint64(b[8:])), 0).UTC()
	case journalCommit:
		if len(b) != 0 {
			err = damaged("journal", "a record has the wrong length")
		}
	default:
		err = fmt.Errorf("journal record of kind %q: %w", r.kind, inventory.ErrVersion)
	}
	return r, err
}

// A position is a place between two records: an offset, and the MAC in front of
// it.
type position struct {
	offset int64
	mac    [macSize]byte
}

// A journal is an open journal file. It is not safe for concurrent use.
type journal struct {
	file *os.File
	seal *sealer
	end  position // where the next record goes; until read, the first record
}

// createJournal writes an empty journal and returns the position in front of its
// first record.
func createJournal(dir *durable.Dir, key []byte, instance [16]byte) (position, error) {
	start := position{offset: journalHeader}
	header := append([]byte(journalMagic), instance[:]...)
	copy(start.mac[:], newSealer(key).sumOf(header, nil, nil))
	if err := dir.WriteFile(journalFile, append(header, start.mac[:]...), 0o600); err != nil {
		return start, fmt.Errorf("creating journal: %w", err)
	}
	return start, nil
}

// openJournal opens a journal and checks its header. Its end is not known yet:
// see read.
func openJournal(dir *durable.Dir, key []byte, instance [16]byte, flag int) (*journal, error) {
	f, err := dir.Root().OpenFile(journalFile, flag, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damaged("journal", "it is missing")
	}
	if err != nil {
		return nil, fmt.Errorf("opening journal: %w", err)
	}
	j := &journal{file: f, seal: newSealer(key)}
	if err := j.checkHeader(instance); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

func (j *journal) checkHeader(instance [16]byte) error {
	b := make([]byte, journalHeader)
	if _, err := j.file.ReadAt(b, 0); errors.Is(err, io.EOF) {
		return damaged("journal", "it is shorter than its header")
	} else if err != nil {
		return fmt.Errorf("reading journal: %w", err)
	}
	n := journalHeader - macSize
	switch {
	case !bytes.HasPrefix(b, []byte(journalMagic)):
		return damaged("journal", "it is none")
	case !bytes.Equal(b[len(journalMagic):n], instance[:]):
		return fmt.Errorf("journal: %w", inventory.ErrForeign)
	case !hmac.Equal(j.seal.sumOf(b[:n], nil, nil), b[n:]):
		return damaged("journal", "its header does not verify")
	}
	copy(j.end.mac[:], b[n:])
	j.end.offset = journalHeader
	return nil
}

// knows reports whether p is a place in this journal.
func (j *journal) knows(p position) (bool, error) {
	if p.offset < journalHeader {
		return false, nil
	}
	var mac [macSize]byte
	if _, err := j.file.ReadAt(mac[:], p.offset-macSize); errors.Is(err, io.EOF) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("reading journal: %w", err)
	}
	return hmac.Equal(mac[:], p.mac[:]), nil
}

// read calls fn for each record from p on, and returns the end of the last good
// one and the size of the file. What is left between them is a record that was
// being written when the power went; anything else is ErrCorrupt.
func (j *journal) read(p position, fn func(journalRecord) error) (position, int64, error) {
	info, err := j.file.Stat()
	if err != nil {
		return p, 0, fmt.Errorf("reading journal: %w", err)
	}
	size := info.Size()
	for p.offset < size {
		payload, next, err := j.record(p, size)
		if err != nil {
			return p, size, err
		}
		if payload == nil {
			break
		}
		r, err := decodeJournalRecord(payload)
		if err != nil {
			return p, size, err
		}
		if err := fn(r); err != nil {
			return p, size, err
		}
		p = next
	}
	if p.offset < size {
		return p, size, j.checkTorn(p.offset, size)
	}
	return p, size, nil
}

// branch returns the records that follow the last place which other knows too. It
// is called on a journal that has not been read.
func (j *journal) branch(other *journal) ([]journalRecord, error) {
	info, err := j.file.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading journal: %w", err)
	}
	var out []journalRecord
	for p := j.end; ; {
		payload, next, err := j.record(p, info.Size())
		if err != nil || payload == nil {
			return out, err
		}
		known, err := other.knows(next)
		if err != nil {
			return nil, err
		}
		if !known {
			r, err := decodeJournalRecord(payload)
			if err != nil {
				return nil, err
			}
			out = append(out, r)
		}
		p = next
	}
}

// record reads the record at p. It returns nil if there is no good one.
func (j *journal) record(p position, size int64) (payload []byte, next position, err error) {
	var length [4]byte
	if size-p.offset < int64(len(length))+macSize {
		return nil, p, nil
	}
	if _, err := j.file.ReadAt(length[:], p.offset); err != nil {
		return nil, p, fmt.Errorf("reading journal: %w", err)
	}
	n := int64(binary.BigEndian.Uint32(length[:]))
	if n == 0 || n > maxJournalRecord || n+int64(len(length))+macSize > size-p.offset {
		return nil, p, nil
	}
	b := make([]byte, n+macSize)
	if _, err := j.file.ReadAt(b, p.offset+int64(len(length))); err != nil {
		return nil, p, fmt.Errorf("reading journal: %w", err)
	}
	if !hmac.Equal(j.seal.sumOf(p.mac[:], nil, b[:n]), b[n:]) {
		return nil, p, nil
	}
	next.offset = p.offset + int64(len(length)) + n + macSize
	copy(next.mac[:], b[n:])
	return b[:n], next, nil
}

// checkTorn reports damage if a good record follows somewhere after offset: then
// it is not the end that is torn. Each record lies behind the MAC of the one
// before it, so it can be told without that one.
func (j *journal) checkTorn(offset, size int64) error {
	for o := offset + 1; o < size; o++ {
		p := position{offset: o}
		if o-macSize < journalHeader {
			continue
		}
		if _, err := j.file.ReadAt(p.mac[:], o-macSize); err != nil {
			return fmt.Errorf("reading journal: %w", err)
		}
		payload, _, err := j.record(p, size)
		if err != nil {
			return err
		}
		if payload != nil {
			return damaged("journal", fmt.Sprintf("the record at byte %d does not verify", offset))
		}
	}
	return nil
}

// append makes records durable. On error the file is as long as before, or the
// error says that not even that could be done: then it wraps errUndo.
func (j *journal) append(records []journalRecord) error {
	if len(records) == 0 {
		return nil
	}
	var out []byte
	mac := j.end.mac
	for i := range records {
		b, err := records[i].encode()
		if err != nil {
			return err
		}
		out = binary.BigEndian.AppendUint32(out, uint32(len(b)))
		out = append(out, b...)
		copy(mac[:], j.seal.sumOf(mac[:], nil, b))
		out = append(out, mac[:]...)
	}
	if _, err := j.file.WriteAt(out, j.end.offset); err != nil {
		return errors.Join(fmt.Errorf("writing journal: %w", err), j.cut(j.end))
	}
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("writing journal: %w: %w", errSync, err)
	}
	j.end = position{j.end.offset + int64(len(out)), mac}
	return nil
}

// cut makes the journal end at p.
func (j *journal) cut(p position) error {
	if err := j.file.Truncate(p.offset); err != nil {
		return fmt.Errorf("cutting journal: %w: %w", errSync, err)
	}
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("cutting journal: %w: %w", errSync, err)
	}
	j.end = p
	return nil
}

// errSync marks an error after which it is not known what is on the disk.
var errSync = errors.New("not known to be durable")
