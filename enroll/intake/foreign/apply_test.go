package foreign

import (
	"context"
	"crypto/pbkdf2"
	"crypto/sha512"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
	"github.com/imprint-iot/imprint/inventory/durable"
)

// A bench is an empty fleet.
type bench struct {
	*enroll.Registrar
	store inventory.Store
}

func newBench(t testing.TB) *bench {
	t.Helper()
	dir, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	store, err := boltstore.Open(t.Context(), boltstore.Config{Dir: dir, Instance: [16]byte{1}, Key: [32]byte{2}, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close(); _ = dir.Close() })
	keys := map[string]enroll.KeyRef{}
	for _, name := range []string{"root-1", "device-1", "server-1"} {
		keys[name] = enroll.KeyRef{URI: "test:" + name, Signer: catest.Key(t, ca.P256)}
	}
	err = enroll.Found(t.Context(), store, enroll.Foundation{
		Actor: "test", Organization: "acme", Now: moment, Root: keys["root-1"], Device: keys["device-1"], Server: keys["server-1"],
		Profiles: []inventory.Profile{{Name: "default"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	open := func(_ context.Context, iss inventory.Issuer) (*ca.Issuer, error) {
		cert, err := x509.ParseCertificate(iss.Certificate)
		if err != nil {
			return nil, err
		}
		return ca.NewIssuer(cert, keys[iss.Name].Signer, moment)
	}
	r, err := enroll.New(enroll.Config{Store: store, Open: open, Organization: "acme", TrustDomain: "acme", Now: moment})
	if err != nil {
		t.Fatal(err)
	}
	return &bench{r, store}
}

func (b *bench) revision(t testing.TB) (n uint64) {
	t.Helper()
	err := b.store.Read(t.Context(), func(in inventory.Reader) error {
		n = in.Revision()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

const hash7 = "$7$101$AAECAwQFBgcICQoL$lp0Cm29zl+CI/RXyXDKvLye7OxM3OuE6RMzgXTX/f3imS/pFh2Ur7yarLDpKRUKpB0tOj6l0UrRv41zqxmD4tg=="

// fleet is n devices of Mosquitto, each with a password and two topics.
func fleet(n int) fstest.MapFS {
	var passwords, acl strings.Builder
	for i := range n {
		fmt.Fprintf(&passwords, "dev-%d:%s\n", i, hash7)
		fmt.Fprintf(&acl, "user dev-%d\ntopic write fleet/dev-%d/up\ntopic read fleet/dev-%d/down\n", i, i, i)
	}
	return fstest.MapFS{"passwd": {Data: []byte(passwords.String())}, "acl": {Data: []byte(acl.String())}}
}

func read(t testing.TB, src fstest.MapFS, o Options) *Plan {
	t.Helper()
	o.Now = moment()
	p, err := Read(t.Context(), src, "", o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestApply(t *testing.T) {
	b := newBench(t)
	p := read(t, fleet(50), Options{})
	before := b.revision(t)
	want := Result{Profiles: 1, Adopted: 50}
	for _, dry := range []bool{true, false} {
		got, err := p.Apply(t.Context(), b.Registrar, ApplyOptions{Actor: "test", DryRun: dry})
		if err != nil || got != want {
			t.Fatalf("dry run %v: %+v, %v, want %+v", dry, got, err, want)
		}
		if dry && b.revision(t) != before {
			t.Fatal("a dry run has written something")
		}
	}
	if got := b.revision(t); got != before+51 {
		t.Errorf("%d changes, want one for each device and one for the profile", got-before)
	}
	rec, err := b.Device(t.Context(), "dev-7")
	if err != nil {
		t.Fatal(err)
	}
	if rec.State != inventory.Active || rec.Profile != "imported-1" || len(rec.Credentials) != 1 {
		t.Fatalf("device = %+v", rec)
	}
	v, ok := rec.Credentials[0].Verifier(inventory.PBKDF2SHA512)
	key, err := pbkdf2.Key(sha512.New, "correct horse", v.Salt, int(v.Iterations), 64)
	if err != nil || !ok || !slices.Equal(key, v.Hash) {
		t.Errorf("the old password does not open the new verifier: %v", err)
	}

	before = b.revision(t)
	got, err := p.Apply(t.Context(), b.Registrar, ApplyOptions{Actor: "test"})
	if want := (Result{Unchanged: 50}); err != nil || got != want || b.revision(t) != before {
		t.Errorf("the same again: %+v, %v, want %+v", got, err, want)
	}
}

// An import that was interrupted goes on where it stopped.
func TestApplyResumes(t *testing.T) {
	b := newBench(t)
	p := read(t, fleet(3000), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := p.Apply(ctx, b.Registrar, ApplyOptions{Actor: "test", Progress: func(int, int) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("Apply = %v, want that it was cancelled", err)
	}
	last := 0
	got, err := p.Apply(t.Context(), b.Registrar, ApplyOptions{Actor: "test", Progress: func(done, _ int) { last = done }})
	if err != nil || got.Adopted+got.Unchanged != 3000 || got.Unchanged < 1000 || got.Adopted == 0 {
		t.Errorf("the rest: %+v, %v", got, err)
	}
	if last != 3000 {
		t.Errorf("progress ended at %d", last)
	}
}

func TestApplyRefuses(t *testing.T) {
	b := newBench(t)
	src := fleet(3)
	src["passwd"].Data = append(src["passwd"].Data, "bad.name:"+hash7+"\n"...)
	p := read(t, src, Options{})
	before := b.revision(t)
	var rejected []string
	got, err := p.Apply(t.Context(), b.Registrar, ApplyOptions{Actor: "test", Rejected: func(name string, _ error) { rejected = append(rejected, name) }})
	if !errors.Is(err, ErrProblems) || got.Rejected != 1 || b.revision(t) != before || !slices.Equal(rejected, []string{"bad.name"}) {
		t.Errorf("with a bad name: %+v, %v, rejected %v", got, err, rejected)
	}
	got, err = p.Apply(t.Context(), b.Registrar, ApplyOptions{Actor: "test", Partial: true})
	if err != nil || got.Adopted != 3 || got.Rejected != 1 {
		t.Errorf("without it: %+v, %v", got, err)
	}

	// a shared rule is taken only if it was accepted
	src = fstest.MapFS{"acl": {Data: []byte("user dev-9\ntopic read news/today\n")}}
	if _, err := read(t, src, Options{Prefix: "other"}).Apply(t.Context(), b.Registrar, ApplyOptions{Actor: "test"}); err == nil {
		t.Error("a rule for everybody was taken")
	}
	if _, err := read(t, src, Options{Prefix: "other", AcceptShared: true}).Apply(t.Context(), b.Registrar, ApplyOptions{Actor: "test"}); err != nil {
		t.Errorf("a rule that was accepted: %v", err)
	}

	// a profile of the same name is not changed, and no device of the plan either
	before = b.revision(t)
	src = fstest.MapFS{"acl": {Data: []byte("user dev-10\ntopic read x/dev-10\n")}}
	if _, err := read(t, src, Options{}).Apply(t.Context(), b.Registrar, ApplyOptions{Actor: "test"}); !errors.Is(err, inventory.ErrConflict) || b.revision(t) != before {
		t.Errorf("a profile that is there with other rules: %v", err)
	}

	// a device that is there with another password
	src = fleet(2)
	src["passwd"].Data = []byte("dev-0:" + strings.Replace(hash7, "$101$", "$102$", 1) + "\n")
	got, err = read(t, src, Options{}).Apply(t.Context(), b.Registrar, ApplyOptions{Actor: "test"})
	if !errors.Is(err, ErrProblems) || got.Rejected != 1 || b.revision(t) != before {
		t.Errorf("a device with another password: %+v, %v", got, err)
	}
}

// What is stored as it is goes nowhere.
func TestPlaintextIsNotKept(t *testing.T) {
	const secret = "Tr0ub4dor-plain"
	for name, src := range map[string]fstest.MapFS{
		Mosquitto: {"passwd": {Data: []byte("dev-1:" + secret + "\ndev-2:" + hash7 + ":" + secret + "\n:" + secret + "\n" + secret + "\n")}},
		EMQX:      {"u.csv": {Data: []byte("user_id,password,is_superuser\ndev-1," + secret + ",false\ndev-2,a," + secret + ",c\n")}},
		"json":    {"u.json": {Data: []byte(`[{"user_id":"dev-1","password":"` + secret + `"}]`)}},
		RabbitMQ:  {"d.json": {Data: []byte(`{"rabbit_version":"3","users":[{"name":"dev-1","password":"` + secret + `","tags":[]},{"name":"dev-2","password_hash":"` + secret + `","tags":[]}],"vhosts":[]}`)}},
		Dynsec:    {"d.json": {Data: []byte(`{"clients":[{"username":"dev-1","roles":[],"encoded_password":"` + secret + `"},{"username":"dev-2","password":"` + secret + `","salt":"` + secret + `","iterations":1}],"roles":[]}`)}},
	} {
		p := read(t, src, Options{Profile: "default"})
		js, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(fmt.Sprintf("%+v", p), secret) || strings.Contains(string(js), secret) {
			t.Errorf("%s: the password is in the plan: %s", name, js)
		}
		if len(p.Devices) == 0 {
			t.Errorf("%s: no device was read", name)
		}
	}
	// and not in an error either
	for _, text := range []string{`[{"user_id":"dev-1","password":["` + secret + `"]}]`, `[{"user_id":"x","password":"` + secret + `"`, `[{"user_id":"x","password_hash":"` + secret + `" "`} {
		_, err := Read(t.Context(), fstest.MapFS{"u.json": {Data: []byte(text)}}, EMQX, Options{})
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// 100,000 users are read in seconds. The limit is far above what it takes, for slow
// machines.
func TestScale(t *testing.T) {
	src := fleet(100_000)
	start := time.Now()
	p := read(t, src, Options{})
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("reading took %s", took)
	}
	if len(p.Devices) != 100_000 || len(p.Profiles) != 1 || len(p.Findings) > 2*maxPerCode {
		t.Errorf("%d devices, %d profiles, %d findings", len(p.Devices), len(p.Profiles), len(p.Findings))
	}
}

func BenchmarkRead100k(b *testing.B) {
	src := fleet(100_000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Read(b.Context(), src, Mosquitto, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
