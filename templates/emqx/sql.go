package emqx

import (
	"bytes"
	"encoding/hex"
	"io/fs"
	"iter"
	"strconv"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// The two tables are imprint's own: EMQX asks whatever query it is given. A device has
// one row of imprint_emqx_user, without a hash if it has no password, and a row of
// imprint_emqx_acl for each rule, in the order of prio.
const (
	sqlHead = `-- Written by imprint: the tables imprint_emqx_user and imprint_emqx_acl become the
-- fleet. Run it with
--   psql --set ON_ERROR_STOP=1 --quiet --file imprint.sql DATABASE
-- It is one transaction: all of it, or nothing. Rows of others are deleted.
BEGIN;
SET LOCAL client_encoding = 'UTF8';
SET LOCAL standard_conforming_strings = on;
SET LOCAL client_min_messages = warning;
CREATE TABLE IF NOT EXISTS imprint_emqx_user (
  username character varying(64) PRIMARY KEY,
  password_hash character varying(64),
  salt character varying(128)
);
CREATE TABLE IF NOT EXISTS imprint_emqx_acl (
  username character varying(64) NOT NULL,
  prio integer NOT NULL,
  permission character varying(5) NOT NULL,
  action character varying(9) NOT NULL,
  topic text NOT NULL,
  PRIMARY KEY (username, prio)
);
LOCK TABLE imprint_emqx_user, imprint_emqx_acl IN SHARE ROW EXCLUSIVE MODE;
CREATE TEMPORARY TABLE imprint_new_user (
  username character varying(64) PRIMARY KEY,
  password_hash character varying(64),
  salt character varying(128)
) ON COMMIT DROP;
CREATE TEMPORARY TABLE imprint_new_acl (
  username character varying(64) NOT NULL,
  prio integer NOT NULL,
  permission character varying(5) NOT NULL,
  action character varying(9) NOT NULL,
  topic text NOT NULL,
  PRIMARY KEY (username, prio)
) ON COMMIT DROP;
`
	sqlTail = `DELETE FROM imprint_emqx_user WHERE NOT EXISTS (
  SELECT 1 FROM imprint_new_user n WHERE n.username = imprint_emqx_user.username);
DELETE FROM imprint_emqx_acl WHERE NOT EXISTS (
  SELECT 1 FROM imprint_new_acl n WHERE n.username = imprint_emqx_acl.username AND n.prio = imprint_emqx_acl.prio);
INSERT INTO imprint_emqx_user (username, password_hash, salt)
  SELECT username, password_hash, salt FROM imprint_new_user WHERE true
  ON CONFLICT (username) DO UPDATE
  SET password_hash = excluded.password_hash, salt = excluded.salt;
INSERT INTO imprint_emqx_acl (username, prio, permission, action, topic)
  SELECT username, prio, permission, action, topic FROM imprint_new_acl WHERE true
  ON CONFLICT (username, prio) DO UPDATE
  SET permission = excluded.permission, action = excluded.action, topic = excluded.topic;
COMMIT;
`
	userRow  = "INSERT INTO imprint_new_user VALUES ("
	aclRow   = "; INSERT INTO imprint_new_acl VALUES "
	noHash   = ", NULL, NULL)"
	sqlComma = ", "
)

// appendRows writes the rows of a device, on one line.
func appendRows(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	rules, err := compile(e)
	if err != nil {
		return nil, err
	}
	b = append(b, userRow...)
	b = appendLiteral(b, string(e.ID))
	if len(e.Verifiers) == 0 {
		b = append(b, noHash...)
	} else {
		b = append(b, sqlComma...)
		b = appendLiteral(b, hex.EncodeToString(e.Verifiers[0].Hash))
		b = append(b, sqlComma...)
		b = append(appendLiteral(b, string(e.Verifiers[0].Salt)), ')')
	}
	for i, l := range rules {
		if i == 0 {
			b = append(b, aclRow...)
		} else {
			b = append(b, sqlComma...)
		}
		w := l.words()
		b = append(b, '(')
		b = appendLiteral(b, string(e.ID))
		b = append(b, sqlComma...)
		b = strconv.AppendInt(b, int64(i), 10)
		for _, text := range []string{w.Permission, w.Action, w.Topic} {
			b = append(b, sqlComma...)
			b = appendLiteral(b, text)
		}
		b = append(b, ')')
	}
	return append(b, ";\n"...), nil
}

// appendLiteral writes a string literal of SQL. With standard_conforming_strings a
// quote is doubled and a backslash is a backslash.
func appendLiteral(b []byte, text string) []byte {
	b = append(b, '\'')
	for i := range len(text) {
		if text[i] == '\'' {
			b = append(b, '\'')
		}
		b = append(b, text[i])
	}
	return append(b, '\'')
}

// cutLiteral returns the next literal and what comes after it.
func cutLiteral(b []byte) (text string, rest []byte, ok bool) {
	_, b, ok = bytes.Cut(b, []byte("'"))
	if !ok {
		return "", nil, false
	}
	for from := 0; ; {
		i := bytes.IndexByte(b[from:], '\'')
		if i < 0 {
			return "", nil, false
		}
		if i += from; i+1 == len(b) || b[i+1] != '\'' {
			return strings.ReplaceAll(string(b[:i]), "''", "'"), b[i+1:], true
		}
		from = i + 2
	}
}

// readRows yields the devices of imprint.sql. All around the rows is, to the octet,
// what imprint writes.
func readRows(src fs.FS) iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		head, tail := strings.SplitAfter(sqlHead, "\n"), strings.SplitAfter(sqlTail, "\n")
		frame := append(head[:len(head)-1], tail[:len(tail)-1]...)
		n, seen, rows := 0, 0, len(head)-1
		for text, err := range templates.Lines(src, SQLName, maxLine) {
			n++
			var e templates.Entry
			switch {
			case err != nil:
			case seen == rows && bytes.HasPrefix(text, []byte(userRow)):
				e, err = parseRows(text, n)
			case seen < len(frame) && string(text)+"\n" == frame[seen]:
				seen++
				continue
			default:
				err = &lineError{SQLName, n, notOurs}
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
		if seen != len(frame) {
			yield(templates.Entry{}, &lineError{SQLName, n, "the end is missing"})
		}
	}
}

// parseRows takes the literals of a line. That all around them is as it should be
// shows when the line is written again.
func parseRows(text []byte, n int) (templates.Entry, error) {
	bad := &lineError{SQLName, n, notOurs}
	var literals []string
	for rest := text; ; {
		l, after, ok := cutLiteral(rest)
		if !ok {
			break
		}
		literals, rest = append(literals, l), after
	}
	if len(literals) == 0 {
		return templates.Entry{}, bad
	}
	id, err := inventory.ParseDeviceID(literals[0])
	if err != nil {
		return templates.Entry{}, &lineError{SQLName, n, err.Error()}
	}
	e := templates.Entry{ID: id}
	literals = literals[1:]
	if len(literals)%4 == 2 {
		v, ok := verifier(literals[0], literals[1])
		if !ok {
			return templates.Entry{}, bad
		}
		e.Verifiers, literals = []inventory.Verifier{v}, literals[2:]
	}
	var rules []line
	for ; len(literals) >= 4; literals = literals[4:] {
		rules = append(rules, apiRule{literals[1], literals[2], literals[3]}.line())
	}
	ok := grants(&e, rules)
	if same, err := appendRows(nil, 0, &e, nil); !ok || err != nil || !bytes.Equal(bytes.TrimSuffix(same, []byte("\n")), text) {
		return templates.Entry{}, bad
	}
	return e, nil
}
