package mochi_test

import (
	"bytes"
	"encoding/base64"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/mochi"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTarget(t *testing.T) {
	targettest.Run(t, targettest.Case{
		Name: mochi.Hook, Target: mochi.Target(), Golden: filepath.Join("testdata", "golden"), Update: *update,
		Volatile: []string{mochi.MainName, mochi.HookName, mochi.FleetSourceName}, // they are in _broker
	})
}

func writeErr(t *testing.T, dir string, f templates.View, o templates.Options) error {
	t.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	_, err = mochi.Target().Write(d, f, o)
	return err
}

// write exports a fleet.
func write(t *testing.T, dir string, f templates.View, o templates.Options) {
	t.Helper()
	if err := writeErr(t, dir, f, o); err != nil {
		t.Fatal(err)
	}
}

// What is exported as source is what is in _broker.
func TestSource(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, targettest.Small(t, time.Now()), templates.Options{})
	for _, name := range []string{mochi.MainName, mochi.HookName, mochi.FleetSourceName} {
		want, err := os.ReadFile(filepath.Join("_broker", name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what it is in _broker: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, mochi.HookName), []byte("package main\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := mochi.Target().Parse(os.DirFS(dir)); err == nil {
		t.Error("an export with another hook is read")
	}
}

func TestRule(t *testing.T) {
	for _, tt := range []struct {
		action topic.Action
		filter string
		exact  bool
	}{
		{topic.Receive, "a/b", true},
		{topic.Receive, "a/+", true},
		{topic.Receive, "a/+/#", true},
		{topic.Receive, "#", true},
		{topic.Receive, "$SYS/broker/uptime", true},
		{topic.Receive, "$SHARE/g/a", false},
		{topic.Receive, "$share/g/a", false},
		{topic.Publish, "#", true},
		{topic.Publish, "$SYS/x", false},
		{topic.Publish, "$systems/x", false},
		{topic.Publish, "$x/y", true},
	} {
		err := mochi.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: []topic.Rule{{Action: tt.action, Filter: tt.filter, Shared: true}}}})
		if (err == nil) != tt.exact {
			t.Errorf("%s %s: %v, want exact %v", tt.action, tt.filter, err, tt.exact)
		}
	}
}

func TestNeedsCRL(t *testing.T) {
	f := targettest.Small(t, time.Now())
	f.Lists = nil
	if err := writeErr(t, t.TempDir(), f, templates.Options{}); err == nil {
		t.Error("a fleet without a CRL is exported: its hook would refuse every certificate")
	}
}

// rules are those of the proof and more: empty levels, wildcards at the start, text
// that JSON writes in another way.
func rules() []topic.Rule {
	return append(targettest.ProofRules(),
		topic.Rule{Action: topic.Publish, Filter: "it's/{id}/\"raw\"/+"},
		topic.Rule{Action: topic.Receive, Filter: "a//{id}/+/x\\y/#"},
		topic.Rule{Action: topic.Publish, Filter: "+/{id}/<&>/é"},
		topic.Rule{Action: topic.Receive, Filter: "/{id}/"},
		topic.Rule{Action: topic.Receive, Filter: "+/+/{id}/plus"},
		topic.Rule{Action: topic.Receive, Filter: "deep/{id}/+/#"})
}

// What a server with the hook makes of an export, read a second time, is the policy.
func TestEvaluator(t *testing.T) {
	f := targettest.ProofFleet(t, time.Now(), rules()...)
	dir := t.TempDir()
	write(t, dir, f, templates.Options{})
	e, err := mochi.NewEvaluator(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := proof.Evaluate("mochi hook", e, proof.Questions(f.ProofDevices(t)))
	if err != nil {
		t.Fatal(err)
	}
	targettest.Report(t, r, nil)
}

// golden is PBKDF2-HMAC-SHA-512 of "S3cret-pw_01" with the salt 0001...0b and 101
// iterations: python3 -c 'import hashlib; print(hashlib.pbkdf2_hmac("sha512",
// b"S3cret-pw_01", bytes(range(12)), 101, 64))'.
const golden = "zzkq4ROIqb46D5dndsir5EkoRZWAf4huS/5jPaHz1FnjiikgzqHwKP8BQsbshvLlhkNV5KW/vCxxbK0VCt5REw=="

func entries() []templates.Entry {
	hash, err := base64.StdEncoding.DecodeString(golden)
	if err != nil {
		panic(err)
	}
	return []templates.Entry{
		{ID: "dev-1", Verifiers: []inventory.Verifier{{Scheme: inventory.PBKDF2SHA512, Iterations: 101, Salt: []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, Hash: hash}}, Grants: []topic.Grant{
			{Action: topic.Publish, Filter: "fleet/dev-1/<up>/#"}, {Action: topic.Receive, Filter: "a.b//\"/\\/+/\u2028c"},
		}},
		{ID: "dev-2", Certificate: true},
	}
}

func read(text []byte) ([]templates.Entry, error) {
	var out []templates.Entry
	for e, err := range mochi.ReadDevices(fstest.MapFS{mochi.DevicesName: {Data: text}}, nil) {
		if err != nil {
			return out, err
		}
		out = append(out, e)
	}
	return out, nil
}

// What no export has is refused: whoever changed the file would have to find out from
// devices that are let in.
func TestReadDevicesRefuses(t *testing.T) {
	good := mochi.Devices(t, entries())
	for _, tt := range []struct{ name, old, new string }{
		{"another version", `{"imprint":1`, `{"imprint":2`},
		{"a bad ID", `"dev-2"`, `"dev 2"`},
		{"a reserved ID", `"dev-2"`, `"admin"`},
		{"one iteration too little", `"iterations":101`, `"iterations":0`},
		{"a short hash", golden, golden[:40]},
		{"no salt", `"AAECAwQFBgcICQoL"`, `""`},
		{"another field", `"certificate":true`, `"certificate":true,"superuser":true`},
		{"a field twice", `"certificate":true`, `"certificate":false,"certificate":true`},
		{"no list", `"publish":[]`, `"publish":null`},
		{"a filter that is none", `"publish":[]`, `"publish":["a+"]`},
		{"a shared subscription", `"receive":[]`, `"receive":["$SHARE/g/#"]`},
		{"blanks", `"receive":[]`, `"receive": []`},
		{"no comma", "},\n", "}\n"},
		{"a comma at the end", "}\n]}", "},\n]}"},
		{"an end that is missing", "]}\n", ""},
		{"an end without its end", "]}\n", "]}"},
		{"more after the end", "]}\n", "]}\n]}\n"},
		{"a device on the first line", "[\n", "["},
	} {
		bad := []byte(strings.Replace(string(good), tt.old, tt.new, 1))
		if bytes.Equal(bad, good) {
			t.Errorf("%s: nothing is changed", tt.name)
		}
		if got, err := read(bad); err == nil {
			t.Errorf("%s: %d devices are read", tt.name, len(got))
		}
	}
	if got, err := read(good); len(got) != 2 || err != nil || got[0].Certificate || !got[1].Certificate {
		t.Errorf("%+v, %v", got, err)
	}
}

// FuzzDevices: whatever is read is written like that.
func FuzzDevices(f *testing.F) {
	f.Add(mochi.Devices(f, entries()))
	f.Add(mochi.Devices(f, nil))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := read(text)
		if err != nil {
			return
		}
		if again := mochi.Devices(t, got); !bytes.Equal(again, text) {
			t.Errorf("%q is read, and written as %q", text, again)
		}
	})
}
