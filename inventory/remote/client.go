package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"syscall"

	"github.com/imprint-iot/imprint/inventory"
)

// ErrNoServer reports that no process listens at a socket: there is none, or one
// that a dead process has left.
var ErrNoServer = errors.New("no server is running")

// A Store is an [inventory.Store] that another process holds. Each call is a
// connection of its own.
type Store struct {
	path string

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup
}

var _ inventory.Store = (*Store)(nil)

// Dial finds out whether a process serves its store at path. The error wraps
// [ErrNoServer] if none listens, and [fs.ErrPermission] if this user is not heard;
// with any other error there is a server, and the store is not free to be opened.
func Dial(ctx context.Context, path string) (*Store, error) {
	s := &Store{path: path}
	c, err := s.call(ctx, frameRead)
	if err != nil {
		return nil, err
	}
	defer c.stop()
	return s, c.cut(c.finish())
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

// A call is one connection from the client's side.
type call struct {
	*wire
	stop   func()            // ends it
	detach func() bool       // from here on the end of the context does not cut it off
	cut    func(error) error // says that it was the context that cut it off
}

// call connects and says what is wanted. The end of ctx cuts the connection off.
func (s *Store) call(ctx context.Context, kind byte) (*call, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	conn, err := dial(ctx, s.path)
	if err != nil {
		s.calls.Done()
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			err = fmt.Errorf("%w: %w", ErrNoServer, err)
		}
		return nil, fmt.Errorf("reaching the server: %w", err)
	}
	detach := context.AfterFunc(ctx, func() { _ = conn.Close() })
	c := &call{wire: newWire(conn, patience), detach: detach}
	c.stop = func() { detach(); _ = conn.Close(); s.calls.Done() }
	c.cut = func(err error) error {
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	if err := c.greet(); err != nil {
		c.stop()
		return nil, c.cut(fmt.Errorf("reaching the server: %w", err))
	}
	if err := c.write(kind, nil); err != nil {
		c.stop()
		return nil, c.cut(fmt.Errorf("reaching the server: %w", err))
	}
	return c, nil
}

// lastWords is why the other side does not listen any more: what it has said before
// it hung up, or err.
func (c *call) lastWords(err error) error {
	c.wait = c.patience
	if kind, b, rerr := c.read(); rerr == nil && kind == frameError {
		return decodeFault(b)
	}
	return fmt.Errorf("reaching the server: %w", err)
}

// finish says that there is no more, and waits for the outcome.
func (c *call) finish() error {
	if err := c.write(frameEnd, nil); err != nil {
		return c.lastWords(err)
	}
	if err := c.flush(); err != nil {
		return c.lastWords(err)
	}
	kind, b, err := c.read()
	switch {
	case err != nil:
		return fmt.Errorf("waiting for the server: %w", err)
	case kind == frameDone:
		return nil
	case kind == frameError:
		return decodeFault(b)
	}
	return errUnexpected
}

var errUnexpected = errors.New("waiting for the server: an answer that was not expected")

// Apply implements [inventory.Store]. Until the change has been sent whole, the end
// of ctx stops it; then it is waited for, as with a store at hand. If the server
// dies before it answers, the error says that it is not known whether the change
// has landed: read again.
func (s *Store) Apply(ctx context.Context, change inventory.Change) error {
	if err := change.Validate(); err != nil {
		return err
	}
	c, err := s.call(ctx, frameApply)
	if err != nil {
		return err
	}
	defer c.stop()
	if err := c.sendChange(&change); err != nil {
		return c.cut(err)
	}
	if !c.detach() {
		return ctx.Err() // without its end the change is none
	}
	err = c.finish()
	if err != nil && !isFault(err) {
		return fmt.Errorf("%w: it is not known whether the change was made", err)
	}
	return err
}

// isFault reports whether err is an answer of the server.
func isFault(err error) bool {
	_, ok := errors.AsType[*remoteError](err)
	return ok
}

// sendChange tells a record that cannot be sent from a server that does not listen.
func (c *call) sendChange(change *inventory.Change) error {
	err := c.writeChange(change)
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*inventory.InvalidError](err); ok {
		return err
	}
	return c.lastWords(err)
}

// Read implements [inventory.Store]. If fn asks nothing for 30 s the server ends the
// reading, and the next question is answered with an error that says so.
func (s *Store) Read(ctx context.Context, fn func(inventory.Reader) error) error {
	c, err := s.call(ctx, frameRead)
	if err != nil {
		return err
	}
	defer c.stop()
	r := &reader{call: c}
	if err := r.begin(); err != nil {
		return err
	}
	if err := fn(r); err != nil {
		return err
	}
	// What fn wanted to know it knows. The server sees the end of the connection
	// also if it does not hear this.
	_ = errors.Join(c.write(frameEnd, nil), c.flush())
	return nil
}

// Backup writes a copy of the store as it is at one moment to w, as the store's own
// Backup does. What has been written when it fails is no backup.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	c, err := s.call(ctx, frameBackup)
	if err != nil {
		return err
	}
	defer c.stop()
	return c.cut(c.copyTo(w))
}

// Check has every record checked, and reads the report, which the store's own Check
// has made, into the value that report points to.
func (s *Store) Check(ctx context.Context, report any) error {
	c, err := s.call(ctx, frameCheck)
	if err != nil {
		return err
	}
	defer c.stop()
	var b capped
	if err := c.copyTo(&b); err != nil {
		return c.cut(err)
	}
	if err := json.Unmarshal(b, report); err != nil {
		return fmt.Errorf("reading the report of the server: %w", err)
	}
	return nil
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

// copyTo writes the answer to w as it comes.
func (c *call) copyTo(w io.Writer) error {
	if err := c.flush(); err != nil {
		return c.lastWords(err)
	}
	for {
		kind, b, err := c.read()
		switch {
		case err != nil:
			return fmt.Errorf("waiting for the server: %w", err)
		case kind == frameDone:
			return nil
		case kind == frameError:
			return decodeFault(b)
		case kind != frameRecord:
			return errUnexpected
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
}
