// Package campaign rotates the credentials of many devices without losing one: a few
// first, then in waves, each after the one before has been seen to work.
//
// A campaign keeps nothing about single devices. Whether a device is meant follows
// from its profile, group, labels and credentials; when it is its turn, from a hash of
// its ID; and how far it is, from its credentials: which were made since the campaign
// began, and which have been seen in use. So a campaign survives any crash, and cannot
// disagree with the inventory.
//
// Old and new credentials are good side by side. The old ones of a device end on
// evidence that this device uses the new ones, or by an explicit decision
// ([Book.End]), never by time alone.
package campaign

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
)

// A State says what a campaign does.
type State string

// The states. Aborted and Ended are final.
const (
	Running State = "running"
	Paused  State = "paused"  // nobody is told anything
	Aborted State = "aborted" // nobody will be told any more; what was issued stays
	Ended   State = "ended"
)

// A Scope says which devices are meant: those that match every field that is set.
type Scope struct {
	Profile        string               `json:"profile,omitempty"`
	Group          string               `json:"group,omitempty"`
	Labels         map[string]string    `json:"labels,omitempty"`
	Devices        []inventory.DeviceID `json:"devices,omitempty"`       // at most 1,000
	Issuer         string               `json:"issuer,omitempty"`        // of the newest good certificate
	ExpiringBefore time.Time            `json:"expiringBefore,omitzero"` // the newest good certificate
	PasswordBefore time.Time            `json:"passwordBefore,omitzero"` // the password in use was made before
}

// MaxDevices is how many devices a [Scope] can name.
const MaxDevices = 1000

// A Campaign is one rotation.
type Campaign struct {
	Name        string    `json:"name"`
	Scope       Scope     `json:"scope"`
	Certificate bool      `json:"certificate"`
	Password    bool      `json:"password"`
	State       State     `json:"state"`
	Began       time.Time `json:"began"`
	Key         string    `json:"key"` // hexadecimal; spreads the devices

	Canary   float64 `json:"canary"`   // share of the devices that go first, 0 to 1
	Wave     float64 `json:"wave"`     // share that each step adds
	Released float64 `json:"released"` // share whose turn it is
	Rate     int     `json:"rate"`     // devices that are told in a minute; 0 means any number
	Need     float64 `json:"need"`     // share of the released that must be done before the next wave
	From     uint64  `json:"from"`     // revision of the inventory at which it began

	revision uint64 // of the work
}

// ErrNotReady reports that too few devices of a wave are done for the next one, or that
// one has reported that it cannot work with what it got.
var ErrNotReady = errors.New("the wave is not done")

// ErrOver reports a campaign that has ended.
var ErrOver = errors.New("the campaign is over")

const workKind = "rotation"

// A Book keeps the campaigns of a fleet. It is safe for concurrent use.
type Book struct {
	registrar *enroll.Registrar
	store     inventory.Store
	now       func() time.Time

	mu    sync.Mutex
	paces map[string]*pace
}

// A pace counts who was told in the present minute.
type pace struct {
	minute time.Time
	told   map[inventory.DeviceID]bool
}

// NewBook returns the campaigns in a store; now is nil for time.Now.
func NewBook(r *enroll.Registrar, store inventory.Store, now func() time.Time) *Book {
	if now == nil {
		now = time.Now
	}
	return &Book{registrar: r, store: store, now: now, paces: map[string]*pace{}}
}

func (c *Campaign) check() error {
	bad := func(field, want string) error {
		return &inventory.InvalidError{Field: field, Value: c.Name, Want: want}
	}
	switch {
	case !c.Certificate && !c.Password:
		return bad("rotation", "certificates, passwords or both to be rotated")
	case c.Canary <= 0 || c.Canary > 1 || c.Wave <= 0 || c.Wave > 1:
		return bad("shares", "more than 0 and at most 100 percent")
	case c.Need < 0 || c.Need > 1 || c.Rate < 0:
		return bad("rotation", "a share of 0 to 100 percent and a rate that is not negative")
	case len(c.Scope.Devices) > MaxDevices:
		return bad("devices", "at most 1,000; give the others a label")
	}
	return nil
}

// Start begins a campaign: from now on the devices of the canary share are told. What
// the campaign says of its state, its key and its beginning is set here.
func (b *Book) Start(ctx context.Context, actor, why string, c Campaign) (*Campaign, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	var key [16]byte
	_, _ = rand.Read(key[:]) // never fails: it aborts the program instead
	c.State, c.Began, c.Key, c.Released, c.revision = Running, inventory.UTC(b.now()), hex.EncodeToString(key[:]), c.Canary, 0
	slices.Sort(c.Scope.Devices)
	err := b.store.Read(ctx, func(in inventory.Reader) error {
		c.From = in.Revision()
		_, err := newMatcher(in, &c)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &c, b.put(ctx, actor, "rotation.start", why, &c)
}

func (b *Book) put(ctx context.Context, actor, action, why string, c *Campaign) error {
	body, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encoding campaign: %w", err)
	}
	now := inventory.UTC(b.now())
	return b.store.Apply(ctx, inventory.Change{
		Event: inventory.Event{Time: now, Actor: actor, Action: action, Reason: why, Objects: []inventory.Object{{
			Kind: "rotation", ID: c.Name, Note: fmt.Sprintf("%s, %.1f %% released", c.State, 100*c.Released),
		}}},
		Works: []inventory.Work{{Kind: workKind, Name: c.Name, Body: body, Updated: now, Revision: c.revision}},
	})
}

func decode(w inventory.Work) (*Campaign, error) {
	c := &Campaign{revision: w.Revision}
	if err := json.Unmarshal(w.Body, c); err != nil {
		return nil, fmt.Errorf("reading campaign %s: %w", w.Name, err)
	}
	return c, nil
}

// Get returns a campaign. The error wraps [inventory.ErrNotFound].
func (b *Book) Get(ctx context.Context, name string) (c *Campaign, err error) {
	err = b.store.Read(ctx, func(in inventory.Reader) error {
		w, err := in.Work(workKind, name)
		if err != nil {
			return err
		}
		c, err = decode(w)
		return err
	})
	return c, err
}

// List returns all campaigns, by name.
func (b *Book) List(ctx context.Context) (list []*Campaign, err error) {
	err = b.store.Read(ctx, func(in inventory.Reader) error {
		list, err = campaigns(in)
		return err
	})
	return list, err
}

func campaigns(in inventory.Reader) (list []*Campaign, err error) {
	for w, err := range in.Works(workKind) {
		if err != nil {
			return nil, err
		}
		c, err := decode(w)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// turn changes a campaign that is not over.
func (b *Book) turn(ctx context.Context, actor, action, why, name string, change func(*Campaign) error) (*Campaign, error) {
	for tries := 0; ; tries++ {
		c, err := b.Get(ctx, name)
		if err != nil {
			return nil, err
		}
		if c.State == Aborted || c.State == Ended {
			return c, fmt.Errorf("rotation %s is %s: %w", name, c.State, ErrOver)
		}
		if err := change(c); err != nil {
			return c, err
		}
		err = b.put(ctx, actor, action, why, c)
		if !errors.Is(err, inventory.ErrConflict) || tries == 8 {
			return c, err
		}
	}
}

// Set pauses, resumes or aborts a campaign: state is Paused, Running or Aborted.
func (b *Book) Set(ctx context.Context, actor, why, name string, state State) (*Campaign, error) {
	return b.turn(ctx, actor, "rotation."+string(state), why, name, func(c *Campaign) error {
		c.State = state
		return nil
	})
}

// Advance releases the next wave. Unless force is set the error wraps [ErrNotReady] if
// too few of the released devices are done, or any has reported a fault.
func (b *Book) Advance(ctx context.Context, actor, why, name string, force bool) (*Campaign, error) {
	return b.turn(ctx, actor, "rotation.advance", why, name, func(c *Campaign) error {
		s, err := b.Standing(ctx, c)
		if err != nil {
			return err
		}
		if !force {
			if err := s.ready(c); err != nil {
				return err
			}
		}
		c.Released = min(1, c.Released+c.Wave)
		return nil
	})
}

// ready reports why the next wave has to wait.
func (s *Standing) ready(c *Campaign) error {
	if s.Faults > 0 {
		return fmt.Errorf("%w: %d devices have reported that they cannot work with what they got", ErrNotReady, s.Faults)
	}
	if float64(s.Done) < c.Need*float64(s.Released) {
		return fmt.Errorf("%w: %d of %d devices are done, want %.0f %%", ErrNotReady, s.Done, s.Released, 100*c.Need)
	}
	return nil
}

// End closes a campaign. With endOld the old credentials of those devices end that have
// new ones and were not seen to use them: that is the explicit decision for those that
// never came. It returns how many credentials have ended.
func (b *Book) End(ctx context.Context, actor, why, name string, endOld bool) (*Campaign, int, error) {
	ended := 0
	c, err := b.turn(ctx, actor, "rotation.end", why, name, func(c *Campaign) error {
		c.State = Ended
		if !endOld {
			return nil
		}
		var ids []inventory.DeviceID
		err := b.each(ctx, c, func(d *enroll.Holding, step Step, _ bool) error {
			if step == Issued {
				ids = append(ids, d.Device.ID)
			}
			return nil
		})
		if err != nil || len(ids) == 0 {
			return err
		}
		ended, err = b.registrar.Seen(ctx, actor, "end of rotation "+name+": "+why, ids...)
		return err
	})
	return c, ended, err
}

// place is where a device stands in the order of a campaign, from 0 to 1.
func (c *Campaign) place(id inventory.DeviceID) float64 {
	h := sha256.Sum256([]byte("imprint rotation " + c.Key + " " + id.Canonical()))
	return float64(binary.BigEndian.Uint64(h[:8])>>11) / (1 << 53)
}
