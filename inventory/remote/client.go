package remote

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"sync"

	"github.com/imprint-iot/imprint/inventory"
)

// A Store is an [inventory.Store] that another process holds. Each call is a
// connection of its own.
type Store struct {
	path string

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup
}

var _ inventory.Store = (*Store)(nil)

// Dial finds out whether a process serves its store at path. The error is that of
// the connection if none does.
func Dial(ctx context.Context, path string) (*Store, error) {
	s := &Store{path: path}
	x, stop, err := s.call(ctx, frameRead)
	if err != nil {
		return nil, err
	}
	defer stop()
	return s, x.end()
}

// Close implements [inventory.Store]. The process that holds the store goes on.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.calls.Wait()
	return nil
}

// enter counts a call, unless the store is closed.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("inventory: %w", fs.ErrClosed)
	}
	s.calls.Add(1)
	return nil
}

// call connects and starts a call. The end of ctx cuts it off, except a change:
// "canceled" would be a lie about one that lands.
func (s *Store) call(ctx context.Context, kind byte) (_ *wire, stop func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if err := s.enter(); err != nil {
		return nil, nil, err
	}
	conn, err := dial(ctx, s.path)
	if err != nil {
		s.calls.Done()
		return nil, nil, fmt.Errorf("reaching the server: %w", err)
	}
	if kind == frameApply {
		ctx = context.WithoutCancel(ctx)
	}
	cancel := context.AfterFunc(ctx, func() { _ = conn.Close() })
	stop = func() { cancel(); _ = conn.Close(); s.calls.Done() }
	x := newWire(conn)
	if err := errors.Join(x.greet(), conn.SetDeadline(noDeadline), x.write(kind, nil)); err != nil {
		stop()
		return nil, nil, contextOr(ctx, fmt.Errorf("reaching the server: %w", err))
	}
	return x, stop, nil
}

// end waits for the outcome of a call.
func (x *wire) end() error {
	if err := errors.Join(x.write(frameEnd, nil), x.flush()); err != nil {
		return fmt.Errorf("reaching the server: %w", err)
	}
	return x.outcome()
}

func (x *wire) outcome() error {
	kind, b, err := x.read(0)
	switch {
	case err != nil:
		return fmt.Errorf("waiting for the server: %w", err)
	case kind == frameDone:
		return nil
	case kind == frameError:
		return decodeFault(b)
	}
	return errors.New("waiting for the server: an answer that was not expected")
}

// Apply implements [inventory.Store]. If the connection ends before the answer,
// the error does not say whether the change has landed: read again.
func (s *Store) Apply(ctx context.Context, c inventory.Change) error {
	if err := c.Validate(); err != nil {
		return err
	}
	x, stop, err := s.call(ctx, frameApply)
	if err != nil {
		return err
	}
	defer stop()
	if err := x.writeChange(&c); err != nil {
		return err
	}
	if err := x.flush(); err != nil {
		return fmt.Errorf("reaching the server: %w", err)
	}
	return x.outcome()
}

// contextOr is the reason why a connection was cut.
func contextOr(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Read implements [inventory.Store].
func (s *Store) Read(ctx context.Context, fn func(inventory.Reader) error) error {
	x, stop, err := s.call(ctx, frameRead)
	if err != nil {
		return err
	}
	defer stop()
	r := &reader{x: x}
	if b, err := r.ask(frameRevision, nil); err != nil {
		return contextOr(ctx, err)
	} else if len(b) == 8 {
		r.revision = binary.BigEndian.Uint64(b)
	}
	if err := fn(r); err != nil {
		return contextOr(ctx, err)
	}
	return contextOr(ctx, x.end())
}

// Backup writes a copy of the store as it is at one moment.
func (s *Store) Backup(ctx context.Context, to io.Writer) error {
	x, stop, err := s.call(ctx, frameBackup)
	if err != nil {
		return err
	}
	defer stop()
	return contextOr(ctx, x.copyTo(to))
}

// Check reads the report of a check of every record into report, from JSON.
func (s *Store) Check(ctx context.Context, report any) error {
	x, stop, err := s.call(ctx, frameCheck)
	if err != nil {
		return err
	}
	defer stop()
	var b capped
	if err := x.copyTo(&b); err != nil {
		return contextOr(ctx, err)
	}
	return json.Unmarshal(b, report)
}

// capped collects what is not long.
type capped []byte

// Write implements [io.Writer].
func (c *capped) Write(b []byte) (int, error) {
	if len(*c)+len(b) > maxFrame {
		return 0, errors.New("the report is too long")
	}
	*c = append(*c, b...)
	return len(b), nil
}

func (x *wire) copyTo(to io.Writer) error {
	if err := x.flush(); err != nil {
		return fmt.Errorf("reaching the server: %w", err)
	}
	for {
		kind, b, err := x.read(0)
		switch {
		case err != nil:
			return fmt.Errorf("waiting for the server: %w", err)
		case kind == frameDone:
			return nil
		case kind == frameError:
			return decodeFault(b)
		case kind != frameRecord:
			return errors.New("waiting for the server: an answer that was not expected")
		}
		if _, err := to.Write(b); err != nil {
			return err
		}
	}
}

// A reader is an [inventory.Reader] at a distance.
type reader struct {
	x        *wire
	revision uint64
	broken   error // the connection is of no use any more
}

// send asks a question.
func (r *reader) send(kind byte, b []byte) error {
	if r.broken == nil {
		r.broken = errors.Join(r.x.write(kind, b), r.x.flush())
	}
	return r.broken
}

// receive returns the next frame. The payload is valid until the next one.
func (r *reader) receive() (byte, []byte, error) {
	if r.broken != nil {
		return 0, nil, r.broken
	}
	kind, b, err := r.x.read(0)
	if err != nil {
		r.broken = fmt.Errorf("waiting for the server: %w", err)
		return 0, nil, r.broken
	}
	if kind == frameError {
		return 0, nil, decodeFault(b)
	}
	return kind, b, nil
}

// ask returns the one record that answers a query.
func (r *reader) ask(kind byte, b []byte) ([]byte, error) {
	if err := r.send(kind, b); err != nil {
		return nil, err
	}
	_, b, err := r.receive()
	return b, err
}

// Revision implements [inventory.Reader].
func (r *reader) Revision() uint64 { return r.revision }

// Device implements [inventory.Reader].
func (r *reader) Device(id inventory.DeviceID) (inventory.Device, error) {
	return get(r, frameDevice, []byte(id), inventory.DecodeDevice)
}

// Key implements [inventory.Reader].
func (r *reader) Key(k inventory.SPKI) (inventory.KeyUse, error) {
	return get(r, frameKey, k[:], inventory.DecodeKeyUse)
}

// Token implements [inventory.Reader].
func (r *reader) Token(hash inventory.Hash) (inventory.Token, error) {
	return get(r, frameToken, hash[:], inventory.DecodeToken)
}

// Approval implements [inventory.Reader].
func (r *reader) Approval(k inventory.SPKI) (inventory.Approval, error) {
	return get(r, frameApproval, k[:], inventory.DecodeApproval)
}

func get[T any](r *reader, kind byte, b []byte, decode func([]byte) (T, error)) (T, error) {
	b, err := r.ask(kind, b)
	if err != nil {
		var zero T
		return zero, err
	}
	return decode(b)
}

// Devices implements [inventory.Reader].
func (r *reader) Devices(q inventory.Query) iter.Seq2[inventory.Device, error] {
	return sequence(r, frameDevices, wireDevices(q), inventory.DecodeDevice)
}

// Credentials implements [inventory.Reader].
func (r *reader) Credentials(q inventory.CredentialQuery) iter.Seq2[inventory.Credential, error] {
	return sequence(r, frameCredentials, wireCredentials(q), inventory.DecodeCredential)
}

// Revocations implements [inventory.Reader].
func (r *reader) Revocations(issuer inventory.KeyID) iter.Seq2[inventory.Revocation, error] {
	return sequence(r, frameRevocations, issuer[:], inventory.DecodeRevocation)
}

// Profiles implements [inventory.Reader].
func (r *reader) Profiles() iter.Seq2[inventory.Profile, error] {
	return sequence(r, frameProfiles, nil, inventory.DecodeProfile)
}

// Issuers implements [inventory.Reader].
func (r *reader) Issuers() iter.Seq2[inventory.Issuer, error] {
	return sequence(r, frameIssuers, nil, inventory.DecodeIssuer)
}

// Tokens implements [inventory.Reader].
func (r *reader) Tokens(id inventory.TokenID) iter.Seq2[inventory.Token, error] {
	return sequence(r, frameTokens, []byte(id), inventory.DecodeToken)
}

// Approvals implements [inventory.Reader].
func (r *reader) Approvals() iter.Seq2[inventory.Approval, error] {
	return sequence(r, frameApprovals, nil, inventory.DecodeApproval)
}

// Events implements [inventory.Reader].
func (r *reader) Events(from uint64) iter.Seq2[inventory.Event, error] {
	return sequence(r, frameEvents, number(from), inventory.DecodeEvent)
}

// sequence reads a sequence page by page. Between two pages the connection is
// free, so that other queries can be asked while this one is being read.
func sequence[T any](r *reader, kind byte, query []byte, decode func([]byte) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		for {
			page, more, err := readPage(r, kind, query, decode)
			for _, v := range page {
				if !yield(v, nil) {
					if more != nil {
						_, _ = r.ask(frameStop, more) // it ends with the reading at the latest
					}
					return
				}
			}
			if err != nil {
				yield(zero, err)
				return
			}
			if more == nil {
				return
			}
			kind, query = frameNext, more
		}
	}
}

func readPage[T any](r *reader, kind byte, query []byte, decode func([]byte) (T, error)) (page []T, more []byte, err error) {
	if err := r.send(kind, query); err != nil {
		return nil, nil, err
	}
	for {
		kind, b, err := r.receive()
		switch {
		case err != nil:
			return page, nil, err
		case kind == frameDone:
			return page, nil, nil
		case kind == frameMore:
			return page, append([]byte(nil), b...), nil
		}
		v, err := decode(b)
		if err != nil {
			r.broken = err // the rest of the page is still on its way
			return page, nil, err
		}
		page = append(page, v)
	}
}

// dial connects to a socket whose path may be longer than a socket's may be.
func dial(ctx context.Context, path string) (net.Conn, error) {
	short, done, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	return d.DialContext(ctx, "unix", short)
}
