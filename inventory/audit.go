package inventory

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"iter"
	"time"
)

// An Event is one entry of the audit log: who did what to which records, when
// and why. Events form a chain: each holds the hash of the one before.
type Event struct {
	Seq     uint64    `json:"seq"`  // counts from 1 without a gap; the store's revision
	Time    time.Time `json:"time"` // UTC, whole seconds
	Actor   string    `json:"actor"`
	Action  string    `json:"action"` // noun.verb: "device.enroll"
	Objects []Object  `json:"objects,omitempty"`
	Reason  string    `json:"reason,omitempty"` // free text of whoever asked
	Digest  Hash      `json:"digest"`           // SHA-256 of the records written, in their stored form
	Prev    Hash      `json:"prev"`             // Hash of event Seq-1; zero in the first
	Hash    Hash      `json:"hash"`             // of all the above
}

// An Object is what an event was about.
type Object struct {
	Kind string `json:"kind"` // "device", "certificate", "password", "profile", "issuer", "crl", "key", "node", "step", "session", "rollover", "rotation"
	ID   string `json:"id"`
	Note string `json:"note,omitempty"`
}

// A Hash is a SHA-256 hash. The text form is 64 hexadecimal digits.
type Hash [sha256.Size]byte

// String is the text form.
func (h Hash) String() string { return Fingerprint(h).String() }

// MarshalText implements [encoding.TextMarshaler].
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *Hash) UnmarshalText(text []byte) error {
	if b, err := hex.DecodeString(string(text)); err == nil && len(b) == len(h) {
		copy(h[:], b)
		return nil
	}
	return &InvalidError{Field: "hash", Value: string(text), Want: "64 hexadecimal digits"}
}

// Validate reports an event that says too little or cannot be printed.
func (e *Event) Validate() error {
	if e.Actor == "" || e.Action == "" || e.Time.IsZero() {
		return &InvalidError{Field: "audit event", Value: e.Action, Want: "a time, an actor and an action"}
	}
	for _, s := range []string{e.Actor, e.Action, e.Reason} {
		if err := checkFreeText("audit text", s); err != nil {
			return err
		}
	}
	return nil
}

// Seal makes e the event after the one with the number seq and the hash prev: it
// sets Seq, Prev and Hash. A store calls it inside the transaction that writes e.
func (e *Event) Seal(seq uint64, prev Hash) {
	e.Seq = seq + 1
	e.Prev = prev
	e.Hash = e.sum()
}

// sum hashes every field but Hash. Each text is preceded by its length, so that
// no two events have the same encoding.
func (e *Event) sum() Hash {
	b := make([]byte, 0, 512)
	b = append(b, "imprint audit event 1\x00"...)
	b = binary.BigEndian.AppendUint64(b, e.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Time.Unix()))
	text := func(s string) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	text(e.Actor)
	text(e.Action)
	text(e.Reason)
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Objects)))
	for _, o := range e.Objects {
		text(o.Kind)
		text(o.ID)
		text(o.Note)
	}
	b = append(b, e.Digest[:]...)
	b = append(b, e.Prev[:]...)
	return sha256.Sum256(b)
}

// A ChainError reports where the audit log stops being what was written. It
// wraps [ErrCorrupt].
type ChainError struct {
	Seq uint64 // the first event that does not fit
	Why string
}

// Error names the event and the fault.
func (e *ChainError) Error() string { return fmt.Sprintf("audit event %d: %s", e.Seq, e.Why) }

// Unwrap returns [ErrCorrupt].
func (e *ChainError) Unwrap() error { return ErrCorrupt }

// VerifyChain reads all events from the first on and returns how many there are
// and the hash of the last. A gap, a repetition, a changed field or a wrong
// order is a [*ChainError]. That the end has been cut off can only be seen by
// comparing the result with a head noted elsewhere.
func VerifyChain(events iter.Seq2[Event, error]) (n uint64, head Hash, err error) {
	for e, err := range events {
		if err != nil {
			return n, head, err
		}
		sum := e.sum()
		switch {
		case e.Seq != n+1:
			return n, head, &ChainError{n + 1, fmt.Sprintf("missing: the next one is %d", e.Seq)}
		case subtle.ConstantTimeCompare(e.Prev[:], head[:]) != 1:
			return n, head, &ChainError{e.Seq, "does not follow the event before it"}
		case subtle.ConstantTimeCompare(e.Hash[:], sum[:]) != 1:
			return n, head, &ChainError{e.Seq, "has been changed"}
		}
		n, head = e.Seq, e.Hash
	}
	return n, head, nil
}
