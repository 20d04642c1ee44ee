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
)

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
// a dead process has left is replaced; that of a live one is an error that wraps
// [syscall.EADDRINUSE], and any other file one that wraps [fs.ErrExist]. The caller
// holds the lock of the store, so no other process makes one meanwhile.
//
// Nobody finds the socket before it has its mode.
func Listen(path string) (net.Listener, error) {
	if err := free(path); err != nil {
		return nil, err
	}
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	short, done, err := shorten(temp)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by its long name, below
	owned := &ownSocket{UnixListener: l, path: temp}
	if err := errors.Join(os.Chmod(temp, 0o600), os.Rename(temp, path)); err != nil {
		return nil, errors.Join(err, owned.Close())
	}
	owned.path = path
	return owned, nil
}

// free makes sure that no live process listens at path, and that what is there may
// be replaced.
func free(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is no socket: %w", path, fs.ErrExist)
	}
	conn, err := dial(context.Background(), path)
	switch {
	case err == nil:
		_ = conn.Close()
		return fmt.Errorf("%s: %w", path, syscall.EADDRINUSE)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	// A full queue, for one, is that of a live process.
	return fmt.Errorf("%s: %w: %w", path, syscall.EADDRINUSE, err)
}

// dial connects to a socket whose path may be longer than a socket's may be.
func dial(ctx context.Context, path string) (net.Conn, error) {
	short, done, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	return d.DialContext(ctx, "unix", short)
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

// heard reports whether a process of self hears a peer that runs as uid.
func heard(uid, self int) bool { return uid == 0 || uid == self }
