package remote

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// Extra is what a store can do beyond [inventory.Store]. A nil field is not
// offered.
type Extra struct {
	// Backup writes a copy of the store as it is at one moment.
	Backup func(ctx context.Context, to io.Writer) error

	// Check looks at every record; its report is sent as JSON.
	Check func(ctx context.Context) (any, error)
}

// maxConnections is how many calls are answered at a time; more wait their turn.
const maxConnections = 64

// Serve answers on l until ctx ends, and closes it. Then it waits for what is under
// way: a change that has arrived is applied and answered, a reading is ended.
//
// A peer must run as the user of this process, or as root: whoever does not is told
// so and is not heard. A peer that takes more than 30 s for its next step, be it to
// ask something or to take an answer, is cut off.
//
// Serve returns nil when ctx ends, and the error of l if that fails before.
func Serve(ctx context.Context, l net.Listener, s inventory.Store, extra Extra) error {
	return serve(ctx, l, s, extra, patience)
}

func serve(ctx context.Context, l net.Listener, s inventory.Store, extra Extra, patience time.Duration) error {
	var calls sync.WaitGroup
	defer calls.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // those under way hear of it
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	slots := make(chan struct{}, maxConnections)
	for {
		slots <- struct{}{}
		conn, err := accept(ctx, l)
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("serving the store: %w", errors.Join(err, l.Close()))
		}
		calls.Go(func() {
			answer(ctx, &session{wire: newWire(conn, patience), store: s, extra: extra})
			<-slots
		})
	}
}

// accept waits for a peer. A process that has run out of files has them again when
// one of its calls ends.
func accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	for {
		conn, err := l.Accept()
		if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) && !errors.Is(err, syscall.ECONNABORTED) {
			return conn, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// answer serves one call. Its error has been told to the peer, or there is none to
// tell it to.
func answer(ctx context.Context, x *session) {
	defer func() { _ = x.conn.Close() }()
	stop := context.AfterFunc(ctx, x.hurry)
	defer stop()
	if checkPeer(x.conn) != nil {
		_, _ = x.w.WriteString(refusal)
		_ = x.flush()
		return
	}
	x.wait = x.patience
	_ = x.run(ctx)
}

// A session is one call of a peer.
type session struct {
	*wire
	store inventory.Store
	extra Extra

	reader  inventory.Reader
	cursors map[uint32]*cursor
	last    uint32
}

func (x *session) run(ctx context.Context) error {
	if err := x.greet(); err != nil {
		return err
	}
	kind, _, err := x.read()
	if err != nil {
		return err
	}
	switch kind {
	case frameApply:
		err = x.apply(ctx)
	case frameRead:
		err = x.store.Read(ctx, func(r inventory.Reader) error {
			x.reader = r
			return x.queries()
		})
	case frameBackup:
		err = x.backup(ctx)
	case frameCheck:
		err = x.check(ctx)
	default:
		err = errors.New("an unknown call")
	}
	if err != nil {
		return errors.Join(x.write(frameError, encodeFault(err)), x.flush())
	}
	return errors.Join(x.write(frameDone, nil), x.flush())
}

// apply applies a change that has arrived whole, also if the server is to stop: the
// peer does not know how much time is left.
func (x *session) apply(ctx context.Context) error {
	c, err := readChange(x.read)
	if err != nil {
		return err
	}
	return x.store.Apply(context.WithoutCancel(ctx), c)
}

func (x *session) backup(ctx context.Context) error {
	if x.extra.Backup == nil {
		return errors.New("the store makes no backups")
	}
	return x.extra.Backup(ctx, chunks{x.wire})
}

// chunks writes frames.
type chunks struct{ *wire }

// Write implements [io.Writer].
func (c chunks) Write(b []byte) (int, error) {
	for n := 0; n < len(b); n += pageBytes {
		if err := c.write(frameRecord, b[n:min(len(b), n+pageBytes)]); err != nil {
			return n, err
		}
		if err := c.flush(); err != nil {
			return n, err
		}
	}
	return len(b), nil
}

func (x *session) check(ctx context.Context) error {
	if x.extra.Check == nil {
		return errors.New("the store cannot be checked")
	}
	report, err := x.extra.Check(ctx)
	if err != nil {
		return err
	}
	b, err := json.Marshal(report)
	if err != nil {
		return err
	}
	return x.write(frameRecord, b)
}

// maxCursors is how many sequences one reading may be in the middle of.
const maxCursors = 64

// A cursor is a sequence that is being read.
type cursor struct {
	next func() ([]byte, error, bool)
	stop func()
}

// queries answers queries until the peer ends its reading. Each is answered at
// once, so a peer may ask one while it is in the middle of another's answer.
func (x *session) queries() error {
	x.cursors = map[uint32]*cursor{}
	defer func() {
		for _, c := range x.cursors {
			c.stop()
		}
	}()
	for {
		if err := x.flush(); err != nil {
			return err
		}
		kind, b, err := x.read()
		if err != nil {
			return err
		}
		if kind == frameEnd {
			return nil
		}
		if err := x.query(kind, b); err != nil {
			if werr := x.write(frameError, encodeFault(err)); werr != nil {
				return werr
			}
		}
	}
}

// size is how long the payload of a query is; -1 is any length.
func size(kind byte) int {
	switch kind {
	case frameKey, frameToken, frameApproval:
		return len(inventory.Hash{})
	case frameRevocations:
		return len(inventory.KeyID{})
	case frameEvents:
		return 8
	case frameNext, frameStop:
		return 4
	}
	return -1
}

func (x *session) query(kind byte, b []byte) error {
	if n := size(kind); n >= 0 && len(b) != n {
		return errors.New("a query of the wrong length")
	}
	r := x.reader
	switch kind {
	case frameRevision:
		return x.one(number(r.Revision()), nil)
	case frameDevice:
		d, err := r.Device(inventory.DeviceID(b))
		return x.record(&d, err)
	case frameKey:
		u, err := r.Key(inventory.SPKI(b))
		return x.record(&u, err)
	case frameToken:
		t, err := r.Token(inventory.Hash(b))
		return x.record(&t, err)
	case frameApproval:
		a, err := r.Approval(inventory.SPKI(b))
		return x.record(&a, err)
	case frameNext:
		return x.page(binary.BigEndian.Uint32(b))
	case frameStop:
		x.drop(binary.BigEndian.Uint32(b))
		return x.write(frameDone, nil)
	}
	return x.sequence(kind, b)
}

func (x *session) sequence(kind byte, b []byte) error {
	r := x.reader
	switch kind {
	case frameDevices:
		q, err := readDevices(b)
		if err != nil {
			return err
		}
		return open(x, r.Devices(q), func(d *inventory.Device) encoder { return d })
	case frameCredentials:
		q, err := readCredentials(b)
		if err != nil {
			return err
		}
		return open(x, r.Credentials(q), func(c *inventory.Credential) encoder { return c })
	case frameRevocations:
		return open(x, r.Revocations(inventory.KeyID(b)), func(v *inventory.Revocation) encoder { return v })
	case frameProfiles:
		return open(x, r.Profiles(), func(p *inventory.Profile) encoder { return p })
	case frameIssuers:
		return open(x, r.Issuers(), func(i *inventory.Issuer) encoder { return i })
	case frameTokens:
		return open(x, r.Tokens(inventory.TokenID(b)), func(t *inventory.Token) encoder { return t })
	case frameApprovals:
		return open(x, r.Approvals(), func(a *inventory.Approval) encoder { return a })
	case frameWorks:
		return open(x, r.Works(string(b)), func(w *inventory.Work) encoder { return w })
	case frameEvents:
		return open(x, r.Events(binary.BigEndian.Uint64(b)), func(e *inventory.Event) encoder { return e })
	}
	return errors.New("an unknown query")
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func (x *session) one(b []byte, err error) error {
	if err != nil {
		return err
	}
	return x.write(frameRecord, b)
}

func (x *session) record(r encoder, err error) error {
	if err != nil {
		return err
	}
	return x.one(r.AppendBinary(nil))
}

// open starts a sequence and answers with its first page.
func open[T any](x *session, seq iter.Seq2[T, error], record func(*T) encoder) error {
	if len(x.cursors) >= maxCursors {
		return errors.New("too many sequences are being read at a time")
	}
	next, stop := iter.Pull2(seq)
	x.last++
	x.cursors[x.last] = &cursor{stop: stop, next: func() ([]byte, error, bool) {
		v, err, ok := next()
		if err != nil || !ok {
			return nil, err, ok
		}
		b, err := record(&v).AppendBinary(nil)
		return b, err, true
	}}
	return x.page(x.last)
}

func (x *session) drop(id uint32) {
	if c := x.cursors[id]; c != nil {
		c.stop()
		delete(x.cursors, id)
	}
}

// page writes the next records of a sequence, and whether there may be more.
func (x *session) page(id uint32) error {
	c := x.cursors[id]
	if c == nil {
		return errors.New("there is no such sequence")
	}
	for n, size := 0, 0; n < pageSize && size < pageBytes; n++ {
		b, err, ok := c.next()
		if err != nil {
			x.drop(id)
			return err
		}
		if !ok {
			x.drop(id)
			return x.write(frameDone, nil)
		}
		size += len(b)
		if err := x.write(frameRecord, b); err != nil {
			return err
		}
	}
	return x.write(frameMore, binary.BigEndian.AppendUint32(nil, id))
}
