package boltstore

import (
	"bytes"
	"slices"

	"github.com/imprint-iot/imprint/inventory"

	bolt "go.etcd.io/bbolt"
)

// A plan collects what the changes of one batch write, before anything is
// written. A change that is refused half way leaves nothing behind, and a later
// change of the batch sees the earlier ones.
type plan struct {
	chain   *chain
	head    head
	batch   map[string]entry // of the changes accepted so far
	change  map[string]entry // of the change being planned
	journal []journalRecord  // of the changes accepted so far
}

// An entry is a value to write, or nil to delete.
type entry struct {
	value  []byte
	exists bool // the key is in the database
}

func newPlan(c *chain) (*plan, error) {
	h, err := readHead(c)
	if err != nil {
		return nil, err
	}
	return &plan{chain: c, head: h, batch: map[string]entry{}, change: map[string]entry{}}, nil
}

// get returns a value as the changes so far leave it.
func (p *plan) get(key []byte) ([]byte, bool, error) {
	if e, ok := p.change[string(key)]; ok {
		return e.value, e.value != nil, nil
	}
	if e, ok := p.batch[string(key)]; ok {
		return e.value, e.value != nil, nil
	}
	return p.chain.get(key)
}

// has reports whether key is in the database, and checks what surrounds it.
func (p *plan) has(key []byte) (bool, error) {
	if e, ok := p.change[string(key)]; ok {
		return e.exists, nil
	}
	if e, ok := p.batch[string(key)]; ok {
		return e.exists, nil
	}
	_, ok, err := p.chain.get(key)
	return ok, err
}

func (p *plan) put(key, value []byte) error {
	exists, err := p.has(key)
	if err != nil {
		return err
	}
	if value == nil {
		value = []byte{}
	}
	p.change[string(key)] = entry{value, exists}
	return nil
}

func (p *plan) delete(key []byte) error {
	exists, err := p.has(key)
	if err != nil {
		return err
	}
	if exists {
		// The one in front gets a new MAC, so it must be good now.
		if _, _, err := p.chain.before(key); err != nil {
			return err
		}
	}
	p.change[string(key)] = entry{nil, exists}
	return nil
}

// each calls fn for every record whose key starts with prefix, in no order.
func (p *plan) each(prefix []byte, fn func(key, value []byte) error) error {
	s, err := p.chain.scan(prefix, nil)
	if err != nil {
		return err
	}
	for {
		k, v, err := s.next()
		if err != nil {
			return err
		}
		if k == nil {
			break
		}
		if _, ok := p.change[string(k)]; ok {
			continue
		}
		if _, ok := p.batch[string(k)]; ok {
			continue
		}
		if err := fn(k, v); err != nil {
			return err
		}
	}
	for k, e := range p.batch {
		if _, ok := p.change[k]; ok || e.value == nil || !bytes.HasPrefix([]byte(k), prefix) {
			continue
		}
		if err := fn([]byte(k), e.value); err != nil {
			return err
		}
	}
	for k, e := range p.change {
		if e.value == nil || !bytes.HasPrefix([]byte(k), prefix) {
			continue
		}
		if err := fn([]byte(k), e.value); err != nil {
			return err
		}
	}
	return nil
}

// accept makes the planned change part of the batch.
func (p *plan) accept(h head, j []journalRecord) {
	for k, e := range p.change {
		n := h.counts.of(k[0])
		if n == nil {
			continue
		}
		_, was := p.batch[k]
		had := e.exists
		if was {
			had = p.batch[k].value != nil
		}
		switch has := e.value != nil; {
		case has && !had:
			*n++
		case !has && had:
			*n--
		}
	}
	for k, e := range p.change {
		p.batch[k] = e
	}
	clear(p.change)
	p.journal = append(p.journal, j...)
	p.head = h
}

// refuse forgets the planned change.
func (p *plan) refuse() { clear(p.change) }

// flush writes the batch into the bucket. All that gets a new MAC here has been
// checked while planning.
//
// Keys are written from the last to the first: what comes after a key is then
// final when the key is sealed.
func (p *plan) flush(b *bolt.Bucket, s *sealer) error {
	p.batch[string(headKey())] = entry{p.head.encode(), true}
	keys := make([]string, 0, len(p.batch))
	for k, e := range p.batch {
		if e.value != nil || e.exists { // else it came and went within the batch
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for i := len(keys) - 1; i >= 0; i-- {
		if err := flushOne(b, s, []byte(keys[i]), p.batch[keys[i]], keys[:i]); err != nil {
			return err
		}
	}
	return nil
}

// flushOne writes one entry and seals what is in front of it again, unless that
// is one of the smaller keys of the batch, whose turn comes.
func flushOne(b *bolt.Bucket, s *sealer, key []byte, e entry, smaller []string) error {
	c := b.Cursor()
	k, _ := c.Seek(key)
	if bytes.Equal(k, key) {
		k, _ = c.Next()
	}
	next := bytes.Clone(k)
	if e.value == nil {
		if err := b.Delete(key); err != nil {
			return err
		}
	} else if err := b.Put(key, s.seal(key, next, e.value)); err != nil {
		return err
	}
	if e.exists && e.value != nil {
		return nil // its neighbours stay
	}
	if e.value != nil {
		next = key
	}
	k, v := inFront(b.Cursor(), key)
	if len(v) < macSize {
		return damaged(recordName(key), "the order of the records is broken")
	}
	if n := len(smaller); n > 0 && smaller[n-1] >= string(k) {
		return nil
	}
	k, v = bytes.Clone(k), bytes.Clone(v[macSize:])
	return b.Put(k, s.seal(k, next, v))
}

// inFront returns what is before key. A leaf that this transaction has emptied
// makes Prev answer nil, so a few nils are no end; the head is never deleted.
func inFront(c *bolt.Cursor, key []byte) (k, v []byte) {
	if k, _ = c.Seek(key); k == nil {
		return c.Last()
	}
	for range 1 << 16 {
		if k, v = c.Prev(); k != nil {
			return k, v
		}
	}
	return nil, nil
}

// conflict is short for an inventory.ConflictError.
func conflict(why inventory.Conflict, record, detail string) error {
	return &inventory.ConflictError{Why: why, Record: record, Detail: detail}
}
