package nats_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates/nats"
)

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
		{topic.Receive, "a.b/c", true},
		{topic.Receive, "a//b", true},
		{topic.Receive, "/a/", true},
		{topic.Receive, "/#", true},
		{topic.Receive, "/+", false},
		{topic.Receive, "a/+", false},
		{topic.Receive, "a/+/#", false},
		{topic.Receive, "a/+/+", false},
		{topic.Receive, "{id}/+", false},
		{topic.Publish, "a/+", true},
		{topic.Publish, "a/+/#", true},
		{topic.Publish, "#", false},
		{topic.Publish, "+", false},
		{topic.Publish, "+/a", false},
		{topic.Publish, "a b", false},
		{topic.Publish, "a/*", false},
		{topic.Publish, "a>", false},
		{topic.Publish, "$JS/API", false},
		{topic.Publish, "$MQTT/x", false},
		{topic.Receive, "$SYS/#", false},
		{topic.Receive, "#", false},
		{topic.Receive, "+", false},
		{topic.Receive, "+/a", false},
		{topic.Receive, "$share/g/a", false},
	} {
		err := nats.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: []topic.Rule{{Action: tt.action, Filter: tt.filter, Shared: true}}}})
		if (err == nil) != tt.exact {
			t.Errorf("%s %s: %v, want exact %v", tt.action, tt.filter, err, tt.exact)
		}
	}
}

// Worked examples of the comment of mqttToNATSSubjectConversion, and our own.
func TestSubjects(t *testing.T) {
	for _, tt := range []struct{ filter, subjects string }{
		{"foo", `"foo"`},
		{"foo/bar", `"foo.bar"`},
		{"/foo", `"/.foo"`},
		{"foo/", `"foo./"`},
		{"foo//bar", `"foo./.bar"`},
		{"foo///bar", `"foo././.bar"`},
		{"/", `"/./"`},
		{"//", `"/././"`},
		{"foo.bar", `"foo//bar"`},
		{".", `"//"`},
		{"./.", `"//.//"`},
		{"a/+/b", `"a.*.b"`},
		{"a/#", `"a.>", "a"`},
		{"a//#", `"a./.>", "a./"`},
		{"/#", `"/.>", "/"`},
		{`it's/"x"/y\z`, `"it's.\"x\".y\\z"`},
	} {
		if got := nats.Subjects(topic.Filter(tt.filter)); got != tt.subjects {
			t.Errorf("%q is %s, want %s", tt.filter, got, tt.subjects)
		}
		if got, err := nats.ParseSubjects(tt.subjects); err != nil || len(got) != 1 || got[0] != topic.Filter(tt.filter) {
			t.Errorf("%s is %q, %v, want %q", tt.subjects, got, err, tt.filter)
		}
	}
}

// What is written for a filter is the subject that the server makes of it, read a
// second time from its source; and it says which filter it was.
func TestSubjectsAreTheServers(t *testing.T) {
	level := rapid.SampledFrom([]string{"", "a", "b.c", ".", "..", "+", "dev-1", "é", "x\"y", "\\"})
	filters := rapid.Custom(func(t *rapid.T) topic.Filter {
		levels := rapid.SliceOfN(level, 1, 6).Draw(t, "levels")
		if rapid.Bool().Draw(t, "all") {
			levels = append(levels, "#")
		}
		return topic.Filter(strings.Join(levels, "/"))
	}).Filter(func(f topic.Filter) bool {
		_, err := topic.ParseFilter(string(f))
		return err == nil
	})
	rapid.Check(t, func(t *rapid.T) {
		filter := filters.Draw(t, "filter")
		text := nats.Subjects(filter)
		back, err := nats.ParseSubjects(text)
		if err != nil || !slices.Equal(back, []topic.Filter{filter}) {
			t.Fatalf("%q became %s and %q, %v", filter, text, back, err)
		}
		want := strings.Join(nats.MQTTSubject(string(filter)), ".")
		got, _, _ := strings.Cut(strings.NewReplacer(`\"`, "\x00", `\\`, "\x01").Replace(text[1:]), `"`)
		if got = strings.NewReplacer("\x00", `"`, "\x01", `\`).Replace(got); got != want {
			t.Fatalf("%q is written as %q, and is %q to the server", filter, got, want)
		}
	})
}
