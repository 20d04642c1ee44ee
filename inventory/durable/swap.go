package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Swap puts a file or directory that has been prepared as tmp, and synced, in the
// place of name, durably. A file is replaced at once. A directory that is there is
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

// exchangeSlowly swaps two names in three steps. After a crash between them the
// old content is at b.old, and the new one at a or at b. Once there is something
// at b again, what has stayed at b.old is of no use and is removed.
func exchangeSlowly(root *os.Root, a, b string) error {
	if _, err := root.Lstat(a); err != nil {
		return err
	}
	third := b + ".old"
	if err := root.RemoveAll(third); err != nil {
		return err
	}
	if err := root.Rename(b, third); err != nil {
		return err
	}
	if err := root.Rename(a, b); err != nil {
		return errors.Join(err, root.Rename(third, b))
	}
	return root.Rename(third, a)
}
