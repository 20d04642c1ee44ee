package remote

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

var noDeadline time.Time

// maxSocketPath is what fits into sun_path everywhere (unix(7)).
const maxSocketPath = 100

// shorten returns a path to the same socket that is short enough for one.
func shorten(path string) (short string, done func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { _ = dir.Close() }, nil
}

// Listen makes the socket at path, for the owner of the process only. A socket that
// a dead process has left is replaced; that of a live one is an error. The caller
// holds the lock of the store, so no other process makes one meanwhile.
func Listen(path string) (net.Listener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is there and is no socket: %w", path, fs.ErrExist)
	default:
		conn, err := dial(context.Background(), path)
		if err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("%s: %w", path, syscall.EADDRINUSE)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	short, done, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by its long name, below
	owned := &ownSocket{UnixListener: l, path: path}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, owned.Close())
	}
	return owned, nil
}

// An ownSocket removes its socket when it is closed.
type ownSocket struct {
	*net.UnixListener
	path string
	once sync.Once
}

// Close implements [net.Listener]. The name goes first: as soon as Accept returns
// somebody may listen under it again.
func (s *ownSocket) Close() error {
	var err error
	s.once.Do(func() { err = errors.Join(os.Remove(s.path), s.UnixListener.Close()) })
	return err
}
