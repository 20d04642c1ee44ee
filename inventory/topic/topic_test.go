package topic

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// naiveMatch is MQTT 5.0 §4.7 written down level by level, with all the copying
// that Match avoids.
func naiveMatch(filter, name string) bool {
	if filter == "" || name == "" || strings.HasPrefix(name, "$") && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	return naiveLevels(strings.Split(filter, "/"), strings.Split(name, "/"))
}

func naiveLevels(filter, name []string) bool {
	switch {
	case len(filter) == 0:
		return len(name) == 0
	case filter[0] == "#":
		return true
	case len(name) == 0:
		return false
	case filter[0] != "+" && filter[0] != name[0]:
		return false
	case len(name) == 1 && len(filter) == 2 && filter[1] == "#":
		return true
	}
	return naiveLevels(filter[1:], name[1:])
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		filter, name string
		want         bool
	}{
		// The examples of MQTT 5.0 §4.7.1.
		{"sport/tennis/player1/#", "sport/tennis/player1", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/ranking", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true},
		{"sport/#", "sport", true},
		{"#", "anything/at/all", true},
		{"sport/tennis/+", "sport/tennis/player1", true},
		{"sport/tennis/+", "sport/tennis/player1/ranking", false},
		{"sport/+", "sport", false},
		{"sport/+", "sport/", true},
		{"+/+", "/finance", true},
		{"/+", "/finance", true},
		{"+", "/finance", false},
		{"#", "$SYS/broker", false},
		{"+/monitor/Clients", "$SYS/monitor/Clients", false},
		{"$SYS/#", "$SYS/broker", true},
		{"$SYS/monitor/+", "$SYS/monitor/Clients", true},
		// What an attacker tries.
		{"devices/dev-1/#", "devices/dev-10/up", false},
		{"devices/dev-1/#", "devices/dev-1/../dev-2", true}, // MQTT knows no ..
		{"devices/dev-1/up", "devices/dev-1/up/", false},
		{"devices/dev-1/up", "devices/DEV-1/up", false},
		{"devices/dev-1/up", "/devices/dev-1/up", false},
		{"a//b", "a/b", false},
		{"a/+/b", "a//b", true},
		{"", "a", false},
		{"a", "", false},
	} {
		if got := Filter(tt.filter).Match(Name(tt.name)); got != tt.want {
			t.Errorf("%q matches %q: %v, want %v", tt.filter, tt.name, got, tt.want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { Filter("a/+/c/#").Match("a/b/c/d/e") }); n != 0 {
		t.Errorf("Match makes %v allocations, want none", n)
	}
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		text         string
		name, filter bool
	}{
		{"a/b", true, true}, {"/", true, true}, {"a b/ü", true, true}, {"$SYS/x", true, true},
		{"+/a/#", false, true}, {"#", false, true},
		{"", false, false}, {"a+/b", false, false}, {"a/#/b", false, false}, {"a/b#", false, false}, {"##", false, false},
		{"a\x00b", false, false}, {"a\nb", false, false}, {"a\tb", false, false}, {" a", false, false}, {"a ", false, false},
		{"a\xffb", false, false}, {strings.Repeat("a", 65536), false, false}, {strings.Repeat("a/", 200), false, false},
		{"$share/g/a", true, false}, {"$queue/a", true, false},
	} {
		_, err := ParseName(tt.text)
		if (err == nil) != tt.name {
			t.Errorf("ParseName(%.40q) = %v, want ok: %v", tt.text, err, tt.name)
		}
		_, err = ParseFilter(tt.text)
		if (err == nil) != tt.filter {
			t.Errorf("ParseFilter(%.40q) = %v, want ok: %v", tt.text, err, tt.filter)
		}
		if _, ok := errors.AsType[*SyntaxError](err); err != nil && !ok {
			t.Errorf("ParseFilter(%.40q): %T, want a *SyntaxError", tt.text, err)
		}
		if err != nil && len(err.Error()) > 800 {
			t.Errorf("the error has %d bytes", len(err.Error()))
		}
	}
}

// levels draws a topic over a tiny alphabet, so that filters and names meet.
func levels(words []string, last ...string) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		parts := rapid.SliceOfN(rapid.SampledFrom(words), 1, 4).Draw(t, "levels")
		if len(last) > 0 && rapid.Bool().Draw(t, "with last") {
			parts = append(parts, last[0])
		}
		return strings.Join(parts, "/")
	})
}

func genName() *rapid.Generator[string]   { return levels([]string{"a", "b", "", "$a"}) }
func genFilter() *rapid.Generator[string] { return levels([]string{"a", "b", "", "+", "$a"}, "#") }

func TestSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, g, n := genFilter().Draw(t, "f"), genFilter().Draw(t, "g"), genName().Draw(t, "n")
		if n == "" || f == "" || g == "" {
			return
		}
		F, G, N := Filter(f), Filter(g), Name(n)
		if got, want := F.Match(N), naiveMatch(f, n); got != want {
			t.Fatalf("%q matches %q: %v, naively %v", f, n, got, want)
		}
		if F.Covers(G) && G.Match(N) && !F.Match(N) {
			t.Fatalf("%q covers %q, but only the second matches %q", f, g, n)
		}
		if F.Match(N) && G.Match(N) && !F.Overlaps(G) {
			t.Fatalf("%q and %q both match %q, and do not overlap", f, g, n)
		}
		if F.Overlaps(G) != G.Overlaps(F) {
			t.Fatalf("%q overlaps %q one way only", f, g)
		}
		if !strings.ContainsAny(g, "+#") && F.Covers(G) != F.Match(Name(g)) {
			t.Fatalf("%q covers the single topic %q: %v", f, g, F.Covers(G))
		}
	})
}

func FuzzMatch(f *testing.F) {
	f.Add("a/+/#", "a/b/c")
	f.Add("#", "$SYS")
	f.Fuzz(func(t *testing.T, filter, name string) {
		F, err := ParseFilter(filter)
		if err != nil {
			return
		}
		N, err := ParseName(name)
		if err != nil {
			return
		}
		if got, want := F.Match(N), naiveMatch(filter, name); got != want {
			t.Errorf("%q matches %q: %v, naively %v", filter, name, got, want)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	for b.Loop() {
		Filter("devices/dev-000001/up/#").Match("devices/dev-000001/up/sensors/temperature")
	}
}
