package remote

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"

	"github.com/imprint-iot/imprint/inventory"
)

// A fault is an error on its way. What a caller can do about it must survive.
type fault struct {
	Text     string                   `json:"text"`
	Kinds    []string                 `json:"kinds,omitempty"` // the sentinels that it wraps
	Conflict *inventory.ConflictError `json:"conflict,omitempty"`
	Invalid  *inventory.InvalidError  `json:"invalid,omitempty"`
}

type sentinel struct {
	name string
	err  error
}

// sentinels are the errors that keep their meaning, by the name they travel under.
func sentinels() []sentinel {
	return []sentinel{
		{"not-found", inventory.ErrNotFound},
		{"conflict", inventory.ErrConflict},
		{"corrupt", inventory.ErrCorrupt},
		{"foreign", inventory.ErrForeign},
		{"version", inventory.ErrVersion},
		{"full", inventory.ErrFull},
		{"stopped", inventory.ErrStopped},
		{"permission", fs.ErrPermission},
		{"closed", fs.ErrClosed},
		{"canceled", context.Canceled},
		{"deadline", context.DeadlineExceeded},
	}
}

func encodeFault(err error) []byte {
	f := fault{Text: err.Error()}
	if c, ok := errors.AsType[*inventory.ConflictError](err); ok {
		f.Conflict = c
	}
	if i, ok := errors.AsType[*inventory.InvalidError](err); ok {
		f.Invalid = i
	}
	for _, s := range sentinels() {
		if errors.Is(err, s.err) {
			f.Kinds = append(f.Kinds, s.name)
		}
	}
	b, err := json.Marshal(f)
	if err != nil || len(b) > maxFrame {
		return []byte(`{"text":"an error that cannot be told"}`)
	}
	return b
}

// A remoteError has the text of an error on the other side, and its meaning.
type remoteError struct {
	text  string
	cause []error
}

// Error is the text on the other side.
func (e *remoteError) Error() string { return e.text }

// Unwrap returns what the error on the other side wraps.
func (e *remoteError) Unwrap() []error { return e.cause }

func decodeFault(b []byte) error {
	var f fault
	if err := json.Unmarshal(b, &f); err != nil {
		return errors.New("an error that cannot be read")
	}
	e := &remoteError{text: f.Text}
	if f.Conflict != nil {
		e.cause = append(e.cause, f.Conflict)
	}
	if f.Invalid != nil {
		e.cause = append(e.cause, f.Invalid)
	}
	for _, name := range f.Kinds {
		for _, s := range sentinels() {
			if s.name == name {
				e.cause = append(e.cause, s.err)
			}
		}
	}
	return e
}
