package enroll_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// A bench is a fleet with a clock that stands still until it is moved.
type bench struct {
	*enroll.Registrar
	t     testing.TB
	store *faultyStore
	keys  map[string]enroll.KeyRef
	now   time.Time
}

// faultyStore fails on demand: before it applies a change, or after.
type faultyStore struct {
	inventory.Store
	mu     sync.Mutex
	before func(inventory.Change) error
	after  error
}

func (s *faultyStore) Apply(ctx context.Context, c inventory.Change) error {
	s.mu.Lock()
	before, after := s.before, s.after
	s.mu.Unlock()
	if before != nil {
		if err := before(c); err != nil {
			return err
		}
	}
	if err := s.Store.Apply(ctx, c); err != nil {
		return err
	}
	return after
}

func (s *faultyStore) fail(before func(inventory.Change) error, after error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before, s.after = before, after
}

func newBench(t testing.TB, devices ...string) *bench {
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
	b := &bench{t: t, store: &faultyStore{Store: store}, now: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC), keys: map[string]enroll.KeyRef{}}
	for _, name := range []string{"root-1", "device-1", "server-1", "device-2"} {
		b.keys[name] = enroll.KeyRef{URI: "test:" + name, Signer: catest.Key(t, ca.P256)}
	}
	certificate, err := json.Marshal(ca.Config{})
	if err != nil {
		t.Fatal(err)
	}
	policy := topic.Policy{Rules: []topic.Rule{{Action: topic.Publish, Filter: "d/{id}/up"}, {Action: topic.Receive, Filter: "d/{id}/down"}}}
	err = enroll.Found(t.Context(), b.store, enroll.Foundation{
		Actor: "test", Organization: "acme", Now: b.clock, Root: b.keys["root-1"], Device: b.keys["device-1"], Server: b.keys["server-1"],
		Profiles: []inventory.Profile{
			{Name: "default", Certificate: certificate, Policy: policy},
			{Name: "quiet", Certificate: certificate, Policy: policy, Password: inventory.PasswordRule{None: true}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Registrar, err = enroll.New(enroll.Config{Store: b.store, Open: b.open, Organization: "acme", TrustDomain: "acme", Now: b.clock})
	if err != nil {
		t.Fatal(err)
	}
	b.add(devices...)
	return b
}

func (b *bench) clock() time.Time { return b.now }

func (b *bench) open(_ context.Context, iss inventory.Issuer) (*ca.Issuer, error) {
	cert, err := x509.ParseCertificate(iss.Certificate)
	if err != nil {
		return nil, err
	}
	return ca.NewIssuer(cert, b.keys[iss.Name].Signer, b.clock)
}

func (b *bench) add(ids ...string) {
	b.t.Helper()
	var devices []inventory.Device
	for _, id := range ids {
		devices = append(devices, inventory.Device{ID: inventory.DeviceID(id), Profile: "default"})
	}
	if len(devices) == 0 {
		return
	}
	if err := b.AddDevices(b.t.Context(), "test", "", devices); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) enroll(id string) *enroll.Enrollment {
	b.t.Helper()
	e, err := b.Enroll(b.t.Context(), enroll.Request{Actor: "test", Device: inventory.DeviceID(id)})
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

// facts returns a device and its credentials.
func (b *bench) facts(id string) (d inventory.Device, creds []inventory.Credential) {
	b.t.Helper()
	err := b.store.Read(b.t.Context(), func(in inventory.Reader) (err error) {
		if d, err = in.Device(inventory.DeviceID(id)); err != nil {
			return err
		}
		for c, err := range in.Credentials(inventory.CredentialQuery{Device: d.ID}) {
			if err != nil {
				return err
			}
			creds = append(creds, c)
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return d, creds
}

func (b *bench) revision() (n uint64) {
	b.t.Helper()
	if err := b.store.Read(b.t.Context(), func(in inventory.Reader) error { n = in.Revision(); return nil }); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// csr makes a request for a new key.
func csr(t testing.TB, cn string) []byte {
	t.Helper()
	return catest.CSR(t, catest.Key(t, ca.P256), cn)
}

func TestEnroll(t *testing.T) {
	b := newBench(t, "dev-1", "dev-2")
	e := b.enroll("dev-1")
	if len(e.Key.Reveal()) == 0 || len(e.Password.Reveal()) != 32 || e.Unchanged {
		t.Fatalf("the device is handed too little: %d octets of key, %d of password", len(e.Key.Reveal()), len(e.Password.Reveal()))
	}
	key, err := x509.ParsePKCS8PrivateKey(e.Key.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	if spki, err := ca.SPKIHash(key.(crypto.Signer).Public()); err != nil || spki != e.Certificate.SPKI {
		t.Error("the key is not that of the certificate")
	}
	d, creds := b.facts("dev-1")
	if d.State != inventory.Active || len(creds) != 2 || !bytes.Equal(creds[0].Certificate.DER, e.Certificate.DER) {
		t.Fatalf("recorded: %s, %d credentials", d.State, len(creds))
	}
	if len(creds[1].Verifiers) != 5 {
		t.Errorf("%d verifiers, want the five cheap ones", len(creds[1].Verifiers))
	}
	// What is printed holds no secret.
	if text := fmt.Sprintf("%v %+v %#v %s", e.Password, e, e.Key, e.Password); bytes.Contains([]byte(text), e.Password.Reveal()) {
		t.Errorf("the password is printed: %s", text)
	}
}

// TestEnrollAgain: the same device with the same key has one certificate, however
// often and from how many sides it asks (iss-004, iss-005).
func TestEnrollAgain(t *testing.T) {
	b := newBench(t, "dev-1")
	request := csr(t, "dev-1")
	var wg sync.WaitGroup
	got := make([][]byte, 16)
	for i := range got {
		wg.Go(func() {
			e, err := b.Enroll(t.Context(), enroll.Request{Actor: "test", Device: "dev-1", CSR: bytes.Clone(request)})
			if err != nil {
				t.Error(err)
				return
			}
			got[i] = e.Certificate.DER
		})
	}
	wg.Wait()
	for i := range got {
		if !bytes.Equal(got[i], got[0]) {
			t.Errorf("asker %d got another certificate", i)
		}
	}
	if _, creds := b.facts("dev-1"); len(creds) != 2 {
		t.Errorf("%d credentials, want one certificate and one password", len(creds))
	}
}

// TestEnrollRace: of 64 that bring a key of their own for one device, one wins
// (iss-006).
func TestEnrollRace(t *testing.T) {
	b := newBench(t, "dev-1")
	var wg sync.WaitGroup
	results := make([]error, 64)
	for i := range results {
		request := csr(t, "dev-1")
		wg.Go(func() {
			_, results[i] = b.Enroll(t.Context(), enroll.Request{Actor: "test", Device: "dev-1", CSR: request})
		})
	}
	wg.Wait()
	won := 0
	for _, err := range results {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, enroll.ErrDenied):
			t.Errorf("a loser is told %v", err)
		}
	}
	if _, creds := b.facts("dev-1"); won != 1 || len(creds) != 2 {
		t.Errorf("%d have won, and the device has %d credentials", won, len(creds))
	}
}

// TestEnrollWhileRevoking: whatever comes first, a revoked device has no active
// certificate (iss-007).
func TestEnrollWhileRevoking(t *testing.T) {
	b := newBench(t)
	for i := range 40 {
		id := fmt.Sprintf("dev-%d", i)
		b.add(id)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := b.Enroll(t.Context(), enroll.Request{Actor: "test", Device: inventory.DeviceID(id)})
			if err != nil && !errors.Is(err, enroll.ErrDenied) {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := b.Revoke(t.Context(), "test", "", inventory.KeyCompromise, inventory.DeviceID(id)); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		d, creds := b.facts(id)
		if d.State != inventory.Revoked {
			t.Errorf("%s is %s", id, d.State)
		}
		for _, c := range creds {
			if c.State != inventory.CredentialRevoked {
				t.Errorf("%s: revoked, with a %s that is %s", id, c.Kind, c.State)
			}
		}
	}
}

func TestEnrollRefuses(t *testing.T) {
	b := newBench(t, "dev-1", "dev-2", "dev-3", "suspended", "retired", "burnt")
	key1 := catest.Key(t, ca.P256)
	if _, err := b.Enroll(t.Context(), enroll.Request{Actor: "test", Device: "dev-1", CSR: catest.CSR(t, key1, "dev-1")}); err != nil {
		t.Fatal(err)
	}
	burnt := catest.Key(t, ca.P256)
	if _, err := b.Enroll(t.Context(), enroll.Request{Actor: "test", Device: "burnt", CSR: catest.CSR(t, burnt, "burnt")}); err != nil {
		t.Fatal(err)
	}
	_, err1 := b.Revoke(t.Context(), "test", "", inventory.KeyCompromise, "burnt")
	_, err2 := b.Suspend(t.Context(), "test", "", "suspended")
	_, err3 := b.Retire(t.Context(), "test", "", "retired")
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	before := b.revision()
	for _, tt := range []struct {
		name   string
		device inventory.DeviceID
		csr    []byte
		reason ca.Reason // of a *ca.RequestError, or:
		is     error
	}{
		{"unknown device", "nosuch", csr(t, "nosuch"), "", inventory.ErrNotFound},
		{"suspended", "suspended", csr(t, "suspended"), "", enroll.ErrDenied},
		{"retired", "retired", nil, "", enroll.ErrDenied},
		{"revoked", "burnt", nil, "", enroll.ErrDenied},
		{"another key", "dev-1", csr(t, "dev-1"), "", enroll.ErrDenied},
		{"csr-032 somebody else", "dev-2", csr(t, "admin"), ca.IdentityMismatch, nil},
		{"csr-048 another case", "dev-2", csr(t, "DEV-2"), ca.IdentityMismatch, nil},
		{"csr-061 key of another device", "dev-2", catest.CSR(t, key1, "dev-2"), "", inventory.ErrConflict},
		{"csr-062 compromised key", "dev-2", catest.CSR(t, burnt, "dev-2"), ca.BlockedKey, nil},
		{"csr-063 key of an issuer", "dev-2", catest.CSR(t, b.keys["device-1"].Signer, "dev-2"), ca.BlockedKey, nil},
		{"weak key", "dev-2", catest.CSR(t, catest.Key(t, ca.RSA2048), "dev-2"), ca.KeyType, nil},
		{"no request", "dev-2", []byte("hello"), ca.Malformed, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, err := b.Enroll(t.Context(), enroll.Request{Actor: "test", Device: tt.device, CSR: tt.csr})
			refused, ok := errors.AsType[*ca.RequestError](err)
			switch {
			case err == nil:
				t.Fatalf("enrolled as %s", e.Certificate.Serial)
			case tt.reason != "" && (!ok || refused.Reason != tt.reason):
				t.Errorf("%v, want reason %s", err, tt.reason)
			case tt.is != nil && !errors.Is(err, tt.is):
				t.Errorf("%v, want %v", err, tt.is)
			}
		})
	}
	if after := b.revision(); after != before {
		t.Errorf("%d changes were made by refused requests", after-before)
	}
}

// TestRekey: all that the device had is revoked as superseded, in the change that
// gives it the new.
func TestRekey(t *testing.T) {
	b := newBench(t, "dev-1")
	b.enroll("dev-1")
	before := b.revision()
	e, err := b.Enroll(t.Context(), enroll.Request{Actor: "test", Device: "dev-1", Rekey: true})
	if err != nil {
		t.Fatal(err)
	}
	_, creds := b.facts("dev-1")
	if b.revision() != before+1 || len(creds) != 4 {
		t.Fatalf("%d changes, %d credentials", b.revision()-before, len(creds))
	}
	active := 0
	for _, c := range creds {
		if c.State == inventory.CredentialActive {
			active++
			if c.Generation != 2 {
				t.Errorf("generation %d of the %s is active", c.Generation, c.Kind)
			}
			continue
		}
		if c.Reason != inventory.Superseded || c.ReplacedBy != 2 || len(c.Verifiers) != 0 {
			t.Errorf("the old %s: %s, replaced by %d, %d verifiers", c.Kind, c.Reason, c.ReplacedBy, len(c.Verifiers))
		}
	}
	if active != 2 || e.Unchanged {
		t.Errorf("%d credentials are active", active)
	}
}

// TestFaults: a certificate whose record did not land is not handed out; one whose
// record landed, with the answer lost, is there when asked for again (iss-003,
// iss-004).
func TestFaults(t *testing.T) {
	b := newBench(t, "dev-1")
	request := csr(t, "dev-1")
	q := func() enroll.Request {
		return enroll.Request{Actor: "test", Device: "dev-1", CSR: bytes.Clone(request)}
	}
	broken := errors.New("the disk is gone")
	b.store.fail(func(inventory.Change) error { return broken }, nil)
	if e, err := b.Enroll(t.Context(), q()); e != nil || !errors.Is(err, broken) {
		t.Fatalf("handed out without a record: %v, %v", e, err)
	}
	if _, creds := b.facts("dev-1"); len(creds) != 0 {
		t.Fatalf("%d credentials are left behind", len(creds))
	}
	b.store.fail(nil, broken)
	if e, err := b.Enroll(t.Context(), q()); e != nil || !errors.Is(err, broken) {
		t.Fatalf("handed out without an answer: %v, %v", e, err)
	}
	b.store.fail(nil, nil)
	_, creds := b.facts("dev-1")
	e, err := b.Enroll(t.Context(), q())
	if err != nil || !e.Unchanged || !bytes.Equal(e.Certificate.DER, creds[0].Certificate.DER) {
		t.Errorf("asked again: %v, %v", e, err)
	}
}

// TestSerialTaken: a serial number that was used before is drawn anew, a few times
// (iss-009).
func TestSerialTaken(t *testing.T) {
	b := newBench(t, "dev-1")
	tries := 0
	taken := func(until int) func(inventory.Change) error {
		return func(inventory.Change) error {
			if tries++; tries < until {
				return &inventory.ConflictError{Why: inventory.SerialTaken, Record: "serial number"}
			}
			return nil
		}
	}
	b.store.fail(taken(1000), nil)
	if _, err := b.Enroll(t.Context(), enroll.Request{Actor: "test", Device: "dev-1"}); err == nil || tries != 3 {
		t.Errorf("%v after %d tries, want an error after 3", err, tries)
	}
	tries = 0
	b.store.fail(taken(3), nil)
	if _, err := b.Enroll(t.Context(), enroll.Request{Actor: "test", Device: "dev-1"}); err != nil || tries != 3 {
		t.Errorf("%v after %d tries, want success at the third", err, tries)
	}
}

func TestEnrollServer(t *testing.T) {
	b := newBench(t, "dev-1")
	e, err := b.EnrollServer(t.Context(), "test", "broker", []string{"mqtt.example", "10.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(e.Certificate.DER)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.VerifyHostname("mqtt.example"); err != nil {
		t.Error(err)
	}
	if err := cert.VerifyHostname("10.0.0.1"); err != nil {
		t.Error(err)
	}
	if !e.Password.IsZero() {
		t.Error("a server has a password")
	}
	// A second one, for a second process; the first goes on.
	if _, err := b.EnrollServer(t.Context(), "test", "broker", []string{"mqtt.example"}); err != nil {
		t.Fatal(err)
	}
	if _, creds := b.facts("broker"); len(creds) != 2 || creds[0].State != inventory.CredentialActive {
		t.Errorf("%d certificates, the first %s", len(creds), creds[0].State)
	}
	if _, err := b.EnrollServer(t.Context(), "test", "dev-1", []string{"h"}); !errors.Is(err, inventory.ErrConflict) {
		t.Errorf("a device became a server: %v", err)
	}
	if _, err := b.EnrollServer(t.Context(), "test", "other", nil); err == nil {
		t.Error("a server without a name")
	}
	// A server is no device: it has no topics, and is in no list of devices.
	err = b.store.Read(t.Context(), func(in inventory.Reader) error {
		for d, err := range in.Devices(inventory.Query{}) {
			if err != nil || d.Kind != inventory.Equipment {
				t.Errorf("%s is among the devices: %v", d.ID, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestPutProfile(t *testing.T) {
	b := newBench(t)
	good := inventory.Profile{Name: "new", Policy: topic.Policy{Rules: []topic.Rule{{Action: topic.Publish, Filter: "x/{id}"}}}}
	for range 2 { // new, then changed
		if err := b.PutProfile(t.Context(), "test", "", good); err != nil {
			t.Fatal(err)
		}
	}
	before := b.revision()
	for name, p := range map[string]inventory.Profile{
		"foreign wildcard":   {Name: "bad", Policy: topic.Policy{Rules: []topic.Rule{{Action: topic.Receive, Filter: "x/#"}}}},
		"bad name":           {Name: "a b"},
		"short password":     {Name: "bad", Password: inventory.PasswordRule{Length: 8}},
		"bad certificate":    {Name: "bad", Certificate: []byte(`{"validity":"soon"}`)},
		"negative grace":     {Name: "bad", Grace: -1},
		"unknown algorithms": {Name: "bad", Certificate: []byte(`{"keys":["P-224"]}`)},
	} {
		if err := b.PutProfile(t.Context(), "test", "", p); err == nil {
			t.Errorf("%s: stored", name)
		}
	}
	if b.revision() != before {
		t.Error("a refused profile made a change")
	}
}
