package mosquitto

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"pgregory.net/rapid"
)

func asLineError(err error) (*lineError, bool) { return errors.AsType[*lineError](err) }

// dump is an ACL file as it was read, on one line.
func dump(text string) (string, error) {
	var b strings.Builder
	for s, err := range readACL(strings.NewReader(text)) {
		if err != nil {
			return b.String(), err
		}
		for _, p := range s.patterns {
			fmt.Fprintf(&b, "pattern %s %s %t;", p.Action, p.Filter, p.Shared)
		}
		if s.user != "" {
			fmt.Fprintf(&b, "%s:", s.user)
		}
		for _, g := range s.grants {
			fmt.Fprintf(&b, " %s %s", g.Action, g.Filter)
		}
		b.WriteString(";")
	}
	return b.String(), nil
}

func TestReadACL(t *testing.T) {
	for _, tt := range []struct {
		name, text, want string
		line             int // of the error; 0: none
	}{
		{"empty", "", "", 0},
		{"comments", "# x\n\n#user a\n", "", 0},
		{"a user", "user a\ntopic write x\ntopic read y/#\n", "a: publish x receive y/#;", 0},
		{"both", "user a\ntopic readwrite x", "a: publish x receive x;", 0},
		{"no word", "user a\ntopic x", "a: publish x receive x;", 0},
		{"a topic named read", "user a\ntopic read", "a: publish read receive read;", 0},
		{"a filter with spaces", "user a\ntopic read  a b/c", "a: receive a b/c;", 0},
		{"blanks before a keyword", "  user  a\n   topic  write x  \r\n", "a: publish x;", 0},
		{"CRLF", "user a\r\ntopic write x\r\n", "a: publish x;", 0},
		{"a user without rules", "user a\nuser b\ntopic read x", "a:;b: receive x;", 0},
		{"sections of one user", "user a\ntopic read x\nuser b\nuser a\ntopic read y", "a: receive x;b:;a: receive y;", 0},
		{"pattern", "pattern write d/%u/up", "pattern publish d/{id}/up false;;", 0},
		{"pattern for all", "pattern read news", "pattern receive news true;;", 0},
		{"pattern inside a section", "user a\npattern read %u\ntopic read x", "pattern receive {id} false;;a: receive x;", 0},
		{"%u in a topic is a name", "user a\ntopic read d/%u/x", "a: receive d/%u/x;", 0},
		{"$SYS", "user a\ntopic read $SYS/#", "a: receive $SYS/#;", 0},

		{"blank before #", " # x", "", 1},
		{"tab", "user a\ntopic read\tx", "", 2},
		{"tab after keyword", "user\ta", "", 1},
		{"inline comment", "user a # x", "", 1},
		{"topic before user", "topic read x", "", 1},
		{"deny", "user a\ntopic deny x", "", 2},
		{"pattern deny", "pattern deny x", "", 1},
		{"unknown keyword", "allow x", "", 1},
		{"capital keyword", "User a", "", 1},
		{"nothing after user", "user ", "", 1},
		{"nothing after topic", "user a\ntopic", "", 2},
		{"a word and nothing", "user a\ntopic write ", "a: publish write receive write;", 0},
		{"unknown word", "user a\ntopic rw x", "", 2},
		{"bad filter", "user a\ntopic read x#", "", 2},
		{"bad user", "user a b", "", 1},
		{"reserved user", "user admin", "", 1},
		{"NUL", "user a\x00b", "", 1},
		{"byte order mark", "\ufeffuser a", "", 1},
		{"part of a level", "pattern read d/dev-%u/x", "", 1},
		{"client identifier", "pattern read d/%c/x", "", 1},
		{"braces", "pattern read d/{id}/x", "", 1},
		{"not UTF-8", "user a\ntopic read \xff", "", 2},
		{"201 levels", "user a\ntopic read " + strings.Repeat("/", 200), "", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := dump(tt.text)
			line := 0
			if err != nil {
				line = lineOf(t, err)
			}
			if line != tt.line || line == 0 && got != tt.want {
				t.Errorf("got %q, error in line %d (%v); want %q, %d", got, line, err, tt.want, tt.line)
			}
		})
	}
}

func FuzzReadACL(f *testing.F) {
	f.Add("# c\npattern readwrite d/%u/x\nuser dev-1\ntopic read a b/#\ntopic write x\n")
	f.Add("user a\ntopic x\nuser a\ntopic read\n")
	f.Fuzz(func(t *testing.T, text string) {
		for s, err := range readACL(strings.NewReader(text)) {
			if err != nil {
				return
			}
			// What was read can be written, and then reads the same.
			e := templates.Entry{ID: inventory.DeviceID(s.user), Grants: s.grants}
			if s.user == "" || isAdmin(s.user) {
				continue
			}
			if err := templates.CheckEntry("", &e); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			var b bytes.Buffer
			w := aclWriter{w: &b}
			if err := w.entry(&e); err != nil {
				t.Fatal(err)
			}
			for again, err := range readACL(&b) {
				if err != nil || again.user != s.user || !sameGrants(again.grants, s.grants) {
					t.Errorf("%q reads as %v, then as %v, %v", text, s.grants, again.grants, err)
				}
			}
		}
	})
}

func sameGrants(a, b []topic.Grant) bool {
	a, b = templates.SortGrants(a), templates.SortGrants(b)
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !templates.SameGrant(a[i], b[i]) {
			return false
		}
	}
	return true
}

// For any profiles: patterns and exceptions together are exactly the rights of
// every device, and a pattern gives no device what its profile does not.
func TestPatternsNeverWider(t *testing.T) {
	filters := []string{"d/{id}/up", "d/{id}/up/#", "d/{id}/down", "{id}", "g/{group}/{id}", "g/{group}", "l/{label.x}/{id}/#", "news", "news/#", "x/{id}/{id}"}
	rule := rapid.Custom(func(t *rapid.T) topic.Rule {
		return topic.Rule{
			Action: rapid.SampledFrom([]topic.Action{topic.Publish, topic.Receive}).Draw(t, "action"),
			Filter: rapid.SampledFrom(filters).Draw(t, "filter"),
			Shared: rapid.Bool().Draw(t, "shared"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		var profiles []inventory.Profile
		for i, rules := range rapid.SliceOfN(rapid.SliceOfN(rule, 0, 6), 1, 4).Draw(t, "profiles") {
			profiles = append(profiles, inventory.Profile{Name: fmt.Sprintf("p%d", i), Policy: topic.Policy{Rules: rules}})
		}
		patterns := common(profiles)
		for _, p := range profiles {
			id := rapid.SampledFrom([]string{"dev-1", "x", "news", "d"}).Draw(t, "id")
			grants, err := p.Policy.Resolve(topic.Subject{ID: id, Group: "hall", Labels: func(string) (string, bool) { return "v", true }})
			if err != nil {
				t.Fatal(err)
			}
			rest, ok := exceptions(nil, patterns, inventory.DeviceID(id), grants)
			if !ok {
				t.Fatalf("patterns %v give %s more than %v", patterns, id, grants)
			}
			for i := range patterns {
				rest = append(rest, topic.Grant{Action: patterns[i].rule.Action, Filter: patterns[i].fill(inventory.DeviceID(id))})
				if strings.ContainsAny(patterns[i].text(), "{}") {
					t.Fatalf("pattern %s has a placeholder", patterns[i].text())
				}
			}
			if !sameGrants(rest, grants) {
				t.Fatalf("patterns and exceptions are %v, want %v", rest, grants)
			}
		}
	})
}

func TestPatternGives(t *testing.T) {
	for _, tt := range []struct {
		pattern, id, filter string
		want                bool
	}{
		{"d/{id}/up", "a", "d/a/up", true},
		{"d/{id}/up", "a", "d/b/up", false},
		{"d/{id}/up", "a", "d/a/up/x", false},
		{"d/{id}/up", "a", "d/a/u", false},
		{"d/{id}/up", "a", "d/aa/up", false},
		{"d/{id}", "a", "d/a", true},
		{"d/{id}", "a", "d/a/", false},
		{"{id}", "a", "a", true},
		{"{id}/{id}", "a", "a/a", true},
		{"/{id}", "a", "/a", true},
		{"/{id}", "a", "a", false},
		{"x", "a", "x", true},
		{"x", "a", "", false},
		{"#", "a", "#", true},
	} {
		p := newPattern(topic.Rule{Action: topic.Publish, Filter: tt.pattern})
		if got := p.gives(inventory.DeviceID(tt.id), topic.Filter(tt.filter)); got != tt.want {
			t.Errorf("%q gives %q for %q: %t, want %t", tt.pattern, tt.filter, tt.id, got, tt.want)
		}
		if tt.want && string(p.fill(inventory.DeviceID(tt.id))) != tt.filter {
			t.Errorf("%q filled with %q is %q", tt.pattern, tt.id, p.fill(inventory.DeviceID(tt.id)))
		}
	}
}
