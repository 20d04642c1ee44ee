package nats

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// imprint-users.conf has one line for each device, in the order of their IDs, and at
// the end a user that nobody can be: without any user the server would let everybody
// in. Its connection type has no listener, its name is in no certificate, and nobody
// knows a password of its hash.
const (
	usersHead = "# Written by imprint. Changes made here are lost at the next export.\nusers = [\n"
	usersTail = `  { user: "imprint:nobody", password: "$2a$04$.....................................................", ` +
		`permissions: { publish: { deny: [">"] }, subscribe: { deny: [">"] } }, allowed_connection_types: ["IN_PROCESS"] }` + "\n]\n"

	userStart      = `  { user: "`
	passwordStart  = `", password: "`
	publishStart   = `", permissions: { publish: { allow: [`
	subscribeStart = `] }, subscribe: { allow: [`
	userEnd        = `] } }, allowed_connection_types: ["MQTT"] }`

	// noTopic is allowed to a device without rights, as an empty list allows all. A
	// single slash between letters is in the subject of no topic.
	noTopic = `"imprint/nothing"`
)

const maxLine = 1 << 23 // bytes: a device has at most 64 rules of 65,535 bytes

// spiffe is the SPIFFE ID of a device.
func spiffe(trustDomain string, id inventory.DeviceID) string {
	return "spiffe://" + trustDomain + "/device/" + string(id)
}

// isBcrypt reports whether a hash is one that the server reads.
func isBcrypt(hash string) bool {
	if len(hash) != 60 || hash[6] != '$' || !slices.Contains([]string{"$2a$", "$2b$", "$2y$"}, hash[:4]) {
		return false
	}
	if cost := hash[4:6]; cost < "04" || cost > "31" || cost[1] < '0' || cost[1] > '9' {
		return false
	}
	return strings.Trim(hash[7:], "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") == ""
}

func pickBcrypt(verifiers []inventory.Verifier) (inventory.Verifier, bool) {
	i := slices.IndexFunc(verifiers, func(v inventory.Verifier) bool {
		return v.Scheme == inventory.Bcrypt && isBcrypt(string(v.Hash))
	})
	if i < 0 {
		return inventory.Verifier{}, false
	}
	return verifiers[i], true
}

func appendUser(b []byte, _ int, e *templates.Entry, s *templates.Setting) ([]byte, error) {
	b = append(b, userStart...)
	if s.Form == Password {
		b = append(b, e.ID...)
	} else {
		if err := checkDomain(s.TrustDomain); err != nil {
			return nil, err
		}
		b = append(b, spiffe(s.TrustDomain, e.ID)...)
	}
	if s.Form != Certificate && len(e.Verifiers) > 0 {
		b = append(b, passwordStart...)
		b = append(b, e.Verifiers[0].Hash...)
	}
	for _, list := range []struct {
		start  string
		action topic.Action
	}{{publishStart, topic.Publish}, {subscribeStart, topic.Receive}} {
		b = append(b, list.start...)
		empty := true
		for _, g := range e.Grants {
			if g.Action != list.action {
				continue
			}
			if why, _ := rule(topic.Rule{Action: g.Action, Filter: string(g.Filter)}); why != "" {
				return nil, &templates.EntryError{ID: e.ID, Why: fmt.Sprintf("may %s %.128q, and the NATS server cannot hold that: %s", g.Action, g.Filter, why)}
			}
			if !empty {
				b = append(b, ", "...)
			}
			b, empty = appendSubjects(b, g.Filter), false
		}
		if empty {
			b = append(b, noTopic...)
		}
	}
	b = append(b, userEnd...)
	return append(b, '\n'), nil
}

// checkDomain is the grammar of a trust domain (SPIFFE ID §2.1).
func checkDomain(domain string) error {
	if domain == "" || strings.Trim(domain, "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "" {
		return &inventory.InvalidError{Field: "trust domain", Value: domain, Want: "lower-case letters, digits, '.', '-' or '_'"}
	}
	return nil
}

// A lineError reports a line that imprint does not write.
type lineError struct {
	line int
	why  string
}

func (e *lineError) Error() string {
	return fmt.Sprintf("reading %s: line %d: %s", UsersName, e.line, e.why)
}

// readUsers yields the devices of imprint-users.conf. All around them is, to the
// octet, what imprint writes.
func readUsers(src fs.FS, form, trustDomain string) iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		f, err := templates.OpenFile(src, UsersName)
		if err != nil {
			yield(templates.Entry{}, err)
			return
		}
		defer func() { _ = f.Close() }() // read only
		frame := strings.Split(usersHead+usersTail, "\n")
		head, last := strings.Count(usersHead, "\n"), len(frame)-1 // after the last line there is nothing
		s := templates.NewLineScanner(f, maxLine)
		setting := &templates.Setting{Form: form, TrustDomain: trustDomain}
		n, seen := 0, 0
		for s.Scan() {
			n++
			switch {
			case seen < last && s.Text() == frame[seen]:
				seen++
			case seen == head:
				e, err := parseUser(s.Bytes(), n, setting)
				if !yield(e, err) || err != nil {
					return
				}
			default:
				yield(templates.Entry{}, &lineError{n, "it is not what imprint writes"})
				return
			}
		}
		switch {
		case s.Err() != nil:
			yield(templates.Entry{}, fmt.Errorf("reading %s: %w", UsersName, s.Err()))
		case seen != last:
			yield(templates.Entry{}, &lineError{n, "the end is missing"})
		}
	}
}

// parseUser reads a line that appendUser wrote: it is one if what it says is written
// like that.
func parseUser(line []byte, n int, s *templates.Setting) (templates.Entry, error) {
	var e templates.Entry
	rest, ok1 := strings.CutPrefix(string(line), userStart)
	user, rest, ok2 := strings.Cut(rest, publishStart)
	rest, ok3 := strings.CutSuffix(rest, userEnd)
	publish, subscribe, ok4 := strings.Cut(rest, subscribeStart)
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return e, &lineError{n, "want a user with permissions"}
	}
	user, hash, ok := strings.Cut(user, passwordStart)
	if ok {
		e.Verifiers = []inventory.Verifier{{Scheme: inventory.Bcrypt, Hash: []byte(hash)}}
	}
	if ok != isBcrypt(hash) || ok && s.Form == Certificate || !ok && s.Form == Password {
		return e, &lineError{n, "want a bcrypt hash in forms with a password, and none in the other"}
	}
	if s.Form != Password {
		if user, ok = strings.CutPrefix(user, spiffe(s.TrustDomain, "")); !ok {
			return e, &lineError{n, "want a SPIFFE ID of the fleet"}
		}
	}
	id, err := inventory.ParseDeviceID(user)
	if err != nil {
		return e, &lineError{n, err.Error()}
	}
	e.ID = id
	for i, text := range []string{publish, subscribe} {
		filters, err := parseSubjects(text)
		if err != nil {
			return e, &lineError{n, err.Error()}
		}
		for _, f := range filters {
			e.Grants = append(e.Grants, topic.Grant{Action: []topic.Action{topic.Publish, topic.Receive}[i], Filter: f})
		}
	}
	if same, err := appendUser(nil, 0, &e, s); err != nil || !bytes.Equal(bytes.TrimSuffix(same, []byte("\n")), line) {
		return e, &lineError{n, "it is not what imprint writes"}
	}
	return e, nil
}

// parseSubjects reads a list of quoted subjects back into filters.
func parseSubjects(text string) ([]topic.Filter, error) {
	if text == noTopic {
		return nil, nil
	}
	var filters []topic.Filter
	above := "" // the subject that has to follow one that ends in >
	for more := true; more; {
		subject, rest, ok := cutString(text)
		if !ok {
			return nil, errors.New("want a list of subjects")
		}
		text, more = strings.CutPrefix(rest, ", ")
		if !more && rest != "" {
			return nil, errors.New("want a list of subjects")
		}
		if above != "" {
			if subject != above {
				return nil, errors.New("the level above a > is missing")
			}
			above = ""
			continue
		}
		f, err := filterOf(subject)
		if err != nil {
			return nil, err
		}
		filters = append(filters, f)
		above, _ = strings.CutSuffix(subject, ".>")
		if above == subject {
			above = ""
		}
	}
	if above != "" {
		return nil, errors.New("the level above a > is missing")
	}
	return filters, nil
}

// cutString reads one quoted string.
func cutString(text string) (value, rest string, ok bool) {
	if text == "" || text[0] != '"' {
		return "", "", false
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch text[i] {
		case '"':
			return b.String(), text[i+1:], true
		case '\\':
			if i++; i == len(text) {
				return "", "", false
			}
			b.WriteByte(text[i])
		default:
			b.WriteByte(text[i])
		}
	}
	return "", "", false
}
