package awsiot_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/awsiot"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

func targettestStart() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func asInexpressible(err error) (*templates.InexpressibleError, bool) {
	return errors.AsType[*templates.InexpressibleError](err)
}

func foreignLeaf(t *testing.T) []byte {
	t.Helper()
	return targettest.NewPKI(t, targettestStart()).Client(t, "dev-1").Leaf.Raw
}

func things(t *testing.T, dir string) []map[string]string {
	t.Helper()
	var out []map[string]string
	for line := range strings.Lines(read(t, dir, awsiot.ThingsName)) {
		var m map[string]string
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

func parsePEM(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	b, _ := pem.Decode([]byte(text))
	if b == nil {
		t.Fatalf("no PEM: %.80q", text)
	}
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func entriesErr(t *testing.T, dir string) error {
	t.Helper()
	v, err := awsiot.Target().Parse(os.DirFS(dir))
	if err != nil {
		return err
	}
	for _, err := range v.Entries() {
		if err != nil {
			return err
		}
	}
	return nil
}

// tooLong says that a topic is more than AWS takes from anybody.
func tooLong(q proof.Question) bool { return strings.Count(q.Topic, "/") > 7 || len(q.Topic) > 256 }

// proofFleet is the fleet of proofs with certificates for all; nobody observes, since
// no policy may reach into AWS's own topics.
func proofFleet(t *testing.T, rules ...topic.Rule) *targettest.Memory {
	t.Helper()
	f := targettest.NewFleet(t, targettestStart())
	f.Profile("sensor", rules[:len(rules)-1]...)
	f.Profile("valve", rules...)
	site := inventory.Label{Key: "site", Value: "berlin"}
	f.Device(t, "dev-1", "sensor", "hall", "", site)
	f.Device(t, "dev-10", "valve", "yard", "", site)
	f.Device(t, "Dev-2", "valve", "hall", "", site)
	f.Device(t, "dev-3", "sensor", "yard", "", inventory.Label{Key: "site", Value: "rome"})
	return f
}

// newEvaluator reads an export the second way.
func newEvaluator(src fs.FS) (proof.Evaluator, error) {
	t, ok := awsiot.Target().(interface {
		Evaluator(src fs.FS) (proof.Evaluator, error)
	})
	if !ok {
		return nil, errors.New("the target has no evaluator")
	}
	return t.Evaluator(src)
}

func prove(t *testing.T, f *targettest.Memory) proof.Report {
	t.Helper()
	e, err := newEvaluator(os.DirFS(write(t, f, f)))
	if err != nil {
		t.Fatal(err)
	}
	r, err := proof.Evaluate("awsiot", e, proof.Questions(f.ProofDevices(t)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestProof(t *testing.T) {
	r := prove(t, proofFleet(t, targettest.ProofRules()...))
	targettest.Report(t, r, tooLong)
}

// Rules with a + are denied what is longer; the questions have names in which a wildcard
// of a policy would go on.
func TestProofPlus(t *testing.T) {
	for _, rules := range [][]topic.Rule{
		{{Action: topic.Receive, Filter: "fleet/{id}/+"}, {Action: topic.Publish, Filter: "fleet/{id}/+"}},
		{{Action: topic.Receive, Filter: "a/+/{id}/+", Shared: true}, {Action: topic.Publish, Filter: "a/+/{id}/+", Shared: true}},
		{{Action: topic.Receive, Filter: "a/+/+", Shared: true}, {Action: topic.Publish, Filter: "a/+/+", Shared: true}},
		{{Action: topic.Receive, Filter: "sites/{label.site}/+/x", Shared: true}, {Action: topic.Publish, Filter: "sites/{label.site}/+/x", Shared: true}},
		{{Action: topic.Receive, Filter: "$aws/things/{id}/#"}, {Action: topic.Publish, Filter: "$aws/things/{id}/+/update"}},
		{{Action: topic.Receive, Filter: "/{id}/"}, {Action: topic.Publish, Filter: "{id}//#"}},
	} {
		targettest.Report(t, prove(t, proofFleet(t, rules...)), tooLong)
	}
}

// The proof sees a policy that is too wide, and one that is too narrow.
func TestProofSees(t *testing.T) {
	for _, tt := range []struct {
		file, old, new string
		wider          bool
	}{
		{"policy-sensor-publish.json", "/up/*", "/*", true},
		{"policy-sensor-subscribe.json", "${iot:Connection.Thing.ThingName}/down", "*/down", true},
		{"policy-valve-subscribe.json", "/cmd/#", "/cmd/x#", true}, // the Deny that ends a + in a subscription
		{"policy-sensor-receive.json", "news/all", "news/none", false},
		{"things.jsonl", `"yard"`, `"hall"`, true},
	} {
		f := proofFleet(t, targettest.ProofRules()...)
		dir := write(t, f, f)
		text := strings.ReplaceAll(read(t, dir, tt.file), tt.old, tt.new)
		if err := os.WriteFile(filepath.Join(dir, tt.file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		e, err := newEvaluator(os.DirFS(dir))
		if err != nil {
			t.Fatal(err)
		}
		r, err := proof.Evaluate("awsiot", e, proof.Questions(f.ProofDevices(t)))
		if err != nil {
			t.Fatal(err)
		}
		if wider := len(r.Wider) > 0; wider != tt.wider {
			t.Errorf("%s with %q: %d wider, %d narrower, want wider: %v", tt.file, tt.new, len(r.Wider), len(r.Narrower), tt.wider)
		}
	}
}

// Whatever Check takes is decided as the policy says.
func TestProofAnyRules(t *testing.T) {
	level := rapid.SampledFrom([]string{"a", "b", "+", "+", "{id}", "{group}", "", "c d"})
	checked := func(rules ...topic.Rule) bool {
		p := topic.Policy{Rules: rules}
		return p.Validate() == nil && awsiot.Target().Check(inventory.Profile{Name: "p", Policy: p}) == nil
	}
	policies := rapid.Custom(func(rt *rapid.T) []topic.Rule {
		var rules []topic.Rule
		for range rapid.IntRange(2, 5).Draw(rt, "rules") {
			filter := strings.Join(rapid.SliceOfN(level, 1, 4).Draw(rt, "levels"), "/")
			if rapid.Bool().Draw(rt, "hash") {
				filter += "/#"
			}
			r := topic.Rule{Action: rapid.SampledFrom([]topic.Action{topic.Publish, topic.Receive}).Draw(rt, "action"), Filter: filter, Shared: true}
			if checked(r) {
				rules = append(rules, r)
			}
		}
		return rules
	}).Filter(func(rules []topic.Rule) bool { return len(rules) > 1 && checked(rules...) })
	rapid.Check(t, func(rt *rapid.T) {
		rules := policies.Draw(rt, "policy")
		r := prove(t, proofFleet(t, rules...))
		for _, q := range r.Wider {
			rt.Errorf("%v: wider: %s", rules, q)
		}
		for _, q := range r.Narrower {
			if !tooLong(q) {
				rt.Errorf("%v: narrower: %s", rules, q)
			}
		}
	})
}

// The observer's # cannot be said; narrowed, the rest is, and is not wider.
func TestProofNarrowed(t *testing.T) {
	f := certificates(targettest.ProofFleet(t, targettestStart()))
	v, dropped, err := templates.Narrow(f, awsiot.Target())
	if err != nil {
		t.Fatal(err)
	}
	if len(dropped) != 2 {
		t.Errorf("%d rules dropped, want 2", len(dropped))
	}
	e, err := newEvaluator(os.DirFS(write(t, v, f)))
	if err != nil {
		t.Fatal(err)
	}
	r, err := proof.Evaluate("awsiot", e, proof.Questions(append(f.ProofDevices(t), *f.ProofObserver(t))))
	if err != nil {
		t.Fatal(err)
	}
	targettest.Report(t, r, func(q proof.Question) bool { return tooLong(q) || q.Device == targettest.ObserverID })
}
