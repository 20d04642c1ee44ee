package boltstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// ErrRecover reports that a store cannot be opened for reading because its
// journal is ahead of its database, after a crash or a restore. Opening it for
// writing once puts that right.
var ErrRecover = errors.New("inventory must be opened for writing once")

// openJournal opens the journal and applies what the database does not have.
//
// The database knows how far it has come. A journal that never held that place
// is not its journal, or has lost its end.
func (s *Store) openJournal(ctx context.Context, h head) error {
	flag := os.O_RDWR
	if s.cfg.ReadOnly {
		flag = os.O_RDONLY
	}
	j, err := openJournal(s.cfg.Dir, derive(s.cfg.Key, "journal"), s.cfg.Instance, flag)
	if err != nil {
		return err
	}
	s.journal = j
	from := h.journal
	if known, err := j.knows(from); err != nil {
		return err
	} else if !known && s.cfg.merge {
		from = j.end
	} else if !known {
		return damaged("journal", "it does not hold what the database was last written with")
	}
	r := newReplay()
	end, size, err := j.read(from, r.add)
	if err != nil {
		return err
	}
	if s.cfg.ReadOnly {
		if end != h.journal {
			return ErrRecover
		}
		return nil
	}
	if end.offset < size {
		if err := j.cut(end); err != nil {
			return err
		}
	}
	j.end = end
	ahead := end != h.journal
	if !ahead && !s.cfg.merge {
		return nil
	}
	if err := s.replay(ctx, r, ahead, s.cfg.merge || !r.crashed(h.revision)); err != nil {
		return fmt.Errorf("replaying journal: %w", err)
	}
	return nil
}

// replay applies what r has come to in one change. If the database was put back, by
// a restore or by hand, the change ends all tokens, too; the journal need not be
// ahead of it then.
func (s *Store) replay(ctx context.Context, r *replay, ahead, putBack bool) error {
	var c inventory.Change
	err := s.Read(ctx, func(in inventory.Reader) (err error) {
		if c, err = r.change(in, inventory.UTC(time.Now())); err == nil && putBack {
			err = endTokens(in, &c)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case !ahead && len(c.Tokens) == 0:
		return nil
	case !ahead:
		c.Event.Action, c.Event.Reason = "inventory.restore", "a backup does not know which tokens were used or revoked since"
	case len(c.Tokens) > 0:
		c.Event.Reason += "; tokens are revoked because it is not known which were used since"
	}
	return s.apply(ctx, change{Change: c, replayed: true})
}

// endTokens revokes all tokens but those that are used up, as they will be for ever.
// Which of the others have been used or revoked since, an older database does not
// know, and a token that could be used once more would be a device that nobody let
// in. One that has expired is no exception: the clock may go back.
func endTokens(in inventory.Reader, c *inventory.Change) error {
	for t, err := range in.Tokens("") {
		if err != nil {
			return err
		}
		if !t.RevokedAt.IsZero() || t.Spent() {
			continue
		}
		t.RevokedAt = c.Event.Time
		c.Tokens = append(c.Tokens, t)
		c.Event.Objects = append(c.Event.Objects, inventory.Object{Kind: "token", ID: string(t.ID()), Note: "revoked"})
	}
	return nil
}

// A replay is what journal records come to: for each certificate, password,
// device and issuer the last word.
type replay struct {
	certificates map[[36]byte]*journalRecord // by the key of a revocation
	passwords    map[string]*journalRecord   // by credentialRef
	devices      map[string]*journalRecord   // by canonical ID
	numbers      map[inventory.KeyID]*journalRecord
	keys         []inventory.SPKI
	commits      []uint64 // the revisions on which they were made
	first        byte     // the kind of the first record
}

func newReplay() *replay {
	return &replay{
		certificates: map[[36]byte]*journalRecord{}, passwords: map[string]*journalRecord{},
		devices: map[string]*journalRecord{}, numbers: map[inventory.KeyID]*journalRecord{},
	}
}

// crashed reports whether the records are those of the one commit that a crash kept
// from a database of this revision. A database that was put back lacks more: or has
// the same revision only as that commit, and then nothing but the commit is lost.
func (r *replay) crashed(revision uint64) bool {
	return r.first == journalCommit && len(r.commits) == 1 && r.commits[0] == revision
}

func (r *replay) add(j journalRecord) error {
	if r.first == 0 {
		r.first = j.kind
	}
	switch j.kind {
	case journalCommit:
		r.commits = append(r.commits, j.revision)
	case journalRevoked, journalResumed:
		r.certificates[[36]byte(revocationKey(j.revocation.Issuer, j.revocation.Serial)[1:])] = &j
	case journalPassword:
		r.passwords[string(credentialRef(j.password.Device.Canonical(), j.password.Kind, j.password.Generation))] = &j
	case journalDevice:
		r.devices[j.device.ID.Canonical()] = &j
	case journalBlockedKey:
		r.keys = append(r.keys, j.key)
	case journalCRL:
		if have := r.numbers[j.issuer]; have == nil || have.number < j.number {
			r.numbers[j.issuer] = &j
		}
	}
	return nil
}

// change returns what in lacks. What was given back (a hold undone) is not
// replayed: whether it should be given again is for people to decide.
func (r *replay) change(in inventory.Reader, now time.Time) (inventory.Change, error) {
	c := inventory.Change{Event: inventory.Event{
		Time: now, Actor: "imprint", Action: "journal.replay",
		Reason: "the journal was ahead of the database, after a crash or a restore",
	}, BlockedKeys: r.keys}
	steps := []func(inventory.Reader, *inventory.Change) error{r.revoked, r.locked, r.stopped, r.numbered}
	for _, step := range steps {
		if err := step(in, &c); err != nil {
			return c, err
		}
	}
	for i := range c.Devices {
		c.Event.Objects = append(c.Event.Objects, inventory.Object{Kind: "device", ID: string(c.Devices[i].ID), Note: c.Devices[i].State.String()})
	}
	for i := range c.Credentials {
		x := &c.Credentials[i]
		c.Event.Objects = append(c.Event.Objects, inventory.Object{Kind: x.Kind.String(), ID: fmt.Sprintf("%s %d", x.Device, x.Generation), Note: x.State.String()})
	}
	for i := range c.Issuers {
		c.Event.Objects = append(c.Event.Objects, inventory.Object{Kind: "issuer", ID: c.Issuers[i].Name, Note: fmt.Sprintf("CRL number %d", c.Issuers[i].CRLNumber)})
	}
	return c, nil
}

// revoked revokes certificates, or notes them as foreign if they were issued
// after the backup and are known from nowhere else.
func (r *replay) revoked(in inventory.Reader, c *inventory.Change) error {
	for _, j := range r.certificates {
		if j.kind == journalResumed {
			continue
		}
		v := j.revocation
		known := false
		for x, err := range in.Credentials(inventory.CredentialQuery{Serial: v.Serial}) {
			if err != nil {
				return err
			}
			if x.Certificate.Issuer != v.Issuer {
				continue
			}
			known = true
			if end(&x, v.Reason, v.Time) {
				c.Credentials = append(c.Credentials, x)
			}
		}
		if !known {
			v.Device = ""
			c.Revocations = append(c.Revocations, v)
		}
	}
	return nil
}

// end revokes or holds x, unless that would change nothing for the worse.
func end(x *inventory.Credential, why inventory.Reason, when time.Time) bool {
	state := inventory.CredentialRevoked
	if why == inventory.CertificateHold {
		state = inventory.CredentialHeld
	}
	switch {
	case x.State == inventory.CredentialRevoked && (x.Reason == why || why != inventory.KeyCompromise):
		return false
	case x.State == inventory.CredentialRevoked:
		x.Reason = why
		return true
	case x.State == state && x.Reason == why:
		return false
	}
	x.State, x.Reason, x.RevokedAt = state, why, when
	if state == inventory.CredentialRevoked {
		x.Verifiers = nil
	}
	return true
}

// locked revokes passwords. A password made after the backup is gone with its
// verifier; one with its number that was made at another time is another one.
func (r *replay) locked(in inventory.Reader, c *inventory.Change) error {
	for _, j := range r.passwords {
		if j.password.State == inventory.CredentialActive {
			continue
		}
		for x, err := range in.Credentials(inventory.CredentialQuery{Device: j.password.Device, Kind: inventory.PasswordCredential}) {
			if err != nil {
				return err
			}
			why := j.password.Reason
			if j.password.State == inventory.CredentialHeld {
				why = inventory.CertificateHold
			}
			if x.Generation == j.password.Generation && x.Created.Equal(j.password.Created) && end(&x, why, j.password.RevokedAt) {
				c.Credentials = append(c.Credentials, x)
			}
		}
	}
	return nil
}

// stopped takes devices out of service, with whatever they still have.
func (r *replay) stopped(in inventory.Reader, c *inventory.Change) error {
	for id, j := range r.devices {
		if j.device.State == inventory.Registered || j.device.State == inventory.Active {
			continue
		}
		d, err := in.Device(j.device.ID)
		if errors.Is(err, inventory.ErrNotFound) {
			continue // registered after the backup: it has nothing that works
		}
		if err != nil {
			return err
		}
		have := d
		d.State, d.Updated = j.device.State, j.device.Updated
		if have.State == d.State || inventory.CheckDevice(&have, &d) != nil {
			continue
		}
		c.Devices = append(c.Devices, d)
		why := inventory.CessationOfOperation
		if d.State == inventory.Suspended {
			why = inventory.CertificateHold
		}
		for x, err := range in.Credentials(inventory.CredentialQuery{Device: inventory.DeviceID(id), State: inventory.CredentialActive}) {
			if err != nil {
				return err
			}
			if !has(c, &x) && end(&x, why, d.Updated) {
				c.Credentials = append(c.Credentials, x)
			}
		}
	}
	return nil
}

// has reports whether c has a credential already.
func has(c *inventory.Change, x *inventory.Credential) bool {
	for i := range c.Credentials {
		if y := &c.Credentials[i]; y.Device == x.Device && y.Kind == x.Kind && y.Generation == x.Generation {
			return true
		}
	}
	return false
}

// numbered raises CRL numbers.
func (r *replay) numbered(in inventory.Reader, c *inventory.Change) error {
	for i, err := range in.Issuers() {
		if err != nil {
			return err
		}
		j := r.numbers[i.KeyID]
		if j == nil || j.number <= i.CRLNumber {
			continue
		}
		i.CRLNumber = j.number
		if j.time.After(i.CRLThisUpdate) {
			i.CRLThisUpdate = j.time
		}
		c.Issuers = append(c.Issuers, i)
	}
	return nil
}
