package emqx

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"iter"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// imprint-rules.ndjson has a JSON object on a line for each device: the body of
//
//	PUT /api/v5/authorization/sources/built_in_database/rules/users/NAME
//
// (emqx_authz_api_mnesia.erl), which replaces whatever rules the name has.
type userRules struct {
	Username string    `json:"username"`
	Rules    []apiRule `json:"rules"`
}

// An apiRule is one rule. A topic that begins with "eq " is compared as text.
type apiRule struct {
	Permission string `json:"permission"`
	Action     string `json:"action"`
	Topic      string `json:"topic"`
}

const eqPrefix = "eq "

// words is a line as the built-in database and a table have it.
func (l line) words() apiRule {
	r := apiRule{"allow", "publish", l.topic}
	if l.deny {
		r.Permission = "deny"
	}
	if l.subscribe {
		r.Action = "subscribe"
	}
	if l.eq {
		r.Topic = eqPrefix + l.topic
	}
	return r
}

// line is the way back. What it makes of other words is found out by grants.
func (r apiRule) line() line {
	l := line{deny: r.Permission == "deny", subscribe: r.Action == "subscribe", topic: r.Topic}
	if l.deny && len(l.topic) > len(eqPrefix) && l.topic[:len(eqPrefix)] == eqPrefix {
		l.eq, l.topic = true, l.topic[len(eqPrefix):]
	}
	return l
}

func appendJSON(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	rules, err := compile(e)
	if err != nil {
		return nil, err
	}
	u := userRules{Username: string(e.ID), Rules: []apiRule{}}
	for _, l := range rules {
		u.Rules = append(u.Rules, l.words())
	}
	text, err := json.Marshal(u)
	if err != nil {
		return nil, err
	}
	return append(append(b, text...), '\n'), nil
}

// readJSON yields the devices of imprint-rules.ndjson.
func readJSON(src fs.FS) iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		n := 0
		for text, err := range templates.Lines(src, RulesName, maxLine) {
			n++
			var e templates.Entry
			if err == nil {
				e, err = parseJSON(text, n)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func parseJSON(text []byte, n int) (templates.Entry, error) {
	var u userRules
	if err := json.Unmarshal(text, &u); err != nil {
		return templates.Entry{}, &lineError{RulesName, n, "want a JSON object of a user and its rules"}
	}
	id, err := inventory.ParseDeviceID(u.Username)
	if err != nil {
		return templates.Entry{}, &lineError{RulesName, n, err.Error()}
	}
	e := templates.Entry{ID: id}
	var rules []line
	for _, r := range u.Rules {
		rules = append(rules, r.line())
	}
	ok := grants(&e, rules)
	if same, err := appendJSON(nil, 0, &e, nil); !ok || err != nil || !bytes.Equal(bytes.TrimSuffix(same, []byte("\n")), text) {
		return templates.Entry{}, &lineError{RulesName, n, notOurs}
	}
	return e, nil
}
