package topic

import (
	"slices"
	"strings"
	"testing"
)

// hostile is a policy that a device would like to get around: wildcards of both
// kinds, and a rule for all.
var hostile = Policy{Rules: []Rule{
	{Action: Publish, Filter: "devices/{id}/#"},
	{Action: Receive, Filter: "devices/{id}/+"},
	{Action: Receive, Filter: "news/#", Shared: true},
}}

// TestHostileNames is what a broker may be asked by somebody who speaks no good
// MQTT (brk-009).
func TestHostileNames(t *testing.T) {
	dev := subject("dev-1", "", nil)
	for _, tt := range []struct {
		topic string
		want  bool
	}{
		{"devices/dev-1", true},
		{"devices/dev-1/a b", true},
		{"devices/dev-1/ ", true}, // a level of its own, if an odd one
		{"devices/dev-1/", true},
		{"devices/dev-1//", true},
		{"devices/dev-1/../dev-2", true}, // a level that is named ".."
		{"", false},
		{"/", false},
		{"//", false},
		{"devices//dev-1", false},
		{"/devices/dev-1", false},
		{"devices/dev-2", false},
		{"devices/dev-10/x", false},
		{"devices/dev-1x", false},
		{"devices/DEV-1/x", false},
		{"devices\\dev-1\\x", false},
		{"devices/dev-2/../dev-1", false},
		{"devices/dev-1/#", false},
		{"devices/dev-1/+", false},
		{"devices/dev-1/a+", false},
		{"devices/dev-1/\x00", false},
		{"devices/dev-1/a\x00b", false},
		{"devices/dev-1/\n", false},
		{"devices/dev-1/\u0085", false},
		{"devices/dev-1/\xff", false},
		{"devices/{id}/x", false},
		{"devices/%u/x", false},
		{"$share/g/devices/dev-2/x", false},
		{"$SYS/broker/version", false},
		{"$CONTROL/dynamic-security/v1", false},
		{"devices/dev-1/" + strings.Repeat("a", 65536), false},
		{"devices/dev-1" + strings.Repeat("/a", 200), false},
	} {
		d := hostile.Decide(dev, Publish, Name(tt.topic))
		if d.Allowed != tt.want || d.Reason == "" {
			t.Errorf("publish %.60q: %v, want %v", tt.topic, d.Allowed, tt.want)
		}
		e := hostile.Explain(dev, Publish, Name(tt.topic))
		if some := slices.ContainsFunc(e.Rules, func(r RuleExplanation) bool { return r.Matches }); some != d.Allowed {
			t.Errorf("publish %.60q: Decide says %v, the rules %v", tt.topic, d.Allowed, some)
		}
	}
}

// TestHostileFilters is what a device may try to subscribe to (brk-010).
func TestHostileFilters(t *testing.T) {
	dev := subject("dev-1", "", nil)
	for _, tt := range []struct {
		filter string
		want   bool
	}{
		{"devices/dev-1/cmd", true},
		{"devices/dev-1/+", true},
		{"news", true},
		{"news/#", true},
		{"news/+/a/#", true},
		{"#", false},
		{"+", false},
		{"+/#", false},
		{"+/+/+", false},
		{"devices/#", false},
		{"devices/+/cmd", false},
		{"devices/dev-1/#", false}, // would go through a + that takes any text
		{"devices/dev-1", false},
		{"devices/dev-2/cmd", false},
		{"$SYS/#", false},
		{"$SYS/+/x", false},
		{"$share/g/devices/dev-2/#", false},
		{"$share/g/news/#", false},
		{"", false},
		{"news/a#", false},
		{"news/#/a", false},
		{"news/+a", false},
		{"news/\x00", false},
		{"news/\xff", false},
		{"news/" + strings.Repeat("a", 65536), false},
	} {
		if d := hostile.DecideSubscribe(dev, Filter(tt.filter)); d.Allowed != tt.want || d.Reason == "" {
			t.Errorf("subscribe %.60q: %+v, want %v", tt.filter, d, tt.want)
		}
	}
}

// TestRulesThatAreNone allow nothing even where nobody has asked Validate.
func TestRulesThatAreNone(t *testing.T) {
	dev := subject("dev-1", "", nil)
	for _, r := range []Rule{
		{Publish, "a/dev-{id}", false}, {Publish, "a/id}", false}, {Publish, "a/{ID}", false}, {Publish, "a/{label.}", false},
		{Publish, "a/%u", false}, {Publish, "a/#/b", false}, {Publish, "a+/b", false}, {Publish, "", false},
		{Publish, "a/{group}", false}, {Publish, "a/{label.x}", false}, {0, "a/b", false}, {3, "a/b", false},
	} {
		p := Policy{Rules: []Rule{r}}
		if grants, err := p.Resolve(dev); err == nil {
			t.Errorf("%v resolves to %v", r, grants)
		}
		for _, n := range []Name{"a/b", "a/dev-dev-1", "a/", Name(r.Filter)} {
			if d := p.Decide(dev, r.Action, n); d.Allowed {
				t.Errorf("%v allows %q", r, n)
			}
		}
	}
}

// TestLintPlaceholderOfLabel: the dot in it is not one of a topic.
func TestLintPlaceholderOfLabel(t *testing.T) {
	p := Policy{Rules: []Rule{{Publish, "plant/{label.site}/{id}/up", false}}}
	if got := p.Lint(); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

// naiveNames are all topics of at most depth levels over words.
func naiveNames(words []string, depth int) []string {
	all, last := []string{}, []string{""}
	for i := range depth {
		var next []string
		for _, head := range last {
			for _, w := range words {
				if i > 0 {
					w = head + "/" + w
				}
				next = append(next, w)
			}
		}
		all, last = append(all, next...), next
	}
	return slices.DeleteFunc(all, func(s string) bool { return s == "" })
}

// safely reports whether Covers may say no and Overlaps yes where it is the other
// way round. +/# is another way to write #; and the first level of /# is empty, so
// with no more levels it would be the empty topic, which there is not.
func safely(f, g Filter) bool { return f == "+/#" && g == "#" || f == "/#" || g == "/#" }

// TestSetsByCounting holds Covers and Overlaps against the sets themselves: all
// topics of up to four levels, over an alphabet in which one word is in no filter.
func TestSetsByCounting(t *testing.T) {
	names := naiveNames([]string{"a", "", "$a", "other"}, 4)
	var filters []Filter
	for _, f := range naiveNames([]string{"a", "", "$a", "+", "#"}, 3) {
		if checkWildcards(f) == "" {
			filters = append(filters, Filter(f))
		}
	}
	sets := make([][]bool, len(filters))
	for i, f := range filters {
		sets[i] = make([]bool, len(names))
		for j, n := range names {
			sets[i][j] = f.Match(Name(n))
		}
	}
	for i, f := range filters {
		for j, g := range filters {
			covers, overlaps := true, false
			for k := range names {
				covers = covers && (sets[i][k] || !sets[j][k])
				overlaps = overlaps || sets[i][k] && sets[j][k]
			}
			if got := f.Covers(g); got != covers && (got || !safely(f, g)) {
				t.Errorf("%q covers %q: %v, want %v", f, g, got, covers)
			}
			if got := f.Overlaps(g); got != overlaps && (!got || !safely(f, g)) {
				t.Errorf("%q overlaps %q: %v, want %v", f, g, got, overlaps)
			}
		}
	}
}

// FuzzResolve: whatever a rule and the names of a device are, a grant has the
// levels of its rule, with one plain level in the place of each placeholder.
func FuzzResolve(f *testing.F) {
	f.Add("devices/{id}/up/#", "dev-1", "hall", "north")
	f.Add("{group}/{label.x}/+", "dev-1", "#", "a/b")
	f.Add("{id}/{id}", "$SYS", "{id}", "\x00")
	f.Fuzz(func(t *testing.T, filter, id, group, label string) {
		p := Policy{Rules: []Rule{{Action: Receive, Filter: filter}}}
		grants, err := p.Resolve(subject(id, group, map[string]string{"x": label}))
		if err != nil {
			return
		}
		if err := p.Validate(); err != nil {
			t.Fatalf("%q resolves to %q, and is not valid: %v", filter, grants[0].Filter, err)
		}
		have, want := strings.Split(string(grants[0].Filter), "/"), strings.Split(filter, "/")
		if len(have) != len(want) {
			t.Fatalf("%q became %q", filter, grants[0].Filter)
		}
		for i, level := range want {
			_, filled := placeholder(level)
			got := have[i]
			if !filled && got != level || filled && !slices.Contains([]string{id, group, label}, got) {
				t.Fatalf("%q became %q", filter, grants[0].Filter)
			}
			if filled && (got == "" || got[0] == '$' || strings.ContainsAny(got, "+#\x00\n")) {
				t.Fatalf("%q became %q", filter, grants[0].Filter)
			}
		}
	})
}

func BenchmarkResolve(b *testing.B) {
	s := subject("dev-000001", "hall-1", map[string]string{"region": "north"})
	for b.Loop() {
		if _, err := policy.Resolve(s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	s := subject("dev-000001", "hall-1", map[string]string{"region": "north"})
	for b.Loop() {
		policy.Decide(s, Receive, "plant/hall-1/dev-000001/down/x")
	}
}
