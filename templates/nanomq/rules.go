package nanomq

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// nanomq_acl.conf has a rule on each line; the first one that is met decides:
//
//	{"permit": "allow", "username": "NAME", "action": "publish", "topics": ["FILTER"]}
//
// A rule without "username" is for everybody, one without "topics" for everything, and
// an empty list of topics ends the broker: all three are written in the order and with
// the words that are here, and never empty. Nor is "and" used: once one such rule has
// not been met, none after it is. A topic that begins with @ is compared as text.
const (
	aclHead = "# Written by imprint. Changes made here are lost at the next export.\nrules = [\n"
	aclTail = denyAll + "\n]\n"
	denyAll = `{"permit": "deny"}`
	asText  = "@"
	maxLine = 1 << 23 // bytes: a device has up to 64 filters of up to 65,535
)

// rule says why NanoMQ cannot enforce a rule exactly. Its matcher is check_ifwildcard of
// mqtt_parser.c.
func rule(r topic.Rule) (why string, choices []string) {
	levels := strings.Split(r.Filter, "/")
	switch {
	case levels[0] == "+", levels[0] == "#":
		return "a wildcard at the start reaches topics that begin with $ as well", []string{"a rule for each first level, by its name"}
	case strings.HasPrefix(r.Filter, asText):
		return "it takes @ at the start for a word of its own", []string{"another name for the first level"}
	case strings.ContainsFunc(r.Filter, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }):
		return "its files are safe for printable ASCII without quotes and backslashes only", []string{"another name for this level"}
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

// writable refuses a right that the file has no form for. The policy has no such
// rights; this is the last fence.
func writable(e *templates.Entry) error {
	for _, g := range e.Grants {
		f := string(g.Filter)
		if why, _ := rule(topic.Rule{Action: g.Action, Filter: f}); why != "" || strings.TrimSpace(f) != f || strings.ContainsAny(f, "{}%") || strings.HasPrefix(f, "$share/") {
			return &templates.EntryError{ID: e.ID, Why: "has a topic that NanoMQ would read as another"}
		}
	}
	return nil
}

// A line is one rule, in the order of its members.
type line struct {
	Permit   string   `json:"permit"`
	Username string   `json:"username"`
	Action   string   `json:"action"`
	Topics   []string `json:"topics"`
}

// compile returns the rules of a device, at least one. Subscriptions to what ends in +
// come last, the ones with fewer levels before the + first, each after the denial of
// the one filter with # that would satisfy it. In this order no denial is before a
// right that covers what it denies: such a right has no trailing +, or an earlier one.
func compile(e *templates.Entry) ([]line, error) {
	if err := writable(e); err != nil {
		return nil, err
	}
	id := string(e.ID)
	var publish, subscribe, plus []string
	for _, g := range e.Grants {
		f := string(g.Filter)
		if _, ok := plusParent(f); g.Action == topic.Publish {
			publish = append(publish, f)
		} else if ok {
			plus = append(plus, f)
		} else {
			subscribe = append(subscribe, f)
		}
	}
	var lines []line
	if len(publish) > 0 {
		lines = append(lines, line{"allow", id, "publish", publish})
	}
	if len(subscribe) > 0 {
		lines = append(lines, line{"allow", id, "subscribe", subscribe})
	}
	slices.SortStableFunc(plus, func(a, b string) int { return cmp.Compare(depth(a), depth(b)) })
	for _, f := range plus {
		parent, _ := plusParent(f)
		lines = append(lines, line{"deny", id, "subscribe", []string{asText + parent + "/#"}}, line{"allow", id, "subscribe", []string{f}})
	}
	if len(lines) == 0 { // so that each device is in the file
		lines = append(lines, line{"deny", id, "pubsub", []string{"#"}})
	}
	return lines, nil
}

func appendRules(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	lines, err := compile(e)
	if err != nil {
		return nil, err
	}
	for _, l := range lines {
		b = append(b, `{"permit": "`...)
		b = append(b, l.Permit...)
		b = append(b, `", "username": "`...)
		b = append(b, l.Username...)
		b = append(b, `", "action": "`...)
		b = append(b, l.Action...)
		b = append(b, `", "topics": ["`...)
		for i, t := range l.Topics {
			if i > 0 {
				b = append(b, `", "`...)
			}
			b = append(b, t...)
		}
		b = append(b, "\"]}\n"...)
	}
	return b, nil
}

// A lineError reports a line of a file that imprint does not write.
type lineError struct {
	line int
	why  string
}

func (e *lineError) Error() string {
	return fmt.Sprintf("reading %s: line %d: %s", ACLName, e.line, e.why)
}

const notOurs = "it is not what imprint writes"

// readRules yields the devices of nanomq_acl.conf.
func readRules(src fs.FS) iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		f, err := templates.OpenFile(src, ACLName)
		if err != nil {
			yield(templates.Entry{}, err)
			return
		}
		defer func() { _ = f.Close() }() // read only
		s := templates.NewLineScanner(f, maxLine)
		var r reader
		for s.Scan() {
			r.n++
			done, err := r.line(s.Bytes())
			if err != nil {
				yield(templates.Entry{}, err)
				return
			}
			if done != nil && !yield(*done, nil) {
				return
			}
		}
		if err := s.Err(); err != nil {
			yield(templates.Entry{}, fmt.Errorf("reading %s: %w", ACLName, err))
		} else if r.tail == "" || r.tail != aclTail {
			yield(templates.Entry{}, &lineError{r.n, "the end is missing"})
		}
	}
}

// A reader puts the rules of a device together. That they are the very ones that imprint
// writes for it shows when they are written again.
type reader struct {
	n          int // lines read
	head, tail string
	e          templates.Entry
	text       []byte // of the device so far
}

// line takes one line, and returns the device before it if that has ended.
func (r *reader) line(text []byte) (*templates.Entry, error) {
	switch {
	case len(r.head) < len(aclHead):
		if r.head += string(text) + "\n"; !strings.HasPrefix(aclHead, r.head) {
			return nil, &lineError{r.n, notOurs}
		}
		return nil, nil
	case r.tail != "" || string(text) == denyAll:
		if r.tail += string(text) + "\n"; !strings.HasPrefix(aclTail, r.tail) {
			return nil, &lineError{r.n, notOurs}
		}
		return r.flush()
	}
	var l line
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, &lineError{r.n, notOurs}
	}
	id, err := inventory.ParseDeviceID(l.Username)
	if err != nil {
		return nil, &lineError{r.n, err.Error()}
	}
	var done *templates.Entry
	if id != r.e.ID {
		if done, err = r.flush(); err != nil {
			return nil, err
		}
		r.e.ID = id
	}
	r.text = append(append(r.text, text...), '\n')
	action := topic.Receive
	if l.Action == "publish" {
		action = topic.Publish
	}
	for _, t := range l.Topics {
		if l.Permit == "allow" {
			r.e.Grants = append(r.e.Grants, topic.Grant{Action: action, Filter: topic.Filter(t)})
		}
	}
	return done, nil
}

// flush ends a device.
func (r *reader) flush() (*templates.Entry, error) {
	if r.e.ID == "" {
		return nil, nil
	}
	e := r.e
	if same, err := appendRules(nil, 0, &e, nil); err != nil || !bytes.Equal(same, r.text) {
		return nil, &lineError{r.n, "before it: " + notOurs}
	}
	r.e, r.text = templates.Entry{}, r.text[:0]
	return &e, nil
}
