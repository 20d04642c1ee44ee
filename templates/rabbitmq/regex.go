package rabbitmq

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory/topic"
)

// A right of a user is one regular expression (PCRE) that is matched against routing
// keys: topics and filters with "." for "/" and "*" for "+". It is not anchored by
// RabbitMQ, so it is by us. In it stands, for a level that is
//
//	a word  the word, with what means something escaped
//	"+"     [^.#]*     which takes no "#", or a filter a/# would pass for a/+
//	"#"     (?:\..*)?  at the end, with the separator before it
//
// and a filter that begins with a wildcard does not match a topic that begins with
// "$" (MQTT 3.1.1 §4.7.2).
const (
	open     = "^(?:"
	shut     = ")$"
	nothing  = "^$"
	anyLevel = "[^.#]*"
	anyTail  = `(?:\..*)?`
	anything = ".*"
	noDollar = `(?!\$)`
)

// maxRegex is the longest expression that RabbitMQ 4.3 takes, in bytes.
const maxRegex = 1024

var errRegexLong = errors.New("its rules are longer than 1,024 bytes as one regular expression")

// regexOf is the expression for filters. Nothing is allowed by none.
func regexOf(filters []topic.Filter) (string, error) {
	if len(filters) == 0 {
		return nothing, nil
	}
	alternatives := make([]string, 0, len(filters))
	for _, f := range filters {
		a, err := filterRegex(string(f))
		if err != nil {
			return "", err
		}
		alternatives = append(alternatives, a)
	}
	slices.Sort(alternatives)
	out := open + strings.Join(slices.Compact(alternatives), "|") + shut
	if len(out) > maxRegex {
		return "", errRegexLong
	}
	return out, nil
}

func filterRegex(f string) (string, error) {
	if strings.Contains(f, ".") {
		return "", fmt.Errorf("topic %.128q: a dot ends a level there as a slash does", f)
	}
	var b strings.Builder
	if f[0] == '+' || f[0] == '#' {
		b.WriteString(noDollar)
	}
	levels := strings.Split(f, "/")
	for i, l := range levels {
		switch {
		case l == "#" && i == 0:
			b.WriteString(anything)
		case l == "#":
			b.WriteString(anyTail)
			continue
		case l == "+":
			b.WriteString(anyLevel)
		default:
			b.WriteString(escape(l))
		}
		if i+1 < len(levels) && levels[i+1] != "#" {
			b.WriteString(`\.`)
		}
	}
	return b.String(), nil
}

// special are the characters that mean something in PCRE outside of a class.
const special = `\^$.[]|()?*+{}`

func escape(level string) string {
	var b strings.Builder
	for _, r := range level {
		if strings.ContainsRune(special, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

var errRegex = errors.New("a regular expression that imprint does not write")

// parseRegex reads what regexOf writes.
func parseRegex(s string) ([]topic.Filter, error) {
	if s == nothing {
		return nil, nil
	}
	body, ok := strings.CutPrefix(s, open)
	body, closed := strings.CutSuffix(body, shut)
	if !ok || !closed || len(s) > maxRegex {
		return nil, errRegex
	}
	var out []topic.Filter
	for {
		f, rest, err := parseAlternative(body)
		if err != nil {
			return nil, err
		}
		if _, err := topic.ParseFilter(f); err != nil {
			return nil, errRegex
		}
		out = append(out, topic.Filter(f))
		if rest == "" {
			break
		}
		if body, ok = strings.CutPrefix(rest, "|"); !ok {
			return nil, errRegex
		}
	}
	if again, err := regexOf(out); err != nil || again != s {
		return nil, errRegex // there is one way to write it
	}
	return out, nil
}

// parseAlternative reads one filter up to "|" or the end.
func parseAlternative(s string) (f, rest string, err error) {
	var b strings.Builder
	s = strings.TrimPrefix(s, noDollar)
	for s != "" && s[0] != '|' {
		switch {
		case strings.HasPrefix(s, anyTail):
			b.WriteString("/#")
			s = s[len(anyTail):]
		case strings.HasPrefix(s, anyLevel):
			b.WriteByte('+')
			s = s[len(anyLevel):]
		case strings.HasPrefix(s, anything):
			b.WriteByte('#')
			s = s[len(anything):]
		case strings.HasPrefix(s, `\.`):
			b.WriteByte('/')
			s = s[2:]
		case s[0] == '\\' && len(s) > 1 && strings.IndexByte(special, s[1]) >= 0:
			b.WriteByte(s[1])
			s = s[2:]
		case strings.IndexByte(special, s[0]) >= 0:
			return "", "", errRegex
		default:
			b.WriteByte(s[0])
			s = s[1:]
		}
	}
	return b.String(), s, nil
}
