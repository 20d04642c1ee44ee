package hivemq_test

import (
	"bytes"
	"crypto/pbkdf2"
	"crypto/sha512"
	_ "embed"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/hivemq"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// start is the date of the golden files.
func start() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// credentials.xml is as it should be but for the locked user, who is of the key.
func TestGoldenCredentials(t *testing.T) {
	f := targettest.Small(t, time.Now())
	got := read(t, export(t, hivemq.Lenient(), f, hivemq.FileRBAC), hivemq.CredentialsName)
	var lines []string
	locked := 0
	for line := range strings.Lines(got) {
		if strings.Contains(line, ">#imprint<") {
			locked++
			continue
		}
		lines = append(lines, line)
	}
	if locked != 2 {
		t.Errorf("%d lines of the locked user, want 2:\n%s", locked, got)
	}
	golden := filepath.Join("testdata", "golden", hivemq.FileRBAC, hivemq.CredentialsName)
	if *update {
		if err := os.WriteFile(golden, []byte(strings.Join(lines, "")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if want := read(t, filepath.Dir(golden), hivemq.CredentialsName); strings.Join(lines, "") != want {
		t.Errorf("credentials.xml is not as in %s:\n%s", golden, got)
	}
}

// A fleet whose last device is gone still has a file that the extension takes.
func TestEmptyFleet(t *testing.T) {
	f := targettest.NewFleet(t, time.Now())
	got := read(t, export(t, hivemq.Lenient(), f, hivemq.FileRBAC), hivemq.CredentialsName)
	if strings.Count(got, "<user>") != 1 || strings.Count(got, "<permission>") != 1 || !strings.Contains(got, "<name>#imprint</name>") {
		t.Errorf("want the locked user and no other:\n%s", got)
	}
	a, err := hivemq.DeriveLocked([]byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hivemq.DeriveLocked([]byte("another key"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a.Hash, b.Hash) || len(a.Hash) != 64 {
		t.Error("the locked user has the same hash for every key")
	}
}

// Password hashes as other programs make them, of "correct horse".
func TestVectors(t *testing.T) {
	salt := make([]byte, 16)
	for i := range salt {
		salt[i] = byte(i)
	}
	hash, err := pbkdf2.Key(sha512.New, "correct horse", salt, 100, 64)
	if err != nil {
		t.Fatal(err)
	}
	rbac := inventory.Verifier{Scheme: inventory.PBKDF2SHA512, Iterations: 100, Salt: salt, Hash: hash}
	f := targettest.NewFleet(t, time.Now())
	f.Profile("sensor", topic.Rule{Action: topic.Publish, Filter: "fleet/{id}/up"})
	f.Device(t, "dev-1", "sensor", "", "correct horse")
	f.Devices[0].Verifiers = append(slices.DeleteFunc(f.Devices[0].Verifiers, func(v inventory.Verifier) bool { return v.Scheme == inventory.PBKDF2SHA512 }), rbac)
	const want = "<password>AAECAwQFBgcICQoLDA0ODw==:100:rorkyVpIOEgYJgj/2N4GnvShTlCht2Et8NiELDp8q86UBwxhrBMRwg+wCGSW7O7uuv65FHt8bcRnmm7gUy6cVQ==</password>"
	if got := read(t, export(t, hivemq.Lenient(), f, hivemq.FileRBAC), hivemq.CredentialsName); !strings.Contains(got, want) {
		t.Errorf("want %s in\n%s", want, got)
	}
}

// The algorithm of the Enterprise Security Extension, as a public row of its samples
// has it; with one iteration it is the verifier that the rows are written with.
func TestESEVector(t *testing.T) {
	chain := func(password string, salt []byte, iterations int) []byte {
		h := sha512.Sum512(append(slices.Clone(salt), password...))
		for range iterations - 1 {
			h = sha512.Sum512(h[:])
		}
		return h[:]
	}
	if got, want := chain("backendpassword", decode(t, "Nv6NU9XY7tvHdSGaKmNTOw=="), 100), decode(t, "wtUo2dri+ttHGHRpngg9uG21piWLiKSX7IaNSnU/BfN9pt+ZOLQByG/3JlPPQ7t/pl8S3tjR2+Um/DPBdAQULg=="); !bytes.Equal(got, want) {
		t.Errorf("the sample is not of its password: %x", got)
	}
	for _, v := range targettest.Verifiers(t, "dev-1", "correct horse") {
		if v.Scheme == inventory.SHA512Prefix && !bytes.Equal(v.Hash, chain("correct horse", v.Salt, 1)) {
			t.Error("the verifier is not one iteration of the algorithm")
		}
	}
}

// Java reads the stores: keytool is a second opinion. The same fleet makes the same
// octets.
func TestStores(t *testing.T) {
	f := targettest.Small(t, time.Now())
	a, b := export(t, hivemq.Lenient(), f, hivemq.FileRBAC), export(t, hivemq.Lenient(), f, hivemq.ESESQL)
	_, rest, _ := strings.Cut(read(t, a, hivemq.ConfName), "<password>")
	password, _, _ := strings.Cut(rest, "<")
	for name, want := range map[string][]string{hivemq.KeystoreName: {"PrivateKeyEntry", "chain length: 2"}, hivemq.TruststoreName: {"ca-1", "ca-2", "trustedCertEntry"}} {
		if read(t, a, name) != read(t, b, name) {
			t.Errorf("%s is another each time", name)
		}
		for _, kind := range []string{"PKCS12", "JKS"} { // HiveMQ asks for JKS
			out, err := exec.Command("keytool", "-list", "-v", "-storetype", kind, "-keystore", filepath.Join(a, name), "-storepass", password).CombinedOutput()
			if err != nil {
				t.Fatalf("keytool (package default-jre-headless): %v\n%s", err, out)
			}
			for _, w := range want {
				if !strings.Contains(string(out), w) && !strings.Contains(strings.ToLower(string(out)), strings.ToLower(w)) {
					t.Errorf("%s as %s: want %q in\n%s", name, kind, w, out)
				}
			}
		}
	}
	if _, _, err := pkcs12.Decode([]byte(read(t, a, hivemq.KeystoreName)), "changeit"); err == nil {
		t.Error("the keystore opens with everybody's password")
	}
}

// A store that somebody has put another key into is noticed.
func TestForeignStore(t *testing.T) {
	f := targettest.Small(t, time.Now())
	for _, form := range []string{hivemq.FileRBAC, hivemq.ESESQL} {
		for _, name := range []string{hivemq.KeystoreName, hivemq.TruststoreName, hivemq.ConfName} {
			dir := export(t, hivemq.Lenient(), f, form)
			if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			v, err := hivemq.Lenient().Parse(os.DirFS(dir))
			if err == nil {
				for _, e := range v.Entries() {
					err = e
				}
			}
			if err == nil {
				t.Errorf("%s: another %s is not noticed", form, name)
			}
		}
	}
}

// What HiveMQ cannot keep to is refused, and nothing else.
func TestRules(t *testing.T) {
	for _, tt := range []struct {
		action topic.Action
		filter string
		exact  bool
	}{
		{topic.Publish, "fleet/{id}/up", false},
		{topic.Publish, "fleet/{id}/up/#", true},
		{topic.Publish, "fleet/{id}/+", true},
		{topic.Publish, "fleet/{id}/+/#", true},
		{topic.Receive, "fleet/{id}/#", true},
		{topic.Receive, "fleet/{id}/+/down", true},
		{topic.Receive, "fleet/{id}/+/down/#", true},
		{topic.Receive, "fleet//{id}", false},
		{topic.Receive, "fleet/{id}/+", false},
		{topic.Receive, "fleet/{id}/+/#", false},
		{topic.Receive, "fleet/{id}/+/+", false},
		{topic.Publish, "fleet/{id}/", false},
		{topic.Publish, "+/{id}/up", false},
		{topic.Publish, "fleet/{id}/${{username}}", false},
		{topic.Publish, "fleet/{id}/§", false},
		{topic.Publish, `fleet/{id}/\`, false},
		{topic.Receive, "$share/g/fleet/{id}", false},
	} {
		err := hivemq.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: []topic.Rule{{Action: tt.action, Filter: tt.filter}}}})
		bad, ok := errors.AsType[*templates.InexpressibleError](err)
		if (err == nil) != tt.exact || err != nil && (!ok || len(bad.Choices) == 0) {
			t.Errorf("%s %s: %v, want exact: %t", tt.action, tt.filter, err, tt.exact)
		}
	}
}

//go:embed testdata/ese.py
var eseProgram string

// A right of a user, as the tables have it.
type right struct {
	User, Topic        string
	Publish, Subscribe bool
}

// users.sql brings a database to what the fleet is, also from another fleet, and twice;
// others' users stay. SQLite is not PostgreSQL: what is run here is what both read.
func TestSQL(t *testing.T) {
	f := targettest.Small(t, time.Now())
	first := export(t, hivemq.Lenient(), f, hivemq.ESESQL)
	f.Remove("dev-1")
	f.Device(t, "dev-7", "sensor", "hall", "another password")
	i := slices.IndexFunc(f.Devices, func(e templates.Entry) bool { return e.ID == "Dev-2" })
	f.Devices[i].Verifiers = targettest.Verifiers(t, "Dev-2", "new password")
	f.Devices[i].Grants = append(f.Devices[i].Grants, topic.Grant{Action: topic.Publish, Filter: "it's/here"})
	second := export(t, hivemq.Lenient(), f, hivemq.ESESQL)
	cmd := exec.Command("python3", "-c", eseProgram, filepath.Join(first, hivemq.SQLName), filepath.Join(second, hivemq.SQLName), filepath.Join(second, hivemq.SQLName))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python3 (package python3): %v", err)
	}
	var got struct {
		Users  map[string][]any
		Rights []right
		Rest   map[string]int
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	want := map[right]bool{{"admin", "#", true, true}: true}
	users := map[string]bool{"admin": true}
	for _, e := range f.Devices {
		v := slices.IndexFunc(e.Verifiers, func(v inventory.Verifier) bool { return v.Scheme == inventory.SHA512Prefix })
		if v < 0 {
			continue
		}
		users[string(e.ID)] = true
		row := got.Users[string(e.ID)]
		if len(row) != 4 || row[3] != "SHA512" || row[1] != 1.0 || !bytes.Equal(decode(t, row[0].(string)), e.Verifiers[v].Hash) || !bytes.Equal(decode(t, row[2].(string)), e.Verifiers[v].Salt) {
			t.Errorf("user %s is %v", e.ID, row)
		}
		for _, g := range e.Grants {
			want[right{string(e.ID), string(g.Filter), g.Action == topic.Publish, g.Action == topic.Receive}] = true
		}
	}
	if len(got.Users) != len(users) {
		t.Errorf("users %v, want %v", got.Users, users)
	}
	for _, r := range got.Rights {
		if !want[r] {
			t.Errorf("%+v should not be", r)
		}
		delete(want, r)
	}
	for r := range want {
		t.Errorf("%+v is missing", r)
	}
	if got.Rest["orphans"] != 0 || got.Rest["temporary"] != 0 {
		t.Errorf("left over: %v", got.Rest)
	}
}

// What is read is what would be written, or an error.
func FuzzCredentials(f *testing.F) {
	fuzz(f, hivemq.FileRBAC, hivemq.CredentialsName, hivemq.AgainCredentials)
}

// As above.
func FuzzSQL(f *testing.F) { fuzz(f, hivemq.ESESQL, hivemq.SQLName, hivemq.AgainSQL) }

func fuzz(f *testing.F, form, name string, again func(src fs.FS) (string, error)) {
	dir := f.TempDir()
	writeTo(f, dir, targettest.Small(f, start()), form)
	files := fstest.MapFS{}
	for _, n := range []string{name, templates.KeyFile} {
		b, err := os.ReadFile(filepath.Join(dir, n))
		if err != nil {
			f.Fatal(err)
		}
		files[n] = &fstest.MapFile{Data: b, Mode: 0o600}
	}
	whole := string(files[name].Data)
	f.Add(whole)
	f.Add(strings.Replace(whole, "fleet/dev-1", "fleet/dev-3", 1))
	f.Add(strings.Replace(whole, "fleet/dev-1", "it's &amp; &lt;", 1))
	f.Add(whole[:len(whole)/2])
	f.Fuzz(func(t *testing.T, text string) {
		got, err := again(fstest.MapFS{name: {Data: []byte(text), Mode: 0o600}, templates.KeyFile: files[templates.KeyFile]})
		if err == nil && got != text {
			t.Errorf("read and written again it is\n%q\nnot\n%q", got, text)
		}
	})
}
