package azureiot_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/azureiot"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func start() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func TestTarget(t *testing.T) {
	targettest.Run(t, targettest.Case{
		Name: azureiot.EventGrid, Target: azureiot.Target(), Golden: filepath.Join("testdata", "golden", azureiot.EventGrid), Update: *update,
		Volatile: []string{azureiot.NamespaceName},
	})
	for _, form := range []string{azureiot.IoTHub, azureiot.DPS} {
		t.Run(form, func(t *testing.T) {
			targettest.Run(t, targettest.Case{
				Name: form, Target: &fixed{Target: azureiot.FormTarget(form), rights: map[inventory.DeviceID][]topic.Grant{}},
				Golden: filepath.Join("testdata", "golden", form), Update: *update, Volatile: []string{azureiot.GroupsName, azureiot.EnrollmentsName},
			})
		})
	}
}

// Fixed is a target for which every device has the rights of a hub. What rights it had
// is remembered, and is what is read back if a hub's rights are.
type fixed struct {
	templates.Target
	rights map[inventory.DeviceID][]topic.Grant
}

func hubRules() []topic.Rule {
	return []topic.Rule{
		{Action: topic.Publish, Filter: "devices/{id}/messages/events/#"},
		{Action: topic.Receive, Filter: "devices/{id}/messages/devicebound/#"},
	}
}

func (f *fixed) Write(dst *durable.Dir, v templates.View, o templates.Options) (templates.Summary, error) {
	return f.Target.Write(dst, fixedView{v, f}, o)
}

func (f *fixed) Parse(src fs.FS) (templates.View, error) {
	v, err := f.Target.Parse(src)
	if err != nil {
		return nil, err
	}
	return remembered{v.(templates.Partial), f}, nil
}

type fixedView struct {
	templates.View
	fixed *fixed
}

func (v fixedView) Profiles() iter.Seq2[inventory.Profile, error] {
	return func(yield func(inventory.Profile, error) bool) {
		for p, err := range v.View.Profiles() {
			p.Policy.Rules = hubRules()
			if !yield(p, err) {
				return
			}
		}
	}
}

func (v fixedView) Entries() iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		for e, err := range v.View.Entries() {
			if err == nil {
				err = templates.CheckEntry("", &e) // whose filters are replaced
			}
			if len(v.fixed.rights) < 100 {
				v.fixed.rights[e.ID] = slices.Clone(e.Grants)
			}
			if err == nil {
				e.Grants, err = topic.Policy{Rules: hubRules()}.Resolve(targettest.Subject(e))
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

type remembered struct {
	templates.Partial
	fixed *fixed
}

func (v remembered) Entries() iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		for e, err := range v.Partial.Entries() {
			want, resolveErr := topic.Policy{Rules: hubRules()}.Resolve(targettest.Subject(e))
			if err == nil && resolveErr == nil && slices.EqualFunc(want, e.Grants, templates.SameGrant) {
				e.Grants = v.fixed.rights[e.ID]
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// hubFleet is a fleet that a hub can have.
func hubFleet(t *testing.T) *targettest.Memory {
	t.Helper()
	f := targettest.NewFleet(t, start())
	f.Profile("sensor", hubRules()...)
	for _, id := range []string{"dev-1", "dev-10", "Dev-2", "dev-3"} {
		f.Device(t, id, "sensor", "hall", "")
	}
	return f
}

func write(t *testing.T, v templates.View, form string) (string, templates.Summary) {
	t.Helper()
	dir := t.TempDir()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	sum, err := azureiot.Target().Write(d, v, templates.Options{Now: start(), Form: form})
	if err != nil {
		t.Fatal(err)
	}
	return dir, sum
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
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

// The enrolments are as in the golden file, but for certificates.
func TestEnrollmentList(t *testing.T) {
	f := hubFleet(t)
	for i := range f.Devices {
		f.Devices[i].Leafs = nil
	}
	dir, _ := write(t, f, azureiot.DPS)
	golden(t, filepath.Join(dir, azureiot.EnrollmentsName), filepath.Join("testdata", "golden", azureiot.DPS, azureiot.EnrollmentsName))
}

// An enrolment has the certificates of its device, the newest first, and the
// registration ID in lower case; a device that is not there cannot register, for the
// groups are disabled.
func TestEnrollments(t *testing.T) {
	f := hubFleet(t)
	old := f.Devices[2].Leafs[0]
	renewed := f.PKI.Client(t, string(f.Devices[2].ID)).Leaf.Raw
	f.Devices[2].Leafs = append(f.Devices[2].Leafs, renewed)
	dir, sum := write(t, f, azureiot.DPS)
	if len(sum.Warnings) == 0 || !strings.Contains(strings.Join(sum.Warnings, "\n"), "upper case") {
		t.Errorf("warnings %q, want one of upper case", sum.Warnings)
	}
	lines := strings.Split(strings.TrimSpace(read(t, dir, azureiot.EnrollmentsName)), "\n")
	if len(lines) != 4 {
		t.Fatalf("%d enrolments, want 4", len(lines))
	}
	var x struct {
		RegistrationID, DeviceID, ProvisioningStatus string
		Attestation                                  struct {
			X509 struct {
				ClientCertificates struct{ Primary, Secondary struct{ Certificate string } }
			}
		}
	}
	if err := json.Unmarshal([]byte(lines[2]), &x); err != nil {
		t.Fatal(err)
	}
	c := x.Attestation.X509.ClientCertificates
	if x.RegistrationID != "dev-2" || x.DeviceID != "Dev-2" || x.ProvisioningStatus != "enabled" ||
		c.Primary.Certificate != base64.StdEncoding.EncodeToString(renewed) || c.Secondary.Certificate != base64.StdEncoding.EncodeToString(old) {
		t.Errorf("enrolment of Dev-2: %+v", x)
	}
	if g := read(t, dir, azureiot.GroupsName); strings.Count(g, "\n") != 1 || !strings.Contains(g, `"provisioningStatus":"disabled"`) {
		t.Errorf("groups %s, want one, disabled", g)
	}
}

func TestCheckRefuses(t *testing.T) {
	rules := func(r ...topic.Rule) inventory.Profile {
		return inventory.Profile{Name: "p", Policy: topic.Policy{Rules: r}}
	}
	other := topic.Rule{Action: topic.Publish, Filter: "fleet/{id}/up"}
	for _, tt := range []struct {
		name, form string
		p          inventory.Profile
		why        string
	}{
		{"a topic of one's own", azureiot.IoTHub, rules(append(hubRules(), other)...), "fixed topics"},
		{"the same twice", azureiot.IoTHub, rules(hubRules()[0], hubRules()[0]), "no less"},
		{"nothing", azureiot.DPS, rules(), "no less"},
		{"dollar", azureiot.EventGrid, rules(topic.Rule{Action: topic.Receive, Filter: "$SYS/x"}), "variables"},
		{"bar", azureiot.EventGrid, rules(topic.Rule{Action: topic.Receive, Filter: "a|b"}), "templates"},
		{"expression", azureiot.EventGrid, rules(topic.Rule{Action: topic.Receive, Filter: "[a]"}), "expression"},
		{"not ASCII", azureiot.EventGrid, rules(topic.Rule{Action: topic.Receive, Filter: "ü"}), "ASCII"},
		{"16 levels", azureiot.EventGrid, rules(topic.Rule{Action: topic.Receive, Filter: strings.Repeat("a/", 15) + "a"}), "15 levels"},
		{"long", azureiot.EventGrid, rules(topic.Rule{Action: topic.Receive, Filter: strings.Repeat("a", 257)}), "256 bytes"},
		{"label with a hyphen", azureiot.EventGrid, rules(topic.Rule{Action: topic.Receive, Filter: "{label.a-b}/{id}"}), "underscores"},
		{"profile with an underscore", azureiot.EventGrid, inventory.Profile{Name: "a_b"}, "hyphens"},
		{"long profile", azureiot.EventGrid, inventory.Profile{Name: strings.Repeat("a", 40)}, "50 characters"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := azureiot.FormTarget(tt.form).Check(tt.p)
			bad, ok := errors.AsType[*templates.InexpressibleError](err)
			if !ok || !strings.Contains(bad.Why, tt.why) || len(bad.Choices) == 0 {
				t.Errorf("Check = %v, want an *InexpressibleError with %q and choices", err, tt.why)
			}
		})
	}
	if err := azureiot.FormTarget(azureiot.IoTHub).Check(rules(hubRules()...)); err != nil {
		t.Error(err)
	}
}

// The template of a namespace is as in the golden file, but for its CA certificates.
func TestNamespace(t *testing.T) {
	f := targettest.Small(t, start())
	profiles := map[string]inventory.Profile{}
	for _, p := range f.Models {
		profiles[p.Name] = p
	}
	got, err := azureiot.Namespace(profiles, nil)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), azureiot.NamespaceName)
	if err := os.WriteFile(file, got, 0o600); err != nil {
		t.Fatal(err)
	}
	golden(t, file, filepath.Join("testdata", "golden", azureiot.EventGrid, azureiot.NamespaceName))
}

func TestTooManyProfiles(t *testing.T) {
	f := targettest.NewFleet(t, start())
	for i := range 10 {
		f.Profile("p" + string(rune('a'+i)))
	}
	d, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	if _, err := azureiot.Target().Write(d, f, templates.Options{Now: start()}); err == nil {
		t.Error("10 profiles are exported, at most 9 are possible")
	}
}

// A hub gives every device both rights: a profile with one of them would get more than
// it says.
func TestLessThanHub(t *testing.T) {
	for i := range hubRules() {
		f := targettest.NewFleet(t, start())
		f.Profile("p", hubRules()[i])
		f.Device(t, "dev-1", "p", "", "")
		d, err := durable.OpenDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range []string{azureiot.IoTHub, azureiot.DPS} {
			_, err := azureiot.Target().Write(d, f, templates.Options{Now: start(), Form: form})
			if _, ok := errors.AsType[*templates.InexpressibleError](err); !ok {
				t.Errorf("%s: Write = %v, want an *InexpressibleError", form, err)
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Without the rules that a hub cannot have, a profile that has its two can be exported.
func TestNarrowed(t *testing.T) {
	f := targettest.NewFleet(t, start())
	f.Profile("p", topic.Rule{Action: topic.Publish, Filter: "fleet/{id}/up"}, hubRules()[0], hubRules()[1])
	f.Device(t, "dev-1", "p", "", "")
	v, dropped, err := templates.Narrow(f, azureiot.FormTarget(azureiot.IoTHub))
	if err != nil || len(dropped) != 1 {
		t.Fatalf("Narrow drops %d rules, %v; want 1", len(dropped), err)
	}
	if _, sum := write(t, v, azureiot.IoTHub); sum.Rules != 2 {
		t.Errorf("%d rules, want 2", sum.Rules)
	}
}

// More than ten rules are several topic spaces.
func TestManyTemplates(t *testing.T) {
	f := targettest.NewFleet(t, start())
	var rules []topic.Rule
	for i := range 23 {
		rules = append(rules, topic.Rule{Action: topic.Publish, Filter: "fleet/{id}/" + string(rune('a'+i))})
	}
	f.Profile("p", rules...)
	f.Device(t, "dev-1", "p", "", "")
	dir, sum := write(t, f, azureiot.EventGrid)
	if n := strings.Count(read(t, dir, azureiot.NamespaceName), `"topicTemplates"`); n != 3 || sum.Rules != 23 {
		t.Errorf("%d topic spaces for %d rules, want 3 for 23", n, sum.Rules)
	}
}

// What is changed by hand is noticed.
func TestParseRefuses(t *testing.T) {
	grid := targettest.NewFleet(t, start())
	grid.Profile("sensor", topic.Rule{Action: topic.Receive, Filter: "news/{id}"})
	grid.Device(t, "dev-1", "sensor", "", "")
	for _, tt := range []struct{ form, file, old, new string }{
		{azureiot.EventGrid, azureiot.NamespaceName, "news/${client.authenticationName}", "news/+/${client.authenticationName}x"},
		{azureiot.EventGrid, azureiot.NamespaceName, `"Subscriber"`, `"Publisher"`},
		{azureiot.EventGrid, azureiot.NamespaceName, "p-sensor", "$all"},
		{azureiot.EventGrid, azureiot.ClientsName, "SubjectMatchesAuthenticationName", "DnsMatchesAuthenticationName"},
		{azureiot.EventGrid, azureiot.ClientsName, `"authenticationName":"dev-1"`, `"authenticationName":"dev-2"`},
		{azureiot.IoTHub, azureiot.DevicesName, "certificateAuthority", "none"},
		{azureiot.IoTHub, azureiot.DevicesName, `"id"`, `"moduleId":"x","id"`},
		{azureiot.DPS, azureiot.EnrollmentsName, `"deviceId":"dev-1"`, `"deviceId":"dev-2"`},
		{azureiot.DPS, azureiot.EnrollmentsName, `"enabled"`, `"disabled"`},
		{azureiot.DPS, azureiot.SettingName, `"form":"dps"`, `"form":"iothub"`},
	} {
		f := grid
		if tt.form != azureiot.EventGrid {
			f = hubFleet(t)
		}
		dir, _ := write(t, f, tt.form)
		text := read(t, dir, tt.file)
		if !strings.Contains(text, tt.old) {
			t.Fatalf("%s has no %s", tt.file, tt.old)
		}
		if err := os.WriteFile(filepath.Join(dir, tt.file), []byte(strings.Replace(text, tt.old, tt.new, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := entriesErr(os.DirFS(dir)); err == nil {
			t.Errorf("%s with %s is read", tt.file, tt.new)
		}
	}
}

func entriesErr(src fs.FS) error {
	v, err := azureiot.Target().Parse(src)
	if err != nil {
		return err
	}
	for e, err := range v.Entries() {
		if err := errors.Join(err, templates.CheckEntry("", &e)); err != nil {
			return err
		}
	}
	return nil
}

func FuzzLists(f *testing.F) {
	m := targettest.NewFleet(f, start())
	m.Profile("sensor", topic.Rule{Action: topic.Receive, Filter: "news/{group}/{id}"})
	namespace, err := azureiot.Namespace(map[string]inventory.Profile{"sensor": m.Models[0]}, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"name":"dev-1","properties":{"authenticationName":"dev-1","state":"Enabled","clientCertificateAuthentication":{"validationScheme":"SubjectMatchesAuthenticationName"},"attributes":{"group":"hall","profile":"sensor"}}}`+"\n"), namespace, byte(0))
	f.Add([]byte(`{"id":"dev-1","importMode":"createOrUpdate","status":"enabled","authentication":{"type":"certificateAuthority"},"tags":{"profile":"sensor"}}`+"\n"), namespace, byte(1))
	f.Add([]byte(`{"registrationId":"dev-2","deviceId":"Dev-2","attestation":{"type":"x509","x509":{}},"provisioningStatus":"enabled","initialTwin":{"tags":{"profile":"sensor"},"properties":{"desired":{}}}}`+"\n"), namespace, byte(2))
	settings := [][]byte{{}, {}, {}}
	for i, form := range []string{azureiot.EventGrid, azureiot.IoTHub, azureiot.DPS} {
		s := &templates.Setting{Version: "2025-02-15", Form: form, Dest: "/x", CertificatePort: 1, PasswordPort: 2}
		settings[i] = []byte(`{"form":"` + form + `","imprint":"` + s.Stamp() + `"}` + "\n")
	}
	f.Fuzz(func(t *testing.T, list, namespace []byte, form byte) {
		src := fstest.MapFS{}
		for name, b := range map[string][]byte{
			azureiot.SettingName: settings[form%3], azureiot.NamespaceName: namespace, "trust.pem": m.Trust,
			azureiot.ClientsName: list, azureiot.DevicesName: list, azureiot.EnrollmentsName: list,
		} {
			src[name] = &fstest.MapFile{Data: b}
		}
		v, err := azureiot.Target().Parse(src)
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
		_ = azureiot.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: []topic.Rule{{Action: topic.Receive, Filter: filter}, {Filter: filter}}}}) // either is right
	}
}
