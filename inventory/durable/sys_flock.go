//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package durable

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// openNonblock keeps an open from waiting for the other end of a pipe.
const openNonblock = unix.O_NONBLOCK

var errLocked error = unix.EWOULDBLOCK

func lockFile(f *os.File, alone bool) error {
	how := unix.LOCK_SH
	if alone {
		how = unix.LOCK_EX
	}
	return unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
}

func syncDir(d *os.File) error { return d.Sync() }

// onlyName reports whether a file has no second name, a hard link.
func onlyName(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink == 1
}
