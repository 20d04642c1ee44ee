package delivery

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"filippo.io/age"

	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates/bundle"
)

// ToDirectory delivers bundles as directories: PATH/ID/key.pem and so on.
func ToDirectory(path string) Destination { return &directory{path: path} }

// ToArchive delivers all bundles of a job as one tar file, encrypted with age
// (age-encryption.org/v1) for the recipients. The file appears when the job is
// complete.
func ToArchive(path string, now func() time.Time, recipients ...age.Recipient) Destination {
	return &archive{path: path, now: now, recipients: recipients}
}

// directory is a destination of one directory per device.
type directory struct {
	path string
	dir  *durable.Dir
}

const spoolName = ".imprint-spool"

func (d *directory) where() (dir, name string) { return d.path, spoolName }

func (d *directory) check() error { return d.open() }

func (d *directory) open() error {
	if d.dir != nil {
		return nil
	}
	var err error
	d.dir, err = durable.CreateDir(d.path)
	return err
}

// put writes each bundle under a name of the spool and moves it to its place.
// The files are not synced one by one: until finish has synced them all, the
// spool has them.
func (d *directory) put(batch []Item, render func(Item) ([]bundle.File, error)) error {
	if err := d.open(); err != nil {
		return err
	}
	root := d.dir.Root()
	for _, item := range batch {
		files, err := render(item)
		if err != nil {
			return fmt.Errorf("bundle of %s: %w", item.ID, err)
		}
		id := string(item.ID)
		tmp := path.Join(spoolName, id)
		if err := root.RemoveAll(tmp); err != nil {
			return fmt.Errorf("bundle of %s: %w", id, err)
		}
		if err := writeFiles(root, tmp, files); err != nil {
			return fmt.Errorf("bundle of %s: %w", id, err)
		}
		if err := moveInto(root, tmp, id); err != nil {
			return fmt.Errorf("bundle of %s: %w", id, err)
		}
	}
	return nil
}

// moveInto replaces the directory name by tmp.
func moveInto(root *os.Root, tmp, name string) error {
	err := root.Rename(tmp, name)
	if err == nil || !errors.Is(err, fs.ErrExist) { // which ENOTEMPTY is too
		return err
	}
	old := tmp + ".old"
	return errors.Join(root.Rename(name, old), root.Rename(tmp, name), root.RemoveAll(old))
}

func writeFiles(root *os.Root, dir string, files []bundle.File) error {
	if err := root.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := root.Chmod(dir, 0o700); err != nil { // whatever the umask
		return err
	}
	for _, file := range files {
		f, err := root.OpenFile(path.Join(dir, file.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(file.Data)
		if err = errors.Join(err, f.Chmod(file.Mode.Perm()), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (d *directory) finish(func(func([]Item) error) error, func(Item) ([]bundle.File, error)) error {
	return d.dir.SyncAll()
}

// archive is a destination of one encrypted tar file.
type archive struct {
	path       string
	now        func() time.Time
	recipients []age.Recipient
}

func (a *archive) where() (dir, name string) {
	return filepath.Dir(a.path), "." + filepath.Base(a.path) + ".spool"
}

func (a *archive) check() error {
	if _, err := os.Lstat(a.path); err == nil {
		return fmt.Errorf("%s: %w: the bundles of new devices need a file of their own", a.path, fs.ErrExist)
	}
	return nil
}

func (a *archive) put([]Item, func(Item) ([]bundle.File, error)) error { return nil }

// finish writes the archive. Making the bundles and encrypting them each have a
// goroutine, so that both cores are busy.
func (a *archive) finish(all func(func([]Item) error) error, render func(Item) ([]bundle.File, error)) (err error) {
	dir, err := durable.OpenDir(filepath.Dir(a.path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	f, err := dir.Create(filepath.Base(a.path), 0o600)
	if err != nil {
		return err
	}
	defer f.Abort()
	sealed, err := age.Encrypt(f, a.recipients...)
	if err != nil {
		return fmt.Errorf("encrypting %s: %w", a.path, err)
	}
	pr, pw := io.Pipe()
	go func() {
		w := bufio.NewWriterSize(pw, 1<<20)
		pw.CloseWithError(errors.Join(writeTar(w, a.now(), all, render), w.Flush()))
	}()
	if _, err := io.Copy(sealed, pr); err != nil {
		pr.CloseWithError(err)
		return fmt.Errorf("writing %s: %w", a.path, err)
	}
	if err := sealed.Close(); err != nil {
		return fmt.Errorf("writing %s: %w", a.path, err)
	}
	return f.Commit()
}

// writeTar writes the bundles one after the other, ID/NAME each. A public file
// that is the same as the first device's, as the trust bundle is, becomes a link
// to that: it comes out as a file again, and takes half a kilobyte.
func writeTar(w io.Writer, now time.Time, all func(func([]Item) error) error, render func(Item) ([]bundle.File, error)) error {
	tw := tar.NewWriter(w)
	first := map[string]bundle.File{} // of the first device, by name in the bundle; its Name is that in the archive
	err := all(func(batch []Item) error {
		for _, item := range batch {
			files, err := render(item)
			if err != nil {
				return fmt.Errorf("bundle of %s: %w", item.ID, err)
			}
			for _, file := range files {
				name := path.Join(string(item.ID), file.Name)
				header := &tar.Header{Name: name, Mode: int64(file.Mode.Perm()), ModTime: now, Format: tar.FormatUSTAR}
				if same, ok := first[file.Name]; ok && file.Mode.Perm()&0o077 != 0 && bytes.Equal(same.Data, file.Data) {
					header.Typeflag, header.Linkname, file.Data = tar.TypeLink, same.Name, nil
				} else if !ok {
					first[file.Name] = bundle.File{Name: name, Data: file.Data}
				}
				header.Size = int64(len(file.Data))
				if err := tw.WriteHeader(header); err != nil {
					return err
				}
				if _, err := tw.Write(file.Data); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return errors.Join(err, tw.Close())
}
