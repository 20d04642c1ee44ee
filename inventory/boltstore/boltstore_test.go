package boltstore_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
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

// certificate is a credential with a certificate that is always the same for the
// same arguments. Certificates of one ID have one key.
func certificate(t testing.TB, id string, generation uint32) inventory.Credential {
	t.Helper()
	seed := sha256.Sum256([]byte(id))
	serial := sha256.Sum256(fmt.Appendf(nil, "%s %d", id, generation))
	key := ed25519.NewKeyFromSeed(seed[:])
	ca := &x509.Certificate{SubjectKeyId: []byte("issuer of 20 octets."), PublicKey: key.Public()}
	der, err := x509.CreateCertificate(nil, &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(append([]byte{1}, serial[:15]...)), Subject: pkix.Name{CommonName: id},
		NotBefore: day, NotAfter: day.AddDate(1, 0, int(serial[31])),
	}, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := inventory.ReadCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return inventory.Credential{
		Device: inventory.DeviceID(id), Kind: inventory.CertificateCredential, Generation: generation,
		State: inventory.CredentialActive, Certificate: cert, Created: day,
	}
}

// issuerID is the issuer of all certificates.
var issuerID = inventory.KeyID([]byte("issuer of 20 octets."))

func issuer(crl uint64) inventory.Issuer {
	return inventory.Issuer{
		Name: "device-1", Purpose: inventory.DevicePurpose, Generation: 1, State: inventory.IssuerActive, KeyID: issuerID,
		NotAfter: day.AddDate(10, 0, 0), CRLNumber: crl, CRLThisUpdate: day,
	}
}

func password(id string, generation uint32) inventory.Credential {
	return inventory.Credential{
		Device: inventory.DeviceID(id), Kind: inventory.PasswordCredential, Generation: generation,
		State: inventory.CredentialActive, Created: day,
		Verifiers: []inventory.Verifier{{Scheme: inventory.PBKDF2SHA512, Iterations: 101, Salt: []byte("salt"), Hash: []byte("hash")}},
	}
}

// enrol is a change that adds an active device with a certificate.
func enrol(t testing.TB, id string) inventory.Change {
	t.Helper()
	return inventory.Change{
		Event:       event("device.enroll"),
		Devices:     []inventory.Device{device(id)},
		Credentials: []inventory.Credential{certificate(t, id, 1)},
	}
}

// end revokes or holds all credentials of a device and puts it into a state.
func end(t testing.TB, s inventory.Store, id string, state inventory.DeviceState, why inventory.Reason) {
	t.Helper()
	c := inventory.Change{Event: event("device.end")}
	err := s.Read(t.Context(), func(r inventory.Reader) error {
		d, err := r.Device(inventory.DeviceID(id))
		if err != nil {
			return err
		}
		d.State = state
		c.Devices = []inventory.Device{d}
		for x, err := range r.Credentials(inventory.CredentialQuery{Device: d.ID}) {
			if err != nil {
				return err
			}
			x.State, x.Reason, x.RevokedAt = inventory.CredentialRevoked, why, day.Add(time.Hour)
			if why == inventory.CertificateHold {
				x.State = inventory.CredentialHeld
			} else {
				x.Verifiers = nil
			}
			c.Credentials = append(c.Credentials, x)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	apply(t, s, c)
}

// clean fails the test if Check finds a fault.
func clean(t testing.TB, s *boltstore.Store) boltstore.Report {
	t.Helper()
	report, err := s.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Faults {
		t.Errorf("check: %s", f)
	}
	return report
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
		apply(t, s, enrol(t, id))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Create = false
	s = open(t, cfg)
	if r := clean(t, s); r.Devices != 500 || r.Credentials != 500 || r.Keys != 500 || r.Events != 500 {
		t.Errorf("report: %+v", r)
	}
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
