package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// An InUseError reports a lock that another process holds.
type InUseError struct {
	Path string // of the directory
	PID  int    // of the process; 0 if it is not known: several share the lock
}

// Error names the process.
func (e *InUseError) Error() string {
	if e.PID == 0 {
		return e.Path + ": in use by another process"
	}
	return fmt.Sprintf("%s: in use by pid %d", e.Path, e.PID)
}

// A Lock keeps other processes away. It ends with Unlock, or with the process.
type Lock struct{ f *os.File }

// Lock takes the lock that is a file in the directory, alone. If another process
// holds it, alone or shared, the error is an [*InUseError]; Lock does not wait.
func (d *Dir) Lock(name string) (*Lock, error) { return d.lock(name, true) }

// LockShared takes the lock together with others that share it. It needs the right
// to write the lock file, as Lock does.
func (d *Dir) LockShared(name string) (*Lock, error) { return d.lock(name, false) }

func (d *Dir) lock(name string, alone bool) (*Lock, error) {
	f, err := d.openLock(name)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", d.path, err)
	}
	if err := lockFile(f, alone); err != nil {
		if errors.Is(err, errLocked) {
			err = &InUseError{Path: d.path, PID: readPID(f)}
		}
		return nil, errors.Join(err, f.Close())
	}
	// What the file holds is for whoever finds the lock taken: that it may be lost
	// in a power cut is of no matter. One who shares is one of several, and has no
	// name; but that of the last one who did not share is out of date.
	err = errors.Join(f.Chmod(0o600), f.Truncate(0)) // the mode whatever the umask
	if err == nil && alone {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", filepath.Join(d.path, name), err), f.Close())
	}
	return &Lock{f: f}, nil
}

// openLock opens the lock file, and makes it if it is not there. A link of either
// kind is refused: what it leads to would be written over.
func (d *Dir) openLock(name string) (*os.File, error) {
	f, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil || !errors.Is(err, fs.ErrExist) {
		return f, err
	}
	f, err = d.openRegular(name, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !onlyName(info) {
		err = fmt.Errorf("%s: %w: it has two names", filepath.Join(d.path, name), ErrNotRegular)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func readPID(f *os.File) int {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return 0
	}
	return pid
}

// Unlock gives the lock back. The file stays.
func (l *Lock) Unlock() error { return l.f.Close() }
