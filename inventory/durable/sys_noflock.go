//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package durable

import (
	"errors"
	"os"
)

const openNonblock = 0

var errLocked = errors.New("locked")

// Here a lock always succeeds: see the package comment.
func lockFile(*os.File, bool) error { return nil }

func syncDir(d *os.File) error {
	_ = d.Sync() // not possible on Windows
	return nil
}

func onlyName(os.FileInfo) bool { return true }
