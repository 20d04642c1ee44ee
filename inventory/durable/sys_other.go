//go:build !linux

package durable

import (
	"errors"
	"os"
)

// Elsewhere than on Linux locks are the existence of nothing: they always
// succeed, a directory cannot always be synced, and there is no exchange. Use it
// to look at a fleet, not to run one.

const openNonblock = 0

var errLocked = errors.New("locked")

func lockFile(*os.File, bool) error { return nil }

func syncDir(d *os.File) error {
	_ = d.Sync() // not possible on every system
	return nil
}

func syncFilesystem(d *os.File) error { return syncDir(d) }

func exchange(root *os.Root, a, b string) error { return exchangeSlowly(root, a, b) }
