package emqx

import (
	"bytes"
	"io/fs"
	"iter"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// imprint-acl.conf has Erlang terms, one on a line (emqx_authz_rule.erl):
//
//	{allow,{username,"NAME"},publish,["FILTER","FILTER"]}.
//	{deny,{username,"NAME"},subscribe,[{eq,"FILTER"}]}.
//
// A device without rights has one term that denies it everything, so that each device
// is in the file. The last term denies everything to everybody; it does not reach
// topics that begin with $, which no_match = deny does.
const (
	aclHead = "%% -*- coding: utf-8 -*-\n%% Written by imprint. Changes made here are lost at the next export.\n"
	aclTail = "{deny,all}.\n"
)

// appendTerms writes the terms of a device. Neighbours that differ only in the topic
// are one term.
func appendTerms(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	rules, err := compile(e)
	if err != nil {
		return nil, err
	}
	if len(rules) == 0 {
		rules = []line{{deny: true, topic: "#"}}
	}
	for i, r := range rules {
		if i > 0 && rules[i-1].kind() == r.kind() {
			b = append(b, ',')
		} else {
			b = append(b, r.termHead()...)
			b = append(b, e.ID...)
			b = append(b, r.termAction()...)
		}
		if r.eq {
			b = append(b, `{eq,`...)
		}
		b = appendString(b, r.topic)
		if r.eq {
			b = append(b, '}')
		}
		if i+1 == len(rules) || rules[i+1].kind() != r.kind() {
			b = append(b, termTail+"\n"...)
		}
	}
	return b, nil
}

const termTail = "]}."

// kind is a line without its topic.
func (l line) kind() line {
	l.topic = ""
	return l
}

func (l line) termHead() string {
	if l.deny {
		return `{deny,{username,"`
	}
	return `{allow,{username,"`
}

func (l line) termAction() string {
	switch {
	case l.deny && !l.subscribe: // of a device without rights
		return `"},all,[`
	case l.subscribe:
		return `"},subscribe,[`
	}
	return `"},publish,[`
}

// appendString writes an Erlang string. The only characters with a meaning in it are
// the quote and the backslash.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}

// cutString reads what appendString writes.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '"' {
		return "", nil, false
	}
	var out strings.Builder
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '"':
			return out.String(), b[i+1:], true
		case '\\':
			if i++; i == len(b) {
				return "", nil, false
			}
		}
		out.WriteByte(b[i])
	}
	return "", nil, false
}

// readTerms yields the devices of imprint-acl.conf.
func readTerms(src fs.FS) iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		r := termReader{head: strings.SplitAfter(strings.TrimSuffix(aclHead, "\n"), "\n")}
		for text, err := range templates.Lines(src, ACLName, maxLine) {
			r.n++
			var done *templates.Entry
			if err == nil {
				done, err = r.line(text)
			}
			if err != nil {
				yield(templates.Entry{}, err)
				return
			}
			if done != nil && !yield(*done, nil) {
				return
			}
		}
		if !r.end {
			yield(templates.Entry{}, &lineError{ACLName, r.n, "the end is missing"})
		}
	}
}

// A termReader puts the terms of a device together. That they are the very ones that
// imprint writes for it shows when they are written again.
type termReader struct {
	n     int // lines read
	head  []string
	id    inventory.DeviceID
	rules []line
	text  []byte // of the device so far
	end   bool
}

// line takes one line, and returns the device before it if that has ended.
func (r *termReader) line(text []byte) (*templates.Entry, error) {
	switch {
	case r.n <= len(r.head):
		if string(text) != strings.TrimSuffix(r.head[r.n-1], "\n") {
			return nil, &lineError{ACLName, r.n, notOurs}
		}
		return nil, nil
	case r.end:
		return nil, &lineError{ACLName, r.n, "something comes after the end"}
	case string(text)+"\n" == aclTail:
		r.end = true
		return r.flush("")
	}
	id, rules, ok := parseTerm(text)
	if !ok {
		return nil, &lineError{ACLName, r.n, notOurs}
	}
	var done *templates.Entry
	var err error
	if id != r.id {
		done, err = r.flush(id)
	}
	r.rules, r.text = append(r.rules, rules...), append(append(r.text, text...), '\n')
	return done, err
}

// flush ends a device and begins another.
func (r *termReader) flush(id inventory.DeviceID) (*templates.Entry, error) {
	if r.id == "" {
		r.id = id
		return nil, nil
	}
	e := &templates.Entry{ID: r.id}
	if len(r.rules) == 1 && r.rules[0] == (line{deny: true, topic: "#"}) {
		r.rules = nil
	}
	ok := grants(e, r.rules)
	if same, err := appendTerms(nil, 0, e, nil); !ok || err != nil || !bytes.Equal(same, r.text) {
		return nil, &lineError{ACLName, r.n, "before it: " + notOurs}
	}
	r.id, r.rules, r.text = id, nil, r.text[:0]
	return e, nil
}

// parseTerm reads one term. It is not strict: what is read is written again.
func parseTerm(text []byte) (inventory.DeviceID, []line, bool) {
	var kind line
	rest, ok := bytes.CutPrefix(text, []byte(kind.termHead()))
	if !ok {
		kind.deny = true
		if rest, ok = bytes.CutPrefix(text, []byte(kind.termHead())); !ok {
			return "", nil, false
		}
	}
	name, rest, ok := bytes.Cut(rest, []byte(`"`))
	id, err := inventory.ParseDeviceID(string(name))
	if !ok || err != nil {
		return "", nil, false
	}
	rest = append([]byte(`"`), rest...)
	action := kind.termAction()
	if !bytes.HasPrefix(rest, []byte(action)) {
		kind.subscribe = true
		action = kind.termAction()
	}
	if rest, ok = bytes.CutPrefix(rest, []byte(action)); !ok {
		return "", nil, false
	}
	var rules []line
	for {
		l := kind
		if rest, l.eq = bytes.CutPrefix(rest, []byte("{eq,")); l.eq {
			l.topic, rest, ok = cutString(rest)
			rest = bytes.TrimPrefix(rest, []byte("}"))
		} else {
			l.topic, rest, ok = cutString(rest)
		}
		if !ok {
			return "", nil, false
		}
		rules = append(rules, l)
		if string(rest) == termTail {
			return id, rules, true
		}
		if rest, ok = bytes.CutPrefix(rest, []byte(",")); !ok {
			return "", nil, false
		}
	}
}
