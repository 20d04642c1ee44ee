package mochi

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"github.com/imprint-iot/imprint/templates/proof"
)

// An evaluator reads an export as a mochi server with the hook does. It shares nothing
// with the exporter or the hook: rules are regular expressions here.
type evaluator map[string]*rights

// rights are those of one device.
type rights struct{ publish, receive []*regexp.Regexp }

// newEvaluator reads an export.
func newEvaluator(src fs.FS) (proof.Evaluator, error) {
	text, err := fs.ReadFile(src, DevicesName)
	if err != nil {
		return nil, err
	}
	var fleet struct {
		Devices []map[string]any `json:"devices"`
	}
	if err := json.Unmarshal(text, &fleet); err != nil {
		return nil, fmt.Errorf("reading %s: %w", DevicesName, err)
	}
	e := evaluator{}
	for _, d := range fleet.Devices {
		r := &rights{}
		for key, to := range map[string]*[]*regexp.Regexp{"publish": &r.publish, "receive": &r.receive} {
			list, _ := d[key].([]any)
			for _, f := range list {
				x, err := pattern(fmt.Sprint(f))
				if err != nil {
					return nil, err
				}
				*to = append(*to, x)
			}
		}
		e[fmt.Sprint(d["id"])] = r
	}
	return e, nil
}

// pattern is a rule as a regular expression over the text of topics and filters. A +
// stands for a level, and for a + there, but for no #; a # for all that follows. At
// the start neither stands for a level that begins with $.
func pattern(rule string) (*regexp.Regexp, error) {
	var b strings.Builder
	b.WriteString("^")
	levels := strings.Split(rule, "/")
	for i, level := range levels {
		switch {
		case level == "#" && i == 0:
			b.WriteString(`([^$].*)?`)
			continue
		case level == "#":
			b.WriteString(`(/.*)?`)
			continue
		case i > 0:
			b.WriteString("/")
		}
		switch {
		case level == "+" && i == 0:
			b.WriteString(`([^$/#][^/#]*)?`)
		case level == "+":
			b.WriteString(`[^/#]*`)
		default:
			b.WriteString(regexp.QuoteMeta(level))
		}
	}
	return regexp.Compile(b.String() + "$")
}

// Answer implements [proof.Evaluator]. What a device may receive it may subscribe to
// by its name, and each delivery is checked.
func (e evaluator) Answer(q proof.Question) (proof.Answer, error) {
	r := e[q.Device]
	if r == nil {
		return proof.Denied, nil
	}
	rules := r.receive
	switch q.Verb {
	case proof.Publish, proof.Will, proof.Retain:
		rules = r.publish
		if strings.ContainsAny(q.Topic, "+#") || strings.HasPrefix(strings.ToUpper(q.Topic), "$SYS") {
			return proof.Denied, nil
		}
	case proof.Connect:
		return proof.Unknown, nil
	case proof.Receive, proof.Subscribe:
	}
	for _, x := range rules {
		if x.MatchString(q.Topic) {
			return proof.Allowed, nil
		}
	}
	return proof.Denied, nil
}
