package durable

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func syncFilesystem(d *os.File) error { return unix.Syncfs(int(d.Fd())) }

// exchange swaps two names at once (renameat2(2), RENAME_EXCHANGE); on a file
// system that cannot, one after the other. The directories of both are opened
// first, because the call itself would follow a link out of root.
func exchange(root *os.Root, a, b string) (err error) {
	dirA, err := root.Open(filepath.Dir(a))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dirA.Close()) }()
	dirB, err := root.Open(filepath.Dir(b))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dirB.Close()) }()
	err = unix.Renameat2(int(dirA.Fd()), filepath.Base(a), int(dirB.Fd()), filepath.Base(b), unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		return exchangeSlowly(root, a, b)
	}
	return err
}
