package boltstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"

	bolt "go.etcd.io/bbolt"
)

// The layout of a bbolt file, version 2: two pages that each begin with a page
// header of 16 bytes and this meta record, in the byte order of the machine.
//
//	magic 4, version 4, page size 4, flags 4, root bucket 16, freelist 8,
//	number of pages 8, transaction 8, FNV-1a of all before 8
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2
	boltHeader  = 16
	boltMeta    = 64
)

// checkFile looks at a database before it is mapped. bbolt takes an empty file
// for a new database, so a lost inventory would look like a new fleet; and a
// page beyond the end of the file is a SIGBUS.
//
// Both meta pages must be good. bbolt goes on with the other one, which is the
// state before the last change: right after a torn write, but a meta record lies
// within one disk sector, so it is damage that is seen here, and the last change
// was acknowledged.
func checkFile(dir *durable.Dir) error {
	f, err := dir.Open(databaseFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("database: %w: %w", inventory.ErrNotFound, err)
	}
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	switch {
	case info.Size() == 0:
		return damaged("database", "the fleet is initialised, but its database is empty")
	}
	first, err := readMeta(f, 0)
	if err != nil {
		return err
	}
	second, err := readMeta(f, int64(first.pageSize))
	if err != nil {
		return err
	}
	pages := max(first.pages, second.pages)
	if second.pageSize != first.pageSize || pages > uint64(info.Size())/uint64(first.pageSize) {
		return damaged("database", "the file has been cut off")
	}
	return nil
}

type metaPage struct {
	pageSize uint32
	pages    uint64
}

func readMeta(f *os.File, offset int64) (metaPage, error) {
	var b [boltHeader + boltMeta]byte
	if _, err := f.ReadAt(b[:], offset); errors.Is(err, io.EOF) {
		return metaPage{}, damaged("database", "the file has been cut off")
	} else if err != nil {
		return metaPage{}, fmt.Errorf("reading database: %w", err)
	}
	meta := b[boltHeader:]
	order := binary.NativeEndian
	sum := fnv.New64a()
	_, _ = sum.Write(meta[:boltMeta-8]) // a hash never fails
	if order.Uint32(meta) != boltMagic || order.Uint32(meta[4:]) != boltVersion || order.Uint64(meta[boltMeta-8:]) != sum.Sum64() {
		return metaPage{}, damaged("database", "its first pages do not verify")
	}
	m := metaPage{pageSize: order.Uint32(meta[8:]), pages: order.Uint64(meta[40:])}
	if m.pageSize < 1024 || m.pageSize > 1<<24 {
		return metaPage{}, damaged("database", "its first pages do not verify")
	}
	return m, nil
}

// createDatabase makes a database that holds only its head. It is made under
// another name: bbolt can leave a broken file if the power fails while it makes
// one.
func createDatabase(dir *durable.Dir, seal *sealer, h head) error {
	const temp = databaseFile + ".new"
	if err := dir.Remove(temp); err != nil {
		return fmt.Errorf("creating database: %w", err)
	}
	db, err := bolt.Open(temp, 0o600, &bolt.Options{
		FreelistType: bolt.FreelistMapType,
		OpenFile:     dir.Root().OpenFile,
	})
	if err != nil {
		return fmt.Errorf("creating database: %w", err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket([]byte(bucketName))
		if err != nil {
			return err
		}
		return b.Put(headKey(), seal.seal(headKey(), nil, h.encode()))
	})
	err = errors.Join(err, db.Close())
	if err == nil {
		err = dir.Root().Chmod(temp, 0o600) // whatever the umask
	}
	if err != nil {
		return errors.Join(fmt.Errorf("creating database: %w", err), dir.Remove(temp))
	}
	return dir.Swap(temp, databaseFile)
}
