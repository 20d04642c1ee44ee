package targettest

import (
	"slices"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// A Decision is what the reference evaluator says to one question.
type Decision struct {
	Device  string
	Action  topic.Action
	Topic   string
	Allowed bool
}

// Decisions asks [topic.Policy.Decide] about every device of f, each action, and
// topics that are near the rights of some device: in them, one level more, one
// less, another device's, another case, empty levels, names that look like
// placeholders. A broker with an export of f decides the same.
func Decisions(tb testing.TB, f *Memory) []Decision {
	tb.Helper()
	names := Topics(f)
	var out []Decision
	for _, e := range f.Devices {
		p := f.policy(tb, e.Profile)
		for _, n := range names {
			for _, a := range []topic.Action{topic.Publish, topic.Receive} {
				out = append(out, Decision{string(e.ID), a, n, p.Decide(Subject(e), a, topic.Name(n)).Allowed})
			}
		}
	}
	return out
}

// Topics returns topic names near the rights of the devices of f, sorted.
func Topics(f *Memory) []string {
	names := map[string]bool{"x": true, "fleet": true, "fleet/%u/down": true, "fleet/%c/down": true, "/": true, "news/all": true, "news": true}
	for _, e := range f.Devices {
		for _, g := range e.Grants {
			for _, n := range inside(string(g.Filter)) {
				for _, m := range near(n, string(e.ID)) {
					if _, err := topic.ParseName(m); err == nil {
						names[m] = true
					}
				}
			}
		}
	}
	out := make([]string, 0, len(names))
	for n := range names {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// inside returns topics that a filter matches, and its own text as far as that
// is one.
func inside(filter string) []string {
	plus := []string{strings.ReplaceAll(filter, "+", "x"), strings.ReplaceAll(filter, "+", "")}
	var out []string
	for _, p := range plus {
		if rest, ok := strings.CutSuffix(p, "#"); ok {
			out = append(out, strings.TrimSuffix(rest, "/"), rest, rest+"a", rest+"a/b")
		} else {
			out = append(out, p)
		}
	}
	return out
}

// near returns n and topics beside it.
func near(n, id string) []string {
	out := []string{n, n + "/", n + "/x", n + "x", "/" + n, strings.ReplaceAll(n, "/", "//"), strings.ToUpper(n),
		strings.ReplaceAll(n, id, ""), strings.ReplaceAll(n, id, "%u"), strings.ReplaceAll(n, id, id+"x"), strings.ReplaceAll(n, id, "x/"+id),
		strings.ReplaceAll(n, id, strings.ToLower(id)), strings.ReplaceAll(n, id, id+"/../dev-1"), strings.ReplaceAll(n, "/", ".")}
	if i := strings.LastIndexByte(n, '/'); i > 0 {
		out = append(out, n[:i], n[:i]+"/other")
	}
	return out
}

// Filters are subscriptions that ask for more than a device may have.
func Filters(f *Memory) []string {
	out := []string{"#", "+/#", "+/+/+", "$SYS/#", "fleet/#", "fleet/+/down", "fleet/+/+", "news/#", "news/all", "news/+"}
	for _, e := range f.Devices {
		out = append(out, "fleet/"+string(e.ID)+"/#", "fleet/"+string(e.ID)+"/down", "fleet/"+string(e.ID)+"/+", "fleet/"+string(e.ID)+"/up/#", "fleet/"+string(e.ID)+"/state")
	}
	return append(out, "groups/hall/cmd/+", "groups/hall/cmd/x", "groups/hall/cmd/#", "groups/yard/cmd/+", "groups/+/cmd/+", "groups/hall/+/+")
}

// CheckNeverWider fails the test if an export, read back as got, allows a
// device what its policy does not, or refuses what it does.
func CheckNeverWider(t *testing.T, f *Memory, got templates.View) {
	t.Helper()
	rights := make(map[string][]topic.Grant)
	for e, err := range got.Entries() {
		if err != nil {
			t.Fatal(err)
		}
		rights[string(e.ID)] = e.Grants
	}
	for _, d := range Decisions(t, f) {
		grants, named := rights[d.Device]
		allowed := slices.ContainsFunc(grants, func(g topic.Grant) bool {
			return g.Action == d.Action && g.Filter.Match(topic.Name(d.Topic))
		})
		switch {
		case allowed && !d.Allowed:
			t.Errorf("%s may %s %q in the export, and may not by its policy", d.Device, d.Action, d.Topic)
		case !allowed && d.Allowed && named:
			t.Errorf("%s may not %s %q in the export, and may by its policy", d.Device, d.Action, d.Topic)
		}
	}
}
