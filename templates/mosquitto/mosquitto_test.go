package mosquitto_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/mosquitto"
	"github.com/imprint-iot/imprint/templates/targettest"
)

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		filter string
		ok     bool
	}{
		{"fleet/{id}/up", true},
		{"fleet/{id}/#", true},
		{"a b/{id}", true},
		{"fleet/%u/up", false},
		{"fleet/dev-%c", false},
		{"$share/g/fleet/{id}", false},
		{" fleet/{id}", false},
		{"fleet/\n{id}", false},
		{"{id}" + strings.Repeat("/x", 200), false},
	} {
		p := inventory.Profile{Name: "sensor", Policy: topic.Policy{Rules: []topic.Rule{
			{Action: topic.Publish, Filter: "ok/{id}"}, {Action: topic.Receive, Filter: tt.filter},
		}}}
		err := mosquitto.Target{}.Check(p)
		if (err == nil) != tt.ok {
			t.Errorf("Check(%.40q) = %v", tt.filter, err)
		}
		if err == nil {
			continue
		}
		e, ok := errors.AsType[*templates.InexpressibleError](err)
		if !ok || len(e.Choices) == 0 || !strings.HasPrefix(e.Rule, "profile sensor, rule 2: receive ") {
			t.Errorf("Check(%.40q) = %#v", tt.filter, err)
		}
	}
}

func TestPatternForm(t *testing.T) {
	_, err := mosquitto.Target{}.Write(openDir(t, t.TempDir()), targettest.Small(t, time.Now()), templates.Options{Form: mosquitto.Pattern})
	e, ok := errors.AsType[*templates.InexpressibleError](err)
	if !ok || !strings.Contains(e.Rule, "profile valve, rule 6") {
		t.Errorf("Write = %v, want an InexpressibleError about rule 6 of valve", err)
	}
}

// A pattern never gives a device what the view does not: the export is refused.
func TestPatternWiderThanView(t *testing.T) {
	f := targettest.Small(t, time.Now())
	f.Devices[0].Grants = f.Devices[0].Grants[1:]
	_, err := mosquitto.Target{}.Write(openDir(t, t.TempDir()), f, templates.Options{})
	if e, ok := errors.AsType[*templates.EntryError](err); !ok || e.ID != "dev-1" {
		t.Errorf("Write = %v, want an EntryError about dev-1", err)
	}
	// A role of 2.1 is a pattern as well; the comparison sees it.
	_, err = mosquitto.Target{}.Write(openDir(t, t.TempDir()), f, templates.Options{Version: mosquitto.V21, Form: mosquitto.Dynsec})
	if !errors.Is(err, templates.ErrParseBack) {
		t.Errorf("Write = %v, want %v", err, templates.ErrParseBack)
	}
}

func TestUnreadablePassword(t *testing.T) {
	bcrypt := []inventory.Verifier{{Scheme: inventory.Bcrypt, Hash: []byte("$2b$12$x")}}
	suffix := []inventory.Verifier{{Scheme: inventory.SHA512Suffix, Salt: make([]byte, 12), Hash: make([]byte, 64)}}
	for _, tt := range []struct {
		name        string
		verifiers   []inventory.Verifier
		certificate bool
		form        string
		ok          bool
		warnings    int
	}{
		{"no password, no certificate", nil, false, "", false, 0},
		{"bcrypt only", bcrypt, false, "", false, 0},
		{"bcrypt and certificate", bcrypt, true, "", true, 1},
		{"certificate only", nil, true, "", true, 0},
		{"$6$", suffix, false, "", true, 0},
		{"$6$ for dynamic security", suffix, false, mosquitto.Dynsec, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := targettest.Small(t, time.Now())
			f.Devices[0].Verifiers, f.Devices[0].Certificate = tt.verifiers, tt.certificate
			sum, err := mosquitto.Target{}.Write(openDir(t, t.TempDir()), f, templates.Options{Form: tt.form})
			if (err == nil) != tt.ok || len(sum.Warnings) != tt.warnings {
				t.Errorf("Write = %v, warnings %q", err, sum.Warnings)
			}
			if err != nil {
				if e, ok := errors.AsType[*templates.EntryError](err); !ok || e.ID != "dev-1" {
					t.Errorf("Write = %v, want an EntryError about dev-1", err)
				}
			}
		})
	}
}

func TestOptionsRefused(t *testing.T) {
	f := targettest.Small(t, time.Now())
	for name, o := range map[string]templates.Options{
		"version":        {Version: "1.6"},
		"form":           {Form: "xml"},
		"relative dest":  {Dest: "etc"},
		"line in dest":   {Dest: "/etc\nallow_anonymous true"},
		"signer is none": {Form: "Auto"},
	} {
		_, err := mosquitto.Target{}.Write(openDir(t, t.TempDir()), f, o)
		if _, ok := errors.AsType[*inventory.InvalidError](err); !ok {
			t.Errorf("%s: Write = %v, want an InvalidError", name, err)
		}
	}
}

// Scale warnings: where 2.0 gets slow, and only there.
func TestScaleWarnings(t *testing.T) {
	group := topic.Rule{Action: topic.Publish, Filter: "g/{group}/{id}"} // no pattern
	for _, tt := range []struct {
		name    string
		n       int
		o       templates.Options
		rules   []topic.Rule
		warning string
		err     bool
	}{
		{"patterns", 10_001, templates.Options{}, nil, "", false},
		{"stanzas at the limit", 10_000, templates.Options{}, []topic.Rule{group}, "", false},
		{"stanzas", 10_001, templates.Options{}, []topic.Rule{group}, "10001 user stanzas: Mosquitto 2.0 loads them in quadratic time, in up to 1 s", false},
		{"expanded", 50_000, templates.Options{Form: mosquitto.Expanded}, nil, "in up to 18 s", false},
		{"stanzas on 2.1", 10_001, templates.Options{Version: mosquitto.V21}, []topic.Rule{group}, "", false},
		{"dynsec", 10_001, templates.Options{Form: mosquitto.Dynsec}, nil, "10001 clients of dynamic security", false},
		{"dynsec over the top", 100_001, templates.Options{Form: mosquitto.Dynsec}, nil, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			sum, err := mosquitto.Target{}.Write(openDir(t, dir), targettest.NewSynthetic(t, tt.n, tt.rules...), tt.o)
			if tt.err {
				if _, ok := errors.AsType[*templates.InexpressibleError](err); !ok {
					t.Errorf("Write = %v, want an InexpressibleError", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(sum.Warnings, "\n"); (got == "") != (tt.warning == "") || !strings.Contains(got, tt.warning) {
				t.Errorf("warnings %q, want %q", got, tt.warning)
			}
		})
	}
}

// What Mosquitto would not start with, or not refuse the revoked with.
func TestPKIRefused(t *testing.T) {
	now := time.Now()
	for name, change := range map[string]func(*targettest.Memory){
		"no CRL":                 func(f *targettest.Memory) { f.Lists = nil },
		"CRL of another CA":      func(f *targettest.Memory) { f.Lists = targettest.NewFleet(t, now).Lists },
		"no trust":               func(f *targettest.Memory) { f.Trust = nil },
		"text in trust":          func(f *targettest.Memory) { f.Trust = append([]byte("hello\n"), f.Trust...) },
		"leaf in trust":          func(f *targettest.Memory) { f.Trust = append(f.Trust, f.Broker.ServerChain...) },
		"no server certificate":  func(f *targettest.Memory) { f.Broker.ServerChain = nil },
		"key of another server":  func(f *targettest.Memory) { f.Broker.ServerKey = f.PKI.Node(t).ServerKey },
		"no administrator's key": func(f *targettest.Memory) { f.Broker.Admin = &templates.Admin{Socket: "/run/x"} },
	} {
		f := targettest.Small(t, now)
		change(f)
		if _, err := (mosquitto.Target{}).Write(openDir(t, t.TempDir()), f, templates.Options{}); err == nil {
			t.Errorf("%s: it is exported", name)
		}
	}
	f := targettest.Small(t, now)
	f.Trust = append(f.Trust, targettest.NewPKI(t, now).TrustBundle()...)
	sum, err := mosquitto.Target{}.Write(openDir(t, t.TempDir()), f, templates.Options{})
	if err != nil || len(sum.Warnings) != 1 || !strings.Contains(sum.Warnings[0], "there is no CRL") {
		t.Errorf("an issuer without a CRL: %v, warnings %q", err, sum.Warnings)
	}
}

// Changing the form leaves the files of the old one, which a running broker may
// still read, and says so.
func TestLeftOver(t *testing.T) {
	dir := t.TempDir()
	d, f := openDir(t, dir), targettest.Small(t, time.Now())
	if _, err := (mosquitto.Target{}).Write(d, f, templates.Options{}); err != nil {
		t.Fatal(err)
	}
	sum, err := mosquitto.Target{}.Write(d, f, templates.Options{Form: mosquitto.Dynsec})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(sum.Warnings, ""); !strings.Contains(got, "password_file, acl_file") {
		t.Errorf("warnings %q", got)
	}
	if _, err := os.Stat(filepath.Join(dir, mosquitto.ACLName)); err != nil {
		t.Error(err)
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, bb := range []struct {
		name string
		n    int
	}{{"100k", 100_000}, {"1M", 1_000_000}} {
		b.Run(bb.name, func(b *testing.B) {
			v := targettest.NewSynthetic(b, bb.n)
			for b.Loop() {
				if _, err := (mosquitto.Target{}).Write(openDir(b, b.TempDir()), v, templates.Options{}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(bb.n), "ns/device")
		})
	}
}
