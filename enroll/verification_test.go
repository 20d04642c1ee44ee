package enroll_test

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
)

// proofCode is a code as AWS IoT Core gives it.
const proofCode = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func (b *bench) prove(code, issuer string) (*x509.Certificate, inventory.Issuer) {
	b.t.Helper()
	cert, by, err := b.SignVerification(b.t.Context(), "test", code, issuer)
	if err != nil {
		b.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(cert.DER)
	if err != nil {
		b.t.Fatal(err)
	}
	return c, by
}

// TestSignVerification: the proof has the code and nothing else in its name, comes from
// the CA that was meant, and is in the inventory with its entry in the audit log.
func TestSignVerification(t *testing.T) {
	for _, tt := range []struct{ issuer, want string }{{"", "device-1"}, {"device-1", "device-1"}, {"server-1", "server-1"}, {"root-1", "root-1"}} {
		t.Run(tt.issuer, func(t *testing.T) {
			b := newBench(t)
			c, by := b.prove(proofCode, tt.issuer)
			parent, err := x509.ParseCertificate(by.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.CheckSignatureFrom(parent); err != nil || by.Name != tt.want {
				t.Errorf("signed by %s, want %s: %v", by.Name, tt.want, err)
			}
			if got := c.Subject.String(); got != "CN="+proofCode {
				t.Errorf("subject %s", got)
			}
			if c.NotAfter.After(b.now.Add(24 * time.Hour)) {
				t.Errorf("good until %s, and it is %s", c.NotAfter, b.now)
			}
			d, creds := b.facts("verify-" + tt.want)
			if d.Kind != inventory.Server || len(creds) != 1 || string(creds[0].Certificate.DER) != string(c.Raw) || creds[0].Certificate.Issuer != by.KeyID {
				t.Errorf("recorded as %+v, %d credentials", d, len(creds))
			}
			e := b.lastEvent()
			names := func(o inventory.Object) bool {
				return o.Kind == "certificate" && o.ID == creds[0].Certificate.Serial.String()
			}
			if e.Action != "ca.verification" || e.Actor != "test" || !slices.ContainsFunc(e.Objects, names) {
				t.Errorf("in the audit log: %+v", e)
			}
		})
	}
}

func (b *bench) lastEvent() (last inventory.Event) {
	b.t.Helper()
	err := b.store.Read(b.t.Context(), func(in inventory.Reader) error {
		for e, err := range in.Events(in.Revision()) {
			if err != nil {
				return err
			}
			last = e
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return last
}

// A second proof for the same CA takes the place of the first; one for another CA does
// not.
func TestSignVerificationAgain(t *testing.T) {
	b := newBench(t)
	first, _ := b.prove(proofCode, "")
	b.prove(proofCode, "root-1")
	if _, creds := b.facts("verify-device-1"); len(creds) != 1 || creds[0].State != inventory.CredentialActive {
		t.Fatalf("the proof for the root ended that for device-1: %+v", creds)
	}
	second, _ := b.prove("another", "")
	_, creds := b.facts("verify-device-1")
	if len(creds) != 2 || creds[0].State != inventory.CredentialRevoked || creds[0].Reason != inventory.Superseded || creds[1].State != inventory.CredentialActive {
		t.Fatalf("%+v", creds)
	}
	if string(first.RawSubjectPublicKeyInfo) == string(second.RawSubjectPublicKeyInfo) {
		t.Error("two proofs for one key: it has been kept")
	}
}

// Nobody can log in with a proof: not with imprint, not with a broker that asks it.
func TestVerificationIsNoClient(t *testing.T) {
	b := newBench(t, "dev-1")
	b.enroll("dev-1")
	broker := b.broker(inventory.Token{})
	for _, code := range []string{proofCode, "dev-2"} {
		c, _ := b.prove(code, "")
		if _, err := b.Certificate(t.Context(), enroll.Peer{Chain: []*x509.Certificate{c}}); !errors.Is(err, enroll.ErrNoCertificate) {
			t.Errorf("code %s is recognised: %v", code, err)
		}
		for _, l := range []enroll.Login{
			{ClientID: code, CommonName: code},
			{ClientID: code, CommonName: code, Certificate: c.Raw},
			{ClientID: "dev-1", CommonName: "dev-1", Certificate: c.Raw},
			{ClientID: "verify-device-1", CommonName: "verify-device-1", Certificate: c.Raw},
		} {
			if b.Admit(t.Context(), broker, l).Allowed {
				t.Errorf("code %s: a broker lets in %s", code, l.ClientID)
			}
		}
	}
	err := b.store.Read(t.Context(), func(in inventory.Reader) error {
		for h, err := range enroll.Holdings(in) {
			if err != nil || h.Device.ID != "dev-1" {
				t.Errorf("%s is among the devices: %v", h.Device.ID, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSignVerificationRefuses(t *testing.T) {
	b := newBench(t, "dev-1", "cafe")
	b.requestIssuer()
	before := b.revision()
	isConfig := func(err error) bool { _, ok := errors.AsType[*ca.ConfigError](err); return ok }
	isInvalid := func(err error) bool { _, ok := errors.AsType[*inventory.InvalidError](err); return ok }
	is := func(target error) func(error) bool {
		return func(err error) bool { return errors.Is(err, target) }
	}
	for _, tt := range []struct {
		name, code, issuer string
		want               func(error) bool
	}{
		{"no code", "", "", isConfig},
		{"too long a code", proofCode + "0", "", isConfig},
		{"two names in one", "a/CN=dev-1", "", isConfig},
		{"the id of a device", "dev-1", "", isInvalid},
		{"the id of a device in another case", "CAFE", "", isInvalid},
		{"no such issuer", proofCode, "device-9", is(inventory.ErrNotFound)},
		{"an issuer without a certificate", proofCode, "device-2", is(enroll.ErrDenied)},
	} {
		if _, _, err := b.SignVerification(t.Context(), "test", tt.code, tt.issuer); !tt.want(err) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if now := b.revision(); now != before {
		t.Errorf("what was refused has changed the inventory: revision %d, was %d", now, before)
	}
}

// A CA can be registered before it issues, and not any more once it is retired.
func TestSignVerificationWhileIssuersChange(t *testing.T) {
	b := newBench(t)
	_, root := b.prove(proofCode, "root-1")
	der, err := enroll.SignIssuer(root.Certificate, b.keys["root-1"].Signer, b.requestIssuer(), inventory.DevicePurpose, 2, b.clock)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.InstallIssuer(t.Context(), "test", der, true); err != nil {
		t.Fatal(err)
	}
	if _, by := b.prove(proofCode, "device-2"); by.Name != "device-2" || by.State != inventory.IssuerStandby {
		t.Errorf("signed by %s, which is %s", by.Name, by.State)
	}
	if _, by := b.prove(proofCode, ""); by.Name != "device-1" {
		t.Errorf("while device-2 stands by, %s signs", by.Name)
	}
	if _, err := b.ActivateIssuer(t.Context(), "test", "", "device-2"); err != nil {
		t.Fatal(err)
	}
	if _, by := b.prove(proofCode, ""); by.Name != "device-2" {
		t.Errorf("after device-2 took over, %s signs", by.Name)
	}
	if _, err := b.RetireIssuer(t.Context(), "test", "", "device-1", false); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.SignVerification(t.Context(), "test", proofCode, "device-1"); !errors.Is(err, enroll.ErrDenied) {
		t.Errorf("a retired issuer: %v", err)
	}
}

// requestIssuer leaves device-2 without a certificate, and returns the request for one.
func (b *bench) requestIssuer() []byte {
	b.t.Helper()
	_, csr, err := b.RequestIssuer(b.t.Context(), "test", inventory.DevicePurpose, func(string) (enroll.KeyRef, error) { return b.keys["device-2"], nil })
	if err != nil {
		b.t.Fatal(err)
	}
	return csr
}

// I1: what has not been recorded does not leave.
func TestSignVerificationNotRecorded(t *testing.T) {
	b := newBench(t)
	full := errors.New("no space")
	b.store.fail(func(inventory.Change) error { return full }, nil)
	if cert, _, err := b.SignVerification(context.Background(), "test", strings.ToUpper(proofCode), ""); !errors.Is(err, full) || cert != nil {
		t.Errorf("%v, %v, want nothing and the error of the store", cert, err)
	}
}
