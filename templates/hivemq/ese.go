package hivemq

import (
	"encoding/base64"
	"fmt"
	"io/fs"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// users.sql brings the tables of the Enterprise Security Extension to what the fleet
// is, in one transaction. Users that imprint keeps have the role "imprint"; all others
// are left alone. The rows of the fleet go into two temporary tables, one statement on
// a line, and the rest is worked out in SQL that PostgreSQL and SQLite both read.
//
// A password is base64 of SHA-512 over the salt and the password, with one iteration
// of the algorithm that the extension calls SHA512.
const sqlHead = `-- Written by imprint. Do not edit: the next export replaces it.
-- One transaction: psql needs no --single-transaction.
BEGIN;
CREATE TEMPORARY TABLE imprint_user (username text PRIMARY KEY, password text NOT NULL, salt text NOT NULL);
CREATE TEMPORARY TABLE imprint_rule (username text NOT NULL, topic text NOT NULL, publish boolean NOT NULL, subscribe boolean NOT NULL);
`

const sqlTail = `-- An index for the key that points at permissions: without it each deletion reads all rows.
CREATE INDEX IF NOT EXISTS imprint_user_permissions ON user_permissions (permission);
CREATE INDEX IF NOT EXISTS imprint_role_permissions ON role_permissions (permission);
CREATE INDEX IF NOT EXISTS imprint_permissions ON permissions (topic);
ANALYZE imprint_user;
ANALYZE imprint_rule;
-- Who is kept by imprint has its role.
INSERT INTO roles (name, description) SELECT 'imprint', 'kept by imprint' WHERE NOT EXISTS (SELECT 1 FROM roles WHERE name = 'imprint');
CREATE TEMPORARY TABLE imprint_old (id integer PRIMARY KEY);
INSERT INTO imprint_old (id) SELECT u.user_id FROM user_roles u JOIN roles r ON r.id = u.role_id WHERE r.name = 'imprint';
-- Who is in the fleet is a user, with this password, and nobody else's any more.
UPDATE users SET
 password = (SELECT n.password FROM imprint_user n WHERE n.username = users.username),
 password_salt = (SELECT n.salt FROM imprint_user n WHERE n.username = users.username),
 password_iterations = 1, algorithm = 'SHA512'
 WHERE EXISTS (SELECT 1 FROM imprint_user n WHERE n.username = users.username
  AND (COALESCE(users.password, '') <> n.password OR users.password_salt <> n.salt OR users.password_iterations <> 1 OR users.algorithm <> 'SHA512'));
INSERT INTO users (username, password, password_iterations, password_salt, algorithm)
 SELECT n.username, n.password, 1, n.salt, 'SHA512' FROM imprint_user n WHERE NOT EXISTS (SELECT 1 FROM users u WHERE u.username = n.username);
INSERT INTO imprint_old (id) SELECT u.id FROM users u JOIN imprint_user n ON n.username = u.username
 WHERE NOT EXISTS (SELECT 1 FROM imprint_old o WHERE o.id = u.id);
ANALYZE imprint_old;
-- The rights that there should be.
INSERT INTO permissions (topic, publish_allowed, subscribe_allowed, qos_0_allowed, qos_1_allowed, qos_2_allowed, retained_msgs_allowed, shared_sub_allowed, shared_group)
 SELECT DISTINCT r.topic, r.publish, r.subscribe, TRUE, TRUE, TRUE, TRUE, FALSE, 'imprint' FROM imprint_rule r
 WHERE NOT EXISTS (SELECT 1 FROM permissions p WHERE p.topic = r.topic AND p.publish_allowed = r.publish AND p.subscribe_allowed = r.subscribe
  AND p.qos_0_allowed AND p.qos_1_allowed AND p.qos_2_allowed AND p.retained_msgs_allowed AND NOT p.shared_sub_allowed AND p.shared_group = 'imprint');
CREATE TEMPORARY TABLE imprint_want (user_id integer NOT NULL, permission integer NOT NULL, PRIMARY KEY (user_id, permission));
INSERT INTO imprint_want (user_id, permission)
 SELECT DISTINCT u.id, p.id FROM imprint_rule r JOIN users u ON u.username = r.username
 JOIN permissions p ON p.topic = r.topic AND p.publish_allowed = r.publish AND p.subscribe_allowed = r.subscribe
  AND p.qos_0_allowed AND p.qos_1_allowed AND p.qos_2_allowed AND p.retained_msgs_allowed AND NOT p.shared_sub_allowed AND p.shared_group = 'imprint';
ANALYZE imprint_want;
-- What was and should not be is gone: rights, the role, users.
CREATE TEMPORARY TABLE imprint_gone (id integer PRIMARY KEY);
INSERT INTO imprint_gone (id) SELECT DISTINCT x.permission FROM user_permissions x JOIN imprint_old o ON o.id = x.user_id
 WHERE NOT EXISTS (SELECT 1 FROM imprint_want w WHERE w.user_id = x.user_id AND w.permission = x.permission);
DELETE FROM user_permissions WHERE user_id IN (SELECT id FROM imprint_old)
 AND NOT EXISTS (SELECT 1 FROM imprint_want w WHERE w.user_id = user_permissions.user_id AND w.permission = user_permissions.permission);
INSERT INTO user_permissions (user_id, permission) SELECT w.user_id, w.permission FROM imprint_want w
 WHERE NOT EXISTS (SELECT 1 FROM user_permissions x WHERE x.user_id = w.user_id AND x.permission = w.permission);
DELETE FROM permissions WHERE id IN (SELECT id FROM imprint_gone)
 AND NOT EXISTS (SELECT 1 FROM user_permissions x WHERE x.permission = permissions.id)
 AND NOT EXISTS (SELECT 1 FROM role_permissions x WHERE x.permission = permissions.id);
DELETE FROM user_roles WHERE user_id IN (SELECT id FROM imprint_old);
INSERT INTO user_roles (user_id, role_id) SELECT u.id, r.id FROM users u JOIN imprint_user n ON n.username = u.username JOIN roles r ON r.name = 'imprint';
DELETE FROM users WHERE id IN (SELECT id FROM imprint_old) AND NOT EXISTS (SELECT 1 FROM imprint_user n WHERE n.username = users.username);
DROP TABLE imprint_gone;
DROP TABLE imprint_want;
DROP TABLE imprint_old;
DROP TABLE imprint_rule;
DROP TABLE imprint_user;
COMMIT;
`

const (
	insertUser = "INSERT INTO imprint_user VALUES ("
	insertRule = "INSERT INTO imprint_rule VALUES ("
)

// appendSQL appends the rows of a device.
func appendSQL(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	if len(e.Verifiers) != 1 {
		return nil, &templates.EntryError{ID: e.ID, Why: "no password"}
	}
	v := e.Verifiers[0]
	b = append(appendSQLText(append(b, insertUser...), string(e.ID)), ", '"...)
	b = append(base64.StdEncoding.AppendEncode(b, v.Hash), "', '"...)
	b = append(base64.StdEncoding.AppendEncode(b, v.Salt), "');\n"...)
	for _, g := range e.Grants {
		if err := checkText(e, g.Filter); err != nil {
			return nil, err
		}
		b = append(appendSQLText(append(b, insertRule...), string(e.ID)), ", "...)
		b = appendSQLText(b, string(g.Filter))
		switch g.Action {
		case topic.Publish:
			b = append(b, sqlPublish...)
		case topic.Receive:
			b = append(b, sqlReceive...)
		default:
			return nil, &templates.EntryError{ID: e.ID, Why: "an action that is none"}
		}
	}
	return b, nil
}

// How a row for a rule ends.
const (
	sqlPublish = ", TRUE, FALSE);\n"
	sqlReceive = ", FALSE, TRUE);\n"
)

// appendSQLText appends a string literal. There is no backslash in it, which
// PostgreSQL might read in a way of its own.
func appendSQLText(b []byte, s string) []byte {
	return append(append(append(b, '\''), strings.ReplaceAll(s, "'", "''")...), '\'')
}

// readSQL reads what appendSQL writes, as a function that yields the devices.
func readSQL(src fs.FS, s *templates.Setting) func(yield func(templates.Entry, error) bool) {
	return func(yield func(templates.Entry, error) bool) {
		err := checkBrokerFiles(src, s)
		if err == nil {
			err = eachRow(src, s, func(e templates.Entry) bool { return yield(e, nil) })
		}
		if err != nil {
			yield(templates.Entry{}, err)
		}
	}
}

func eachRow(src fs.FS, s *templates.Setting, yield func(templates.Entry) bool) error {
	l, err := openLines(src, SQLName)
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.expect(sqlHead); err != nil {
		return err
	}
	tailFirst, tailRest, _ := strings.Cut(sqlTail, "\n")
	line, more, err := l.until(tailFirst)
	for more && err == nil {
		rows := line + "\n"
		for {
			if line, more, err = l.until(tailFirst); err != nil || !more || !strings.HasPrefix(line, insertRule) {
				break
			}
			rows += line + "\n"
		}
		e, ok := parseRows(rows, s)
		if !ok {
			return l.foreign()
		}
		if !yield(e) {
			return nil
		}
	}
	if err != nil {
		return err
	}
	return l.end(tailRest)
}

// parseRows reads the rows of one device. There is one way to write them.
func parseRows(rows string, s *templates.Setting) (e templates.Entry, ok bool) {
	user, rules, _ := strings.Cut(rows, "\n")
	f := strings.Split(strings.TrimPrefix(user, insertUser), "'")
	if len(f) != 7 {
		return e, false
	}
	e.ID = inventory.DeviceID(f[1])
	hash, err1 := base64.StdEncoding.DecodeString(f[3])
	salt, err2 := base64.StdEncoding.DecodeString(f[5])
	if err1 != nil || err2 != nil || len(hash) != 64 || len(salt) == 0 {
		return e, false
	}
	e.Verifiers = []inventory.Verifier{{Scheme: inventory.SHA512Prefix, Salt: salt, Hash: hash}}
	for row := range strings.Lines(rules) {
		text, ok := strings.CutPrefix(row, fmt.Sprintf("%s'%s', '", insertRule, e.ID))
		g := topic.Grant{Action: topic.Publish}
		rest, publish := strings.CutSuffix(text, "'"+sqlPublish)
		if !publish {
			g.Action = topic.Receive
			rest, _ = strings.CutSuffix(text, "'"+sqlReceive)
		}
		if !ok {
			return e, false
		}
		g.Filter = topic.Filter(strings.ReplaceAll(rest, "''", "'"))
		e.Grants = append(e.Grants, g)
	}
	again, err := appendSQL(nil, 0, &e, s)
	return e, err == nil && string(again) == rows
}
