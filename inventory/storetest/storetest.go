// Package storetest is the contract of [inventory.Store] as tests. Every
// implementation runs it.
//
// It uses nothing but the face of package inventory, so that it holds for a file
// as for a database server. Where the contract leaves an order open, it is not
// tested.
package storetest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// A Factory makes the stores under test. Both functions fail the test
// themselves if they cannot.
type Factory struct {
	// New returns a store that holds nothing. It is closed by a cleanup that New
	// registers, if it has not been closed before.
	New func(t *testing.T) inventory.Store

	// Reopen closes s, which New or Reopen returned, and opens what it kept.
	Reopen func(t *testing.T, s inventory.Store) inventory.Store
}

// Run tests the whole contract, one subtest for each promise.
func Run(t *testing.T, f Factory) {
	tests := []struct {
		name string
		run  func(*testing.T, Factory)
	}{
		{"Empty", testEmpty},
		{"Records", testRecords},
		{"Reopen", testReopen},
		{"ChangeIsCopied", testChangeIsCopied},
		{"Invalid", testInvalid},
		{"Refusals", testRefusals},
		{"RefusedLeavesNothing", testRefusedLeavesNothing},
		{"Twice", testTwice},
		{"AnyCase", testAnyCase},
		{"Keys", testKeys},
		{"Serials", testSerials},
		{"Issuers", testIssuers},
		{"RevokeTwice", testRevokeTwice},
		{"HoldAndResume", testHoldAndResume},
		{"NoneActive", testNoneActive},
		{"Revocations", testRevocations},
		{"Pages", testPages},
		{"StopEarly", testStopEarly},
		{"Events", testEvents},
		{"OneMoment", testOneMoment},
		{"ReadError", testReadError},
		{"Context", testContext},
		{"Closed", testClosed},
		{"SameIDManyWriters", testSameIDManyWriters},
		{"EnrolAndRevoke", testEnrolAndRevoke},
		{"ManyWriters", testManyWriters},
		{"Tokens", testTokens},
		{"TokenRace", testTokenRace},
		{"Approvals", testApprovals},
		{"Works", testWorks},
		{"Model", testModel},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, f) })
	}
}

// day is the moment from which all records here are dated.
var day = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func event(action string) inventory.Event {
	return inventory.Event{Time: day, Actor: "tester", Action: action, Objects: []inventory.Object{{Kind: "device", ID: "dev-1"}}}
}

func device(id string) inventory.Device {
	return inventory.Device{
		ID: inventory.DeviceID(id), Kind: inventory.Equipment, Profile: "sensor",
		State: inventory.Registered, Created: day, Updated: day,
	}
}

// hash gives each text its own bytes.
func hash(format string, args ...any) [32]byte {
	return sha256.Sum256(fmt.Appendf(nil, format, args...))
}

func keyID(name string) (k inventory.KeyID) {
	h := hash("issuer %s", name)
	copy(k[:], h[:])
	return k
}

// certificate returns a credential with a certificate of the issuer "a" that is
// no certificate: a store takes the fields as they are.
func certificate(id string, generation uint32, serial, key string) inventory.Credential {
	h := hash("serial %s", serial)
	c := &inventory.Certificate{
		DER: fmt.Appendf(nil, "certificate %s of %s", serial, id), SPKI: hash("key %s", key), Issuer: keyID("a"),
		NotBefore: day, NotAfter: day.AddDate(1, 0, int(h[31])),
	}
	copy(c.Serial[:], h[:])
	return inventory.Credential{
		Device: inventory.DeviceID(id), Kind: inventory.CertificateCredential, Generation: generation,
		State: inventory.CredentialActive, Certificate: c, Created: day,
	}
}

func password(id string, generation uint32) inventory.Credential {
	return inventory.Credential{
		Device: inventory.DeviceID(id), Kind: inventory.PasswordCredential, Generation: generation,
		State: inventory.CredentialActive, Created: day,
		Verifiers: []inventory.Verifier{{Scheme: inventory.PBKDF2SHA512, Iterations: 101, Salt: []byte("salt"), Hash: []byte("hash")}},
	}
}

func issuer(name string) inventory.Issuer {
	return inventory.Issuer{
		Name: name, Purpose: inventory.DevicePurpose, Generation: 1, State: inventory.IssuerActive,
		KeyID: keyID(name), SPKI: hash("key of issuer %s", name), Certificate: []byte("certificate of " + name),
		Key: "softkms:path=" + name, NotAfter: day.AddDate(10, 0, 0),
	}
}

// revoke returns c revoked or held for reason.
func revoke(c inventory.Credential, reason inventory.Reason) inventory.Credential {
	c.State, c.Reason, c.RevokedAt = inventory.CredentialRevoked, reason, day.Add(time.Hour)
	if reason == inventory.CertificateHold {
		c.State = inventory.CredentialHeld
	}
	if c.State == inventory.CredentialRevoked {
		c.Verifiers = nil
	}
	return c
}

func apply(t testing.TB, s inventory.Store, c inventory.Change) {
	t.Helper()
	if c.Event.Action == "" {
		c.Event = event("test.change")
	}
	if err := s.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

// add registers devices.
func add(t testing.TB, s inventory.Store, devices ...inventory.Device) {
	t.Helper()
	apply(t, s, inventory.Change{Event: event("device.add"), Devices: devices})
}

// refuse checks that a change is refused for want, and that no event tells of it.
func refuse(t testing.TB, s inventory.Store, c inventory.Change, want inventory.Conflict) {
	t.Helper()
	if c.Event.Action == "" {
		c.Event = event("test.refused")
	}
	before := revision(t, s)
	err := s.Apply(t.Context(), c)
	conflict, ok := errors.AsType[*inventory.ConflictError](err)
	if !ok || conflict.Why != want || !errors.Is(err, inventory.ErrConflict) {
		t.Errorf("got %v, want conflict %d", err, want)
	}
	if after := revision(t, s); after != before {
		t.Errorf("the refused change moved the revision from %d to %d", before, after)
	}
}

// read calls fn and fails the test with its error.
func read(t testing.TB, s inventory.Store, fn func(inventory.Reader) error) {
	t.Helper()
	if err := s.Read(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func revision(t testing.TB, s inventory.Store) (n uint64) {
	t.Helper()
	read(t, s, func(r inventory.Reader) error { n = r.Revision(); return nil })
	return n
}

func mustDevice(t testing.TB, s inventory.Store, id string) (d inventory.Device) {
	t.Helper()
	read(t, s, func(r inventory.Reader) (err error) {
		d, err = r.Device(inventory.DeviceID(id))
		return err
	})
	return d
}

func credentials(t testing.TB, s inventory.Store, q inventory.CredentialQuery) (all []inventory.Credential) {
	t.Helper()
	read(t, s, func(r inventory.Reader) (err error) {
		all, err = collect(r.Credentials(q))
		return err
	})
	return all
}

func collect[T any](seq iter.Seq2[T, error]) ([]T, error) {
	var all []T
	for x, err := range seq {
		if err != nil {
			return all, err
		}
		all = append(all, x)
	}
	return all, nil
}
