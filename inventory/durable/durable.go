// Package durable writes files for real: what it says is written survives a
// power cut, and a reader sees the old file or the new one, never a part.
//
// A file is written under a random name in the directory it belongs to, given
// its mode, synced, renamed over the old one, and the directory is synced. A
// [Dir] is a directory held open, so that no name and no link leads out of it,
// whatever happens to the path meanwhile.
//
// A crash while a file is written leaves the old file, and perhaps one named
// .NAME.*.tmp that nobody reads.
//
// All of this holds on Linux. Other systems cannot exchange two directories at
// once; Windows, besides, can neither sync a directory nor lock, so there one can
// look at a fleet but should not run one.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// ErrTooLarge reports a file that is larger than the caller wants to read.
var ErrTooLarge = errors.New("file is too large")

// ErrNotRegular reports a link, a pipe, a device or a directory where a plain
// file or directory is wanted. It is not opened: a pipe would block, a link lead
// elsewhere.
var ErrNotRegular = errors.New("not a plain file or directory")

// A Dir is a directory held open. Names given to its methods are relative to it,
// separated by slashes, and never lead out of it.
type Dir struct {
	root *os.Root
	path string // absolute, for messages
}

// OpenDir opens a directory that exists. A symbolic link in its place is refused
// with [ErrNotRegular].
func OpenDir(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("opening directory: %w", err)
	}
	before, err := os.Lstat(abs)
	if err != nil {
		return nil, fmt.Errorf("opening directory: %w", err)
	}
	if !before.IsDir() {
		return nil, fmt.Errorf("opening directory %s: %w", path, ErrNotRegular)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("opening directory: %w", err)
	}
	return newDir(root, before, abs)
}

// newDir takes root, if it is the directory that was looked at before it was
// opened, and not one that a link put in its place leads to.
func newDir(root *os.Root, before fs.FileInfo, path string) (*Dir, error) {
	after, err := root.Stat(".")
	if err == nil && !os.SameFile(before, after) {
		err = ErrNotRegular
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening directory %s: %w", path, err), root.Close())
	}
	return &Dir{root: root, path: path}, nil
}

// CreateDir opens a directory and makes it first, with mode 0700, if it is not
// there; so are the directories above it.
func CreateDir(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("making directory: %w", err)
	}
	if _, err := os.Lstat(abs); errors.Is(err, fs.ErrNotExist) {
		if err := makePath(abs); err != nil {
			return nil, fmt.Errorf("making directory: %w", err)
		}
	}
	return OpenDir(abs)
}

// makePath makes path and what is missing above it, and syncs each parent. What
// somebody else has put there meanwhile is left as it is.
func makePath(path string) (err error) {
	parent := filepath.Dir(path)
	if _, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) {
		if err := makePath(parent); err != nil {
			return err
		}
	}
	root, err := os.OpenRoot(parent)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if _, err := makeDir(root, filepath.Base(path)); err != nil {
		return err
	}
	return syncIn(root, ".")
}

// makeDir makes a directory with mode 0700, unless there is something.
func makeDir(root *os.Root, name string) (made bool, err error) {
	err = root.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, root.Chmod(name, 0o700) // whatever the umask
}

// syncIn makes the names in a directory durable.
func syncIn(root *os.Root, dir string) error {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(syncDir(f), f.Close())
}

// Path returns the absolute path that the directory was opened at.
func (d *Dir) Path() string { return d.path }

// Root returns the directory as an [os.Root], for work that need not be durable
// file by file. It is closed with d.
func (d *Dir) Root() *os.Root { return d.root }

// FS returns the directory as a file system to read from.
func (d *Dir) FS() fs.FS { return d.root.FS() }

// Close releases the directory.
func (d *Dir) Close() error { return d.root.Close() }

// Sub opens a directory inside d. A link is refused with [ErrNotRegular].
func (d *Dir) Sub(name string) (*Dir, error) {
	info, err := d.root.Lstat(name)
	if err != nil {
		return nil, fmt.Errorf("opening directory: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("opening directory %s: %w", name, ErrNotRegular)
	}
	root, err := d.root.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("opening directory: %w", err)
	}
	return newDir(root, info, filepath.Join(d.path, name))
}

// Mkdir makes a directory inside d, with mode 0700, if it is not there, makes
// that durable, and opens it.
func (d *Dir) Mkdir(name string) (*Dir, error) {
	made, err := makeDir(d.root, name)
	if err != nil {
		return nil, fmt.Errorf("making directory: %w", err)
	}
	if made {
		if err := d.syncParent(name); err != nil {
			return nil, err
		}
	}
	return d.Sub(name)
}

// Stat describes a file, without following a link.
func (d *Dir) Stat(name string) (fs.FileInfo, error) { return d.root.Lstat(name) }

// Names lists the directory, sorted.
func (d *Dir) Names() ([]string, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", d.path, err)
	}
	names, err := f.Readdirnames(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("listing %s: %w", d.path, err)
	}
	slices.Sort(names)
	return names, nil
}

// Remove removes a file or an empty directory, durably. That it is not there is
// no error.
func (d *Dir) Remove(name string) error {
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	return d.syncParent(name)
}

// RemoveAll removes a file, or a directory with all that is in it, durably.
func (d *Dir) RemoveAll(name string) error {
	if err := d.root.RemoveAll(name); err != nil {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	return d.syncParent(name)
}

// Sync makes the names in the directory durable.
func (d *Dir) Sync() error { return d.syncParent(".") }

// syncParent makes the name of a file durable: the directory that holds it.
func (d *Dir) syncParent(name string) error {
	if err := syncIn(d.root, filepath.Dir(name)); err != nil {
		return fmt.Errorf("syncing %s: %w", d.path, err)
	}
	return nil
}

// SyncAll makes everything durable that has been written to the file system the
// directory is on (syncfs(2)). After thousands of small files it is far cheaper
// than a sync of each. Linux before 5.8 does not report a failed write here.
func (d *Dir) SyncAll() error {
	f, err := d.root.Open(".")
	if err != nil {
		return fmt.Errorf("syncing %s: %w", d.path, err)
	}
	if err := errors.Join(syncFilesystem(f), f.Close()); err != nil {
		return fmt.Errorf("syncing %s: %w", d.path, err)
	}
	return nil
}
