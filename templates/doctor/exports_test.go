package doctor_test

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/doctor"
	"github.com/imprint-iot/imprint/templates/mosquitto"
	"github.com/imprint-iot/imprint/templates/rabbitmq"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// What imprint writes itself has no finding of severity error, wherever it is going
// to be put; and what is found is only what has to be. The listener for passwords
// asks for no certificate.
func TestOurExports(t *testing.T) {
	for _, tt := range []struct {
		name    string
		target  templates.Target
		options templates.Options
		want    []string
	}{
		{"mosquitto 2.0", mosquitto.Target{}, templates.Options{Version: mosquitto.V20}, []string{"MQ010"}},
		{"mosquitto 2.1", mosquitto.Target{}, templates.Options{Version: mosquitto.V21}, []string{"MQ010"}},
		{"mosquitto, expanded", mosquitto.Target{}, templates.Options{Form: mosquitto.Expanded}, []string{"MQ010"}},
		{"mosquitto, dynsec", mosquitto.Target{}, templates.Options{Form: mosquitto.Dynsec}, []string{"MQ010"}},
		{"rabbitmq", rabbitmq.Target{}, templates.Options{}, []string{"MQ006", "MQ010"}},
	} {
		for _, dest := range []string{"", "/etc/imprint/export"} {
			t.Run(tt.name+" for "+dest, func(t *testing.T) {
				fleet := targettest.Small(t, time.Now())
				d, err := durable.OpenDir(t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = d.Close() }() // of a test
				tt.options.Dest = dest
				if _, err := tt.target.Write(d, fleet, tt.options); err != nil {
					t.Fatal(err)
				}
				r, err := doctor.Files(d.FS(), ".", doctor.FileOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if got := found(r); !slices.Equal(got, tt.want) || r.Worst() == doctor.Error || len(r.Unknown) != 0 {
					t.Errorf("found %v, want %v\n%s", got, tt.want, dump(r))
				}
			})
		}
	}
}

// TestWhereTheBrokerReads audits the files of an export under the paths that the
// broker has them at, and one that is gone.
func TestWhereTheBrokerReads(t *testing.T) {
	d, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	if _, err := (mosquitto.Target{}).Write(d, targettest.Small(t, time.Now()), templates.Options{}); err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(d.Path(), "/") + "/mosquitto.conf"
	r, err := doctor.Files(os.DirFS("/"), name, doctor.FileOptions{Root: "/"})
	if err != nil || r.Worst() != doctor.Warning || len(r.Unknown) != 0 {
		t.Errorf("%v\n%s", err, dump(r))
	}
	if err := d.Remove("acl_file"); err != nil {
		t.Fatal(err)
	}
	r, err = doctor.Files(os.DirFS("/"), name, doctor.FileOptions{Root: "/"})
	if err != nil || !slices.Contains(found(r), "MQ101") {
		t.Errorf("the ACL file is gone: %v\n%s", err, dump(r))
	}
}

// TestSARIF checks what SARIF 2.1.0 requires (§3.13-3.50 of the standard) and what
// code hosts ask for: every result has a rule, a message and a place.
func TestSARIF(t *testing.T) {
	for _, c := range badConfigs(t) {
		r, err := doctor.Files(c.src, c.file, c.options)
		if err != nil {
			t.Fatal(err)
		}
		checkSARIF(t, r)
	}
	checkSARIF(t, doctor.Report{Subject: "broker.example:8883", Kind: doctor.KindEndpoint, Findings: []doctor.Finding{
		{Rule: doctor.Rules()[0].ID, Severity: doctor.Error, Title: "t", Detail: "d"},
	}})
}

func checkSARIF(t *testing.T, r doctor.Report) {
	t.Helper()
	text, err := r.SARIF("1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	var log map[string]any
	if err := json.Unmarshal(text, &log); err != nil {
		t.Fatal(err)
	}
	if log["version"] != "2.1.0" || !strings.Contains(log["$schema"].(string), "sarif-2.1.0") {
		t.Errorf("version %v, schema %v", log["version"], log["$schema"])
	}
	run := log["runs"].([]any)[0].(map[string]any)
	driver := run["tool"].(map[string]any)["driver"].(map[string]any)
	if driver["name"] != "imprint" || driver["version"] != "1.2.3" {
		t.Errorf("driver %v", driver["name"])
	}
	ids := map[string]bool{}
	rules := driver["rules"].([]any)
	for _, x := range rules {
		rule := x.(map[string]any)
		ids[rule["id"].(string)] = true
		for _, key := range []string{"shortDescription", "fullDescription", "help"} {
			if s, _ := rule[key].(map[string]any)["text"].(string); s == "" {
				t.Errorf("rule %v has no %s", rule["id"], key)
			}
		}
	}
	if len(ids) != len(doctor.Rules()) {
		t.Errorf("%d rules", len(ids))
	}
	results := run["results"].([]any)
	if len(results) != len(r.Findings) {
		t.Errorf("%d results, want %d", len(results), len(r.Findings))
	}
	for _, x := range results {
		res := x.(map[string]any)
		at := res["locations"].([]any)[0].(map[string]any)["physicalLocation"].(map[string]any)
		uri := at["artifactLocation"].(map[string]any)["uri"].(string)
		region, hasRegion := at["region"].(map[string]any)
		rule := rules[int(res["ruleIndex"].(float64))].(map[string]any)
		switch {
		case !ids[res["ruleId"].(string)] || rule["id"] != res["ruleId"]:
			t.Errorf("rule %v at index %v", res["ruleId"], res["ruleIndex"])
		case !slices.Contains([]any{"error", "warning", "note"}, res["level"]):
			t.Errorf("level %v", res["level"])
		case res["message"].(map[string]any)["text"] == "" || uri == "":
			t.Errorf("result without a message or a place: %v", res)
		case hasRegion && region["startLine"].(float64) < 1:
			t.Errorf("line %v", region["startLine"])
		}
	}
}

// TestJSON holds the names of the fields, which others' programs read.
func TestJSON(t *testing.T) {
	c := badConfigs(t)[0]
	r, err := doctor.Files(c.src, c.file, c.options)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{`"subject":`, `"kind":`, `"findings":[{"rule":"MQ`, `"severity":"`, `"title":`, `"detail":`, `"why":`, `"fix":`, `"file":`, `"line":`, `"checked":[`, `"unknown":[`} {
		if !strings.Contains(string(text), key) {
			t.Errorf("no %s in %s", key, text)
		}
	}
}
