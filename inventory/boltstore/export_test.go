package boltstore

import (
	"errors"

	bolt "go.etcd.io/bbolt"
)

// SetSchema gives the database of cfg, which is not open, another schema version,
// as a newer imprint would.
func SetSchema(cfg Config, version uint16) error {
	db, err := bolt.Open(databaseFile, 0o600, &bolt.Options{OpenFile: cfg.Dir.Root().OpenFile})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b, seal := tx.Bucket([]byte(bucketName)), newSealer(derive(cfg.Key, "record"))
		h, err := readHead(newChain(b, seal))
		if err != nil {
			return err
		}
		h.schema = version
		c := b.Cursor()
		c.First()
		next, _ := c.Next()
		// A newer head may also be longer.
		return b.Put(headKey(), seal.seal(headKey(), append([]byte(nil), next...), append(h.encode(), "more"...)))
	})
	return errors.Join(err, db.Close())
}
