package flashmq

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/imprint-iot/imprint/templates/proof"
)

// An evaluator reads an export the way FlashMQ does: a second reading of its source
// (acltree.cpp, plugin.cpp) that shares nothing with what writes or parses the files.
type evaluator struct {
	nobody   []grant // before the first user: clients without a name
	users    map[string][]grant
	patterns []grant
	open     bool // nothing is checked
}

// A grant is a line of the ACL file.
type grant struct {
	read, write, deny bool
	levels            []string
}

func newEvaluator(src fs.FS) (proof.Evaluator, error) {
	text, err := fs.ReadFile(src, "flashmq.conf")
	if err != nil {
		return nil, err
	}
	e := &evaluator{users: map[string][]grant{}}
	acl := false
	for line := range strings.SplitSeq(string(text), "\n") {
		words := strings.Fields(line)
		if len(words) < 2 || strings.HasPrefix(words[0], "#") {
			continue
		}
		switch words[0] {
		case "mosquitto_acl_file":
			acl = true
		case "allow_anonymous":
			e.open = e.open || words[1] != "false"
		}
	}
	if !acl {
		e.open = true // aclCheckFromMosquittoAclFile: without a file everything succeeds
		return e, nil
	}
	return e, e.read(src)
}

// read is loadMosquittoAclFile. With one bad line the broker keeps what it had; what
// that is nobody can say, so it is an error.
func (e *evaluator) read(src fs.FS) error {
	text, err := fs.ReadFile(src, "acl")
	if err != nil {
		return err
	}
	user := ""
	for n, line := range strings.Split(string(text), "\n") {
		line = strings.Trim(line, " \t\n\v\f\r")
		if line == "" || line[0] == '#' {
			continue
		}
		f := split(line)
		bad := fmt.Errorf("acl: line %d: FlashMQ does not load the file", n+1)
		if len(f) < 2 {
			return bad
		}
		kind := strings.ToLower(f[0])
		if kind == "user" {
			user = f[1]
			continue
		}
		g := grant{read: true, write: true}
		filter := f[len(f)-1]
		if len(f) == 3 {
			switch strings.ToLower(f[1]) {
			case "read":
				g.write = false
			case "write":
				g.read = false
			case "deny":
				g = grant{deny: true}
			case "readwrite":
			default:
				return bad
			}
		}
		if kind != "topic" && kind != "pattern" || len(f) > 3 || !validFilter(filter) {
			return bad
		}
		g.levels = strings.Split(filter, "/")
		switch {
		case kind == "pattern":
			e.patterns = append(e.patterns, g)
		case user == "":
			e.nobody = append(e.nobody, g)
		default:
			e.users[user] = append(e.users[user], g)
		}
	}
	return nil
}

// split is splitToVector(line, ' ', 3, false): up to three words, without empty ones,
// and then the rest, which makes a fourth.
func split(line string) []string {
	var out []string
	for len(out) < 3 {
		word, rest, ok := strings.Cut(line, " ")
		if !ok {
			break
		}
		if word != "" {
			out = append(out, word)
		}
		line = rest
	}
	if line != "" {
		out = append(out, line)
	}
	return out
}

// validFilter is isValidSubscribePath.
func validFilter(s string) bool {
	wildcard, slash, pound := true, false, false
	for _, c := range []byte(s) {
		if !wildcard && (c == '+' || c == '#') || slash && c != '/' || pound {
			return false
		}
		wildcard, slash, pound = c == '/', c == '+', c == '#'
	}
	return true
}

// Answer implements [proof.Evaluator]. A will is looked at twice: as something to
// read when it is registered (any access but write is read), as something to write
// when it is sent.
func (e *evaluator) Answer(q proof.Question) (proof.Answer, error) {
	read, write := e.permission(q.Device, strings.Split(q.Topic, "/"))
	allowed := false
	switch q.Verb {
	case proof.Publish, proof.Retain:
		allowed = write
	case proof.Receive:
		allowed = read
	case proof.Will:
		allowed = read && write
	case proof.Subscribe, proof.Connect:
		// A subscription is always granted, whatever is delivered then; and it is
		// asked what devices do that are connected.
		return proof.Unknown, nil
	}
	if allowed || e.open {
		return proof.Allowed, nil
	}
	return proof.Denied, nil
}

// permission is findPermission of a client whose identifier is its name: all lines
// that match count together, and one deny among them denies.
func (e *evaluator) permission(name string, topic []string) (read, write bool) {
	mine := e.users[name]
	if name == "" && len(e.nobody) > 0 {
		mine = e.nobody
	}
	for i, grants := range [][]grant{mine, e.patterns} {
		for _, g := range grants {
			if !matches(g.levels, topic, name, i == 1) {
				continue
			}
			if g.deny {
				return false, false
			}
			read, write = read || g.read, write || g.write
		}
	}
	return read, write
}

// matches walks as findPermissionRecursive does. A # stands for one level or more, at
// the start also for one that begins with $.
func matches(rule, topic []string, name string, pattern bool) bool {
	for i, r := range rule {
		switch {
		case i == len(topic):
			return false
		case r == "#":
			return true
		case r == "+", r == topic[i]:
		case pattern && (r == "%u" || r == "%c") && topic[i] == name:
		default:
			return false
		}
	}
	return len(rule) == len(topic)
}
