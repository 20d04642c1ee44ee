package aedes_test

import (
	"bytes"
	"encoding/base64"
	"flag"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates/aedes"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTarget(t *testing.T) {
	targettest.Run(t, targettest.Case{
		Name: "module", Target: aedes.Target(), Golden: filepath.Join("testdata", "golden"), Update: *update,
		Volatile: []string{aedes.ModuleName, aedes.ServerName}, // they are in this directory as they are
	})
}

// The verifier of "correct horse" with the salt 00 01 ... 0b and 101 iterations is the
// one that mosquitto_passwd makes.
func TestGoldenHash(t *testing.T) {
	const salt, hash = "AAECAwQFBgcICQoL", "lp0Cm29zl+CI/RXyXDKvLye7OxM3OuE6RMzgXTX/f3imS/pFh2Ur7yarLDpKRUKpB0tOj6l0UrRv41zqxmD4tg=="
	decode := func(text string) []byte {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	v := inventory.Verifier{Scheme: inventory.PBKDF2SHA512, Iterations: 101, Salt: decode(salt), Hash: decode(hash)}
	got := aedes.Line(t, "dev-1", v, topic.Grant{Action: topic.Receive, Filter: "a/#"})
	want := `{"id":"dev-1","state":"active","certificate":false,"password":{"iterations":101,"salt":"` + salt + `","hash":"` + hash + `"},"pub":[],"sub":["a/#"]}`
	if got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if why := node(t, `
		const { pbkdf2Sync } = require('node:crypto')
		process.stdout.write(pbkdf2Sync('correct horse', Buffer.from('`+salt+`', 'base64'), 101, 64, 'sha512').toString('base64'))`); why != hash {
		t.Errorf("Node.js makes %s of it, want %s", why, hash)
	}
}

func TestRule(t *testing.T) {
	for filter, exact := range map[string]bool{
		"#": true, "+/a/+": true, "a/#": true,
		strings.Repeat("a/", 99) + "b":  true,
		strings.Repeat("a/", 100) + "b": false,
	} {
		err := aedes.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: []topic.Rule{{Action: topic.Receive, Filter: filter, Shared: true}}}})
		if (err == nil) != exact {
			t.Errorf("%.20s...: %v, want exact %v", filter, err, exact)
		}
	}
}

func FuzzDevices(f *testing.F) {
	f.Add([]byte("{\"format\":\"imprint-aedes/1\",\"devices\":[\n]}\n"))
	f.Add([]byte("{\"format\":\"imprint-aedes/1\",\"devices\":[\n{\"id\":\"dev-1\",\"state\":\"active\",\"certificate\":true,\"pub\":[\"a/#\"],\"sub\":[]},\n{\"id\":\"dev-2\",\"state\":\"active\",\"certificate\":true,\"pub\":[],\"sub\":[]}\n]}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := aedes.Read(text)
		if err != nil {
			return
		}
		if got := aedes.Write(t, entries); !bytes.Equal(got, text) {
			t.Errorf("%q is read, and written as %q", text, got)
		}
	})
}
