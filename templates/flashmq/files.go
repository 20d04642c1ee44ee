package flashmq

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// The password file has one line for each user and no comments: "#x:..." is a user
// "#x". Of two lines of one user the first counts.
//
//	NAME:$7$ITERATIONS$SALT$HASH    HASH = PBKDF2-HMAC-SHA512, 64 octets
//	NAME:$6$SALT$HASH               HASH = SHA-512(password, salt)
//
// with salt and hash in padded base64, the salt of any length. A line that is not so
// is dropped.
//
// The ACL file has sections; words are separated by single spaces, and a topic line
// has two or three of them. One bad line, and the rules that were loaded before stay.
// An empty file denies everything.
//
//	user NAME
//	topic write FILTER
//	topic read FILTER

// rule says why FlashMQ cannot enforce a rule exactly.
func rule(r topic.Rule) (why string, choices []string) {
	first, _, _ := strings.Cut(r.Filter, "/")
	switch {
	case first == "+", first == "#":
		return "a wildcard at the start reaches topics that begin with $ as well", []string{"a rule for each first level, by its name"}
	case strings.Contains(r.Filter, " "):
		return "its file has no form for a topic with a space, and with one bad line it keeps its old rules", []string{"another name for this level"}
	}
	return "", nil
}

// writable refuses a right that the file has no form for. The policy has no such
// rights; this is the last fence.
func writable(e *templates.Entry, f topic.Filter) error {
	if text := string(f); strings.ContainsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '%' }) || !utf8.ValidString(text) || strings.HasPrefix(text, "$share/") {
		return &templates.EntryError{ID: e.ID, Why: "has a topic that FlashMQ would read as another"}
	}
	return nil
}

const (
	maxIterations = 10_000_000
	maxLine       = 1 << 18 // bytes: a filter has at most 65,535
	userLine      = "user "
	writeRule     = "topic write "
	readRule      = "topic read "
)

// readable reports whether FlashMQ can check a verifier.
func readable(v inventory.Verifier) bool {
	if len(v.Salt) == 0 || len(v.Hash) != sha512.Size {
		return false
	}
	return v.Scheme == inventory.SHA512Suffix || v.Scheme == inventory.PBKDF2SHA512 && v.Iterations > 0 && v.Iterations <= maxIterations
}

// pick returns the best verifier that FlashMQ reads.
func pick(verifiers []inventory.Verifier) (inventory.Verifier, bool) {
	for _, s := range []inventory.Scheme{inventory.PBKDF2SHA512, inventory.SHA512Suffix} {
		for _, v := range verifiers {
			if v.Scheme == s && readable(v) {
				return v, true
			}
		}
	}
	return inventory.Verifier{}, false
}

func appendPassword(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	if len(e.Verifiers) == 0 {
		return b, nil
	}
	v := e.Verifiers[0]
	b = append(b, e.ID...)
	if v.Scheme == inventory.PBKDF2SHA512 {
		b = append(b, ":$7$"...)
		b = strconv.AppendUint(b, uint64(v.Iterations), 10)
		b = append(b, '$')
	} else {
		b = append(b, ":$6$"...)
	}
	b = base64.StdEncoding.AppendEncode(b, v.Salt)
	b = append(b, '$')
	b = base64.StdEncoding.AppendEncode(b, v.Hash)
	return append(b, '\n'), nil
}

// appendSection writes the section of a device, also of one without rights: it is
// what tells of a device that has only a certificate. "x/#" does not match "x" here,
// so that "x" gets a line of its own, right after.
func appendSection(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	b = append(b, userLine...)
	b = append(b, e.ID...)
	b = append(b, '\n')
	for _, g := range e.Grants {
		if err := writable(e, g.Filter); err != nil {
			return nil, err
		}
		word := readRule
		if g.Action == topic.Publish {
			word = writeRule
		}
		b = append(b, word...)
		b = append(b, g.Filter...)
		b = append(b, '\n')
		if parent, ok := parentOf(g.Filter); ok {
			b = append(b, word...)
			b = append(b, parent...)
			b = append(b, '\n')
		}
	}
	return b, nil
}

// parentOf returns x of a filter x/#. The filter "/#" has the empty level before it,
// which is no topic.
func parentOf(f topic.Filter) (string, bool) {
	parent, ok := strings.CutSuffix(string(f), "/#")
	return parent, ok && parent != ""
}

// A lineError reports a line of a file that imprint does not write.
type lineError struct {
	file string
	line int
	why  string
}

func (e *lineError) Error() string {
	return fmt.Sprintf("reading %s: line %d: %s", e.file, e.line, e.why)
}

// lines yields the lines of a file, numbered from one, without their ends. A line is
// valid until the next one.
func lines(src fs.FS, name string, yield func(n int, line []byte) error) error {
	f, err := templates.OpenFile(src, name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	s := templates.NewLineScanner(f, maxLine)
	n := 0
	for s.Scan() {
		n++
		if err := yield(n, s.Bytes()); err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	return nil
}

// errStop ends a reading whose reader wants no more.
var errStop = errors.New("stop")

// records makes an iterator of a reader that calls a function for each record.
func records(read func(yield func(templates.Entry) error) error) iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		err := read(func(e templates.Entry) error {
			if !yield(e, nil) {
				return errStop
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStop) {
			yield(templates.Entry{}, err)
		}
	}
}

// readPasswords yields the names and verifiers of the password file.
func readPasswords(src fs.FS) iter.Seq2[templates.Entry, error] {
	return records(func(yield func(templates.Entry) error) error {
		return lines(src, PasswordName, func(n int, line []byte) error {
			e, why := parsePassword(line)
			if why == "" {
				if same, err := appendPassword(nil, 0, &e, nil); err != nil || !bytes.Equal(bytes.TrimSuffix(same, []byte("\n")), line) {
					why = "it is not what imprint writes"
				}
			}
			if why != "" {
				return &lineError{PasswordName, n, why}
			}
			return yield(e)
		})
	})
}

func parsePassword(line []byte) (e templates.Entry, why string) {
	name, rest, _ := strings.Cut(string(line), ":$")
	id, err := inventory.ParseDeviceID(name)
	if err != nil {
		return e, err.Error()
	}
	fields := strings.Split(rest, "$")
	v := inventory.Verifier{Scheme: inventory.SHA512Suffix}
	if fields[0] == "7" && len(fields) == 4 {
		n, err := strconv.ParseUint(fields[1], 10, 32)
		if err != nil {
			return e, "want a number of iterations"
		}
		v.Scheme, v.Iterations = inventory.PBKDF2SHA512, uint32(n)
		fields = fields[1:]
	} else if fields[0] != "6" {
		return e, "want NAME:$7$ITERATIONS$SALT$HASH or NAME:$6$SALT$HASH"
	}
	if len(fields) != 3 {
		return e, "want NAME:$7$ITERATIONS$SALT$HASH or NAME:$6$SALT$HASH"
	}
	var err1, err2 error
	v.Salt, err1 = base64.StdEncoding.Strict().DecodeString(fields[1])
	v.Hash, err2 = base64.StdEncoding.Strict().DecodeString(fields[2])
	if err1 != nil || err2 != nil || !readable(v) {
		return e, "want salt and hash in padded base64, the hash of 64 octets"
	}
	return templates.Entry{ID: id, Verifiers: []inventory.Verifier{v}}, ""
}

// readSections yields the devices of the ACL file.
func readSections(src fs.FS) iter.Seq2[templates.Entry, error] {
	return records(func(yield func(templates.Entry) error) error {
		var e templates.Entry
		expect := "" // the line that has to follow x/#
		err := lines(src, ACLName, func(n int, line []byte) error {
			if expect != "" {
				if string(line) != expect {
					return &lineError{ACLName, n, fmt.Sprintf("want %.128q", expect)}
				}
				expect = ""
				return nil
			}
			if name, ok := bytes.CutPrefix(line, []byte(userLine)); ok {
				if e.ID != "" {
					if err := yield(e); err != nil {
						return err
					}
				}
				id, err := inventory.ParseDeviceID(string(name))
				if err != nil {
					return &lineError{ACLName, n, err.Error()}
				}
				e = templates.Entry{ID: id}
				return nil
			}
			var why string
			if expect, why = parseRule(&e, string(line)); why != "" {
				return &lineError{ACLName, n, why}
			}
			return nil
		})
		switch {
		case err != nil:
			return err
		case expect != "":
			return &lineError{ACLName, 0, "the last line is missing"}
		case e.ID != "":
			return yield(e)
		}
		return nil
	})
}

// parseRule reads a topic line, and returns the one that has to follow.
func parseRule(e *templates.Entry, line string) (expect, why string) {
	if e.ID == "" {
		return "", "a topic before the first user is for everybody without a name"
	}
	g, word := topic.Grant{Action: topic.Publish}, writeRule
	text, ok := strings.CutPrefix(line, word)
	if !ok {
		g.Action, word = topic.Receive, readRule
		if text, ok = strings.CutPrefix(line, word); !ok {
			return "", "want user NAME, topic read FILTER or topic write FILTER"
		}
	}
	f, err := topic.ParseFilter(text)
	if err == nil {
		err = writable(e, f)
	}
	if err != nil {
		return "", err.Error()
	}
	g.Filter = f
	e.Grants = append(e.Grants, g)
	if parent, ok := parentOf(f); ok {
		expect = word + parent
	}
	return expect, ""
}

// readFiles yields the devices of the ACL file with their passwords, both files side
// by side.
func readFiles(src fs.FS) iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		for e, err := range templates.WithPasswords(readSections(src), readPasswords(src), PasswordName) {
			e.Certificate = len(e.Verifiers) == 0
			if !yield(e, err) {
				return
			}
		}
	}
}
