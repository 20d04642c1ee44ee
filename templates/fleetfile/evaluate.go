package fleetfile

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/templates/proof"
)

// Rights is what a module of imprint makes of the rights in its file: a second reading,
// apart from what writes and parses it. By device.
type Rights map[string]struct {
	Publish   []string `json:"pub"`
	Subscribe []string `json:"sub"`
}

// Evaluator reads the file as the modules do.
func (file File) Evaluator(src fs.FS) (proof.Evaluator, error) {
	text, err := fs.ReadFile(src, Name)
	if err != nil {
		return nil, err
	}
	var all struct {
		Format  string
		Devices []map[string]json.RawMessage
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("reading %s: %w", Name, err)
	}
	if all.Format != file.Format {
		return nil, fmt.Errorf("reading %s: format %.64q", Name, all.Format)
	}
	r := Rights{}
	for _, d := range all.Devices {
		var id, state string
		one := r[""]
		for key, to := range map[string]any{"id": &id, "state": &state, "pub": &one.Publish, "sub": &one.Subscribe} {
			if err := json.Unmarshal(d[key], to); err != nil {
				return nil, fmt.Errorf("reading %s: device %.64q: %w", Name, id, err)
			}
		}
		if state == "active" {
			r[id] = one
		}
	}
	return r, nil
}

// Answer implements [proof.Evaluator]. Wills and retained messages are publications; what
// is received is looked at when it is delivered, whatever was subscribed to.
func (r Rights) Answer(q proof.Question) (proof.Answer, error) {
	rules := r[q.Device].Subscribe
	if q.Verb == proof.Publish || q.Verb == proof.Will || q.Verb == proof.Retain {
		rules = r[q.Device].Publish
	}
	topic := strings.Split(q.Topic, "/")
	if q.Verb != proof.Subscribe && strings.ContainsAny(q.Topic, "+#") {
		return proof.Denied, nil
	}
	if slices.ContainsFunc(rules, func(rule string) bool {
		words := strings.Split(rule, "/")
		wild := words[0] == "+" || words[0] == "#"
		return !(wild && strings.HasPrefix(q.Topic, "$")) && within(topic, words)
	}) {
		return proof.Allowed, nil
	}
	return proof.Denied, nil
}

// within reports whether all that a filter matches is matched by a rule, level by level
// (MQTT 3.1.1 §4.7). A topic is a filter that matches itself.
func within(filter, rule []string) bool {
	switch {
	case len(rule) == 1 && rule[0] == "#":
		return true
	case len(filter) == 0:
		return len(rule) == 0
	case len(rule) == 0 || filter[0] == "#":
		return false
	case rule[0] != "+" && rule[0] != filter[0]:
		return false
	}
	return within(filter[1:], rule[1:])
}
