package enroll_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"flag"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
	"github.com/imprint-iot/imprint/inventory/durable"
)

var (
	longSteps = flag.Int("long-steps", 0, "steps of TestLongLife; 0 means 100,000, or 3,000 with the race detector")
	longSeed  = flag.Uint64("long-seed", 0, "seed of TestLongLife; 0 draws one")
)

// A life is a fleet that lives long: whatever can happen to it happens, in any order,
// and what must always hold is looked at all the time.
//
//	I1   every certificate that was handed out is in the inventory, octet for octet
//	I2   what was said to be revoked is revoked, after any crash and any restore
//	I3   no serial number comes twice
//	I4   CRL numbers grow, and entries leave only after expiry
//	I5   a device has one active certificate, or two while it renews
//	I12  there is no way back from revoked, except from a hold
//	I16  I2 to I4 hold after a restore
type life struct {
	t      *testing.T
	rng    *mrand.Rand
	reg    *enroll.Registrar
	cfg    boltstore.Config
	keys   map[string]enroll.KeyRef
	clock  time.Time
	backup []byte

	things  []*lived
	serials map[inventory.Serial]bool
	revoked map[inventory.Serial]revocation // for ever
	crls    map[string][]byte               // DER, by issuer
	numbers map[string]uint64
	done    map[string]int
	store   *boltstore.Store
}

type revocation struct {
	issuer   string
	notAfter time.Time
}

// lived is a device as it knows itself: what it was handed, and what it was told.
type lived struct {
	id    inventory.DeviceID
	state inventory.DeviceState
	certs []*livedCert
}

type livedCert struct {
	der    []byte
	serial inventory.Serial
	issuer string
	ends   time.Time
	dead   bool // revoked for ever
}

func newLife(t *testing.T, seed uint64) *life {
	t.Helper()
	l := &life{
		t: t, rng: mrand.New(mrand.NewPCG(seed, 1)), keys: map[string]enroll.KeyRef{}, clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		serials: map[inventory.Serial]bool{}, revoked: map[inventory.Serial]revocation{}, crls: map[string][]byte{}, numbers: map[string]uint64{}, done: map[string]int{},
	}
	path := t.TempDir()
	if memory, err := os.MkdirTemp("/dev/shm", "life"); err == nil { // the same calls, and no waiting for a disk
		path = memory
		t.Cleanup(func() { _ = os.RemoveAll(memory) })
	}
	dir, err := durable.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	l.cfg = boltstore.Config{Dir: dir, Instance: [16]byte{1}, Key: [32]byte{2}, Mapped: -1, Create: true}
	l.open()
	l.cfg.Create = false
	f := enroll.Foundation{Actor: "test", Organization: "acme", Now: l.now, Profiles: []inventory.Profile{{Name: "default", Grace: 48 * time.Hour, Certificate: []byte(`{"validity":"20d"}`)}}}
	for name, ref := range map[string]*enroll.KeyRef{"root-1": &f.Root, "device-1": &f.Device, "server-1": &f.Server} {
		key, err := ca.GenerateKey(ca.P256)
		if err != nil {
			t.Fatal(err)
		}
		*ref = enroll.KeyRef{URI: name, Signer: key}
		l.keys[name] = *ref
	}
	if err := enroll.Found(t.Context(), l.store, f); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *life) now() time.Time { return l.clock }

// open opens the store, as after a crash, and a registrar that knows nothing.
func (l *life) open() {
	l.t.Helper()
	var err error
	if l.store, err = boltstore.Open(l.t.Context(), l.cfg); err != nil {
		l.t.Fatal(err)
	}
	l.reg, err = enroll.New(enroll.Config{
		Store: l.store, Organization: "acme", TrustDomain: "acme", Now: l.now,
		Open: func(_ context.Context, iss inventory.Issuer) (*ca.Issuer, error) {
			cert, err := x509.ParseCertificate(iss.Certificate)
			if err != nil {
				return nil, err
			}
			return ca.NewIssuer(cert, l.keys[iss.Key].Signer, l.now)
		},
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *life) fatalf(format string, args ...any) {
	l.t.Helper()
	l.t.Fatalf(format, args...)
}

// want holds an error to what the model says.
func (l *life) want(what string, allowed bool, err error) bool {
	l.t.Helper()
	if (err == nil) != allowed {
		l.fatalf("%s: %v, allowed: %t", what, err, allowed)
	}
	l.done[what+map[bool]string{true: "", false: " (refused)"}[allowed]]++
	return allowed
}

func (d *lived) final() bool { return d.state == inventory.Revoked || d.state == inventory.Retired }

func (l *life) usable(c *livedCert) bool { return !c.dead && !l.clock.After(c.ends) }

// take notes a certificate that was handed out.
func (l *life) take(d *lived, e *enroll.Enrollment) {
	l.t.Helper()
	c := e.Certificate
	if l.serials[c.Serial] {
		l.fatalf("serial number %s comes twice (I3)", c.Serial)
	}
	l.serials[c.Serial] = true
	x, err := x509.ParseCertificate(c.DER)
	if err != nil || x.Subject.CommonName != string(d.id) {
		l.fatalf("certificate of %s: %v, %s", d.id, err, x.Subject)
	}
	d.certs = append(d.certs, &livedCert{der: c.DER, serial: c.Serial, issuer: x.Issuer.CommonName, ends: c.NotAfter})
	d.state = inventory.Active
}

// kill notes that certificates are revoked for ever.
func (l *life) kill(certs ...*livedCert) {
	for _, c := range certs {
		c.dead = true
		l.revoked[c.serial] = revocation{c.issuer, c.ends}
	}
}

// step does one thing.
func (l *life) step() {
	ctx := l.t.Context()
	if len(l.things) == 0 || l.rng.IntN(25) == 0 {
		d := &lived{id: inventory.DeviceID(fmt.Sprintf("d%d", len(l.things))), state: inventory.Registered}
		l.want("add", true, l.reg.AddDevices(ctx, "test", "", []inventory.Device{{ID: d.id, Profile: "default"}}))
		l.things = append(l.things, d)
	}
	// Mostly the youngest: what is over does not come back.
	d := l.things[max(0, len(l.things)-1-l.rng.IntN(min(len(l.things), 12)))]
	switch n := l.rng.IntN(100); {
	case n < 22:
		l.enroll(ctx, d)
	case n < 45:
		l.renew(ctx, d)
	case n < 47:
		_, err := l.reg.Revoke(ctx, "test", "", inventory.Unspecified, d.id)
		if l.want("revoke", d.state != inventory.Retired, err) {
			l.kill(d.certs...)
			d.state = inventory.Revoked
		}
	case n < 48:
		_, err := l.reg.Retire(ctx, "test", "", d.id)
		if l.want("retire", d.state != inventory.Revoked, err) {
			l.kill(d.certs...)
			d.state = inventory.Retired
		}
	case n < 54:
		_, err := l.reg.Suspend(ctx, "test", "", d.id)
		if l.want("suspend", !d.final(), err) {
			d.state = inventory.Suspended
		}
	case n < 64:
		_, err := l.reg.Resume(ctx, "test", "", d.id)
		if l.want("resume", !d.final(), err) && d.state == inventory.Suspended {
			d.state = inventory.Registered
			if len(d.certs) > 0 {
				d.state = inventory.Active
			}
		}
	case n < 70:
		l.revokeOne(ctx, d)
	case n < 78:
		l.publish(ctx)
	case n < 82:
		_, err := l.reg.SendCanary(ctx, "test", "node")
		l.want("canary", true, err)
	case n < 92:
		most := 4 * 3600
		if l.rng.IntN(50) == 0 {
			most = 20 * 86400 // some have not been heard of for long
		}
		l.clock = l.clock.Add(time.Duration(l.rng.IntN(most)) * time.Second)
	default:
		l.disaster(ctx)
	}
}

func (l *life) enroll(ctx context.Context, d *lived) {
	rekey := l.rng.IntN(2) == 0
	allowed := d.state == inventory.Registered || d.state == inventory.Active
	if !rekey && slices.ContainsFunc(d.certs, l.usable) {
		allowed = false
	}
	e, err := l.reg.Enroll(ctx, enroll.Request{Actor: "test", Device: d.id, Rekey: rekey})
	if !l.want("enroll", allowed, err) {
		return
	}
	if rekey {
		l.kill(d.certs...)
	}
	l.take(d, e)
}

// renew shows one of the certificates of the device, also an old or a dead one, asks
// for the next, loses the answer now and then, and confirms now and then.
func (l *life) renew(ctx context.Context, d *lived) {
	if len(d.certs) == 0 {
		return
	}
	shown := d.certs[max(0, len(d.certs)-1-l.rng.IntN(2))]
	leaf, err := x509.ParseCertificate(shown.der)
	if err != nil {
		l.fatalf("%v", err)
	}
	p, err := l.reg.Certificate(ctx, enroll.Peer{Chain: []*x509.Certificate{leaf}})
	if !l.want("show", d.state == inventory.Active && !shown.dead, err) {
		return
	}
	if l.rng.IntN(3) == 0 {
		_, err := l.reg.Confirm(ctx, p, true, "")
		if l.want("confirm", l.usable(shown), err) {
			for _, c := range d.certs {
				if c == shown {
					break
				}
				l.kill(c)
			}
		}
		return
	}
	key, err := ca.GenerateKey(ca.P256)
	if err != nil {
		l.fatalf("%v", err)
	}
	csr := requestOf(l.t, key, string(d.id))
	newest := shown == d.certs[len(d.certs)-1]
	allowed := l.usable(shown) || newest && !l.clock.After(shown.ends.Add(48*time.Hour))
	e, err := l.reg.Renew(ctx, p, enroll.Ask{CSR: csr})
	if !l.want("renew", allowed, err) {
		return
	}
	if again, err := l.reg.Renew(ctx, p, enroll.Ask{CSR: csr}); err != nil || !bytes.Equal(again.Certificate.DER, e.Certificate.DER) {
		l.fatalf("the same request again: %v, want the same certificate", err)
	}
	for _, c := range d.certs {
		if c != shown {
			l.kill(c)
		}
	}
	l.take(d, e)
}

// revokeOne ends one certificate, and with keyCompromise what was renewed from it.
func (l *life) revokeOne(ctx context.Context, d *lived) {
	if len(d.certs) == 0 {
		return
	}
	c := d.certs[l.rng.IntN(len(d.certs))]
	_, err := l.reg.RevokeCertificates(ctx, "test", "", inventory.AffiliationChanged, c.serial)
	if l.want("revoke one", true, err) {
		l.kill(c)
	}
}

func (l *life) publish(ctx context.Context) {
	issuers, err := l.reg.Issuers(ctx)
	if err != nil {
		l.fatalf("%v", err)
	}
	for _, iss := range issuers {
		if iss.Purpose != inventory.DevicePurpose || iss.State == inventory.IssuerPending {
			continue
		}
		crl, err := l.reg.PublishCRL(ctx, "test", iss.Name, l.crls[iss.Name], l.rng.IntN(4) == 0)
		if errors.Is(err, enroll.ErrNotRecorded) {
			l.fatalf("CRL %s: %v: a number was given twice or went back (I4)", iss.Name, err)
		}
		if err != nil {
			l.fatalf("%v", err)
		}
		same := bytes.Equal(crl.DER, l.crls[iss.Name])
		if crl.Number < l.numbers[iss.Name] || crl.Number == l.numbers[iss.Name] && !same {
			l.fatalf("CRL %d of %s after %d (I4)", crl.Number, iss.Name, l.numbers[iss.Name])
		}
		l.crls[iss.Name], l.numbers[iss.Name] = crl.DER, crl.Number
		l.checkCRL(iss, crl.DER)
	}
	l.done["publish"]++
}

// checkCRL: everything that is revoked and has not expired is listed (I2).
func (l *life) checkCRL(iss inventory.Issuer, der []byte) {
	l.t.Helper()
	list, err := ca.ReadCRL(der)
	if err != nil {
		l.fatalf("%v", err)
	}
	cert, err := x509.ParseCertificate(iss.Certificate)
	if err != nil {
		l.fatalf("%v", err)
	}
	listed := map[inventory.Serial]bool{}
	for e := range list.All() {
		listed[e.Serial] = true
	}
	for serial, r := range l.revoked {
		if r.issuer == cert.Subject.CommonName && !listed[serial] && !list.ThisUpdate.After(r.notAfter) {
			l.fatalf("%s is revoked, ends on %s and is not in CRL %d of %s (I2)", serial, r.notAfter, list.Number, list.ThisUpdate)
		}
	}
}

// disaster is a crash, a backup, a restore, or a new issuer.
func (l *life) disaster(ctx context.Context) {
	switch l.rng.IntN(12) {
	case 0, 1, 2:
		if err := l.store.Close(); err != nil {
			l.fatalf("%v", err)
		}
		l.open()
		l.done["crash"]++
	case 3:
		var b bytes.Buffer
		if err := l.store.Backup(ctx, &b); err != nil {
			l.fatalf("%v", err)
		}
		l.backup = b.Bytes()
		l.done["backup"]++
	case 4:
		if l.rng.IntN(6) == 0 { // it reads and checks everything
			l.restore(ctx)
		}
	case 5:
		if l.rng.IntN(40) == 0 {
			l.roll(ctx)
		}
	default:
		l.check(ctx)
	}
}

// restore puts the last backup back. What was handed out since is not in the inventory
// any more, except for what is revoked; the devices are taken to have lost it.
func (l *life) restore(ctx context.Context) {
	if l.backup == nil {
		return
	}
	if err := l.store.Close(); err != nil {
		l.fatalf("%v", err)
	}
	if err := boltstore.Restore(ctx, bytes.NewReader(l.backup), l.cfg); err != nil {
		l.fatalf("restore: %v", err)
	}
	l.open()
	l.done["restore"]++
	l.relearn(ctx)
}

// relearn reads what became of each device. What was revoked before has to be so now:
// that is checked against what the model knew.
func (l *life) relearn(ctx context.Context) {
	var kept []*lived
	for _, d := range l.things {
		rec, err := l.reg.Device(ctx, d.id)
		if errors.Is(err, inventory.ErrNotFound) {
			continue // made after the backup
		}
		if err != nil {
			l.fatalf("%v", err)
		}
		if d.final() && rec.Device.State != d.state {
			l.fatalf("%s was %s and is %s after a restore (I2, I16)", d.id, d.state, rec.Device.State)
		}
		if d.state == inventory.Suspended && rec.Device.State == inventory.Active {
			l.fatalf("%s was suspended and is active after a restore (I2, I16)", d.id)
		}
		d.state = rec.Device.State
		known := map[inventory.Serial]bool{}
		for i := range rec.Credentials {
			if c := rec.Credentials[i]; c.Kind == inventory.CertificateCredential {
				known[c.Certificate.Serial] = c.State != inventory.CredentialRevoked
			}
		}
		d.certs = slices.DeleteFunc(d.certs, func(c *livedCert) bool {
			live, ok := known[c.serial]
			if ok && live && c.dead {
				l.fatalf("certificate %s of %s was revoked and is good after a restore (I2, I16)", c.serial, d.id)
			}
			if ok && !live {
				l.kill(c)
			}
			return !ok
		})
		kept = append(kept, d)
	}
	// A device whose ID was made after the backup may be made again.
	l.things = kept
}

func (l *life) roll(ctx context.Context) {
	rec, csr, err := l.reg.RequestIssuer(ctx, "test", inventory.DevicePurpose, func(name string) (enroll.KeyRef, error) {
		key, err := ca.GenerateKey(ca.P256)
		l.keys[name] = enroll.KeyRef{URI: name, Signer: key}
		return l.keys[name], err
	})
	if err != nil {
		l.done["roll (refused)"]++
		return
	}
	issuers, err := l.reg.Issuers(ctx)
	if err != nil {
		l.fatalf("%v", err)
	}
	root := issuers[slices.IndexFunc(issuers, func(i inventory.Issuer) bool { return i.Purpose == inventory.RootPurpose })]
	der, err := enroll.SignIssuer(root.Certificate, l.keys["root-1"].Signer, csr, inventory.DevicePurpose, rec.Generation, l.now)
	if err != nil {
		l.fatalf("%v", err)
	}
	if _, err := l.reg.InstallIssuer(ctx, "test", der, false); err != nil {
		l.fatalf("%v", err)
	}
	l.done["roll"]++
	l.backup = nil // one without the new key cannot be gone back to here
}

// check compares the inventory with what is known of each device.
func (l *life) check(ctx context.Context) {
	d := l.things[l.rng.IntN(len(l.things))]
	rec, err := l.reg.Device(ctx, d.id)
	if err != nil {
		l.fatalf("%v", err)
	}
	if rec.Device.State != d.state {
		l.fatalf("%s is %s, want %s", d.id, rec.Device.State, d.state)
	}
	have := map[inventory.Serial]*inventory.Credential{}
	active := 0
	for i := range rec.Credentials {
		if c := &rec.Credentials[i]; c.Kind == inventory.CertificateCredential {
			have[c.Certificate.Serial] = c
			if c.Usable(l.clock) {
				active++
			}
		}
	}
	if active > 2 {
		l.fatalf("%s has %d active certificates (I5)", d.id, active)
	}
	for _, c := range d.certs {
		got := have[c.serial]
		if got == nil || !bytes.Equal(got.Certificate.DER, c.der) {
			l.fatalf("certificate %s of %s is not in the inventory (I1)", c.serial, d.id)
		}
		if (got.State == inventory.CredentialRevoked) != c.dead {
			l.fatalf("certificate %s of %s is %s, dead: %t (I2)", c.serial, d.id, got.State, c.dead)
		}
	}
	l.done["check"]++
}

func requestOf(t *testing.T, key crypto.Signer, id string) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestLongLife lets a fleet live through everything in any order. A failure says with
// which seed it comes again.
func TestLongLife(t *testing.T) {
	steps, seed := *longSteps, *longSeed
	if steps == 0 {
		steps = 100_000
		if raceEnabled {
			steps = 3_000
		}
	}
	if seed == 0 {
		seed = mrand.Uint64()
	}
	l := newLife(t, seed)
	defer func() {
		_ = l.store.Close() // it may have been closed by a failure
		if t.Failed() {
			t.Logf("again with: go test ./enroll -run TestLongLife -long-seed %d -long-steps %d", seed, steps)
		}
	}()
	for range steps {
		l.step()
	}
	for _, need := range []string{"restore", "crash", "renew", "renew (refused)", "revoke one", "resume", "publish", "canary"} {
		if l.done[need] == 0 && steps >= 50_000 {
			t.Errorf("nothing of the kind %q happened", need)
		}
	}
	err := l.store.Read(t.Context(), func(in inventory.Reader) error {
		n, _, err := inventory.VerifyChain(in.Events(1))
		if err == nil && n != in.Revision() {
			err = fmt.Errorf("%d entries for %d changes (I9)", n, in.Revision())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if report, err := l.store.Check(t.Context()); err != nil || len(report.Faults) > 0 {
		t.Errorf("%v, %v", report.Faults, err)
	}
	t.Logf("%d devices, %v", len(l.things), l.done)
}
