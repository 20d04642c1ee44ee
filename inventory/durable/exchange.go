package durable

import "os"

// exchangeSlowly swaps two names in three steps. A crash in between leaves b
// under a third name.
func exchangeSlowly(root *os.Root, a, b string) error {
	third := b + ".old"
	if err := root.Rename(b, third); err != nil {
		return err
	}
	if err := root.Rename(a, b); err != nil {
		_ = root.Rename(third, b)
		return err
	}
	return root.Rename(third, a)
}
