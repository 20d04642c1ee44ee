package durable

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// openNonblock keeps an open from waiting for the other end of a pipe.
const openNonblock = unix.O_NONBLOCK

var errLocked = unix.EWOULDBLOCK

func lockFile(f *os.File, alone bool) error {
	how := unix.LOCK_SH
	if alone {
		how = unix.LOCK_EX
	}
	return unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
}

func syncDir(d *os.File) error { return d.Sync() }

func syncFilesystem(d *os.File) error { return unix.Syncfs(int(d.Fd())) }

// exchange swaps two names at once; on a file system that cannot, one after the
// other.
func exchange(root *os.Root, a, b string) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	err = unix.Renameat2(int(d.Fd()), a, int(d.Fd()), b, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		return exchangeSlowly(root, a, b)
	}
	return err
}
