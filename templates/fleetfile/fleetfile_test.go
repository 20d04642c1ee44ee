package fleetfile_test

import (
	"bytes"
	"encoding/base64"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates/fleetfile"
)

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
	got := fleetfile.Line(t, "dev-1", v, topic.Grant{Action: topic.Receive, Filter: "a/#"})
	want := `{"id":"dev-1","state":"active","certificate":false,"password":{"iterations":101,"salt":"` + salt + `","hash":"` + hash + `"},"pub":[],"sub":["a/#"]}`
	if got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A file that is not as imprint writes it is not read.
func TestStrict(t *testing.T) {
	const head, one, two = `{"format":"test/1","devices":[`, `{"id":"a","state":"active","certificate":true,"pub":["x"],"sub":[]}`, `{"id":"b","state":"active","certificate":true,"pub":[],"sub":[]}`
	if got, err := fleetfile.Read([]byte(head + "\n" + one + ",\n" + two + "\n]}\n")); err != nil || len(got) != 2 || got[0].ID != "a" || got[1].ID != "b" {
		t.Fatalf("%v, %v, want a and b", got, err)
	}
	for what, text := range map[string]string{
		"nothing":              "",
		"another format":       `{"format":"test/2","devices":[` + "\n]}\n",
		"no end":               head + "\n" + one + "\n",
		"half a line":          head + "\n" + one[:20],
		"a comma too many":     head + "\n" + one + ",\n]}\n",
		"a comma too few":      head + "\n" + one + "\n" + two + "\n]}\n",
		"more after the end":   head + "\n" + one + "\n]}\n{}\n",
		"a space":              head + "\n " + one + "\n]}\n",
		"another state":        head + "\n" + `{"id":"a","state":"gone","certificate":true,"pub":[],"sub":[]}` + "\n]}\n",
		"a field more":         head + "\n" + `{"id":"a","state":"active","certificate":true,"pub":[],"sub":[],"x":1}` + "\n]}\n",
		"a key twice":          head + "\n" + `{"id":"a","id":"a","state":"active","certificate":true,"pub":[],"sub":[]}` + "\n]}\n",
		"null":                 head + "\n" + `{"id":"a","state":"active","certificate":true,"pub":null,"sub":[]}` + "\n]}\n",
		"a bad filter":         head + "\n" + `{"id":"a","state":"active","certificate":true,"pub":["a#"],"sub":[]}` + "\n]}\n",
		"a bad ID":             head + "\n" + `{"id":"a/b","state":"active","certificate":true,"pub":[],"sub":[]}` + "\n]}\n",
		"a short hash":         head + "\n" + `{"id":"a","state":"active","certificate":true,"password":{"iterations":1,"salt":"AAAA","hash":"AAAA"},"pub":[],"sub":[]}` + "\n]}\n",
		"an escape for a text": head + "\n" + `{"id":"a","state":"active","certificate":true,"pub":["\u0061"],"sub":[]}` + "\n]}\n",
	} {
		if got, err := fleetfile.Read([]byte(text)); err == nil {
			t.Errorf("%s is read as %v", what, got)
		}
	}
}

func FuzzDevices(f *testing.F) {
	f.Add([]byte("{\"format\":\"test/1\",\"devices\":[\n]}\n"))
	f.Add([]byte("{\"format\":\"test/1\",\"devices\":[\n{\"id\":\"dev-1\",\"state\":\"active\",\"certificate\":true,\"pub\":[\"a/#\"],\"sub\":[]},\n{\"id\":\"dev-2\",\"state\":\"active\",\"certificate\":true,\"pub\":[],\"sub\":[]}\n]}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := fleetfile.Read(text)
		if err != nil {
			return
		}
		if got := fleetfile.Write(t, entries); !bytes.Equal(got, text) {
			t.Errorf("%q is read, and written as %q", text, got)
		}
	})
}
