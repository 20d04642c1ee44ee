package boltstore_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
)

// token is good for some enrollments until long after these tests.
func token(name byte, limit uint32) inventory.Token {
	role := inventory.DeviceRole
	if limit == 0 {
		role = inventory.AdminRole
	}
	return inventory.Token{Hash: inventory.Hash{name}, Role: role, Limit: limit, NotBefore: day, Expires: day.AddDate(100, 0, 0), Created: day}
}

func approval(key byte) inventory.Approval {
	return inventory.Approval{Key: inventory.SPKI{key}, Device: "dev-1", State: inventory.ApprovalPending, Created: day}
}

// buy uses a token once.
func buy(s inventory.Store, t *testing.T, name byte) error {
	t.Helper()
	return s.Apply(t.Context(), inventory.Change{Event: event("device.enroll"), TokenUses: []inventory.TokenUse{{Token: inventory.Hash{name}}}})
}

// tokens says of each token what it is good for.
func tokens(t *testing.T, s inventory.Store) (all string) {
	t.Helper()
	err := s.Read(t.Context(), func(r inventory.Reader) error {
		for x, err := range r.Tokens("") {
			if err != nil {
				return err
			}
			state := fmt.Sprintf("%d/%d", x.Uses, x.Limit)
			if !x.RevokedAt.IsZero() {
				state = "revoked"
			}
			all += fmt.Sprintf("%x:%s ", x.Hash[0], state)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// lastEvent returns the last entry of the audit log.
func lastEvent(t *testing.T, s inventory.Store) (last inventory.Event) {
	t.Helper()
	err := s.Read(t.Context(), func(r inventory.Reader) error {
		for e, err := range r.Events(r.Revision()) {
			if err != nil {
				return err
			}
			last = e
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return last
}

// withTokens makes a fleet whose token 1 is spent, 2 has one of two uses left, 3 is
// an administrator's and 4 is revoked.
func withTokens(t *testing.T, dir string) *boltstore.Store {
	t.Helper()
	s := fleet(t, dir)
	gone := token(4, 1)
	gone.RevokedAt = day
	apply(t, s, inventory.Change{Event: event("token.make"), Tokens: []inventory.Token{token(1, 1), token(2, 2), token(3, 0), gone}})
	for _, name := range []byte{1, 2} {
		if err := buy(s, t, name); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := tokens(t, s), "1:1/1 2:1/2 3:0/0 4:revoked "; got != want {
		t.Fatalf("tokens %s, want %s", got, want)
	}
	return s
}

// ended is what is left of withTokens after a restore.
const ended = "1:1/1 2:revoked 3:revoked 4:revoked "

// TestRestoreEndsTokens: a token used up after the backup buys nothing after the
// restore, whatever the directory still knows; the log names the tokens.
func TestRestoreEndsTokens(t *testing.T) {
	for _, tt := range []struct {
		name   string
		after  func(*testing.T, *boltstore.Store) // the backup
		action string
	}{
		{"nothing happened since", func(*testing.T, *boltstore.Store) {}, "inventory.restore"},
		{"a token was used", func(t *testing.T, s *boltstore.Store) {
			t.Helper()
			if err := buy(s, t, 2); err != nil {
				t.Fatal(err)
			}
		}, "inventory.restore"},
		{"a device was revoked", func(t *testing.T, s *boltstore.Store) {
			t.Helper()
			end(t, s, "dev-0", inventory.Revoked, inventory.KeyCompromise)
		}, "journal.replay"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := withTokens(t, dir)
			saved := backup(t, s)
			before := tokens(t, s)
			tt.after(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			cfg := config(t, dir)
			restore(t, cfg, saved)
			s = open(t, cfg)
			clean(t, s)
			if got := tokens(t, s); got != ended {
				t.Errorf("tokens %s, before: %s, want %s", got, before, ended)
			}
			// The tokens are in the same entry as what the journal brought back.
			named := 0
			e := lastEventOf(t, s, tt.action)
			for _, o := range e.Objects {
				if o.Kind == "token" {
					named++
				}
			}
			if named != 2 {
				t.Errorf("the log names %d tokens, want 2: %+v", named, e)
			}
			for name := byte(1); name <= 4; name++ {
				if err := buy(s, t, name); !errors.Is(err, inventory.ErrConflict) {
					t.Errorf("using token %d: %v", name, err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			// A token made since is good, also after a restart.
			s = open(t, cfg)
			apply(t, s, inventory.Change{Event: event("token.make"), Tokens: []inventory.Token{token(5, 1)}})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, cfg)
			if err := buy(s, t, 5); err != nil {
				t.Errorf("a token made after the restore: %v", err)
			}
		})
	}
}

// lastEventOf returns the last entry with an action.
func lastEventOf(t *testing.T, s inventory.Store, action string) (last inventory.Event) {
	t.Helper()
	err := s.Read(t.Context(), func(r inventory.Reader) error {
		for e, err := range r.Events(0) {
			if err != nil {
				return err
			}
			if e.Action == action {
				last = e
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return last
}

// TestRestoreElsewhere: a directory that knows nothing of the fleet.
func TestRestoreElsewhere(t *testing.T) {
	saved := backup(t, withTokens(t, t.TempDir()))
	cfg := config(t, t.TempDir())
	restore(t, cfg, saved)
	s := open(t, cfg)
	clean(t, s)
	if got := tokens(t, s); got != ended {
		t.Errorf("tokens %s, want %s", got, ended)
	}
}

// TestReplayAndTokens: what a crash leaves, a database without the last commit of the
// journal, keeps its tokens. A database that lacks more was put back, and ends them.
func TestReplayAndTokens(t *testing.T) {
	revoke := func(id string) func(*testing.T, *boltstore.Store) {
		return func(t *testing.T, s *boltstore.Store) {
			t.Helper()
			end(t, s, id, inventory.Revoked, inventory.KeyCompromise)
		}
	}
	use := func(t *testing.T, s *boltstore.Store) {
		t.Helper()
		if err := buy(s, t, 2); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		lost []func(*testing.T, *boltstore.Store)
		want string
	}{
		{"a crash", []func(*testing.T, *boltstore.Store){revoke("dev-0")}, "1:1/1 2:1/2 3:0/0 4:revoked "},
		{"put back over a use and a revocation", []func(*testing.T, *boltstore.Store){use, revoke("dev-0")}, ended},
		{"put back over a revocation, a use and a revocation", []func(*testing.T, *boltstore.Store){revoke("dev-0"), use, revoke("dev-1")}, ended},
		{"put back over two revocations", []func(*testing.T, *boltstore.Store){revoke("dev-0"), revoke("dev-1")}, ended},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := withTokens(t, dir)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "inventory.db")
			old, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			s = open(t, config(t, dir))
			for _, step := range tt.lost {
				step(t, s)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, old, 0o600); err != nil {
				t.Fatal(err)
			}
			s = open(t, config(t, dir))
			clean(t, s)
			if got := tokens(t, s); got != tt.want {
				t.Errorf("tokens %s, want %s", got, tt.want)
			}
			if e := lastEvent(t, s); e.Action != "journal.replay" {
				t.Errorf("the last event is %+v", e)
			}
			if got := states(t, s)["dev-0"]; got != "revoked" {
				t.Errorf("dev-0 is %s", got)
			}
		})
	}
}
