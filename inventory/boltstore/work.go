package boltstore

import (
	"bytes"
	"fmt"
	"iter"
	"slices"

	"github.com/imprint-iot/imprint/inventory"
)

// works plans what a change does to work under way.
func (t *turn) works() error {
	c := &t.change
	c.Works = slices.Clone(c.Works)
	for i := range c.Works {
		w := &c.Works[i]
		key := workKey(w.Kind, w.Name)
		b, ok, err := t.get(key)
		if err != nil {
			return err
		}
		var have inventory.Work
		if ok {
			if have, err = inventory.DecodeWork(b); err != nil {
				return err
			}
		}
		if err := checkRevision("work "+w.Kind+" "+w.Name, ok, have.Revision, w.Revision); err != nil {
			return err
		}
		w.Revision = t.head.revision
		if err := t.store(key, w); err != nil {
			return err
		}
	}
	return nil
}

// Work implements [inventory.Reader].
func (r *reader) Work(kind, name string) (inventory.Work, error) {
	b, ok, err := r.chain.get(workKey(kind, name))
	switch {
	case err != nil:
		return inventory.Work{}, err
	case !ok:
		return inventory.Work{}, fmt.Errorf("work %s %s: %w", kind, name, inventory.ErrNotFound)
	}
	return inventory.DecodeWork(b)
}

// Works implements [inventory.Reader].
func (r *reader) Works(kind string) iter.Seq2[inventory.Work, error] {
	prefix := []byte{kindWork}
	if kind != "" {
		prefix = workKey(kind, "")
	}
	return records(r, prefix, nil, func(_, v []byte) (inventory.Work, error) { return inventory.DecodeWork(v) })
}

func (c *checker) work(k, v []byte) error {
	w, err := inventory.DecodeWork(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(k, workKey(w.Kind, w.Name)) {
		c.fault(recordName(k), "it is kept under another name")
	}
	return w.Validate()
}
