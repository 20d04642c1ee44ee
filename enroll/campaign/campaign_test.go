package campaign_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/campaign"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
	"github.com/imprint-iot/imprint/inventory"
)

const many = 40

// A thing is a device with the credentials that it holds.
type thing struct {
	id       string
	key      crypto.Signer
	chain    []byte
	password string
}

type field struct {
	*servertest.Fleet
	t      *testing.T
	book   *campaign.Book
	things []*thing
	later  atomic.Int64 // how far the clock has been put forward, ns
}

// newField makes a fleet with devices that have a certificate and a password.
func newField(t *testing.T, o servertest.Options) *field {
	t.Helper()
	f := &field{t: t}
	o.Now = func() time.Time { return time.Now().Add(time.Duration(f.later.Load())) }
	f.Fleet = servertest.Start(t, o)
	f.book = campaign.NewBook(f.Registrar, f.Store, o.Now)
	for i := range many {
		d := &thing{id: fmt.Sprintf("dev-%02d", i), key: catest.Key(t, ca.P256)}
		token := f.Token(inventory.Token{Devices: []inventory.DeviceID{inventory.DeviceID(d.id)}, Profile: "default"})
		a := f.Do(servertest.Call{Path: api.PathEnroll, Token: token, Body: f.body(d, d.key, true)})
		f.take(d, d.key, a)
		f.things = append(f.things, d)
	}
	return f
}

func (f *field) body(d *thing, key crypto.Signer, password bool) []byte {
	return fmt.Appendf(nil, `{"device":%q,"csr":%q,"password":%t}`, d.id, servertest.CSR(f.t, d.id, key), password)
}

// take keeps what the server has sent.
func (f *field) take(d *thing, key crypto.Signer, a servertest.Answer) {
	f.t.Helper()
	if a.Status != 200 {
		f.t.Fatalf("%s: %d %s", d.id, a.Status, a.Body)
	}
	var got api.EnrollResponse
	if err := json.Unmarshal(a.Body, &got); err != nil {
		f.t.Fatal(err)
	}
	d.key, d.chain = key, []byte(got.Chain)
	if got.Password != "" {
		d.password = got.Password
	}
}

// renew does what orders say, some time after they were given, and uses the result
// from then on.
func (f *field) renew(d *thing, password bool) {
	f.t.Helper()
	f.later.Add(int64(2 * time.Second))
	next := catest.Key(f.t, ca.P256)
	f.take(d, next, f.Do(servertest.Call{Path: api.PathRenew, Pair: servertest.Pair(f.t, d.chain, d.key), Body: f.body(d, next, password)}))
}

// report says that the device works with what it has.
func (f *field) report(d *thing, works bool) {
	f.t.Helper()
	a := f.Do(servertest.Call{Path: api.PathEnrollStatus, Pair: servertest.Pair(f.t, d.chain, d.key), Body: fmt.Appendf(nil, `{"version":1,"status":%t,"password":%t}`, works, works)})
	if a.Status != 200 {
		f.t.Fatalf("report of %s: %d %s", d.id, a.Status, a.Body)
	}
}

func (f *field) standing(c *campaign.Campaign) campaign.Standing {
	f.t.Helper()
	s, err := f.book.Standing(f.t.Context(), c)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// told returns the devices that have orders now.
func (f *field) told() (list []*thing) {
	f.t.Helper()
	for _, d := range f.things {
		o, err := f.book.OrdersFor(f.t.Context(), inventory.DeviceID(d.id))
		if err != nil {
			f.t.Fatal(err)
		}
		if o.Campaign != "" {
			list = append(list, d)
		}
	}
	return list
}

// atBroker reports whether a broker that is up to date lets the device in with its
// password.
func (f *field) atBroker(d *thing) bool {
	f.t.Helper()
	rec, err := f.Device(f.t.Context(), inventory.DeviceID(d.id))
	if err != nil {
		f.t.Fatal(err)
	}
	p := enroll.PasswordForBrokers(rec.Credentials)
	if p == nil {
		return false
	}
	v, ok := p.Verifier(inventory.SHA256Suffix)
	sum := sha256.Sum256(append([]byte(d.password), v.Salt...))
	return ok && bytes.Equal(sum[:], v.Hash)
}

// A rotation of certificates and passwords from the first canary to the last device
// that never comes: waves wait for each other, a broker takes the old password until
// the device holds the new one, and old credentials end on evidence or by decision.
func TestCampaign(t *testing.T) {
	f := newField(t, servertest.Options{})
	ctx := t.Context()
	c, err := f.book.Start(ctx, "tester", "", campaign.Campaign{Name: "spring", Certificate: true, Password: true, Canary: 0.1, Wave: 0.5, Need: 0.9})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.book.Start(ctx, "tester", "", campaign.Campaign{Name: "spring", Certificate: true, Canary: 1, Wave: 1}); !errors.Is(err, inventory.ErrConflict) {
		t.Errorf("the same name again: %v", err)
	}
	canaries := f.told()
	if n := len(canaries); n == 0 || n > many/3 {
		t.Fatalf("%d canaries of %d", n, many)
	}
	if _, err := f.book.Advance(ctx, "tester", "", "spring", false); !errors.Is(err, campaign.ErrNotReady) {
		t.Errorf("advance before any canary is done: %v", err)
	}
	for _, d := range canaries {
		old := d.password
		f.renew(d, true)
		if d.password == old {
			t.Errorf("%s got no other password", d.id)
		}
		if held := d.password; f.atBroker(d) {
			t.Errorf("brokers take the new password of %s before it is known to hold it", d.id)
		} else if d.password = old; !f.atBroker(d) {
			t.Errorf("brokers do not take the old password of %s any more", d.id)
		} else {
			d.password = held
		}
	}
	if s := f.standing(c); s.Issued != len(canaries) || s.Done != 0 {
		t.Errorf("standing %+v", s)
	}
	for _, d := range canaries {
		f.report(d, true)
		if !f.atBroker(d) {
			t.Errorf("brokers do not take the new password of %s", d.id)
		}
	}
	if len(f.told()) != 0 {
		t.Error("a canary that is done is told again")
	}
	for range 2 {
		if c, err = f.book.Advance(ctx, "tester", "", "spring", c.Released > 0.5); err != nil {
			t.Fatal(err)
		}
	}
	rest := f.told()
	if len(rest)+len(canaries) != many {
		t.Errorf("%d and %d devices are told, want %d", len(canaries), len(rest), many)
	}
	never, faulty := rest[0], rest[1]
	for _, d := range rest[1:] {
		f.renew(d, true)
		if d != faulty {
			f.report(d, true)
		}
	}
	f.report(faulty, false)
	if s := f.standing(c); s.Done != many-2 || s.Faults != 1 || !slices.Contains(s.Late, inventory.DeviceID(never.id)) {
		t.Errorf("standing %+v", s)
	}
	if _, err := f.book.Advance(ctx, "tester", "", "spring", false); !errors.Is(err, campaign.ErrNotReady) {
		t.Errorf("advance with a fault: %v", err)
	}
	if _, n, err := f.book.End(ctx, "tester", "enough", "spring", true); err != nil || n != 2 {
		t.Errorf("the decision ends %d credentials, %v: want the certificate and the password of %s", n, err, faulty.id)
	}
	if !f.atBroker(never) {
		t.Error("a device that never came has lost its password")
	}
	if _, err := f.book.Set(ctx, "tester", "", "spring", campaign.Running); !errors.Is(err, campaign.ErrOver) {
		t.Errorf("a campaign that has ended goes on: %v", err)
	}
}

// A campaign means whom it says, and no more.
func TestScope(t *testing.T) {
	f := newField(t, servertest.Options{})
	for _, tt := range []struct {
		name string
		c    campaign.Campaign
		want int
	}{
		{"all", campaign.Campaign{}, many},
		{"a profile", campaign.Campaign{Scope: campaign.Scope{Profile: "default"}}, many},
		{"another", campaign.Campaign{Scope: campaign.Scope{Profile: "quiet"}}, 0},
		{"a group", campaign.Campaign{Scope: campaign.Scope{Group: "hall"}}, 0},
		{"two devices", campaign.Campaign{Scope: campaign.Scope{Devices: []inventory.DeviceID{"dev-01", "DEV-02", "unknown"}}}, 2},
		{"an issuer", campaign.Campaign{Scope: campaign.Scope{Issuer: "device-1"}}, many},
	} {
		tt.c.Name, tt.c.Certificate, tt.c.Canary, tt.c.Wave = "x", true, 0.2, 0.3
		p, err := f.book.Plan(t.Context(), tt.c)
		sum := 0
		for _, n := range p.Waves {
			sum += n
		}
		if err != nil || p.Devices != tt.want || p.Certificates != tt.want || p.Passwords != 0 || sum != tt.want || len(p.Waves) != 4 {
			t.Errorf("%s: %+v, %v", tt.name, p, err)
		}
	}
	bad := campaign.Campaign{Name: "x", Certificate: true, Canary: 1, Wave: 1, Scope: campaign.Scope{Issuer: "device-9"}}
	if _, err := f.book.Start(t.Context(), "tester", "", bad); err == nil || !strings.Contains(err.Error(), "issuer") {
		t.Errorf("an unknown issuer: %v", err)
	}
}

// A rate holds, and a pause holds everything.
func TestRateAndPause(t *testing.T) {
	f := newField(t, servertest.Options{})
	ctx := t.Context()
	if _, err := f.book.Start(ctx, "tester", "", campaign.Campaign{Name: "slow", Certificate: true, Canary: 1, Wave: 1, Rate: 3}); err != nil {
		t.Fatal(err)
	}
	first := f.told()
	if len(first) != 3 && len(first) != 6 { // a minute may have ended in between
		t.Errorf("%d devices are told in a minute, want 3", len(first))
	}
	if _, err := f.book.Set(ctx, "tester", "", "slow", campaign.Paused); err != nil {
		t.Fatal(err)
	}
	if n := len(f.told()); n != 0 {
		t.Errorf("%d devices are told in a pause", n)
	}
}
