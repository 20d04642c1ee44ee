// Package remote is an [inventory.Store] at a distance of one Unix socket. The
// process that holds a store, as a server does, serves it; another one on the same
// machine works with it as if it had opened it itself. So every command works
// beside a running server, and there is one way to change a fleet and not two.
//
// Whoever may open the socket may do everything with the store: the socket is as
// well guarded as the file of the store, and by the same means. Records travel in
// their stored form.
package remote

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// hello opens a connection, from both sides. It names the version of all that
// follows.
const hello = "imprint store 1\n"

// Fences. A change of a whole bootstrap batch has a few thousand records of a few
// KiB.
const (
	maxFrame  = 1 << 20 // bytes
	maxChange = 256 << 20
	pageSize  = 256 // records in one answer, at most
	pageBytes = 256 << 10
)

// patience is how long a peer may take for its next step. A reading holds old
// pages of the database for as long as it lasts, so one that does nothing ends.
const patience = 30 * time.Second

// A frame is one byte that says what it is, the length of the rest, and the rest.
const (
	// From the client.
	frameApply  = 'A' // then the records of the change, and frameEnd
	frameRead   = 'r' // then any number of queries, and frameEnd
	frameBackup = 'b'
	frameCheck  = 'c'

	// Queries, within a reading.
	frameRevision    = 'v'
	frameDevice      = 'd'
	frameDevices     = 'D'
	frameCredentials = 'C'
	frameKey         = 'k'
	frameRevocations = 'R'
	frameProfiles    = 'P'
	frameIssuers     = 'I'
	frameToken       = 't'
	frameTokens      = 'T'
	frameApproval    = 'q'
	frameApprovals   = 'Q'
	frameEvents      = 'E'
	frameNext        = 'n' // the next page of a sequence
	frameStop        = 's' // no more of it

	// Records of a change that are no queries.
	frameBlocked = 'B'
	frameUse     = 'U'

	// From the server.
	frameRecord = '*'
	frameMore   = '+' // the page is full, there may be more; its number
	frameDone   = '=' // the sequence, or the call, is over
	frameError  = '!'
	frameEnd    = '.'
)

// A wire is one end of a connection.
type wire struct {
	conn net.Conn
	r    *bufio.Reader
	w    *bufio.Writer
	buf  []byte
}

func newWire(c net.Conn) *wire {
	return &wire{conn: c, r: bufio.NewReaderSize(c, 64<<10), w: bufio.NewWriterSize(c, 64<<10)}
}

// greet exchanges hello.
func (x *wire) greet() error {
	if err := x.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := x.w.WriteString(hello); err != nil {
		return err
	}
	if err := x.w.Flush(); err != nil {
		return err
	}
	got := make([]byte, len(hello))
	if _, err := io.ReadFull(x.r, got); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if string(got) != hello {
		return errors.New("the other side is another version of imprint")
	}
	return nil
}

func (x *wire) write(kind byte, payload []byte) error {
	if len(payload) > maxFrame {
		return &inventory.InvalidError{Field: "record", Want: "at most 1 MiB"}
	}
	var h [5]byte
	h[0] = kind
	binary.BigEndian.PutUint32(h[1:], uint32(len(payload)))
	if _, err := x.w.Write(h[:]); err != nil {
		return err
	}
	_, err := x.w.Write(payload)
	return err
}

// flush sends what has been written, within the peer's patience.
func (x *wire) flush() error {
	if err := x.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	return x.w.Flush()
}

// read returns the next frame. The payload is valid until the next read.
func (x *wire) read(wait time.Duration) (byte, []byte, error) {
	var deadline time.Time
	if wait > 0 {
		deadline = time.Now().Add(wait)
	}
	if err := x.conn.SetReadDeadline(deadline); err != nil {
		return 0, nil, err
	}
	return readFrame(x.r, &x.buf)
}

// readFrame reads one frame into buf, which grows only with what really arrives.
func readFrame(r io.Reader, buf *[]byte) (byte, []byte, error) {
	var h [5]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint32(h[1:]))
	if n > maxFrame {
		return 0, nil, errors.New("a frame is too long")
	}
	if cap(*buf) < n {
		*buf = make([]byte, n)
	}
	*buf = (*buf)[:n]
	if _, err := io.ReadFull(r, *buf); err != nil {
		return 0, nil, fmt.Errorf("reading a frame: %w", err)
	}
	return h[0], *buf, nil
}

// fault is an error on its way. What a caller can do about it must survive.
type fault struct {
	Kind    string                   `json:"kind,omitempty"`
	Text    string                   `json:"text"`
	Conflct *inventory.ConflictError `json:"conflict,omitempty"`
	Invalid *inventory.InvalidError  `json:"invalid,omitempty"`
}

// sentinels are the errors that keep their meaning, by name. The order counts: an
// error is the first of them that it wraps.
func sentinels() []struct {
	name string
	err  error
} {
	return []struct {
		name string
		err  error
	}{
		{"not-found", inventory.ErrNotFound}, {"corrupt", inventory.ErrCorrupt}, {"foreign", inventory.ErrForeign},
		{"version", inventory.ErrVersion}, {"full", inventory.ErrFull}, {"stopped", inventory.ErrStopped},
		{"permission", fs.ErrPermission}, {"closed", fs.ErrClosed}, {"canceled", context.Canceled}, {"deadline", context.DeadlineExceeded},
	}
}

func encodeFault(err error) []byte {
	f := fault{Text: err.Error()}
	if c, ok := errors.AsType[*inventory.ConflictError](err); ok {
		f.Conflct = c
	}
	if i, ok := errors.AsType[*inventory.InvalidError](err); ok {
		f.Invalid = i
	}
	for _, s := range sentinels() {
		if errors.Is(err, s.err) {
			f.Kind = s.name
			break
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

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.cause }

func decodeFault(b []byte) error {
	var f fault
	if err := json.Unmarshal(b, &f); err != nil {
		return errors.New("an error that cannot be read")
	}
	e := &remoteError{text: f.Text}
	if f.Conflct != nil {
		e.cause = append(e.cause, f.Conflct)
	}
	if f.Invalid != nil {
		e.cause = append(e.cause, f.Invalid)
	}
	for _, s := range sentinels() {
		if s.name == f.Kind {
			e.cause = append(e.cause, s.err)
		}
	}
	return e
}

// timedOut says in words that the other side took too long.
func timedOut(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("nothing was asked for %s: a reading that does nothing ends", patience)
	}
	return err
}
