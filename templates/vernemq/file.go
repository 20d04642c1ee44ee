package vernemq

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"io/fs"
	"iter"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// vmq.passwd has one line for each user and nothing else (vmq_passwd.erl):
//
//	NAME:$6$SALT$HASH    HASH = SHA-512(password, salt), both in padded base64
//
// A line that is not so ends the loader in the middle: names that are gone stay
// valid, so there is neither a comment nor an empty line.
//
// vmq.acl has sections (vmq_acl.erl):
//
//	user NAME
//	topic write FILTER
//	topic read FILTER
//
// A topic line before the first user is for everybody, also without a name. There is
// no other word: "topic readwrite x" is the topic "readwrite x". An empty file allows
// nothing.

// file is the kit of form "file".
func file() templates.Kit {
	k := kit()
	k.Lists = []templates.List{
		{PlanFile: templates.PlanFile{Name: PasswordName, Mode: 0o640}, Append: appendPassword},
		{PlanFile: templates.PlanFile{Name: ACLName, Mode: 0o640}, Append: appendSection},
	}
	k.Devices = func(src fs.FS, _ *templates.Setting) func(func(templates.Entry, error) bool) { return readFiles(src) }
	k.Pick = pick(inventory.SHA512Suffix, isSHA512)
	k.Caps.Schemes = []inventory.Scheme{inventory.SHA512Suffix}
	k.Caps.Both, k.Caps.ClientIDBinding = false, false
	k.NotEnforced = append(k.NotEnforced,
		"client identifiers: a device can end or resume the session of another by using its identifier",
		"a certificate and a password together: each opens its own listener")
	return k
}

func isSHA512(v inventory.Verifier) bool { return len(v.Salt) > 0 && len(v.Hash) == sha512.Size }

func appendPassword(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	if len(e.Verifiers) == 0 {
		return b, nil
	}
	v := e.Verifiers[0]
	b = append(b, e.ID...)
	b = append(b, ":$6$"...)
	b = base64.StdEncoding.AppendEncode(b, v.Salt)
	b = append(b, '$')
	b = base64.StdEncoding.AppendEncode(b, v.Hash)
	return append(b, '\n'), nil
}

// appendSection writes the section of a device, also of one without rights: it is
// what tells of a device that has only a certificate.
func appendSection(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	b = append(b, "user "...)
	b = append(b, e.ID...)
	b = append(b, '\n')
	for _, g := range e.Grants {
		if err := writable(e, g.Filter); err != nil {
			return nil, err
		}
		if g.Action == topic.Publish {
			b = append(b, writeRule...)
		} else {
			b = append(b, readRule...)
		}
		b = append(b, g.Filter...)
		b = append(b, '\n')
	}
	return b, nil
}

const (
	userLine  = "user "
	writeRule = "topic write "
	readRule  = "topic read "
	maxLine   = 1 << 18 // bytes: a filter has at most 65,535
)

// A lineError reports a line of a file that imprint does not write.
type lineError struct {
	file string
	line int
	why  string
}

func (e *lineError) Error() string {
	return fmt.Sprintf("reading %s: line %d: %s", e.file, e.line, e.why)
}

// readPasswords yields the names and verifiers of vmq.passwd.
func readPasswords(src fs.FS) iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		n := 0
		for line, err := range templates.Lines(src, PasswordName, maxLine) {
			n++
			var e templates.Entry
			if err == nil {
				e, err = parsePassword(line, n)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func parsePassword(line []byte, n int) (templates.Entry, error) {
	var e templates.Entry
	name, rest, ok := bytes.Cut(line, []byte(":$6$"))
	salt, hash, split := bytes.Cut(rest, []byte("$"))
	if !ok || !split {
		return e, &lineError{PasswordName, n, "want NAME:$6$SALT$HASH"}
	}
	id, err := inventory.ParseDeviceID(string(name))
	if err != nil {
		return e, &lineError{PasswordName, n, err.Error()}
	}
	v := inventory.Verifier{Scheme: inventory.SHA512Suffix}
	for text, to := range map[string]*[]byte{string(salt): &v.Salt, string(hash): &v.Hash} {
		if *to, err = base64.StdEncoding.Strict().DecodeString(text); err != nil || bytes.ContainsAny([]byte(text), "\r\n") {
			return e, &lineError{PasswordName, n, "want salt and hash in padded base64"}
		}
	}
	if !isSHA512(v) {
		return e, &lineError{PasswordName, n, "want a salt, and a hash of 64 octets"}
	}
	return templates.Entry{ID: id, Verifiers: []inventory.Verifier{v}}, nil
}

// readFiles yields the devices of vmq.acl with their passwords, both files side by
// side.
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

// readSections yields the devices of vmq.acl.
func readSections(src fs.FS) iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		var e templates.Entry
		n := 0
		for line, err := range templates.Lines(src, ACLName, maxLine) {
			n++
			if name, ok := bytes.CutPrefix(line, []byte(userLine)); err == nil && ok {
				if e.ID != "" && !yield(e, nil) {
					return
				}
				e = templates.Entry{}
				if e.ID, err = inventory.ParseDeviceID(string(name)); err != nil {
					err = &lineError{ACLName, n, err.Error()}
				}
			} else if err == nil {
				err = parseRule(&e, line, n)
			}
			if err != nil {
				yield(templates.Entry{}, err)
				return
			}
		}
		if e.ID != "" {
			yield(e, nil)
		}
	}
}

func parseRule(e *templates.Entry, line []byte, n int) error {
	if e.ID == "" {
		return &lineError{ACLName, n, "a topic before the first user is for everybody"}
	}
	g := topic.Grant{Action: topic.Publish}
	text, ok := bytes.CutPrefix(line, []byte(writeRule))
	if !ok {
		g.Action = topic.Receive
		if text, ok = bytes.CutPrefix(line, []byte(readRule)); !ok {
			return &lineError{ACLName, n, "want user NAME, topic read FILTER or topic write FILTER"}
		}
	}
	f, err := topic.ParseFilter(string(text))
	if err == nil {
		err = writable(e, f)
	}
	if err != nil {
		return &lineError{ACLName, n, err.Error()}
	}
	g.Filter = f
	e.Grants = append(e.Grants, g)
	return nil
}
