package enroll

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// TokenSize is the number of random octets in a token.
const TokenSize = 32

// MakeToken makes a token like t, whose Hash, Uses and Created are set here, and
// records it. It returns the secret octets, which nobody can read again, and the
// record.
//
// A token always ends: without Expires it is good for a day.
func (r *Registrar) MakeToken(ctx context.Context, actor, why string, t inventory.Token) (inventory.Secret, inventory.Token, error) {
	secret := make([]byte, TokenSize)
	_, _ = rand.Read(secret) // never fails
	now := r.now()
	t.Hash, t.Uses, t.Revision, t.RevokedAt = sha256.Sum256(secret), 0, 0, time.Time{}
	t.Created, t.CreatedBy = now, actor
	if t.NotBefore.IsZero() {
		t.NotBefore = now
	}
	if t.Expires.IsZero() {
		t.Expires = t.NotBefore.Add(defaultTokenLife)
	}
	if t.Role.Enrolls() && t.Limit == 0 {
		t.Limit = 1
	}
	if err := r.tokenFits(ctx, t); err != nil {
		return inventory.Secret{}, t, err
	}
	err := r.cfg.Store.Apply(ctx, inventory.Change{
		Event:  r.event(actor, "token.make", why, tokenObject(&t)),
		Tokens: []inventory.Token{t},
	})
	if err != nil {
		return inventory.Secret{}, t, fmt.Errorf("recording token: %w", err)
	}
	return inventory.NewSecret(secret), t, nil
}

const defaultTokenLife = 24 * time.Hour

// tokenFits refuses a token that could never buy anything.
func (r *Registrar) tokenFits(ctx context.Context, t inventory.Token) error {
	if err := t.Validate(); err != nil {
		return err
	}
	return r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		if t.Profile != "" {
			if _, err := findProfile(in, t.Profile); err != nil {
				return err
			}
		}
		if t.Station != "" {
			if _, err := in.Device(t.Station); err != nil {
				return err
			}
		}
		return nil
	})
}

// RevokeToken ends a token: whoever presents it from now on is turned away. To
// revoke twice is no error.
func (r *Registrar) RevokeToken(ctx context.Context, actor, why string, id inventory.TokenID) (inventory.Token, error) {
	return decide(func() (inventory.Token, error) {
		t, err := r.FindToken(ctx, id)
		if err != nil || !t.RevokedAt.IsZero() {
			return t, err
		}
		t.RevokedAt = r.now()
		return t, r.cfg.Store.Apply(ctx, inventory.Change{
			Event:  r.event(actor, "token.revoke", why, tokenObject(&t)),
			Tokens: []inventory.Token{t},
		})
	})
}

// FindToken returns the token with an ID. The error wraps
// [inventory.ErrNotFound].
func (r *Registrar) FindToken(ctx context.Context, id inventory.TokenID) (inventory.Token, error) {
	var found []inventory.Token
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
		found, err = collect(in.Tokens(id), 1)
		return err
	})
	switch {
	case err != nil:
		return inventory.Token{}, err
	case id == "" || len(found) == 0:
		return inventory.Token{}, fmt.Errorf("token %.32q: %w", string(id), inventory.ErrNotFound)
	}
	return found[0], nil
}

// BoughtWith returns the devices that were enrolled with a token, as the audit log
// has it, each once.
func (r *Registrar) BoughtWith(ctx context.Context, t inventory.Token) ([]inventory.DeviceID, error) {
	var ids []inventory.DeviceID
	seen := map[string]bool{}
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		for e, err := range in.Events(1) {
			if err != nil {
				return err
			}
			if e.Action == "token.make" || !hasObject(e, "token", string(t.ID())) {
				continue
			}
			for _, o := range e.Objects {
				if o.Kind == "device" && !seen[o.ID] {
					seen[o.ID] = true
					ids = append(ids, inventory.DeviceID(o.ID))
				}
			}
		}
		return nil
	})
	return ids, err
}

func hasObject(e inventory.Event, kind, id string) bool {
	for _, o := range e.Objects {
		if o.Kind == kind && o.ID == id {
			return true
		}
	}
	return false
}

func tokenObject(t *inventory.Token) inventory.Object {
	return inventory.Object{Kind: "token", ID: string(t.ID()), Note: t.Role.String()}
}

// A QuotaError reports a token that has bought all it may, in all or in this
// minute.
type QuotaError struct {
	Token inventory.TokenID
	Retry time.Duration // when it may be tried again
}

// Error names the token.
func (e *QuotaError) Error() string {
	return fmt.Sprintf("token %s has reached its limit", e.Token)
}

// A pace counts what tokens have bought in the current minute. It is kept in
// memory: a restart forgets a minute, the limits in all are in the inventory.
type pace struct {
	mu     sync.Mutex
	minute time.Time
	used   map[inventory.Hash]uint32
}

// take counts one, or returns how long to wait.
func (p *pace) take(token inventory.Hash, limit uint32, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := now.Truncate(time.Minute); !m.Equal(p.minute) || p.used == nil {
		p.minute, p.used = m, map[inventory.Hash]uint32{}
	}
	if p.used[token] >= limit {
		return p.minute.Add(time.Minute).Sub(now)
	}
	p.used[token]++
	return 0
}
