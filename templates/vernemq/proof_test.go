package vernemq_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
	"github.com/imprint-iot/imprint/templates/vernemq"
)

func start() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// rules are those of the proof, as far as VerneMQ can express them, and more: empty
// levels, a wildcard in the middle, quotes.
func rules() []topic.Rule {
	out := slices.DeleteFunc(targettest.ProofRules(), func(r topic.Rule) bool {
		return r.Action == topic.Receive && strings.HasSuffix(r.Filter, "+")
	})
	return append(out,
		topic.Rule{Action: topic.Publish, Filter: "it's/{id}/\"raw\"/+"},
		topic.Rule{Action: topic.Receive, Filter: "a//{id}/+/x\\y/#"},
		topic.Rule{Action: topic.Receive, Filter: "/{id}/"})
}

// The observer of a proof may do everything, which VerneMQ cannot express. No real
// broker is asked here, so nobody has to observe.
func withoutObserver(f *targettest.Memory) {
	f.Remove(targettest.ObserverID)
	f.Models = slices.DeleteFunc(f.Models, func(p inventory.Profile) bool { return p.Name == "observer" })
}

// What VerneMQ makes of an export, by its source, is the policy.
func TestProof(t *testing.T) {
	for _, form := range []string{vernemq.File, vernemq.PostgreSQL} {
		t.Run(form, func(t *testing.T) {
			f := small(t)
			if form == vernemq.PostgreSQL { // what has only a certificate is not in it
				f.Remove("dev-10")
				f.Remove("dev-3")
				f.Device(t, "dev-10", "valve", "yard", "correct horse")
			}
			dir := t.TempDir()
			write(t, dir, f, templates.Options{Form: form, Now: f.Now})
			targettest.Report(t, evaluate(t, "vernemq "+form, dir, f), nil)
		})
	}
}

func evaluate(t *testing.T, name, dir string, f *targettest.Memory) proof.Report {
	t.Helper()
	e, err := vernemq.NewEvaluator(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := proof.Evaluate(name, e, proof.Questions(f.ProofDevices(t)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Without the rules that cannot be expressed an export is narrower, and only there.
func TestProofNarrow(t *testing.T) {
	f := targettest.ProofFleet(t, start())
	devices := f.ProofDevices(t)
	v, dropped, err := templates.Narrow(f, vernemq.Target())
	if err != nil {
		t.Fatal(err)
	}
	if len(dropped) != 4 { // # of the observer twice, groups/{group}/cmd/+ of both profiles
		t.Errorf("dropped %v, want 4 rules", dropped)
	}
	dir := t.TempDir()
	write(t, dir, v, templates.Options{Now: f.Now})
	e, err := vernemq.NewEvaluator(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := proof.Evaluate("vernemq narrower", e, proof.Questions(devices))
	if err != nil {
		t.Fatal(err)
	}
	targettest.Report(t, r, func(q proof.Question) bool {
		return q.Verb != proof.Publish && strings.HasPrefix(q.Topic, "groups/") && strings.Contains(q.Topic, "/cmd")
	})
	if len(r.Narrower) == 0 {
		t.Error("nothing is narrower: was the rule dropped?")
	}
}

// The evaluator sees what is wrong with files that imprint would not write: what it
// is for.
func TestEvaluatorSeesWider(t *testing.T) {
	good, err := os.ReadFile(filepath.Join("testdata", "golden", vernemq.File, vernemq.ConfName))
	if err != nil {
		t.Fatal(err)
	}
	conf := string(good)
	sub, pub, recv := proof.Subscribe, proof.Publish, proof.Receive
	for _, tt := range []struct {
		name, conf, acl string
		verb            proof.Verb
		topic           string
		want            proof.Answer
	}{
		{"a + at the end", conf, "user dev-1\ntopic read a/+\n", sub, "a/#", proof.Allowed},
		{"a + at the end, delivered", conf, "user dev-1\ntopic read a/+\n", recv, "a/b/c", proof.Allowed},
		{"a + before the #", conf, "user dev-1\ntopic read a/+/#\n", sub, "a/#", proof.Allowed},
		{"a + before the #, delivered", conf, "user dev-1\ntopic read a/+/#\n", recv, "a", proof.Allowed},
		{"a + in the middle", conf, "user dev-1\ntopic read a/+/c\n", sub, "a/#", proof.Denied},
		{"a + in the middle, its own", conf, "user dev-1\ntopic read a/+/c\n", sub, "a/+/c", proof.Allowed},
		{"a # at the end", conf, "user dev-1\ntopic read a/#\n", sub, "a", proof.Allowed},
		{"# alone", conf, "user dev-1\ntopic read #\n", recv, "$SYS/x", proof.Allowed},
		{"# alone, published", conf, "user dev-1\ntopic write #\n", pub, "$SYS/x", proof.Allowed},
		{"+ at the start", conf, "user dev-1\ntopic read +/x\n", recv, "$SYS/x", proof.Allowed},
		{"before the first user", conf, "topic write x\nuser dev-2\n", pub, "x", proof.Allowed},
		{"another user's", conf, "user dev-2\ntopic write x\n", pub, "x", proof.Denied},
		{"no word is both", conf, "user dev-1\ntopic x\n", pub, "x", proof.Allowed},
		{"a word it does not know", conf, "user dev-1\ntopic readwrite x\n", pub, "x", proof.Denied},
		{"an empty file", conf, "", pub, "x", proof.Denied},
		{"anonymous", strings.Replace(conf, "allow_anonymous = off", "allow_anonymous = on", 1), "", pub, "x", proof.Allowed},
		{"no certificate", strings.Replace(conf, "require_certificate = on", "require_certificate = off", 1), "", pub, "x", proof.Allowed},
		{"any name", strings.Replace(conf, "use_identity_as_username = on", "use_identity_as_username = off", 1), "", pub, "x", proof.Allowed},
	} {
		e, err := vernemq.NewEvaluator(fstest.MapFS{vernemq.ConfName: {Data: []byte(tt.conf)}, vernemq.ACLName: {Data: []byte(tt.acl)}})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got, err := e.Answer(proof.Question{Device: "dev-1", Verb: tt.verb, Topic: tt.topic}); err != nil || got != tt.want {
			t.Errorf("%s: %s %q is %v, %v, want %v", tt.name, tt.verb, tt.topic, got, err, tt.want)
		}
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
		{topic.Receive, "a/+/b", true},
		{topic.Receive, "a/+/b/#", true},
		{topic.Receive, "a/+", false},
		{topic.Receive, "a/+/#", false},
		{topic.Receive, "a/+/+", false},
		{topic.Receive, "{id}/+", false},
		{topic.Publish, "a/+", true},
		{topic.Publish, "a/+/#", true},
		{topic.Publish, "#", false},
		{topic.Publish, "+/a", false},
		{topic.Receive, "#", false},
		{topic.Receive, "+", false},
		{topic.Receive, "+/a", false},
		{topic.Receive, "$share/g/a", false},
		{topic.Receive, "$SYS/broker/uptime", true},
	} {
		err := vernemq.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: []topic.Rule{{Action: tt.action, Filter: tt.filter, Shared: true}}}})
		if (err == nil) != tt.exact {
			t.Errorf("%s %s: %v, want exact %v", tt.action, tt.filter, err, tt.exact)
		}
	}
}
