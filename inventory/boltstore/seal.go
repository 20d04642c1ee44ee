package boltstore

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"hash"
	"runtime/debug"

	"github.com/imprint-iot/imprint/inventory"

	bolt "go.etcd.io/bbolt"
)

// Every value is kept with a MAC: the first 16 bytes of HMAC-SHA-256 over the
// key, the key that comes next in the bucket, and the value.
//
// bbolt has no checksums: of random bit flips in a file, a fifth come back as
// wrong data while its own check finds nothing. A MAC over the record alone
// would show a changed record, but not a missing one, and the wrong answer that
// hurts is "this key is not known" or a CRL that lacks an entry. Naming the next
// key closes that: two neighbours prove that nothing is between them, as the
// NSEC records of DNSSEC do (RFC 4034 §4). The head is the first of the chain,
// so there is always a neighbour.
//
// What this cannot show is a whole file put back as it was earlier. Against that
// stands the journal (see journal.go). Nor can it show a single page that is read in an
// older version, which bbolt leaves in the free pages for a while, if a flipped bit in the
// number of a page leads there and the records at its ends are the same.
const macSize = 16

// A sealer makes and checks MACs. It serves one goroutine.
type sealer struct {
	mac  hash.Hash
	buf  []byte
	sum  [sha256.Size]byte
	made int    // MACs so far: at most as many pages have been looked at
	trim func() // called now and then; may be nil
}

// trimEvery is after how many MACs it is looked whether many pages are mapped. A
// page that is looked at brings up to 15 neighbours with it.
const trimEvery = 1024

func newSealer(key []byte) *sealer { return &sealer{mac: hmac.New(sha256.New, key)} }

// sumOf returns the MAC, which is valid until the next call. The lengths make
// the three parts distinct.
func (s *sealer) sumOf(key, next, value []byte) []byte {
	s.buf = binary.BigEndian.AppendUint32(s.buf[:0], uint32(len(key)))
	s.buf = append(s.buf, key...)
	s.buf = binary.BigEndian.AppendUint32(s.buf, uint32(len(next)))
	s.buf = append(s.buf, next...)
	if s.made++; s.made%trimEvery == 0 && s.trim != nil {
		s.trim()
	}
	s.mac.Reset()
	s.mac.Write(s.buf)
	s.mac.Write(value)
	return s.mac.Sum(s.sum[:0])[:macSize]
}

// seal returns value with its MAC.
func (s *sealer) seal(key, next, value []byte) []byte {
	out := make([]byte, macSize, macSize+len(value))
	copy(out, s.sumOf(key, next, value))
	return append(out, value...)
}

// open returns the value in sealed, or an error naming the record.
func (s *sealer) open(key, next, sealed []byte) ([]byte, error) {
	if len(sealed) < macSize || subtle.ConstantTimeCompare(s.sumOf(key, next, sealed[macSize:]), sealed[:macSize]) != 1 {
		return nil, damaged(recordName(key), "its MAC does not verify")
	}
	return sealed[macSize:], nil
}

// damaged is the error for a record that does not verify.
func damaged(record, why string) error {
	return fmt.Errorf("%s: %s: %w", record, why, inventory.ErrCorrupt)
}

// A chain reads sealed records in one transaction. What it returns is part of
// the mapped file: it is valid until the transaction ends, and not to be changed.
type chain struct {
	bucket *bolt.Bucket
	cursor *bolt.Cursor
	seal   *sealer
}

func newChain(b *bolt.Bucket, s *sealer) *chain {
	return &chain{bucket: b, cursor: b.Cursor(), seal: s}
}

// guard turns a panic of bbolt over a damaged page, and a fault of the memory
// behind the file, into an error. A page number beyond the end of the file is a
// SIGBUS, which would otherwise end the process.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damaged("database", fmt.Sprintf("a page cannot be read (%.128v)", p))
		}
	}()
	return f()
}

// get returns the value of key. That there is none is proved by the neighbours.
func (c *chain) get(key []byte) (value []byte, ok bool, err error) {
	err = guard(func() error {
		k, v := c.cursor.Seek(key)
		if bytes.Equal(k, key) {
			next, _ := c.cursor.Next()
			value, err = c.seal.open(key, next, v)
			ok = err == nil
			return err
		}
		return c.nothingBetween(key, k)
	})
	return value, ok, err
}

// nothingBetween checks that next follows directly on what is before key. The
// cursor stands where Seek(key) left it.
func (c *chain) nothingBetween(key, next []byte) error {
	var k, v []byte
	if next == nil {
		k, v = c.cursor.Last()
	} else {
		k, v = c.cursor.Prev()
	}
	if k == nil || bytes.Compare(k, key) >= 0 || (next != nil && bytes.Compare(next, key) <= 0) {
		return damaged(recordName(key), "the order of the records is broken")
	}
	_, err := c.seal.open(k, next, v)
	return err
}

// before checks and returns the key and value in front of key, which is there.
func (c *chain) before(key []byte) (k, value []byte, err error) {
	err = guard(func() error {
		c.cursor.Seek(key)
		var v []byte
		if k, v = c.cursor.Prev(); k == nil {
			return damaged(recordName(key), "the order of the records is broken")
		}
		value, err = c.seal.open(k, key, v)
		return err
	})
	return k, value, err
}

// A scan walks over the records whose keys start with prefix.
type scan struct {
	cursor *bolt.Cursor
	seal   *sealer
	prefix []byte
	key    []byte // the next one to yield; nil at the end
	sealed []byte
}

// scan starts at the first key that has the prefix and is not before from.
// That none has been left out is proved as in get.
func (c *chain) scan(prefix, from []byte) (*scan, error) {
	s := &scan{cursor: c.bucket.Cursor(), seal: c.seal, prefix: prefix}
	if len(from) == 0 {
		from = prefix
	}
	return s, guard(func() error {
		k, v := s.cursor.Seek(from)
		s.key, s.sealed = k, v
		if bytes.Equal(k, from) {
			return nil
		}
		gap := chain{cursor: s.cursor, seal: c.seal}
		if err := gap.nothingBetween(from, k); err != nil {
			return err
		}
		if k != nil {
			s.cursor.Seek(k)
		}
		return nil
	})
}

// next returns the next record, or nil at the end.
func (s *scan) next() (key, value []byte, err error) {
	if s.key == nil || !bytes.HasPrefix(s.key, s.prefix) {
		return nil, nil, nil
	}
	err = guard(func() error {
		k, v := s.cursor.Next()
		if k != nil && bytes.Compare(k, s.key) <= 0 {
			return damaged(recordName(s.key), "the order of the records is broken")
		}
		if value, err = s.seal.open(s.key, k, s.sealed); err != nil {
			return err
		}
		key, s.key, s.sealed = s.key, k, v
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return key, value, nil
}
