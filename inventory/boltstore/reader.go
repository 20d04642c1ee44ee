package boltstore

import (
	"bytes"
	"context"
	"fmt"
	"iter"

	"github.com/imprint-iot/imprint/inventory"
)

// A reader is an [inventory.Reader] in one transaction.
type reader struct {
	ctx   context.Context //nolint:containedctx // a reader lives within one call of Read
	chain *chain
	head  head
}

// Revision implements [inventory.Reader].
func (r *reader) Revision() uint64 { return r.head.revision }

// Device implements [inventory.Reader].
func (r *reader) Device(id inventory.DeviceID) (inventory.Device, error) {
	d, ok, err := r.device(id.Canonical())
	switch {
	case err != nil:
		return inventory.Device{}, err
	case !ok:
		return inventory.Device{}, fmt.Errorf("device %.64q: %w", string(id), inventory.ErrNotFound)
	}
	return d, nil
}

func (r *reader) device(canonical string) (inventory.Device, bool, error) {
	b, ok, err := r.chain.get(deviceKey(canonical))
	if err != nil || !ok {
		return inventory.Device{}, false, err
	}
	d, err := inventory.DecodeDevice(b)
	return d, err == nil, err
}

// records yields the records whose keys start with prefix, from the key from on.
// It ends with the context's error if that comes first.
func records[T any](r *reader, prefix, from []byte, decode func(key, value []byte) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		s, err := r.chain.scan(prefix, from)
		if err != nil {
			yield(zero, err)
			return
		}
		for n := 0; ; n++ {
			if n%256 == 0 {
				if err := r.ctx.Err(); err != nil {
					yield(zero, err)
					return
				}
			}
			k, v, err := s.next()
			if err == nil && k == nil {
				return
			}
			var x T
			if err == nil {
				x, err = decode(k, v)
			}
			if err != nil {
				yield(zero, err)
				return
			}
			if !yield(x, nil) {
				return
			}
		}
	}
}

// filter passes on what keep wants, at most limit values if limit is not 0.
func filter[T any](seq iter.Seq2[T, error], limit int, keep func(*T) bool) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		n := 0
		for x, err := range seq {
			if err != nil {
				yield(x, err)
				return
			}
			if !keep(&x) {
				continue
			}
			if n++; !yield(x, nil) || n == limit {
				return
			}
		}
	}
}

// Devices implements [inventory.Reader]. Every index has its devices in the
// order of their IDs, so that is the order of all answers.
func (r *reader) Devices(q inventory.Query) iter.Seq2[inventory.Device, error] {
	kind := q.Kind
	if kind == 0 {
		kind = inventory.Equipment
	}
	keep := func(d *inventory.Device) bool {
		return d.Kind == kind && (q.State == 0 || d.State == q.State) &&
			(q.Profile == "" || d.Profile == q.Profile) && (q.Group == "" || d.Group == q.Group) && hasLabels(d, q.Labels)
	}
	prefix := []byte{kindDevice}
	switch {
	case q.Group != "":
		prefix = byGroup(q.Group)
	case q.State != 0 && q.State != inventory.Active:
		prefix = byState(q.State)
	case q.Profile != "":
		prefix = byProfile(q.Profile)
	}
	var from []byte
	if q.After != "" {
		// The zero byte is in no ID: this is the place right behind After.
		from = append(append(bytes.Clone(prefix), q.After.Canonical()...), 0)
	}
	return filter(records(r, prefix, from, func(k, v []byte) (inventory.Device, error) {
		if k[0] == kindDevice {
			return inventory.DecodeDevice(v)
		}
		d, ok, err := r.device(string(k[len(prefix):]))
		if err == nil && !ok {
			err = damaged(recordName(k), "there is no such device")
		}
		return d, err
	}), q.Limit, keep)
}

func hasLabels(d *inventory.Device, want inventory.Labels) bool {
	for _, l := range want {
		if v, ok := d.Labels.Get(l.Key); !ok || v != l.Value {
			return false
		}
	}
	return true
}

// Credentials implements [inventory.Reader].
func (r *reader) Credentials(q inventory.CredentialQuery) iter.Seq2[inventory.Credential, error] {
	return filter(r.candidates(&q), 0, func(c *inventory.Credential) bool { return matches(&q, c) })
}

func matches(q *inventory.CredentialQuery, c *inventory.Credential) bool {
	switch {
	case q.Device != "" && q.Device.Canonical() != c.Device.Canonical(),
		q.Kind != 0 && q.Kind != c.Kind,
		q.State != 0 && q.State != c.State:
		return false
	}
	cert := c.Certificate
	if cert == nil {
		return q.SPKI.IsZero() && q.Serial.IsZero() && q.ExpiresAfter.IsZero() && q.ExpiresBefore.IsZero()
	}
	return (q.SPKI.IsZero() || cert.SPKI == q.SPKI) &&
		(q.Serial.IsZero() || cert.Serial == q.Serial) &&
		(q.ExpiresAfter.IsZero() || !cert.NotAfter.Before(q.ExpiresAfter)) &&
		(q.ExpiresBefore.IsZero() || cert.NotAfter.Before(q.ExpiresBefore))
}

// candidates yields the credentials that the best index offers.
func (r *reader) candidates(q *inventory.CredentialQuery) iter.Seq2[inventory.Credential, error] {
	byKey := func(_, v []byte) (inventory.Credential, error) { return inventory.DecodeCredential(v) }
	switch {
	case !q.Serial.IsZero():
		prefix := serialKey(q.Serial, inventory.KeyID{})[:1+len(q.Serial)]
		return records(r, prefix, nil, func(k, v []byte) (inventory.Credential, error) { return r.credential(k, v) })
	case !q.SPKI.IsZero():
		use, err := r.Key(q.SPKI)
		if err != nil || use.Device == "" {
			return one(inventory.Credential{}, err)
		}
		return records(r, credentialsOf(use.Device.Canonical()), nil, byKey)
	case q.Device != "":
		return records(r, credentialsOf(q.Device.Canonical()), nil, byKey)
	case !q.ExpiresBefore.IsZero():
		return r.expiring(q)
	case q.All:
		return records(r, []byte{kindCredential}, nil, byKey)
	}
	return one(inventory.Credential{}, &inventory.InvalidError{Field: "credential query", Want: "Device, SPKI, Serial, ExpiresBefore or All"})
}

// one yields err, or nothing if it is nil.
func one[T any](zero T, err error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		if err != nil {
			yield(zero, err)
		}
	}
}

// expiring walks the expiry index up to q.ExpiresBefore.
func (r *reader) expiring(q *inventory.CredentialQuery) iter.Seq2[inventory.Credential, error] {
	prefix := []byte{kindByExpiry}
	var from []byte
	if !q.ExpiresAfter.IsZero() {
		from = append(bytes.Clone(prefix), sortableTime(q.ExpiresAfter)...)
	}
	end := append(bytes.Clone(prefix), sortableTime(q.ExpiresBefore)...)
	type found struct {
		ref  []byte
		done bool
	}
	keys := records(r, prefix, from, func(k, _ []byte) (found, error) {
		return found{k[1+8:], bytes.Compare(k[:1+8], end) > 0}, nil
	})
	return func(yield func(inventory.Credential, error) bool) {
		for f, err := range keys {
			if err == nil && f.done {
				return
			}
			var c inventory.Credential
			if err == nil {
				c, err = r.credential(nil, f.ref)
			}
			if !yield(c, err) || err != nil {
				return
			}
		}
	}
}

// credential reads what an index entry points to.
func (r *reader) credential(entry, ref []byte) (inventory.Credential, error) {
	b, ok, err := r.chain.get(credentialKey(ref))
	if err != nil {
		return inventory.Credential{}, err
	}
	if !ok {
		return inventory.Credential{}, damaged(recordName(entry), "there is no such credential")
	}
	return inventory.DecodeCredential(b)
}

// Key implements [inventory.Reader].
func (r *reader) Key(k inventory.SPKI) (inventory.KeyUse, error) {
	b, ok, err := r.chain.get(spkiKey(k))
	if err != nil || !ok {
		return inventory.KeyUse{}, err
	}
	return inventory.DecodeKeyUse(b)
}

// Revocations implements [inventory.Reader].
func (r *reader) Revocations(issuer inventory.KeyID) iter.Seq2[inventory.Revocation, error] {
	prefix := append([]byte{kindRevocation}, issuer[:]...)
	return records(r, prefix, nil, func(_, v []byte) (inventory.Revocation, error) { return inventory.DecodeRevocation(v) })
}

// Profiles implements [inventory.Reader].
func (r *reader) Profiles() iter.Seq2[inventory.Profile, error] {
	return records(r, []byte{kindProfile}, nil, func(_, v []byte) (inventory.Profile, error) { return inventory.DecodeProfile(v) })
}

// Issuers implements [inventory.Reader].
func (r *reader) Issuers() iter.Seq2[inventory.Issuer, error] {
	return records(r, []byte{kindIssuer}, nil, func(_, v []byte) (inventory.Issuer, error) { return inventory.DecodeIssuer(v) })
}

// Events implements [inventory.Reader].
func (r *reader) Events(from uint64) iter.Seq2[inventory.Event, error] {
	return records(r, []byte{kindEvent}, eventKey(max(from, 1)), func(_, v []byte) (inventory.Event, error) { return inventory.DecodeEvent(v) })
}
