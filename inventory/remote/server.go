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

// maxConnections is how many processes may work with the store at a time.
const maxConnections = 64

// Serve answers on l until ctx ends, and then waits for calls under way. A peer
// that runs neither as this process's user nor as root is not heard.
func Serve(ctx context.Context, l net.Listener, s inventory.Store, extra Extra) error {
	var calls sync.WaitGroup
	defer calls.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	slots := make(chan struct{}, maxConnections)
	for {
		slots <- struct{}{}
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serving the store: %w", err)
		}
		calls.Add(1)
		go func() {
			defer calls.Done()
			defer func() { <-slots }()
			defer func() { _ = conn.Close() }()
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			if checkPeer(conn) != nil {
				return
			}
			x := &session{wire: newWire(conn), store: s, extra: extra}
			_ = x.run(ctx) // the peer has been told, or is gone
		}()
	}
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
	kind, _, err := x.read(patience)
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
		return errors.Join(x.write(frameError, encodeFault(timedOut(err))), x.flush())
	}
	return errors.Join(x.write(frameDone, nil), x.flush())
}

func (x *session) apply(ctx context.Context) error {
	c, err := readChange(func() (byte, []byte, error) { return x.read(patience) })
	if err != nil {
		return err
	}
	return x.store.Apply(ctx, c)
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
		kind, b, err := x.read(patience)
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

func (x *session) query(kind byte, b []byte) error {
	r := x.reader
	switch kind {
	case frameRevision:
		return x.one(number(r.Revision()), nil)
	case frameDevice:
		d, err := r.Device(inventory.DeviceID(b))
		return x.record(&d, err)
	case frameKey:
		u, err := r.Key(inventory.SPKI(padded(b)))
		return x.record(&u, err)
	case frameToken:
		t, err := r.Token(inventory.Hash(padded(b)))
		return x.record(&t, err)
	case frameApproval:
		a, err := r.Approval(inventory.SPKI(padded(b)))
		return x.record(&a, err)
	case frameNext:
		return x.page(binary.BigEndian.Uint32(padded(b)))
	case frameStop:
		x.drop(binary.BigEndian.Uint32(padded(b)))
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
		return open(x, r.Revocations(inventory.KeyID(padded(b)[:20])), func(v *inventory.Revocation) encoder { return v })
	case frameProfiles:
		return open(x, r.Profiles(), func(p *inventory.Profile) encoder { return p })
	case frameIssuers:
		return open(x, r.Issuers(), func(i *inventory.Issuer) encoder { return i })
	case frameTokens:
		return open(x, r.Tokens(inventory.TokenID(b)), func(t *inventory.Token) encoder { return t })
	case frameApprovals:
		return open(x, r.Approvals(), func(a *inventory.Approval) encoder { return a })
	case frameEvents:
		return open(x, r.Events(binary.BigEndian.Uint64(padded(b))), func(e *inventory.Event) encoder { return e })
	}
	return errors.New("an unknown query")
}

// padded makes what a peer has sent as long as any fixed field.
func padded(b []byte) []byte {
	return append(append(make([]byte, 0, 32+len(b)), b...), make([]byte, 32)...)[:32]
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
