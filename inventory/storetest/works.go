package storetest

import (
	"errors"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
)

// testWorks is the way of a work: begun once, then carried on by whoever has read
// the last step.
func testWorks(t *testing.T, f Factory) {
	s := f.New(t)
	step := func(kind, name, body string, revision uint64) inventory.Change {
		return inventory.Change{Event: event("work.step"), Works: []inventory.Work{{Kind: kind, Name: name, Body: []byte(body), Updated: day, Revision: revision}}}
	}
	apply(t, s, step("node", "b", "1", 0))
	apply(t, s, step("node", "a", "2", 0))
	apply(t, s, step("nodes", "a", "3", 0)) // its kind begins like another
	refuse(t, s, step("node", "b", "4", 0), inventory.Exists)
	refuse(t, s, step("node", "b", "4", 2), inventory.Stale)
	refuse(t, s, step("node", "c", "4", 1), inventory.Stale)
	apply(t, s, step("node", "b", "5", 1))
	s = f.Reopen(t, s)
	read(t, s, func(r inventory.Reader) error {
		works, err := collect(r.Works("node"))
		if err != nil || len(works) != 2 || string(works[0].Body) != "2" || string(works[1].Body) != "5" || works[1].Revision != 4 {
			t.Errorf("work of one kind: %+v, %v", works, err)
		}
		works, err = collect(r.Works(""))
		if err != nil || len(works) != 3 || works[2].Kind != "nodes" {
			t.Errorf("all work: %+v, %v", works, err)
		}
		if _, err := r.Work("node", "c"); !errors.Is(err, inventory.ErrNotFound) {
			t.Errorf("unknown work: %v", err)
		}
		return nil
	})
}
