package hivemq

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// maxLine is the longest line that is read back, in bytes: 64 rules of 64 KiB.
const maxLine = 8 << 20

// A lineReader reads a list of ours, line by line.
type lineReader struct {
	name string
	file fs.File
	r    *bufio.Reader
}

func openLines(src fs.FS, name string) (*lineReader, error) {
	f, err := templates.OpenFile(src, name)
	if err != nil {
		return nil, err
	}
	return &lineReader{name, f, bufio.NewReaderSize(f, 1<<16)}, nil
}

func (l *lineReader) close() { _ = l.file.Close() } // it was only read

// foreign reports a line that imprint has not written.
func (l *lineReader) foreign() error {
	return fmt.Errorf("reading %s: it is not what imprint writes", l.name)
}

// line returns the next line without its end, or io.EOF.
func (l *lineReader) line() (string, error) {
	var long []byte
	for {
		part, err := l.r.ReadSlice('\n')
		switch {
		case err == nil && long == nil:
			return string(part[:len(part)-1]), nil
		case err == nil:
			return string(append(long, part[:len(part)-1]...)), nil
		case errors.Is(err, bufio.ErrBufferFull) && len(long) < maxLine:
			long = append(long, part...)
		case errors.Is(err, io.EOF) && len(part)+len(long) == 0:
			return "", io.EOF
		case errors.Is(err, io.EOF), errors.Is(err, bufio.ErrBufferFull):
			return "", l.foreign()
		default:
			return "", fmt.Errorf("reading %s: %w", l.name, err)
		}
	}
}

// expect reads lines that have to be those of text.
func (l *lineReader) expect(text string) error {
	for want := range strings.Lines(text) {
		got, err := l.line()
		if err == nil && got+"\n" != want || errors.Is(err, io.EOF) {
			return l.foreign()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// end reads the lines of text, and nothing after them.
func (l *lineReader) end(text string) error {
	if err := l.expect(text); err != nil {
		return err
	}
	if _, err := l.line(); !errors.Is(err, io.EOF) {
		return errors.Join(err, l.foreign())
	}
	return nil
}

// until returns the next line, or false if it is last.
func (l *lineReader) until(last string) (string, bool, error) {
	got, err := l.line()
	if errors.Is(err, io.EOF) {
		return "", false, l.foreign()
	}
	return got, err == nil && got != last, err
}

// skipTo reads lines up to last.
func (l *lineReader) skipTo(last string) error {
	for {
		if _, more, err := l.until(last); err != nil || !more {
			return err
		}
	}
}

// The lines that end the users and the roles.
const (
	usersEnd = "</users>"
	rolesEnd = "</roles>"
)

// readCredentials reads what writeCredentials writes, as a function that yields the
// devices.
func readCredentials(src fs.FS, s *templates.Setting) func(yield func(templates.Entry, error) bool) {
	return func(yield func(templates.Entry, error) bool) {
		err := checkBrokerFiles(src, s)
		if err == nil {
			err = eachUser(src, func(e templates.Entry) bool { return yield(e, nil) })
		}
		if err != nil {
			yield(templates.Entry{}, err)
		}
	}
}

// eachUser reads the users and, by a second reader that is ahead in the file, their
// roles. It ends early when yield says so.
func eachUser(src fs.FS, yield func(templates.Entry) bool) error {
	key, err := templates.ReadFile(src, templates.KeyFile)
	if err != nil {
		return err
	}
	f, err := newSecretFile(key)
	if err != nil {
		return err
	}
	users, err := openLines(src, CredentialsName)
	if err != nil {
		return err
	}
	defer users.close()
	roles, err := openLines(src, CredentialsName)
	if err != nil {
		return err
	}
	defer roles.close()
	if err := users.expect(usersHead + string(f.user)); err != nil {
		return err
	}
	if err := roles.skipTo(usersEnd); err != nil {
		return err
	}
	if err := roles.expect("<roles>\n" + string(f.role)); err != nil {
		return err
	}
	for {
		user, moreUsers, err := users.until(usersEnd)
		if err != nil {
			return err
		}
		role, moreRoles, err := roles.until(rolesEnd)
		if err != nil {
			return err
		}
		if moreUsers != moreRoles {
			return users.foreign()
		}
		if !moreUsers {
			return roles.end("</file-rbac>\n")
		}
		e, ok := f.parseDevice(user, role)
		if !ok {
			return users.foreign()
		}
		if !yield(e) {
			return nil
		}
	}
}

// parseDevice reads a user and its role. There is one way to write them, so what is
// written again from what was read has to be the same.
func (f *secretFile) parseDevice(user, role string) (e templates.Entry, ok bool) {
	rest, ok := strings.CutPrefix(user, "<user><name>")
	if !ok {
		return e, false
	}
	name, rest, _ := strings.Cut(rest, "</name><password>")
	password, _, _ := strings.Cut(rest, "<")
	e.ID = inventory.DeviceID(name)
	v, ok := parsePassword(password)
	if !ok {
		return e, false
	}
	e.Verifiers = []inventory.Verifier{v}
	if e.Grants, ok = f.parsePermissions(role); !ok {
		return e, false
	}
	again, err := f.appendRole(nil, &e)
	return e, err == nil && string(again) == role+"\n" && string(appendUser(nil, name, &v)) == user+"\n"
}

// parsePassword reads "salt:iterations:hash".
func parsePassword(s string) (v inventory.Verifier, ok bool) {
	f := strings.Split(s, ":")
	if len(f) != 3 {
		return v, false
	}
	v.Scheme = inventory.PBKDF2SHA512
	salt, err1 := base64.StdEncoding.DecodeString(f[0])
	n, err2 := strconv.ParseUint(f[1], 10, 31)
	hash, err3 := base64.StdEncoding.DecodeString(f[2])
	v.Salt, v.Iterations, v.Hash = salt, uint32(n), hash
	return v, errors.Join(err1, err2, err3) == nil && n > 0 && len(salt) > 0 && len(hash) == 64
}

func (f *secretFile) parsePermissions(role string) ([]topic.Grant, bool) {
	var grants []topic.Grant
	for _, part := range strings.Split(role, "<permission><topic>")[1:] {
		text, rest, _ := strings.Cut(part, "</topic><activity>")
		activity, _, _ := strings.Cut(rest, "<")
		g := topic.Grant{Filter: topic.Filter(xmlText(text))}
		switch activity {
		case activityPublish:
			g.Action = topic.Publish
		case activitySubscribe:
			g.Action = topic.Receive
		default:
			return nil, false
		}
		grants = append(grants, g)
	}
	if len(grants) == 1 && grants[0].Filter == f.nowhere {
		grants = nil
	}
	return grants, true
}

// xmlText undoes what appendXML does.
func xmlText(s string) string {
	if !strings.Contains(s, "&") {
		return s
	}
	return strings.NewReplacer("&lt;", "<", "&gt;", ">", "&amp;", "&").Replace(s)
}
