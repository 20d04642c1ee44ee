package boltstore_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
	"github.com/imprint-iot/imprint/inventory/durable"
)

// day is a fixed moment of all records here.
var day = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func config(t testing.TB, path string) boltstore.Config {
	t.Helper()
	dir, err := durable.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	})
	cfg := boltstore.Config{Dir: dir, Wait: 100 * time.Millisecond}
	copy(cfg.Instance[:], "instance of test")
	copy(cfg.Key[:], "a key of the tests, in 32 bytes.")
	return cfg
}

func open(t testing.TB, cfg boltstore.Config) *boltstore.Store {
	t.Helper()
	s, err := boltstore.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func create(t testing.TB) *boltstore.Store {
	t.Helper()
	cfg := config(t, t.TempDir())
	cfg.Create = true
	return open(t, cfg)
}

func event(action string) inventory.Event {
	return inventory.Event{Time: day, Actor: "tester", Action: action}
}

func device(id string) inventory.Device {
	return inventory.Device{
		ID: inventory.DeviceID(id), Kind: inventory.Equipment, Profile: "sensor", Group: "hall-1",
		HardwareSerial: "SN " + id, Labels: inventory.Labels{{Key: "floor", Value: "2"}},
		State: inventory.Active, Created: day, Updated: day,
	}
}

// certificate is a credential that was never signed: a store does not look.
func certificate(id string, generation uint32) inventory.Credential {
	h := sha256.Sum256(fmt.Appendf(nil, "%s %d", id, generation))
	c := &inventory.Certificate{DER: make([]byte, 600), SPKI: h, NotBefore: day, NotAfter: day.AddDate(1, 0, 0)}
	copy(c.DER, h[:])
	copy(c.Serial[:], h[:])
	copy(c.Issuer[:], "issuer")
	return inventory.Credential{
		Device: inventory.DeviceID(id), Kind: inventory.CertificateCredential, Generation: generation,
		State: inventory.CredentialActive, Certificate: c, Created: day,
	}
}

func apply(t testing.TB, s inventory.Store, c inventory.Change) {
	t.Helper()
	if err := s.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

func TestReopen(t *testing.T) {
	cfg := config(t, t.TempDir())
	cfg.Create = true
	s := open(t, cfg)
	for i := range 500 {
		id := fmt.Sprintf("dev-%d", i*7919%500)
		apply(t, s, inventory.Change{
			Event:       event("device.enroll"),
			Devices:     []inventory.Device{device(id)},
			Credentials: []inventory.Credential{certificate(id, 1)},
		})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Create = false
	s = open(t, cfg)
	err := s.Read(t.Context(), func(r inventory.Reader) error {
		n := 0
		for d, err := range r.Devices(inventory.Query{}) {
			if err != nil {
				return err
			}
			if d.HardwareSerial != "SN "+string(d.ID) {
				t.Errorf("device %s has the serial %q", d.ID, d.HardwareSerial)
			}
			n++
		}
		if n != 500 || r.Revision() != 500 {
			t.Errorf("%d devices at revision %d, want 500 at 500", n, r.Revision())
		}
		n = 0
		for _, err := range r.Credentials(inventory.CredentialQuery{ExpiresBefore: day.AddDate(2, 0, 0)}) {
			if err != nil {
				return err
			}
			n++
		}
		if n != 500 {
			t.Errorf("%d credentials expire, want 500", n)
		}
		if n, _, err := inventory.VerifyChain(r.Events(0)); n != 500 || err != nil {
			t.Errorf("%d events, %v", n, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Apply(t.Context(), inventory.Change{Event: event("device.add"), Devices: []inventory.Device{device("DEV-7")}})
	if c, ok := errors.AsType[*inventory.ConflictError](err); !ok || c.Why != inventory.Exists {
		t.Errorf("adding DEV-7 beside dev-7: %v", err)
	}
}
