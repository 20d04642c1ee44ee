package inventory

import (
	"errors"
	"fmt"
)

// What a caller can do about an error from a [Store], one sentinel each.
var (
	// ErrNotFound reports that there is no such record.
	ErrNotFound = errors.New("not found")

	// ErrConflict reports that a change was decided on facts that no longer
	// hold: read and decide again. The error that wraps it is a
	// [*ConflictError].
	ErrConflict = errors.New("changed by someone else")

	// ErrCorrupt reports a record or an audit chain that does not verify. The
	// store answers with this, never with the doubtful record.
	ErrCorrupt = errors.New("inventory is damaged")

	// ErrForeign reports a database that does not belong to the fleet's keys, or
	// an empty one beside keys that have been used.
	ErrForeign = errors.New("inventory of another fleet")

	// ErrVersion reports a database written by a newer imprint. It is not
	// touched.
	ErrVersion = errors.New("inventory of a newer version")

	// ErrFull reports that the disk is full. Nothing was written; the next
	// change may succeed.
	ErrFull = errors.New("disk full")

	// ErrStopped reports that a write could not be made durable, so that the
	// store writes nothing more until it is opened again: after a failed fsync
	// the kernel may have dropped the pages and still report the next one good.
	ErrStopped = errors.New("inventory stopped after a disk error")
)

// An InvalidError reports a value outside its grammar. Nothing was stored.
type InvalidError struct {
	Field string // what the value is, in words: "device id"
	Value string
	Want  string // the grammar, in words
}

// Error quotes at most the first 64 bytes of the value.
func (e *InvalidError) Error() string {
	return fmt.Sprintf("%s %s: want %s", e.Field, quote(e.Value), e.Want)
}

func quote(s string) string {
	if len(s) > maxDeviceID {
		return fmt.Sprintf("%q... (%d bytes)", s[:maxDeviceID], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// A Conflict says why a change did not fit what is stored.
type Conflict uint8

// The conflicts there are.
const (
	// Stale: the record has been changed since it was read.
	Stale Conflict = iota + 1
	// Exists: a new record has the name of one that is there, perhaps in
	// another case.
	Exists
	// KeyTaken: the public key belongs to another device.
	KeyTaken
	// KeyBlocked: the public key may not be certified again.
	KeyBlocked
	// SerialTaken: the issuer has used this serial number before.
	SerialTaken
	// BadTransition: the record cannot go from the state it is in to the new one.
	BadTransition
	// TokenSpent: the token buys nothing more, or is revoked.
	TokenSpent
)

// A ConflictError reports which record refused a [Change], and why. It wraps
// [ErrConflict].
type ConflictError struct {
	Why    Conflict
	Record string // in words: "device dev-1", "serial number 01ab..."
	Detail string // more, in words; may be empty
}

// Error says what refused the change.
func (e *ConflictError) Error() string {
	var why string
	switch e.Why {
	case Stale:
		why = ErrConflict.Error()
	case Exists:
		why = "already exists"
	case KeyTaken:
		why = "the key belongs to another device"
	case KeyBlocked:
		why = "the key is blocked"
	case SerialTaken:
		why = "already used"
	case BadTransition:
		why = "not possible in this state"
	case TokenSpent:
		why = "used up or revoked"
	default:
		why = "conflict"
	}
	if e.Detail != "" {
		why += " (" + e.Detail + ")"
	}
	return e.Record + ": " + why
}

// Unwrap returns [ErrConflict].
func (e *ConflictError) Unwrap() error { return ErrConflict }
