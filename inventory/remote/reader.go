package remote

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"

	"github.com/imprint-iot/imprint/inventory"
)

// A reader is an [inventory.Reader] at a distance. Like the connection it is for one
// goroutine at a time.
type reader struct {
	*call
	revision uint64
	broken   error // the connection is of no use any more
}

// begin asks for the moment that is read.
func (r *reader) begin() error {
	b, err := r.ask(frameRevision, nil)
	if err != nil {
		return err
	}
	if len(b) != 8 {
		return errUnexpected
	}
	r.revision = binary.BigEndian.Uint64(b)
	return nil
}

// fail notes that the connection is of no use, and why.
func (r *reader) fail(err error) error {
	r.broken = r.cut(err)
	return r.broken
}

// send asks a question.
func (r *reader) send(kind byte, b []byte) error {
	if r.broken != nil {
		return r.broken
	}
	if err := r.write(kind, b); err != nil {
		return r.fail(r.lastWords(err))
	}
	if err := r.flush(); err != nil {
		return r.fail(r.lastWords(err))
	}
	return nil
}

// receive returns the next record of an answer. The payload is valid until the next
// one.
func (r *reader) receive() (byte, []byte, error) {
	if r.broken != nil {
		return 0, nil, r.broken
	}
	kind, b, err := r.read()
	if err != nil {
		return 0, nil, r.fail(fmt.Errorf("waiting for the server: %w", err))
	}
	switch kind {
	case frameError:
		return 0, nil, decodeFault(b)
	case frameRecord, frameMore, frameDone:
		return kind, b, nil
	}
	return 0, nil, r.fail(errUnexpected)
}

// ask returns the one record that answers a query.
func (r *reader) ask(kind byte, b []byte) ([]byte, error) {
	if err := r.send(kind, b); err != nil {
		return nil, err
	}
	kind, b, err := r.receive()
	if err == nil && kind != frameRecord {
		err = r.fail(errUnexpected)
	}
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

// Work implements [inventory.Reader].
func (r *reader) Work(kind, name string) (inventory.Work, error) {
	for w, err := range r.Works(kind) {
		if err != nil || w.Kind == kind && w.Name == name {
			return w, err
		}
	}
	return inventory.Work{}, fmt.Errorf("work %s %s: %w", kind, name, inventory.ErrNotFound)
}

// Works implements [inventory.Reader].
func (r *reader) Works(kind string) iter.Seq2[inventory.Work, error] {
	return sequence(r, frameWorks, []byte(kind), inventory.DecodeWork)
}

// Events implements [inventory.Reader].
func (r *reader) Events(from uint64) iter.Seq2[inventory.Event, error] {
	return sequence(r, frameEvents, number(from), inventory.DecodeEvent)
}

// sequence reads a sequence page by page. Between two pages the connection is
// free, so that other queries can be asked while this one is being read.
func sequence[T any](r *reader, kind byte, query []byte, decode func([]byte) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		kind, query := kind, query // each range over it starts again
		var zero T
		for {
			page, more, err := readPage(r, kind, query, decode)
			for _, v := range page {
				if yield(v, nil) {
					continue
				}
				if more != nil {
					r.forget(more)
				}
				return
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

// forget lets the server drop a sequence that nobody wants the rest of. It has
// nothing to tell: a connection that is broken is met by the next question.
func (r *reader) forget(more []byte) {
	if r.send(frameStop, more) != nil {
		return
	}
	_, _, _ = r.receive()
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
			return page, bytes.Clone(b), nil
		}
		v, err := decode(b)
		if err != nil {
			return page, nil, r.fail(err) // the rest of the page is still on its way
		}
		page = append(page, v)
	}
}
