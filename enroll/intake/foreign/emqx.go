package foreign

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// An emqxUser is one row of a user export of EMQX's built-in database.
type emqxUser struct{ id, hash, salt, plain, superuser string }

// emqx reads the users that EMQX's dashboard exports and imports, as CSV or JSON.
// They have no rules with them.
func (b *builder) emqx(t *tree) error {
	name, err := t.one(roleEMQX)
	if err != nil {
		return err
	}
	return t.stream(name, func(r io.Reader) error {
		in := bufio.NewReader(r)
		head, _ := in.Peek(64)
		if text := strings.TrimLeft(strings.TrimPrefix(string(head), "\ufeff"), " \r\n\t"); strings.HasPrefix(text, "[") {
			return b.emqxJSON(in, name)
		}
		return b.emqxCSV(in, name)
	})
}

func (b *builder) emqxJSON(r io.Reader, file string) error {
	dec := json.NewDecoder(r)
	n := 0
	err := array(dec, func() error {
		n++
		var u emqxUser
		var super any
		err := fields(dec, map[string]any{"user_id": &u.id, "password_hash": &u.hash, "salt": &u.salt, "password": &u.plain, "is_superuser": &super})
		if err != nil {
			return fmt.Errorf("element %d: %w", n, err)
		}
		if super != nil && super != false {
			u.superuser = "true"
		}
		b.emqxUser(&u, place{file: file})
		return b.cancelled()
	})
	if err != nil {
		return err
	}
	return ended(dec)
}

// emqxCSV splits as EMQX does: at commas and line ends, without quotes.
func (b *builder) emqxCSV(r io.Reader, file string) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 1<<14), maxLine)
	var header []string
	at := place{file: file}
	for s.Scan() {
		at.line++
		cells := strings.Split(strings.TrimPrefix(s.Text(), "\ufeff"), ",")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case len(cells) == 1 && cells[0] == "":
		case header == nil:
			if header = cells; !slices.Contains(header, "user_id") {
				return fmt.Errorf("line %d: there is no column user_id", at.line)
			}
		case len(cells) != len(header):
			b.find(Error, "syntax", "", at, "has %d fields, the header has %d: EMQX would put values into other columns", len(cells), len(header))
		default:
			b.emqxUser(emqxRow(header, cells), at)
		}
		if b.cancelled() != nil {
			return b.cancelled()
		}
	}
	return s.Err()
}

func emqxRow(header, cells []string) *emqxUser {
	u := &emqxUser{}
	for i, column := range header {
		switch column {
		case "user_id":
			u.id = cells[i]
		case "password_hash":
			u.hash = cells[i]
		case "salt":
			u.salt = cells[i]
		case "password":
			u.plain = cells[i]
		case "is_superuser":
			if cells[i] != "false" && cells[i] != "" {
				u.superuser = cells[i]
			}
		}
	}
	return u
}

func (b *builder) emqxUser(e *emqxUser, at place) {
	if e.id == "" {
		b.find(Warning, "syntax", "", at, "a user without a name")
		return
	}
	u, fresh := b.user(e.id, at)
	if !fresh {
		u.problem("is there twice")
		b.find(Error, "twice", e.id, at, "the user is there twice")
		return
	}
	if e.superuser != "" {
		u.problem("is a superuser, and no device")
		b.find(Error, "superuser", e.id, at, "is a superuser: EMQX asks no rule about it")
	}
	switch {
	case e.plain != "":
		b.takeHash(u, at, noVerifier(), errPlain)
	case e.hash != "":
		v, err := emqxHash(e.hash, e.salt, &b.o)
		b.takeHash(u, at, v, err)
	}
}
