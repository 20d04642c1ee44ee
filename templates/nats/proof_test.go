package nats_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/nats"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// rules are those of the proof, as far as the server can hold them, and more: dots,
// empty levels, quotes, a wildcard in the middle.
func rules() []topic.Rule {
	out := slices.DeleteFunc(targettest.ProofRules(), func(r topic.Rule) bool {
		return r.Action == topic.Receive && strings.HasSuffix(r.Filter, "+")
	})
	return append(out,
		topic.Rule{Action: topic.Publish, Filter: "it's/{id}/\"raw\"/+"},
		topic.Rule{Action: topic.Receive, Filter: "a//{id}/+/x\\y/#"},
		topic.Rule{Action: topic.Publish, Filter: "v1.2/{id}/./#"},
		topic.Rule{Action: topic.Receive, Filter: "/{id}/"})
}

// fleet is the fleet of the proof without its observer, who may do everything: the
// server cannot hold that rule.
func fleet(t *testing.T) *targettest.Memory {
	t.Helper()
	f := targettest.ProofFleet(t, time.Now(), rules()...)
	f.Remove(targettest.ObserverID)
	f.Models = slices.DeleteFunc(f.Models, func(p inventory.Profile) bool { return p.Name == "observer" })
	for i := range f.Devices {
		e := &f.Devices[i]
		e.Certificate = true
		if len(e.Verifiers) == 0 {
			e.Verifiers = targettest.Verifiers(t, string(e.ID), "correct horse")
		}
	}
	return f
}

// devices are those of a fleet with what they connect with.
func devices(t *testing.T, f *targettest.Memory) []proof.Device {
	t.Helper()
	out := f.ProofDevices(t)
	for i := range out {
		if len(out[i].Password) == 0 {
			out[i].Password = []byte("correct horse")
		}
	}
	return out
}

// What the server makes of an export, by its source, is the policy.
func TestEvaluator(t *testing.T) {
	for _, form := range forms() {
		f := fleet(t)
		dir := t.TempDir()
		write(t, dir, f, templates.Options{Form: form})
		e, err := nats.NewEvaluator(os.DirFS(dir))
		if err != nil {
			t.Fatal(err)
		}
		r, err := proof.Evaluate("nats "+form, e, proof.Questions(devices(t, f)))
		if err != nil {
			t.Fatal(err)
		}
		targettest.Report(t, r, nil)
	}
}

// The evaluator knows the mistakes that one can make with this server; what it says
// is asked of the real one in TestEvaluatorIsTheServer.
func TestEvaluatorSeesMistakes(t *testing.T) {
	for _, tt := range mistakes() {
		e, err := nats.NewEvaluator(fstest.MapFS{nats.ConfName: {Data: []byte(mistakenConf)}, nats.UsersName: {Data: []byte(tt.users)}})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		for text, want := range map[string]proof.Answer{tt.allowed: proof.Allowed, tt.denied: proof.Denied} {
			if text == "" {
				continue
			}
			if got, err := e.Answer(proof.Question{Device: "dev-1", Verb: tt.verb, Topic: text}); err != nil || got != want {
				t.Errorf("%s: %s %q is %v, %v, want %v", tt.name, tt.verb, text, got, err, want)
			}
		}
	}
}

const mistakenConf = `accounts { IMPRINT { jetstream: enabled, include "imprint-users.conf" } }`

// A mistake is a list of users that is not what it seems.
type mistake struct {
	name, users     string
	verb            proof.Verb
	allowed, denied string
}

func mistakes() []mistake {
	user := func(permissions string) string {
		return `users = [ { user: "dev-1", password: "` + hash + `"` + permissions + ` } ]`
	}
	const both = `, permissions: { publish: { allow: ["x"] }, subscribe: { allow: `
	return []mistake{
		{"no permissions", user(""), proof.Publish, "anything", ""},
		{"no publish", user(`, permissions: { subscribe: { allow: ["x"] } }`), proof.Publish, "anything", ""},
		{"no subscribe", user(`, permissions: { publish: { allow: ["x"] } }`), proof.Subscribe, "anything", ""},
		{"empty list", user(both + `[] } }`), proof.Subscribe, "anything", ""},
		{"the level above is missing", user(both + `["a.>"] } }`), proof.Subscribe, "a/b", "a/#"},
		{"the level above", user(both + `["a.>", "a"] } }`), proof.Subscribe, "a/#", "b/#"},
		{"# for a +", user(both + `["a.*", "a"] } }`), proof.Subscribe, "a/#", "a/b/c"},
		{"a + alone", user(both + `["a.*"] } }`), proof.Subscribe, "a/+", "a/#"},
		{"deny", user(both + `["a.*"], deny: ["a.b"] } }`), proof.Subscribe, "a/c", "a/b"},
		{"a dot", user(both + `["a.b"] } }`), proof.Subscribe, "a/b", "a.b"},
		{"an empty level", user(both + `["a./.b"] } }`), proof.Subscribe, "a//b", "a/b"},
		{"everything", user(both + `[">"] } }`), proof.Subscribe, "$JS/#", "$MQTT/#"},
		{"another connection", user(`, allowed_connection_types: ["MQTT"]`), proof.Publish, "a", ""},
	}
}
