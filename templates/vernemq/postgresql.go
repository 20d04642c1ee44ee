package vernemq

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"iter"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// The table of vmq_diversity (postgres_cockroach_commons.lua) has a row for each
// mountpoint, client identifier and user name, with a bcrypt hash and two JSON arrays
// of {"pattern": FILTER}. The broker reads the row of a client when it connects and
// goes by it until it is gone. What has no row does not get in.
//
// A client identifier "*" in the table is any: imprint writes none and deletes those
// of others.
const (
	sqlHead = `-- Written by imprint: table vmq_auth_acl becomes the fleet. Run it with
--   psql --set ON_ERROR_STOP=1 --quiet --file vmq_auth_acl.sql DATABASE
-- It is one transaction: all of it, or nothing. Rows of others are deleted.
BEGIN;
SET LOCAL client_encoding = 'UTF8';
SET LOCAL standard_conforming_strings = on;
SET LOCAL client_min_messages = warning;
CREATE TABLE IF NOT EXISTS vmq_auth_acl (
  mountpoint character varying(10) NOT NULL,
  client_id character varying(128) NOT NULL,
  username character varying(128) NOT NULL,
  password character varying(128),
  publish_acl json,
  subscribe_acl json,
  CONSTRAINT vmq_auth_acl_primary_key PRIMARY KEY (mountpoint, client_id, username)
);
LOCK TABLE vmq_auth_acl IN SHARE ROW EXCLUSIVE MODE;
CREATE TEMPORARY TABLE imprint_fleet (
  id character varying(64) PRIMARY KEY,
  password character varying(128) NOT NULL,
  publish_acl text NOT NULL,
  subscribe_acl text NOT NULL
) ON COMMIT DROP;
`
	sqlTail = `DELETE FROM vmq_auth_acl WHERE NOT EXISTS (
  SELECT 1 FROM imprint_fleet f
  WHERE vmq_auth_acl.mountpoint = '' AND vmq_auth_acl.client_id = f.id AND vmq_auth_acl.username = f.id);
INSERT INTO vmq_auth_acl (mountpoint, client_id, username, password, publish_acl, subscribe_acl)
  SELECT '', id, id, password, CAST(publish_acl AS json), CAST(subscribe_acl AS json) FROM imprint_fleet WHERE true
  ON CONFLICT (mountpoint, client_id, username) DO UPDATE
  SET password = excluded.password, publish_acl = excluded.publish_acl, subscribe_acl = excluded.subscribe_acl;
COMMIT;
`
	rowHead = "INSERT INTO imprint_fleet VALUES ("
	rowTail = ");"
)

// postgreSQL is the kit of form "postgresql". A certificate alone opens no door
// there: the listener for certificates asks for the password, too, and a device that
// has none is left out.
func postgreSQL() templates.Kit {
	k := kit()
	k.Lists = []templates.List{
		{PlanFile: templates.PlanFile{Name: SQLName, Mode: 0o640}, Head: sqlHead, Tail: sqlTail, Append: appendRow},
	}
	k.Devices = func(src fs.FS, _ *templates.Setting) func(func(templates.Entry, error) bool) { return readRows(src) }
	k.Pick = pick(inventory.Bcrypt, func(v inventory.Verifier) bool { return isBcrypt(string(v.Hash)) })
	k.Caps.Schemes = []inventory.Scheme{inventory.Bcrypt}
	k.Caps.CertificateIdentity = false
	k.Enforced = append(k.Enforced,
		"client identifier equals user name",
		"on the certificate listener the password of the same device as well")
	k.NotEnforced = append(k.NotEnforced,
		"a device with a certificate and a password may use the password listener alone")
	return k
}

// isBcrypt reports whether a hash is of version 2a, the one that both pgcrypto and
// the broker's bcrypt read.
func isBcrypt(hash string) bool {
	if len(hash) != 60 || !strings.HasPrefix(hash, "$2a$") || hash[6] != '$' {
		return false
	}
	if cost := hash[4:6]; cost < "04" || cost > "31" || cost[1] < '0' || cost[1] > '9' {
		return false
	}
	return strings.Trim(hash[7:], "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") == ""
}

// A pattern is one rule of a JSON access list.
type pattern struct {
	Pattern string `json:"pattern"`
}

func appendRow(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	lists := map[topic.Action][]pattern{topic.Publish: {}, topic.Receive: {}}
	for _, g := range e.Grants {
		if err := writable(e, g.Filter); err != nil {
			return nil, err
		}
		lists[g.Action] = append(lists[g.Action], pattern{string(g.Filter)})
	}
	b = append(b, rowHead...)
	b = appendLiteral(b, []byte(e.ID))
	b = append(b, ", "...)
	b = appendLiteral(b, e.Verifiers[0].Hash)
	for _, a := range []topic.Action{topic.Publish, topic.Receive} {
		list, err := json.Marshal(lists[a])
		if err != nil {
			return nil, err
		}
		b = append(b, ", "...)
		b = appendLiteral(b, list)
	}
	b = append(b, rowTail...)
	return append(b, '\n'), nil
}

// appendLiteral writes a string literal of SQL. With standard_conforming_strings a
// quote is doubled and a backslash is a backslash.
func appendLiteral(b, text []byte) []byte {
	b = append(b, '\'')
	for _, c := range text {
		if c == '\'' {
			b = append(b, c)
		}
		b = append(b, c)
	}
	return append(b, '\'')
}

// cutLiteral reads what appendLiteral writes, up to the next literal.
func cutLiteral(b []byte) (text string, rest []byte, ok bool) {
	b, ok = bytes.CutPrefix(b, []byte("'"))
	if !ok {
		return "", nil, false
	}
	for from := 0; ; {
		i := bytes.IndexByte(b[from:], '\'')
		if i < 0 {
			return "", nil, false
		}
		if i += from; i+1 == len(b) || b[i+1] != '\'' {
			return strings.ReplaceAll(string(b[:i]), "''", "'"), bytes.TrimPrefix(b[i+1:], []byte(", ")), true
		}
		from = i + 2
	}
}

// readRows yields the devices of the SQL file. All around the rows is, to the octet,
// what imprint writes.
func readRows(src fs.FS) iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		head, tail := strings.SplitAfter(sqlHead, "\n"), strings.SplitAfter(sqlTail, "\n")
		frame := append(head[:len(head)-1], tail[:len(tail)-1]...)
		n, seen, rows := 0, 0, len(head)-1
		for line, err := range templates.Lines(src, SQLName, maxLine) {
			n++
			var e templates.Entry
			isRow := bytes.HasPrefix(line, []byte(rowHead))
			switch {
			case err != nil:
			case isRow && seen == rows:
				e, err = parseRow(line, n)
			case seen < len(frame) && string(line)+"\n" == frame[seen]:
				seen++
				continue
			default:
				err = &lineError{SQLName, n, "it is not what imprint writes"}
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

// listsOf yields the two lists of a row with what they allow.
func listsOf(publish, receive string) iter.Seq2[string, topic.Action] {
	return func(yield func(string, topic.Action) bool) {
		_ = yield(publish, topic.Publish) && yield(receive, topic.Receive)
	}
}

func parseRow(line []byte, n int) (templates.Entry, error) {
	var e templates.Entry
	rest, ok := bytes.CutSuffix(line[len(rowHead):], []byte(rowTail))
	var field [4]string
	for i := range field {
		if ok {
			field[i], rest, ok = cutLiteral(rest)
		}
	}
	if !ok || len(rest) > 0 {
		return e, &lineError{SQLName, n, "want four literals"}
	}
	id, err := inventory.ParseDeviceID(field[0])
	if err != nil {
		return e, &lineError{SQLName, n, err.Error()}
	}
	if !isBcrypt(field[1]) {
		return e, &lineError{SQLName, n, "want a hash of bcrypt 2a"}
	}
	e.ID, e.Verifiers = id, []inventory.Verifier{{Scheme: inventory.Bcrypt, Hash: []byte(field[1])}}
	for text, a := range listsOf(field[2], field[3]) {
		var list []pattern
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&list); err != nil || list == nil || d.More() {
			return e, &lineError{SQLName, n, `want a list of {"pattern": FILTER}`}
		}
		for _, p := range list {
			f, err := topic.ParseFilter(p.Pattern)
			if err == nil {
				err = writable(&e, f)
			}
			if err != nil {
				return e, &lineError{SQLName, n, err.Error()}
			}
			e.Grants = append(e.Grants, topic.Grant{Action: a, Filter: f})
		}
	}
	if same, err := appendRow(nil, 0, &e, nil); err != nil || !bytes.Equal(bytes.TrimSuffix(same, []byte("\n")), line) {
		return e, &lineError{SQLName, n, "it is not what imprint writes"}
	}
	return e, nil
}
