package foreign

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

func TestDetectNothing(t *testing.T) {
	src := fstest.MapFS{"README.md": {Data: []byte("# hello")}, "empty": {}, "binary": {Data: []byte{0, 1, 2}}, "x.json": {Data: []byte(`{"a":1}`)}}
	kinds, err := Detect(src)
	if err != nil || len(kinds) != 0 {
		t.Errorf("Detect = %v, %v", kinds, err)
	}
	for _, kind := range []string{"", Mosquitto, "nonsense"} {
		if _, err := Read(t.Context(), src, kind, Options{}); !errors.Is(err, ErrUnknown) {
			t.Errorf("Read %q = %v, want ErrUnknown", kind, err)
		}
	}
}

func TestSeveralFiles(t *testing.T) {
	src := fleet(1)
	src["other.passwd"] = &fstest.MapFile{Data: []byte("x-1:" + hash7)}
	src["passwd.bak"] = &fstest.MapFile{Data: []byte("y-1:" + hash7)}
	if _, err := Read(t.Context(), src, "", Options{}); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("Read = %v, want ErrAmbiguous", err)
	}
	p := read(t, src, Options{Files: []string{"other.passwd"}, Profile: "default"})
	if len(p.Devices) != 1 || p.Devices[0].ID != "x-1" || !find(p, "no-acl", "") {
		t.Errorf("plan:\n%s", report(p))
	}
	src["mosquitto.conf"] = &fstest.MapFile{Data: []byte("listener 1\npassword_file /etc/mosquitto/passwd\nacl_file /etc/mosquitto/acl\n")}
	if p := read(t, src, Options{}); len(p.Devices) != 1 || p.Devices[0].ID != "dev-0" {
		t.Errorf("with mosquitto.conf:\n%s", report(p))
	}
}

// Neither a link that leads out of the folder nor a pipe is read.
func TestOutside(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("dev-1:"+hash7+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "passwd")); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	kinds, err := Detect(root.FS())
	if err != nil || len(kinds) != 0 {
		t.Errorf("Detect = %v, %v, want nothing", kinds, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "acl"), []byte("user a\ntopic a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Read(t.Context(), root.FS(), "", Options{})
	if err != nil || !find(p, "not-read", "") || len(p.Devices) != 1 {
		t.Errorf("Read = %v, %v", p, err)
	}
}

func TestPrivateKeysAreNotOpened(t *testing.T) {
	src := forbidden{fstest.MapFS{"private/ca.pem": {Data: []byte("x")}, "ca.key": {Data: []byte("x")}, "secrets/root_ca_key": {Data: []byte("x")}, "acl": {Data: []byte("user a\ntopic a\n")}}, t}
	if _, err := Read(t.Context(), src, Mosquitto, Options{}); err != nil {
		t.Error(err)
	}
}

// forbidden fails the test if a key is opened.
type forbidden struct {
	fstest.MapFS
	t *testing.T
}

func (f forbidden) ReadFile(name string) ([]byte, error) {
	if strings.Contains(name, "key") || strings.Contains(name, "private/") {
		f.t.Errorf("%s was opened", name)
	}
	return f.MapFS.ReadFile(name)
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Read(ctx, fleet(10_000), "", Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Read = %v", err)
	}
}

func TestNames(t *testing.T) {
	acl := "pattern write up/%u\n"
	for _, name := range []string{"a:b", "a.c", "A.C", "x-y", "x.y", "guest", "ü", "-z", "sensor 1", strings.Repeat("n", 65), "ok"} {
		acl += "user " + name + "\ntopic read down/" + name + "\n"
	}
	src := fstest.MapFS{"acl": {Data: []byte(acl)}}
	for _, tt := range []struct {
		name, id string
		rename   bool
	}{
		{"ok", "ok", false}, {"ok", "ok", true},
		{"a:b", "", false}, {"a:b", "a-b", true},
		{"a.c", "", true}, {"A.C", "", true}, // one id ignoring case
		{"x-y", "", false}, {"x.y", "", true}, // the id of another
		{"guest", "", true}, {"ü", "", true}, {strings.Repeat("n", 65), "", true},
		{"-z", "z", true}, {"sensor 1", "sensor-1", true},
	} {
		d := device(t, read(t, src, Options{Rename: tt.rename}), tt.name)
		if string(d.ID) != tt.id || (d.ID == "") != (len(d.Problems) > 0) {
			t.Errorf("%q, rename %v: id %q, problems %q, want %q", tt.name, tt.rename, d.ID, d.Problems, tt.id)
		}
	}
	p := read(t, src, Options{Rename: true})
	checkPlan(t, p)
	want := []topic.Grant{{Action: topic.Publish, Filter: "up/a-b"}, {Action: topic.Receive, Filter: "down/a-b", Rule: 1}}
	if got := grantsOf(t, p, "a:b"); !slices.Equal(got, want) {
		t.Errorf("a renamed device has %v, want %v", got, want)
	}
}

// A rule with the name of two things, or with braces, does not become another one.
func TestTemplates(t *testing.T) {
	src := fstest.MapFS{"acl": {Data: []byte("user up\ntopic read fleet/up/up\nuser down\ntopic read fleet/down/up\nuser b\ntopic read {id}/x\ntopic read fleet/%u/b\ntopic read ab/b\n")}}
	p := read(t, src, Options{AcceptShared: true})
	checkPlan(t, p)
	for name, want := range map[string]topic.Filter{"up": "fleet/up/up", "down": "fleet/down/up", "b": "ab/b"} {
		got := grantsOf(t, p, name)
		if len(got) != 1 || got[0].Filter != want {
			t.Errorf("%s: %v, want %s", name, got, want)
		}
	}
}

func TestManyProfiles(t *testing.T) {
	var acl strings.Builder
	for i := range maxProfiles + 10 {
		fmt.Fprintf(&acl, "user dev-%d\ntopic read fleet/dev-%d/of/%d\n", i, i, i)
	}
	for i := range maxRules + 1 {
		fmt.Fprintf(&acl, "user much\ntopic read much/%d\n", i)
	}
	p := read(t, fstest.MapFS{"acl": {Data: []byte(acl.String())}}, Options{})
	checkPlan(t, p)
	if len(p.Profiles) != maxProfiles || !find(p, "too-many-profiles", "") || !find(p, "too-many-rules", "much") {
		t.Errorf("%d profiles", len(p.Profiles))
	}
	bad := 0
	for _, d := range p.Devices {
		if len(d.Problems) > 0 {
			bad++
		}
	}
	if bad != 11 {
		t.Errorf("%d devices with problems, want 10 without a profile and one with too many rules", bad)
	}
}

func TestEMQXSchemes(t *testing.T) {
	const hex32 = "ffd856a32a2c1f7ffa424badfa72d2df6213cb6ed7e442cbff2c578e75a3679c"
	for _, tt := range []struct {
		hash, salt string
		scheme     inventory.Scheme
		iterations uint32
		want       inventory.Scheme
	}{
		{hex32, "salt", 0, 0, 0}, // nobody says where the salt is
		{hex32, "salt", inventory.SHA256Suffix, 0, inventory.SHA256Suffix},
		{hex32, "salt", inventory.SHA512Suffix, 0, 0},
		{hex32 + hex32, "salt", inventory.SHA512Prefix, 0, inventory.SHA512Prefix},
		{hex32 + hex32, "salt", inventory.PBKDF2SHA512, 0, 0},
		{hex32 + hex32, "salt", inventory.PBKDF2SHA512, 1000, inventory.PBKDF2SHA512},
		{hex32, "salt", inventory.RabbitSHA256, 0, 0},
		{"$2a$10$8dzuQjBxT9cgQokmg.eWL.pM.JxTMAWAcoNRYLZUWZK19ppzpy.PS", "", 0, 0, inventory.Bcrypt},
		{"$2a$10$8dzuQjBxT9cgQokmg.eWL", "", 0, 0, 0},
	} {
		src := fstest.MapFS{"u.json": {Data: []byte(`[{"user_id":"d","password_hash":"` + tt.hash + `","salt":"` + tt.salt + `","is_superuser":false}]`)}}
		d := device(t, read(t, src, Options{Profile: "default", Scheme: tt.scheme, Iterations: tt.iterations}), "d")
		got := inventory.Scheme(0)
		if len(d.Verifiers) == 1 {
			got = d.Verifiers[0].Scheme
		}
		if got != tt.want {
			t.Errorf("%.8s... as %s: %s, want %s", tt.hash, tt.scheme, got, tt.want)
		}
	}
}
