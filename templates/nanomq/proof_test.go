package nanomq_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/nanomq"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

func start() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// rules are those of the proof and more: filters that end in + and cover each other,
// empty levels, what the notation gives a meaning to elsewhere.
func rules() []topic.Rule {
	return append(targettest.ProofRules(),
		topic.Rule{Action: topic.Publish, Filter: "it's/{id}/[raw], =x:y/+"},
		topic.Rule{Action: topic.Receive, Filter: "a//{id}/+/x$y@/#"},
		topic.Rule{Action: topic.Receive, Filter: "p/{id}/q/+"},
		topic.Rule{Action: topic.Receive, Filter: "p/{id}/+/#"},
		topic.Rule{Action: topic.Receive, Filter: "w/{id}/+"},
		topic.Rule{Action: topic.Receive, Filter: "w/{id}/#"},
		topic.Rule{Action: topic.Receive, Filter: "/{id}/"})
}

// The observer of a proof may do everything, which NanoMQ cannot express. No real broker
// is asked here, so nobody has to observe.
func small(t *testing.T) *targettest.Memory {
	t.Helper()
	f := targettest.ProofFleet(t, start(), rules()...)
	f.Remove(targettest.ObserverID)
	f.Models = slices.DeleteFunc(f.Models, func(p inventory.Profile) bool { return p.Name == "observer" })
	return f
}

// What NanoMQ makes of an export, by its source, is the policy.
func TestProof(t *testing.T) {
	f := small(t)
	dir := t.TempDir()
	write(t, dir, f, templates.Options{Now: f.Now})
	targettest.Report(t, evaluate(t, "nanomq acl", dir, proof.Questions(f.ProofDevices(t))), nil)
}

func evaluate(t *testing.T, name, dir string, questions []proof.Question) proof.Report {
	t.Helper()
	e, err := nanomq.NewEvaluator(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := proof.Evaluate(name, e, questions)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Without the rules that cannot be expressed an export is narrower, and only there.
func TestProofNarrow(t *testing.T) {
	f := targettest.ProofFleet(t, start(), append([]topic.Rule{{Action: topic.Receive, Filter: "n/{id}/+/+"}}, targettest.ProofRules()...)...)
	devices := f.ProofDevices(t)
	v, dropped, err := templates.Narrow(f, nanomq.Target())
	if err != nil {
		t.Fatal(err)
	}
	if len(dropped) != 4 { // # of the observer twice, n/{id}/+/+ of both profiles
		t.Errorf("dropped %v, want 4 rules", dropped)
	}
	dir := t.TempDir()
	write(t, dir, v, templates.Options{Now: f.Now})
	r := evaluate(t, "nanomq narrower", dir, proof.Questions(devices))
	targettest.Report(t, r, func(q proof.Question) bool { return strings.HasPrefix(q.Topic, "n/") && q.Verb != proof.Publish })
	if len(r.Narrower) == 0 {
		t.Error("nothing is narrower: was the rule dropped?")
	}
}

// The evaluator sees what is wrong with files that imprint would not write: what it is
// for.
func TestEvaluatorSeesWider(t *testing.T) {
	good, err := os.ReadFile(filepath.Join("testdata", "golden", nanomq.ACL, nanomq.ConfName))
	if err != nil {
		t.Fatal(err)
	}
	conf := string(good)
	change := func(from, to string) string {
		if !strings.Contains(conf, from) {
			t.Fatalf("the configuration has no %q", from)
		}
		return strings.Replace(conf, from, to, 1)
	}
	const none = `{"permit": "deny"}`
	mine := func(action, topics string) string {
		return `{"permit": "allow", "username": "dev-1", "action": "` + action + `", "topics": [` + topics + "]}\n" + none
	}
	sub, pub, recv := proof.Subscribe, proof.Publish, proof.Receive
	for _, tt := range []struct {
		name, conf, acl string
		verb            proof.Verb
		topic           string
		want            proof.Answer
	}{
		{"a + at the end", conf, mine("subscribe", `"a/+"`), sub, "a/#", proof.Allowed},
		{"a + at the end, delivered", conf, mine("subscribe", `"a/+"`), recv, "a/b/c", proof.Allowed},
		{"a + at the end and denied", conf, `{"permit": "deny", "username": "dev-1", "topics": ["@a/#"]}` + mine("subscribe", `"a/+"`), recv, "a/b/c", proof.Denied},
		{"a + before the #", conf, mine("subscribe", `"a/+/#"`), recv, "a", proof.Allowed},
		{"two +", conf, `{"permit": "deny", "topics": ["@a/+/#"]}` + mine("subscribe", `"a/+/+"`), recv, "a/b/c/d", proof.Allowed},
		{"a + in the middle", conf, mine("subscribe", `"a/+/c"`), sub, "a/#", proof.Denied},
		{"a + in the middle, its own", conf, mine("subscribe", `"a/+/c"`), sub, "a/+/c", proof.Allowed},
		{"a + at the end, published", conf, mine("publish", `"a/+"`), pub, "a", proof.Denied},
		{"a # at the end", conf, mine("subscribe", `"a/#"`), recv, "a", proof.Allowed},
		{"# alone", conf, mine("subscribe", `"#"`), recv, "$SYS/x", proof.Allowed},
		{"another user's", conf, strings.ReplaceAll(mine("publish", `"a"`), "dev-1", "dev-2"), pub, "a", proof.Denied},
		{"another action", conf, mine("subscribe", `"a"`), pub, "a", proof.Denied},
		{"everybody's name", conf, strings.ReplaceAll(mine("publish", `"a"`), "dev-1", "#"), pub, "a", proof.Allowed},
		{"a misspelt name", conf, strings.ReplaceAll(mine("publish", `"a"`), "username", "user"), pub, "a", proof.Allowed},
		{"no topics", conf, `{"permit": "allow", "username": "dev-1"}`, pub, "x", proof.Allowed},
		{"a topic that is no list", conf, `{"permit": "allow", "username": "dev-1", "topics": "a"}`, pub, "x", proof.Allowed},
		{"a placeholder", conf, mine("publish", `"a/${username}"`), pub, "a/dev-1", proof.Allowed},
		{"nothing at the end", change("no_match = deny", "no_match = allow"), "", pub, "x", proof.Allowed},
		{"anonymous", change("allow_anonymous = false", "allow_anonymous = true"), none, pub, "x", proof.Allowed},
		{"nobody is asked", change(`url = "http://127.0.0.1:8080/v1/webhook/nanomq/auth"`, ""), none, pub, "x", proof.Allowed},
		{"a form", change(`headers = { include "/etc/imprint/export/imprint-headers.conf" }`, `headers.content-type = "application/x-www-form-urlencoded"`), none, pub, "x", proof.Allowed},
		{"a certificate of anybody's", change("fail_if_no_peer_cert = true", "fail_if_no_peer_cert = false"), none, pub, "x", proof.Allowed},
		{"a listener without TLS", conf + "listeners.tcp {\n  bind = \"0.0.0.0:1883\"\n}\n", none, pub, "x", proof.Allowed},
		{"no rules", change(`acl = { include "/etc/imprint/export/nanomq_acl.conf" }`, ""), none, pub, "x", proof.Allowed},
	} {
		e, err := nanomq.NewEvaluator(fstest.MapFS{nanomq.ConfName: {Data: []byte(tt.conf)}, nanomq.ACLName: {Data: []byte("rules = [\n" + tt.acl + "\n]\n")}})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got, err := e.Answer(proof.Question{Device: "dev-1", Verb: tt.verb, Topic: tt.topic}); err != nil || got != tt.want {
			t.Errorf("%s: %s %q is %v, %v, want %v", tt.name, tt.verb, tt.topic, got, err, tt.want)
		}
	}
	if _, err := nanomq.NewEvaluator(fstest.MapFS{nanomq.ConfName: {Data: good}, nanomq.ACLName: {Data: []byte("rules = [\n" + mine("publish", "") + "\n]\n")}}); err == nil {
		t.Error("an empty list of topics is read")
	}
}

func TestRule(t *testing.T) {
	for _, tt := range []struct {
		action topic.Action
		filter string
		exact  bool
	}{
		{topic.Receive, "a/b", true},
		{topic.Receive, "a/#", true},
		{topic.Receive, "a/+", true},
		{topic.Receive, "/+", true},
		{topic.Receive, "a/+/#", true},
		{topic.Receive, "{id}/+", true},
		{topic.Receive, "a/+/b", true},
		{topic.Receive, "a/+/+", false},
		{topic.Receive, "a/+/b/+/#", false},
		{topic.Publish, "a/+/+", true},
		{topic.Publish, "#", false},
		{topic.Publish, "+/a", false},
		{topic.Receive, "@a/b", false},
		{topic.Receive, "a/@b", true},
		{topic.Receive, "a/\"", false},
		{topic.Receive, "a/\\", false},
		{topic.Receive, "a/é", false},
		{topic.Receive, "$share/g/a", false},
		{topic.Receive, "$SYS/brokers", true},
	} {
		err := nanomq.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: []topic.Rule{{Action: tt.action, Filter: tt.filter, Shared: true}}}})
		if (err == nil) != tt.exact {
			t.Errorf("%s %s: %v, want exact %v", tt.action, tt.filter, err, tt.exact)
		}
	}
}

// An independent parser of HOCON reads both files, the included one in its place, and
// finds the rules and the settings that are meant.
func TestHOCON(t *testing.T) {
	dir := os.Getenv("IMPRINT_BROKERS")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(home, ".cache", "imprint-brokers")
	}
	python := filepath.Join(dir, "emqx", "bin", "python")
	if _, err := os.Stat(python); err != nil {
		t.Fatalf("there is no parser of HOCON: run . scripts/lib/brokers/emqx.sh && install_emqx (%v)", err)
	}
	const script = `
import json, sys
from pyhocon import ConfigFactory
c = ConfigFactory.parse_file(sys.argv[1])
print(json.dumps([c.get("auth.acl.rules"), {k: c.get(k) for k in json.loads(sys.argv[2])}]))
`
	export, f := t.TempDir(), small(t)
	write(t, export, f, templates.Options{Now: f.Now})
	if err := os.WriteFile(filepath.Join(export, "imprint-headers.conf"), []byte("content-type = \"application/json\"\nauthorization = \"Bearer TOKEN\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(export, nanomq.ConfName))
	if err != nil {
		t.Fatal(err)
	}
	want := nanomq.Settings(string(text))
	want["auth.http_auth.auth_req.headers.content-type"] = "application/json" // included
	keys := []string{
		"auth.allow_anonymous", "auth.no_match", "auth.http_auth.auth_req.url", "auth.http_auth.auth_req.headers.content-type",
		"auth.http_auth.auth_req.params.cn", "listeners.ssl.verify_peer", "listeners.ssl.fail_if_no_peer_cert", "listeners.ssl.passwords.bind",
	}
	arg, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), python, "-c", script, filepath.Join(export, nanomq.ConfName), string(arg)).Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		v := got[1].(map[string]any)[key]
		if s, ok := v.(bool); ok {
			v = map[bool]string{true: "true", false: "false"}[s]
		}
		if v != want[key] || v == "" {
			t.Errorf("%s is %v, want %q", key, v, want[key])
		}
	}
	lines := bytes.Split(bytes.TrimSuffix(nanomq.Rules(t, f.Devices), []byte("\n]\n")), []byte("\n"))[2:]
	list := got[0].([]any)
	if len(list) != len(lines) {
		t.Fatalf("%d rules, want %d", len(list), len(lines))
	}
	for i, r := range list {
		var w any
		if err := json.Unmarshal(lines[i], &w); err != nil {
			t.Fatal(err)
		}
		a, err1 := json.Marshal(r)
		b, err2 := json.Marshal(w)
		if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
			t.Errorf("rule %d is %s, want %s", i, a, b)
		}
	}
}

// Whatever is read is, to the octet, what would be written for it.
func FuzzRules(f *testing.F) {
	text, err := os.ReadFile(filepath.Join("testdata", "golden", nanomq.ACL, nanomq.ACLName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		var entries []templates.Entry
		for e, err := range nanomq.Devices(fstest.MapFS{nanomq.ACLName: {Data: text}}) {
			if err != nil {
				return
			}
			entries = append(entries, e)
		}
		if again := nanomq.Rules(t, entries); !bytes.Equal(again, text) {
			t.Errorf("read\n%q\nwritten\n%q", text, again)
		}
	})
}

// The evaluator reads whatever there is without a panic.
func FuzzEvaluator(f *testing.F) {
	for _, name := range []string{nanomq.ConfName, nanomq.ACLName} {
		text, err := os.ReadFile(filepath.Join("testdata", "golden", nanomq.ACL, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, text)
	}
	f.Fuzz(func(t *testing.T, conf, acl []byte) {
		e, err := nanomq.NewEvaluator(fstest.MapFS{nanomq.ConfName: {Data: conf}, nanomq.ACLName: {Data: acl}})
		if err == nil && e == nil {
			t.Error("neither an evaluator nor an error")
		}
	})
}
