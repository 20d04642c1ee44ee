package boltstore

import (
	"encoding/binary"
	"fmt"

	"github.com/imprint-iot/imprint/inventory"
)

// A head is the first record. Every change writes it, so it also says what must
// be there: a store that lost its last events, or a whole kind of records, no
// longer agrees with its head.
type head struct {
	schema   uint16
	instance [16]byte
	revision uint64         // the number of the last event
	last     inventory.Hash // the hash of the last event
	journal  position       // the end of the journal that this state includes
	counts   counts
}

// counts holds the number of records of each kind that is not an index.
type counts struct {
	devices, credentials, profiles, issuers, keys, revocations uint64
}

// of returns the counter of a kind, or nil if it has none.
func (c *counts) of(kind byte) *uint64 {
	switch kind {
	case kindDevice:
		return &c.devices
	case kindCredential:
		return &c.credentials
	case kindProfile:
		return &c.profiles
	case kindIssuer:
		return &c.issuers
	case kindKey:
		return &c.keys
	case kindRevocation:
		return &c.revocations
	}
	return nil
}

const headSize = 2 + 16 + 8 + 32 + 8 + macSize + 6*8

// encode writes the schema first: a newer imprint may change all that follows.
func (h *head) encode() []byte {
	b := make([]byte, 0, headSize)
	b = binary.BigEndian.AppendUint16(b, h.schema)
	b = append(b, h.instance[:]...)
	b = binary.BigEndian.AppendUint64(b, h.revision)
	b = append(b, h.last[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(h.journal.offset))
	b = append(b, h.journal.mac[:]...)
	for _, n := range []uint64{h.counts.devices, h.counts.credentials, h.counts.profiles, h.counts.issuers, h.counts.keys, h.counts.revocations} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

// decodeHead returns [inventory.ErrVersion] for a newer schema.
func decodeHead(b []byte) (head, error) {
	var h head
	if len(b) < 2 {
		return h, damaged("head", "it is too short")
	}
	if h.schema = binary.BigEndian.Uint16(b); h.schema > schemaVersion {
		return h, fmt.Errorf("schema %d, this imprint knows %d: %w", h.schema, schemaVersion, inventory.ErrVersion)
	}
	if len(b) != headSize {
		return h, damaged("head", "it has the wrong length")
	}
	b = b[2:]
	b = b[copy(h.instance[:], b):]
	h.revision = binary.BigEndian.Uint64(b)
	b = b[8:]
	b = b[copy(h.last[:], b):]
	h.journal.offset = int64(binary.BigEndian.Uint64(b) &^ (1 << 63))
	b = b[8:]
	b = b[copy(h.journal.mac[:], b):]
	for i, n := range []*uint64{&h.counts.devices, &h.counts.credentials, &h.counts.profiles, &h.counts.issuers, &h.counts.keys, &h.counts.revocations} {
		*n = binary.BigEndian.Uint64(b[8*i:])
	}
	return h, nil
}

// readHead reads and checks the head of c.
func readHead(c *chain) (head, error) {
	b, ok, err := c.get(headKey())
	if err != nil {
		return head{}, err
	}
	if !ok {
		return head{}, damaged("head", "it is missing")
	}
	return decodeHead(b)
}
