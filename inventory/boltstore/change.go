package boltstore

import (
	"slices"

	"github.com/imprint-iot/imprint/inventory"
)

// A change is an inventory.Change on its way into a plan. The slices are its
// own: their revisions are set here.
type change struct {
	inventory.Change

	// replayed marks what the journal has already.
	replayed bool
}

// add plans c, or refuses it and leaves the plan as it was. The error is a
// conflict, or a damaged record.
func (p *plan) add(c change) error {
	h := p.head
	h.revision++
	t := &turn{plan: p, change: c, head: h, digest: inventory.NewDigest()}
	if err := t.run(); err != nil {
		p.refuse()
		return err
	}
	p.accept(t.head, t.journal)
	return nil
}

// A turn is one change being planned.
type turn struct {
	*plan
	change  change
	head    head
	digest  *inventory.Digest
	journal []journalRecord
}

func (t *turn) run() error {
	c := &t.change
	if err := once(&c.Change); err != nil {
		return err
	}
	c.Devices = slices.Clone(c.Devices)
	for i := range c.Devices {
		if err := t.device(&c.Devices[i]); err != nil {
			return err
		}
	}
	c.Credentials = slices.Clone(c.Credentials)
	for i := range c.Credentials {
		if err := t.credential(&c.Credentials[i]); err != nil {
			return err
		}
	}
	for i := range c.Devices {
		if err := t.noneActive(&c.Devices[i]); err != nil {
			return err
		}
	}
	c.Profiles = slices.Clone(c.Profiles)
	for i := range c.Profiles {
		if err := t.profile(&c.Profiles[i]); err != nil {
			return err
		}
	}
	c.Issuers = slices.Clone(c.Issuers)
	for i := range c.Issuers {
		if err := t.issuer(&c.Issuers[i]); err != nil {
			return err
		}
	}
	for _, k := range c.BlockedKeys {
		if err := t.block(k); err != nil {
			return err
		}
	}
	for i := range c.Revocations {
		if err := t.foreign(&c.Revocations[i]); err != nil {
			return err
		}
	}
	if err := t.tokens(); err != nil {
		return err
	}
	if err := t.works(); err != nil {
		return err
	}
	return t.event(c.Event)
}

// once refuses a change that names a record twice: which of the two would count?
func once(c *inventory.Change) error {
	seen := make(map[string]bool, len(c.Devices)+len(c.Credentials))
	twice := func(key []byte) error {
		if seen[string(key)] {
			return &inventory.InvalidError{Field: "change", Value: recordName(key), Want: "each record once"}
		}
		seen[string(key)] = true
		return nil
	}
	for i := range c.Devices {
		if err := twice(deviceKey(c.Devices[i].ID.Canonical())); err != nil {
			return err
		}
	}
	for i := range c.Credentials {
		x := &c.Credentials[i]
		if err := twice(credentialKey(credentialRef(x.Device.Canonical(), x.Kind, x.Generation))); err != nil {
			return err
		}
	}
	for i := range c.Profiles {
		if err := twice(profileKey(c.Profiles[i].Name)); err != nil {
			return err
		}
	}
	for i := range c.Issuers {
		if err := twice(issuerKey(c.Issuers[i].Name)); err != nil {
			return err
		}
	}
	for i := range c.Tokens {
		if err := twice(tokenKey(c.Tokens[i].Hash)); err != nil {
			return err
		}
	}
	for _, u := range c.TokenUses {
		if err := twice(tokenKey(u.Token)); err != nil {
			return err
		}
	}
	for i := range c.Approvals {
		if err := twice(approvalKey(c.Approvals[i].Key)); err != nil {
			return err
		}
	}
	for i := range c.Works {
		if err := twice(workKey(c.Works[i].Kind, c.Works[i].Name)); err != nil {
			return err
		}
	}
	return nil
}

// encoder is what all records can do.
type encoder interface {
	AppendBinary(b []byte) ([]byte, error)
}

// store plans a record and adds it to the digest of the change.
func (t *turn) store(key []byte, r encoder) error {
	b, err := r.AppendBinary(nil)
	if err != nil {
		return err
	}
	t.digest.Add(b)
	return t.put(key, b)
}

func (t *turn) device(d *inventory.Device) error {
	record := "device " + string(d.ID)
	key := deviceKey(d.ID.Canonical())
	b, ok, err := t.get(key)
	if err != nil {
		return err
	}
	switch {
	case !ok && d.Revision != 0:
		return conflict(inventory.Stale, record, "")
	case ok && d.Revision == 0:
		return conflict(inventory.Exists, record, "")
	case ok:
		have, err := inventory.DecodeDevice(b)
		if err != nil {
			return err
		}
		if err := inventory.CheckDevice(&have, d); err != nil {
			return err
		}
		if have.State != d.State && (have.State != inventory.Registered || d.State != inventory.Active) {
			t.note(journalRecord{kind: journalDevice, device: *d})
		}
		if err := t.reindex(deviceIndex(&have), deviceIndex(d)); err != nil {
			return err
		}
	default:
		if err := t.reindex(nil, deviceIndex(d)); err != nil {
			return err
		}
	}
	d.Revision = t.head.revision
	return t.store(key, d)
}

// reindex plans the difference between two sets of index entries.
func (t *turn) reindex(have, want [][]byte) error {
	in := func(set [][]byte, key []byte) bool {
		return slices.ContainsFunc(set, func(k []byte) bool { return string(k) == string(key) })
	}
	for _, k := range have {
		if !in(want, k) {
			if err := t.delete(k); err != nil {
				return err
			}
		}
	}
	for _, k := range want {
		if !in(have, k) {
			if err := t.put(k, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *turn) credential(c *inventory.Credential) error {
	record := c.Kind.String() + " credential of device " + string(c.Device)
	dev, ok, err := t.deviceByID(c.Device)
	switch {
	case err != nil:
		return err
	case !ok:
		return conflict(inventory.BadTransition, record, "there is no such device")
	case dev.ID != c.Device:
		return conflict(inventory.BadTransition, record, "the device is called "+string(dev.ID))
	case c.State == inventory.CredentialActive && dev.State != inventory.Registered && dev.State != inventory.Active:
		return conflict(inventory.BadTransition, record, "the device is "+dev.State.String())
	}
	ref := credentialRef(c.Device.Canonical(), c.Kind, c.Generation)
	b, ok, err := t.get(credentialKey(ref))
	if err != nil {
		return err
	}
	var have *inventory.Credential
	switch {
	case !ok && c.Revision != 0:
		return conflict(inventory.Stale, record, "")
	case ok && c.Revision == 0:
		return conflict(inventory.Exists, record, "this generation")
	case ok:
		h, err := inventory.DecodeCredential(b)
		if err != nil {
			return err
		}
		if err := checkCredential(record, &h, c); err != nil {
			return err
		}
		have = &h
	}
	if have == nil && c.Certificate != nil {
		if err := t.certificate(record, c, ref); err != nil {
			return err
		}
	}
	if err := t.revocation(have, c); err != nil {
		return err
	}
	c.Revision = t.head.revision
	return t.store(credentialKey(ref), c)
}

// checkCredential is inventory.CheckCredential, and holds the fields read from a
// certificate to what was read.
func checkCredential(record string, have, next *inventory.Credential) error {
	if err := inventory.CheckCredential(have, next); err != nil {
		return err
	}
	if a, b := have.Certificate, next.Certificate; a != nil &&
		(a.Serial != b.Serial || a.SPKI != b.SPKI || a.Issuer != b.Issuer || !a.NotBefore.Equal(b.NotBefore) || !a.NotAfter.Equal(b.NotAfter)) {
		return conflict(inventory.BadTransition, record, "a certificate is for ever")
	}
	return nil
}

func (t *turn) deviceByID(id inventory.DeviceID) (inventory.Device, bool, error) {
	b, ok, err := t.get(deviceKey(id.Canonical()))
	if err != nil || !ok {
		return inventory.Device{}, false, err
	}
	d, err := inventory.DecodeDevice(b)
	return d, err == nil, err
}

// certificate plans what a new certificate adds to the indexes, if its serial
// number is new and its key is free.
func (t *turn) certificate(record string, c *inventory.Credential, ref []byte) error {
	cert := c.Certificate
	for _, key := range [][]byte{serialKey(cert.Serial, cert.Issuer), revocationKey(cert.Issuer, cert.Serial)} {
		if _, used, err := t.get(key); err != nil {
			return err
		} else if used {
			return conflict(inventory.SerialTaken, "serial number "+cert.Serial.String(), "")
		}
	}
	use, err := t.keyUse(cert.SPKI)
	switch {
	case err != nil:
		return err
	case use.Blocked:
		return conflict(inventory.KeyBlocked, record, "")
	case use.Device != "" && use.Device != c.Device:
		return conflict(inventory.KeyTaken, record, "")
	case use.Device == "":
		if err := t.putKey(cert.SPKI, inventory.KeyUse{Device: c.Device}); err != nil {
			return err
		}
	}
	if err := t.put(serialKey(cert.Serial, cert.Issuer), ref); err != nil {
		return err
	}
	return t.put(expiryKey(cert.NotAfter, ref), nil)
}

func (t *turn) keyUse(k inventory.SPKI) (inventory.KeyUse, error) {
	b, ok, err := t.get(spkiKey(k))
	if err != nil || !ok {
		return inventory.KeyUse{}, err
	}
	return inventory.DecodeKeyUse(b)
}

func (t *turn) putKey(k inventory.SPKI, use inventory.KeyUse) error {
	b, err := use.AppendBinary(nil)
	if err != nil {
		return err
	}
	return t.put(spkiKey(k), b)
}

// revocation plans the CRL entry of a certificate and, if the state of the
// credential is new, a record in the journal.
func (t *turn) revocation(have, next *inventory.Credential) error {
	if c := *next; c.Kind == inventory.PasswordCredential {
		if have == nil && c.State == inventory.CredentialActive || have != nil && have.State == c.State {
			return nil
		}
		c.Verifiers = nil
		t.note(journalRecord{kind: journalPassword, password: c})
		return nil
	}
	want, is := next.Revocation()
	var was bool
	var old inventory.Revocation
	if have != nil {
		old, was = have.Revocation()
	}
	switch {
	case is && (!was || old != want):
		t.note(journalRecord{kind: journalRevoked, revocation: want})
		return t.putRevocation(&want)
	case was && !is:
		t.note(journalRecord{kind: journalResumed, revocation: old})
		return t.delete(revocationKey(old.Issuer, old.Serial))
	}
	return nil
}

func (t *turn) putRevocation(r *inventory.Revocation) error {
	b, err := r.AppendBinary(nil)
	if err != nil {
		return err
	}
	return t.put(revocationKey(r.Issuer, r.Serial), b)
}

func (t *turn) note(r journalRecord) {
	if !t.change.replayed {
		r.revision = t.head.revision
		t.journal = append(t.journal, r)
	}
}

// noneActive refuses a device that may not have an active credential and still
// has one: whoever decided did not know of it, or forgot it.
func (t *turn) noneActive(d *inventory.Device) error {
	if d.State == inventory.Registered || d.State == inventory.Active {
		return nil
	}
	return t.credentials(d.ID.Canonical(), func(_, b []byte) error {
		c, err := inventory.DecodeCredential(b)
		if err == nil && c.State == inventory.CredentialActive {
			err = conflict(inventory.Stale, "device "+string(d.ID), "it has another active credential")
		}
		return err
	})
}

func (t *turn) profile(p *inventory.Profile) error {
	record, key := "profile "+p.Name, profileKey(p.Name)
	b, ok, err := t.get(key)
	if err != nil {
		return err
	}
	var have inventory.Profile
	if ok {
		if have, err = inventory.DecodeProfile(b); err != nil {
			return err
		}
	}
	if err := checkRevision(record, ok, have.Revision, p.Revision); err != nil {
		return err
	}
	p.Revision = t.head.revision
	return t.store(key, p)
}

func checkRevision(record string, exists bool, have, next uint64) error {
	switch {
	case exists && next == 0:
		return conflict(inventory.Exists, record, "")
	case have != next:
		return conflict(inventory.Stale, record, "")
	}
	return nil
}

func (t *turn) issuer(i *inventory.Issuer) error {
	record, key := "issuer "+i.Name, issuerKey(i.Name)
	b, ok, err := t.get(key)
	if err != nil {
		return err
	}
	var have inventory.Issuer
	if ok {
		if have, err = inventory.DecodeIssuer(b); err != nil {
			return err
		}
	}
	if err := checkRevision(record, ok, have.Revision, i.Revision); err != nil {
		return err
	}
	if ok {
		if err := inventory.CheckIssuer(&have, i); err != nil {
			return err
		}
	}
	if i.CRLNumber > have.CRLNumber {
		t.note(journalRecord{kind: journalCRL, issuer: i.KeyID, number: i.CRLNumber, time: i.CRLThisUpdate})
	}
	i.Revision = t.head.revision
	return t.store(key, i)
}

func (t *turn) block(k inventory.SPKI) error {
	use, err := t.keyUse(k)
	if err != nil {
		return err
	}
	t.digest.AddBlocked(k)
	if use.Blocked {
		return nil
	}
	use.Blocked = true
	t.note(journalRecord{kind: journalBlockedKey, key: k})
	return t.putKey(k, use)
}

// foreign plans the CRL entry of a certificate that is not in this inventory. An
// entry that is there stays: the first date of a revocation counts.
func (t *turn) foreign(r *inventory.Revocation) error {
	b, err := r.AppendBinary(nil)
	if err != nil {
		return err
	}
	t.digest.Add(b)
	record := "serial number " + r.Serial.String()
	if _, known, err := t.get(serialKey(r.Serial, r.Issuer)); err != nil {
		return err
	} else if known {
		return conflict(inventory.SerialTaken, record, "it is in this inventory: revoke the credential")
	}
	have, ok, err := t.get(revocationKey(r.Issuer, r.Serial))
	if err != nil {
		return err
	}
	if ok {
		old, err := inventory.DecodeRevocation(have)
		if err != nil {
			return err
		}
		if r.Reason != inventory.KeyCompromise || old.Reason == r.Reason {
			return nil
		}
		old.Reason = r.Reason
		t.note(journalRecord{kind: journalRevoked, revocation: old})
		return t.putRevocation(&old)
	}
	t.note(journalRecord{kind: journalRevoked, revocation: *r})
	return t.put(revocationKey(r.Issuer, r.Serial), b)
}

// event seals and plans the audit event.
func (t *turn) event(e inventory.Event) error {
	e.Digest = t.digest.Sum()
	e.Seal(t.head.revision-1, t.head.last)
	t.head.last = e.Hash
	b, err := e.AppendBinary(nil)
	if err != nil {
		return err
	}
	return t.put(eventKey(e.Seq), b)
}
