package remote_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/remote"
)

// frames puts a conversation together.
func frames(parts ...[]byte) []byte { return append([]byte(remote.Hello), bytes.Join(parts, nil)...) }

// TestNonsense: a peer that talks nonsense is told so, or hung up on.
func TestNonsense(t *testing.T) {
	read := remote.Frame('r', nil)
	for name, in := range map[string][]byte{
		"nothing":              nil,
		"HTTP":                 []byte("GET / HTTP/1.1\r\n\r\n"),
		"a frame without end":  frames([]byte("A\xff\xff\xff\xff")),
		"negative length":      frames([]byte("A\x80\x00\x00\x00")),
		"parts without end":    frames(bytes.Repeat(remote.Frame('&', []byte("x")), 10)),
		"empty part":           frames(remote.Frame('&', nil)),
		"unknown call":         frames(remote.Frame('?', nil)),
		"a change of nothing":  frames(remote.Frame('A', nil), remote.Frame('.', nil)),
		"an unknown query":     frames(read, remote.Frame('?', nil)),
		"a page of nothing":    frames(read, remote.Frame('n', []byte{0, 0, 0, 9})),
		"a short page number":  frames(read, remote.Frame('n', nil)),
		"a short key":          frames(read, remote.Frame('k', make([]byte, 31))),
		"a long key":           frames(read, remote.Frame('k', make([]byte, 33))),
		"a query that is none": frames(read, remote.Frame('D', []byte("["))),
	} {
		f := &fake{apply: func(inventory.Change) error { t.Errorf("%s: applied", name); return nil }}
		out := remote.Converse(t.Context(), f, remote.Extra{}, in)
		if !bytes.HasPrefix(out, []byte(remote.Hello)) || bytes.Contains(out, []byte("*\x00")) {
			t.Errorf("%s: answered with %q", name, out)
		}
		if f.reading.Load() != 0 {
			t.Errorf("%s: still reading", name)
		}
	}
}

// FuzzServer: whatever a peer says, the server ends the call and what it says back is
// made of frames.
func FuzzServer(f *testing.F) {
	read := remote.Frame('r', nil)
	c := someChange()
	event, err := c.Event.AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	device, err := c.Devices[0].AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frames(remote.Frame('A', nil), remote.Frame('E', event), remote.Frame('D', device), remote.Frame('B', make([]byte, 32)), remote.Frame('U', make([]byte, 32)), remote.Frame('.', nil)))
	f.Add(frames(read, remote.Frame('v', nil), remote.Frame('D', []byte(`{"labels":[{"Key":"a","Value":"b"}]}`)), remote.Frame('n', []byte{0, 0, 0, 1}), remote.Frame('s', []byte{0, 0, 0, 1}), remote.Frame('.', nil)))
	f.Add(frames(read, remote.Frame('C', []byte(`{"serial":"AAAA","spki":"AAAA"}`)), remote.Frame('k', make([]byte, 32)), remote.Frame('R', make([]byte, 20)), remote.Frame('E', make([]byte, 8)), remote.Frame('T', nil), remote.Frame('Q', nil)))
	f.Add(frames(remote.Frame('b', nil)))
	f.Add(frames(remote.Frame('&', []byte("x")), remote.Frame('c', nil)))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &fake{devices: 300, apply: func(c inventory.Change) error { return c.Validate() }}
		out, ok := bytes.CutPrefix(remote.Converse(t.Context(), s, remote.Extra{}, in), []byte(remote.Hello))
		if !ok {
			t.Fatal("no greeting")
		}
		for len(out) > 0 {
			if len(out) < 5 || !bytes.ContainsRune([]byte("*+=!"), rune(out[0])) {
				t.Fatalf("this is no frame of a server: %.40q", out)
			}
			n := binary.BigEndian.Uint32(out[1:])
			if n > remote.MaxFrame || int(n)+5 > len(out) {
				t.Fatalf("a frame of %d octets, %d are there", n, len(out)-5)
			}
			out = out[5+n:]
		}
		if s.reading.Load() != 0 {
			t.Error("still reading")
		}
	})
}

// FuzzClient: whatever a server says, a client ends, with records or with an error.
func FuzzClient(f *testing.F) {
	device, err := (&someChange().Devices[0]).AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	revision := remote.Frame('*', []byte{0, 0, 0, 0, 0, 0, 0, 9})
	f.Add(frames(revision, remote.Frame('*', device), remote.Frame('+', []byte{0, 0, 0, 1}), remote.Frame('*', device), remote.Frame('=', nil), remote.Frame('=', nil)))
	f.Add(frames(revision, remote.Frame('!', remote.EncodeFault(inventory.ErrCorrupt)), remote.Frame('*', device)))
	f.Add(frames(revision, remote.Frame('=', nil), remote.Frame('=', nil), remote.Frame('!', []byte(`{"conflict":{"Why":3}}`))))
	f.Add([]byte("imprint refused\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		n := 0
		_ = remote.Ask(in, func(r inventory.Reader) {
			for d, err := range r.Devices(inventory.Query{}) {
				if err != nil {
					break
				}
				if b, err := d.AppendBinary(nil); err != nil || len(b) > len(in) {
					t.Errorf("a device of %d octets, %v", len(b), err)
				}
				n++
			}
			for _, err := range r.Credentials(inventory.CredentialQuery{All: true}) {
				if err != nil {
					break
				}
				n++
			}
			_, _ = r.Token(inventory.Hash{})
			_, _ = r.Key(inventory.SPKI{})
		})
		if n > len(in) {
			t.Errorf("%d records from %d octets", n, len(in))
		}
	})
}
