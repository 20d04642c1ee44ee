package boltstore

import (
	"bytes"
	"context"
	"fmt"

	"github.com/imprint-iot/imprint/inventory"

	bolt "go.etcd.io/bbolt"
)

// A Report says what [Store.Check] found.
type Report struct {
	Revision uint64         // the number of the last event
	Head     inventory.Hash // its hash, to be compared with one noted elsewhere

	Devices, Credentials, Profiles, Issuers, Keys, Revocations, Events uint64

	Faults    []Fault // at most 100 of them
	Truncated bool    // there are more
}

// maxFaults is how many faults a report names.
const maxFaults = 100

// A Fault is one thing that is not as it must be.
type Fault struct {
	Record string // which, in words; never what is in it
	Why    string
}

// String is both parts.
func (f Fault) String() string { return f.Record + ": " + f.Why }

// Check looks at every record and index of the store as it is at one moment:
// MACs, the order of the records, indexes in both directions, counts, the audit
// chain, the journal, the rules between records, and that what is noted of a
// certificate is what it says. What is wrong is in the report; the error says
// that it could not be finished.
//
// Changes go on meanwhile. If there can be none, because the store is open for
// reading, bbolt's own check of pages and free pages is made too; it cannot be
// made beside a writer.
func (s *Store) Check(ctx context.Context) (Report, error) {
	if err := ctx.Err(); err != nil {
		return Report{}, err
	}
	if err := s.enter(); err != nil {
		return Report{}, err
	}
	defer s.calls.Done()
	c := &checker{ctx: ctx, store: s}
	err := s.view(func(tx *bolt.Tx, ch *chain) error { return c.run(tx, ch) })
	return c.report, err
}

// A checker is one run of Check.
type checker struct {
	ctx    context.Context //nolint:containedctx // a checker lives within one call of Check
	store  *Store
	chain  *chain
	reader *reader
	report Report
	counts counts
	last   inventory.Hash
}

func (c *checker) fault(record, format string, args ...any) {
	if len(c.report.Faults) >= maxFaults {
		c.report.Truncated = true
		return
	}
	c.report.Faults = append(c.report.Faults, Fault{record, fmt.Sprintf(format, args...)})
}

func (c *checker) run(tx *bolt.Tx, ch *chain) error {
	h, err := readHead(ch)
	if err != nil {
		c.fault("head", "%v", err)
		return nil
	}
	c.chain, c.reader = ch, &reader{ctx: c.ctx, chain: ch, head: h}
	c.report.Revision, c.report.Head = h.revision, h.last
	n := 0
	// An order that cannot be followed ends the walk: what lies behind is not
	// known.
	err = c.walk(func(k, v []byte) error {
		if n++; n%256 == 0 {
			if err := c.ctx.Err(); err != nil {
				return err
			}
		}
		c.record(k, v)
		return nil
	})
	if err != nil {
		return err
	}
	c.totals(h)
	c.journal(h)
	if c.store.cfg.ReadOnly && len(c.report.Faults) == 0 {
		c.pages(tx)
	}
	return nil
}

// pages is bbolt's own check. It follows page numbers in a goroutine of its own,
// where one beyond the file would end the process, so it comes after a walk that
// has followed them all.
func (c *checker) pages(tx *bolt.Tx) {
	err := guard(func() error {
		for err := range tx.Check() {
			c.fault("database", "%v", err)
		}
		return nil
	})
	if err != nil {
		c.fault("database", "%v", err)
	}
}

// walk visits every record. One whose MAC is wrong is noted, and the walk goes
// on.
func (c *checker) walk(fn func(k, v []byte) error) error {
	s, err := c.chain.scan(nil, headKey())
	if err != nil {
		c.fault("head", "%v", err)
		return nil
	}
	for s.key != nil {
		var k, v []byte
		damage := guard(func() error {
			key, sealed := s.key, s.sealed
			next, value := s.cursor.Next()
			s.key, s.sealed = next, value
			if next != nil && bytes.Compare(next, key) <= 0 {
				s.key = nil
				return damaged(recordName(key), "the order of the records is broken")
			}
			k = key
			var err error
			v, err = s.seal.open(key, next, sealed)
			return err
		})
		if damage != nil {
			c.fault(recordName(k), "%v", damage)
			if k == nil {
				return nil
			}
			continue
		}
		if err := fn(k, v); err != nil {
			return err
		}
	}
	return nil
}

// record checks one record whose MAC is good.
func (c *checker) record(k, v []byte) {
	if n := c.counts.of(k[0]); n != nil {
		*n++
	}
	var err error
	switch k[0] {
	case kindHead:
	case kindByExpiry, kindBySerial:
		err = c.credentialIndex(k, v)
	case kindByState, kindByProfile, kindByGroup:
		err = c.deviceIndex(k)
	case kindKey:
		_, err = inventory.DecodeKeyUse(v)
	case kindRevocation:
		err = c.revocation(k, v)
	case kindProfile:
		_, err = inventory.DecodeProfile(v)
	case kindIssuer:
		_, err = inventory.DecodeIssuer(v)
	case kindDevice:
		err = c.device(k, v)
	case kindCredential:
		err = c.credential(k, v)
	case kindToken:
		err = c.token(k, v)
	case kindApproval:
		err = c.approval(k, v)
	case kindWork:
		err = c.work(k, v)
	case kindEvent:
		err = c.event(k, v)
	default:
		c.fault(recordName(k), "it is of no known kind")
	}
	if err != nil {
		c.fault(recordName(k), "%v", err)
	}
}

func (c *checker) token(k, v []byte) error {
	t, err := inventory.DecodeToken(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(k, tokenKey(t.Hash)) {
		c.fault(recordName(k), "it is kept under another name")
	}
	return t.Validate()
}

func (c *checker) approval(k, v []byte) error {
	a, err := inventory.DecodeApproval(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(k, approvalKey(a.Key)) {
		c.fault(recordName(k), "it is kept under another name")
	}
	return a.Validate()
}

// want notes a missing or different entry at key.
func (c *checker) want(record string, key, value []byte) error {
	v, ok, err := c.chain.get(key)
	if err == nil && (!ok || !bytes.Equal(v, value)) {
		c.fault(record, "its entry %s is missing or wrong", recordName(key))
	}
	return err
}

func (c *checker) device(k, v []byte) error {
	d, err := inventory.DecodeDevice(v)
	if err != nil {
		return err
	}
	if err := d.Validate(); err != nil {
		return err
	}
	if !bytes.Equal(k, deviceKey(d.ID.Canonical())) {
		c.fault(recordName(k), "it is kept under another name")
	}
	for _, key := range deviceIndex(&d) {
		if err := c.want(recordName(k), key, nil); err != nil {
			return err
		}
	}
	if d.Revision == 0 || d.Revision > c.report.Revision {
		c.fault(recordName(k), "its revision %d is none", d.Revision)
	}
	return nil
}

func (c *checker) deviceIndex(k []byte) error {
	id := k[2:]
	if k[0] != kindByState {
		id = k[bytes.IndexByte(k, 0)+1:]
	}
	d, ok, err := c.reader.device(string(id))
	if err != nil {
		return err
	}
	if ok {
		for _, key := range deviceIndex(&d) {
			if bytes.Equal(key, k) {
				return nil
			}
		}
	}
	c.fault(recordName(k), "it leads to no such device")
	return nil
}

func (c *checker) credential(k, v []byte) error {
	x, err := inventory.DecodeCredential(v)
	if err != nil {
		return err
	}
	if err := x.Validate(); err != nil {
		return err
	}
	ref := credentialRef(x.Device.Canonical(), x.Kind, x.Generation)
	if !bytes.Equal(k, credentialKey(ref)) {
		c.fault(recordName(k), "it is kept under another name")
	}
	d, ok, err := c.reader.device(x.Device.Canonical())
	switch {
	case err != nil:
		return err
	case !ok || d.ID != x.Device:
		c.fault(recordName(k), "there is no such device")
	case x.State == inventory.CredentialActive && d.State != inventory.Registered && d.State != inventory.Active:
		c.fault(recordName(k), "it is active, and its device is %s", d.State)
	}
	if x.Certificate == nil {
		return nil
	}
	cert := x.Certificate
	if err := c.want(recordName(k), serialKey(cert.Serial, cert.Issuer), ref); err != nil {
		return err
	}
	if err := c.want(recordName(k), expiryKey(cert.NotAfter, ref), nil); err != nil {
		return err
	}
	use, err := c.reader.Key(cert.SPKI)
	if err == nil && use.Device != x.Device {
		c.fault(recordName(k), "its key is not noted as the device's")
	}
	if err != nil {
		return err
	}
	if err := agrees(cert); err != nil {
		return err
	}
	return c.listed(k, &x)
}

// listed checks that a certificate is among the revocations if it is revoked,
// and not otherwise.
func (c *checker) listed(k []byte, x *inventory.Credential) error {
	key := revocationKey(x.Certificate.Issuer, x.Certificate.Serial)
	r, revoked := x.Revocation()
	if !revoked {
		_, ok, err := c.chain.get(key)
		if ok {
			c.fault(recordName(k), "it is active and among the revocations")
		}
		return err
	}
	b, err := r.AppendBinary(nil)
	if err != nil {
		return err
	}
	return c.want(recordName(k), key, b)
}

func (c *checker) credentialIndex(k, v []byte) error {
	ref := v
	if k[0] == kindByExpiry {
		ref = k[1+8:]
	}
	x, err := c.reader.credential(k, ref)
	if err != nil {
		return err
	}
	cert := x.Certificate
	if cert == nil || !bytes.Equal(k, serialKey(cert.Serial, cert.Issuer)) && !bytes.Equal(k, expiryKey(cert.NotAfter, ref)) {
		c.fault(recordName(k), "it leads to another credential")
	}
	return nil
}

// revocation checks the direction from the entry to its credential; the other is
// in listed.
func (c *checker) revocation(k, v []byte) error {
	r, err := inventory.DecodeRevocation(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(k, revocationKey(r.Issuer, r.Serial)) {
		c.fault(recordName(k), "it is kept under another name")
	}
	_, known, err := c.chain.get(serialKey(r.Serial, r.Issuer))
	if known != (r.Device != "") {
		c.fault(recordName(k), "it does not agree with the serial numbers")
	}
	return err
}

// event checks one link of the audit chain.
func (c *checker) event(k, v []byte) error {
	e, err := inventory.DecodeEvent(v)
	if err != nil {
		return err
	}
	want := e
	want.Seal(c.report.Events, c.last)
	c.report.Events++
	if e.Seq != want.Seq || e.Prev != want.Prev || e.Hash != want.Hash || !bytes.Equal(k, eventKey(e.Seq)) {
		c.fault(recordName(k), "it does not follow the event before it")
	}
	c.last = e.Hash
	return nil
}

// totals compares what was seen with what the head says must be there.
func (c *checker) totals(h head) {
	n := c.counts
	c.report.Devices, c.report.Credentials, c.report.Profiles = n.devices, n.credentials, n.profiles
	c.report.Issuers, c.report.Keys, c.report.Revocations = n.issuers, n.keys, n.revocations
	if n != h.counts {
		c.fault("head", "it counts other numbers of records: %+v, there are %+v", h.counts, n)
	}
	if c.report.Events != h.revision || c.last != h.last {
		c.fault("audit log", "it has %d events, the head says %d", c.report.Events, h.revision)
	}
}

// journal reads the whole journal, which must reach at least to where the
// database has come. A store that is open has it there or, while a change is
// being written, further.
func (c *checker) journal(h head) {
	j := &journal{file: c.store.journal.file, seal: newSealer(derive(c.store.cfg.Key, "journal"))}
	if err := j.checkHeader(c.store.cfg.Instance); err != nil {
		c.fault("journal", "%v", err)
		return
	}
	known, err := j.knows(h.journal)
	if err == nil && !known {
		err = damaged("journal", "it does not hold what the database was last written with")
	}
	if err == nil {
		_, _, err = j.read(j.end, func(journalRecord) error { return nil })
	}
	if err != nil {
		c.fault("journal", "%v", err)
	}
}

// agrees reports a certificate whose fields are not those of its DER.
func agrees(cert *inventory.Certificate) error {
	read, err := inventory.ReadCertificate(cert.DER)
	if err != nil {
		return err
	}
	if read.Serial != cert.Serial || read.SPKI != cert.SPKI || read.Issuer != cert.Issuer ||
		!read.NotBefore.Equal(cert.NotBefore) || !read.NotAfter.Equal(cert.NotAfter) {
		return damaged("certificate", "its fields are not those of its DER")
	}
	return nil
}
