package storetest

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"

	"github.com/google/go-cmp/cmp"
)

func testEmpty(t *testing.T, f Factory) {
	s := f.New(t)
	read(t, s, func(r inventory.Reader) error {
		if n := r.Revision(); n != 0 {
			t.Errorf("revision %d", n)
		}
		if _, err := r.Device("dev-1"); !errors.Is(err, inventory.ErrNotFound) {
			t.Errorf("device: %v", err)
		}
		if use, err := r.Key(hash("no key")); use != (inventory.KeyUse{}) || err != nil {
			t.Errorf("key: %v, %v", use, err)
		}
		if all, err := collect(r.Devices(inventory.Query{})); len(all) != 0 || err != nil {
			t.Errorf("devices: %v, %v", all, err)
		}
		if all, err := collect(r.Credentials(inventory.CredentialQuery{All: true})); len(all) != 0 || err != nil {
			t.Errorf("credentials: %v, %v", all, err)
		}
		if all, err := collect(r.Revocations(keyID("a"))); len(all) != 0 || err != nil {
			t.Errorf("revocations: %v, %v", all, err)
		}
		if all, err := collect(r.Profiles()); len(all) != 0 || err != nil {
			t.Errorf("profiles: %v, %v", all, err)
		}
		if all, err := collect(r.Issuers()); len(all) != 0 || err != nil {
			t.Errorf("issuers: %v, %v", all, err)
		}
		if _, err := r.Token(hash("no token")); !errors.Is(err, inventory.ErrNotFound) {
			t.Errorf("token: %v", err)
		}
		if all, err := collect(r.Tokens("")); len(all) != 0 || err != nil {
			t.Errorf("tokens: %v, %v", all, err)
		}
		if all, err := collect(r.Tokens("0123456789abcdef")); len(all) != 0 || err != nil {
			t.Errorf("tokens by ID: %v, %v", all, err)
		}
		if _, err := r.Approval(hash("no key")); !errors.Is(err, inventory.ErrNotFound) {
			t.Errorf("approval: %v", err)
		}
		if all, err := collect(r.Approvals()); len(all) != 0 || err != nil {
			t.Errorf("approvals: %v, %v", all, err)
		}
		if n, _, err := inventory.VerifyChain(r.Events(0)); n != 0 || err != nil {
			t.Errorf("events: %d, %v", n, err)
		}
		return nil
	})
	if err := s.Read(t.Context(), func(r inventory.Reader) error {
		_, err := collect(r.Credentials(inventory.CredentialQuery{State: inventory.CredentialActive}))
		return err
	}); err == nil {
		t.Error("a credential query without an index is answered")
	}
}

// full is a change that has one of everything, with every field set.
func full() inventory.Change {
	d := device("dev-1")
	d.HardwareSerial, d.Group, d.State = `SN "1"; é`, "hall-1", inventory.Active
	d.Labels = inventory.NewLabels(map[string]string{"floor": "2", "note": "", "a": "ü"})
	server := inventory.Device{ID: "Broker-1", Kind: inventory.Server, Hosts: []string{"mqtt.example.com", "192.0.2.1"}, State: inventory.Registered, Created: day, Updated: day}
	cert := certificate("dev-1", 1, "1", "1")
	cert.ReplacedBy, cert.FirstSeen = 2, day.Add(time.Minute)
	ca := issuer("a")
	ca.CRLNumber, ca.CRLThisUpdate, ca.CRLNextUpdate, ca.CRLRevision = 7, day, day.AddDate(0, 0, 7), 1
	return inventory.Change{
		Event:       inventory.Event{Time: day, Actor: "tester", Action: "test.full", Reason: "because"},
		Devices:     []inventory.Device{d, server},
		Credentials: []inventory.Credential{cert, password("dev-1", 1)},
		Profiles: []inventory.Profile{{
			Name: "sensor", Certificate: []byte(`{"days":365}`), Grace: 36 * time.Hour,
			Password: inventory.PasswordRule{Length: 40, Schemes: []inventory.Scheme{inventory.Bcrypt}},
			Policy:   topic.Policy{Rules: []topic.Rule{{Action: topic.Publish, Filter: "fleet/{id}/state"}, {Action: topic.Receive, Filter: "fleet/all/#", Shared: true}}},
		}},
		Issuers:     []inventory.Issuer{ca},
		BlockedKeys: []inventory.SPKI{hash("blocked")},
		Revocations: []inventory.Revocation{{Issuer: keyID("a"), Serial: inventory.Serial{15: 9}, Reason: inventory.KeyCompromise, Time: day, NotAfter: day.AddDate(1, 0, 0)}},
		Tokens:      []inventory.Token{fullToken()},
		Approvals: []inventory.Approval{{
			Key: hash("approved"), Device: "dev-1", State: inventory.ApprovalGranted, Asked: "token 01", Created: day, Decided: day.Add(time.Minute),
		}},
		Works: []inventory.Work{{Kind: "node", Name: "mqtt-1", Body: []byte(`{"revision":1}`), Updated: day}},
	}
}

// fullToken is a token with every field set but what only becomes of it.
func fullToken() inventory.Token {
	x := token("full", 3)
	x.Role, x.Devices, x.Prefix, x.Profile, x.Group = inventory.StationRole, []inventory.DeviceID{"dev-1", "dev-2"}, "dev-", "sensor", "hall-1"
	x.Station, x.PerMinute, x.Approve, x.Replace = "line-1", 7, true, true
	x.Networks = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	return x
}

// checkFull checks that s holds full() and nothing else.
func checkFull(t *testing.T, s inventory.Store) {
	t.Helper()
	want := full()
	for i := range want.Devices {
		want.Devices[i].Revision = 1
	}
	for i := range want.Credentials {
		want.Credentials[i].Revision = 1
	}
	want.Profiles[0].Revision, want.Issuers[0].Revision = 1, 1
	want.Tokens[0].Revision, want.Approvals[0].Revision, want.Works[0].Revision = 1, 1, 1
	read(t, s, func(r inventory.Reader) error {
		equipment, err := collect(r.Devices(inventory.Query{}))
		same(t, "devices", equipment, want.Devices[:1], err)
		servers, err := collect(r.Devices(inventory.Query{Kind: inventory.Server}))
		same(t, "servers", servers, want.Devices[1:], err)
		creds, err := collect(r.Credentials(inventory.CredentialQuery{Device: "DEV-1"}))
		same(t, "credentials", creds, want.Credentials, err)
		profiles, err := collect(r.Profiles())
		same(t, "profiles", profiles, want.Profiles, err)
		issuers, err := collect(r.Issuers())
		same(t, "issuers", issuers, want.Issuers, err)
		revoked, err := collect(r.Revocations(keyID("a")))
		same(t, "revocations", revoked, want.Revocations, err)
		use, err := r.Key(want.Credentials[0].Certificate.SPKI)
		same(t, "key", use, inventory.KeyUse{Device: "dev-1"}, err)
		use, err = r.Key(hash("blocked"))
		same(t, "blocked key", use, inventory.KeyUse{Blocked: true}, err)
		tokens, err := collect(r.Tokens(""))
		same(t, "tokens", tokens, want.Tokens, err)
		tokens, err = collect(r.Tokens(want.Tokens[0].ID()))
		same(t, "tokens by ID", tokens, want.Tokens, err)
		one, err := r.Token(want.Tokens[0].Hash)
		same(t, "token", one, want.Tokens[0], err)
		approvals, err := collect(r.Approvals())
		same(t, "approvals", approvals, want.Approvals, err)
		approval, err := r.Approval(want.Approvals[0].Key)
		same(t, "approval", approval, want.Approvals[0], err)
		works, err := collect(r.Works(""))
		same(t, "works", works, want.Works, err)
		work, err := r.Work("node", "mqtt-1")
		same(t, "work", work, want.Works[0], err)

		events, err := collect(r.Events(1))
		digest, derr := want.Digest()
		same(t, "digest", events[0].Digest, digest, derr)
		sealed := want.Event
		sealed.Digest = digest
		sealed.Seal(0, inventory.Hash{})
		same(t, "events", events, []inventory.Event{sealed}, err)
		return nil
	})
}

func same[T any](t *testing.T, what string, got, want T, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	} else if diff := cmp.Diff(want, got, prefixes()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// prefixes lets networks be compared.
func prefixes() cmp.Option { return cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }) }

// testRecords checks that every field comes back, and that each record can be
// changed as it came.
func testRecords(t *testing.T, f Factory) {
	s := f.New(t)
	apply(t, s, full())
	checkFull(t, s)

	var c inventory.Change
	read(t, s, func(r inventory.Reader) error {
		var errs [4]error
		c.Devices, errs[0] = collect(r.Devices(inventory.Query{}))
		c.Credentials, errs[1] = collect(r.Credentials(inventory.CredentialQuery{All: true}))
		c.Profiles, errs[2] = collect(r.Profiles())
		c.Issuers, errs[3] = collect(r.Issuers())
		return errors.Join(errs[:]...)
	})
	c.Devices[0].Group = "hall-2"
	c.Profiles[0].Grace = time.Hour
	c.Issuers[0].CRLNumber++
	apply(t, s, c)
	read(t, s, func(r inventory.Reader) error {
		d, err := r.Device("dev-1")
		if d.Group != "hall-2" || d.Revision != 2 {
			t.Errorf("device is in group %q at revision %d", d.Group, d.Revision)
		}
		if moved, err := collect(r.Devices(inventory.Query{Group: "hall-1"})); len(moved) != 0 || err != nil {
			t.Errorf("the device is still found in its old group: %v, %v", moved, err)
		}
		return err
	})
}

func testReopen(t *testing.T, f Factory) {
	s := f.New(t)
	apply(t, s, full())
	checkFull(t, f.Reopen(t, s))
}

func testChangeIsCopied(t *testing.T, f Factory) {
	s := f.New(t)
	c := full()
	apply(t, s, c)
	if diff := cmp.Diff(full(), c, prefixes()); diff != "" {
		t.Errorf("Apply changed its argument (-want +got):\n%s", diff)
	}
	// What is given or read may be scribbled on.
	clear(c.Credentials[0].Certificate.DER)
	c.Devices[0].Labels[0].Value = "changed"
	c.Tokens[0].Devices[0], c.Tokens[0].Networks[0] = "changed", netip.Prefix{}
	for _, x := range credentials(t, s, inventory.CredentialQuery{All: true}) {
		if x.Certificate != nil {
			clear(x.Certificate.DER)
		}
	}
	checkFull(t, s)
}

func testInvalid(t *testing.T, f Factory) {
	s := f.New(t)
	bad := device("dev.1")
	broken := certificate("dev-1", 1, "1", "1")
	broken.Generation = 0
	fraction := device("dev-1")
	fraction.Created = day.Add(time.Millisecond)
	for name, c := range map[string]inventory.Change{
		"device id":  {Event: event("x.y"), Devices: []inventory.Device{bad}},
		"credential": {Event: event("x.y"), Devices: []inventory.Device{device("dev-1")}, Credentials: []inventory.Credential{broken}},
		"profile":    {Event: event("x.y"), Profiles: []inventory.Profile{{Name: "a b"}}},
		"no event":   {Devices: []inventory.Device{device("dev-1")}},
		"token":      {Event: event("x.y"), Tokens: []inventory.Token{token("no limit", 0)}},
		"work":       {Event: event("x.y"), Works: []inventory.Work{{Kind: "node", Name: "n", Updated: day}}},
		"approval":   {Event: event("x.y"), Approvals: []inventory.Approval{{Key: hash("key"), Device: "dev-1"}}},
		"fraction":   {Event: event("x.y"), Devices: []inventory.Device{fraction}},
	} {
		err := s.Apply(t.Context(), c)
		if _, ok := errors.AsType[*inventory.InvalidError](err); !ok {
			t.Errorf("%s: got %v, want an InvalidError", name, err)
		}
	}
	if n := revision(t, s); n != 0 {
		t.Errorf("revision %d after nothing but invalid changes", n)
	}
}
