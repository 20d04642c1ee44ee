package emqx

import (
	"cmp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// maxLevels is what the configuration sets max_topic_levels to.
const maxLevels = 200

// maxRules is how many rules the built-in database takes for one user (max_rules).
const maxRules = 100

// rule says why EMQX cannot enforce a rule exactly. See the package comment for its
// matcher.
func rule(r topic.Rule) (why string, choices []string) {
	levels := strings.Split(r.Filter, "/")
	switch {
	case levels[0] == "+", levels[0] == "#":
		return "a wildcard at the start reaches topics that begin with $ in some versions", []string{"a rule for each first level, by its name"}
	case strings.HasPrefix(r.Filter, "$") && levels[0] != "$SYS":
		return "it has meanings of its own for topics that begin with $", []string{"another name for the first level"}
	case strings.HasPrefix(r.Filter, "eq "):
		return "it takes eq and a space at the start for a word of its own", []string{"another name for the first level"}
	case strings.ContainsAny(r.Filter, "\ufffe\uffff"):
		return "a file of Erlang terms has no non-characters", []string{"another name for this level"}
	case len(levels) > maxLevels:
		return "it is set to at most 200 topic levels", []string{"fewer levels"}
	}
	parent, ok := plusParent(r.Filter)
	if r.Action == topic.Receive && ok && slices.Contains(strings.Split(parent, "/"), "+") {
		return "it takes the # of a subscription to " + parent + "/# for one level, and allows it",
			[]string{"a name in place of the last +", "names in place of the others", parent + "/# if all of that may be received"}
	}
	return "", nil
}

// plusParent returns what comes before the last +, if a filter ends in /+ or /+/#: the
// filters that a subscription to parent/# would satisfy.
func plusParent(filter string) (string, bool) {
	return strings.CutSuffix(strings.TrimSuffix(filter, "/#"), "/+")
}

// depth is how many levels there are before the last +.
func depth(filter string) int {
	parent, _ := plusParent(filter)
	return strings.Count(parent, "/")
}

// writable refuses a right that the files have no form for. The policy has no such
// rights; this is the last fence.
func writable(e *templates.Entry) error {
	for _, g := range e.Grants {
		f := string(g.Filter)
		if strings.TrimFunc(f, unicode.IsSpace) != f || strings.ContainsFunc(f, unicode.IsControl) || !utf8.ValidString(f) || strings.ContainsAny(f, "{}%") {
			return &templates.EntryError{ID: e.ID, Why: "has a topic that EMQX would read as another"}
		}
		if why, _ := rule(topic.Rule{Action: g.Action, Filter: f}); why != "" {
			return &templates.EntryError{ID: e.ID, Why: "has a right that EMQX cannot express: " + why}
		}
	}
	return nil
}

// A line is one rule of EMQX. The first one that is met decides.
type line struct {
	deny      bool
	subscribe bool
	eq        bool // the topic is compared as text
	topic     string
}

// compile returns the rules of a device. Subscriptions to what ends in + come last, the
// ones with fewer levels before the + first, each after the denial of the one filter
// with # that would satisfy it. In this order no denial is before a right that covers
// what it denies: such a right has no trailing +, or an earlier one.
func compile(e *templates.Entry) ([]line, error) {
	if err := writable(e); err != nil {
		return nil, err
	}
	lines := make([]line, 0, len(e.Grants)+1)
	var plus []string
	for _, a := range []topic.Action{topic.Publish, topic.Receive} {
		for _, g := range e.Grants {
			f := string(g.Filter)
			if g.Action != a {
				continue
			}
			if _, ok := plusParent(f); ok && a == topic.Receive {
				plus = append(plus, f)
				continue
			}
			lines = append(lines, line{subscribe: a == topic.Receive, topic: f})
		}
	}
	slices.SortStableFunc(plus, func(a, b string) int { return cmp.Compare(depth(a), depth(b)) })
	for _, f := range plus {
		parent, _ := plusParent(f)
		lines = append(lines, line{deny: true, subscribe: true, eq: true, topic: parent + "/#"}, line{subscribe: true, topic: f})
	}
	if len(lines) > maxRules {
		return nil, &templates.EntryError{ID: e.ID, Why: "has more rules than the 100 that EMQX takes for one user"}
	}
	return lines, nil
}

// grants is the way back: the rights that lines are made from, if they are what
// compile makes.
func grants(e *templates.Entry, lines []line) bool {
	e.Grants = nil
	for _, l := range lines {
		f, err := topic.ParseFilter(l.topic)
		if err != nil {
			return false
		}
		a := topic.Publish
		if l.subscribe {
			a = topic.Receive
		}
		if !l.deny {
			e.Grants = append(e.Grants, topic.Grant{Action: a, Filter: f})
		}
	}
	same, err := compile(e)
	return err == nil && slices.Equal(same, lines)
}
