package flashmq_test

import (
	"bytes"
	"crypto/pbkdf2"
	"crypto/sha512"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/flashmq"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// Lines of Mosquitto's password file, which FlashMQ reads, for the password "correct
// horse".
const (
	vector6 = "dev-1:$6$AAECAwQFBgcICQoL$5W8GCQ9GLgmhmQvoa8jmRaPnsh82mRigdSv6mQsK0sMIII/WznlQb1g+RWddfoAKTMzBJP1deJU+Rp/1QZ0zZg=="
	vector7 = "dev-1:$7$101$AAECAwQFBgcICQoL$lp0Cm29zl+CI/RXyXDKvLye7OxM3OuE6RMzgXTX/f3imS/pFh2Ur7yarLDpKRUKpB0tOj6l0UrRv41zqxmD4tg=="
)

func TestVectors(t *testing.T) {
	salt := []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
	hash6 := sha512.Sum512(append([]byte("correct horse"), salt...))
	hash7, err := pbkdf2.Key(sha512.New, "correct horse", salt, 101, 64)
	if err != nil {
		t.Fatal(err)
	}
	for want, v := range map[string]inventory.Verifier{
		vector6: {Scheme: inventory.SHA512Suffix, Salt: salt, Hash: hash6[:]},
		vector7: {Scheme: inventory.PBKDF2SHA512, Iterations: 101, Salt: salt, Hash: hash7},
	} {
		f := targettest.Small(t, start())
		f.Devices = f.Devices[:1]
		f.Devices[0].Verifiers = []inventory.Verifier{v}
		dir := t.TempDir()
		write(t, dir, f, templates.Options{Now: f.Now})
		if got, err := os.ReadFile(filepath.Join(dir, flashmq.PasswordName)); err != nil || string(got) != want+"\n" {
			t.Errorf("%s is %q, %v, want %q", flashmq.PasswordName, got, err, want)
		}
	}
	f := targettest.Small(t, start())
	f.Devices[0].Verifiers = []inventory.Verifier{{Scheme: inventory.SHA256Suffix, Salt: salt, Hash: hash6[:32]}}
	if _, err := writeErr(t, t.TempDir(), f, templates.Options{Now: f.Now}); err == nil {
		t.Error("a password that FlashMQ cannot check is exported")
	}
}

// What either file cannot have is an error that names the line.
func TestParseRefuses(t *testing.T) {
	const acl = "user dev-1\ntopic write x\n"
	const password = vector7 + "\n"
	for _, tt := range []struct{ name, password, acl, want string }{
		{"a comment", "# x\n" + password, acl, "passwd: line 1"},
		{"an empty line", password + "\n", acl, "passwd: line 2"},
		{"argon2", "dev-1:$argon2id$v=19$m=64$x$y\n", acl, "passwd: line 1"},
		{"iterations with a sign", strings.Replace(password, "$101$", "$+101$", 1), acl, "passwd: line 1"},
		{"no iterations", strings.Replace(password, "$101$", "$0$", 1), acl, "passwd: line 1"},
		{"a return", strings.Replace(password, "\n", "\r\n", 1), acl, "passwd: line 1"},
		{"no last end", vector7, acl, "passwd: the last line has no end"},
		{"no padding", strings.Replace(password, "==", "", 1), acl, "passwd: line 1"},
		{"a space before", " " + password, acl, "passwd: line 1"},
		{"the same user twice", password + password, acl, `"dev-1"`},
		{"no section", password, "user dev-2\n", `"dev-1"`},
		{"before the first user", password, "topic write x\n" + acl, "acl: line 1"},
		{"readwrite", password, "user dev-1\ntopic readwrite x\n", "acl: line 2"},
		{"deny", password, "user dev-1\ntopic deny x\n", "acl: line 2"},
		{"a pattern", password, acl + "pattern write x/%u\n", "acl: line 3"},
		{"a placeholder", password, "user dev-1\ntopic write x/%u\n", "acl: line 2"},
		{"a space inside", password, "user dev-1\ntopic write x y\n", "acl: line 2"},
		{"a # without its parent", password, "user dev-1\ntopic write x/#\ntopic write y\n", "acl: line 3"},
		{"a # at the end", password, "user dev-1\ntopic write x/#\n", "the last line is missing"},
		{"out of order", password, acl + "user aaa\n", "out of order"},
		{"two sections", password, acl + acl, "out of order"},
	} {
		_, err := parse(fstest.MapFS{flashmq.PasswordName: {Data: []byte(tt.password)}, flashmq.ACLName: {Data: []byte(tt.acl)}})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func parse(src fstest.MapFS) ([]templates.Entry, error) {
	var out []templates.Entry
	for e, err := range flashmq.Devices(src) {
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// Whatever the lists are, reading them ends, and what is read is written as it was.
func FuzzDevices(f *testing.F) {
	f.Add([]byte(vector6+"\n"), []byte("user dev-1\ntopic write x/#\ntopic write x\ntopic read a/+\n"))
	f.Add([]byte(vector7+"\n"), []byte("user dev-1\nuser dev-2\n"))
	f.Fuzz(func(t *testing.T, password, acl []byte) {
		src := fstest.MapFS{flashmq.PasswordName: {Data: password}, flashmq.ACLName: {Data: acl}}
		entries, err := parse(src)
		if err != nil {
			return
		}
		for name, data := range flashmq.Lists(t, entries) {
			if !bytes.Equal(data, src[name].Data) {
				t.Errorf("%s is read from %q and written as %q", name, src[name].Data, data)
			}
		}
	})
}
