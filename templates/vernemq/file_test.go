package vernemq_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/crypto/bcrypt"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/vernemq"
)

// A line that VerneMQ's own password module has accepted for the password
// "correct horse", and a hash of bcrypt for it.
const (
	vectorLine   = "dev-1:$6$AAECAwQFBgcICQoL$5W8GCQ9GLgmhmQvoa8jmRaPnsh82mRigdSv6mQsK0sMIII/WznlQb1g+RWddfoAKTMzBJP1deJU+Rp/1QZ0zZg=="
	vectorBcrypt = "$2a$10$abcdefghijklmnopqrstuu23JPZtHcGhwXSF41f93o/7vBdDut3Xu"
)

func TestVectors(t *testing.T) {
	salt := []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
	hash := sha512.Sum512(append([]byte("correct horse"), salt...))
	if got := base64.StdEncoding.EncodeToString(hash[:]); !strings.HasSuffix(vectorLine, "$"+got) {
		t.Fatalf("hash %s, want that of %s", got, vectorLine)
	}
	f := small(t)
	f.Devices = f.Devices[:1]
	f.Devices[0].Verifiers = []inventory.Verifier{
		{Scheme: inventory.SHA512Suffix, Salt: salt, Hash: hash[:]},
		{Scheme: inventory.Bcrypt, Hash: []byte(vectorBcrypt)},
	}
	if err := bcrypt.CompareHashAndPassword([]byte(vectorBcrypt), []byte("correct horse")); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, f, templates.Options{Now: f.Now})
	if got, err := os.ReadFile(filepath.Join(dir, vernemq.PasswordName)); err != nil || string(got) != vectorLine+"\n" {
		t.Errorf("%s is %q, %v, want %q", vernemq.PasswordName, got, err, vectorLine)
	}
	write(t, dir, f, templates.Options{Form: vernemq.PostgreSQL, Now: f.Now})
	if got, err := os.ReadFile(filepath.Join(dir, vernemq.SQLName)); err != nil || !strings.Contains(string(got), "('dev-1', '"+vectorBcrypt+"', '[{") {
		t.Errorf("%s has no such row: %v\n%s", vernemq.SQLName, err, got)
	}
}

// A verifier that the broker cannot read is no password: with a certificate the
// device goes on, without one it is an error.
func TestUnreadableVerifier(t *testing.T) {
	for form, v := range map[string]inventory.Verifier{
		vernemq.File:       {Scheme: inventory.PBKDF2SHA512, Iterations: 101, Salt: []byte("salt"), Hash: make([]byte, 64)},
		vernemq.PostgreSQL: {Scheme: inventory.Bcrypt, Hash: []byte(strings.Replace(vectorBcrypt, "$2a$", "$2b$", 1))},
	} {
		f := small(t)
		f.Devices[0].Verifiers = []inventory.Verifier{v}
		if _, err := writeErr(t, t.TempDir(), f, templates.Options{Form: form, Now: f.Now}); err == nil {
			t.Errorf("form %s: %s is exported", form, v.Scheme)
		}
	}
}

// What either file cannot have is an error that names the line.
func TestParseRefuses(t *testing.T) {
	const acl = "user dev-1\ntopic write x\n"
	const password = vectorLine + "\n"
	for _, tt := range []struct{ name, password, acl, want string }{
		{"a comment", "# x\n" + password, acl, "vmq.passwd: line 1"},
		{"an empty line", password + "\n", acl, "vmq.passwd: line 2"},
		{"another type", "dev-1:$7$101$AA==$AA==\n", acl, "vmq.passwd: line 1"},
		{"a colon more", strings.Replace(password, "dev-1:", "dev:1:", 1), acl, "vmq.passwd: line 1"},
		{"a return", strings.Replace(password, "\n", "\r\n", 1), acl, "vmq.passwd: line 1"},
		{"no last end", vectorLine, acl, "vmq.passwd: the last line has no end"},
		{"a short hash", "dev-1:$6$AAAA$AAAA\n", acl, "vmq.passwd: line 1"},
		{"no padding", strings.Replace(password, "==", "", 1), acl, "vmq.passwd: line 1"},
		{"no section", password, "user dev-2\n", `"dev-1"`},
		{"the same user twice", password + password, acl, `"dev-1"`},
		{"a topic for everybody", password, "topic write x\n" + acl, "vmq.acl: line 1"},
		{"readwrite", password, "user dev-1\ntopic readwrite x\n", "vmq.acl: line 2"},
		{"no word", password, "user dev-1\ntopic x\n", "vmq.acl: line 2"},
		{"deny", password, "user dev-1\ntopic deny x\n", "vmq.acl: line 2"},
		{"a pattern", password, acl + "pattern write x/%u\n", "vmq.acl: line 3"},
		{"a placeholder", password, "user dev-1\ntopic write x/%u\n", "vmq.acl: line 2"},
		{"a space at the end", password, "user dev-1\ntopic write x \n", "vmq.acl: line 2"},
		{"a bad name", password, "user a+\n", "vmq.acl: line 1"},
		{"out of order", password, acl + "user aaa\n", "out of order"},
		{"two sections", password, acl + acl, "out of order"},
	} {
		_, err := parse(t, fstest.MapFS{vernemq.PasswordName: {Data: []byte(tt.password)}, vernemq.ACLName: {Data: []byte(tt.acl)}}, vernemq.File)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestParseRefusesSQL(t *testing.T) {
	good := goldenSQL(t)
	if _, err := parse(t, fstest.MapFS{vernemq.SQLName: {Data: good}}, vernemq.PostgreSQL); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{"BEGIN;\n", ""},
		{"COMMIT;\n", "COMMIT;\nDROP TABLE vmq_auth_acl;\n"},
		{"COMMIT;\n", ""},
		{"DELETE FROM vmq_auth_acl", "-- DELETE FROM vmq_auth_acl"},
		{"VALUES ('dev-1', ", "VALUES ('dev-1' || 'x', "},
		{"VALUES ('dev-1', ", "VALUES ('*', "},
		{"'$2a$", "'$2y$"},
		{`"pattern"`, `"modifiers"`},
		{`[{"pattern"`, `null; [{"pattern"`},
		{"fleet/dev-1/", "fleet/%u/"},
		{"]');\n", "]'); --\n"},
	} {
		bad := bytes.Replace(good, []byte(change[0]), []byte(change[1]), 1)
		if bytes.Equal(bad, good) {
			t.Fatalf("there is no %q", change[0])
		}
		if _, err := parse(t, fstest.MapFS{vernemq.SQLName: {Data: bad}}, vernemq.PostgreSQL); err == nil {
			t.Errorf("with %q in place of %q it is read", change[1], change[0])
		}
	}
}

func goldenSQL(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "golden", vernemq.PostgreSQL, vernemq.SQLName))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// parse reads the lists of src beside the other files of an export.
func parse(t testing.TB, src fstest.MapFS, form string) ([]templates.Entry, error) {
	t.Helper()
	var out []templates.Entry
	for e, err := range vernemq.Devices(src, form) {
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// Whatever the lists are, reading them ends, and what is read can be written and read
// again as the same.
func FuzzDevices(f *testing.F) {
	f.Add([]byte(vectorLine+"\n"), []byte("user dev-1\ntopic write x\ntopic read a b/#\n"), []byte(""))
	f.Add([]byte("# x\n"), []byte("user dev-1\nuser dev-2\n"), goldenSQL(f))
	f.Fuzz(func(t *testing.T, password, acl, sql []byte) {
		src := fstest.MapFS{vernemq.PasswordName: {Data: password}, vernemq.ACLName: {Data: acl}, vernemq.SQLName: {Data: sql}}
		for _, form := range []string{vernemq.File, vernemq.PostgreSQL} {
			entries, err := parse(t, src, form)
			if err != nil {
				continue
			}
			again := vernemq.Lists(t, form, entries)
			for name, data := range again {
				if !bytes.Equal(data, src[name].Data) {
					t.Errorf("%s is read from %q and written as %q", name, src[name].Data, data)
				}
			}
		}
	})
}
