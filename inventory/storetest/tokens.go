package storetest

import (
	"errors"
	"fmt"
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

// tokenRefusals lists changes of tokens and approvals that do not fit full().
func tokenRefusals() []refusal {
	have := full()
	approved := have.Approvals[0]
	made := func(change func(*inventory.Token)) inventory.Change {
		x := fullToken()
		x.Revision = 1
		change(&x)
		return inventory.Change{Tokens: []inventory.Token{x}}
	}
	decided := func(change func(*inventory.Approval)) inventory.Change {
		x := approved
		x.Revision = 1
		change(&x)
		return inventory.Change{Approvals: []inventory.Approval{x}}
	}
	all := []refusal{
		{"token exists", inventory.Exists, made(func(x *inventory.Token) { x.Revision = 0 })},
		{"token stale", inventory.Stale, made(func(x *inventory.Token) { x.Revision = 2 })},
		{"token is gone", inventory.Stale, made(func(x *inventory.Token) { x.Hash = hash("gone") })},
		{"approval exists", inventory.Exists, decided(func(x *inventory.Approval) { x.Revision = 0 })},
		{"approval stale", inventory.Stale, decided(func(x *inventory.Approval) { x.Revision = 2 })},
		{"approval is gone", inventory.Stale, decided(func(x *inventory.Approval) { x.Key = hash("gone") })},
		{"approval for another device", inventory.BadTransition, decided(func(x *inventory.Approval) { x.Device = "dev-2" })},
		{"approval made before", inventory.BadTransition, decided(func(x *inventory.Approval) { x.Created = day.Add(-time.Hour) })},
		{"unknown token used", inventory.TokenSpent, inventory.Change{TokenUses: []inventory.TokenUse{{Token: hash("gone")}}}},
	}
	for name, change := range tokenChanges() {
		all = append(all, refusal{"token with another " + name, inventory.BadTransition, made(change)})
	}
	return all
}

// tokenChanges are all that can be changed of a token, but for its revocation.
func tokenChanges() map[string]func(*inventory.Token) {
	return map[string]func(*inventory.Token){
		"role":             func(x *inventory.Token) { x.Role = inventory.DeviceRole },
		"name":             func(x *inventory.Token) { x.Name = "other" },
		"limit":            func(x *inventory.Token) { x.Limit = 100 },
		"number of uses":   func(x *inventory.Token) { x.Uses = 1 },
		"list of devices":  func(x *inventory.Token) { x.Devices = nil },
		"prefix":           func(x *inventory.Token) { x.Prefix = "" },
		"profile":          func(x *inventory.Token) { x.Profile = "" },
		"group":            func(x *inventory.Token) { x.Group = "" },
		"station":          func(x *inventory.Token) { x.Station = "" },
		"list of networks": func(x *inventory.Token) { x.Networks = x.Networks[:1] },
		"rate":             func(x *inventory.Token) { x.PerMinute = 0 },
		"need of approval": func(x *inventory.Token) { x.Approve = false },
		"right to replace": func(x *inventory.Token) { x.Replace = false },
		"beginning":        func(x *inventory.Token) { x.NotBefore = day.Add(-time.Hour) },
		"end":              func(x *inventory.Token) { x.Expires = day.AddDate(1, 0, 0) },
		"date":             func(x *inventory.Token) { x.Created = day.Add(time.Hour) },
		"maker":            func(x *inventory.Token) { x.CreatedBy = "other" },
	}
}

// testTokens is the life of tokens: made, used, used up, revoked, and never good
// again. What is refused because of a token leaves nothing of its change.
func testTokens(t *testing.T, f Factory) {
	s := f.New(t)
	admin := token("admin", 0)
	admin.Role = inventory.AdminRole
	apply(t, s, inventory.Change{Event: event("token.make"), Tokens: []inventory.Token{token("one", 1), token("two", 2), admin}})
	apply(t, s, using("dev-1", "one"))
	for _, name := range []string{"one", "admin", "none"} { // spent, enrolls nobody, unknown
		refuse(t, s, using("dev-2", name), inventory.TokenSpent)
	}
	read(t, s, func(r inventory.Reader) error {
		if _, err := r.Device("dev-2"); !errors.Is(err, inventory.ErrNotFound) {
			t.Errorf("a device that was not bought is there: %v", err)
		}
		return nil
	})
	stale := findToken(t, s, "two")
	apply(t, s, using("dev-3", "two"))
	two := findToken(t, s, "two")
	if want := revision(t, s); two.Uses != 1 || two.Revision != want {
		t.Errorf("after one use: %d uses at revision %d, want 1 at %d", two.Uses, two.Revision, want)
	}
	// Who revokes it has to know of the use.
	stale.RevokedAt = day
	refuse(t, s, inventory.Change{Tokens: []inventory.Token{stale}}, inventory.Stale)
	two.RevokedAt = day
	apply(t, s, inventory.Change{Event: event("token.revoke"), Tokens: []inventory.Token{two}})
	refuse(t, s, using("dev-4", "two"), inventory.TokenSpent)
	for _, when := range []time.Time{{}, day.Add(time.Hour)} {
		back := findToken(t, s, "two")
		back.RevokedAt = when
		refuse(t, s, inventory.Change{Tokens: []inventory.Token{back}}, inventory.BadTransition)
	}

	s = f.Reopen(t, s)
	if one := findToken(t, s, "one"); !one.Spent() || one.Uses != 1 {
		t.Errorf("after a restart: %+v", one)
	}
	refuse(t, s, using("dev-2", "one"), inventory.TokenSpent)
	refuse(t, s, using("dev-2", "two"), inventory.TokenSpent)
	read(t, s, func(r inventory.Reader) error {
		last := inventory.TokenID("")
		all, err := collect(r.Tokens(""))
		for _, x := range all {
			if x.ID() <= last {
				t.Errorf("token %s comes after %s", x.ID(), last)
			}
			last = x.ID()
		}
		if len(all) != 3 {
			t.Errorf("%d tokens, want 3", len(all))
		}
		return err
	})
	for _, c := range []inventory.Change{
		{Tokens: []inventory.Token{token("x", 1), token("x", 2)}},
		{TokenUses: []inventory.TokenUse{{Token: hash("token x")}, {Token: hash("token x")}}},
	} {
		c.Event = event("token.twice")
		if _, ok := errors.AsType[*inventory.InvalidError](s.Apply(t.Context(), c)); !ok {
			t.Error("a change with one token twice is not an InvalidError")
		}
	}
}

// testTokenRace: many want the last of a token, and it is sold as often as it says.
func testTokenRace(t *testing.T, f Factory) {
	for _, left := range []int{1, 5} {
		s := f.New(t)
		apply(t, s, inventory.Change{Event: event("token.make"), Tokens: []inventory.Token{token("t", uint32(left)+1)}})
		apply(t, s, using("first", "t"))
		const buyers = 64
		var wg sync.WaitGroup
		errs := make([]error, buyers)
		for i := range buyers {
			wg.Go(func() { errs[i] = s.Apply(t.Context(), using(fmt.Sprintf("dev-%d", i), "t")) })
		}
		wg.Wait()
		bought := 0
		read(t, s, func(r inventory.Reader) error {
			for i, err := range errs {
				if err == nil {
					bought++
				} else if c, ok := errors.AsType[*inventory.ConflictError](err); !ok || c.Why != inventory.TokenSpent {
					t.Errorf("Apply: %v", err)
				}
				if _, there := r.Device(inventory.DeviceID(fmt.Sprintf("dev-%d", i))); (there == nil) != (err == nil) {
					t.Errorf("device %d: %v, and Apply said %v", i, there, err)
				}
			}
			return nil
		})
		if x := findToken(t, s, "t"); bought != left || int(x.Uses) != left+1 {
			t.Errorf("%d bought and %d counted, %d were left and one used", bought, x.Uses, left)
		}
	}
}

// testApprovals is the way of a request: asked once, decided, decided otherwise.
func testApprovals(t *testing.T, f Factory) {
	s := f.New(t)
	a := inventory.Approval{Key: hash("key"), Device: "dev-1", State: inventory.ApprovalPending, Asked: "token x", Created: day}
	apply(t, s, inventory.Change{Event: event("approval.ask"), Approvals: []inventory.Approval{a}})
	refuse(t, s, inventory.Change{Approvals: []inventory.Approval{a}}, inventory.Exists)
	for i, state := range []inventory.ApprovalState{inventory.ApprovalGranted, inventory.ApprovalDenied} {
		a.Revision = uint64(i) + 1
		a.State, a.Decided = state, day.Add(time.Minute)
		apply(t, s, inventory.Change{Event: event("approval.decide"), Approvals: []inventory.Approval{a}})
	}
	s = f.Reopen(t, s)
	a.Revision = 3
	read(t, s, func(r inventory.Reader) error {
		got, err := r.Approval(a.Key)
		same(t, "approval", got, a, err)
		all, err := collect(r.Approvals())
		same(t, "approvals", all, []inventory.Approval{a}, err)
		if _, err := r.Approval(hash("other")); !errors.Is(err, inventory.ErrNotFound) {
			t.Errorf("an unknown key: %v", err)
		}
		return nil
	})
}
