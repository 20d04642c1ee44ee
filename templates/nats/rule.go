package nats

import (
	"strings"

	"github.com/imprint-iot/imprint/inventory/topic"
)

// rule says why the server cannot enforce a rule exactly, or nothing.
//
// What may be received is decided at SUBSCRIBE, where the subject of the filter is
// looked up among those that are allowed as if it were a plain one (Sublist.Match): a
// > in it is a token like any other, and satisfies a *. The server then asks for the
// level above as well and refuses the subscription after all, but it has been there
// for a moment, and messages may have come.
func rule(r topic.Rule) (string, []string) {
	levels := strings.Split(r.Filter, "/")
	n := len(levels)
	last := levels[n-1]
	if last == "#" && n > 1 {
		last = levels[n-2]
	}
	switch {
	case strings.ContainsAny(r.Filter, "*>"):
		return "* and > are its own wildcards", []string{"another name for this level"}
	case strings.Contains(r.Filter, " "):
		return "it takes no topics with spaces", []string{"- or _ in place of the space"}
	case strings.HasPrefix(r.Filter, "$"):
		return "topics that begin with $ are its own: $MQTT, $JS, $SYS", []string{"a first level without $"}
	case levels[0] == "+", levels[0] == "#":
		return "a wildcard at the start reaches its own topics, $MQTT, $JS and $SYS, as well", []string{"a rule for each first level, by its name"}
	case r.Action == topic.Receive && last == "+":
		parent := strings.Join(levels[:n-1], "/")
		if levels[n-1] == "#" {
			parent = strings.Join(levels[:n-2], "/")
		}
		return "it takes the # of a subscription to " + parent + "/# for one level, for a moment",
			[]string{"a name in place of the last +", parent + "/# if all of that may be received"}
	}
	return "", nil
}

// appendSubjects appends the subjects of a filter, quoted and separated by ", ". Of a
// filter that ends in # they are two, the one with the > first.
func appendSubjects(b []byte, f topic.Filter) []byte {
	b = append(b, '"')
	start := len(b)
	for i, level := range strings.Split(string(f), "/") {
		if i > 0 {
			b = append(b, '.')
		}
		b = appendToken(b, level)
	}
	parent, ok := strings.CutSuffix(string(b[start:]), ".>")
	b = append(b, '"')
	if ok {
		b = append(b, `, "`...)
		b = append(b, parent...)
		b = append(b, '"')
	}
	return b
}

// appendToken appends the token of a level, as it is written in a quoted string of a
// configuration.
func appendToken(b []byte, level string) []byte {
	switch level {
	case "":
		return append(b, '/')
	case "+":
		return append(b, '*')
	case "#":
		return append(b, '>')
	}
	for _, c := range []byte(level) {
		switch c {
		case '.':
			b = append(b, "//"...)
		case '"', '\\':
			b = append(b, '\\', c)
		default:
			b = append(b, c)
		}
	}
	return b
}

// filterOf is the filter of a subject that is one token for each level.
func filterOf(subject string) (topic.Filter, error) {
	tokens := strings.Split(subject, ".")
	for i, t := range tokens {
		switch t {
		case "/":
			tokens[i] = ""
		case "*":
			tokens[i] = "+"
		case ">":
			tokens[i] = "#"
		default:
			tokens[i] = strings.ReplaceAll(t, "//", ".")
			if strings.Contains(tokens[i], "/") { // would be two levels
				return "", &topic.SyntaxError{What: "subject", Text: subject, Reason: "it is no topic"}
			}
		}
	}
	return topic.ParseFilter(strings.Join(tokens, "/"))
}
