package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// A refusal is a change to a store that holds full(), and why it is refused.
type refusal struct {
	name   string
	want   inventory.Conflict
	change inventory.Change
}

// refusals lists changes that do not fit full().
func refusals() []refusal {
	have := full()
	dev, cred, pass, prof, iss := have.Devices[0], have.Credentials[0], have.Credentials[1], have.Profiles[0], have.Issuers[0]
	stale := func(revision uint64) []inventory.Change {
		dev, cred, prof, iss := dev, cred, prof, iss
		dev.Revision, cred.Revision, prof.Revision, iss.Revision = revision, revision, revision, revision
		return []inventory.Change{
			{Devices: []inventory.Device{dev}}, {Credentials: []inventory.Credential{cred}},
			{Profiles: []inventory.Profile{prof}}, {Issuers: []inventory.Issuer{iss}},
		}
	}
	var all []refusal
	for i, name := range []string{"device", "credential", "profile", "issuer"} {
		all = append(all,
			refusal{name + " exists", inventory.Exists, stale(0)[i]},
			refusal{name + " stale", inventory.Stale, stale(2)[i]})
	}
	one := func(c inventory.Credential) inventory.Change {
		return inventory.Change{Credentials: []inventory.Credential{c}}
	}
	gone := device("dev-9")
	gone.Revision = 1
	renamed, older, kind := dev, dev, dev
	renamed.ID, renamed.Revision = "DEV-1", 1
	older.Created, older.Revision = day.Add(-time.Hour), 1
	kind.Kind, kind.Revision = inventory.Server, 1
	missing := certificate("dev-1", 2, "2", "2")
	missing.Revision = 1
	other := cred
	other.Revision, other.Certificate = 1, certificate("dev-1", 1, "other", "1").Certificate
	forged := cred
	forged.Revision = 1
	fields := *cred.Certificate
	fields.SPKI = hash("another key")
	forged.Certificate = &fields
	cased := password("DEV-1", 2)
	lower, reused := iss, iss
	lower.Revision, lower.CRLNumber = 1, 6
	reused.Revision, reused.CRLThisUpdate = 1, day.Add(time.Second)
	rekeyed := iss
	rekeyed.Revision, rekeyed.SPKI = 1, hash("another key")
	all = append(all, tokenRefusals()...)
	return append(all,
		refusal{"device is gone", inventory.Stale, inventory.Change{Devices: []inventory.Device{gone}}},
		refusal{"device renamed", inventory.BadTransition, inventory.Change{Devices: []inventory.Device{renamed}}},
		refusal{"device created before", inventory.BadTransition, inventory.Change{Devices: []inventory.Device{older}}},
		refusal{"device becomes a server", inventory.BadTransition, inventory.Change{Devices: []inventory.Device{kind}}},
		refusal{"credential is gone", inventory.Stale, one(missing)},
		refusal{"credential without device", inventory.BadTransition, one(password("dev-9", 1))},
		refusal{"credential in another case", inventory.BadTransition, one(cased)},
		refusal{"another certificate", inventory.BadTransition, one(other)},
		refusal{"another key in the certificate", inventory.BadTransition, one(forged)},
		refusal{"password exists", inventory.Exists, one(pass)},
		refusal{"key of another device", inventory.KeyTaken, inventory.Change{
			Devices: []inventory.Device{device("dev-2")}, Credentials: []inventory.Credential{certificate("dev-2", 1, "2", "1")}}},
		refusal{"key blocked", inventory.KeyBlocked, one(blocked("dev-1", 2))},
		refusal{"serial number used", inventory.SerialTaken, one(certificate("dev-1", 2, "1", "2"))},
		refusal{"CRL number lower", inventory.BadTransition, inventory.Change{Issuers: []inventory.Issuer{lower}}},
		refusal{"CRL number used twice", inventory.BadTransition, inventory.Change{Issuers: []inventory.Issuer{reused}}},
		refusal{"issuer rekeyed", inventory.BadTransition, inventory.Change{Issuers: []inventory.Issuer{rekeyed}}},
	)
}

func blocked(id string, generation uint32) inventory.Credential {
	c := certificate(id, generation, "blocked", "")
	c.Certificate.SPKI = hash("blocked")
	return c
}

func testRefusals(t *testing.T, f Factory) {
	s := f.New(t)
	apply(t, s, full())
	for _, r := range refusals() {
		t.Run(r.name, func(t *testing.T) { refuse(t, s, r.change, r.want) })
	}
	checkFull(t, s)
}

// testRefusedLeavesNothing puts a good record of every kind in front of the bad
// one.
func testRefusedLeavesNothing(t *testing.T, f Factory) {
	s := f.New(t)
	apply(t, s, full())
	for _, r := range refusals() {
		c := r.change
		c.Devices = append([]inventory.Device{device("new-1")}, c.Devices...)
		c.Credentials = append([]inventory.Credential{certificate("new-1", 1, "new", "new"), password("new-1", 1)}, c.Credentials...)
		c.Profiles = append([]inventory.Profile{{Name: "new"}}, c.Profiles...)
		c.Issuers = append([]inventory.Issuer{issuer("new")}, c.Issuers...)
		c.BlockedKeys = []inventory.SPKI{hash("new blocked")}
		c.Tokens = append([]inventory.Token{token("new", 1)}, c.Tokens...)
		if len(r.change.Tokens) == 0 { // which may be the same one
			c.TokenUses = append([]inventory.TokenUse{{Token: fullToken().Hash}}, c.TokenUses...)
		}
		c.Approvals = append([]inventory.Approval{{Key: hash("new"), Device: "new-1", State: inventory.ApprovalPending, Created: day}}, c.Approvals...)
		c.Works = append([]inventory.Work{{Kind: "new", Name: "new", Body: []byte("{}"), Updated: day}}, c.Works...)
		refuse(t, s, c, r.want)
	}
	checkFull(t, s)
	checkFull(t, f.Reopen(t, s))
}

// testTwice checks that a change cannot name a record twice.
func testTwice(t *testing.T, f Factory) {
	s := f.New(t)
	for name, c := range map[string]inventory.Change{
		"device":     {Devices: []inventory.Device{device("dev-1"), device("Dev-1")}},
		"credential": {Devices: []inventory.Device{device("dev-1")}, Credentials: []inventory.Credential{password("dev-1", 1), password("dev-1", 1)}},
		"profile":    {Profiles: []inventory.Profile{{Name: "a"}, {Name: "a"}}},
		"issuer":     {Issuers: []inventory.Issuer{issuer("a"), issuer("a")}},
		"serial": {Devices: []inventory.Device{device("dev-1")},
			Credentials: []inventory.Credential{certificate("dev-1", 1, "1", "1"), certificate("dev-1", 2, "1", "2")}},
		"key": {Devices: []inventory.Device{device("dev-1"), device("dev-2")},
			Credentials: []inventory.Credential{certificate("dev-1", 1, "1", "1"), certificate("dev-2", 1, "2", "1")}},
	} {
		c.Event = event("test.twice")
		if err := s.Apply(t.Context(), c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if n := revision(t, s); n != 0 {
		t.Errorf("revision %d", n)
	}
}

func testAnyCase(t *testing.T, f Factory) {
	s := f.New(t)
	add(t, s, device("Dev-1"))
	for _, id := range []string{"dev-1", "DEV-1", "dEV-1"} {
		refuse(t, s, inventory.Change{Devices: []inventory.Device{device(id)}}, inventory.Exists)
		if d := mustDevice(t, s, id); d.ID != "Dev-1" {
			t.Errorf("device %s is called %s", id, d.ID)
		}
	}
}

func testKeys(t *testing.T, f Factory) {
	s := f.New(t)
	add(t, s, device("dev-1"), device("dev-2"))
	apply(t, s, inventory.Change{Credentials: []inventory.Credential{certificate("dev-1", 1, "1", "k")}})
	// A device renews with its own key, and the key stays its own for ever.
	apply(t, s, inventory.Change{Credentials: []inventory.Credential{certificate("dev-1", 2, "2", "k")}})
	for _, c := range credentials(t, s, inventory.CredentialQuery{SPKI: hash("key k")}) {
		apply(t, s, inventory.Change{Credentials: []inventory.Credential{revoke(c, inventory.Superseded)}})
	}
	refuse(t, s, inventory.Change{Credentials: []inventory.Credential{certificate("dev-2", 1, "3", "k")}}, inventory.KeyTaken)
	apply(t, s, inventory.Change{BlockedKeys: []inventory.SPKI{hash("key k"), hash("key l")}})
	apply(t, s, inventory.Change{BlockedKeys: []inventory.SPKI{hash("key k")}})
	refuse(t, s, inventory.Change{Credentials: []inventory.Credential{certificate("dev-1", 3, "4", "k")}}, inventory.KeyBlocked)
	refuse(t, s, inventory.Change{Credentials: []inventory.Credential{certificate("dev-2", 1, "5", "l")}}, inventory.KeyBlocked)
	read(t, s, func(r inventory.Reader) error {
		use, err := r.Key(hash("key k"))
		if want := (inventory.KeyUse{Device: "dev-1", Blocked: true}); use != want {
			t.Errorf("key: %v, want %v", use, want)
		}
		return err
	})
	if n := len(credentials(t, s, inventory.CredentialQuery{SPKI: hash("key k")})); n != 2 {
		t.Errorf("%d credentials of the key, want 2", n)
	}
}

func testSerials(t *testing.T, f Factory) {
	s := f.New(t)
	add(t, s, device("dev-1"), device("dev-2"))
	first := certificate("dev-1", 1, "1", "1")
	apply(t, s, inventory.Change{Credentials: []inventory.Credential{revoke(first, inventory.Superseded)}})
	refuse(t, s, inventory.Change{Credentials: []inventory.Credential{certificate("dev-2", 1, "1", "2")}}, inventory.SerialTaken)
	// Another issuer may use the number.
	other := certificate("dev-2", 1, "1", "2")
	other.Certificate.Issuer = keyID("b")
	apply(t, s, inventory.Change{Credentials: []inventory.Credential{other}})
	if n := len(credentials(t, s, inventory.CredentialQuery{Serial: first.Certificate.Serial})); n != 2 {
		t.Errorf("%d credentials have the serial number, want 2", n)
	}
	// Nor may a number come back that is only known from a CRL.
	foreign := inventory.Revocation{Issuer: keyID("a"), Serial: certificate("", 1, "9", "").Certificate.Serial, Time: day, NotAfter: day}
	apply(t, s, inventory.Change{Revocations: []inventory.Revocation{foreign}})
	refuse(t, s, inventory.Change{Credentials: []inventory.Credential{certificate("dev-2", 2, "9", "9")}}, inventory.SerialTaken)
	known := inventory.Revocation{Issuer: keyID("b"), Serial: other.Certificate.Serial, Time: day, NotAfter: day}
	refuse(t, s, inventory.Change{Revocations: []inventory.Revocation{known}}, inventory.SerialTaken)
}

func testIssuers(t *testing.T, f Factory) {
	s := f.New(t)
	pending := issuer("a")
	pending.State, pending.KeyID, pending.Certificate = inventory.IssuerPending, inventory.KeyID{}, nil
	apply(t, s, inventory.Change{Issuers: []inventory.Issuer{pending}})
	ready := issuer("a")
	ready.Revision = 1
	apply(t, s, inventory.Change{Issuers: []inventory.Issuer{ready}})
	for n := range uint64(3) {
		ready.Revision = n + 2
		ready.CRLNumber, ready.CRLThisUpdate = 10*(n+1), day.Add(time.Duration(n)*time.Hour)
		apply(t, s, inventory.Change{Issuers: []inventory.Issuer{ready}})
	}
	ready.Revision, ready.CRLNumber, ready.CRLThisUpdate = 5, 31, day
	refuse(t, s, inventory.Change{Issuers: []inventory.Issuer{ready}}, inventory.BadTransition)
}

// testRevokeTwice is the state machine of one credential: no way back, the first
// date stays, and only keyCompromise may follow another reason.
func testRevokeTwice(t *testing.T, f Factory) {
	s := f.New(t)
	add(t, s, device("dev-1"))
	c := revoke(certificate("dev-1", 1, "1", "1"), inventory.Superseded)
	apply(t, s, inventory.Change{Credentials: []inventory.Credential{c}})
	c.Revision = 2
	for _, bad := range []func(c *inventory.Credential){
		func(c *inventory.Credential) { c.State = inventory.CredentialActive },
		func(c *inventory.Credential) { c.State = inventory.CredentialHeld },
		func(c *inventory.Credential) { c.RevokedAt = day.Add(2 * time.Hour) },
		func(c *inventory.Credential) { c.Reason = inventory.Unspecified },
	} {
		next := c
		bad(&next)
		refuse(t, s, inventory.Change{Credentials: []inventory.Credential{next}}, inventory.BadTransition)
	}
	c.Reason = inventory.KeyCompromise
	apply(t, s, inventory.Change{Credentials: []inventory.Credential{c}})
	read(t, s, func(r inventory.Reader) error {
		all, err := collect(r.Revocations(keyID("a")))
		if len(all) != 1 || all[0].Reason != inventory.KeyCompromise || !all[0].Time.Equal(c.RevokedAt) {
			t.Errorf("revocations: %v", all)
		}
		return err
	})
	c.Revision, c.Reason = 3, inventory.Superseded
	refuse(t, s, inventory.Change{Credentials: []inventory.Credential{c}}, inventory.BadTransition)
}

func testHoldAndResume(t *testing.T, f Factory) {
	s := f.New(t)
	d, c := device("dev-1"), certificate("dev-1", 1, "1", "1")
	d.State = inventory.Active
	apply(t, s, inventory.Change{Devices: []inventory.Device{d}, Credentials: []inventory.Credential{c, password("dev-1", 1)}})
	move := func(revision uint64, to inventory.DeviceState, edit func(inventory.Credential) inventory.Credential) inventory.Change {
		d.State, d.Revision = to, revision
		change := inventory.Change{Devices: []inventory.Device{d}}
		for _, x := range credentials(t, s, inventory.CredentialQuery{Device: "dev-1"}) {
			change.Credentials = append(change.Credentials, edit(x))
		}
		return change
	}
	hold := func(c inventory.Credential) inventory.Credential { return revoke(c, inventory.CertificateHold) }
	resume := func(c inventory.Credential) inventory.Credential {
		c.State, c.RevokedAt, c.Reason = inventory.CredentialActive, time.Time{}, 0
		return c
	}
	apply(t, s, move(1, inventory.Suspended, hold))
	held := func() (n int) {
		read(t, s, func(r inventory.Reader) error {
			all, err := collect(r.Revocations(keyID("a")))
			n = len(all)
			return err
		})
		return n
	}
	if n := held(); n != 1 {
		t.Errorf("%d entries while the device is suspended, want 1", n)
	}
	// Credentials alone do not resume, and a suspended device gets no new one.
	refuse(t, s, inventory.Change{Credentials: move(2, inventory.Suspended, resume).Credentials}, inventory.BadTransition)
	refuse(t, s, inventory.Change{Credentials: []inventory.Credential{certificate("dev-1", 2, "2", "2")}}, inventory.BadTransition)
	apply(t, s, move(2, inventory.Active, resume))
	if n := held(); n != 0 {
		t.Errorf("%d entries after the device resumed, want none", n)
	}
	apply(t, s, move(3, inventory.Revoked, func(c inventory.Credential) inventory.Credential { return revoke(c, inventory.KeyCompromise) }))
	for _, to := range []inventory.DeviceState{inventory.Registered, inventory.Active, inventory.Suspended, inventory.Retired} {
		d.State, d.Revision = to, 4
		refuse(t, s, inventory.Change{Devices: []inventory.Device{d}}, inventory.BadTransition)
	}
}

// testNoneActive checks that no device is left without its state holding for all
// its credentials: whoever takes a device out of service without knowing of one
// is told so.
func testNoneActive(t *testing.T, f Factory) {
	s := f.New(t)
	d := device("dev-1")
	d.State = inventory.Active
	apply(t, s, inventory.Change{Devices: []inventory.Device{d}, Credentials: []inventory.Credential{certificate("dev-1", 1, "1", "1"), password("dev-1", 1)}})
	all := credentials(t, s, inventory.CredentialQuery{Device: "dev-1"})
	d.Revision = 1
	for _, to := range []inventory.DeviceState{inventory.Suspended, inventory.Revoked, inventory.Retired} {
		d.State = to
		refuse(t, s, inventory.Change{Devices: []inventory.Device{d}}, inventory.Stale)
		refuse(t, s, inventory.Change{Devices: []inventory.Device{d}, Credentials: []inventory.Credential{revoke(all[0], inventory.Superseded)}}, inventory.Stale)
	}
	c := inventory.Change{Devices: []inventory.Device{d}}
	for _, x := range all {
		c.Credentials = append(c.Credentials, revoke(x, inventory.CessationOfOperation))
	}
	apply(t, s, c)
	refuse(t, s, inventory.Change{Credentials: []inventory.Credential{password("dev-1", 2)}}, inventory.BadTransition)
}

// testRevocations checks the view that CRLs are made of: in the order of
// serials, of one issuer, with what is not in the inventory.
func testRevocations(t *testing.T, f Factory) {
	s := f.New(t)
	add(t, s, device("dev-1"))
	var c inventory.Change
	for i := range uint32(20) {
		x := certificate("dev-1", i+1, string(rune('a'+i)), "k")
		if i%2 == 0 {
			x = revoke(x, inventory.Superseded)
		}
		if i%5 == 0 {
			x.Certificate.Issuer = keyID("b")
		}
		c.Credentials = append(c.Credentials, x)
	}
	foreign := inventory.Revocation{Issuer: keyID("a"), Serial: inventory.Serial{0: 0x7f}, Reason: inventory.Superseded, Time: day, NotAfter: day}
	c.Revocations = []inventory.Revocation{foreign}
	apply(t, s, c)
	// The first date counts; the reason may become worse.
	again := foreign
	again.Time, again.Reason = day.Add(time.Hour), inventory.KeyCompromise
	apply(t, s, inventory.Change{Revocations: []inventory.Revocation{again}})
	foreign.Reason = inventory.KeyCompromise

	want := []inventory.Revocation{foreign}
	for i := range c.Credentials {
		if r, ok := c.Credentials[i].Revocation(); ok && r.Issuer == keyID("a") {
			want = append(want, r)
		}
	}
	slices.SortFunc(want, func(a, b inventory.Revocation) int { return slices.Compare(a.Serial[:], b.Serial[:]) })
	read(t, s, func(r inventory.Reader) error {
		got, err := collect(r.Revocations(keyID("a")))
		same(t, "revocations", got, want, err)
		none, err := collect(r.Revocations(keyID("c")))
		same(t, "revocations of an unknown issuer", none, nil, err)
		return nil
	})
}

func testPages(t *testing.T, f Factory) {
	s := f.New(t)
	var all []inventory.Device
	for i := range 50 {
		d := device(fmt.Sprintf("Dev-%c%d", 'A'+i%26, i))
		if i%3 == 0 {
			d.Group = "third"
		}
		if i%5 == 0 {
			d.State = inventory.Retired
		}
		all = append(all, d)
	}
	add(t, s, all...)
	for _, q := range []inventory.Query{{}, {Group: "third"}, {State: inventory.Retired}, {Profile: "sensor"}, {Group: "third", State: inventory.Retired}} {
		var whole, paged []inventory.Device
		read(t, s, func(r inventory.Reader) (err error) {
			whole, err = collect(r.Devices(q))
			return err
		})
		for q.Limit = 7; ; {
			var page []inventory.Device
			read(t, s, func(r inventory.Reader) (err error) {
				page, err = collect(r.Devices(q))
				return err
			})
			if len(page) > 7 {
				t.Fatalf("%d devices, the limit is 7", len(page))
			}
			paged = append(paged, page...)
			if len(page) == 0 {
				break
			}
			q.After = page[len(page)-1].ID
		}
		same(t, "pages", paged, whole, nil)
	}
}

var errStop = errors.New("stop")

// testStopEarly leaves sequences before their end, and one inside another.
func testStopEarly(t *testing.T, f Factory) {
	s := f.New(t)
	add(t, s, device("dev-1"), device("dev-2"), device("dev-3"))
	apply(t, s, inventory.Change{Credentials: []inventory.Credential{password("dev-1", 1), password("dev-2", 1), password("dev-3", 1)}})
	err := s.Read(t.Context(), func(r inventory.Reader) error {
		var seen []inventory.DeviceID
		for d, err := range r.Devices(inventory.Query{}) {
			if err != nil {
				return err
			}
			for c, err := range r.Credentials(inventory.CredentialQuery{Device: d.ID}) {
				if err != nil {
					return err
				}
				seen = append(seen, c.Device)
				break
			}
			if len(seen) == 2 {
				break
			}
		}
		same(t, "devices seen", seen, []inventory.DeviceID{"dev-1", "dev-2"}, nil)
		return errStop
	})
	if !errors.Is(err, errStop) {
		t.Errorf("got %v, want the error of the function", err)
	}
}
