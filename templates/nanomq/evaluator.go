package nanomq

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/templates/proof"
)

// An evaluator reads an export the way NanoMQ does: a second reading of its source that
// shares nothing with what writes or parses the files, down to what the broker makes of
// files that imprint would not write.
type evaluator struct {
	rules   []map[string]any
	noMatch bool   // what nobody has decided is allowed
	open    string // why everything is allowed; empty: it is not
}

// newEvaluator reads an export. Form "http" has nothing to read: every answer is
// unknown.
func newEvaluator(src fs.FS) (proof.Evaluator, error) {
	text, err := fs.ReadFile(src, "nanomq.conf")
	if err != nil {
		return nil, err
	}
	conf := settings(string(text))
	e := &evaluator{noMatch: conf["auth.no_match"] != "deny", open: whyOpen(conf)}
	include, ok := conf["auth.acl.include"]
	switch {
	case !ok && conf["auth.http_auth.acl_req.url"] != "" && e.open == "":
		return elsewhere{}, nil
	case !ok:
		e.open = "nobody looks at topics"
		return e, nil
	}
	acl, err := fs.ReadFile(src, include[strings.LastIndexByte(include, '/')+1:])
	if err != nil {
		return nil, err
	}
	return e, e.read(string(acl))
}

// settings are the scalars of a configuration by their paths, as far as there is one
// key or brace on a line, or an object on a line of its own.
func settings(text string) map[string]string {
	out := map[string]string{}
	var path []string
	pair := regexp.MustCompile(`([\w.-]+)\s*(?:=|\s)\s*("[^"]*"|[^\s,{}]+)`)
	for l := range strings.Lines(text) {
		l = strings.TrimSpace(l)
		key, object, opens := strings.Cut(l, "{")
		key = strings.TrimRight(key, " =")
		switch {
		case l == "" || l[0] == '#':
		case opens && strings.HasSuffix(object, "}"):
			for _, m := range pair.FindAllStringSubmatch(strings.TrimSuffix(object, "}"), -1) {
				out[strings.Join(append(slices.Clone(path), key, m[1]), ".")] = strings.Trim(m[2], `"`)
			}
		case opens:
			path = append(path, key)
		case l == "}":
			path = path[:max(0, len(path)-1)]
		default:
			if m := pair.FindStringSubmatch(l); m != nil {
				out[strings.Join(append(slices.Clone(path), m[1]), ".")] = strings.Trim(m[2], `"`)
			}
		}
	}
	return out
}

// whyOpen says what of a configuration lets anybody in as anybody.
func whyOpen(conf map[string]string) string {
	auth := "auth.http_auth.auth_req."
	switch {
	case conf["auth.allow_anonymous"] != "false":
		return "allow_anonymous is not false"
	case conf[auth+"url"] == "":
		return "there are no users, and nobody is asked for them: any name and password will do"
	case conf[auth+"headers.content-type"] != "application/json" && conf[auth+"headers.include"] == "":
		return "a user name can add fields to a form"
	}
	for key, v := range conf {
		listener, ok := strings.CutSuffix(key, ".verify_peer")
		if ok && v == "true" && conf[listener+".fail_if_no_peer_cert"] != "true" {
			return listener + ": a certificate of anybody's making is taken for a good one"
		}
		if ok = strings.HasPrefix(key, "listeners.tcp") || strings.HasPrefix(key, "listeners.ws."); ok {
			return key + ": a listener without TLS"
		}
	}
	return ""
}

// read reads the list of rules: objects of JSON, with or without commas.
func (e *evaluator) read(text string) error {
	_, list, ok := strings.Cut(text, "rules = [")
	end := strings.LastIndexByte(list, ']')
	if !ok || end < 0 {
		return errors.New("nanomq_acl.conf: there is no list of rules")
	}
	for rest := list[:end]; ; {
		if rest = strings.TrimLeft(rest, " \t\r\n,"); rest == "" {
			return nil
		}
		d := json.NewDecoder(strings.NewReader(rest))
		var r map[string]any
		if err := d.Decode(&r); err != nil {
			return fmt.Errorf("nanomq_acl.conf: %w", err)
		}
		if topics, ok := r["topics"].([]any); ok && len(topics) == 0 {
			return errors.New("nanomq_acl.conf: an empty list of topics ends the broker")
		}
		for _, key := range []string{"and", "or", "ipaddr", "ipaddrs", "clientid"} {
			if _, ok := r[key]; ok {
				return fmt.Errorf("nanomq_acl.conf: %q is not read here", key)
			}
		}
		if p := r["permit"]; p == "allow" || p == "deny" {
			e.rules = append(e.rules, r) // the broker passes over others
		}
		rest = rest[d.InputOffset():]
	}
}

// Answer implements [proof.Evaluator]. Wills and retained messages are published like
// any other (server_cb of broker.c calls handle_pub for a will).
func (e *evaluator) Answer(q proof.Question) (proof.Answer, error) {
	if e.open != "" {
		return proof.Allowed, nil
	}
	allowed := false
	switch q.Verb {
	case proof.Publish, proof.Will, proof.Retain:
		allowed = e.decide(q.Device, "publish", q.Topic)
	case proof.Subscribe:
		allowed = e.decide(q.Device, "subscribe", q.Topic)
	case proof.Receive:
		allowed = e.reached(q.Device, strings.Split(q.Topic, "/"), nil)
	case proof.Connect:
		return proof.Unknown, nil
	}
	if allowed {
		return proof.Allowed, nil
	}
	return proof.Denied, nil
}

// decide is auth_acl of acl_handler.c.
func (e *evaluator) decide(device, action, topic string) bool {
	for _, r := range e.rules {
		if a, ok := r["action"].(string); ok && a != "pubsub" && a != action {
			continue
		}
		if !isFor(r, device) {
			continue
		}
		if topics, ok := r["topics"].([]any); ok && !slices.ContainsFunc(topics, func(t any) bool { return met(t, topic, device) }) {
			continue
		}
		return r["permit"] == "allow"
	}
	return e.noMatch
}

// isFor reports whether a rule is for a device. Without a user name it is for everybody.
func isFor(r map[string]any, device string) bool {
	name, ok := r["username"].(string)
	return !ok || name == "#" || name == device
}

// met reports whether a topic of a rule is met by the topic or filter of a client.
func met(rule any, topic, device string) bool {
	text, _ := rule.(string)
	for _, name := range []string{"${username}", "${clientid}"} {
		text = strings.ReplaceAll(text, name, device)
	}
	if literal, ok := strings.CutPrefix(text, "@"); ok && literal != "" {
		return literal == topic
	}
	return text == topic || filter(strings.Split(text, "/"), strings.Split(topic, "/"))
}

// filter is check_ifwildcard of mqtt_parser.c. The second argument may be a filter, too.
func filter(w, n []string) bool {
	for len(w) > 0 && len(n) > 0 {
		if w[0] != n[0] {
			if w[0] == "#" {
				return true
			} else if w[0] != "+" {
				return false
			}
		}
		w, n = w[1:], n[1:]
	}
	if len(w) > 0 && w[0] == "#" {
		return true
	}
	return len(w) == 0 && len(n) == 0
}

// reached reports whether there is a filter that the device may subscribe to and that
// a message to the topic is delivered for. Nothing is checked at the delivery. All the
// filters there are for a topic are tried: each level itself or a +, and a # in place
// of any number of the last ones; also for topics that begin with $. What no rule begins
// like is not tried further.
func (e *evaluator) reached(device string, name, try []string) bool {
	if !e.noMatch && !slices.ContainsFunc(e.rules, func(r map[string]any) bool { return isFor(r, device) && begins(r, try) }) {
		return false
	}
	with := func(level string) []string { return append(slices.Clone(try), level) }
	if e.decide(device, "subscribe", strings.Join(with("#"), "/")) {
		return true
	}
	if len(try) == len(name) {
		return e.decide(device, "subscribe", strings.Join(try, "/"))
	}
	return e.reached(device, name, with(name[len(try)])) || e.reached(device, name, with("+"))
}

// begins reports whether a rule allows something that begins with these levels, as far
// as that can be told without knowing the rest.
func begins(r map[string]any, levels []string) bool {
	if r["permit"] != "allow" {
		return false
	}
	topics, ok := r["topics"].([]any)
	return !ok || slices.ContainsFunc(topics, func(t any) bool {
		text, _ := t.(string)
		for i, w := range strings.Split(text, "/") {
			switch {
			case i == len(levels), w == "#", strings.ContainsAny(w, "$@"):
				return true
			case w != "+" && w != levels[i]:
				return false
			}
		}
		return true
	})
}

// elsewhere is an evaluator of files that say nothing of rights.
type elsewhere struct{}

// Answer implements [proof.Evaluator].
func (elsewhere) Answer(proof.Question) (proof.Answer, error) { return proof.Unknown, nil }
