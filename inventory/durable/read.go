package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// ReadFile reads a file of at most limit bytes. A larger one is [ErrTooLarge],
// anything but a plain file [ErrNotRegular].
func (d *Dir) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := d.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	var more [1]byte
	n, err := f.Read(more[:])
	if n > 0 {
		return nil, fmt.Errorf("reading %s: %w: at most %d bytes are read", name, ErrTooLarge, limit)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return b, nil
}

// Open opens a file to read. Anything but a plain file is [ErrNotRegular].
func (d *Dir) Open(name string) (*os.File, error) {
	f, err := d.openRegular(name, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return f, nil
}

// maxReplaced bounds how often a file may be replaced while it is opened: each
// time, that takes a rename between two system calls.
const maxReplaced = 100

// openRegular opens a plain file. It looks before it opens, so that no device is
// touched and no link inside the directory is followed, and at what it has opened.
// If that is another file, somebody has replaced it in between, as WriteFile does:
// it looks again.
func (d *Dir) openRegular(name string, flag int) (*os.File, error) {
	for range maxReplaced {
		before, err := d.root.Lstat(name)
		if err != nil {
			return nil, err
		}
		if !before.Mode().IsRegular() {
			return nil, fmt.Errorf("%s: %w", filepath.Join(d.path, name), ErrNotRegular)
		}
		f, err := d.root.OpenFile(name, flag|openNonblock, 0)
		if err != nil {
			return nil, err
		}
		after, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if after.Mode().IsRegular() && os.SameFile(before, after) {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: it changes all the time: %w", filepath.Join(d.path, name), ErrNotRegular)
}
