package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/imprint-iot/imprint/inventory/durable"
)

// Files and directories that the user has named.

// fileError says what is wrong with a file, and names it once, as the user did.
func fileError(path string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, durable.ErrNotRegular) {
		return fmt.Errorf("%s: %w", path, durable.ErrNotRegular)
	}
	if bad, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", path, bad.Err)
	}
	return err
}

// openIn opens a plain file, and the directory that it is in.
func openIn(path string) (*os.File, *durable.Dir, error) {
	dir, err := durable.OpenDir(filepath.Dir(path))
	if err != nil {
		return nil, nil, fileError(path, err)
	}
	file, err := dir.Open(filepath.Base(path))
	if err != nil {
		return nil, nil, errors.Join(fileError(path, err), dir.Close())
	}
	return file, dir, nil
}

// readFile reads a plain file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	dir, err := durable.OpenDir(filepath.Dir(path))
	if err != nil {
		return nil, fileError(path, err)
	}
	b, err := dir.ReadFile(filepath.Base(path), limit)
	return b, errors.Join(fileError(path, err), dir.Close())
}

// readIn reads a file, or standard input for "-".
func (a *app) readIn(path string, limit int64) ([]byte, error) {
	if path != "-" {
		return readFile(path, limit)
	}
	b, err := io.ReadAll(io.LimitReader(a.in, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("standard input: %w: at most %d bytes are read", durable.ErrTooLarge, limit)
	}
	return b, err
}

// An outFile is a file that is there when it is complete.
type outFile struct {
	*durable.File
	dir  *durable.Dir
	path string
}

// createOut begins a file. That it cannot be made is found out here.
func createOut(path string, perm fs.FileMode) (*outFile, error) {
	dir, err := durable.OpenDir(filepath.Dir(path))
	if err != nil {
		return nil, fileError(path, err)
	}
	f, err := dir.Create(filepath.Base(path), perm)
	if err != nil {
		return nil, errors.Join(fileError(path, err), dir.Close())
	}
	return &outFile{File: f, dir: dir, path: path}, nil
}

// finish writes the file.
func (o *outFile) finish(data []byte) error {
	_, err := o.Write(data)
	if err == nil {
		err = o.Commit()
	}
	return fileError(o.path, err)
}

// close forgets a file that has not been finished.
func (o *outFile) close() error {
	o.Abort()
	return o.dir.Close()
}

// writeOut writes a file.
func writeOut(path string, data []byte, perm fs.FileMode) error {
	out, err := createOut(path, perm)
	if err != nil {
		return err
	}
	return errors.Join(out.finish(data), out.close())
}

// tidyOut returns a function that removes the directories up to path which are not
// there now, if they are empty by then: what a command that was refused has made
// for nothing.
func tidyOut(path string) func() {
	var missing []string
	abs, err := filepath.Abs(path)
	for err == nil {
		if _, err := os.Lstat(abs); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		missing = append(missing, abs)
		abs = filepath.Dir(abs)
	}
	return func() {
		for _, dir := range missing {
			_ = os.Remove(dir) // which does not remove what has something in it
		}
	}
}
