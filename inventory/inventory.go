// Package inventory holds the facts about a fleet: its devices, their
// credentials, the profiles they follow and the issuers that vouch for them.
//
// Everything else is a view of these facts. A CRL, an access control list, a
// password file: none of them keeps anything that is not here.
//
// Facts change in one way only, by a [Change] given to [Store.Apply]. A change
// carries the audit event that explains it, so there is no state without an
// entry in the log, and it is applied whole or not at all, so a certificate and
// the record of it cannot come apart.
//
// The package does no I/O. Packages boltstore and, for several servers, pgstore
// keep what it describes; package storetest says what they must do.
package inventory

import (
	"context"
	"iter"
)

// A Store keeps a fleet. All methods are safe for concurrent use.
//
// Every implementation passes storetest.Run, which is the full contract.
type Store interface {
	// Apply makes all of c durable, or none of it. When Apply returns nil the
	// change survives a power cut, and every later Read sees it.
	//
	// A record with a revision must carry the one it was read at; a record
	// without one must be new. A device that comes back from a final state, a
	// serial number used before, a key of another device, a CRL number that does
	// not grow: each is refused with a [*ConflictError], and nothing changes.
	//
	// Apply sets the sequence, digest and hashes of c's event, and the revisions
	// of the records, as they are stored; c itself is not changed.
	Apply(ctx context.Context, c Change) error

	// Read calls fn with the fleet as it is at one moment: no change is seen in
	// part, however long fn takes. The reader and what it yields are valid until
	// fn returns, except that records may be kept. Read returns what fn returns.
	//
	// A store may keep old data on disk for as long as fn runs, so fn does no
	// network I/O.
	Read(ctx context.Context, fn func(Reader) error) error

	// Close waits for calls under way and releases the store.
	Close() error
}

// A Reader is the fleet at one moment. Sequences stop after the first error.
type Reader interface {
	// Revision counts the changes so far: the sequence number of the last event.
	Revision() uint64

	// Device returns one device, in any case of its ID, or [ErrNotFound].
	Device(id DeviceID) (Device, error)
	Devices(q Query) iter.Seq2[Device, error]

	Credentials(q CredentialQuery) iter.Seq2[Credential, error]

	// Key returns what is known of a public key. An unknown key is no error.
	Key(k SPKI) (KeyUse, error)

	// Revocations yields the certificates of one issuer that are revoked or
	// held, whether their devices are known or not, in the order of serials.
	Revocations(issuer KeyID) iter.Seq2[Revocation, error]

	// Profiles and Issuers yield all there are, by name.
	Profiles() iter.Seq2[Profile, error]
	Issuers() iter.Seq2[Issuer, error]

	// Token returns one token by its hash, or [ErrNotFound].
	Token(hash Hash) (Token, error)

	// Tokens yields the tokens with an ID, or all of them if it is "", in the
	// order of their IDs. Two tokens with one ID are possible, and unlikely.
	Tokens(id TokenID) iter.Seq2[Token, error]

	// Approval returns the approval of a key, or [ErrNotFound]; Approvals yields
	// all there are, by key.
	Approval(k SPKI) (Approval, error)
	Approvals() iter.Seq2[Approval, error]

	// Work returns one work, or [ErrNotFound]; Works yields those of one kind, or
	// all of them if it is "", by kind and name.
	Work(kind, name string) (Work, error)
	Works(kind string) iter.Seq2[Work, error]

	// Events yields the audit log from the event with the number from on; 0 and
	// 1 mean from the first.
	Events(from uint64) iter.Seq2[Event, error]
}

// A Change is one thing that happens to a fleet, with everything it touches. It
// is applied whole or not at all.
type Change struct {
	Event       Event // Time, Actor, Action, Objects and Reason; the store sets the rest
	Devices     []Device
	Credentials []Credential
	Profiles    []Profile
	Issuers     []Issuer
	BlockedKeys []SPKI       // may never be certified again
	Revocations []Revocation // of certificates that are not in this inventory, as after a restore
	Tokens      []Token      // made or revoked
	TokenUses   []TokenUse   // each token once
	Approvals   []Approval
	Works       []Work
}
