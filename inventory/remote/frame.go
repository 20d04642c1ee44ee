package remote

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// Both sides open a connection with hello, which names the version of all that
// follows. A server says refusal instead to a peer that it does not hear. Both are
// of one length, and a hello of another version is told by its first bytes.
const (
	hello   = "imprint store 1\n"
	refusal = "imprint refused\n"
)

// Fences. A change of a whole bootstrap batch has a few thousand records of a few
// KiB; the audit event of it, which names them all, is the longest record.
const (
	maxFrame  = 1 << 20   // bytes of one frame
	maxRecord = 64 << 20  // bytes of one record, in several frames
	maxChange = 256 << 20 // bytes of all records of a change
	pageSize  = 256       // records in one answer, at most
	pageBytes = 256 << 10
)

// patience is how long a peer may take for its next step. A reading holds old
// pages of the database for as long as it lasts, so one that does nothing ends.
const patience = 30 * time.Second

// A frame is one byte that says what it is, the length of the rest in four bytes,
// big endian, and the rest.
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
	frameWorks       = 'W'
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

	// From both.
	framePart = '&' // the beginning of a record too long for one frame
	frameEnd  = '.'
)

// A wire is one end of a connection.
type wire struct {
	conn     net.Conn
	r        *bufio.Reader
	w        *bufio.Writer
	buf      []byte
	patience time.Duration // for the peer to take what is sent
	wait     time.Duration // for the peer to send something; 0 is for ever

	mu      sync.Mutex
	hurried bool
}

func newWire(c net.Conn, patience time.Duration) *wire {
	return &wire{conn: c, r: bufio.NewReaderSize(c, 64<<10), w: bufio.NewWriterSize(c, 64<<10), patience: patience}
}

// errStopping tells a peer why it is not answered.
var errStopping = errors.New("the server is stopping")

// hurry ends waiting for the peer, now and later. What is being sent has a second.
func (x *wire) hurry() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.hurried = true
	_ = x.conn.SetReadDeadline(time.Unix(1, 0))
	_ = x.conn.SetWriteDeadline(time.Now().Add(time.Second))
}

// expect gives the peer its time for the next step.
func (x *wire) expect(wait time.Duration) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.hurried:
		return errStopping
	case wait == 0:
		return x.conn.SetReadDeadline(time.Time{})
	}
	return x.conn.SetReadDeadline(time.Now().Add(wait))
}

// late says in words that the peer took too long, or was not waited for.
func (x *wire) late(err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.hurried {
		return errStopping
	}
	return fmt.Errorf("nothing was asked for %s: a reading that does nothing is ended, because it keeps old data on the disk", x.wait)
}

// greet exchanges hello. What the other side says counts also if it does not listen.
func (x *wire) greet() error {
	if _, err := x.w.WriteString(hello); err != nil {
		return err
	}
	sent := x.flush()
	if err := x.expect(x.patience); err != nil {
		return err
	}
	got := make([]byte, len(hello))
	if _, err := io.ReadFull(x.r, got); err != nil {
		return fmt.Errorf("greeting: %w", errors.Join(sent, err))
	}
	switch string(got) {
	case hello:
		return sent
	case refusal:
		return fmt.Errorf("it hears its own user and root only: %w", fs.ErrPermission)
	}
	return fmt.Errorf("it says %q, and this is %q: two versions of imprint, update the older one", got, hello)
}

// write sends a record, in as many frames as it needs.
func (x *wire) write(kind byte, payload []byte) error {
	if len(payload) > maxRecord {
		return &inventory.InvalidError{Field: "record", Want: "at most 64 MiB"}
	}
	for len(payload) > maxFrame {
		if err := x.frame(framePart, payload[:maxFrame]); err != nil {
			return err
		}
		payload = payload[maxFrame:]
	}
	return x.frame(kind, payload)
}

func (x *wire) frame(kind byte, payload []byte) error {
	if x.w.Available() < 5+len(payload) {
		if err := x.flush(); err != nil {
			return err
		}
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
	x.mu.Lock()
	if !x.hurried {
		_ = x.conn.SetWriteDeadline(time.Now().Add(x.patience)) // a connection that is closed says so below
	}
	x.mu.Unlock()
	return x.w.Flush()
}

// read returns the next record. The payload is valid until the next read.
func (x *wire) read() (byte, []byte, error) {
	if err := x.expect(x.wait); err != nil {
		return 0, nil, err
	}
	kind, b, err := readRecord(x.r, &x.buf)
	return kind, b, x.late(err)
}

// readRecord reads the frames of one record into buf.
func readRecord(r io.Reader, buf *[]byte) (byte, []byte, error) {
	*buf = (*buf)[:0]
	for {
		var h [5]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return 0, nil, err
		}
		n := binary.BigEndian.Uint32(h[1:])
		have := len(*buf)
		if n > maxFrame || have+int(n) > maxRecord {
			return 0, nil, errors.New("a frame is too long")
		}
		*buf = append(*buf, make([]byte, n)...)
		if _, err := io.ReadFull(r, (*buf)[have:]); err != nil {
			return 0, nil, fmt.Errorf("reading a frame: %w", err)
		}
		if h[0] != framePart {
			return h[0], *buf, nil
		}
		if n == 0 {
			return 0, nil, errors.New("a part of a record is empty")
		}
	}
}
