package inventory

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/imprint-iot/imprint/inventory/topic"
)

// DecodeDevice reads the stored form of a device. The result shares no memory
// with b. The error wraps [ErrCorrupt] or [ErrVersion].
func DecodeDevice(b []byte) (Device, error) {
	// One copy of the record serves all its texts.
	r := reader{b: b, text: string(b)}
	var d Device
	d.Revision = r.header(deviceRecord)
	d.ID = DeviceID(r.string())
	d.Kind = DeviceKind(r.byte())
	d.HardwareSerial = r.string()
	d.Profile = r.string()
	d.Group = r.string()
	if n := r.count(2); n > 0 {
		d.Labels = make(Labels, n)
		for i := range d.Labels {
			d.Labels[i] = Label{r.string(), r.string()}
		}
	}
	if n := r.count(1); n > 0 {
		d.Hosts = make([]string, n)
		for i := range d.Hosts {
			d.Hosts[i] = r.string()
		}
	}
	d.State = DeviceState(r.byte())
	d.Created = r.time()
	d.Updated = r.time()
	if r.version >= deviceVersion {
		d.Trust = r.uint32()
	}
	if err := r.end("device"); err != nil {
		return Device{}, err
	}
	return d, nil
}

// DecodeCredential reads the stored form of a credential. The result shares no
// memory with b. The error wraps [ErrCorrupt] or [ErrVersion].
func DecodeCredential(b []byte) (Credential, error) {
	r := reader{b: b}
	var c Credential
	c.Revision = r.header(credentialRecord)
	c.Device = DeviceID(r.string())
	c.Kind = CredentialKind(r.byte())
	c.Generation = r.uint32()
	c.State = CredentialState(r.byte())
	if r.bool() {
		cert := &Certificate{DER: r.bytes()}
		r.fixed(cert.Serial[:])
		r.fixed(cert.SPKI[:])
		r.fixed(cert.Issuer[:])
		cert.NotBefore = r.time()
		cert.NotAfter = r.time()
		c.Certificate = cert
	}
	if n := r.count(4); n > 0 {
		c.Verifiers = make([]Verifier, n)
		for i := range c.Verifiers {
			c.Verifiers[i] = Verifier{Scheme: Scheme(r.byte()), Iterations: r.uint32(), Salt: r.bytes(), Hash: r.bytes()}
		}
	}
	c.Created = r.time()
	c.ReplacedBy = r.uint32()
	c.FirstSeen = r.time()
	c.RevokedAt = r.time()
	c.Reason = Reason(r.byte())
	if err := r.end("credential"); err != nil {
		return Credential{}, err
	}
	return c, nil
}

// DecodeProfile reads the stored form of a profile. The result shares no memory
// with b. The error wraps [ErrCorrupt] or [ErrVersion].
func DecodeProfile(b []byte) (Profile, error) {
	r := reader{b: b, text: string(b)}
	var p Profile
	p.Revision = r.header(profileRecord)
	p.Name = r.string()
	p.Certificate = r.bytes()
	p.Password.None = r.bool()
	p.Password.Length = r.byte()
	if n := r.count(1); n > 0 {
		p.Password.Schemes = make([]Scheme, n)
		for i := range p.Password.Schemes {
			p.Password.Schemes[i] = Scheme(r.byte())
		}
	}
	if n := r.count(3); n > 0 {
		p.Policy.Rules = make([]topic.Rule, n)
		for i := range p.Policy.Rules {
			p.Policy.Rules[i] = topic.Rule{Action: topic.Action(r.byte()), Filter: r.string(), Shared: r.bool()}
		}
	}
	p.Grace = time.Duration(unzigzag(r.uint()))
	if err := r.end("profile"); err != nil {
		return Profile{}, err
	}
	return p, nil
}

// DecodeIssuer reads the stored form of an issuer. The result shares no memory
// with b. The error wraps [ErrCorrupt] or [ErrVersion].
func DecodeIssuer(b []byte) (Issuer, error) {
	r := reader{b: b}
	var i Issuer
	i.Revision = r.header(issuerRecord)
	i.Name = r.string()
	i.Purpose = Purpose(r.byte())
	i.Generation = r.uint32()
	i.State = IssuerState(r.byte())
	r.fixed(i.KeyID[:])
	r.fixed(i.SPKI[:])
	i.Certificate = r.bytes()
	i.Key = r.string()
	i.NotAfter = r.time()
	i.CRLNumber = r.uint()
	i.CRLThisUpdate = r.time()
	i.CRLNextUpdate = r.time()
	i.CRLRevision = r.uint()
	if err := r.end("issuer"); err != nil {
		return Issuer{}, err
	}
	return i, nil
}

// DecodeEvent reads the stored form of an event. It does not check the hash. The
// result shares no memory with b. The error wraps [ErrCorrupt] or [ErrVersion].
func DecodeEvent(b []byte) (Event, error) {
	r := reader{b: b, text: string(b)}
	var e Event
	e.Seq = r.header(eventRecord)
	e.Time = r.time()
	e.Actor = r.string()
	e.Action = r.string()
	if n := r.count(3); n > 0 {
		e.Objects = make([]Object, n)
		for i := range e.Objects {
			e.Objects[i] = Object{Kind: r.string(), ID: r.string(), Note: r.string()}
		}
	}
	e.Reason = r.string()
	r.fixed(e.Digest[:])
	r.fixed(e.Prev[:])
	r.fixed(e.Hash[:])
	if err := r.end("audit event"); err != nil {
		return Event{}, err
	}
	return e, nil
}

// DecodeRevocation reads the stored form of a CRL entry. The result shares no
// memory with b. The error wraps [ErrCorrupt] or [ErrVersion].
func DecodeRevocation(b []byte) (Revocation, error) {
	r := reader{b: b}
	var v Revocation
	r.kind(revocationRecord)
	r.fixed(v.Issuer[:])
	r.fixed(v.Serial[:])
	v.Device = DeviceID(r.string())
	v.Reason = Reason(r.byte())
	v.Time = r.time()
	v.NotAfter = r.time()
	if err := r.end("revocation"); err != nil {
		return Revocation{}, err
	}
	return v, nil
}

// DecodeToken reads the stored form of a token. The result shares no memory with
// b. The error wraps [ErrCorrupt] or [ErrVersion].
func DecodeToken(b []byte) (Token, error) {
	r := reader{b: b, text: string(b)}
	var t Token
	t.Revision = r.header(tokenRecord)
	r.fixed(t.Hash[:])
	t.Role = Role(r.byte())
	t.Name = r.string()
	t.Limit = r.uint32()
	t.Uses = r.uint32()
	if n := r.count(1); n > 0 {
		t.Devices = make([]DeviceID, n)
		for i := range t.Devices {
			t.Devices[i] = DeviceID(r.string())
		}
	}
	t.Prefix = r.string()
	t.Profile = r.string()
	t.Group = r.string()
	t.Station = DeviceID(r.string())
	if n := r.count(1); n > 0 {
		t.Networks = make([]netip.Prefix, n)
		for i := range t.Networks {
			t.Networks[i] = r.prefix()
		}
	}
	t.PerMinute = r.uint32()
	t.Approve = r.bool()
	t.Replace = r.bool()
	t.NotBefore = r.time()
	t.Expires = r.time()
	t.Created = r.time()
	t.CreatedBy = r.string()
	t.RevokedAt = r.time()
	if err := r.end("token"); err != nil {
		return Token{}, err
	}
	return t, nil
}

// DecodeApproval reads the stored form of an approval. The result shares no
// memory with b. The error wraps [ErrCorrupt] or [ErrVersion].
func DecodeApproval(b []byte) (Approval, error) {
	r := reader{b: b}
	var a Approval
	a.Revision = r.header(approvalRecord)
	r.fixed(a.Key[:])
	a.Device = DeviceID(r.string())
	a.State = ApprovalState(r.byte())
	a.Asked = r.string()
	a.Created = r.time()
	a.Decided = r.time()
	if err := r.end("approval"); err != nil {
		return Approval{}, err
	}
	return a, nil
}

// DecodeKeyUse reads the stored form of what is known of a key. The result
// shares no memory with b. The error wraps [ErrCorrupt] or [ErrVersion].
func DecodeKeyUse(b []byte) (KeyUse, error) {
	r := reader{b: b}
	var u KeyUse
	r.kind(keyRecord)
	u.Device = DeviceID(r.string())
	u.Blocked = r.bool()
	if err := r.end("key"); err != nil {
		return KeyUse{}, err
	}
	return u, nil
}

// A reader takes a record apart. After the first fault every read returns zero,
// and end reports it. What is allocated is never longer than b.
type reader struct {
	b       []byte
	at      int
	text    string // a copy of b that texts are cut from; may be empty
	version byte
	err     error
}

func (r *reader) fail() {
	if r.err == nil {
		r.err = ErrCorrupt
	}
}

// take returns the next n bytes of b, or nil.
func (r *reader) take(n int) []byte {
	if r.err != nil || n > len(r.b)-r.at {
		r.fail()
		return nil
	}
	r.at += n
	return r.b[r.at-n : r.at]
}

func (r *reader) byte() byte {
	if r.err != nil || r.at >= len(r.b) {
		r.fail()
		return 0
	}
	r.at++
	return r.b[r.at-1]
}

func (r *reader) bool() bool {
	switch r.byte() {
	case 0:
		return false
	case 1:
		return true
	}
	r.fail()
	return false
}

// uint reads a varint, which must be in its shortest form.
func (r *reader) uint() uint64 {
	if r.err == nil && r.at < len(r.b) && r.b[r.at] < 0x80 {
		r.at++
		return uint64(r.b[r.at-1])
	}
	if r.err != nil {
		return 0
	}
	n, size := binary.Uvarint(r.b[r.at:])
	if size <= 0 || r.b[r.at+size-1] == 0 {
		r.fail()
		return 0
	}
	r.at += size
	return n
}

func (r *reader) uint32() uint32 {
	n := r.uint()
	if n > math.MaxUint32 {
		r.fail()
		return 0
	}
	return uint32(n)
}

// length reads the length of what follows, which is not longer than the rest.
func (r *reader) length() int {
	n := r.uint()
	if n > uint64(len(r.b)-r.at) {
		r.fail()
		return 0
	}
	return int(n)
}

// count reads the length of a list whose elements take at least size bytes.
func (r *reader) count(size int) int {
	n := r.uint()
	if n > uint64((len(r.b)-r.at)/size) {
		r.fail()
		return 0
	}
	return int(n)
}

func (r *reader) string() string {
	n := r.length()
	p := r.take(n)
	if len(p) == 0 {
		return ""
	}
	if r.text != "" {
		return r.text[r.at-n : r.at]
	}
	return string(p)
}

// bytes returns a copy, or nil if it is empty.
func (r *reader) bytes() []byte { return append([]byte(nil), r.take(r.length())...) }

func (r *reader) fixed(dst []byte) { copy(dst, r.take(len(dst))) }

func (r *reader) time() time.Time {
	n := r.uint()
	if n == 0 {
		return time.Time{}
	}
	t := time.Unix(unzigzag(n-1), 0).UTC()
	if t.IsZero() {
		r.fail() // has another encoding
	}
	return t
}

func unzigzag(n uint64) int64 { return int64(n>>1) ^ -int64(n&1) }

// prefix reads a network, which must be in the form that it is written in.
func (r *reader) prefix() netip.Prefix {
	text := r.string()
	p, err := netip.ParsePrefix(text)
	if r.err == nil && (err != nil || p.String() != text) {
		r.fail()
	}
	return p
}

// kind reads version and kind.
func (r *reader) kind(want byte) {
	v := r.byte()
	r.version = v
	switch {
	case r.err != nil:
	case v == 0:
		r.fail()
	case v > versionOf(want):
		r.err = ErrVersion
	case r.byte() != want:
		r.fail()
	}
}

// header reads version, kind and revision.
func (r *reader) header(want byte) uint64 {
	r.kind(want)
	if p := r.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// end reports the first fault. Bytes left over are one.
func (r *reader) end(record string) error {
	if r.err == nil && r.at != len(r.b) {
		r.fail()
	}
	if r.err != nil {
		return fmt.Errorf("decoding %s: %w", record, r.err)
	}
	return nil
}
