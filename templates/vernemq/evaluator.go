package vernemq

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"

	"github.com/imprint-iot/imprint/templates/proof"
)

// An evaluator reads an export the way VerneMQ does: a second reading of its source
// that shares nothing with what writes or parses the files, down to the mistakes that
// the broker makes with files that imprint would not write.
type evaluator struct {
	everybody access            // rules before the first user
	users     map[string]access // by user name or, with a database, by client identifier
	open      string            // why everything is allowed; empty: it is not
}

// access are the rules of one user, split at the slashes.
type access struct{ read, write [][]string }

// newEvaluator reads an export. Form "webhooks" has nothing to read: every answer is
// unknown.
func newEvaluator(src fs.FS) (proof.Evaluator, error) {
	text, err := fs.ReadFile(src, "vernemq.conf")
	if err != nil {
		return nil, err
	}
	conf := map[string]string{}
	for line := range strings.SplitSeq(string(text), "\n") {
		if k, v, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(strings.TrimSpace(line), "#") {
			conf[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	e := &evaluator{users: map[string]access{}, open: whyOpen(conf)}
	switch {
	case conf["plugins.vmq_webhooks"] == "on":
		return elsewhere{}, nil
	case conf["vmq_diversity.auth_postgres.enabled"] == "on" && conf["plugins.vmq_diversity"] == "on":
		err = e.readSQL(src)
	case conf["plugins.vmq_acl"] == "on":
		err = e.readACL(src)
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

// whyOpen says what of a configuration lets anybody in as anybody.
func whyOpen(conf map[string]string) string {
	if conf["allow_anonymous"] != "off" {
		return "allow_anonymous is not off"
	}
	for key := range conf {
		listener, ok := strings.CutSuffix(key, ".allow_anonymous_override")
		if !ok || conf[key] != "on" {
			continue
		}
		database := conf["vmq_diversity.auth_postgres.enabled"] == "on"
		if database || conf[listener+".require_certificate"] != "on" || conf[listener+".use_identity_as_username"] != "on" {
			return listener + " asks neither for a certificate nor for a password"
		}
	}
	return ""
}

// readACL reads vmq.acl as parse_acl_line of vmq_acl.erl does: by the beginnings of
// lines, and up to the first that it does not know.
func (e *evaluator) readACL(src fs.FS) error {
	text, err := fs.ReadFile(src, "vmq.acl")
	if err != nil {
		return err
	}
	user, all := "", true
	for line := range strings.SplitSeq(strings.TrimSuffix(string(text), "\n"), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		if name, ok := strings.CutPrefix(line, "user "); ok {
			user, all = strings.Trim(name, " \t"), false
			continue
		}
		rest, ok := strings.CutPrefix(line, "topic ")
		if !ok {
			return fmt.Errorf("vmq.acl: %.128q ends the loader", line)
		}
		read, write := true, true
		if t, ok := strings.CutPrefix(rest, "read "); ok {
			rest, write = t, false
		} else if t, ok := strings.CutPrefix(rest, "write "); ok {
			rest, read = t, false
		}
		words := strings.Split(strings.Trim(rest, " \t"), "/")
		a := e.users[user]
		if all {
			a = e.everybody
		}
		if read {
			a.read = append(a.read, words)
		}
		if write {
			a.write = append(a.write, words)
		}
		if all {
			e.everybody = a
		} else {
			e.users[user] = a
		}
	}
	return nil
}

// readSQL takes the rows from the statements, by a tokenizer of SQL that knows
// string literals and nothing else.
func (e *evaluator) readSQL(src fs.FS) error {
	text, err := fs.ReadFile(src, "vmq_auth_acl.sql")
	if err != nil {
		return err
	}
	for statement := range strings.SplitSeq(string(text), "\nINSERT INTO imprint_fleet VALUES") {
		literals := literals(statement)
		if !strings.HasPrefix(statement, " (") || len(literals) < 4 {
			continue
		}
		var a access
		for i, to := range []*[][]string{&a.write, &a.read} {
			var list []map[string]string
			if err := json.Unmarshal([]byte(literals[2+i]), &list); err != nil {
				return fmt.Errorf("vmq_auth_acl.sql: row of %.64q: %w", literals[0], err)
			}
			for _, rule := range list {
				words := strings.Split(rule["pattern"], "/")
				for j, w := range words { // subst of vmq_diversity_cache.erl; name and client are one
					if w == "%u" || w == "%c" {
						words[j] = literals[0]
					} else if w == "%m" {
						words[j] = ""
					}
				}
				*to = append(*to, words)
			}
		}
		e.users[literals[0]] = a
	}
	return nil
}

// literals returns the string literals of a statement, in order.
func literals(sql string) []string {
	var out []string
	var b strings.Builder
	inside := false
	for i := 0; i < len(sql); i++ {
		switch c := sql[i]; {
		case c == '\'' && inside && i+1 < len(sql) && sql[i+1] == '\'':
			b.WriteByte(c)
			i++
		case c == '\'':
			if inside {
				out = append(out, b.String())
				b.Reset()
			}
			inside = !inside
		case c == ';' && !inside:
			return out
		case inside:
			b.WriteByte(c)
		}
	}
	return out
}

// Answer implements [proof.Evaluator]. Wills and retained messages are published
// like any other (check_will of vmq_mqtt_fsm.erl calls auth_on_publish).
func (e *evaluator) Answer(q proof.Question) (proof.Answer, error) {
	if e.open != "" {
		return proof.Allowed, nil
	}
	words := strings.Split(q.Topic, "/")
	mine := e.users[q.Device]
	allowed := false
	switch q.Verb {
	case proof.Publish, proof.Will, proof.Retain:
		allowed = anyMatch(words, e.everybody.write) || anyMatch(words, mine.write)
	case proof.Subscribe:
		allowed = anyMatch(words, e.everybody.read) || anyMatch(words, mine.read)
	case proof.Connect:
		return proof.Unknown, nil // it is asked what devices do that are connected
	case proof.Receive:
		allowed = reached(words, e.everybody.read) || reached(words, mine.read)
	}
	if allowed {
		return proof.Allowed, nil
	}
	return proof.Denied, nil
}

func anyMatch(words []string, rules [][]string) bool {
	for _, r := range rules {
		if match(words, r) {
			return true
		}
	}
	return false
}

// match is vmq_topic:match/2, clause by clause. The first argument may be a filter as
// well as a topic.
func match(words, rule []string) bool {
	switch {
	case len(words) == 0 && len(rule) == 0:
		return true
	case len(words) > 0 && len(rule) > 0 && (words[0] == rule[0] || rule[0] == "+"):
		return match(words[1:], rule[1:])
	default:
		return len(rule) == 1 && rule[0] == "#"
	}
}

// reached reports whether there is a filter that the rules allow and that a message
// to the topic is delivered for. Nothing is checked at the delivery. For each rule
// the furthest filters are tried: the rule itself; what it allows with its last + as
// a #; and, as the matcher knows nothing of $, the rule with the first level of the
// topic.
func reached(name []string, rules [][]string) bool {
	for _, r := range rules {
		candidates := [][]string{r}
		n := len(r)
		if r[n-1] == "+" {
			candidates = append(candidates, append(append([]string{}, r[:n-1]...), "#"))
		}
		if n > 1 && r[n-1] == "#" && r[n-2] == "+" {
			candidates = append(candidates, append(append([]string{}, r[:n-2]...), "#"))
		}
		for _, c := range candidates {
			exact := append([]string{name[0]}, c[min(1, len(c)):]...)
			if c[0] == "#" {
				exact = []string{name[0], "#"}
			}
			for _, f := range [][]string{c, exact} {
				if match(f, r) && delivered(name, f) {
					return true
				}
			}
		}
	}
	return false
}

// delivered reports whether a subscription to a filter gets a message to a topic
// (MQTT 5.0 §4.7).
func delivered(name, filter []string) bool {
	if strings.HasPrefix(name[0], "$") && (filter[0] == "+" || filter[0] == "#") {
		return false
	}
	for i, f := range filter {
		switch {
		case f == "#":
			return true
		case i >= len(name) || f != "+" && f != name[i]:
			return false
		}
	}
	return len(name) == len(filter)
}

// elsewhere is an evaluator of files that say nothing of rights.
type elsewhere struct{}

// Answer implements [proof.Evaluator].
func (elsewhere) Answer(proof.Question) (proof.Answer, error) { return proof.Unknown, nil }
