package topic

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var policy = Policy{Rules: []Rule{
	{Action: Publish, Filter: "plant/{group}/{id}/up/#"},
	{Action: Receive, Filter: "plant/{group}/{id}/down/+"},
	{Action: Receive, Filter: "news/{label.region}", Shared: true},
}}

func subject(id, group string, labels map[string]string) Subject {
	return Subject{ID: id, Group: group, Labels: func(k string) (string, bool) { v, ok := labels[k]; return v, ok }}
}

func TestDecide(t *testing.T) {
	dev := subject("dev-1", "hall-1", map[string]string{"region": "north"})
	for _, tt := range []struct {
		action Action
		topic  string
		want   string // the rule; empty: denied
	}{
		{Publish, "plant/hall-1/dev-1/up", "publish plant/{group}/{id}/up/#"},
		{Publish, "plant/hall-1/dev-1/up/a/b", "publish plant/{group}/{id}/up/#"},
		{Receive, "plant/hall-1/dev-1/up", ""},
		{Publish, "plant/hall-1/dev-2/up", ""},
		{Publish, "plant/hall-2/dev-1/up", ""},
		{Publish, "plant/hall-1/dev-1", ""},
		{Receive, "plant/hall-1/dev-1/down/x", "receive plant/{group}/{id}/down/+"},
		{Receive, "plant/hall-1/dev-1/down/x/y", ""},
		{Receive, "news/north", "receive news/{label.region}"},
		{Receive, "news/south", ""},
		{Receive, "news/{label.region}", ""},
		{Publish, "news/north", ""},
		{0, "news/north", ""},
		{Receive, "$SYS/broker", ""},
	} {
		d := policy.Decide(dev, tt.action, Name(tt.topic))
		if d.Rule != tt.want || d.Allowed != (tt.want != "") || d.Reason == "" {
			t.Errorf("%s %s: %+v, want rule %q", tt.action, tt.topic, d, tt.want)
		}
		e := policy.Explain(dev, tt.action, Name(tt.topic))
		if e.Decision != d || len(e.Rules) != len(policy.Rules) {
			t.Errorf("%s %s: Explain says %+v, Decide %+v", tt.action, tt.topic, e, d)
		}
	}
	for filter, want := range map[string]bool{
		"plant/hall-1/dev-1/down/+": true, "plant/hall-1/dev-1/down/x": true, "plant/hall-1/dev-1/down/#": false,
		"#": false, "plant/+/dev-1/down/x": false, "news/north": true, "+/north": false,
	} {
		if d := policy.DecideSubscribe(dev, Filter(filter)); d.Allowed != want {
			t.Errorf("subscribe %s: %+v, want %v", filter, d, want)
		}
	}
}

// TestResolveNeverWidens: no value of a placeholder can make a rule say more than
// one topic level, whatever a label holds.
func TestResolveNeverWidens(t *testing.T) {
	for _, hostile := range []string{"", "+", "#", "a/b", "a/#", "$SYS", "$share", "a+", "{id}", "%u", "*", "a\nb", "a\x00b", " a", "a ", "a\tb"} {
		for name, s := range map[string]Subject{
			"id":    subject(hostile, "g", map[string]string{"region": "r"}),
			"group": subject("d", hostile, map[string]string{"region": "r"}),
			"label": subject("d", "g", map[string]string{"region": hostile}),
		} {
			_, err := policy.Resolve(s)
			if _, ok := errors.AsType[*PolicyError](err); !ok {
				t.Errorf("%s = %q: %v, want a *PolicyError", name, hostile, err)
			}
		}
	}
	if _, err := policy.Resolve(Subject{ID: "d", Group: "g"}); err == nil {
		t.Error("resolved without labels")
	}
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.String().Draw(t, "value")
		s := subject("dev-1", "g", map[string]string{"region": value})
		grants, err := policy.Resolve(s)
		if err != nil {
			return
		}
		if f := grants[2].Filter; strings.Count(string(f), "/") != 1 || strings.ContainsAny(string(f), "+#") {
			t.Fatalf("%q became %q", value, f)
		}
		for _, topic := range []Name{"news/" + Name(value), "news/other", "news/a/b"} {
			allowed := policy.Decide(s, Receive, topic).Allowed
			granted := slices.ContainsFunc(grants, func(g Grant) bool { return g.Action == Receive && g.Filter.Match(topic) })
			if allowed != granted {
				t.Fatalf("%q: Decide says %v, the grants %v", topic, allowed, granted)
			}
		}
	})
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		rule Rule
		want string
	}{
		{Rule{Publish, "a/{id}", false}, ""},
		{Rule{Publish, "a/dev-{id}", false}, "a placeholder is a whole level"},
		{Rule{Publish, "a/{ID}", false}, "a placeholder is a whole level"},
		{Rule{Publish, "a/{label.}", false}, "a placeholder is a whole level"},
		{Rule{Publish, "a/{label.x y}", false}, "a placeholder is a whole level"},
		{Rule{Publish, "a/%u", false}, "a % would be a placeholder"},
		{Rule{Publish, "a/#/b", false}, "# is the last level"},
		{Rule{Publish, "", false}, "it is empty"},
		{Rule{0, "a/{id}", false}, "neither publish nor receive"},
		{Rule{3, "a/{id}", false}, "neither publish nor receive"},
		{Rule{Receive, "$share/g/{id}", false}, "a shared subscription is no filter"},
	} {
		err := Policy{Rules: []Rule{{Publish, "ok/{id}", false}, tt.rule}}.Validate()
		bad, ok := errors.AsType[*PolicyError](err)
		switch {
		case tt.want == "" && err != nil, tt.want != "" && !ok:
			t.Errorf("%v: %v, want %q", tt.rule, err, tt.want)
		case ok && (bad.Rule != 2 || !strings.Contains(bad.Reason, tt.want)):
			t.Errorf("%v: %+v, want rule 2 and %q", tt.rule, bad, tt.want)
		}
	}
	if err := (Policy{Rules: make([]Rule, 65)}).Validate(); err == nil {
		t.Error("65 rules are accepted")
	}
}

func TestLint(t *testing.T) {
	for _, tt := range []struct {
		rule Rule
		want []string // "severity code"
	}{
		{Rule{Publish, "devices/{id}/up/#", false}, nil},
		{Rule{Receive, "devices/{group}/{id}/down/#", false}, nil},
		{Rule{Receive, "news/all", true}, nil},
		{Rule{Receive, "devices/+/up/#", true}, nil},
		{Rule{Publish, "devices/+/down/#", true}, []string{"warning in-others-names"}},
		{Rule{Publish, "log/all", true}, nil},
		{Rule{Receive, "news/all", false}, []string{"error foreign"}},
		{Rule{Receive, "devices/+/{id}/#", false}, []string{"error foreign-wildcard"}},
		{Rule{Receive, "devices/#", false}, []string{"error foreign-wildcard"}},
		{Rule{Receive, "#", true}, []string{"error everything"}},
		{Rule{Receive, "+/#", true}, []string{"error everything"}},
		{Rule{Publish, "+/{id}", false}, []string{"error leading-wildcard"}},
		{Rule{Receive, "$SYS/#", true}, []string{"error system"}},
		{Rule{Publish, "$CONTROL/{id}", false}, []string{"error system"}},
		{Rule{Receive, "devices/{id}/+", false}, []string{"warning trailing-plus"}},
		{Rule{Publish, "devices/{id}/a.b", false}, []string{"warning dot"}},
		{Rule{Publish, "devices/{id}//up", false}, []string{"warning empty-level"}},
		{Rule{Publish, "devices/{id}", true}, []string{"warning not-shared"}},
		{Rule{Publish, "devices/dev-{id}", false}, []string{"error syntax"}},
	} {
		var got []string
		for _, f := range (Policy{Rules: []Rule{tt.rule}}).Lint() {
			got = append(got, f.Severity.String()+" "+f.Code)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%v: %v, want %v", tt.rule, got, tt.want)
		}
	}
	p := Policy{Rules: []Rule{{Publish, "a/{id}/#", false}, {Publish, "a/{id}/b", false}, {Publish, "a/{id}/#", false}, {Receive, "a/{id}/b", false}}}
	var redundant []int
	for _, f := range p.Lint() {
		if f.Code == "redundant" {
			redundant = append(redundant, f.Rule)
		}
	}
	if !slices.Equal(redundant, []int{2, 3}) {
		t.Errorf("redundant rules %v, want 2 and 3", redundant)
	}
}

func TestRuleJSON(t *testing.T) {
	b, err := json.Marshal(policy)
	if err != nil {
		t.Fatal(err)
	}
	var back Policy
	if err := json.Unmarshal(b, &back); err != nil || !slices.Equal(back.Rules, policy.Rules) {
		t.Errorf("%s reads back as %v, %v", b, back, err)
	}
	if err := json.Unmarshal([]byte(`{"rules":[{"action":"deny","filter":"a"}]}`), &back); err == nil {
		t.Error("an unknown action is accepted")
	}
	if r := policy.Rules[0]; r.OnlyID() || !slices.Equal(r.Placeholders(), []string{"{group}", "{id}"}) || !r.OwnsSubtree() {
		t.Errorf("%v: %v, %v, %v", r, r.OnlyID(), r.Placeholders(), r.OwnsSubtree())
	}
}
