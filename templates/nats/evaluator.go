package nats

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/imprint-iot/imprint/templates/proof"
)

// An evaluator reads an export the way the NATS server does: a second reading of its
// source that shares nothing with what writes or parses the files, down to what the
// server makes of files that imprint would not write.
type evaluator struct {
	open  string // why everything is allowed; empty: it is not
	users map[string]*permissions
}

// permissions are those of one user. A nil list of what is allowed allows all.
type permissions struct {
	pub, sub             [][]string // tokens of the subjects that are allowed
	notPub, notSub       [][]string
	anyPub, anySub, none bool // none: the user cannot connect over MQTT
}

// newEvaluator reads an export.
func newEvaluator(src fs.FS) (proof.Evaluator, error) {
	conf, err := readConf(src, ConfName)
	if err != nil {
		return nil, err
	}
	e := &evaluator{users: map[string]*permissions{}}
	_, maps := find(conf, "mqtt", "tls", "verify_and_map").(bool)
	accounts, _ := find(conf, "accounts").(map[string]any)
	for _, a := range accounts {
		users, _ := find(a, "users").([]any)
		for _, u := range users {
			name, _ := find(u, "user").(string)
			e.users[name] = readPermissions(u)
		}
	}
	if len(e.users) == 0 {
		e.open = "there are no users"
	}
	if !maps {
		return e, nil
	}
	byDevice := map[string]*permissions{}
	for name, p := range e.users {
		if i := strings.LastIndex(name, "/device/"); strings.HasPrefix(name, "spiffe://") && i > 0 {
			byDevice[name[i+len("/device/"):]] = p
		}
	}
	e.users = byDevice
	return e, nil
}

// find follows keys through maps.
func find(v any, keys ...string) any {
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

// readPermissions is parseUserPermissions and parseSubjectPermission of
// server/opts.go, with what setPermissions of server/client.go makes of it.
func readPermissions(user any) *permissions {
	p := &permissions{}
	if types, ok := find(user, "allowed_connection_types").([]any); ok {
		p.none = true
		for _, t := range types {
			p.none = p.none && t != "MQTT"
		}
	}
	list := func(direction, kind string) ([][]string, bool) {
		var out [][]string
		v := find(user, "permissions", direction, kind)
		if s, ok := v.(string); ok {
			v = []any{s}
		}
		subjects, ok := v.([]any)
		for _, s := range subjects {
			text, _ := s.(string)
			out = append(out, strings.Split(text, "."))
		}
		return out, ok
	}
	var ok bool
	p.pub, ok = list("publish", "allow")
	p.anyPub = !ok || len(p.pub) == 0 // an empty list stays nil in parsePermSubjects
	p.sub, _ = list("subscribe", "allow")
	p.anySub = len(p.sub) == 0
	p.notPub, _ = list("publish", "deny")
	p.notSub, _ = list("subscribe", "deny")
	return p
}

// Answer implements [proof.Evaluator]. Wills and retained messages are published like
// any other.
func (e *evaluator) Answer(q proof.Question) (proof.Answer, error) {
	if e.open != "" {
		return proof.Allowed, nil
	}
	p := e.users[q.Device]
	if p == nil || p.none {
		return proof.Denied, nil
	}
	var allowed bool
	switch q.Verb {
	case proof.Subscribe:
		allowed = p.maySubscribe(subject(q.Topic))
	case proof.Receive:
		allowed = p.reached(subject(q.Topic))
	case proof.Publish, proof.Will, proof.Retain:
		s := subject(q.Topic)
		allowed = s != nil && (p.anyPub || anyMatch(p.pub, s)) && !anyMatch(p.notPub, s)
	case proof.Connect:
		return proof.Unknown, nil
	}
	if allowed {
		return proof.Allowed, nil
	}
	return proof.Denied, nil
}

// subject is the tokens of a topic or filter, character by character as
// mqttToNATSSubjectConversion of server/mqtt.go describes it; nil if there are none.
func subject(text string) []string {
	if strings.ContainsAny(text, " \t\n\r\f\x7f") {
		return nil
	}
	var out strings.Builder
	last := byte(0)
	put := func(s string) {
		out.WriteString(s)
		last = s[len(s)-1]
	}
	for i := range len(text) {
		switch c := text[i]; {
		case c == '/' && (i == 0 || last == '.'):
			put("/.")
		case c == '/' && (i == len(text)-1 || text[i+1] == '/'):
			put("./")
		case c == '/':
			put(".")
		case c == '.':
			put("//")
		case c == '+':
			put("*")
		case c == '#':
			put(">")
		default:
			put(string([]byte{c}))
		}
	}
	if last == '.' {
		put("/")
	}
	return strings.Split(out.String(), ".")
}

// maySubscribe asks as the server does for a filter: for its subject and, if that
// ends in >, for the level above.
func (p *permissions) maySubscribe(s []string) bool {
	if s == nil || s[0] == "$MQTT" {
		return false
	}
	for i, token := range s {
		if token == ">" && i != len(s)-1 {
			return false // no subject
		}
	}
	may := func(s []string) bool { return (p.anySub || anyMatch(p.sub, s)) && !anyMatch(p.notSub, s) }
	return may(s) && (len(s) == 1 || s[len(s)-1] != ">" || may(s[:len(s)-1]))
}

// reached reports whether a message to a subject is delivered for some filter that
// may be subscribed to: each allowed subject as it is, with its last * as a >, and
// with the first token in the place of a wildcard there.
func (p *permissions) reached(s []string) bool {
	if s == nil {
		return false
	}
	if p.anySub {
		return true
	}
	for _, r := range p.sub {
		n := len(r)
		for _, f := range [][]string{
			r,
			append(append([]string{}, r[:n-1]...), ">"),
			append(append([]string{}, r[:max(n-2, 0)]...), ">"),
			append([]string{s[0]}, r[1:]...),
			{s[0], ">"},
		} {
			hidden := strings.HasPrefix(s[0], "$") && (f[0] == "*" || f[0] == ">")
			if !hidden && p.maySubscribe(f) && match(f, s) {
				return true
			}
		}
	}
	return false
}

func anyMatch(rules [][]string, s []string) bool {
	for _, r := range rules {
		if match(r, s) {
			return true
		}
	}
	return false
}

// match is what Sublist.Match finds for a subject that is taken literally, wildcards
// in it too (matchLevel of server/sublist.go).
func match(rule, s []string) bool {
	for i, token := range rule {
		switch {
		case i >= len(s):
			return false
		case token == ">":
			return i == len(rule)-1
		case token != "*" && token != s[i]:
			return false
		}
	}
	return len(rule) == len(s)
}

// A confReader reads the part of the grammar of package conf that matters here: maps,
// arrays, quoted strings, words, comments and include.
type confReader struct {
	src  fs.FS
	dir  string
	text string
}

var errConf = errors.New("configuration cannot be read")

func readConf(src fs.FS, name string) (map[string]any, error) {
	b, err := fs.ReadFile(src, name)
	if err != nil {
		return nil, err
	}
	r := &confReader{src: src, dir: path.Dir(name), text: string(b)}
	m, err := r.pairs(false)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return m, nil
}

// space skips blanks, separators and comments.
func (r *confReader) space() {
	for {
		r.text = strings.TrimLeft(r.text, " \t\r\n,;")
		if !strings.HasPrefix(r.text, "#") && !strings.HasPrefix(r.text, "//") {
			return
		}
		_, r.text, _ = strings.Cut(r.text, "\n")
	}
}

func (r *confReader) take(prefix string) bool {
	rest, ok := strings.CutPrefix(r.text, prefix)
	r.text = rest
	return ok
}

// pairs reads keys and values up to the end of a map, or of the file.
func (r *confReader) pairs(inside bool) (map[string]any, error) {
	out := map[string]any{}
	for {
		r.space()
		switch {
		case r.text == "" && !inside, inside && r.take("}"):
			return out, nil
		case r.text == "":
			return nil, errConf
		}
		key, err := r.word()
		if err != nil {
			return nil, err
		}
		r.text = strings.TrimLeft(r.text, " \t")
		if key == "include" {
			name, err := r.word()
			if err != nil {
				return nil, err
			}
			more, err := readConf(r.src, path.Join(r.dir, name))
			if err != nil {
				return nil, err
			}
			for k, v := range more {
				out[k] = v
			}
			continue
		}
		if r.take(":") || r.take("=") {
			r.text = strings.TrimLeft(r.text, " \t")
		}
		if out[strings.ToLower(key)], err = r.value(); err != nil {
			return nil, err
		}
	}
}

func (r *confReader) value() (any, error) {
	switch {
	case r.take("{"):
		return r.pairs(true)
	case r.take("["):
		list := []any{}
		for {
			r.space()
			if r.take("]") {
				return list, nil
			}
			v, err := r.value()
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
	}
	quoted := strings.HasPrefix(r.text, `"`)
	word, err := r.word()
	if !quoted && (word == "true" || word == "on") {
		return true, err
	}
	return word, err
}

// word reads a quoted string or a bare word.
func (r *confReader) word() (string, error) {
	if !r.take(`"`) {
		i := strings.IndexAny(r.text, " \t\r\n,;:={}[]\"")
		if i <= 0 {
			return "", errConf
		}
		w := r.text[:i]
		r.text = r.text[i:]
		return w, nil
	}
	var b strings.Builder
	for i := 0; i < len(r.text); i++ {
		switch r.text[i] {
		case '"':
			r.text = r.text[i+1:]
			return b.String(), nil
		case '\\':
			if i++; i == len(r.text) || r.text[i] != '"' && r.text[i] != '\\' {
				return "", errConf
			}
			b.WriteByte(r.text[i])
		default:
			b.WriteByte(r.text[i])
		}
	}
	return "", errConf
}
