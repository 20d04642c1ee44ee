package foreign

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/imprint-iot/imprint/inventory/topic"
)

// lines calls take with each line of a file, numbered from 1, without its end.
func (b *builder) lines(t *tree, name string, take func(at place, line string) error) error {
	return t.stream(name, func(r io.Reader) error {
		s := bufio.NewScanner(r)
		s.Buffer(make([]byte, 1<<14), maxLine)
		at := place{file: name}
		for s.Scan() {
			if at.line++; at.line%4096 == 0 && b.cancelled() != nil {
				return b.cancelled()
			}
			if err := take(at, strings.TrimSuffix(s.Text(), "\r")); err != nil {
				return err
			}
		}
		if s.Err() != nil {
			return fmt.Errorf("after line %d: %w", at.line, s.Err())
		}
		return nil
	})
}

// mosquitto reads a password file and an access list, either of which may be
// missing. If there are several, mosquitto.conf says which.
func (b *builder) mosquitto(t *tree) error {
	passwords, acl, err := b.mosquittoFiles(t)
	if err != nil {
		return err
	}
	if passwords != "" {
		if err := b.lines(t, passwords, b.passwordLine); err != nil {
			return err
		}
	}
	if acl == "" {
		b.find(Error, "no-acl", "", place{file: passwords}, "there is no access list: Mosquitto then allows every topic to everybody, and nothing of that is carried over")
		return nil
	}
	a := &accessList{b: b, users: map[string]*section{}}
	if err := b.lines(t, acl, a.line); err != nil {
		return err
	}
	a.finish(passwords != "")
	return nil
}

func (b *builder) mosquittoFiles(t *tree) (passwords, acl string, err error) {
	named := map[string]string{}
	for _, conf := range t.byRole[roleConf] {
		err := b.lines(t, conf, func(at place, line string) error {
			word, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			if word == "password_file" || word == "acl_file" {
				named[word] = path.Base(strings.TrimSpace(value))
			}
			if word == "allow_anonymous" && strings.TrimSpace(value) == "true" {
				b.find(Error, "anonymous", "", at, "clients without a name are let in: they are no devices, and nothing of what they may do is carried over")
			}
			return nil
		})
		if err != nil {
			return "", "", err
		}
	}
	pick := func(r role, word string) (string, error) {
		for _, f := range t.byRole[r] {
			if path.Base(f) == named[word] {
				return f, nil
			}
		}
		return t.one(r)
	}
	if passwords, err = pick(rolePasswords, "password_file"); err != nil {
		return "", "", err
	}
	acl, err = pick(roleACL, "acl_file")
	return passwords, acl, err
}

// passwordLine reads NAME:HASH, with what src/security_default.c of 2.0 does to
// strange ones: names are trimmed, a third field is ignored, and of two lines of
// one user the last wins.
func (b *builder) passwordLine(at place, line string) error {
	if line == "" || line[0] == '#' {
		return nil
	}
	if strings.IndexByte(line, 0) >= 0 {
		b.find(Error, "nul", "", at, "a NUL ends the file for Mosquitto 2.0; what follows is read here all the same")
		return nil
	}
	name, hash, ok := strings.Cut(line, ":")
	name = strings.TrimSpace(name)
	if !ok {
		b.find(Warning, "syntax", "", at, "the line is no NAME:HASH")
		return nil
	}
	if name == "" {
		b.find(Warning, "syntax", "", at, "the line has no name")
		return nil
	}
	hash, _, _ = strings.Cut(strings.TrimRight(hash, " "), ":")
	u, fresh := b.user(name, at)
	if !fresh {
		b.find(Warning, "twice", name, at, "the user is there twice: Mosquitto 2.0 takes the last line, as is done here; 2.1 does not start")
		u.verifiers = nil
	}
	v, err := mosquittoHash(hash)
	b.takeHash(u, at, v, err)
	return nil
}

// A section is what an access list says of one user.
type section struct {
	at     place
	allows []sourceRule
	denies []sourceRule
}

// An accessList is an acl_file of Mosquitto: see mosquitto.conf(5). "topic" lines
// are for the user before them, those before the first user for clients without a
// name; "pattern" lines are for everybody, with %u for the user's name and %c for
// the client identifier. Of a user's own lines a deny comes first, of the patterns
// too; a pattern that denies does not touch what the user's own lines allow.
type accessList struct {
	b       *builder
	current string // "" before the first user
	users   map[string]*section
	order   []string
	pattern section

	anonymous bool
}

func (a *accessList) line(at place, line string) error {
	if strings.Trim(line, " ") == "" || line[0] == '#' {
		return nil
	}
	word, rest, _ := strings.Cut(strings.Trim(line, " "), " ")
	rest = strings.Trim(rest, " ")
	if strings.ContainsAny(line, "\t\x00") || rest == "" || word != "user" && word != "topic" && word != "pattern" {
		a.b.find(Error, "syntax", "", at, "the line is none of an access list: at a reload Mosquitto 2.0 drops all rules and allows everything")
		return nil
	}
	if word == "user" {
		a.current = rest
		if a.users[rest] == nil {
			a.users[rest] = &section{at: at}
			a.order = append(a.order, rest)
		}
		return nil
	}
	rule := sourceRule{at: at, filter: rest, allow: []topic.Action{topic.Publish, topic.Receive}}
	deny := false
	if access, filter, ok := strings.Cut(rest, " "); ok {
		filter = strings.TrimLeft(filter, " ")
		switch access {
		case "read":
			rule.allow, rule.filter = rule.allow[1:], filter
		case "write":
			rule.allow, rule.filter = rule.allow[:1], filter
		case "readwrite":
			rule.filter = filter
		case "deny":
			deny, rule.allow, rule.filter = true, nil, filter
		default:
			a.b.find(Error, "syntax", "", at, "neither read, write, readwrite nor deny stands before the filter")
			return nil
		}
	}
	switch {
	case word == "pattern":
		a.pattern.add(rule, deny)
	case a.current == "":
		if !a.anonymous {
			a.b.find(Warning, "anonymous-rule", "", at, "lines before the first user are for clients without a name, and for nobody else: they are left out")
		}
		a.anonymous = true
	default:
		a.users[a.current].add(rule, deny)
	}
	return nil
}

func (s *section) add(r sourceRule, deny bool) {
	if deny {
		s.denies = append(s.denies, r)
	} else {
		s.allows = append(s.allows, r)
	}
}

// finish gives every user its rights. withPasswords says that the names of those
// who log in by password are known.
func (a *accessList) finish(withPasswords bool) {
	a.checkPatterns()
	for _, name := range a.order {
		if _, fresh := a.b.user(name, a.users[name].at); fresh && withPasswords {
			a.b.find(Note, "no-password", name, a.users[name].at, "has rules and no password: it logs in by certificate, or not at all")
		}
	}
	for _, u := range a.b.order {
		u.ruled = true
		a.rights(u)
	}
}

// rights are those of the user's own lines, then those of the patterns.
func (a *accessList) rights(u *user) {
	var own []denial
	if s := a.users[u.name]; s != nil {
		for i := range s.denies {
			own = append(own, denyBoth(&s.denies[i])...)
		}
		for i := range s.allows {
			u.grants = append(u.grants, a.b.allows(&s.allows[i], u.name)...)
		}
		u.grants = a.b.narrow(u.grants, own, u.name)
	}
	if strings.ContainsAny(u.name, "+#/") {
		return // Mosquitto gives such a name no pattern, or a stranger's topics
	}
	denials := own
	for i := range a.pattern.denies {
		r := a.pattern.denies[i]
		r.filter = cover(r.filter, u.name)
		denials = append(denials, denyBoth(&r)...)
	}
	var grants []topic.Grant
	for i := range a.pattern.allows {
		r := a.pattern.allows[i]
		var ok bool
		if r.filter, ok = fill(r.filter, u.name); ok {
			grants = append(grants, a.b.allows(&r, u.name)...)
		}
	}
	u.grants = append(u.grants, a.b.narrow(grants, denials, u.name)...)
}

// checkPatterns says once what is the same for all users.
func (a *accessList) checkPatterns() {
	for _, r := range a.pattern.allows {
		if _, ok := fill(r.filter, "x"); !ok {
			a.b.find(Warning, "partial", "", r.at, "pattern %.128q: a placeholder that is only a part of a level is filled in by Mosquitto 2.0 and not by 2.1; the rule is left out", r.filter)
		}
		if strings.Contains(r.filter, "%c") {
			a.b.find(Warning, "client-id", "", r.at, "pattern %.128q: the client identifier is what the client says; the rule is carried over for clients that use their user name", r.filter)
		}
		if !strings.Contains(r.filter, "%") {
			a.b.find(Note, "for-everybody", "", r.at, "pattern %.128q has no placeholder: it is for every client", r.filter)
		}
	}
}

// fill puts a name in the place of %u and %c. A part of a level is not filled in:
// the two versions of Mosquitto do not agree on it.
func fill(filter, name string) (string, bool) {
	if strings.IndexByte(filter, '%') < 0 {
		return filter, true
	}
	levels := strings.Split(filter, "/")
	for i, l := range levels {
		switch {
		case l == "%u" || l == "%c":
			levels[i] = name
		case strings.Contains(l, "%u"), strings.Contains(l, "%c"):
			return "", false
		}
	}
	return strings.Join(levels, "/"), true
}

// cover is a filter for a deny: what cannot be told in it may be anything, since a
// client chooses its identifier and may have one with any text in it.
func cover(filter, name string) string {
	levels := strings.Split(filter, "/")
	for i, l := range levels {
		switch {
		case l == "%u":
			levels[i] = name
		case strings.Contains(l, "%c"), strings.Contains(l, "%u"):
			levels[i] = "+"
		}
	}
	return strings.Join(levels, "/")
}
