package durable

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

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
// is in place, unless all that failed was to make the new name durable: then a
// power cut may bring the old file back.
func (f *File) Commit() error {
	if f.f == nil {
		return fmt.Errorf("writing %s: %w", f.name, fs.ErrClosed)
	}
	if err := f.Sync(); err != nil {
		f.Abort()
		return err
	}
	err := f.f.Close()
	if err == nil {
		err = f.dir.root.Rename(f.tmp, f.name)
	}
	if err != nil {
		f.Abort()
		return fmt.Errorf("writing %s: %w", f.name, err)
	}
	f.f = nil
	return f.dir.syncParent(f.name)
}

// Abort forgets the file. After Commit it does nothing.
func (f *File) Abort() {
	if f.f == nil {
		return
	}
	_ = f.f.Close() // again, if Commit failed: no harm
	_ = f.dir.root.Remove(f.tmp)
	f.f = nil
}
