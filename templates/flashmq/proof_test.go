package flashmq_test

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
	"github.com/imprint-iot/imprint/templates/flashmq"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

func start() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// fleet is the fleet of the proof with more rules: empty levels, wildcards and quotes.
// Its observer may do everything, which FlashMQ cannot express; no real broker is
// asked here, so nobody has to observe.
func fleet(t *testing.T) *targettest.Memory {
	t.Helper()
	f := targettest.ProofFleet(t, start(), append(targettest.ProofRules(),
		topic.Rule{Action: topic.Publish, Filter: "it's/{id}/\"raw\"/+"},
		topic.Rule{Action: topic.Receive, Filter: "a//{id}/+/x\\y/#"},
		topic.Rule{Action: topic.Receive, Filter: "b/{id}/+/#"},
		topic.Rule{Action: topic.Receive, Filter: "/{id}/"})...)
	f.Remove(targettest.ObserverID)
	f.Models = slices.DeleteFunc(f.Models, func(p inventory.Profile) bool { return p.Name == "observer" })
	return f
}

// What FlashMQ makes of an export, by its source, is the policy, but that a will needs
// the right to receive its topic.
func TestProof(t *testing.T) {
	for _, form := range []string{flashmq.Either, flashmq.Both} {
		t.Run(form, func(t *testing.T) {
			f := fleet(t)
			if form == flashmq.Both { // what has only a certificate is not in it
				f.Remove("dev-10")
				f.Remove("dev-3")
				f.Device(t, "dev-10", "valve", "yard", "correct horse")
			}
			dir := t.TempDir()
			write(t, dir, f, templates.Options{Form: form, Now: f.Now})
			e, err := flashmq.NewEvaluator(os.DirFS(dir))
			if err != nil {
				t.Fatal(err)
			}
			devices := f.ProofDevices(t)
			r, err := proof.Evaluate("flashmq "+form, e, proof.Questions(devices))
			if err != nil {
				t.Fatal(err)
			}
			targettest.Report(t, r, func(q proof.Question) bool {
				i := slices.IndexFunc(devices, func(d proof.Device) bool { return d.ID() == q.Device })
				return q.Verb == proof.Will && !devices[i].Policy.Decide(devices[i].Subject, topic.Receive, topic.Name(q.Topic)).Allowed
			})
		})
	}
}

// The evaluator sees what is wrong with files that imprint would not write: what it
// is for.
func TestEvaluatorSeesWider(t *testing.T) {
	good, err := os.ReadFile(filepath.Join("testdata", "golden", flashmq.Either, flashmq.ConfName))
	if err != nil {
		t.Fatal(err)
	}
	conf := string(good)
	pub, recv, will := proof.Publish, proof.Receive, proof.Will
	for _, tt := range []struct {
		name, conf, acl string
		verb            proof.Verb
		topic           string
		want            proof.Answer
	}{
		{"what is above a #", conf, "user dev-1\ntopic read a/#\n", recv, "a", proof.Denied},
		{"what is below a #", conf, "user dev-1\ntopic read a/#\n", recv, "a/", proof.Allowed},
		{"# alone", conf, "user dev-1\ntopic read #\n", recv, "$SYS/x", proof.Allowed},
		{"+ at the start", conf, "user dev-1\ntopic write +/x\n", pub, "$SYS/x", proof.Allowed},
		{"+ at the end", conf, "user dev-1\ntopic read a/+\n", recv, "a/b/c", proof.Denied},
		{"a user's name with a space", conf, "user dev-1 x\ntopic write a\n", pub, "a", proof.Allowed},
		{"a will that may be sent", conf, "user dev-1\ntopic write a\n", will, "a", proof.Denied},
		{"a will that may be read", conf, "user dev-1\ntopic read a\n", will, "a", proof.Denied},
		{"a will that may be both", conf, "user dev-1\ntopic readwrite a\n", will, "a", proof.Allowed},
		{"a pattern", conf, "pattern write a/%u\n", pub, "a/dev-1", proof.Allowed},
		{"a pattern of another", conf, "pattern write a/%u\n", pub, "a/dev-2", proof.Denied},
		{"a pattern in part", conf, "pattern write a/x%u\n", pub, "a/xdev-1", proof.Denied},
		{"a deny among patterns", conf, "user dev-1\ntopic write a\npattern deny a\n", pub, "a", proof.Denied},
		{"before the first user", conf, "topic write a\nuser dev-1\n", pub, "a", proof.Denied},
		{"words in capitals", conf, "USER dev-1\nTopic WRITE a\n", pub, "a", proof.Allowed},
		{"an empty file", conf, "", pub, "a", proof.Denied},
		{"a subscription", conf, "", proof.Subscribe, "#", proof.Unknown},
		{"anonymous", strings.Replace(conf, "\nallow_anonymous false", "\nallow_anonymous true", 1), "", pub, "a", proof.Allowed},
		{"no ACL file", strings.Replace(conf, "mosquitto_acl_file", "#mosquitto_acl_file", 1), "", pub, "a", proof.Allowed},
	} {
		e, err := flashmq.NewEvaluator(fstest.MapFS{flashmq.ConfName: {Data: []byte(tt.conf)}, flashmq.ACLName: {Data: []byte(tt.acl)}})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got, err := e.Answer(proof.Question{Device: "dev-1", Verb: tt.verb, Topic: tt.topic}); err != nil || got != tt.want {
			t.Errorf("%s: %s %q is %v, %v, want %v", tt.name, tt.verb, tt.topic, got, err, tt.want)
		}
	}
	for _, acl := range []string{"user\n", "topic write a b\n", "topic foo a\n", "topic write a#\n", "topic write a/#/b\n", "other x\n"} {
		if _, err := flashmq.NewEvaluator(fstest.MapFS{flashmq.ConfName: {Data: good}, flashmq.ACLName: {Data: []byte(acl)}}); err == nil {
			t.Errorf("a file with %q is loaded", acl)
		}
	}
}

func TestRule(t *testing.T) {
	for _, tt := range []struct {
		action topic.Action
		filter string
		exact  bool
	}{
		{topic.Receive, "a/+", true},
		{topic.Receive, "a/+/#", true},
		{topic.Publish, "a/#", true},
		{topic.Publish, "#", false},
		{topic.Receive, "#", false},
		{topic.Receive, "+/a", false},
		{topic.Publish, "a b/c", false},
		{topic.Receive, "$SYS/broker/uptime", true},
	} {
		err := flashmq.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: []topic.Rule{{Action: tt.action, Filter: tt.filter, Shared: true}}}})
		if (err == nil) != tt.exact {
			t.Errorf("%s %s: %v, want exact %v", tt.action, tt.filter, err, tt.exact)
		}
	}
}
