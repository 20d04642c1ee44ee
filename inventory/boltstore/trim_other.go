//go:build !linux

package boltstore

// trim does nothing: elsewhere than on Linux mapped pages stay until the kernel
// wants them back.
func (s *Store) trim() {}
