package proof

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A client is one MQTT session. Its calls come one after the other; messages arrive
// on their own.
type client struct {
	conn    net.Conn
	codec   codec
	patient time.Duration
	next    uint16

	writing sync.Mutex
	answers chan frame
	ended   chan struct{} // closed when the broker has ended the session

	mu   sync.Mutex
	seen map[string]bool // payloads of the messages that came
	last time.Time       // when the last one came
}

// A RefusedError reports that the broker does not let a client in.
type RefusedError struct {
	Code byte  // of CONNACK; 0 if the connection ended before one
	Err  error // what ended it, or nil
}

// Error says what the broker did.
func (e *RefusedError) Error() string {
	if e.Err != nil {
		return "refused: " + e.Err.Error()
	}
	return fmt.Sprintf("refused: CONNACK with code %d", e.Code)
}

// Unwrap returns what ended the connection.
func (e *RefusedError) Unwrap() error { return e.Err }

// dial opens a session. What the broker refuses is a [*RefusedError]; a broker that
// is not there is another error.
func (b *Broker) dial(ctx context.Context, address string, cert *tls.Certificate, l login) (*client, error) {
	raw, err := (&net.Dialer{Timeout: b.patience()}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", address, err)
	}
	cfg := &tls.Config{RootCAs: b.Roots, ServerName: b.serverName(), MinVersion: tls.VersionTLS12}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	conn := tls.Client(raw, cfg)
	if err := conn.SetDeadline(time.Now().Add(b.patience())); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake says more
		if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			return nil, fmt.Errorf("certificate of %s: %w", address, err)
		}
		if _, ok := errors.AsType[x509.HostnameError](err); ok {
			return nil, fmt.Errorf("certificate of %s: %w", address, err)
		}
		return nil, &RefusedError{Err: err}
	}
	c := &client{
		conn: conn, codec: codec3{}, patient: b.patience(), answers: make(chan frame, 2*window), ended: make(chan struct{}), seen: map[string]bool{}, last: time.Now(),
	}
	if b.Version == 5 {
		c.codec = codec5{}
	}
	r := bufio.NewReader(conn)
	if err := c.codec.connect(conn, l); err != nil {
		_ = conn.Close()
		return nil, &RefusedError{Err: err}
	}
	f, err := c.codec.read(r)
	switch {
	case err != nil:
		_ = conn.Close()
		return nil, &RefusedError{Err: err}
	case f.kind != connack || f.code != 0:
		_ = conn.Close()
		return nil, &RefusedError{Code: f.code}
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go c.listen(r)
	return c, nil
}

// listen takes what the broker sends until it ends the session.
func (c *client) listen(r *bufio.Reader) {
	defer close(c.ended)
	for {
		f, err := c.codec.read(r)
		if err != nil {
			return
		}
		switch f.kind {
		case published:
			c.mu.Lock()
			c.seen[string(f.msg.payload)], c.last = true, time.Now()
			c.mu.Unlock()
			if f.msg.id != 0 {
				if c.write(func(w io.Writer) error { return c.codec.ack(w, f.msg.id) }) != nil {
					return
				}
			}
		case disconnected:
			return
		case puback, suback:
			select {
			case c.answers <- f:
			default: // nobody asks any more
			}
		case connack, other:
		}
	}
}

// write sends one packet as one TLS record: of two, a broker answers the second
// only after a delayed acknowledgement, 40 ms later.
func (c *client) write(encode func(w io.Writer) error) error {
	var packet bytes.Buffer
	if err := encode(&packet); err != nil {
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.patient)); err != nil {
		return err
	}
	_, err := c.conn.Write(packet.Bytes())
	return err
}

// errEnded reports a session that the broker has ended.
var errEnded = errors.New("the broker ended the session")

// errSilent reports a broker that has not answered in time.
var errSilent = errors.New("the broker does not answer")

// wait returns the answer with a packet identifier.
func (c *client) wait(id uint16) (frame, error) {
	timeout := time.NewTimer(c.patient)
	defer timeout.Stop()
	for {
		select {
		case f := <-c.answers:
			if f.id == id {
				return f, nil
			}
		case <-c.ended:
			select {
			case f := <-c.answers:
				if f.id == id {
					return f, nil
				}
			default:
			}
			return frame{}, errEnded
		case <-timeout.C:
			return frame{}, errSilent
		}
	}
}

func (c *client) id() uint16 {
	if c.next++; c.next == 0 {
		c.next = 1
	}
	return c.next
}

// publish sends a message with QoS 1 and returns the code that acknowledges it.
func (c *client) publish(m message) (byte, error) {
	m.id = c.id()
	if err := c.write(func(w io.Writer) error { return c.codec.publish(w, m) }); err != nil {
		return 0, errEnded
	}
	f, err := c.wait(m.id)
	return f.code, err
}

// window is how many messages publishAll has on the way: fewer than any broker takes. A broker that sends a message
// and an acknowledgement to one peer in two small segments has to wait for ours
// between them, which takes 40 ms unless there is more on the way.
const window = 8

// publishAll sends messages with QoS 1 and returns when all are acknowledged.
func (c *client) publishAll(messages []message) error {
	open := map[uint16]bool{}
	timeout := time.NewTimer(c.patient)
	defer timeout.Stop()
	collect := func(left int) error {
		for len(open) > left {
			select {
			case f := <-c.answers:
				delete(open, f.id)
				timeout.Reset(c.patient)
			case <-c.ended:
				return errEnded
			case <-timeout.C:
				return errSilent
			}
		}
		return nil
	}
	for _, m := range messages {
		m.id = c.id()
		open[m.id] = true
		if err := c.write(func(w io.Writer) error { return c.codec.publish(w, m) }); err != nil {
			return errEnded
		}
		if err := collect(window - 1); err != nil {
			return err
		}
	}
	return collect(0)
}

// subscribe returns the code of SUBACK.
func (c *client) subscribe(filter string) (byte, error) {
	id := c.id()
	if err := c.write(func(w io.Writer) error { return c.codec.subscribe(w, id, filter) }); err != nil {
		return 0, errEnded
	}
	f, err := c.wait(id)
	return f.code, err
}

// has reports whether a message with a payload has come, under whatever topic: some
// brokers write one in another way.
func (c *client) has(payload string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[payload]
}

// settle returns when all of want have come, or the patience is over, and then no
// further message has come for a while.
func (c *client) settle(want []string, quiet time.Duration) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	start := time.Now()
	for range tick.C {
		c.mu.Lock()
		missing := false
		for _, s := range want {
			if !c.seen[s] {
				missing = true
				break
			}
		}
		idle := time.Since(max2(c.last, start))
		c.mu.Unlock()
		if !missing && idle >= quiet || time.Since(start) > c.patient && idle >= quiet {
			return
		}
	}
}

func max2(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// alive reports whether the broker has not ended the session.
func (c *client) alive() bool {
	select {
	case <-c.ended:
		return false
	default:
		return true
	}
}

// close ends the session as a client should.
func (c *client) close() {
	_ = c.write(c.codec.disconnect)
	_ = c.conn.Close()
	<-c.ended
}

// drop ends the connection without a word, which is what a will is for.
func (c *client) drop() {
	if t, ok := c.conn.(*tls.Conn); ok {
		_ = t.NetConn().Close()
	} else {
		_ = c.conn.Close()
	}
	<-c.ended
}
