package enroll_test

import (
	"errors"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
)

// listed reports whether the CRL of an issuer names a certificate.
func (b *bench) listed(issuer string, serial inventory.Serial) bool {
	b.t.Helper()
	crl, err := b.PublishCRL(b.t.Context(), "test", issuer, nil, true)
	if err != nil {
		b.t.Fatal(err)
	}
	r, err := ca.ReadCRL(crl.DER)
	if err != nil {
		b.t.Fatal(err)
	}
	for e := range r.All() {
		if e.Serial == serial {
			return true
		}
	}
	return false
}

// Clocks that jump, and what is published under them.
func TestHostileClock(t *testing.T) {
	t.Run("clk-002 back to 1970 while running", func(t *testing.T) {
		b := newBench(t, "dev-1", "dev-2")
		b.enroll("dev-1")
		crl, err := b.PublishCRL(t.Context(), "test", "device-1", nil, true)
		if err != nil {
			t.Fatal(err)
		}
		b.now = time.Unix(0, 0)
		if e, err := b.Enroll(t.Context(), enroll.Request{Actor: "test", Device: "dev-2"}); !errors.Is(err, ca.ErrExpired) {
			t.Errorf("before its issuer was made a certificate is issued: %+v, %v", e, err)
		}
		again, err := b.PublishCRL(t.Context(), "test", "device-1", nil, true)
		if err != nil || again.ThisUpdate.Before(crl.ThisUpdate) || again.Number <= crl.Number {
			t.Errorf("CRL %d of %s after %d of %s, %v", again.Number, again.ThisUpdate, crl.Number, crl.ThisUpdate, err)
		}
	})
	t.Run("clk-004 a device whose clock is behind", func(t *testing.T) {
		b := newBench(t, "dev-1")
		e := b.enroll("dev-1")
		if behind := b.now.Sub(e.Certificate.NotBefore); behind < 5*time.Minute {
			t.Errorf("notBefore is %s back, want at least 5 minutes", behind)
		}
	})
	t.Run("clk-012 another time zone", func(t *testing.T) {
		zone := time.FixedZone("Asia/Kathmandu", 5*3600+45*60)
		b := newBench(t, "dev-1")
		b.now = b.now.In(zone)
		e := b.enroll("dev-1")
		dev, _ := b.facts("dev-1")
		for what, at := range map[string]time.Time{"notBefore": e.Certificate.NotBefore, "notAfter": e.Certificate.NotAfter, "updated": dev.Updated} {
			if at.Location() != time.UTC {
				t.Errorf("%s is in %s", what, at.Location())
			}
		}
	})
}

// Entries of CRLs: when they leave, and whose they are.
func TestHostileRevocation(t *testing.T) {
	t.Run("rev-012 the issuer before keeps its CRL", func(t *testing.T) {
		b := newBench(t, "dev-1", "dev-2")
		old := b.enroll("dev-1")
		b.roll()
		if _, err := b.Revoke(t.Context(), "test", "", inventory.Unspecified, "dev-1"); err != nil {
			t.Fatal(err)
		}
		if !b.listed("device-1", old.Certificate.Serial) || b.listed("device-2", old.Certificate.Serial) {
			t.Error("the certificate is not in the CRL of its own issuer, or in another's")
		}
	})
	t.Run("rev-019 an entry leaves after expiry", func(t *testing.T) {
		b := newBench(t, "dev-1")
		e := b.enroll("dev-1")
		if _, err := b.Revoke(t.Context(), "test", "", inventory.Unspecified, "dev-1"); err != nil {
			t.Fatal(err)
		}
		b.now = e.Certificate.NotAfter
		if !b.listed("device-1", e.Certificate.Serial) {
			t.Error("it has left in the last second of its life")
		}
		b.now = b.now.Add(time.Second)
		if !b.listed("device-1", e.Certificate.Serial) {
			t.Error("it has left without having been in a CRL after its end (RFC 5280 §3.3)")
		}
		b.now = b.now.Add(time.Hour)
		if b.listed("device-1", e.Certificate.Serial) {
			t.Error("it stays for ever")
		}
	})
	t.Run("rev-020 what was handed out is what is recorded", func(t *testing.T) {
		b := newBench(t, "dev-1")
		e := b.enroll("dev-1")
		next := b.renew(e)
		_, creds := b.facts("dev-1")
		for _, want := range [][]byte{e.Chain[0], next.Chain[0]} {
			found := false
			for _, c := range creds {
				found = found || c.Kind == inventory.CertificateCredential && string(c.Certificate.DER) == string(want)
			}
			if !found {
				t.Error("a certificate that was handed out is not recorded octet for octet")
			}
		}
	})
	t.Run("rev-018 a device cannot be taken out of the inventory", func(t *testing.T) {
		b := newBench(t, "dev-1")
		e := b.enroll("dev-1")
		if _, err := b.Retire(t.Context(), "test", "", "dev-1"); err != nil {
			t.Fatal(err)
		}
		// There is no way to delete, and the name is not free for another.
		err := b.AddDevices(t.Context(), "test", "", []inventory.Device{{ID: "DEV-1", Profile: "default"}})
		if err == nil {
			t.Error("the ID of a retired device is given to another")
		}
		if !b.listed("device-1", e.Certificate.Serial) {
			t.Error("its certificate is not in the CRL")
		}
	})
}

// roll lets device-2 take over from device-1.
func (b *bench) roll() {
	b.t.Helper()
	ctx := b.t.Context()
	rec, csr, err := b.RequestIssuer(ctx, "test", inventory.DevicePurpose, b.newKey)
	if err != nil {
		b.t.Fatal(err)
	}
	der, err := b.sign(csr, rec.Generation)
	if err != nil {
		b.t.Fatal(err)
	}
	if rec, err = b.InstallIssuer(ctx, "test", der, true); err != nil {
		b.t.Fatal(err)
	}
	if rec.State != inventory.IssuerStandby {
		b.t.Errorf("installed to stand by, it is %s", rec.State)
	}
	if _, err := b.ActivateIssuer(ctx, "test", "", rec.Name); err != nil {
		b.t.Fatal(err)
	}
}

// A full CRL calls the issuer that stands by, and no other.
func TestRollIfFull(t *testing.T) {
	b := newBench(t, "dev-1", "dev-2", "dev-3")
	ctx := t.Context()
	for _, id := range []string{"dev-1", "dev-2"} {
		b.enroll(id)
		if _, err := b.Revoke(ctx, "test", "", inventory.Unspecified, inventory.DeviceID(id)); err != nil {
			t.Fatal(err)
		}
	}
	if next, err := b.RollIfFull(ctx, "test", 1); next != "" || err != nil {
		t.Errorf("nobody stands by, and %q takes over, %v", next, err)
	}
	rec, csr, err := b.RequestIssuer(ctx, "test", inventory.DevicePurpose, b.newKey)
	if err != nil {
		t.Fatal(err)
	}
	der, err := b.sign(csr, rec.Generation)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.InstallIssuer(ctx, "test", der, true); err != nil {
		t.Fatal(err)
	}
	if next, err := b.RollIfFull(ctx, "test", 1); next != "" || err != nil {
		t.Errorf("%q takes over without a CRL that brokers could have, %v", next, err)
	}
	if _, err := b.PublishCRL(ctx, "test", "device-2", nil, false); err != nil {
		t.Fatal(err)
	}
	if next, err := b.RollIfFull(ctx, "test", 2); next != "" || err != nil {
		t.Errorf("%q takes over from one that is not full, %v", next, err)
	}
	if next, err := b.RollIfFull(ctx, "test", 1); next != "device-2" || err != nil {
		t.Errorf("%q takes over, %v", next, err)
	}
	if e := b.enroll("dev-3"); len(e.Chain) != 2 || b.listed("device-2", e.Certificate.Serial) {
		t.Error("the next certificate is not of the new issuer")
	}
}

// newKey and sign are what is done at the root for the next issuer of devices.
func (b *bench) newKey(name string) (enroll.KeyRef, error) { return b.keys[name], nil }

func (b *bench) sign(csr []byte, generation uint32) ([]byte, error) {
	all, err := b.Issuers(b.t.Context())
	if err != nil {
		return nil, err
	}
	for _, iss := range all {
		if iss.Purpose == inventory.RootPurpose {
			return enroll.SignIssuer(iss.Certificate, b.keys[iss.Name].Signer, csr, inventory.DevicePurpose, generation, b.clock)
		}
	}
	return nil, inventory.ErrNotFound
}
