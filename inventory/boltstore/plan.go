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
	batch   map[string]entry           // of the changes accepted so far
	change  map[string]entry           // of the change being planned
	planned map[string]map[string]bool // keys of credentials in both, and perhaps of changes refused, by device
	journal []journalRecord            // of the changes accepted so far

	keys []string // that flush has written or deleted, in order
	next [][]byte // what follows each of them
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
	return &plan{chain: c, head: h, batch: map[string]entry{}, change: map[string]entry{}, planned: map[string]map[string]bool{}}, nil
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
	p.plans(key)
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

// credentials calls fn for every credential of a device, in no order.
func (p *plan) credentials(canonical string, fn func(key, value []byte) error) error {
	prefix := credentialsOf(canonical)
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
	for k := range p.planned[string(prefix)] {
		e, ok := p.change[k]
		if !ok {
			e = p.batch[k]
		}
		if e.value == nil {
			continue
		}
		if err := fn([]byte(k), e.value); err != nil {
			return err
		}
	}
	return nil
}

// plans notes a credential by its device.
func (p *plan) plans(key []byte) {
	if key[0] != kindCredential {
		return
	}
	prefix := string(key[:bytes.IndexByte(key, 0)+1])
	if p.planned[prefix] == nil {
		p.planned[prefix] = map[string]bool{}
	}
	p.planned[prefix][string(key)] = true
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
// What each record is followed by in the end is found out before anything is written.
// Then the keys are written in their order: bbolt keeps what a transaction has changed
// of a leaf in one slice, and only what comes after a key is moved for it.
func (p *plan) flush(b *bolt.Bucket, s *sealer) error {
	p.batch[string(headKey())] = entry{p.head.encode(), true}
	keys := make([]string, 0, len(p.batch))
	for k, e := range p.batch {
		if e.value != nil || e.exists { // else it came and went within the batch
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	next, fronts, err := p.neighbours(b, keys)
	if err != nil {
		return err
	}
	for i, k := range keys {
		key, e := []byte(k), p.batch[k]
		if e.value == nil {
			err = b.Delete(key)
		} else {
			err = b.Put(key, s.seal(key, next[i], e.value))
		}
		if err != nil {
			return err
		}
	}
	for _, f := range fronts {
		if err := b.Put(f.key, s.seal(f.key, f.next, f.value)); err != nil {
			return err
		}
	}
	p.keys, p.next = keys, next
	return nil
}

// inPlace looks whether each record of the batch is found where it was sealed to be,
// once it is written. Among pages that are damaged bbolt may have put it elsewhere, where
// nobody would find it again.
func (p *plan) inPlace(b *bolt.Bucket) error {
	c := b.Cursor()
	for i, k := range p.keys {
		if p.batch[k].value == nil {
			continue
		}
		key := []byte(k)
		found, _ := c.Seek(key)
		follows, _ := c.Next()
		if !bytes.Equal(found, key) || !bytes.Equal(follows, p.next[i]) {
			return damaged(recordName(key), "the order of the records is broken")
		}
	}
	return nil
}

// A front is a record that is not in the batch and is followed by another one after
// it.
type front struct{ key, value, next []byte }

// neighbours returns, for each of the keys in their order, which key follows it once
// the batch is written (for one that is deleted: once it is gone), and the records in
// front of them that have to be sealed again.
func (p *plan) neighbours(b *bolt.Bucket, keys []string) (next [][]byte, fronts []front, err error) {
	next = make([][]byte, len(keys))
	at := make(map[string]int, len(keys))
	for i, k := range keys {
		at[k] = i
	}
	c := b.Cursor()
	var put []byte // the first key after this one that the batch writes
	for i := len(keys) - 1; i >= 0; i-- {
		key := []byte(keys[i])
		follows, _ := c.Seek(key)
		if bytes.Equal(follows, key) {
			follows, _ = c.Next()
		}
		if j, ok := at[string(follows)]; ok && follows != nil && p.batch[keys[j]].value == nil {
			follows = next[j] // it goes as well
		}
		if put != nil && (follows == nil || bytes.Compare(put, follows) < 0) {
			follows = put
		}
		next[i] = bytes.Clone(follows)
		if p.batch[keys[i]].value != nil {
			put = key
		}
	}
	for i, k := range keys {
		e := p.batch[k]
		if e.exists && e.value != nil {
			continue // it stays where it is: who is in front of it has no other neighbour
		}
		before, value := inFront(c, []byte(k))
		if len(value) < macSize {
			return nil, nil, damaged(recordName([]byte(k)), "the order of the records is broken")
		}
		if i > 0 && keys[i-1] >= string(before) {
			continue // it, or one between, is of the batch
		}
		f := front{key: bytes.Clone(before), value: bytes.Clone(value[macSize:]), next: next[i]}
		if e.value != nil {
			f.next = []byte(k)
		}
		fronts = append(fronts, f)
	}
	return next, fronts, nil
}

// inFront returns what is before key.
func inFront(c *bolt.Cursor, key []byte) (k, v []byte) {
	if k, _ = c.Seek(key); k == nil {
		return c.Last()
	}
	return c.Prev()
}

// conflict is short for an inventory.ConflictError.
func conflict(why inventory.Conflict, record, detail string) error {
	return &inventory.ConflictError{Why: why, Record: record, Detail: detail}
}
