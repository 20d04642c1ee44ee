package vernemq

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// maxLevels is what the configuration sets topic_max_depth to.
const maxLevels = 200

// rule says why VerneMQ cannot enforce a rule exactly. See the package comment for
// its matcher.
func rule(r topic.Rule) (why string, choices []string) {
	levels := strings.Split(r.Filter, "/")
	n := len(levels)
	last := levels[n-1]
	if last == "#" && n > 1 {
		last = levels[n-2]
	}
	switch {
	case levels[0] == "+", levels[0] == "#":
		return "a wildcard at the start reaches topics that begin with $ as well", []string{"a rule for each first level, by its name"}
	case r.Action == topic.Receive && last == "+":
		parent := strings.Join(levels[:max(1, n-1)], "/")
		if levels[n-1] == "#" {
			parent = strings.Join(levels[:n-2], "/")
		}
		return "it takes the # of a subscription to " + parent + "/# for one level, and allows it",
			[]string{"a name in place of the last +", parent + "/# if all of that may be received"}
	case n > maxLevels:
		return "it is set to at most 200 topic levels", []string{"fewer levels"}
	}
	return "", nil
}

// writable refuses a right that the files have no form for. The policy has no such
// rights; this is the last fence.
func writable(e *templates.Entry, f topic.Filter) error {
	text := string(f)
	if strings.Trim(text, " \t") != text || strings.ContainsFunc(text, unicode.IsControl) || !utf8.ValidString(text) || strings.ContainsRune(text, '%') || strings.HasPrefix(text, "$share/") {
		return &templates.EntryError{ID: e.ID, Why: "has a topic that VerneMQ would read as another"}
	}
	return nil
}
