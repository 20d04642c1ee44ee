// Package durable writes files for real: what it says is written survives a
// power cut, and a reader sees the old file or the new one, never a part.
//
// A file is written under a random name in the directory it belongs to, given
// its mode, synced, renamed over the old one, and the directory is synced. A
// [Dir] is a directory held open, so that no name and no link leads out of it,
// whatever happens to the path meanwhile.
package durable

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
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
	after, err := root.Stat(".")
	if err == nil && !os.SameFile(before, after) {
		err = ErrNotRegular // replaced by a link between the two looks
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening directory %s: %w", path, err), root.Close())
	}
	return &Dir{root: root, path: abs}, nil
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

// makePath makes path and what is missing above it, and syncs each parent.
func makePath(path string) error {
	parent := filepath.Dir(path)
	if _, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) {
		if err := makePath(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chmod(path, 0o700); err != nil { // whatever the umask
		return err
	}
	return syncPath(parent)
}

func syncPath(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(syncDir(d), d.Close())
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
	return &Dir{root: root, path: filepath.Join(d.path, name)}, nil
}

// Mkdir makes a directory inside d, with mode 0700, if it is not there, makes
// that durable, and opens it.
func (d *Dir) Mkdir(name string) (*Dir, error) {
	err := d.root.Mkdir(name, 0o700)
	if err == nil {
		err = errors.Join(d.root.Chmod(name, 0o700), d.Sync())
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("making directory: %w", err)
	}
	return d.Sub(name)
}

// WriteFile replaces a file, or makes it, with exactly the mode perm. On an
// error the old file is as it was.
func (d *Dir) WriteFile(name string, data []byte, perm fs.FileMode) error {
	f, err := d.Create(name, perm)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Commit()
}

// A File is a file on its way into a [Dir]. Nobody sees it before Commit.
type File struct {
	dir       *Dir
	f         *os.File
	name, tmp string
}

// Create begins a file that will replace name, or make it, with exactly the mode
// perm. The caller ends with Commit or Abort.
func (d *Dir) Create(name string, perm fs.FileMode) (*File, error) {
	if info, err := d.root.Lstat(name); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("writing %s: %w", filepath.Join(d.path, name), ErrNotRegular)
	}
	var suffix [8]byte
	_, _ = rand.Read(suffix[:])
	dir, base := filepath.Split(name)
	tmp := dir + "." + base + "." + hex.EncodeToString(suffix[:]) + ".tmp"
	f, err := d.root.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", name, err)
	}
	file := &File{dir: d, f: f, name: name, tmp: tmp}
	if err := f.Chmod(perm.Perm()); err != nil { // whatever the umask
		file.Abort()
		return nil, fmt.Errorf("writing %s: %w", name, err)
	}
	return file, nil
}

// Write implements [io.Writer].
func (f *File) Write(p []byte) (int, error) {
	n, err := f.f.Write(p)
	if err != nil {
		err = fmt.Errorf("writing %s: %w", f.name, err)
	}
	return n, err
}

// Sync makes durable what has been written, still under the temporary name, so
// that several files can be put in place one right after the other.
func (f *File) Sync() error {
	if err := f.f.Sync(); err != nil {
		return fmt.Errorf("writing %s: %w", f.name, err)
	}
	return nil
}

// Reader returns what has been written so far, from the beginning, to be checked
// before Commit.
func (f *File) Reader() io.Reader {
	return io.NewSectionReader(f.f, 0, 1<<62)
}

// Commit makes the file durable and puts it in place. If it fails, the old file
// is in place.
func (f *File) Commit() error {
	if f.f == nil {
		return fmt.Errorf("writing %s: %w", f.name, fs.ErrClosed)
	}
	err := f.Sync()
	if err == nil {
		err = f.dir.root.Rename(f.tmp, f.name)
	}
	if err != nil {
		f.Abort()
		return fmt.Errorf("writing %s: %w", f.name, err)
	}
	err = f.f.Close()
	f.f = nil
	return errors.Join(err, f.dir.syncParent(f.name))
}

// Abort forgets the file. After Commit it does nothing.
func (f *File) Abort() {
	if f.f == nil {
		return
	}
	_ = f.f.Close()
	_ = f.dir.root.Remove(f.tmp)
	f.f = nil
}

// ReadFile reads a file of at most limit bytes. A larger one is [ErrTooLarge],
// anything but a plain file [ErrNotRegular].
func (d *Dir) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := d.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("reading %s: %w: at most %d bytes are read", name, ErrTooLarge, limit)
	}
	return b, nil
}

// Open opens a file to read. Anything but a plain file is [ErrNotRegular].
func (d *Dir) Open(name string) (*os.File, error) {
	before, err := d.root.Lstat(name)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(d.path, name), ErrNotRegular)
	}
	f, err := d.root.OpenFile(name, os.O_RDONLY|openNonblock, 0)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	after, err := f.Stat()
	if err == nil && !os.SameFile(before, after) {
		err = ErrNotRegular // replaced between the two looks
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading %s: %w", name, err), f.Close())
	}
	return f, nil
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

// Swap puts a file or directory that has been prepared as tmp in the place of
// name, durably. A file is replaced at once. A directory that is there is
// exchanged with tmp, so that name always exists, and then removed.
func (d *Dir) Swap(tmp, name string) error {
	old, err := d.root.Lstat(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replacing %s: %w", name, err)
	}
	if err != nil || !old.IsDir() {
		if err := d.root.Rename(tmp, name); err != nil {
			return fmt.Errorf("replacing %s: %w", name, err)
		}
		return d.syncParent(name)
	}
	if err := exchange(d.root, tmp, name); err != nil {
		return fmt.Errorf("replacing %s: %w", name, err)
	}
	return errors.Join(d.syncParent(name), d.RemoveAll(tmp))
}

// Sync makes the names in the directory durable.
func (d *Dir) Sync() error { return d.syncParent(".") }

// syncParent makes the name of a file durable: the directory that holds it.
func (d *Dir) syncParent(name string) error {
	f, err := d.root.Open(filepath.Dir(name))
	if err != nil {
		return fmt.Errorf("syncing %s: %w", d.path, err)
	}
	if err := errors.Join(syncDir(f), f.Close()); err != nil {
		return fmt.Errorf("syncing %s: %w", d.path, err)
	}
	return nil
}

// SyncAll makes everything durable that has been written to the file system the
// directory is on. After thousands of small files it is far cheaper than a sync
// of each.
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
