package enroll_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// adoption is a device of another fleet with a password.
func adoption(t testing.TB, id, password string) enroll.Adoption {
	t.Helper()
	verifiers, err := enroll.Verifiers(inventory.NewSecret([]byte(password)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return enroll.Adoption{
		Actor: "test", Reason: "from the old broker", Verifiers: verifiers[:1],
		Device: inventory.Device{ID: inventory.DeviceID(id), Profile: "default", Labels: inventory.NewLabels(map[string]string{"site": "Rome"})},
	}
}

func TestAdopt(t *testing.T) {
	b := newBench(t)
	q := adoption(t, "dev-1", "secret")
	before := b.revision()
	changed, err := b.Adopt(t.Context(), q)
	if err != nil || !changed {
		t.Fatalf("Adopt = %v, %v", changed, err)
	}
	if got := b.revision(); got != before+1 {
		t.Errorf("revision %d, want one change after %d", got, before)
	}
	dev, creds := b.facts("dev-1")
	if dev.State != inventory.Active || len(creds) != 1 || creds[0].Kind != inventory.PasswordCredential || creds[0].State != inventory.CredentialActive {
		t.Errorf("device %s with %+v, want active with one password", dev.State, creds)
	}
	events, err := b.Events(t.Context(), b.revision(), 1)
	if err != nil || len(events) != 1 || events[0].Action != "device.adopt" || events[0].Reason != q.Reason {
		t.Errorf("event = %+v, %v", events, err)
	}

	// the same again, also after the device has got more here
	b.enroll("dev-1")
	before = b.revision()
	if changed, err := b.Adopt(t.Context(), q); err != nil || changed {
		t.Errorf("the same again = %v, %v, want no change", changed, err)
	}
	if got := b.revision(); got != before {
		t.Errorf("revision %d, want %d as before", got, before)
	}
	// brokers go on with the password that the device has
	_, creds = b.facts("dev-1")
	if c := enroll.PasswordForBrokers(creds); c == nil || c.Generation != 1 {
		t.Errorf("brokers get %+v, want the password that was adopted", c)
	}
}

func TestAdoptRefuses(t *testing.T) {
	b := newBench(t, "there", "gone")
	if _, err := b.Revoke(t.Context(), "test", "", inventory.Unspecified, "gone"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Adopt(t.Context(), adoption(t, "has", "old")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*enroll.Adoption)
		want   error
	}{
		{"another password", func(q *enroll.Adoption) { q.Device.ID = "has" }, inventory.ErrConflict},
		{"another profile", func(q *enroll.Adoption) {
			q.Device.ID, q.Device.Profile, q.Verifiers = "has", "quiet", nil
		}, inventory.ErrConflict},
		{"a profile without passwords", func(q *enroll.Adoption) { q.Device.Profile = "quiet" }, nil},
		{"another case", func(q *enroll.Adoption) { q.Device.ID = "HAS" }, inventory.ErrConflict},
		{"another label", func(q *enroll.Adoption) { q.Device.ID = "there" }, inventory.ErrConflict},
		{"revoked", func(q *enroll.Adoption) { q.Device.ID, q.Device.Labels = "gone", nil }, enroll.ErrDenied},
		{"no profile", func(q *enroll.Adoption) { q.Device.Profile = "missing" }, inventory.ErrNotFound},
		{"bad id", func(q *enroll.Adoption) { q.Device.ID = "a:b" }, nil},
		{"short hash", func(q *enroll.Adoption) { q.Verifiers[0].Hash = q.Verifiers[0].Hash[:63] }, nil},
		{"two of a scheme", func(q *enroll.Adoption) { q.Verifiers = append(q.Verifiers, q.Verifiers[0]) }, nil},
		{"unknown scheme", func(q *enroll.Adoption) { q.Verifiers[0].Scheme = 99 }, nil},
	} {
		q := adoption(t, "new", "secret")
		tt.change(&q)
		before := b.revision()
		_, err := b.Adopt(t.Context(), q)
		if tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if _, invalid := errors.AsType[*inventory.InvalidError](err); tt.want == nil && !invalid {
			t.Errorf("%s: %v, want an *InvalidError", tt.name, err)
		}
		if got := b.revision(); got != before {
			t.Errorf("%s: something was written", tt.name)
		}
	}
}

// A device that was registered gets the password; one that had its password ended
// does not get it back.
func TestAdoptRegistered(t *testing.T) {
	b := newBench(t, "dev-1")
	q := adoption(t, "dev-1", "secret")
	q.Device.Labels = nil
	if changed, err := b.Adopt(t.Context(), q); err != nil || !changed {
		t.Fatalf("Adopt = %v, %v", changed, err)
	}
	if _, err := b.Enroll(t.Context(), enroll.Request{Actor: "test", Device: "dev-1", Rekey: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Adopt(t.Context(), q); !errors.Is(err, inventory.ErrConflict) {
		t.Errorf("a password that was ended: %v, want a conflict", err)
	}
}

func TestAdoptDryRun(t *testing.T) {
	b := newBench(t)
	before := b.revision()
	q := adoption(t, "dev-1", "secret")
	q.DryRun = true
	if changed, err := b.Adopt(t.Context(), q); err != nil || !changed {
		t.Errorf("dry run = %v, %v", changed, err)
	}
	q.Device.Profile = "later"
	if _, err := b.Adopt(t.Context(), q); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("dry run with a profile that is not there: %v", err)
	}
	q.Planned = &inventory.Profile{Name: "later"}
	if changed, err := b.Adopt(t.Context(), q); err != nil || !changed {
		t.Errorf("dry run with a profile that will be there = %v, %v", changed, err)
	}
	if got := b.revision(); got != before {
		t.Error("a dry run has written something")
	}
}

// Of many who adopt one device at once, one does.
func TestAdoptAtOnce(t *testing.T) {
	b := newBench(t)
	var wg sync.WaitGroup
	changes := make(chan bool, 16)
	q := adoption(t, "dev-1", "secret")
	for range cap(changes) {
		wg.Go(func() {
			changed, err := b.Adopt(t.Context(), q)
			if err != nil {
				t.Error(err)
			}
			changes <- changed
		})
	}
	wg.Wait()
	close(changes)
	n := 0
	for changed := range changes {
		if changed {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d of them changed something, want 1", n)
	}
}

func TestAdoptProfile(t *testing.T) {
	b := newBench(t)
	p := inventory.Profile{Name: "imported-1", Policy: topic.Policy{Rules: []topic.Rule{{Action: topic.Publish, Filter: "a/{id}/up"}}}}
	for i, want := range []bool{true, false} {
		if fresh, err := b.AdoptProfile(t.Context(), "test", "", p, false); err != nil || fresh != want {
			t.Errorf("time %d: %v, %v, want %v", i+1, fresh, err, want)
		}
	}
	other := p
	other.Policy.Rules = []topic.Rule{{Action: topic.Publish, Filter: "b/{id}/up"}}
	if _, err := b.AdoptProfile(t.Context(), "test", "", other, false); !errors.Is(err, inventory.ErrConflict) {
		t.Errorf("other rules: %v, want a conflict", err)
	}
	foul := inventory.Profile{Name: "foul", Policy: topic.Policy{Rules: []topic.Rule{{Action: topic.Publish, Filter: "a/#"}}}}
	if _, err := b.AdoptProfile(t.Context(), "test", "", foul, false); err == nil {
		t.Error("a policy that reaches into others' topics was taken")
	}
	if fresh, err := b.AdoptProfile(t.Context(), "test", "", inventory.Profile{Name: "later"}, true); err != nil || !fresh {
		t.Errorf("dry run = %v, %v", fresh, err)
	}
}

func TestVerifiersOfAllSchemesAreAdopted(t *testing.T) {
	b := newBench(t)
	all, err := enroll.Verifiers(inventory.NewSecret([]byte("secret")), []inventory.Scheme{inventory.Bcrypt, inventory.Argon2id, inventory.PBKDF2SHA1})
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range all {
		q := adoption(t, fmt.Sprintf("dev-%d", i), "x")
		q.Verifiers = []inventory.Verifier{v}
		if _, err := b.Adopt(t.Context(), q); err != nil {
			t.Errorf("%s: %v", v.Scheme, err)
		}
	}
}
