package boltstore_test

import (
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
	"github.com/imprint-iot/imprint/inventory/storetest"
)

func TestContract(t *testing.T) {
	dirs := map[inventory.Store]string{}
	start := func(t *testing.T, dir string, create bool) inventory.Store {
		t.Helper()
		cfg := config(t, dir)
		cfg.Create = create
		s := open(t, cfg)
		dirs[s] = dir
		return s
	}
	storetest.Run(t, storetest.Factory{
		New: func(t *testing.T) inventory.Store { t.Helper(); return start(t, t.TempDir(), true) },
		Reopen: func(t *testing.T, s inventory.Store) inventory.Store {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return start(t, dirs[s], false)
		},
	})
}

var _ inventory.Store = (*boltstore.Store)(nil)
