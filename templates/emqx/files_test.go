package emqx_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/emqx"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// The hash of EMQX's sha256 with salt_position = suffix. A salt that is decoded from
// hexadecimal first, or put before the password, gives another.
func TestGoldenHash(t *testing.T) {
	const password, salt = "S3cret-pw_01", "00112233445566778899aabbccddeeff"
	const want = "dev-001,ffd856a32a2c1f7ffa424badfa72d2df6213cb6ed7e442cbff2c578e75a3679c," + salt + ",false\n"
	line := func(hash [32]byte) string {
		e := templates.Entry{ID: "dev-001", Verifiers: []inventory.Verifier{{Scheme: inventory.SHA256Suffix, Salt: []byte(salt), Hash: hash[:]}}}
		_, rows, _ := strings.Cut(string(emqx.Lists(t, emqx.File, []templates.Entry{e})[emqx.UsersName]), "\n")
		return rows
	}
	if got := line(sha256.Sum256([]byte(password + salt))); got != want {
		t.Errorf("line %q, want %q", got, want)
	}
	decoded, err := hex.DecodeString(salt)
	if err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []string{password + string(decoded), salt + password} {
		if line(sha256.Sum256([]byte(wrong))) == want {
			t.Errorf("%q has the same hash", wrong)
		}
	}
}

// A salt that would be something else in a file is not written: the device is left
// out, and whoever exports is told.
func TestSaltsOfText(t *testing.T) {
	for _, salt := range []string{"", "a,b", "a b", "a\n", "a'b", `a"b`, "\xff", "é", strings.Repeat("a", 129)} {
		f := targettest.NewFleet(t, start())
		f.Profile("sensor")
		f.Device(t, "dev-1", "sensor", "hall", "correct horse")
		for i := range f.Devices[0].Verifiers {
			f.Devices[0].Verifiers[i].Salt = []byte(salt)
		}
		for _, form := range []string{emqx.File, emqx.API, emqx.PostgreSQL} {
			if _, err := writeErr(t, t.TempDir(), f, templates.Options{Form: form, Now: f.Now}); err == nil {
				t.Errorf("form %s writes the salt %q", form, salt)
			}
		}
	}
}

// Every line of users has as many cells as there are columns, and nobody is a
// superuser.
func TestUsersCells(t *testing.T) {
	for l := range strings.Lines(string(emqx.Lists(t, emqx.File, small(t).Devices[:2])[emqx.UsersName])) {
		cells := strings.Split(strings.TrimSuffix(l, "\n"), ",")
		if len(cells) != 4 || cells[3] != "false" && cells[3] != "is_superuser" {
			t.Errorf("cells %q, want four, the last one false", cells)
		}
	}
}

func need(t *testing.T, program, packages string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatalf("there is no %s: apt-get install %s", program, packages)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", name, err, stderr.String(), out)
	}
	return string(out)
}

// consult reads the terms with Erlang, as EMQX does, and writes each filter of a rule
// on a line of its own: permission, user, action, how it is compared, UTF-8 in
// hexadecimal.
const consult = `
{ok, Terms} = file:consult(hd(init:get_plain_arguments())),
Hex = fun(S) -> [io_lib:format("~2.16.0b", [B]) || <<B>> <= unicode:characters_to_binary(S)] end,
lists:foreach(fun
  ({deny, all}) -> io:format("deny all~n");
  ({P, {username, U}, A, Topics}) when P =:= allow; P =:= deny ->
    lists:foreach(fun
      ({eq, T}) -> io:format("~s ~s ~s eq ~s~n", [P, U, A, Hex(T)]);
      (T) -> io:format("~s ~s ~s as ~s~n", [P, U, A, Hex(T)])
    end, Topics)
end, Terms),
halt(0).`

// Erlang reads the very rules that were meant.
func TestErlangReadsRules(t *testing.T) {
	need(t, "erl", "erlang-base")
	odd := []string{`"`, `\`, `\"`, `\x41`, `\n`, "é", "\u2028", "\U0001f600", "~s", "'", "eq,\"x\"", "\u00ad", "\ufeff", "a b", "$x", "\ufdd0", "\U0010ffff"}
	e := templates.Entry{ID: "dev-1"}
	var want []string
	for _, s := range odd {
		f := "t/" + s + "/x"
		e.Grants = append(e.Grants, topic.Grant{Action: topic.Publish, Filter: topic.Filter(f)})
		want = append(want, "allow dev-1 publish as "+hex.EncodeToString([]byte(f)))
	}
	e.Grants = append(e.Grants, topic.Grant{Action: topic.Receive, Filter: `q"/+`})
	want = append(want, "deny dev-1 subscribe eq "+hex.EncodeToString([]byte(`q"/#`)), "allow dev-1 subscribe as "+hex.EncodeToString([]byte(`q"/+`)),
		"deny dev-2 all as 23", "deny all")
	name := filepath.Join(t.TempDir(), "acl.conf")
	if err := os.WriteFile(name, emqx.Lists(t, emqx.File, []templates.Entry{e, {ID: "dev-2"}})[emqx.ACLName], 0o600); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(run(t, "erl", "-noshell", "-eval", consult, "-extra", name)), "\n")
	if !slices.Equal(got, want) {
		t.Errorf("Erlang reads\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// An independent parser of HOCON reads the configuration of each form and version, and
// finds in it what the evaluator's own finds.
func TestHOCON(t *testing.T) {
	dir := os.Getenv("IMPRINT_BROKERS")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(home, ".cache", "imprint-brokers")
	}
	python := filepath.Join(dir, "emqx", "bin", "python")
	if _, err := os.Stat(python); err != nil {
		t.Fatalf("there is no parser of HOCON: run . scripts/lib/brokers/emqx.sh && install_emqx (%v)", err)
	}
	const script = `
import json, sys
from pyhocon import ConfigFactory
def flat(path, v, out):
    if isinstance(v, dict):
        for k in v: flat(path + [k.strip('"')], v[k], out)
    elif isinstance(v, list):
        for i, x in enumerate(v): flat(path + [str(i)], x, out)
    else:
        out[".".join(path)] = {True: "true", False: "false"}.get(v, v) if isinstance(v, bool) else str(v)
    return out
print(json.dumps([flat([], ConfigFactory.parse_file(n, resolve=True), {}) for n in sys.argv[1:]]))
`
	files, err := filepath.Glob("testdata/golden/conf/*.conf")
	if err != nil || len(files) != 16 {
		t.Fatalf("%d configurations, %v, want 16", len(files), err)
	}
	var got []map[string]string
	if err := json.Unmarshal([]byte(run(t, python, append([]string{"-c", script}, files...)...)), &got); err != nil {
		t.Fatal(err)
	}
	for i, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		want, err := emqx.ReadHOCON(string(text))
		if err != nil {
			t.Fatal(err)
		}
		for key, v := range want {
			have := got[i][key]
			if strings.HasSuffix(key, "ttl") || strings.HasSuffix(key, "timeout") || strings.HasSuffix(key, "interval") {
				continue // this parser makes a duration of it
			}
			if have != v {
				t.Errorf("%s: %s is %q, want %q", name, key, have, v)
			}
		}
		if len(got[i]) != len(want) {
			t.Errorf("%s has %d values, want %d", name, len(got[i]), len(want))
		}
		if got[i]["authorization.no_match"] != "deny" || got[i]["listeners.ssl.imprint_certificates.ssl_options.enable_crl_check"] != "true" {
			t.Errorf("%s: %v", name, got[i])
		}
	}
}

// The script is run by SQLite, which knows all of it but how PostgreSQL sets its
// session, locks a table and drops a temporary one.
const sqliteScript = `
import json, re, sqlite3, sys
db = sqlite3.connect(":memory:", isolation_level=None)
for name in sys.argv[1:]:
    sql = open(name, encoding="utf-8").read()
    sql = re.sub(r"^(SET LOCAL|LOCK TABLE) [^;]*;$", "", sql, flags=re.M)
    sql = sql.replace(") ON COMMIT DROP;", ");").replace("COMMIT;\n", "DROP TABLE imprint_new_user; DROP TABLE imprint_new_acl; COMMIT;\n")
    db.executescript(sql)
    if name == sys.argv[1]:
        db.execute("INSERT INTO imprint_emqx_user VALUES ('admin', 'x', 'y')")
        db.execute("INSERT INTO imprint_emqx_acl VALUES ('admin', 0, 'allow', 'all', '#')")
        db.execute("INSERT INTO imprint_emqx_acl VALUES ('dev-1', 99, 'allow', 'all', '#')")
print(json.dumps([
    db.execute("SELECT username, coalesce(password_hash, ''), coalesce(salt, '') FROM imprint_emqx_user").fetchall(),
    db.execute("SELECT username, permission, action, topic FROM imprint_emqx_acl ORDER BY username, prio").fetchall()]))
`

// After the script the tables are the fleet: who was gone is gone, and whoever has
// other rights has only these.
func TestSQL(t *testing.T) {
	need(t, "python3", "python3")
	f := small(t)
	f.Device(t, "dev-11", "valve", "yard", "correct horse")
	var args []string
	export := func() {
		dir := t.TempDir()
		write(t, dir, f, templates.Options{Form: emqx.PostgreSQL, Now: f.Now})
		args = append(args, filepath.Join(dir, emqx.SQLName))
	}
	export()
	f.Remove("dev-11")
	f.Devices[0].Grants = []topic.Grant{{Action: topic.Publish, Filter: "o'clock/\"\\''/é"}, {Action: topic.Receive, Filter: "p/+"}}
	f.Devices[1].Grants = nil
	export()
	var got [2][][]string
	if err := json.Unmarshal([]byte(run(t, "python3", append([]string{"-c", sqliteScript}, args...)...)), &got); err != nil {
		t.Fatal(err)
	}
	var names, rules []string
	for _, row := range got[0] {
		names = append(names, row[0])
		if hashed := row[1] != ""; hashed != (row[0] == "dev-1" || row[0] == "Dev-2") || hashed && len(row[1]) != 64 {
			t.Errorf("row %q", row)
		}
	}
	for _, row := range got[1] {
		if row[0] == string(f.Devices[0].ID) {
			rules = append(rules, strings.Join(row[1:], " "))
		} else if row[0] == string(f.Devices[1].ID) {
			t.Errorf("%s has the rule %q, want none", row[0], row)
		}
	}
	slices.Sort(names)
	if want := []string{"Dev-2", "dev-1", "dev-10", "dev-3"}; !slices.Equal(names, want) {
		t.Errorf("users %q, want %q", names, want)
	}
	if want := []string{"allow publish o'clock/\"\\''/é", "deny subscribe eq p/#", "allow subscribe p/+"}; !slices.Equal(rules, want) {
		t.Errorf("rules %q, want %q", rules, want)
	}
}
