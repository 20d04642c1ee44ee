package emqx_test

import (
	"errors"
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
	"github.com/imprint-iot/imprint/templates/emqx"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

func start() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// rules are those of the proof and more: filters that end in + and cover each other,
// empty levels, what the notations give a meaning to.
func rules() []topic.Rule {
	return append(targettest.ProofRules(),
		topic.Rule{Action: topic.Publish, Filter: "it's/{id}/\"raw\"/+"},
		topic.Rule{Action: topic.Receive, Filter: "a//{id}/+/x\\y/#"},
		topic.Rule{Action: topic.Receive, Filter: "p/{id}/q/+"},
		topic.Rule{Action: topic.Receive, Filter: "p/{id}/+/#"},
		topic.Rule{Action: topic.Receive, Filter: "é \u2028/{id}/+"},
		topic.Rule{Action: topic.Receive, Filter: "w/{id}/+"},
		topic.Rule{Action: topic.Receive, Filter: "w/{id}/#"},
		topic.Rule{Action: topic.Receive, Filter: "/{id}/"})
}

// The observer of a proof may do everything, which EMQX cannot express in all versions.
// No real broker is asked here, so nobody has to observe.
func small(t *testing.T) *targettest.Memory {
	t.Helper()
	f := targettest.ProofFleet(t, start(), rules()...)
	withoutObserver(f)
	return f
}

func withoutObserver(f *targettest.Memory) {
	f.Remove(targettest.ObserverID)
	f.Models = slices.DeleteFunc(f.Models, func(p inventory.Profile) bool { return p.Name == "observer" })
}

// What EMQX makes of an export, by its source, is the policy.
func TestProof(t *testing.T) {
	for _, form := range []string{emqx.File, emqx.API, emqx.PostgreSQL} {
		t.Run(form, func(t *testing.T) {
			f := small(t)
			dir := t.TempDir()
			write(t, dir, f, templates.Options{Form: form, Now: f.Now})
			targettest.Report(t, evaluate(t, "emqx "+form, dir, proof.Questions(f.ProofDevices(t))), nil)
		})
	}
}

func evaluate(t *testing.T, name, dir string, questions []proof.Question) proof.Report {
	t.Helper()
	e, err := emqx.NewEvaluator(os.DirFS(dir))
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
	v, dropped, err := templates.Narrow(f, emqx.Target())
	if err != nil {
		t.Fatal(err)
	}
	if len(dropped) != 4 { // # of the observer twice, n/{id}/+/+ of both profiles
		t.Errorf("dropped %v, want 4 rules", dropped)
	}
	dir := t.TempDir()
	write(t, dir, v, templates.Options{Now: f.Now})
	r := evaluate(t, "emqx narrower", dir, proof.Questions(devices))
	targettest.Report(t, r, func(q proof.Question) bool { return strings.HasPrefix(q.Topic, "n/") && q.Verb != proof.Publish })
	if len(r.Narrower) == 0 {
		t.Error("nothing is narrower: was the rule dropped?")
	}
}

// The evaluator sees what is wrong with files that imprint would not write: what it is
// for.
func TestEvaluatorSeesWider(t *testing.T) {
	good, err := os.ReadFile(filepath.Join("testdata", "golden", "conf", "file-6.2.conf"))
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
	const head, none = "user_id,password_hash,salt,is_superuser\n", "{deny,all}.\n"
	mine := func(action, topics string) string {
		return `{allow,{username,"dev-1"},` + action + `,[` + topics + "]}.\n" + none
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
		{"a + at the end, denied before", conf, `{deny,all,subscribe,[{eq,"a/#"}]}.` + "\n", sub, "a/#", proof.Denied},
		{"a + at the end and denied", conf, `{deny,{username,"dev-1"},subscribe,[{eq,"a/#"}]}.` + "\n" + mine("subscribe", `"a/+"`), recv, "a/b/c", proof.Denied},
		{"a + before the #", conf, mine("subscribe", `"a/+/#"`), recv, "a", proof.Allowed},
		{"two +", conf, `{deny,{username,"dev-1"},subscribe,[{eq,"a/+/#"}]}.` + "\n" + mine("subscribe", `"a/+/+"`), recv, "a/b/c/d", proof.Allowed},
		{"a + in the middle", conf, mine("subscribe", `"a/+/c"`), sub, "a/#", proof.Denied},
		{"a + in the middle, its own", conf, mine("subscribe", `"a/+/c"`), sub, "a/+/c", proof.Allowed},
		{"a # at the end", conf, mine("subscribe", `"a/#"`), recv, "a", proof.Allowed},
		{"another user's", conf, strings.ReplaceAll(mine("publish", `"a"`), "dev-1", "dev-2"), pub, "a", proof.Denied},
		{"another action", conf, mine("subscribe", `"a"`), pub, "a", proof.Denied},
		{"all actions", conf, mine("all", `"a"`), pub, "a", proof.Allowed},
		{"as text", conf, mine("subscribe", `"eq a/+"`), sub, "a/b", proof.Denied},
		{"the list that comes with EMQX", conf, "{allow,all}.\n", pub, "x", proof.Allowed},
		{"nothing for $", change("no_match = deny", "no_match = allow"), none, pub, "$x", proof.Allowed},
		{"a shared subscription", conf, mine("subscribe", `"a"`), sub, "$share/g/a", proof.Denied},
		{"a shared subscription, on", change("shared_subscription = false", "shared_subscription = true"), mine("subscribe", `"a"`), sub, "$share/g/a", proof.Allowed},
		{"delayed", conf, mine("publish", `"a"`), pub, "$delayed/9/a", proof.Allowed}, // see NotEnforced
		{"delayed, nothing", conf, mine("publish", `"$delayed/9"`), pub, "$delayed/9", proof.Denied},
		{"no certificate", change("verify = verify_peer", "verify = verify_none"), none, pub, "x", proof.Allowed},
		{"any certificate", change("peer_cert_as_username = cn", "peer_cert_as_username = disabled"), none, pub, "x", proof.Allowed},
		{"any client identifier", change(`clientid_override = "username"`, "clientid_override = disabled"), none, pub, "x", proof.Allowed},
		{"a listener without TLS", change("listeners.tcp.default.enable = false", ""), none, pub, "x", proof.Allowed},
		{"no authenticator", change("mechanism = password_based", ""), none, pub, "x", proof.Allowed},
	} {
		e, err := emqx.NewEvaluator(fstest.MapFS{
			emqx.ConfName: {Data: []byte(tt.conf)}, emqx.ACLName: {Data: []byte(tt.acl)}, emqx.UsersName: {Data: []byte(head)},
		})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got, err := e.Answer(proof.Question{Device: "dev-1", Verb: tt.verb, Topic: tt.topic}); err != nil || got != tt.want {
			t.Errorf("%s: %s %q is %v, %v, want %v", tt.name, tt.verb, tt.topic, got, err, tt.want)
		}
	}
	e, err := emqx.NewEvaluator(fstest.MapFS{
		emqx.ConfName: {Data: good}, emqx.ACLName: {Data: []byte(none)}, emqx.UsersName: {Data: []byte(head + "dev-1,x,y,true,false\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := e.Answer(proof.Question{Device: "dev-1", Verb: pub, Topic: "x"}); err != nil || got != proof.Allowed {
		t.Errorf("a superuser by a comma too many: %v, %v, want allowed", got, err)
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
		{topic.Receive, "a/+/b/#", true},
		{topic.Receive, "a/+/+", false},
		{topic.Receive, "a/+/+/#", false},
		{topic.Receive, "a/+/b/+", false},
		{topic.Receive, "a/+/b/+/#", false},
		{topic.Publish, "a/+", true},
		{topic.Publish, "a/+/+/#", true},
		{topic.Publish, "#", false},
		{topic.Publish, "+/a", false},
		{topic.Receive, "#", false},
		{topic.Receive, "+", false},
		{topic.Receive, "eq a/b", false},
		{topic.Publish, "equal/b", true},
		{topic.Receive, "$share/g/a", false},
		{topic.Publish, "$delayed/1/a", false},
		{topic.Receive, "$exclusive/a", false},
		{topic.Receive, "$SYS/brokers", true},
		{topic.Receive, "a/\uffff", false},
	} {
		err := emqx.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: []topic.Rule{{Action: tt.action, Filter: tt.filter, Shared: true}}}})
		if (err == nil) != tt.exact {
			t.Errorf("%s %s: %v, want exact %v", tt.action, tt.filter, err, tt.exact)
		}
	}
}

// The built-in database takes 100 rules for a name; a + at the end makes two of one.
func TestTooManyRules(t *testing.T) {
	for _, tt := range []struct {
		plus int
		ok   bool
	}{{50, true}, {51, false}} {
		f := targettest.NewFleet(t, start())
		var rules []topic.Rule
		for i := range tt.plus {
			rules = append(rules, topic.Rule{Action: topic.Receive, Filter: strings.Repeat("x/", i) + "{id}/+"})
		}
		f.Profile("sensor", rules...)
		f.Device(t, "dev-1", "sensor", "hall", "correct horse")
		_, err := writeErr(t, t.TempDir(), f, templates.Options{Form: emqx.API, Now: f.Now})
		if _, refused := errors.AsType[*templates.EntryError](err); refused == tt.ok || tt.ok && err != nil {
			t.Errorf("%d rules that end in +: %v, want written %v", tt.plus, err, tt.ok)
		}
	}
}
