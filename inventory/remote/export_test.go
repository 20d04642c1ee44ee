package remote

import (
	"bytes"
	"context"
	"net"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// What the tests of the package see of its inside.
var (
	EncodeFault = encodeFault
	DecodeFault = decodeFault
	Heard       = heard
)

// Hello is what both sides say first, and MaxFrame what a frame holds.
const (
	Hello    = hello
	MaxFrame = maxFrame
)

// ServeImpatiently is Serve with another patience.
func ServeImpatiently(ctx context.Context, l net.Listener, s inventory.Store, patience time.Duration) error {
	return serve(ctx, l, s, Extra{}, patience)
}

// Converse serves one call to a peer that says in, and returns what it is told.
func Converse(ctx context.Context, s inventory.Store, extra Extra, in []byte) []byte {
	c := &deaf{in: bytes.NewReader(in)}
	x := &session{wire: newWire(c, time.Minute), store: s, extra: extra}
	_ = x.run(ctx)
	return c.out.Bytes()
}

// Ask reads all that a reading can ask for, from a server that says in.
func Ask(in []byte, fn func(inventory.Reader)) error {
	c := &call{wire: newWire(&deaf{in: bytes.NewReader(in)}, time.Minute), cut: func(err error) error { return err }}
	if err := c.greet(); err != nil {
		return err
	}
	r := &reader{call: c}
	if err := r.begin(); err != nil {
		return err
	}
	fn(r)
	return c.finish()
}

// Frame is one frame as it is sent.
func Frame(kind byte, payload []byte) []byte {
	c := &deaf{in: bytes.NewReader(nil)}
	x := newWire(c, time.Minute)
	_ = x.write(kind, payload)
	_ = x.flush()
	return c.out.Bytes()
}

// A deaf connection says what it has to say, whatever it is told.
type deaf struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (d *deaf) Read(b []byte) (int, error)       { return d.in.Read(b) }
func (d *deaf) Write(b []byte) (int, error)      { return d.out.Write(b) }
func (d *deaf) Close() error                     { return nil }
func (d *deaf) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (d *deaf) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (d *deaf) SetDeadline(time.Time) error      { return nil }
func (d *deaf) SetReadDeadline(time.Time) error  { return nil }
func (d *deaf) SetWriteDeadline(time.Time) error { return nil }
