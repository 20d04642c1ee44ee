// Package topic is the language of rights: topic names, topic filters, and
// policies made of them.
//
// A [Policy] is a set of allowed (action, topic filter) pairs with the device's
// own names filled in. It has no order and no deny rules, so it means the same
// wherever it is enforced, and [Policy.Decide] is the reference for what it
// means: an access list that a broker is given must never allow what Decide
// does not.
//
// Names and filters follow MQTT 5.0 §4.7.
package topic

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of a topic (MQTT 5.0 §4.7.3 for the length; Mosquitto and others stop
// at 200 levels).
const (
	maxLength = 65535 // bytes
	maxLevels = 200
)

// A Name is a topic that a message is published to. It has no wildcards.
type Name string

// A Filter is a set of topics: + stands for one level, a final # for any number
// of levels including none. A filter that begins with a wildcard matches no
// topic that begins with $ (MQTT 5.0 §4.7.2).
type Filter string

// A SyntaxError reports text that is no topic name or filter.
type SyntaxError struct {
	What   string // "topic name" or "topic filter"
	Text   string
	Reason string
}

// Error quotes at most the first 128 bytes of the text.
func (e *SyntaxError) Error() string {
	return fmt.Sprintf("%s %.128q: %s", e.What, e.Text, e.Reason)
}

// ParseName reads a topic name. The error is a [*SyntaxError].
func ParseName(s string) (Name, error) {
	if reason := checkText(s); reason != "" {
		return "", &SyntaxError{"topic name", s, reason}
	}
	if strings.ContainsAny(s, "+#") {
		return "", &SyntaxError{"topic name", s, "a name has no wildcards"}
	}
	return Name(s), nil
}

// ParseFilter reads a topic filter. Shared subscriptions ($share/...) are not
// filters: rights are given on the filter inside. The error is a [*SyntaxError].
func ParseFilter(s string) (Filter, error) {
	if reason := checkText(s); reason != "" {
		return "", &SyntaxError{"topic filter", s, reason}
	}
	if reason := checkWildcards(s); reason != "" {
		return "", &SyntaxError{"topic filter", s, reason}
	}
	if strings.HasPrefix(s, "$share/") || strings.HasPrefix(s, "$queue/") {
		return "", &SyntaxError{"topic filter", s, "a shared subscription is no filter"}
	}
	return Filter(s), nil
}

// checkText says what is wrong with s as a topic of ours, or nothing.
func checkText(s string) string {
	if reason := checkWire(s); reason != "" {
		return reason
	}
	if strings.TrimSpace(s) != s {
		return "it begins or ends with a space" // which some formats of access lists lose
	}
	return ""
}

// checkWire says what is wrong with s as a topic that somebody else has sent, or
// nothing. (MQTT 5.0 §1.5.4 forbids U+0000 and lets a broker close the connection
// for other control characters, which Mosquitto does.)
func checkWire(s string) string {
	switch {
	case s == "":
		return "it is empty"
	case len(s) > maxLength:
		return "it is longer than 65535 bytes"
	case !utf8.ValidString(s):
		return "it is not UTF-8"
	case strings.ContainsFunc(s, unicode.IsControl):
		return "it has a control character"
	case strings.Count(s, "/") >= maxLevels:
		return "it has more than 200 levels"
	}
	return ""
}

func checkWildcards(s string) string {
	for level := range strings.SplitSeq(s, "/") {
		if len(level) > 1 && strings.ContainsAny(level, "+#") {
			return "a wildcard is a whole level"
		}
	}
	if i := strings.IndexByte(s, '#'); i >= 0 && i != len(s)-1 {
		return "# is the last level"
	}
	return ""
}

// cut splits off the first level: the level, the rest, and whether there is a
// rest.
func cut(s string) (string, string, bool) { return strings.Cut(s, "/") }

// Match reports whether n is in the set f. It does not allocate.
func (f Filter) Match(n Name) bool {
	if f == "" || n == "" || hidden(string(f), string(n)) {
		return false
	}
	filter, name := string(f), string(n)
	for {
		level, restF, moreF := cut(filter)
		if level == "#" {
			return true
		}
		want, restN, moreN := cut(name)
		if level != "+" && level != want {
			return false
		}
		switch {
		case !moreF && !moreN:
			return true
		case moreF && !moreN:
			return restF == "#" // "a/#" matches "a"
		case !moreF:
			return false
		}
		filter, name = restF, restN
	}
}

// hidden reports whether a filter begins with a wildcard and a topic with $.
func hidden(filter, topic string) bool {
	return (filter[0] == '+' || filter[0] == '#') && topic[0] == '$'
}

// Covers reports whether every topic in g is also in f. It errs on the safe side
// for two odd filters: +/# does not cover #, nor does /+/# cover /#, though there
// is no topic between them.
func (f Filter) Covers(g Filter) bool {
	if f == "" || g == "" || hidden(string(f), string(g)) {
		return false
	}
	outer, inner := string(f), string(g)
	for {
		a, restA, moreA := cut(outer)
		b, restB, moreB := cut(inner)
		switch {
		case a == "#":
			return true
		case b == "#":
			return false
		case a != "+" && a != b:
			return false
		}
		switch {
		case !moreA && !moreB:
			return true
		case moreA && !moreB:
			return restA == "#"
		case !moreA:
			return false
		}
		outer, inner = restA, restB
	}
}

// Overlaps reports whether some topic is in both f and g. It errs on the safe side
// for /#, and takes the empty topic for one.
func (f Filter) Overlaps(g Filter) bool {
	if f == "" || g == "" || hidden(string(f), string(g)) || hidden(string(g), string(f)) {
		return false
	}
	a, b := string(f), string(g)
	for {
		x, restA, moreA := cut(a)
		y, restB, moreB := cut(b)
		if x == "#" || y == "#" {
			return true
		}
		if x != "+" && y != "+" && x != y {
			return false
		}
		switch {
		case !moreA && !moreB:
			return true
		case moreA && !moreB:
			return restA == "#"
		case !moreA:
			return restB == "#"
		}
		a, b = restA, restB
	}
}
