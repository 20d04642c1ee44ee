package enroll_test

import (
	"crypto/x509"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
)

func TestPasswordForBrokers(t *testing.T) {
	seen := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	password := func(generation uint32, state inventory.CredentialState, used bool) inventory.Credential {
		c := inventory.Credential{Kind: inventory.PasswordCredential, Generation: generation, State: state}
		if used {
			c.FirstSeen = seen
		}
		return c
	}
	const active, revoked, held = inventory.CredentialActive, inventory.CredentialRevoked, inventory.CredentialHeld
	for _, tt := range []struct {
		name string
		have []inventory.Credential
		want uint32 // 0: none
	}{
		{"none", nil, 0},
		{"a certificate only", []inventory.Credential{{Kind: inventory.CertificateCredential, Generation: 7, State: active}}, 0},
		{"one, never seen", []inventory.Credential{password(1, active, false)}, 1},
		{"a new one on its way", []inventory.Credential{password(1, active, false), password(2, active, false)}, 1},
		{"the old one was seen", []inventory.Credential{password(1, active, true), password(2, active, false)}, 1},
		{"the new one was seen", []inventory.Credential{password(1, active, true), password(2, active, true)}, 2},
		{"two on their way", []inventory.Credential{password(1, revoked, true), password(2, active, false), password(3, active, false)}, 2},
		{"held", []inventory.Credential{password(1, held, true)}, 0},
	} {
		got := enroll.PasswordForBrokers(tt.have)
		if (got == nil) != (tt.want == 0) || got != nil && got.Generation != tt.want {
			t.Errorf("%s: %+v, want generation %d", tt.name, got, tt.want)
		}
	}
}

// as shows a certificate, as the device that holds it.
func (b *bench) as(e *enroll.Enrollment) enroll.Principal {
	b.t.Helper()
	leaf, err := x509.ParseCertificate(e.Certificate.DER)
	if err != nil {
		b.t.Fatal(err)
	}
	p, err := b.Certificate(b.t.Context(), enroll.Peer{Chain: []*x509.Certificate{leaf}})
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

func (b *bench) renew(e *enroll.Enrollment) *enroll.Enrollment {
	b.t.Helper()
	next, err := b.Renew(b.t.Context(), b.as(e), enroll.Ask{CSR: catest.CSR(b.t, catest.Key(b.t, ca.P256), string(e.Device.ID))})
	if err != nil {
		b.t.Fatal(err)
	}
	return next
}

// A stolen key takes with it all that was renewed from it, and leaves what came before
// it and beside it. Without keyCompromise one certificate ends, and no more.
func TestRevokeLineage(t *testing.T) {
	for _, tt := range []struct {
		reason inventory.Reason
		want   []inventory.CredentialState // of certificates 1 to 4
	}{
		{inventory.AffiliationChanged, []inventory.CredentialState{inventory.CredentialRevoked, inventory.CredentialRevoked, inventory.CredentialActive}},
		{inventory.KeyCompromise, []inventory.CredentialState{inventory.CredentialRevoked, inventory.CredentialRevoked, inventory.CredentialRevoked}},
	} {
		t.Run(tt.reason.String(), func(t *testing.T) {
			b := newBench(t, "dev-1", "dev-2")
			first := b.enroll("dev-1")
			other := b.enroll("dev-2")
			b.now = b.now.Add(time.Hour)
			second := b.renew(first)
			b.now = b.now.Add(time.Hour)
			third := b.renew(second)
			n, err := b.RevokeCertificates(t.Context(), "test", "", tt.reason, second.Certificate.Serial)
			if err != nil || n == 0 {
				t.Fatalf("%d, %v", n, err)
			}
			dev, creds := b.facts("dev-1")
			if dev.State != inventory.Active {
				t.Errorf("the device is %s", dev.State)
			}
			var got []inventory.CredentialState
			for _, c := range creds {
				if c.Kind == inventory.CertificateCredential {
					got = append(got, c.State)
				} else if c.State != inventory.CredentialActive {
					t.Errorf("the password, which is older, is %s", c.State)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("certificates %v, want %v", got, tt.want)
			}
			err = b.store.Read(t.Context(), func(in inventory.Reader) error {
				for _, e := range []*enroll.Enrollment{first, second, third, other} {
					use, err := in.Key(e.Certificate.SPKI)
					if err != nil {
						return err
					}
					if want := tt.reason == inventory.KeyCompromise && (e == second || e == third); use.Blocked != want {
						t.Errorf("key of certificate %s: blocked %t, want %t", e.Certificate.Serial, use.Blocked, want)
					}
				}
				endings, more, err := enroll.Endings(in, 0, 0)
				if err == nil && (more || len(endings) != 1 || endings[0].Device != "dev-1" || endings[0].Gone) {
					t.Errorf("endings %+v", endings)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if n, err := b.RevokeCertificates(t.Context(), "test", "", tt.reason, second.Certificate.Serial); n != 0 || err != nil {
				t.Errorf("the same again: %d, %v", n, err)
			}
		})
	}
	b := newBench(t)
	if _, err := b.RevokeCertificates(t.Context(), "test", "", inventory.Unspecified, inventory.Serial{1}); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("an unknown serial number: %v", err)
	}
}

// Of two certificates that are sent to a broker one was never good; the next pair ends
// the one before; and a fleet's devices are what they were.
func TestCanary(t *testing.T) {
	b := newBench(t, "dev-1")
	b.enroll("dev-1")
	pair, err := b.SendCanary(t.Context(), "test", "mqtt-1")
	if err != nil {
		t.Fatal(err)
	}
	states := func() map[inventory.Serial]inventory.CredentialState {
		m := map[inventory.Serial]inventory.CredentialState{}
		_, creds := b.facts(string(pair.Device))
		for _, c := range creds {
			if c.Kind == inventory.CertificateCredential {
				m[c.Certificate.Serial] = c.State
			}
		}
		return m
	}
	if s := states(); s[pair.Refused.Certificate.Serial] != inventory.CredentialRevoked || s[pair.Accepted.Certificate.Serial] != inventory.CredentialActive {
		t.Errorf("states %v", s)
	}
	if life := pair.Accepted.Certificate.NotAfter.Sub(pair.Accepted.Certificate.NotBefore); life > 25*time.Hour {
		t.Errorf("a canary's certificate is good for %s", life)
	}
	next, err := b.SendCanary(t.Context(), "test", "mqtt-1")
	if err != nil {
		t.Fatal(err)
	}
	if s := states(); s[pair.Accepted.Certificate.Serial] != inventory.CredentialRevoked || s[next.Accepted.Certificate.Serial] != inventory.CredentialActive || len(s) != 4 {
		t.Errorf("states %v", s)
	}
	found, err := b.Devices(t.Context(), inventory.Query{})
	if err != nil || len(found) != 1 {
		t.Errorf("%d devices, %v", len(found), err)
	}
	b.now = b.now.AddDate(0, 1, 0)
	if later, err := b.SendCanary(t.Context(), "test", "mqtt-1"); err != nil || later.Device == pair.Device {
		t.Errorf("a month later it is %s, %v", later.Device, err)
	}
	if _, err := b.SendCanary(t.Context(), "test", string(make([]byte, 41))); err == nil {
		t.Error("a node name of 41 bytes is taken")
	}
}

// What is said to have been seen ends what is older, of those devices and no others; to
// say it again changes nothing.
func TestSeen(t *testing.T) {
	b := newBench(t, "dev-1", "dev-2", "dev-3")
	for _, id := range []string{"dev-1", "dev-2", "dev-3"} {
		b.renew(b.enroll(id))
	}
	before := b.revision()
	n, err := b.Seen(t.Context(), "test", "in the broker's log", "dev-1", "dev-2")
	if err != nil || n != 2 || b.revision() != before+1 {
		t.Fatalf("%d ended in %d changes, %v", n, b.revision()-before, err)
	}
	for id, want := range map[string]int{"dev-1": 1, "dev-2": 1, "dev-3": 2} {
		good := 0
		_, creds := b.facts(id)
		for i := range creds {
			if c := &creds[i]; c.Kind == inventory.CertificateCredential && c.Usable(b.now) {
				good++
			}
		}
		if good != want {
			t.Errorf("%s has %d good certificates, want %d", id, good, want)
		}
	}
	if n, err := b.Seen(t.Context(), "test", "", "dev-1"); n != 0 || err != nil || b.revision() != before+1 {
		t.Errorf("again: %d, %v", n, err)
	}
	if _, err := b.Revoke(t.Context(), "test", "", inventory.Unspecified, "dev-3"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Seen(t.Context(), "test", "", "dev-3"); !errors.Is(err, enroll.ErrDenied) {
		t.Errorf("a revoked device: %v", err)
	}
}
