package inventory_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// TestParseDeviceID holds the grammar against what breaks brokers, files and
// shells. The names are those of the cases.
func TestParseDeviceID(t *testing.T) {
	for name, ids := range map[string][]string{
		"id-001 paths":      {"../../etc/passwd", "..", ".", "a/../b", "%2e%2e%2f", `..\x`},
		"id-002 lines":      {"x\nuser admin\ntopic #", "x\r", "x\r\ny"},
		"id-004 levels":     {"a/b", "/"},
		"id-006 system":     {"$SYS", "$share", "$aws"},
		"id-007 NUL":        {"a\x00", "\x00"},
		"id-011 length":     {strings.Repeat("a", 65), strings.Repeat("a", 64<<10), strings.Repeat("a", 1<<20)},
		"id-012 emptiness":  {"", " ", "a ", " a", "\t"},
		"id-013 formulas":   {"=cmd|x", "+1", "-1", "@x", "\ta"},
		"id-015 reserved":   {"admin", "root", "Anonymous", "$SYS", "CON", "nul", "COM1", "aux", "default", "*"},
		"id-016 characters": {`a"b`, `a\b`, "a`b", "${clientid}", "%u", "%c", "{{.}}", "<script>", "a'b"},
		"id-017 separators": {"a;b", "a b", "a|b", "a,b", "a=b", "a:b", "a.b", "a+b", "a#b"},
		"unicode":           {"gerät", "а", "a\u202eb", "\ufeffa", "a\u200d"},
		"first character":   {"_a", "-a"},
	} {
		for _, id := range ids {
			_, err := inventory.ParseDeviceID(id)
			if _, ok := errors.AsType[*inventory.InvalidError](err); !ok {
				t.Errorf("%s: %.40q: %v, want an *InvalidError", name, id, err)
			} else if len(err.Error()) > 512 || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("%s: the error is %d bytes, or more than one line", name, len(err.Error()))
			}
		}
	}
	for _, id := range []string{"a", "0", "dev-1", "Dev_1", strings.Repeat("a", 64), "1e9", "0x10", "true", "null-1", "AABBCCDDEEFF"} {
		got, err := inventory.ParseDeviceID(id)
		if err != nil || string(got) != id {
			t.Errorf("%q: %q, %v", id, got, err)
		}
	}
	if inventory.DeviceID("Dev-1").Canonical() != inventory.DeviceID("dEV-1").Canonical() {
		t.Error("case matters")
	}
}

func TestParseSerial(t *testing.T) {
	for text, want := range map[string]string{
		"0A:0B":                            "00000000000000000000000000000a0b",
		"00000000000000000000000000000001": "00000000000000000000000000000001",
		"abc":                              "00000000000000000000000000000abc",
		"":                                 "",
		"xyz":                              "",
		strings.Repeat("a", 33):            "",
	} {
		s, err := inventory.ParseSerial(text)
		if (err == nil) != (want != "") || err == nil && s.String() != want {
			t.Errorf("%q: %s, %v; want %s", text, s, err, want)
		}
	}
	k := inventory.SPKI{1, 2}
	if back, err := inventory.ParseSPKI(k.String()); err != nil || back != k {
		t.Errorf("%s reads back as %s, %v", k, back, err)
	}
	if _, err := inventory.ParseSPKI(strings.TrimPrefix(k.String(), "spki-sha256:")); err == nil {
		t.Error("a fingerprint is taken for a key")
	}
}

// TestSecret is sec-004: nothing prints a secret.
func TestSecret(t *testing.T) {
	s := inventory.NewSecret([]byte("hunter2"))
	type holder struct {
		Password inventory.Secret
		inner    inventory.Secret // what %+v looks into
	}
	h := holder{s, s}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", slog.Any("secret", s), slog.Any("holder", h))
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %s %q %x %d", s, s, s, s, s, s, s), fmt.Sprintf("%v %+v %#v", h, h, &h), string(b), log.String(), s.String(),
	} {
		if strings.Contains(text, "hunter2") || strings.Contains(text, fmt.Sprintf("%x", "hunter2")) || strings.Contains(text, "104 117") {
			t.Errorf("printed: %s", text)
		}
	}
	if string(s.Reveal()) != "hunter2" {
		t.Error("Reveal does not")
	}
	s.Wipe()
	if strings.Contains(string(s.Reveal()), "h") {
		t.Error("Wipe does not")
	}
	if reflect.TypeFor[inventory.Secret]().Comparable() {
		t.Error("secrets can be compared with ==")
	}
}

// TestCheckCredential is rev-006 and rev-005: no way back from revoked.
func TestCheckCredential(t *testing.T) {
	day := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	cert := &inventory.Certificate{DER: []byte("x")}
	at := func(s inventory.CredentialState, r inventory.Reason, when time.Time) *inventory.Credential {
		return &inventory.Credential{Device: "d", Kind: inventory.CertificateCredential, Generation: 1, Certificate: cert, State: s, Reason: r, RevokedAt: when}
	}
	active, held := at(inventory.CredentialActive, 0, time.Time{}), at(inventory.CredentialHeld, inventory.CertificateHold, day)
	revoked := at(inventory.CredentialRevoked, inventory.Superseded, day)
	for _, tt := range []struct {
		name       string
		have, next *inventory.Credential
		ok         bool
	}{
		{"revoke", active, revoked, true},
		{"hold", active, held, true},
		{"resume", held, active, true},
		{"revoke what is held", held, revoked, true},
		{"un-revoke", revoked, active, false},
		{"hold what is revoked", revoked, held, false},
		{"another date", revoked, at(inventory.CredentialRevoked, inventory.Superseded, day.Add(time.Hour)), false},
		{"worse reason", revoked, at(inventory.CredentialRevoked, inventory.KeyCompromise, day), true},
		{"better reason", at(inventory.CredentialRevoked, inventory.KeyCompromise, day), revoked, false},
		{"stale", active, &inventory.Credential{Kind: inventory.CertificateCredential, Certificate: cert, Revision: 7}, false},
		{"another certificate", active, &inventory.Credential{Kind: inventory.CertificateCredential, Certificate: &inventory.Certificate{DER: []byte("y")}, State: inventory.CredentialActive}, false},
	} {
		err := inventory.CheckCredential(tt.have, tt.next)
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, inventory.ErrConflict) {
			t.Errorf("%s: %v, want ok: %v", tt.name, err, tt.ok)
		}
	}
	states := []inventory.DeviceState{inventory.Registered, inventory.Active, inventory.Suspended, inventory.Revoked, inventory.Retired}
	for _, from := range states {
		for _, to := range states {
			err := inventory.CheckDevice(&inventory.Device{State: from}, &inventory.Device{State: to})
			final := from == inventory.Revoked || from == inventory.Retired
			back := from == inventory.Active && to == inventory.Registered
			if want := from == to || !final && !back; (err == nil) != want {
				t.Errorf("%s to %s: %v", from, to, err)
			}
		}
	}
}

// chain makes an audit log.
func chain(n int) []inventory.Event {
	events := make([]inventory.Event, n)
	var prev inventory.Hash
	for i := range events {
		events[i] = inventory.Event{
			Time: time.Unix(int64(1_800_000_000+i), 0).UTC(), Actor: "cli:x", Action: "device.add", Reason: fmt.Sprint(i),
			Objects: []inventory.Object{{Kind: "device", ID: fmt.Sprintf("dev-%d", i)}, {Kind: "certificate", ID: "ab", Note: "n"}},
		}
		events[i].Seal(uint64(i), prev)
		prev = events[i].Hash
	}
	return events
}

func all(events []inventory.Event) iter.Seq2[inventory.Event, error] {
	return func(yield func(inventory.Event, error) bool) {
		for _, e := range events {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// TestVerifyChain is aud-001: 10,000 random changes to a log, all of them found.
func TestVerifyChain(t *testing.T) {
	const n = 20
	good := chain(n)
	count, head, err := inventory.VerifyChain(all(good))
	if err != nil || count != n || head != good[n-1].Hash {
		t.Fatalf("a good log: %d, %s, %v", count, head, err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for trial := range 10_000 {
		events := chain(n)
		i, j := random.IntN(n), random.IntN(n)
		e := &events[i]
		switch kind := trial % 12; kind {
		case 0:
			events = append(events[:i], events[i+1:]...)
		case 1:
			if i == j {
				continue
			}
			events[i], events[j] = events[j], events[i]
		case 2:
			events = append(events[:i+1], events[i:]...)
		case 3:
			e.Actor += "x"
		case 4:
			e.Action = "device.revoke"
		case 5:
			e.Reason = ""
			if i == 0 {
				e.Reason = "other"
			}
		case 6:
			e.Time = e.Time.Add(time.Second)
		case 7:
			e.Objects[0].ID, e.Objects[0].Note = e.Objects[0].ID[:3], e.Objects[0].ID[3:]
		case 8:
			e.Digest[random.IntN(32)] ^= 1
		case 9:
			e.Prev[random.IntN(32)] ^= 1
		case 10:
			e.Hash[random.IntN(32)] ^= 1
		case 11: // forged: changed and sealed again, by somebody who has no other entry
			e.Reason = "forged"
			e.Seal(e.Seq-1, e.Prev)
		}
		count, got, err := inventory.VerifyChain(all(events))
		cut := trial%12 == 0 && i == n-1 || trial%12 == 11 && i == n-1 // seen only by the head
		if err == nil && (!cut || got == head && count == n) {
			t.Fatalf("trial %d, kind %d, entry %d: not found", trial, trial%12, i)
		}
		if _, ok := errors.AsType[*inventory.ChainError](err); err != nil && (!ok || !errors.Is(err, inventory.ErrCorrupt)) {
			t.Fatalf("trial %d: %v, want a *ChainError", trial, err)
		}
	}
}

// device is one with everything.
func device() inventory.Device {
	return inventory.Device{
		ID: "Dev-1", Kind: inventory.Equipment, HardwareSerial: "SN ü", Profile: "default", Group: "hall-1", State: inventory.Active, Revision: 7,
		Labels:  inventory.NewLabels(map[string]string{"site": "Bonn, \"left\"", "a": ""}),
		Created: time.Unix(1_800_000_000, 0).UTC(), Updated: time.Unix(1_800_000_001, 0).UTC(),
	}
}

func credential() inventory.Credential {
	return inventory.Credential{
		Device: "Dev-1", Kind: inventory.CertificateCredential, Generation: 3, State: inventory.CredentialRevoked, Reason: inventory.KeyCompromise,
		Certificate: &inventory.Certificate{DER: make([]byte, 490), Serial: inventory.Serial{1}, SPKI: inventory.SPKI{2}, Issuer: inventory.KeyID{3}, NotBefore: time.Unix(1_800_000_000, 0).UTC(), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)},
		Verifiers:   []inventory.Verifier{}, Created: time.Unix(1_800_000_000, 0).UTC(), ReplacedBy: 4, RevokedAt: time.Unix(1_800_000_002, 0).UTC(), Revision: 9,
	}
}

func TestRecordsReadBack(t *testing.T) {
	d := device()
	b, err := d.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := inventory.DecodeDevice(b); err != nil || fmt.Sprintf("%+v", back) != fmt.Sprintf("%+v", d) {
		t.Errorf("device: %+v, %v", back, err)
	}
	c := credential()
	b, err = c.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	back, err := inventory.DecodeCredential(b)
	if err != nil || fmt.Sprintf("%+v", *back.Certificate) != fmt.Sprintf("%+v", *c.Certificate) || back.Reason != c.Reason || !back.RevokedAt.Equal(c.RevokedAt) || back.Revision != 9 {
		t.Errorf("credential: %+v, %v", back, err)
	}
	p := inventory.Profile{Name: "p", Certificate: []byte(`{}`), Password: inventory.PasswordRule{Length: 40, Schemes: []inventory.Scheme{inventory.Bcrypt}}, Grace: time.Hour, Policy: topic.Policy{Rules: []topic.Rule{{Action: topic.Publish, Filter: "a/{id}", Shared: true}}}, Revision: 3}
	b, err = p.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := inventory.DecodeProfile(b); err != nil || !reflect.DeepEqual(back, p) {
		t.Errorf("profile: %+v, %v", back, err)
	}
	e := chain(2)[1]
	b, err = e.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := inventory.DecodeEvent(b); err != nil || !reflect.DeepEqual(back, e) {
		t.Errorf("event: %+v, %v", back, err)
	}
	// Every shorter form, and every longer one, is refused.
	b, err = d.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		if _, err := inventory.DecodeDevice(b[:i]); err == nil {
			t.Errorf("a device of %d of %d octets is read", i, len(b))
		}
	}
	if _, err := inventory.DecodeDevice(append(b, 0)); !errors.Is(err, inventory.ErrCorrupt) {
		t.Errorf("with an octet more: %v", err)
	}
	b[0]++
	if _, err := inventory.DecodeDevice(b); !errors.Is(err, inventory.ErrVersion) {
		t.Errorf("of a newer version: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	d, c, e := device(), credential(), chain(1)[0]
	k, a := token(), approval()
	for _, r := range []interface {
		AppendBinary([]byte) ([]byte, error)
	}{&d, &c, &e, &k, &a} {
		b, err := r.AppendBinary(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := inventory.DecodeDevice(b); err == nil {
			if back, err := d.AppendBinary(nil); err != nil || string(back) != string(b) {
				t.Errorf("a device has two forms: %x and %x, %v", b, back, err)
			}
		}
		if x, err := inventory.DecodeToken(b); err == nil {
			if back, err := x.AppendBinary(nil); err != nil || string(back) != string(b) {
				t.Errorf("a token has two forms: %x and %x, %v", b, back, err)
			}
			_ = x.Validate()
		}
		if x, err := inventory.DecodeApproval(b); err == nil {
			if back, err := x.AppendBinary(nil); err != nil || string(back) != string(b) {
				t.Errorf("an approval has two forms: %x and %x, %v", b, back, err)
			}
			_ = x.Validate()
		}
		_, _ = inventory.DecodeCredential(b)
		_, _ = inventory.DecodeProfile(b)
		_, _ = inventory.DecodeIssuer(b)
		_, _ = inventory.DecodeEvent(b)
		_, _ = inventory.DecodeRevocation(b)
	})
}

func BenchmarkDecode(b *testing.B) {
	d, c := device(), credential()
	device, err := d.AppendBinary(nil)
	if err != nil {
		b.Fatal(err)
	}
	cred, err := c.AppendBinary(nil)
	if err != nil {
		b.Fatal(err)
	}
	text, err := json.Marshal(map[string]any{"id": d.ID, "der": c.Certificate.DER, "serial": c.Certificate.Serial, "notAfter": c.Certificate.NotAfter, "labels": d.Labels})
	if err != nil {
		b.Fatal(err)
	}
	for name, fn := range map[string]func() error{
		"device":     func() error { _, err := inventory.DecodeDevice(device); return err },
		"credential": func() error { _, err := inventory.DecodeCredential(cred); return err },
		"JSON":       func() error { var v map[string]any; return json.Unmarshal(text, &v) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := fn(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
