package nats_test

import (
	"bytes"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/nats"
)

// hash is bcrypt 2a with cost 4 of "correct horse".
const hash = "$2a$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e"

func users() []templates.Entry {
	return []templates.Entry{
		{ID: "dev-1", Verifiers: []inventory.Verifier{{Scheme: inventory.Bcrypt, Hash: []byte(hash)}}, Grants: []topic.Grant{
			{Action: topic.Publish, Filter: "fleet/dev-1/up/#"}, {Action: topic.Receive, Filter: "a.b//\"/\\/+/c"},
		}},
		{ID: "dev-2", Verifiers: []inventory.Verifier{{Scheme: inventory.Bcrypt, Hash: []byte("$2b" + hash[3:])}}},
	}
}

// What no export has is refused: whoever changed the file would have to find out from
// devices that are let in.
func TestReadUsersRefuses(t *testing.T) {
	good := nats.Users(t, nats.Password, "", users())
	for _, tt := range []struct{ name, old, new string }{
		{"another user", `"dev-2"`, `"dev 2"`},
		{"a reserved user", `"dev-2"`, `"admin"`},
		{"no password", `, password: "$2b`, `, nkey: "$2b`},
		{"a password in the clear", "$2b" + hash[3:], "secret"},
		{"all allowed", `publish: { allow: ["imprint/nothing"] }`, `publish: { allow: [] }`},
		{"no permissions", `, permissions: { publish: { allow: ["imprint/nothing"] }, subscribe: { allow: ["imprint/nothing"] } }`, ""},
		{"everything", `"fleet.dev-1.up.>"`, `">"`},
		{"without the level above", `, "fleet.dev-1.up"`, ""},
		{"with another level above", `, "fleet.dev-1.up"`, `, "fleet.dev-2.up"`},
		{"a subject that is no topic", `"fleet.dev-1.up.>", "fleet.dev-1.up"`, `"a/b"`},
		{"every connection", `"dev-2", password: "$2b` + hash[3:] + `", permissions: { publish: { allow: ["imprint/nothing"] }, subscribe: { allow: ["imprint/nothing"] } }, allowed_connection_types: ["MQTT"]`, `"dev-2"`},
		{"no sentinel", `imprint:nobody`, `imprint:somebody`},
		{"a line more", "\n]\n", "\n\n]\n"},
		{"an end that is missing", "\n]\n", "\n"},
		{"a last line without end", "\n]\n", "\n]"},
		{"a comment", "users = [\n", "users = [ # all\n"},
	} {
		bad := bytes.Replace(good, []byte(tt.old), []byte(tt.new), 1)
		if bytes.Equal(bad, good) {
			t.Errorf("%s: nothing is changed", tt.name)
		}
		if n, err := read(bad, nats.Password, ""); err == nil {
			t.Errorf("%s: %d users are read", tt.name, n)
		}
	}
	if n, err := read(good, nats.Password, ""); n != 2 || err != nil {
		t.Errorf("%d users, %v", n, err)
	}
	if _, err := read(nats.Users(t, nats.Certificate, "acme.example", users()), nats.Certificate, "other.example"); err == nil {
		t.Error("users of another trust domain are read")
	}
}

func read(text []byte, form, domain string) (int, error) {
	n := 0
	for _, err := range nats.ReadUsers(fstest.MapFS{nats.UsersName: {Data: text}}, form, domain) {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// FuzzUsers: whatever is read is written like that.
func FuzzUsers(f *testing.F) {
	for _, form := range forms() {
		f.Add(nats.Users(f, form, "acme.example", users()), form)
		f.Add(nats.Users(f, form, "acme.example", nil), form)
	}
	f.Fuzz(func(t *testing.T, text []byte, form string) {
		if !slices.Contains(forms(), form) {
			return
		}
		var entries []templates.Entry
		for e, err := range nats.ReadUsers(fstest.MapFS{nats.UsersName: {Data: text}}, form, "acme.example") {
			if err != nil {
				return
			}
			entries = append(entries, e)
		}
		if again := nats.Users(t, form, "acme.example", entries); !bytes.Equal(again, text) {
			t.Errorf("%q is read, and written as %q", text, again)
		}
	})
}
