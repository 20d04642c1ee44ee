package hivemq

import (
	"io/fs"
	"strings"

	"github.com/imprint-iot/imprint/templates"
)

// Lenient is the target without its doubts about rules: the fleet of the contract has
// one that HiveMQ cannot keep to, and the contract is about files.
func Lenient() templates.Target { return newTarget(nil) }

// DeriveLocked is the verifier of the locked user.
var DeriveLocked = locked

// AgainCredentials reads credentials.xml and writes it again.
func AgainCredentials(src fs.FS) (string, error) {
	key, err := templates.ReadFile(src, templates.KeyFile)
	if err != nil {
		return "", err
	}
	f, err := newSecretFile(key)
	if err != nil {
		return "", err
	}
	var users, roles strings.Builder
	err = eachUser(src, func(e templates.Entry) bool {
		users.Write(appendUser(nil, string(e.ID), &e.Verifiers[0]))
		role, err := f.appendRole(nil, &e)
		if err != nil {
			panic(err) // of a test: it was read
		}
		roles.Write(role)
		return true
	})
	return usersHead + string(f.user) + users.String() + rolesHead + string(f.role) + roles.String() + rolesTail, err
}

// AgainSQL reads users.sql and writes it again.
func AgainSQL(src fs.FS) (string, error) {
	var rows strings.Builder
	err := eachRow(src, nil, func(e templates.Entry) bool {
		b, err := appendSQL(nil, 0, &e, nil)
		if err != nil {
			panic(err) // of a test: it was read
		}
		rows.Write(b)
		return true
	})
	return sqlHead + rows.String() + sqlTail, err
}
