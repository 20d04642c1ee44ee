package storetest

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

func token(name string, limit uint32) inventory.Token {
	return inventory.Token{
		Hash: hash("token %s", name), Role: inventory.DeviceRole, Name: name, Limit: limit,
		NotBefore: day, Expires: day.Add(time.Hour), Created: day, CreatedBy: "tester",
	}
}

// using is a change that buys one device with a token.
func using(id, name string) inventory.Change {
	return inventory.Change{
		Event: event("device.enroll"), Devices: []inventory.Device{device(id)},
		TokenUses: []inventory.TokenUse{{Token: hash("token %s", name)}},
	}
}

func findToken(t *testing.T, s inventory.Store, name string) (found inventory.Token) {
	t.Helper()
	read(t, s, func(r inventory.Reader) (err error) {
		found, err = r.Token(hash("token %s", name))
		return err
	})
	return found
}

func wantConflict(t *testing.T, what string, err error, want inventory.Conflict) {
	t.Helper()
	c, ok := errors.AsType[*inventory.ConflictError](err)
	if !ok || c.Why != want {
		t.Errorf("%s: %v, want conflict %d", what, err, want)
	}
}

func testTokens(t *testing.T, f Factory) {
	s := f.New(t)
	full := token("full", 3)
	full.Role, full.Devices, full.Prefix, full.Profile, full.Group = inventory.StationRole, []inventory.DeviceID{"a", "b"}, "x-", "sensor", "hall"
	full.Station, full.Networks, full.PerMinute = "line-1", []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}, 7
	full.Approve, full.Replace = true, true
	admin := token("admin", 0)
	admin.Role = inventory.AdminRole
	apply(t, s, inventory.Change{Event: event("token.make"), Tokens: []inventory.Token{full, token("one", 1), token("two", 2), admin}})
	full.Revision = 1
	if got := findToken(t, s, "full"); !reflect.DeepEqual(got, full) {
		t.Errorf("token reads back as\n%+v, want\n%+v", got, full)
	}
	apply(t, s, using("dev-1", "one"))
	wantConflict(t, "a spent token", s.Apply(t.Context(), using("dev-2", "one")), inventory.TokenSpent)
	wantConflict(t, "an unknown token", s.Apply(t.Context(), using("dev-2", "none")), inventory.TokenSpent)
	wantConflict(t, "a token that enrolls nobody", s.Apply(t.Context(), using("dev-2", "admin")), inventory.TokenSpent)
	read(t, s, func(r inventory.Reader) error {
		if _, err := r.Device("dev-2"); !errors.Is(err, inventory.ErrNotFound) {
			t.Errorf("a device that was not bought is there: %v", err)
		}
		if _, err := r.Token(hash("token none")); !errors.Is(err, inventory.ErrNotFound) {
			t.Errorf("an unknown token: %v", err)
		}
		return nil
	})
	apply(t, s, using("dev-3", "two"))
	two := findToken(t, s, "two")
	if two.Uses != 1 || two.Revision <= 1 {
		t.Errorf("after one use: %+v", two)
	}
	wider := two
	wider.Limit = 100
	wantConflict(t, "a token with another limit", s.Apply(t.Context(), inventory.Change{Event: event("token.make"), Tokens: []inventory.Token{wider}}), inventory.BadTransition)
	two.RevokedAt = day
	apply(t, s, inventory.Change{Event: event("token.revoke"), Tokens: []inventory.Token{two}})
	wantConflict(t, "a revoked token", s.Apply(t.Context(), using("dev-4", "two")), inventory.TokenSpent)
	back := findToken(t, s, "two")
	back.RevokedAt = time.Time{}
	wantConflict(t, "a token that comes back", s.Apply(t.Context(), inventory.Change{Event: event("token.make"), Tokens: []inventory.Token{back}}), inventory.BadTransition)

	s = f.Reopen(t, s)
	if got := findToken(t, s, "one"); !got.Spent() {
		t.Errorf("a spent token is not after a restart: %+v", got)
	}
	var byID, all int
	read(t, s, func(r inventory.Reader) error {
		for got, err := range r.Tokens(full.ID()) {
			if err != nil || got.Hash != full.Hash {
				return fmt.Errorf("by ID: %+v, %w", got, err)
			}
			byID++
		}
		last := inventory.TokenID("")
		for got, err := range r.Tokens("") {
			if err != nil || got.ID() <= last {
				return fmt.Errorf("%s after %s, %w", got.ID(), last, err)
			}
			last = got.ID()
			all++
		}
		return nil
	})
	if byID != 1 || all != 4 {
		t.Errorf("%d by ID and %d in all, want 1 and 4", byID, all)
	}
}

// Many want the last of a token: it is sold as often as it says.
func testTokenRace(t *testing.T, f Factory) {
	s := f.New(t)
	apply(t, s, inventory.Change{Event: event("token.make"), Tokens: []inventory.Token{token("t", 5)}})
	const buyers = 64
	var wg sync.WaitGroup
	bought := make([]bool, buyers)
	for i := range buyers {
		wg.Go(func() {
			err := s.Apply(t.Context(), using(fmt.Sprintf("dev-%d", i), "t"))
			if err != nil && !errors.Is(err, inventory.ErrConflict) {
				t.Errorf("Apply: %v", err)
			}
			bought[i] = err == nil
		})
	}
	wg.Wait()
	n := 0
	for i, ok := range bought {
		if ok {
			n++
		}
		read(t, s, func(r inventory.Reader) error {
			if _, err := r.Device(inventory.DeviceID(fmt.Sprintf("dev-%d", i))); (err == nil) != ok {
				t.Errorf("device %d: bought %t, %v", i, ok, err)
			}
			return nil
		})
	}
	if got := findToken(t, s, "t"); n != 5 || got.Uses != 5 {
		t.Errorf("%d bought, token used %d times, want 5", n, got.Uses)
	}
}

func testApprovals(t *testing.T, f Factory) {
	s := f.New(t)
	a := inventory.Approval{Key: hash("key"), Device: "dev-1", State: inventory.ApprovalPending, Asked: "token x", Created: day}
	apply(t, s, inventory.Change{Event: event("approval.ask"), Approvals: []inventory.Approval{a}})
	wantConflict(t, "an approval that exists", s.Apply(t.Context(), inventory.Change{Event: event("approval.ask"), Approvals: []inventory.Approval{a}}), inventory.Exists)
	a.Revision = 1
	other := a
	other.Device = "dev-2"
	wantConflict(t, "an approval for another device", s.Apply(t.Context(), inventory.Change{Event: event("approval.grant"), Approvals: []inventory.Approval{other}}), inventory.BadTransition)
	a.State, a.Decided = inventory.ApprovalGranted, day.Add(time.Minute)
	apply(t, s, inventory.Change{Event: event("approval.grant"), Approvals: []inventory.Approval{a}})
	s = f.Reopen(t, s)
	a.Revision = 2
	read(t, s, func(r inventory.Reader) error {
		if got, err := r.Approval(a.Key); err != nil || got != a {
			t.Errorf("approval reads back as %+v, %v", got, err)
		}
		n := 0
		for _, err := range r.Approvals() {
			if n++; err != nil {
				return err
			}
		}
		if _, err := r.Approval(hash("other")); !errors.Is(err, inventory.ErrNotFound) || n != 1 {
			t.Errorf("%d approvals; an unknown one: %v", n, err)
		}
		return nil
	})
}
