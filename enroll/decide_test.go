package enroll_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
)

// broker is a broker that asks with a token like t.
func (b *bench) broker(t inventory.Token) enroll.Principal {
	b.t.Helper()
	p, _ := b.brokerToken(t)
	return p
}

func (b *bench) brokerToken(t inventory.Token) (enroll.Principal, inventory.TokenID) {
	b.t.Helper()
	if t.Role == 0 {
		t.Role = inventory.BrokerRole
	}
	t.Expires = b.now.AddDate(10, 0, 0)
	secret, made, err := b.MakeToken(b.t.Context(), "test", "", t)
	if err != nil {
		b.t.Fatal(err)
	}
	p, err := b.Token(b.t.Context(), secret.Reveal(), enroll.Peer{})
	if err != nil {
		b.t.Fatal(err)
	}
	return p, made.ID()
}

// ways are the answers to the three questions about one device: may it connect with its
// certificate, with its password, and publish once it is connected.
type ways struct{ certificate, password, publish bool }

func (b *bench) ways(broker enroll.Principal, e *enroll.Enrollment) ways {
	b.t.Helper()
	id := string(e.Device.ID)
	return ways{
		certificate: b.Admit(b.t.Context(), broker, enroll.Login{ClientID: id, CommonName: id, Certificate: e.Certificate.DER}).Allowed,
		password:    b.Admit(b.t.Context(), broker, enroll.Login{ClientID: id, Username: id, Password: e.Password}).Allowed,
		publish:     b.Allow(b.t.Context(), broker, enroll.Access{ClientID: id, Username: id, Verb: enroll.AccessPublish, Topic: "d/" + id + "/up"}).Allowed,
	}
}

// Only a device in service is let in, and it is the state of now that counts.
func TestDecideStates(t *testing.T) {
	b := newBench(t, "dev-1", "dev-2", "late")
	ctx := t.Context()
	broker := b.broker(inventory.Token{})
	one, two := b.enroll("dev-1"), b.enroll("dev-2")
	good, bad := ways{true, true, true}, ways{}
	revoke := func(id inventory.DeviceID) (int, error) {
		return b.Revoke(ctx, "test", "", inventory.KeyCompromise, id)
	}
	for _, tt := range []struct {
		name string
		act  func() (int, error)
		of   *enroll.Enrollment
		want ways
	}{
		{"in service", func() (int, error) { return 0, nil }, one, good},
		{"suspended", func() (int, error) { return b.Suspend(ctx, "test", "", "dev-1") }, one, bad},
		{"another one then", func() (int, error) { return 0, nil }, two, good},
		{"resumed", func() (int, error) { return b.Resume(ctx, "test", "", "dev-1") }, one, good},
		{"revoked", func() (int, error) { return revoke("dev-1") }, one, bad},
		{"retired", func() (int, error) { return b.Retire(ctx, "test", "", "dev-2") }, two, bad},
	} {
		if _, err := tt.act(); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if got := b.ways(broker, tt.of); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
	server, err := b.EnrollServer(ctx, "test", "broker-1", []string{"broker.example"})
	if err != nil {
		t.Fatal(err)
	}
	if got := b.ways(broker, server); got != bad {
		t.Errorf("a server: %+v", got)
	}
	for _, id := range []string{"late", "nobody", "", "dev 1", "#"} {
		if b.Admit(ctx, broker, enroll.Login{ClientID: id, CommonName: id}).Allowed || b.Admit(ctx, broker, enroll.Login{ClientID: id, Username: id}).Allowed ||
			b.Standing(ctx, broker, id).Allowed || b.Allow(ctx, broker, enroll.Access{Username: id, Verb: enroll.AccessPublish, Topic: "d/" + id + "/up"}).Allowed {
			t.Errorf("%q, which has no credential, is let in", id)
		}
	}
}

// While one password replaces another both open the door; a third ends the first, and
// a report of the device ends all but the last.
func TestDecideTwoPasswords(t *testing.T) {
	b := newBench(t, "dev-1")
	broker := b.broker(inventory.Token{})
	held := []*enroll.Enrollment{b.enroll("dev-1")}
	next := func() {
		t.Helper()
		b.now = b.now.Add(time.Hour)
		e, err := b.Renew(t.Context(), b.as(held[len(held)-1]), enroll.Ask{CSR: catest.CSR(t, catest.Key(t, ca.P256), "dev-1"), Password: true})
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, e)
	}
	check := func(when string, want ...bool) {
		t.Helper()
		for i, e := range held {
			if got := b.ways(broker, e).password; got != want[i] {
				t.Errorf("%s: password %d: %t, want %t", when, i+1, got, want[i])
			}
		}
	}
	check("at first", true)
	next()
	check("one replaces another", true, true)
	if n, err := b.ConfirmPassword(t.Context(), b.as(held[1])); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	check("confirmed", false, true)
	next()
	check("the next", false, true, true)
	if b.Admit(t.Context(), broker, enroll.Login{ClientID: "dev-1", Username: "dev-1", Password: inventory.NewSecret(append(held[1].Password.Reveal(), held[2].Password.Reveal()...))}).Allowed {
		t.Error("both passwords in one open the door")
	}
}

// A certificate that has ended, or is not valid yet, opens nothing; a password that
// the device has beside it does, and the device is held to the same rights.
func TestDecideExpired(t *testing.T) {
	b := newBench(t, "dev-1")
	broker := b.broker(inventory.Token{})
	e := b.enroll("dev-1")
	if err := b.AddDevices(t.Context(), "test", "", []inventory.Device{{ID: "quiet-1", Profile: "quiet"}}); err != nil {
		t.Fatal(err)
	}
	quiet := b.enroll("quiet-1")
	from, until := e.Certificate.NotBefore, e.Certificate.NotAfter
	for _, tt := range []struct {
		name      string
		now       time.Time
		certified bool
	}{
		{"before it begins", from.Add(-time.Second), false},
		{"its first second", from, true},
		{"its last second", until, true},
		{"the second after", until.Add(time.Second), false},
	} {
		// A registrar's time never goes back: this is one that has just begun.
		var err error
		b.now = tt.now
		if b.Registrar, err = enroll.New(enroll.Config{Store: b.store, Open: b.open, Organization: "acme", TrustDomain: "acme", Now: b.clock}); err != nil {
			t.Fatal(err)
		}
		if got, want := b.ways(broker, e), (ways{tt.certified, true, true}); got != want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, want)
		}
		if got, want := b.ways(broker, quiet), (ways{tt.certified, false, tt.certified}); got != want {
			t.Errorf("%s, without a password: %+v, want %+v", tt.name, got, want)
		}
	}
}

// An issuer that is retired takes its certificates with it, though no record of them
// says so.
func TestDecideRetiredIssuer(t *testing.T) {
	b := newBench(t, "dev-1", "dev-2")
	broker := b.broker(inventory.Token{})
	old := b.enroll("dev-1")
	b.roll()
	young := b.enroll("dev-2")
	if got := b.ways(broker, old); got != (ways{true, true, true}) {
		t.Errorf("an issuer that only signs nothing more: %+v", got)
	}
	if _, err := b.RetireIssuer(t.Context(), "test", "", "device-1", true); err != nil {
		t.Fatal(err)
	}
	if got := b.ways(broker, old); got != (ways{false, true, true}) {
		t.Errorf("of a retired issuer: %+v", got)
	}
	if got := b.ways(broker, young); got != (ways{true, true, true}) {
		t.Errorf("of the next issuer: %+v", got)
	}
}

// Where the broker says which certificate it was shown, it has to be this one; where it
// says only the name, the one that is good the longest sets the end.
func TestDecideCertificate(t *testing.T) {
	b := newBench(t, "dev-1", "dev-2")
	ctx, broker := t.Context(), b.broker(inventory.Token{})
	first, other := b.enroll("dev-1"), b.enroll("dev-2")
	b.now = b.now.Add(24 * time.Hour)
	second := b.renew(first)
	for _, tt := range []struct {
		name string
		l    enroll.Login
		want time.Time // zero: denied
	}{
		{"by name", enroll.Login{}, second.Certificate.NotAfter},
		{"the first", enroll.Login{Certificate: first.Certificate.DER}, first.Certificate.NotAfter},
		{"the second", enroll.Login{Certificate: second.Certificate.DER}, second.Certificate.NotAfter},
		{"the second, by its number", enroll.Login{Serial: second.Certificate.Serial}, second.Certificate.NotAfter},
		{"another's", enroll.Login{Certificate: other.Certificate.DER}, time.Time{}},
		{"another's number", enroll.Login{Serial: other.Certificate.Serial}, time.Time{}},
		{"the first, with the number of the second", enroll.Login{Certificate: first.Certificate.DER, Serial: second.Certificate.Serial}, time.Time{}},
		{"one octet more", enroll.Login{Certificate: append(first.Certificate.DER[:len(first.Certificate.DER):len(first.Certificate.DER)], 0)}, time.Time{}},
		{"with another user name", enroll.Login{Username: "dev-2"}, time.Time{}},
	} {
		tt.l.ClientID, tt.l.CommonName = "dev-1", "dev-1"
		if got := b.Admit(ctx, broker, tt.l); got.Allowed == tt.want.IsZero() || !got.Expires.Equal(tt.want) {
			t.Errorf("%s: %t until %s, want %s", tt.name, got.Allowed, got.Expires, tt.want)
		}
	}
	if _, err := b.RevokeCertificates(ctx, "test", "", inventory.AffiliationChanged, second.Certificate.Serial); err != nil {
		t.Fatal(err)
	}
	if b.Admit(ctx, broker, enroll.Login{ClientID: "dev-1", CommonName: "dev-1", Certificate: second.Certificate.DER}).Allowed {
		t.Error("a revoked certificate opens the door")
	}
	if !b.Admit(ctx, broker, enroll.Login{ClientID: "dev-1", Username: "dev-1", Password: first.Password}).Allowed {
		t.Error("the password went with one certificate")
	}
}

// A broker decides about the devices that its token is for, while it is good.
func TestDecideScope(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	if err := b.AddDevices(ctx, "test", "", []inventory.Device{{ID: "dev-1", Profile: "default", Group: "hall"}}); err != nil {
		t.Fatal(err)
	}
	e := b.enroll("dev-1")
	for _, tt := range []struct {
		name  string
		token inventory.Token
		want  bool
	}{
		{"of all", inventory.Token{}, true},
		{"of its group", inventory.Token{Group: "hall"}, true},
		{"of another group", inventory.Token{Group: "yard"}, false},
		{"of its profile", inventory.Token{Profile: "default"}, true},
		{"of another profile", inventory.Token{Profile: "quiet"}, false},
		{"of its prefix", inventory.Token{Prefix: "dev-"}, true},
		{"of its prefix in another case", inventory.Token{Prefix: "DEV-"}, true},
		{"of another prefix", inventory.Token{Prefix: "dev-2"}, false},
		{"of it", inventory.Token{Devices: []inventory.DeviceID{"dev-2", "dev-1"}}, true},
		{"of another", inventory.Token{Devices: []inventory.DeviceID{"dev-10"}}, false},
		{"of its group and another profile", inventory.Token{Group: "hall", Profile: "quiet"}, false},
		{"an operator", inventory.Token{Role: inventory.OperatorRole}, false},
		{"an administrator", inventory.Token{Role: inventory.AdminRole}, false},
	} {
		broker := b.broker(tt.token)
		want := ways{tt.want, tt.want, tt.want}
		if got := b.ways(broker, e); got != want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, want)
		}
		if got := b.Standing(ctx, broker, "dev-1").Allowed; got != tt.want {
			t.Errorf("%s: standing %t", tt.name, got)
		}
	}
	if got := b.ways(enroll.Principal{}, e); got != (ways{}) {
		t.Errorf("nobody: %+v", got)
	}
	if got := b.ways(b.as(e), e); got != (ways{}) {
		t.Errorf("the device itself: %+v", got)
	}
	broker, id := b.brokerToken(inventory.Token{})
	if _, err := b.RevokeToken(ctx, "test", "", id); err != nil {
		t.Fatal(err)
	}
	if got := b.ways(broker, e); got != (ways{}) {
		t.Errorf("a token that was revoked after it had been recognised: %+v", got)
	}
}

// A name is that of the device to the letter: another case would be another topic.
func TestDecideNames(t *testing.T) {
	b := newBench(t, "Dev-1", "dev-2")
	ctx, broker := t.Context(), b.broker(inventory.Token{})
	e := b.enroll("Dev-1")
	b.enroll("dev-2")
	for _, tt := range []struct {
		id, user, cn string
		want         bool
	}{
		{"Dev-1", "Dev-1", "", true},
		{"", "Dev-1", "", true}, // the broker does not say
		{"Dev-1", "", "Dev-1", true},
		{"Dev-1", "Dev-1", "Dev-1", true},
		{"dev-1", "dev-1", "", false},
		{"DEV-1", "DEV-1", "", false},
		{"Dev-1", "", "dev-1", false},
		{"dev-1", "Dev-1", "", false},
		{"Dev-1 ", "Dev-1", "", false},
		{"dev-2", "Dev-1", "", false},
		{"Dev-1", "dev-2", "Dev-1", false},
		{"Dev-1", "", "", false},
		{"", "", "", false},
	} {
		name := fmt.Sprintf("client identifier %q, user name %q, common name %q", tt.id, tt.user, tt.cn)
		if got := b.Admit(ctx, broker, enroll.Login{ClientID: tt.id, Username: tt.user, CommonName: tt.cn, Password: e.Password}); got.Allowed != tt.want {
			t.Errorf("%s: %t, want %t: %s", name, got.Allowed, tt.want, got.Reason)
		}
		if got := b.Allow(ctx, broker, enroll.Access{ClientID: tt.id, Username: tt.user, CommonName: tt.cn, Verb: enroll.AccessPublish, Topic: "d/Dev-1/up"}); got.Allowed != tt.want {
			t.Errorf("%s: %t, want %t: %s", name, got.Allowed, tt.want, got.Reason)
		}
	}
}

// A topic is decided by the policy, for the action that was asked about.
func TestDecideTopics(t *testing.T) {
	b := newBench(t, "dev-1")
	ctx, broker := t.Context(), b.broker(inventory.Token{})
	b.enroll("dev-1")
	for _, tt := range []struct {
		verb  enroll.AccessVerb
		topic string
		want  bool
	}{
		{enroll.AccessPublish, "d/dev-1/up", true},
		{enroll.AccessPublish, "d/dev-1/down", false},
		{enroll.AccessPublish, "$share/g/d/dev-1/up", false},
		{enroll.AccessReceive, "d/dev-1/down", true},
		{enroll.AccessReceive, "d/dev-1/up", false},
		{enroll.AccessSubscribe, "d/dev-1/down", true},
		{enroll.AccessSubscribe, "d/dev-1/+", false},
		{enroll.AccessSubscribe, "$share/g/d/dev-1/down", true},
		{enroll.AccessSubscribe, "$share/g/#", false},
		{enroll.AccessSubscribe, "$share//d/dev-1/down", false},
		{enroll.AccessSubscribe, "$share/+/d/dev-1/down", false},
		{enroll.AccessSubscribe, "$share/g/$share/h/d/dev-1/down", false},
		{0, "d/dev-1/up", false},
		{enroll.AccessReceive + 1, "d/dev-1/up", false},
	} {
		if got := b.Allow(ctx, broker, enroll.Access{ClientID: "dev-1", Username: "dev-1", Verb: tt.verb, Topic: tt.topic}); got.Allowed != tt.want || got.Reason == "" {
			t.Errorf("%d %s: %t, want %t: %s", tt.verb, tt.topic, got.Allowed, tt.want, got.Reason)
		}
	}
}

// Every verifier alone opens the door, but for Argon2id: 47 MiB for each who asks is
// what an attacker would wish for.
func TestDecideSchemes(t *testing.T) {
	b := newBench(t)
	ctx, broker := t.Context(), b.broker(inventory.Token{})
	secret, wrong := inventory.NewSecret([]byte("correct horse")), inventory.NewSecret([]byte("correct horsE"))
	all, err := enroll.Verifiers(secret, []inventory.Scheme{inventory.Bcrypt, inventory.Argon2id, inventory.PBKDF2SHA1})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range all {
		id := inventory.DeviceID(v.Scheme.String())
		if _, err := b.Adopt(ctx, enroll.Adoption{Actor: "test", Device: inventory.Device{ID: id, Profile: "default"}, Verifiers: []inventory.Verifier{v}}); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		for _, tt := range []struct {
			password inventory.Secret
			want     bool
		}{
			{secret, v.Scheme != inventory.Argon2id},
			{wrong, false},
			{inventory.Secret{}, false},
			{inventory.NewSecret(make([]byte, 257)), false},
			{inventory.NewSecret(v.Hash), false},
		} {
			if got := b.Admit(ctx, broker, enroll.Login{ClientID: string(id), Username: string(id), Password: tt.password}); got.Allowed != tt.want {
				t.Errorf("%s: a password of %d octets: %t, want %t", id, len(tt.password.Reveal()), got.Allowed, tt.want)
			}
		}
	}
	if len(all) != 8 {
		t.Errorf("%d schemes, want 8", len(all))
	}
}

// Admit tells the broker what the device may do; no denial says anything.
func TestDecideVerdict(t *testing.T) {
	b := newBench(t, "dev-1")
	ctx, broker := t.Context(), b.broker(inventory.Token{})
	e := b.enroll("dev-1")
	got := b.Admit(ctx, broker, enroll.Login{ClientID: "dev-1", Username: "dev-1", Password: e.Password})
	if !got.Allowed || got.Device.ID != "dev-1" || len(got.Grants) != 2 || got.Grants[0].Filter != "d/dev-1/up" || !got.Expires.IsZero() {
		t.Errorf("%+v", got)
	}
	got = b.Admit(ctx, broker, enroll.Login{ClientID: "dev-1", Username: "dev-1", Password: inventory.NewSecret([]byte("public"))})
	if got.Allowed || got.Device.ID != "" || got.Grants != nil || got.Reason == "" {
		t.Errorf("%+v", got)
	}
}

func BenchmarkAdmit(b *testing.B) {
	h := newBench(b, "dev-1")
	broker, e := h.broker(inventory.Token{}), h.enroll("dev-1")
	for name, l := range map[string]enroll.Login{
		"password":    {ClientID: "dev-1", Username: "dev-1", Password: e.Password},
		"certificate": {ClientID: "dev-1", CommonName: "dev-1", Certificate: e.Certificate.DER},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if v := h.Admit(b.Context(), broker, l); !v.Allowed {
					b.Fatal(v.Reason)
				}
			}
		})
	}
}

func BenchmarkAllow(b *testing.B) {
	h := newBench(b, "dev-1")
	broker := h.broker(inventory.Token{})
	h.enroll("dev-1")
	a := enroll.Access{ClientID: "dev-1", Username: "dev-1", Verb: enroll.AccessPublish, Topic: "d/dev-1/up"}
	b.ReportAllocs()
	for b.Loop() {
		if v := h.Allow(b.Context(), broker, a); !v.Allowed {
			b.Fatal(v.Reason)
		}
	}
}
