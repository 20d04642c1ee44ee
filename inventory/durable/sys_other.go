//go:build !linux

package durable

import "os"

func syncFilesystem(d *os.File) error { return syncDir(d) }

func exchange(root *os.Root, a, b string) error { return exchangeSlowly(root, a, b) }
