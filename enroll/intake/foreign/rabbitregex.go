package foreign

import (
	"strings"

	"github.com/imprint-iot/imprint/inventory/topic"
)

// A remark is what is lost between an expression and filters.
type remark struct {
	severity Severity
	code     string
	text     string
}

// rabbitExpression reads a topic permission: a regular expression (PCRE), not
// anchored by RabbitMQ, over routing keys, which are topics with '.' for '/' and, in
// subscriptions, '*' for '+'. Filters are returned for what can be said as one, or as
// a narrower one; other alternatives are left out with a remark. A topic with a dot in
// a level is not thought of: RabbitMQ does not tell it from one with more levels.
func rabbitExpression(text, name string, action topic.Action) (filters []string, notes []remark) {
	drop := func(code, why string) {
		notes = append(notes, remark{Warning, code, why + "; it is left out"})
	}
	switch text {
	case "", "^$":
		return nil, nil
	case ".*", "^.*$", "^.*", ".*$", ".+", "^.+$", "^":
		return []string{"#"}, nil
	}
	for _, whole := range splitTop(text) {
		body, anchored := strings.CutPrefix(whole, "^")
		if rest, ok := strings.CutSuffix(body, "$"); ok && anchored && !strings.HasSuffix(rest, `\`) {
			body = rest
		} else {
			notes = append(notes, remark{Error, "not-anchored", "an alternative is not anchored with ^ and $, so it matches within other topics; it is left out"})
			continue
		}
		for _, alternative := range splitTop(ungroup(body)) {
			k := &keyReader{name: name, action: action, rest: alternative}
			filter, why := k.read()
			if why != "" {
				drop("expression", why)
				continue
			}
			if k.dot {
				notes = append(notes, remark{Warning, "bare-dot", "a dot without a backslash matches any character; it is read as a level separator"})
			}
			if k.client {
				notes = append(notes, remark{Warning, "client-id", "the client identifier is what the client says; the rule is carried over for clients that use their user name"})
			}
			filters = append(filters, filter)
		}
	}
	return filters, notes
}

// ungroup takes off one group around everything.
func ungroup(s string) string {
	inner, ok := strings.CutPrefix(s, "(?:")
	if !ok {
		if inner, ok = strings.CutPrefix(s, "("); !ok || strings.HasPrefix(inner, "?") {
			return s
		}
	}
	inner, ok = strings.CutSuffix(inner, ")")
	if !ok || strings.HasSuffix(inner, `\`) {
		return s
	}
	depth := 0
	for i := 0; i < len(inner); i++ {
		switch inner[i] {
		case '\\':
			i++
		case '[':
			i = classEnd(inner, i)
		case '(':
			depth++
		case ')':
			if depth--; depth < 0 {
				return s // the first and the last parenthesis are of two groups
			}
		}
	}
	return inner
}

// splitTop splits at the bars that are in no group and in no class.
func splitTop(s string) []string {
	var out []string
	depth, from := 0, 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '[':
			i = classEnd(s, i)
		case '(':
			depth++
		case ')':
			depth--
		case '|':
			if depth == 0 {
				out = append(out, s[from:i])
				from = i + 1
			}
		}
	}
	return append(out, s[from:])
}

// classEnd is the index of the ']' that ends the class at i, or of the last byte.
func classEnd(s string, i int) int {
	for j := i + 1; j < len(s); j++ {
		switch {
		case s[j] == '\\':
			j++
		case s[j] == ']' && j > i+1 && s[i+1:j] != "^":
			return j
		}
	}
	return len(s) - 1
}

// A keyReader reads one alternative from left to right.
type keyReader struct {
	name        string
	action      topic.Action
	rest        string
	out         strings.Builder
	dot, client bool
}

const (
	special   = `\^$.[]|()?*+{}`
	quantity  = "*+?{"
	wildcards = "a wildcard of MQTT stands there as it is, which only a subscription can have"
)

// read returns the filter, or why there is none.
func (k *keyReader) read() (filter, why string) {
	for k.rest != "" {
		if why := k.next(); why != "" {
			return "", why
		}
	}
	filter = k.out.String()
	for _, level := range strings.Split(filter, "/") {
		if len(level) > 1 && strings.ContainsAny(level, "+#") {
			return "", "a part of a level is variable"
		}
	}
	return filter, ""
}

// next reads one piece.
func (k *keyReader) next() string {
	for _, tail := range []string{`(\..*)?`, `(?:\..*)?`} {
		if k.rest == tail {
			return k.write("/#", len(tail))
		}
	}
	for _, class := range []string{`[^.]*`, `[^\.]*`, `[^.#]*`, `[^\.#]*`} {
		if strings.HasPrefix(k.rest, class) {
			return k.write("+", len(class))
		}
	}
	switch {
	case k.rest == `\..*`:
		return k.write("/+/#", len(k.rest)) // not the level before, as /# would
	case k.rest == ".*" && k.out.Len() > 0:
		return k.write("/#", len(k.rest)) // and not the longer names, which it allows too
	case strings.HasPrefix(k.rest, "[^.]+"), strings.HasPrefix(k.rest, `[^\.]+`):
		return "[^.]+ takes no empty level, and + takes one"
	case strings.HasPrefix(k.rest, "{username}"):
		return k.write(k.name, len("{username}"))
	case strings.HasPrefix(k.rest, "{client_id}"):
		k.client = true
		return k.write(k.name, len("{client_id}"))
	}
	return k.literal()
}

// literal reads one character that stands for itself.
func (k *keyReader) literal() string {
	c, n := k.rest[0], 1
	switch {
	case c == '\\':
		if len(k.rest) < 2 || isWordByte(k.rest[1]) {
			return "the expression is not a plain one"
		}
		if c, n = k.rest[1], 2; c == '.' {
			c = '/'
		} else if c == '*' {
			c = '+'
		}
	case c == '.':
		k.dot, c = true, '/'
	case strings.IndexByte(special, c) >= 0:
		return "the expression is not a plain one"
	case c == '/':
		return "no routing key has a slash"
	}
	if (c == '+' && k.rest[:n] == `\+`) || n == 2 && c == '/' && k.rest[1] == '/' {
		return "no routing key has such a character"
	}
	if (c == '#' || c == '+') && k.action == topic.Publish {
		return wildcards
	}
	if len(k.rest) > n && strings.IndexByte(quantity, k.rest[n]) >= 0 && !strings.HasPrefix(k.rest[n:], "{username}") && !strings.HasPrefix(k.rest[n:], "{client_id}") {
		return "the expression is not a plain one"
	}
	return k.write(string([]byte{c}), n)
}

func (k *keyReader) write(text string, n int) string {
	k.out.WriteString(text)
	k.rest = k.rest[n:]
	return ""
}
