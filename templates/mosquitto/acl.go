package mosquitto

import (
	"fmt"
	"io"
	"iter"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// An ACL file allows; what it does not allow is denied. It has, per
// mosquitto.conf(5) and src/security_default.c of 2.0:
//
//	user NAME                           sticky until the next user
//	topic [read|write|readwrite] FILTER     for this user
//	pattern [read|write|readwrite] FILTER   for every client, %u is its name
//	# comment, if it is the very first byte
//
// Words are separated by spaces; a tab makes the file invalid, and an invalid
// file makes 2.0 allow everything. An empty file denies everything; without a
// file everything is allowed.

const aclHeader = `# Written by imprint. Changes made here are lost at the next export.
# What is not allowed below is denied.
`

// adminRules are those of imprint itself. A filter that starts with a wildcard
// does not match topics that start with $ (MQTT 5.0 §4.7.2).
var adminRules = []access{
	{publish: true, receive: true, filter: "#"},
	{receive: true, filter: "$SYS/#"},
}

// An aclWriter renders an ACL file.
type aclWriter struct {
	w        io.Writer
	patterns []pattern
	rules    int // lines written
	stanzas  int

	buf    []byte
	grants []topic.Grant
	merged []access
}

// header writes what comes before the devices.
func (a *aclWriter) header(admin bool) error {
	a.buf = append(a.buf[:0], aclHeader...)
	if admin {
		a.stanza(templates.AdminName, adminRules)
	}
	if len(a.patterns) > 0 {
		a.buf = append(a.buf, "\n# For every client; %u is its name.\n"...)
	}
	for _, m := range mergePatterns(a.patterns) {
		a.line("pattern", m)
	}
	return a.flush()
}

// entry writes the stanza of a device, if it needs one.
func (a *aclWriter) entry(e *templates.Entry) error {
	var ok bool
	a.grants, ok = exceptions(a.grants[:0], a.patterns, e.ID, e.Grants)
	if !ok {
		return &templates.EntryError{ID: e.ID, Why: "its rights are fewer than its profile's: a pattern would give it more"}
	}
	if len(a.grants) == 0 && len(a.patterns) > 0 {
		return nil
	}
	a.merged = merge(a.merged[:0], a.grants)
	a.buf = a.buf[:0]
	a.buf = append(a.buf, '\n')
	a.buf = appendComment(a.buf, e)
	a.stanza(string(e.ID), a.merged)
	a.stanzas++
	return a.flush()
}

func (a *aclWriter) stanza(user string, rules []access) {
	a.buf = append(a.buf, "user "...)
	a.buf = append(a.buf, user...)
	a.buf = append(a.buf, '\n')
	for _, m := range rules {
		a.line("topic", m)
	}
}

func (a *aclWriter) line(keyword string, m access) {
	a.buf = append(a.buf, keyword...)
	a.buf = append(a.buf, ' ')
	a.buf = append(a.buf, m.word()...)
	a.buf = append(a.buf, ' ')
	a.buf = append(a.buf, m.filter...)
	a.buf = append(a.buf, '\n')
	a.rules++
}

func (a *aclWriter) flush() error {
	_, err := a.w.Write(a.buf)
	return err
}

// appendComment says in one line which device a stanza is for. Labels are free
// text: they are quoted, so that nothing in them can end the line.
func appendComment(b []byte, e *templates.Entry) []byte {
	b = append(b, '#')
	b = append(b, ' ')
	return append(append(b, remark(e)...), '\n')
}

// remark is a line for people about a device, in printable ASCII.
func remark(e *templates.Entry) string {
	var b strings.Builder
	b.WriteString("profile " + e.Profile)
	if e.Group != "" {
		b.WriteString(", group " + e.Group)
	}
	if e.HardwareSerial != "" {
		fmt.Fprintf(&b, ", serial %+q", e.HardwareSerial)
	}
	for _, l := range e.Labels {
		fmt.Fprintf(&b, ", %s %+q", l.Key, l.Value)
	}
	// Profile, group and label keys are words, but this is the last fence.
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, b.String())
}

// An aclStanza is a user section of an ACL file, or, without a user, a pattern.
type aclStanza struct {
	user     string
	grants   []topic.Grant
	patterns []topic.Rule
	line     int
}

// readACL yields the patterns, one by one, and the user sections of an ACL file
// in their order. It is as strict as the stricter of the two versions; what no
// policy of ours can say, such as a deny, is an error too.
func readACL(r io.Reader) iter.Seq2[aclStanza, error] {
	return func(yield func(aclStanza, error) bool) {
		var cur aclStanza
		for l, err := range lines(r) {
			if err != nil {
				yield(cur, err)
				return
			}
			keyword, rest, err := splitACLLine(l)
			switch {
			case err != nil:
			case keyword == "user":
				if cur.user != "" && !yield(cur, nil) {
					return
				}
				cur = aclStanza{user: rest, line: l.n}
				err = wrapLine(l.n, checkUser(rest))
			case keyword == "topic" && cur.user == "":
				err = &lineError{l.n, "a topic before the first user is for clients without a name"}
			case keyword == "topic":
				cur.grants, err = parseTopic(l.n, rest, cur.grants)
			case keyword == "pattern":
				var p aclStanza
				if p.patterns, err = parsePattern(l.n, rest); err == nil && !yield(p, nil) {
					return
				}
			}
			if err != nil {
				yield(cur, err)
				return
			}
		}
		if cur.user != "" {
			yield(cur, nil)
		}
	}
}

func wrapLine(n int, err error) error {
	if err == nil {
		return nil
	}
	return &lineError{n, err.Error()}
}

// splitACLLine returns the first word of a line and the rest; no word for a line
// that says nothing.
func splitACLLine(l textLine) (keyword, rest string, err error) {
	text := strings.TrimRight(string(l.text), " ")
	if text == "" || text[0] == '#' {
		return "", "", nil
	}
	if !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return "", "", &lineError{l.n, "a tab or another control character"}
	}
	keyword, rest, _ = strings.Cut(strings.TrimLeft(text, " "), " ")
	rest = strings.TrimLeft(rest, " ")
	switch keyword {
	case "user", "topic", "pattern":
	default:
		return "", "", &lineError{l.n, "want user, topic, pattern or a comment"}
	}
	if rest == "" {
		return "", "", &lineError{l.n, "nothing after " + keyword}
	}
	return keyword, rest, nil
}

// parseAccess reads "[ACCESS] FILTER". Without the word the access is readwrite,
// also if the filter looks like the word.
func parseAccess(n int, text string) (actions []topic.Action, filter string, err error) {
	word, filter, found := strings.Cut(text, " ")
	filter = strings.TrimLeft(filter, " ")
	both := []topic.Action{topic.Publish, topic.Receive}
	if !found {
		return both, word, nil
	}
	switch word {
	case "read":
		return both[1:], filter, nil
	case "write":
		return both[:1], filter, nil
	case "readwrite":
		return both, filter, nil
	case "deny":
		return nil, "", &lineError{n, "our policies only allow: they have no deny"}
	}
	return nil, "", &lineError{n, "want read, write or readwrite before a filter with spaces"}
}

func parseTopic(n int, text string, grants []topic.Grant) ([]topic.Grant, error) {
	actions, filter, err := parseAccess(n, text)
	if err != nil {
		return nil, err
	}
	f, err := topic.ParseFilter(filter)
	if err != nil {
		return nil, &lineError{n, err.Error()}
	}
	for _, a := range actions {
		grants = append(grants, topic.Grant{Action: a, Filter: f})
	}
	return grants, nil
}

// parsePattern reads a pattern as rules. A placeholder that is only a part of a
// level means one thing to 2.0 and another to 2.1.
func parsePattern(n int, text string) ([]topic.Rule, error) {
	actions, filter, err := parseAccess(n, text)
	if err != nil {
		return nil, err
	}
	if _, err := topic.ParseFilter(filter); err != nil {
		return nil, &lineError{n, err.Error()}
	}
	levels := strings.Split(filter, "/")
	named := false
	for i, l := range levels {
		switch {
		case l == "%u":
			levels[i], named = idPlaceholder, true
		case strings.Contains(l, "%u"), strings.Contains(l, "%c"):
			return nil, &lineError{n, "want %u as a whole level, and no %c"}
		case strings.ContainsAny(l, "{}"):
			return nil, &lineError{n, "braces in a topic level"}
		}
	}
	rules := make([]topic.Rule, len(actions))
	for i, a := range actions {
		rules[i] = topic.Rule{Action: a, Filter: strings.Join(levels, "/"), Shared: !named}
	}
	return rules, nil
}

// isAdmin reports whether a section is the one of imprint itself.
func isAdmin(user string) bool { return user == templates.AdminName }
