package inventory

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"time"
)

// The stored form of a record, the same in every store:
//
//	version  1 byte
//	kind     1 byte
//	revision 8 bytes, big endian; only of records that have a Revision
//	fields   in the order of the struct
//
// A number is a varint in its shortest form; a text or a byte string is its
// length and its bytes; a list is its length and its elements; a time is 0 for
// the zero time and otherwise one more than the zigzag form of its Unix seconds.
// So a value has exactly one encoding, and an encoding exactly one value.
//
// Rules of change: fields are only ever added at the end, with a new version.
// A decoder reads every version up to its own, ignores nothing, and refuses a
// newer one with [ErrVersion]. Kinds are never reused.
const (
	recordVersion = 1
	deviceVersion = 2 // with Trust
)

const (
	deviceRecord     = 'D'
	credentialRecord = 'C'
	profileRecord    = 'P'
	issuerRecord     = 'I'
	eventRecord      = 'E'
	revocationRecord = 'R'
	keyRecord        = 'K'
	tokenRecord      = 'T'
	approvalRecord   = 'A'
	workRecord       = 'W'
	blockedRecord    = 'B' // in a digest only
	useRecord        = 'U' // in a digest only
)

// revisionAt is where the revision of a record is, if it has one.
const revisionAt = 2

// PutRevision sets the revision in the stored form of a record that has one, so that a store can encode a record before it knows the
// number of the change.
func PutRevision(record []byte, revision uint64) {
	binary.BigEndian.PutUint64(record[revisionAt:], revision)
}

// AppendBinary appends the stored form of d to b. A time that is not in whole
// seconds is an [*InvalidError].
func (d *Device) AppendBinary(b []byte) ([]byte, error) {
	if err := wholeSeconds("device", d.Created, d.Updated); err != nil {
		return b, err
	}
	b = appendHeader(b, deviceRecord, d.Revision)
	b = appendText(b, string(d.ID))
	b = append(b, byte(d.Kind))
	b = appendText(b, d.HardwareSerial)
	b = appendText(b, d.Profile)
	b = appendText(b, d.Group)
	b = binary.AppendUvarint(b, uint64(len(d.Labels)))
	for i := range d.Labels {
		b = appendText(b, d.Labels[i].Key)
		b = appendText(b, d.Labels[i].Value)
	}
	b = binary.AppendUvarint(b, uint64(len(d.Hosts)))
	for _, h := range d.Hosts {
		b = appendText(b, h)
	}
	b = append(b, byte(d.State))
	b = appendTime(b, d.Created)
	b = appendTime(b, d.Updated)
	return binary.AppendUvarint(b, uint64(d.Trust)), nil
}

// AppendBinary appends the stored form of c to b. A time that is not in whole
// seconds is an [*InvalidError].
func (c *Credential) AppendBinary(b []byte) ([]byte, error) {
	if err := wholeSeconds("credential", c.Created, c.FirstSeen, c.RevokedAt); err != nil {
		return b, err
	}
	b = appendHeader(b, credentialRecord, c.Revision)
	b = appendText(b, string(c.Device))
	b = append(b, byte(c.Kind))
	b = binary.AppendUvarint(b, uint64(c.Generation))
	b = append(b, byte(c.State))
	b = appendBool(b, c.Certificate != nil)
	if cert := c.Certificate; cert != nil {
		if err := wholeSeconds("certificate", cert.NotBefore, cert.NotAfter); err != nil {
			return b, err
		}
		b = appendBytes(b, cert.DER)
		b = append(b, cert.Serial[:]...)
		b = append(b, cert.SPKI[:]...)
		b = append(b, cert.Issuer[:]...)
		b = appendTime(b, cert.NotBefore)
		b = appendTime(b, cert.NotAfter)
	}
	b = binary.AppendUvarint(b, uint64(len(c.Verifiers)))
	for i := range c.Verifiers {
		v := &c.Verifiers[i]
		b = append(b, byte(v.Scheme))
		b = binary.AppendUvarint(b, uint64(v.Iterations))
		b = appendBytes(b, v.Salt)
		b = appendBytes(b, v.Hash)
	}
	b = appendTime(b, c.Created)
	b = binary.AppendUvarint(b, uint64(c.ReplacedBy))
	b = appendTime(b, c.FirstSeen)
	b = appendTime(b, c.RevokedAt)
	return append(b, byte(c.Reason)), nil
}

// AppendBinary appends the stored form of p to b.
func (p *Profile) AppendBinary(b []byte) ([]byte, error) {
	b = appendHeader(b, profileRecord, p.Revision)
	b = appendText(b, p.Name)
	b = appendBytes(b, p.Certificate)
	b = appendBool(b, p.Password.None)
	b = append(b, p.Password.Length)
	b = binary.AppendUvarint(b, uint64(len(p.Password.Schemes)))
	for _, s := range p.Password.Schemes {
		b = append(b, byte(s))
	}
	b = binary.AppendUvarint(b, uint64(len(p.Policy.Rules)))
	for i := range p.Policy.Rules {
		r := &p.Policy.Rules[i]
		b = append(b, byte(r.Action))
		b = appendText(b, r.Filter)
		b = appendBool(b, r.Shared)
	}
	return binary.AppendVarint(b, int64(p.Grace)), nil
}

// AppendBinary appends the stored form of i to b. A time that is not in whole
// seconds is an [*InvalidError].
func (i *Issuer) AppendBinary(b []byte) ([]byte, error) {
	if err := wholeSeconds("issuer", i.NotAfter, i.CRLThisUpdate, i.CRLNextUpdate); err != nil {
		return b, err
	}
	b = appendHeader(b, issuerRecord, i.Revision)
	b = appendText(b, i.Name)
	b = append(b, byte(i.Purpose))
	b = binary.AppendUvarint(b, uint64(i.Generation))
	b = append(b, byte(i.State))
	b = append(b, i.KeyID[:]...)
	b = append(b, i.SPKI[:]...)
	b = appendBytes(b, i.Certificate)
	b = appendText(b, i.Key)
	b = appendTime(b, i.NotAfter)
	b = binary.AppendUvarint(b, i.CRLNumber)
	b = appendTime(b, i.CRLThisUpdate)
	b = appendTime(b, i.CRLNextUpdate)
	return binary.AppendUvarint(b, i.CRLRevision), nil
}

// AppendBinary appends the stored form of e to b. A time that is not in whole
// seconds is an [*InvalidError].
func (e *Event) AppendBinary(b []byte) ([]byte, error) {
	if err := wholeSeconds("audit event", e.Time); err != nil {
		return b, err
	}
	b = appendHeader(b, eventRecord, e.Seq)
	b = appendTime(b, e.Time)
	b = appendText(b, e.Actor)
	b = appendText(b, e.Action)
	b = binary.AppendUvarint(b, uint64(len(e.Objects)))
	for i := range e.Objects {
		b = appendText(b, e.Objects[i].Kind)
		b = appendText(b, e.Objects[i].ID)
		b = appendText(b, e.Objects[i].Note)
	}
	b = appendText(b, e.Reason)
	b = append(b, e.Digest[:]...)
	b = append(b, e.Prev[:]...)
	return append(b, e.Hash[:]...), nil
}

// AppendBinary appends the stored form of r to b. A time that is not in whole
// seconds is an [*InvalidError].
func (r *Revocation) AppendBinary(b []byte) ([]byte, error) {
	if err := wholeSeconds("revocation", r.Time, r.NotAfter); err != nil {
		return b, err
	}
	b = append(b, recordVersion, revocationRecord)
	b = append(b, r.Issuer[:]...)
	b = append(b, r.Serial[:]...)
	b = appendText(b, string(r.Device))
	b = append(b, byte(r.Reason))
	b = appendTime(b, r.Time)
	return appendTime(b, r.NotAfter), nil
}

// AppendBinary appends the stored form of t to b. A time that is not in whole
// seconds is an [*InvalidError].
func (t *Token) AppendBinary(b []byte) ([]byte, error) {
	if err := wholeSeconds("token", t.NotBefore, t.Expires, t.Created, t.RevokedAt); err != nil {
		return b, err
	}
	b = appendHeader(b, tokenRecord, t.Revision)
	b = append(b, t.Hash[:]...)
	b = append(b, byte(t.Role))
	b = appendText(b, t.Name)
	b = binary.AppendUvarint(b, uint64(t.Limit))
	b = binary.AppendUvarint(b, uint64(t.Uses))
	b = binary.AppendUvarint(b, uint64(len(t.Devices)))
	for _, id := range t.Devices {
		b = appendText(b, string(id))
	}
	b = appendText(b, t.Prefix)
	b = appendText(b, t.Profile)
	b = appendText(b, t.Group)
	b = appendText(b, string(t.Station))
	b = binary.AppendUvarint(b, uint64(len(t.Networks)))
	for _, p := range t.Networks {
		b = appendText(b, p.String())
	}
	b = binary.AppendUvarint(b, uint64(t.PerMinute))
	b = appendBool(b, t.Approve)
	b = appendBool(b, t.Replace)
	b = appendTime(b, t.NotBefore)
	b = appendTime(b, t.Expires)
	b = appendTime(b, t.Created)
	b = appendText(b, t.CreatedBy)
	return appendTime(b, t.RevokedAt), nil
}

// AppendBinary appends the stored form of a to b. A time that is not in whole
// seconds is an [*InvalidError].
func (a *Approval) AppendBinary(b []byte) ([]byte, error) {
	if err := wholeSeconds("approval", a.Created, a.Decided); err != nil {
		return b, err
	}
	b = appendHeader(b, approvalRecord, a.Revision)
	b = append(b, a.Key[:]...)
	b = appendText(b, string(a.Device))
	b = append(b, byte(a.State))
	b = appendText(b, a.Asked)
	b = appendTime(b, a.Created)
	return appendTime(b, a.Decided), nil
}

// AppendBinary appends the stored form of u to b.
func (u *KeyUse) AppendBinary(b []byte) ([]byte, error) {
	b = append(b, recordVersion, keyRecord)
	b = appendText(b, string(u.Device))
	return appendBool(b, u.Blocked), nil
}

// Digest is the SHA-256 hash over the stored forms of all records of c, in the
// order of its fields and each with its length. A store computes it once the
// revisions are set.
func (c *Change) Digest() (Hash, error) {
	d := NewDigest()
	var b []byte
	add := func(r interface{ AppendBinary([]byte) ([]byte, error) }) (err error) {
		if b, err = r.AppendBinary(b[:0]); err == nil {
			d.Add(b)
		}
		return err
	}
	for i := range c.Devices {
		if err := add(&c.Devices[i]); err != nil {
			return Hash{}, err
		}
	}
	for i := range c.Credentials {
		if err := add(&c.Credentials[i]); err != nil {
			return Hash{}, err
		}
	}
	for i := range c.Profiles {
		if err := add(&c.Profiles[i]); err != nil {
			return Hash{}, err
		}
	}
	for i := range c.Issuers {
		if err := add(&c.Issuers[i]); err != nil {
			return Hash{}, err
		}
	}
	for _, k := range c.BlockedKeys {
		d.AddBlocked(k)
	}
	for i := range c.Revocations {
		if err := add(&c.Revocations[i]); err != nil {
			return Hash{}, err
		}
	}
	for i := range c.Tokens {
		if err := add(&c.Tokens[i]); err != nil {
			return Hash{}, err
		}
	}
	for _, u := range c.TokenUses {
		d.AddUse(u)
	}
	for i := range c.Approvals {
		if err := add(&c.Approvals[i]); err != nil {
			return Hash{}, err
		}
	}
	for i := range c.Works {
		if err := add(&c.Works[i]); err != nil {
			return Hash{}, err
		}
	}
	return d.Sum(), nil
}

// A Digest computes [Change.Digest] from records that are encoded already.
type Digest struct{ h hash.Hash }

// NewDigest returns the digest of no record.
func NewDigest() *Digest { return &Digest{sha256.New()} }

// Add adds the stored form of one record.
func (d *Digest) Add(record []byte) {
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], uint32(len(record)))
	d.h.Write(n[:])
	d.h.Write(record)
}

// AddBlocked adds one element of [Change.BlockedKeys].
func (d *Digest) AddBlocked(k SPKI) {
	var b [2 + len(k)]byte
	b[0], b[1] = recordVersion, blockedRecord
	copy(b[2:], k[:])
	d.Add(b[:])
}

// AddUse adds one element of [Change.TokenUses].
func (d *Digest) AddUse(u TokenUse) {
	var b [2 + len(u.Token)]byte
	b[0], b[1] = recordVersion, useRecord
	copy(b[2:], u.Token[:])
	d.Add(b[:])
}

// Sum is the digest of what was added.
func (d *Digest) Sum() Hash { return Hash(d.h.Sum(nil)) }

// versionOf is the version in which records of a kind are written.
func versionOf(kind byte) byte {
	if kind == deviceRecord {
		return deviceVersion
	}
	return recordVersion
}

func appendHeader(b []byte, kind byte, revision uint64) []byte {
	b = append(b, versionOf(kind), kind)
	return binary.BigEndian.AppendUint64(b, revision)
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendBytes(b, s []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// appendTime writes 0 for the zero time. The zigzag form keeps every other value
// above it: time.Unix(0, 0) is 1.
func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, 0)
	}
	s := t.Unix()
	return binary.AppendUvarint(b, (uint64(s)<<1^uint64(s>>63))+1)
}

// wholeSeconds refuses what would come back changed from a store.
func wholeSeconds(record string, times ...time.Time) error {
	for _, t := range times {
		if t.Nanosecond() != 0 {
			return &InvalidError{Field: "time of " + record, Value: t.String(), Want: "whole seconds"}
		}
	}
	return nil
}
