package awsiot_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/awsiot"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTarget(t *testing.T) {
	targettest.Run(t, targettest.Case{
		Name: "registry", Target: awsiot.Target(), Golden: filepath.Join("testdata", "golden"), Update: *update, Volatile: []string{awsiot.ThingsName},
	})
}

// write exports a fleet to a new directory.
func write(t *testing.T, v templates.View, f *targettest.Memory) string {
	t.Helper()
	dir := t.TempDir()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	if _, err := awsiot.Target().Write(d, v, templates.Options{Now: f.Now}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func certificates(f *targettest.Memory) *targettest.Memory {
	for i := range f.Devices {
		f.Devices[i].Certificate, f.Devices[i].Verifiers = true, nil
	}
	return f
}

// golden compares a file with a golden one, or writes that.
func golden(t *testing.T, file, want string) {
	t.Helper()
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(want, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != string(got) {
		t.Errorf("%s is not as in %s:\n%s", file, want, got)
	}
}

// The lines are as in the golden file, but for certificates.
func TestThingList(t *testing.T) {
	f := certificates(targettest.Small(t, targettestStart()))
	for i := range f.Devices {
		f.Devices[i].Leafs = nil
	}
	golden(t, filepath.Join(write(t, f, f), awsiot.ThingsName), filepath.Join("testdata", "golden", awsiot.ThingsName))
}

// Each line has what the template asks for, and each certificate is with the CA that
// issued it.
func TestThings(t *testing.T) {
	f := certificates(targettest.Small(t, targettestStart()))
	for i := range f.Devices {
		f.Devices[i].Leafs = [][]byte{f.PKI.Client(t, string(f.Devices[i].ID)).Leaf.Raw}
	}
	second := f.PKI.Client(t, "dev-1").Leaf.Raw
	f.Devices[0].Leafs = append(f.Devices[0].Leafs, second)
	f.Devices[0].HardwareSerial = "SN 1" // a space is not in AWS's alphabet
	f.Devices[2].HardwareSerial = "SN-3"
	dir := write(t, f, f)
	lines := things(t, dir)
	if len(lines) != 4 || lines[0]["ThingName"] != "dev-1" || lines[1]["ThingName"] != "dev-1" {
		t.Fatalf("%d lines, want 4, of which 2 are of dev-1", len(lines))
	}
	ca := read(t, dir, "ca-1.pem")
	for i, l := range lines {
		if c := parsePEM(t, l["CertPem"]); c.Subject.CommonName != l["ThingName"] || i == 1 && string(c.Raw) != string(second) {
			t.Errorf("line %d has the certificate of %s", i+1, c.Subject.CommonName)
		} else if err := c.CheckSignatureFrom(parsePEM(t, l["CaPem"])); err != nil || l["CaPem"] != ca {
			t.Errorf("line %d: the certificate is not of its CA: %v", i+1, err)
		}
	}
	if s := lines[0]["SerialNumber"]; s != "" {
		t.Errorf("serial number %q, which AWS does not take", s)
	}
	last := lines[3]
	if last["ReceivePolicy"] != "imprint-valve-receive" || last["group"] != "yard" || last["label_site"] != "rome" || last["SerialNumber"] != "SN-3" {
		t.Errorf("parameters of dev-3: %v", last)
	}
	if _, err := os.Stat(filepath.Join(dir, "ca-2.pem")); err == nil {
		t.Error("the root is registered as an issuer")
	}
}

func TestCheckRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		why   string
		rules []topic.Rule
	}{
		{"wildcard first", "begin with $", []topic.Rule{{Action: topic.Receive, Filter: "#"}}},
		{"plus first", "begin with $", []topic.Rule{{Action: topic.Publish, Filter: "+/up"}}},
		{"plus and hash", "does not end at a slash", []topic.Rule{{Action: topic.Receive, Filter: "a/+/b/#"}}},
		{"reserved", "reserved", []topic.Rule{{Action: topic.Receive, Filter: "$SYS/x"}}},
		{"variable", "begins a variable", []topic.Rule{{Action: topic.Publish, Filter: "a/$b"}}},
		{"star", "wildcards in its policies", []topic.Rule{{Action: topic.Publish, Filter: "a/*"}}},
		{"question mark", "wildcards in its policies", []topic.Rule{{Action: topic.Publish, Filter: "a/b?"}}},
		{"not ASCII", "ASCII", []topic.Rule{{Action: topic.Publish, Filter: "a/ü"}}},
		{"eight slashes", "7 slashes", []topic.Rule{{Action: topic.Publish, Filter: "1/2/3/4/5/6/7/8/9"}}},
		{"long", "256 bytes", []topic.Rule{{Action: topic.Publish, Filter: strings.Repeat("a", 257)}}},
		{"a deny in the way", "rule 2", []topic.Rule{{Action: topic.Receive, Filter: "a/+"}, {Action: topic.Receive, Filter: "a/b/c"}}},
		{"a deny in the way of #", "rule 1", []topic.Rule{{Action: topic.Receive, Filter: "a/{id}/#"}, {Action: topic.Receive, Filter: "a/+/x"}}},
		{"a name in the way", "rule 1", []topic.Rule{{Action: topic.Publish, Filter: "a/{id}/b"}, {Action: topic.Publish, Filter: "{group}/+"}}},
		{"too many", "2048", many(15)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := awsiot.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: tt.rules}})
			bad, ok := asInexpressible(err)
			if !ok || !strings.Contains(bad.Why, tt.why) || len(bad.Choices) == 0 {
				t.Errorf("Check = %v, want an *InexpressibleError with %q and choices", err, tt.why)
			}
		})
	}
}

func TestCheckTakes(t *testing.T) {
	for _, rules := range [][]topic.Rule{
		nil,
		many(12),
		{{Action: topic.Publish, Filter: "$aws/things/{id}/shadow/update"}},
		{{Action: topic.Receive, Filter: "a/+"}, {Action: topic.Publish, Filter: "a/b/c"}},
		{{Action: topic.Receive, Filter: "a/+/b"}, {Action: topic.Receive, Filter: "a/b/+"}, {Action: topic.Receive, Filter: "b/#"}},
		{{Action: topic.Receive, Filter: "a/+/+/b/+"}},
	} {
		if err := awsiot.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: rules}}); err != nil {
			t.Errorf("%v: %v", rules, err)
		}
	}
}

// many are n rules with topics of 40 bytes.
func many(n int) []topic.Rule {
	var rules []topic.Rule
	for i := range n {
		rules = append(rules, topic.Rule{Action: topic.Publish, Filter: "fleet/{id}/" + strings.Repeat("x", 40) + string(rune('a'+i))})
	}
	return rules
}

// Rights that are not those of the profile would be given by its policy all the same,
// or not at all.
func TestRightsOfAnother(t *testing.T) {
	for name, change := range map[string]func(e *templates.Entry){
		"another name":      func(e *templates.Entry) { e.Grants[0].Filter = "fleet/dev-9/up/#" },
		"another level":     func(e *templates.Entry) { e.Grants[0].Filter = "fleet/dev-1/up" },
		"another action":    func(e *templates.Entry) { e.Grants[0].Action = topic.Receive },
		"one less":          func(e *templates.Entry) { e.Grants = e.Grants[1:] },
		"another profile":   func(e *templates.Entry) { e.Profile = "valve" },
		"no profile":        func(e *templates.Entry) { e.Profile = "none" },
		"a foreign CA":      func(e *templates.Entry) { e.Leafs = [][]byte{foreignLeaf(t)} },
		"not a certificate": func(e *templates.Entry) { e.Leafs = [][]byte{{1, 2, 3}} },
	} {
		f := certificates(targettest.Small(t, targettestStart()))
		change(&f.Devices[0])
		d, err := durable.OpenDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := awsiot.Target().Write(d, f, templates.Options{Now: f.Now}); err == nil {
			t.Errorf("%s is exported", name)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A label that AWS would not put into a policy variable is refused, not changed.
func TestValueOutsideAlphabet(t *testing.T) {
	f := targettest.NewFleet(t, targettestStart())
	f.Profile("p", topic.Rule{Action: topic.Publish, Filter: "{label.site}/{id}"})
	f.Device(t, "dev-1", "p", "", "", inventory.Label{Key: "site", Value: "new york?"})
	d, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	if _, err := awsiot.Target().Write(d, f, templates.Options{Now: f.Now}); err == nil || !strings.Contains(err.Error(), "new york?") {
		t.Errorf("Write = %v, want an error that names the value", err)
	}
}

// What is changed by hand is noticed: parsing takes nothing but what imprint writes.
func TestParseRefuses(t *testing.T) {
	f := certificates(targettest.Small(t, targettestStart()))
	for file, change := range map[string][2]string{
		"policy-sensor-receive.json":  {"news/all", "news/*"},
		"policy-valve-subscribe.json": {`"Deny"`, `"Allow"`},
		"things.jsonl":                {`"imprint-sensor-receive"`, `"imprint-valve-receive"`},
		"provisioning-template.json":  {`"PolicyName"`, `"PolicyDocument"`},
	} {
		dir := write(t, f, f)
		text := read(t, dir, file)
		if !strings.Contains(text, change[0]) {
			t.Fatalf("%s has no %s", file, change[0])
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(strings.Replace(text, change[0], change[1], 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := entriesErr(t, dir); err == nil {
			t.Errorf("%s with %s is read", file, change[1])
		}
	}
}

func FuzzThings(f *testing.F) {
	m := certificates(targettest.Small(f, targettestStart()))
	docs, err := awsiot.Documents(m.Models[1])
	if err != nil {
		f.Fatal(err)
	}
	tmpl, err := awsiot.Template([]string{"group", "label_site"})
	if err != nil {
		f.Fatal(err)
	}
	line := `{"PublishPolicy":"imprint-valve-publish","ReceivePolicy":"imprint-valve-receive","SubscribePolicy":"imprint-valve-subscribe","ThingName":"dev-3","group":"yard","label_site":"rome"}` + "\n"
	f.Add([]byte(line), docs["publish"], docs["receive"])
	f.Add([]byte(line+line), docs["publish"], docs["receive"])
	f.Fuzz(func(t *testing.T, line, publish, receive []byte) {
		src := fstest.MapFS{}
		for name, b := range map[string][]byte{
			awsiot.ThingsName: line, awsiot.TemplateName: tmpl, "trust.pem": m.Trust,
			"policy-valve-publish.json": publish, "policy-valve-receive.json": receive, "policy-valve-subscribe.json": docs["subscribe"],
		} {
			src[name] = &fstest.MapFile{Data: b}
		}
		v, err := awsiot.Target().Parse(src)
		if err != nil {
			t.Fatal(err) // the devices are read by Entries
		}
		for e, err := range v.Entries() {
			if err != nil {
				return
			}
			if err := templates.CheckEntry("", &e); err != nil {
				t.Error(err)
			}
		}
	})
}

// A rule that nobody has validated is refused or taken, and nothing worse.
func TestCheckAnyFilter(t *testing.T) {
	for _, filter := range []string{"", "$", "/", "//", "{id}", "{label.}", "{", "#", "+", "\xff", "+/#/+"} {
		_ = awsiot.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: []topic.Rule{{Action: topic.Receive, Filter: filter}, {Filter: filter}}}}) // either is right
	}
}
