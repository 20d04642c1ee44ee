package mosca_test

import (
	"bytes"
	"encoding/base64"
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates/brokertest"
	"github.com/imprint-iot/imprint/templates/mosca"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTarget(t *testing.T) {
	targettest.Run(t, targettest.Case{
		Name: "module", Target: mosca.Target(), Golden: filepath.Join("testdata", "golden"), Update: *update,
		Volatile: []string{mosca.ModuleName, mosca.ServerName}, // they are in this directory as they are
	})
}

// The verifier of S3cret-pw_01 with the salt 00 01 ... 3f is the one that Mosca's own
// password module makes, and Mosca's own authorizer takes the line.
func TestGoldenHash(t *testing.T) {
	const hash = "o/nM5HnGodzYjgn7GCll0r8a94ZXTDV3jbw6kQJCJrY+nHzA+fszrjtz4BRNCXK+Pwzv3JJuXZqBv0lOgugGP3PRRObYrcYGM8wgCSIdYw5/2Lmi6fAxGMexghA76RZlopR2qsEWqymGKYAAF6N83Xt8G1XkwhK00QV1USLDn7E="
	sum, err := base64.StdEncoding.DecodeString(hash)
	if err != nil {
		t.Fatal(err)
	}
	salt := make([]byte, 64)
	for i := range salt {
		salt[i] = byte(i)
	}
	v := inventory.Verifier{Scheme: inventory.PBKDF2SHA1, Iterations: 10_000, Salt: salt, Hash: sum}
	got := mosca.Line(t, "dev-001", v, topic.Grant{Action: topic.Receive, Filter: "a/#"})
	want := `"dev-001":{"salt":"` + base64.StdEncoding.EncodeToString(salt) + `","hash":"` + hash + `","authorizePublish":"#","authorizeSubscribe":"#","pub":[],"sub":["a/#"]}`
	if got != want {
		t.Errorf("%s, want %s", got, want)
	}

	// Without the module its rights are none.
	out := node(t, fmt.Sprintf(`
		const Authorizer = require(%q)
		const a = new Authorizer(JSON.parse(%q))
		const client = {}
		a.authenticate(client, 'dev-001', 'S3cret-pw_01', (err, ok) => {
			const say = [err, ok]
			for (const topic of ['a', 'a/b', '#', '', '/', '$SYS/x']) {
				a.authorizePublish(client, topic, '', (err, ok) => say.push(ok))
				a.authorizeSubscribe(client, topic, (err, ok) => say.push(ok))
			}
			console.log(JSON.stringify(say))
		})`, filepath.Join(brokertest.Home(t, "mosca"), "node_modules", "mosca", "lib", "authorizer.js"), "{"+got+"}"))
	if want := "[null,true" + strings.Repeat(",false", 12) + "]"; strings.TrimSpace(out) != want {
		t.Errorf("Mosca alone says %s, want %s", out, want)
	}
}

// Why the globs are not used: what Mosca's matcher makes of them.
func TestGlobsAreWider(t *testing.T) {
	for _, tt := range []struct{ topic, glob string }{
		{"a//b", "a/b"}, {"a/b/", "a/b"}, {"a/", "a"}, {"a//b", "{a/b,c}"}, {"a/#", "a/*"}, {"$SYS/x", "**"},
	} {
		out := node(t, fmt.Sprintf("console.log(require(%q)(%q, %q))", filepath.Join(brokertest.Home(t, "mosca"), "node_modules", "minimatch"), tt.topic, tt.glob))
		if strings.TrimSpace(out) != "true" {
			t.Errorf("%s matches %s: %s, want true", tt.topic, tt.glob, out)
		}
	}
}

func FuzzDevices(f *testing.F) {
	f.Add([]byte("{\n}\n"))
	f.Add([]byte("{\n\"dev-1\":{\"salt\":\"AAAA\",\"hash\":\"" + strings.Repeat("A", 170) + "A=\",\"authorizePublish\":\"#\",\"authorizeSubscribe\":\"#\",\"pub\":[],\"sub\":[]}\n}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := mosca.Read(text)
		if err != nil {
			return
		}
		if got := mosca.Write(t, entries); !bytes.Equal(got, text) {
			t.Errorf("%q is read, and written as %q", text, got)
		}
	})
}
