package enroll_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
)

// model is what the registrar has to keep true of one device.
type model struct {
	state   inventory.DeviceState
	active  []byte            // the certificate in force, or nil
	held    bool              // it is held
	revoked map[string]string // certificates that are revoked for good: reason
}

// TestLifeModel drives devices through random lives and compares the inventory and
// the CRL with a model after each step: what is revoked stays revoked (I2, I12),
// one certificate is active at most (I5), each change has one audit entry (I9),
// CRL numbers grow (I4).
func TestLifeModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := newBench(t, "dev-0", "dev-1")
		models := map[string]*model{}
		for _, id := range []string{"dev-0", "dev-1"} {
			models[id] = &model{state: inventory.Registered, revoked: map[string]string{}}
		}
		var crl []byte
		number := uint64(0)
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			id := rapid.SampledFrom([]string{"dev-0", "dev-1"}).Draw(rt, "device")
			verb := rapid.SampledFrom([]string{"enroll", "rekey", "revoke", "compromise", "suspend", "resume", "retire"}).Draw(rt, "verb")
			b.now = b.now.Add(time.Hour)
			before := b.revision()
			err := models[id].step(b, id, verb)
			if err != nil {
				rt.Fatalf("%s %s: %v", verb, id, err)
			}
			if n := b.revision() - before; n > 1 {
				rt.Fatalf("%s %s: %d changes, want at most one", verb, id, n)
			}
			got, err := b.PublishCRL(t.Context(), "test", "device-1", crl, false)
			if err != nil {
				rt.Fatal(err)
			}
			if got.Number < number || got.Number == number && !bytes.Equal(got.DER, crl) {
				rt.Fatalf("CRL number %d after %d", got.Number, number)
			}
			crl, number = got.DER, got.Number
			compare(rt, b, models, crl)
		}
		err := b.store.Read(t.Context(), func(in inventory.Reader) error {
			n, _, err := inventory.VerifyChain(in.Events(1))
			if err == nil && n != in.Revision() {
				err = fmt.Errorf("%d entries for %d changes", n, in.Revision())
			}
			return err
		})
		if err != nil {
			rt.Fatal(err)
		}
	})
}

// step does one thing and says what should come of it; the error is a surprise.
func (m *model) step(b *bench, id, verb string) error {
	device := inventory.DeviceID(id)
	ctx := b.t.Context()
	final := m.state == inventory.Revoked || m.state == inventory.Retired
	var err error
	allowed := true
	switch verb {
	case "enroll", "rekey":
		var e *enroll.Enrollment
		e, err = b.Enroll(ctx, enroll.Request{Actor: "test", Device: device, Rekey: verb == "rekey"})
		allowed = (m.state == inventory.Registered || m.state == inventory.Active) && (verb == "rekey" || m.active == nil)
		if allowed && err == nil {
			m.end("superseded")
			m.state, m.active = inventory.Active, e.Certificate.DER
		}
	case "revoke", "compromise":
		reason := inventory.PrivilegeWithdrawn
		if verb == "compromise" {
			reason = inventory.KeyCompromise
		}
		_, err = b.Revoke(ctx, "test", "", reason, device)
		allowed = m.state != inventory.Retired
		if allowed {
			m.end(reason.String())
			if verb == "compromise" {
				for cert := range m.revoked {
					m.revoked[cert] = reason.String()
				}
			}
			m.state = inventory.Revoked
		}
	case "retire":
		_, err = b.Retire(ctx, "test", "", device)
		allowed = m.state != inventory.Revoked
		if allowed {
			m.end("cessationOfOperation")
			m.state = inventory.Retired
		}
	case "suspend":
		_, err = b.Suspend(ctx, "test", "", device)
		allowed = !final
		if allowed {
			m.state, m.held = inventory.Suspended, true
		}
	case "resume":
		_, err = b.Resume(ctx, "test", "", device)
		allowed = !final
		if allowed && m.state == inventory.Suspended {
			m.state, m.held = inventory.Registered, false
			if m.active != nil || len(m.revoked) > 0 {
				m.state = inventory.Active
			}
		}
	}
	if allowed != (err == nil) || err != nil && !errors.Is(err, enroll.ErrDenied) {
		return fmt.Errorf("in state %s, where it is allowed: %v: %w", m.state, allowed, errors.Join(err))
	}
	return nil
}

func (m *model) end(reason string) {
	if m.active != nil {
		m.revoked[string(m.active)] = reason
	}
	m.active, m.held = nil, false
}

// compare looks at the inventory and at the CRL as whoever verifies would.
func compare(rt *rapid.T, b *bench, models map[string]*model, crl []byte) {
	list, err := x509.ParseRevocationList(crl)
	if err != nil {
		rt.Fatal(err)
	}
	listed := map[inventory.Serial]inventory.Reason{}
	for _, e := range list.RevokedCertificateEntries {
		var s inventory.Serial
		e.SerialNumber.FillBytes(s[:])
		listed[s] = inventory.Reason(e.ReasonCode)
	}
	want := 0
	for id, m := range models {
		d, creds := b.facts(id)
		if d.State != m.state {
			rt.Fatalf("%s is %s, want %s", id, d.State, m.state)
		}
		for _, c := range creds {
			if c.Kind != inventory.CertificateCredential {
				if c.State == inventory.CredentialRevoked && len(c.Verifiers) > 0 {
					rt.Fatalf("%s: a revoked password has verifiers", id)
				}
				continue
			}
			state := inventory.CredentialRevoked
			if bytes.Equal(c.Certificate.DER, m.active) {
				state = inventory.CredentialActive
				if m.held {
					state = inventory.CredentialHeld
				}
			} else if m.revoked[string(c.Certificate.DER)] != c.Reason.String() {
				rt.Fatalf("%s: revoked for %s, want %s", id, c.Reason, m.revoked[string(c.Certificate.DER)])
			}
			if c.State != state {
				rt.Fatalf("%s: a certificate is %s, want %s", id, c.State, state)
			}
			reason, onList := listed[c.Certificate.Serial]
			if onList != (state != inventory.CredentialActive) || onList && reason != c.Reason {
				rt.Fatalf("%s: a %s certificate is on the CRL: %v, for %s", id, state, onList, reason)
			}
			if onList {
				want++
			}
		}
	}
	if len(listed) != want {
		rt.Fatalf("%d entries on the CRL, want %d", len(listed), want)
	}
}

// TestRevokeKeepsDate is rev-005: the date of the first revocation stays, the
// reason may only become keyCompromise.
func TestRevokeKeepsDate(t *testing.T) {
	b := newBench(t, "dev-1")
	b.enroll("dev-1")
	first := b.now
	for _, step := range []struct {
		reason  inventory.Reason
		want    inventory.Reason
		changed int
	}{
		{inventory.CessationOfOperation, inventory.CessationOfOperation, 1},
		{inventory.Superseded, inventory.CessationOfOperation, 0},
		{inventory.KeyCompromise, inventory.KeyCompromise, 1},
		{inventory.Unspecified, inventory.KeyCompromise, 0},
	} {
		n, err := b.Revoke(t.Context(), "test", "", step.reason, "dev-1", "DEV-1")
		if err != nil || n != step.changed {
			t.Errorf("revoking for %s: %d changed, %v; want %d", step.reason, n, err, step.changed)
		}
		_, creds := b.facts("dev-1")
		if c := creds[0]; c.Reason != step.want || !c.RevokedAt.Equal(first) {
			t.Errorf("after %s: %s since %s, want %s since %s", step.reason, c.Reason, c.RevokedAt, step.want, first)
		}
		b.now = b.now.Add(time.Hour)
	}
}

func TestPublishCRL(t *testing.T) {
	b := newBench(t, "dev-1", "dev-2")
	e := b.enroll("dev-1")
	publish := func(have []byte, force bool) enroll.CRL {
		t.Helper()
		c, err := b.PublishCRL(t.Context(), "test", "device-1", have, force)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := publish(nil, false)
	if first.Number != 1 || first.Entries != 0 || first.NextUpdate.Sub(first.ThisUpdate) != 7*24*time.Hour {
		t.Errorf("the first CRL: %+v", first)
	}
	if again := publish(first.DER, false); !bytes.Equal(again.DER, first.DER) {
		t.Error("nothing has changed, and it is signed again")
	}
	if forced := publish(first.DER, true); forced.Number != 2 {
		t.Errorf("forced: number %d", forced.Number)
	}
	if other := publish([]byte("garbage"), false); other.Number != 3 {
		t.Errorf("after garbage: number %d", other.Number)
	}
	last := publish(nil, false)

	// At half of its life it is signed again, though nothing has changed.
	b.now = last.ThisUpdate.Add(84*time.Hour - time.Second)
	if c := publish(last.DER, false); c.Number != last.Number {
		t.Errorf("signed again too early: number %d", c.Number)
	}
	b.now = last.ThisUpdate.Add(84 * time.Hour)
	last = publish(last.DER, false)
	if last.Number != 5 {
		t.Errorf("at half life: number %d, want 5", last.Number)
	}

	// A clock that goes back does not take thisUpdate with it.
	now := b.now
	b.now = now.Add(-48 * time.Hour)
	if c := publish(last.DER, true); !c.ThisUpdate.Equal(last.ThisUpdate) || c.Number != 6 {
		t.Errorf("with the clock back: number %d of %s, before it %s", c.Number, c.ThisUpdate, last.ThisUpdate)
	}
	b.now = now

	// A revoked certificate is listed until one CRL after it has expired.
	if _, err := b.Revoke(t.Context(), "test", "", inventory.Superseded, "dev-1"); err != nil {
		t.Fatal(err)
	}
	if last = publish(last.DER, false); last.Entries != 1 {
		t.Fatalf("%d entries, want one", last.Entries)
	}
	for _, tt := range []struct {
		at   time.Time
		want int
	}{
		{e.Certificate.NotAfter, 1},
		{e.Certificate.NotAfter.Add(time.Second), 1},
		{e.Certificate.NotAfter.Add(2 * time.Second), 0},
	} {
		b.now = tt.at
		if last = publish(last.DER, true); last.Entries != tt.want {
			t.Errorf("at %s, where the certificate ends at %s: %d entries, want %d", tt.at, e.Certificate.NotAfter, last.Entries, tt.want)
		}
	}

	// A CRL that the inventory does not know was published by its future.
	b.now = b.now.Add(time.Hour)
	future, err := deviceIssuer(t, b).CRL(ca.CRLConfig{Number: 99, ThisUpdate: b.now, NextUpdate: b.now.Add(time.Hour)}, nothing)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := b.PublishCRL(t.Context(), "test", "device-1", future, false); !errors.Is(err, enroll.ErrNotRecorded) {
		t.Errorf("a CRL from the future gave number %d, %v", c.Number, err)
	}
	if _, err := b.PublishCRL(t.Context(), "test", "nosuch", nil, false); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("no such issuer: %v", err)
	}
}

func nothing(func(ca.Revoked, error) bool) {}

// deviceIssuer opens the device issuer of a bench, apart from its registrar.
func deviceIssuer(t *testing.T, b *bench) *ca.Issuer {
	t.Helper()
	var rec inventory.Issuer
	err := b.store.Read(t.Context(), func(in inventory.Reader) error {
		for iss, err := range in.Issuers() {
			if err != nil {
				return err
			}
			if iss.Name == "device-1" {
				rec = iss
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := b.open(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	return issuer
}
