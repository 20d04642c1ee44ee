package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
)

// A checkedFile is a file of an export that is compared with what would be written.
type checkedFile struct {
	Name  string `json:"name"`
	State string `json:"state"` // "same", "differs", "missing", "left over"
}

// checkExport writes the export beside and says which files of the directory differ
// from it. The manifest, which is dated, is not compared, but what it says of the
// files has to hold.
func (f *fleet) checkExport(ctx context.Context, t templates.Target, o exportOptions, options templates.Options) (err error) {
	out, err := filepath.Abs(o.out)
	if err != nil {
		return err
	}
	if options.Dest == "" {
		options.Dest = out
	}
	options.AllowShrink = true
	have, err := durable.OpenDir(out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, have.Close()) }()
	temp, err := os.MkdirTemp("", "imprint-check-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	dst, err := durable.OpenDir(temp)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	summary, err := f.export(ctx, t, dst, options, o.approximate != "")
	if err != nil {
		return err
	}
	files, err := compareFiles(have.FS(), summary.Files)
	if err != nil {
		return err
	}
	differing := 0
	err = f.app.printRows([]string{"FILE", "STATE"}, func(emit func(any, ...string) error) error {
		for _, c := range files {
			if c.State != "same" {
				differing++
			}
			if err := emit(c, c.Name, c.State); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || differing == 0 {
		return err
	}
	return foundError{fmt.Errorf("%d files in %s differ from the fleet: imprint export %s --out %s brings them up to date", differing, o.out, t.Capabilities().Name, o.out)}
}

// compareFiles compares files with what they should be, by their hashes.
func compareFiles(src fs.FS, want []templates.FileInfo) ([]checkedFile, error) {
	var out []checkedFile
	for _, w := range want {
		sum, _, err := templates.HashFile(src, w.Name)
		c := checkedFile{w.Name, "same"}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			c.State = "missing"
		case err != nil:
			return nil, err
		case sum != w.SHA256:
			c.State = "differs"
		}
		out = append(out, c)
	}
	m, err := templates.ReadManifest(src)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return append(out, checkedFile{templates.ManifestName, "missing"}), nil
	case err != nil:
		return nil, err
	}
	for _, f := range m.Files {
		i := slices.IndexFunc(out, func(c checkedFile) bool { return c.Name == f.Name })
		if i < 0 {
			out = append(out, checkedFile{f.Name, "left over"})
		}
	}
	return out, nil
}
