package ca_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"pgregory.net/rapid"
)

func TestNewProfileRefuses(t *testing.T) {
	long := "http://a.example/" + strings.Repeat("a", 255)
	birth := ca.IDevIDConfig{HardwareType: "1.3.6.1.4.1.32473.7"}
	for _, tt := range []struct {
		field  string
		config ca.Config
	}{
		{"kind", ca.Config{Kind: "ca"}},
		{"kind", ca.Config{Kind: "Device"}},
		{"validity", ca.Config{Validity: -1}},
		{"validity", ca.Config{Validity: ca.Duration(time.Second)}},
		{"validity", ca.Config{Validity: ca.Duration(time.Hour + time.Millisecond)}},
		{"validity", ca.Config{Kind: ca.KindServer, Validity: ca.Never}},
		{"backdate", ca.Config{Backdate: -1}},
		{"backdate", ca.Config{Backdate: ca.Duration(24*time.Hour + 1)}},
		{"backdate", ca.Config{Validity: ca.Duration(time.Hour), Backdate: ca.Duration(time.Hour)}},
		{"keys", ca.Config{Keys: []ca.KeyAlgorithm{"P-224"}}},
		{"keys", ca.Config{Keys: []ca.KeyAlgorithm{""}}},
		{"keys", ca.Config{Keys: []ca.KeyAlgorithm{ca.P256, ca.P256}}},
		{"san-uri", ca.Config{SANURI: "spiffe://acme.example/device"}},
		{"san-uri", ca.Config{SANURI: "{id}"}},
		{"san-uri", ca.Config{SANURI: "urn:{id}:{id}"}},
		{"san-uri", ca.Config{SANURI: "urn:{id}:{serial}"}},
		{"san-uri", ca.Config{SANURI: "urn: {id}"}},
		{"san-uri", ca.Config{SANURI: "urn:ü:{id}"}},
		{"san-uri", ca.Config{Kind: ca.KindServer, SANURI: "urn:{id}"}},
		{"crl-distribution-points", ca.Config{CRLDistributionPoints: []string{"ldap://a.example/"}}},
		{"crl-distribution-points", ca.Config{CRLDistributionPoints: []string{"http://"}}},
		{"crl-distribution-points", ca.Config{CRLDistributionPoints: []string{long}}},
		{"ocsp", ca.Config{OCSP: []string{"http://user:password@a.example/"}}},
		{"ocsp", ca.Config{OCSP: []string{"http://a.example/\n"}}},
		{"ca-issuers", ca.Config{CAIssuers: []string{"a.example"}}},
		{"ca-issuers", ca.Config{CAIssuers: []string{"http://1/", "http://2/", "http://3/", "http://4/", "http://5/"}}},
		{"idevid", ca.Config{IDevID: birth}},
		{"idevid.hardware-type", ca.Config{Kind: ca.KindIDevID}},
		{"idevid.hardware-type", ca.Config{Kind: ca.KindIDevID, IDevID: ca.IDevIDConfig{HardwareType: "1.2"}}},
		{"idevid.hardware-type", ca.Config{Kind: ca.KindIDevID, IDevID: ca.IDevIDConfig{HardwareType: "3.1.2"}}},
		{"idevid.hardware-type", ca.Config{Kind: ca.KindIDevID, IDevID: ca.IDevIDConfig{HardwareType: "1.40.2"}}},
		{"idevid.hardware-type", ca.Config{Kind: ca.KindIDevID, IDevID: ca.IDevIDConfig{HardwareType: "1.3.06.1"}}},
		{"idevid.hardware-type", ca.Config{Kind: ca.KindIDevID, IDevID: ca.IDevIDConfig{HardwareType: "1.3.-6.1"}}},
	} {
		_, err := ca.NewProfile(tt.config)
		if bad, ok := errors.AsType[*ca.ConfigError](err); !ok || bad.Field != tt.field {
			t.Errorf("NewProfile(%+v) = %v, want a *ConfigError about %s", tt.config, err, tt.field)
		}
	}
}

func TestProfileDefaults(t *testing.T) {
	keys := []ca.KeyAlgorithm{ca.P256, ca.P384}
	birth := ca.IDevIDConfig{HardwareType: "1.3.6.1.4.1.32473.7"}
	const day = ca.Duration(24 * time.Hour)
	for _, tt := range []struct{ config, want ca.Config }{
		{ca.Config{}, ca.Config{Kind: ca.KindDevice, Validity: 730 * day, Backdate: ca.Duration(5 * time.Minute), Keys: keys, SANURI: "spiffe://{trust-domain}/device/{id}"}},
		{ca.Config{Kind: ca.KindServer}, ca.Config{Kind: ca.KindServer, Validity: 365 * day, Backdate: ca.Duration(5 * time.Minute), Keys: keys}},
		{ca.Config{Kind: ca.KindIDevID, IDevID: birth}, ca.Config{Kind: ca.KindIDevID, Validity: ca.Never, Backdate: ca.Duration(5 * time.Minute), Keys: keys, IDevID: birth}},
	} {
		p := catest.Profile(t, tt.config)
		if diff := cmp.Diff(tt.want, p.Config()); diff != "" {
			t.Errorf("Config (-want +got):\n%s", diff)
		}
		if again := catest.Profile(t, p.Config()); again.Hash() != p.Hash() {
			t.Error("a profile with its defaults written out is another profile")
		}
	}
}

// A profile does not change: not through what it was made from, nor through what
// it gives out.
func TestProfileDoesNotChange(t *testing.T) {
	config := ca.Config{Keys: []ca.KeyAlgorithm{ca.P256}, OCSP: []string{"http://a.example/"}}
	p := catest.Profile(t, config)
	config.Keys[0], config.OCSP[0] = ca.RSA2048, "http://b.example/"
	out := p.Config()
	out.Keys[0], out.OCSP[0] = ca.RSA2048, "http://b.example/"
	p.KeyPolicy().Allow[0] = ca.RSA2048
	if got := p.Config(); got.Keys[0] != ca.P256 || got.OCSP[0] != "http://a.example/" || p.KeyPolicy().Allow[0] != ca.P256 {
		t.Errorf("the profile has become %+v", got)
	}
}

// Whatever differs in a profile differs in its hash, and the hash is stable.
func TestProfileHash(t *testing.T) {
	seen := make(map[[32]byte]string)
	for name, config := range profiles() {
		p := catest.Profile(t, config)
		if p.Hash() != catest.Profile(t, config).Hash() {
			t.Errorf("%s: two hashes of one profile", name)
		}
		if other, ok := seen[p.Hash()]; ok {
			t.Errorf("%s and %s have one hash", name, other)
		}
		seen[p.Hash()] = name
	}
}

func TestConfigText(t *testing.T) {
	const text = `kind: idevid
validity: never
backdate: 24h
keys: [P-256, RSA-2048]
lean: true
crl-distribution-points: [http://a.example/crl]
ocsp: [http://a.example/ocsp]
ca-issuers: [http://a.example/cer]
idevid:
  hardware-type: 1.3.6.1.4.1.32473.7
  permanent-identifier: true
`
	var got ca.Config
	if err := yaml.UnmarshalWithOptions([]byte(text), &got, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	want := ca.Config{
		Kind: ca.KindIDevID, Validity: ca.Never, Backdate: ca.Duration(24 * time.Hour), Keys: []ca.KeyAlgorithm{ca.P256, ca.RSA2048},
		Lean: true, CRLDistributionPoints: []string{"http://a.example/crl"}, OCSP: []string{"http://a.example/ocsp"},
		CAIssuers: []string{"http://a.example/cer"},
		IDevID:    ca.IDevIDConfig{HardwareType: "1.3.6.1.4.1.32473.7", PermanentIdentifier: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("YAML (-want +got):\n%s", diff)
	}
	out, err := yaml.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var again ca.Config
	if err := yaml.UnmarshalWithOptions(out, &again, yaml.Strict()); err != nil || !cmp.Equal(got, again) {
		t.Errorf("YAML does not come back: %v\n%s", err, out)
	}
	if out, err = json.Marshal(got); err != nil {
		t.Fatal(err)
	}
	again = ca.Config{}
	if err := json.Unmarshal(out, &again); err != nil || !cmp.Equal(got, again) {
		t.Errorf("JSON does not come back: %v\n%s", err, out)
	}
	if out, err := json.Marshal(ca.Config{}); err != nil || string(out) != "{}" {
		t.Errorf("an empty profile is %s, %v", out, err)
	}
}

func TestDuration(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"24h": day, "730d": 730 * day, "2y": 730 * day, "1y30d": 395 * day, "90m": 90 * time.Minute, "2w": 14 * day,
		"1h30m10s": time.Hour + 30*time.Minute + 10*time.Second, "0s": 0, "290y": 290 * 365 * day,
	} {
		var d ca.Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || time.Duration(d) != want {
			t.Errorf("%q = %s, %v, want %s", text, time.Duration(d), err, want)
		}
	}
	for _, text := range []string{"", "1", "h", "1x", "-1h", "1.5h", "1h1h", "1m1h", " 1h", "1h ", "Never", "300y", "9999999999h", "290y200w", "١h", "1ms"} {
		var d ca.Duration
		if err := d.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken for %s", text, d)
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		d := ca.Duration(time.Duration(rapid.Int64Range(0, 9_000_000_000).Draw(r, "seconds")) * time.Second)
		text, err := d.MarshalText()
		if err != nil {
			r.Fatal(err)
		}
		var again ca.Duration
		if err := again.UnmarshalText(text); err != nil || again != d {
			r.Errorf("%s comes back as %s, %v", d, again, err)
		}
	})
	if text, err := ca.Never.MarshalText(); err != nil || string(text) != "never" {
		t.Errorf("Never is %q, %v", text, err)
	}
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"24h", "1y30d", "never", "9999999999h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var d, again ca.Duration
		if d.UnmarshalText([]byte(s)) != nil {
			return
		}
		if d < 0 {
			t.Fatalf("%q = %d", s, d)
		}
		if err := again.UnmarshalText([]byte(d.String())); err != nil || again != d {
			t.Fatalf("%q = %s, which reads as %s, %v", s, d, again, err)
		}
	})
}
