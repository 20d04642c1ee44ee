package vernemq_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/vernemq"
)

// The script is run by SQLite, which knows all of it but how PostgreSQL sets its
// session, locks a table and drops a temporary one. It starts from rows of others and
// runs every file that it is given; what is in the table then goes to standard output.
const sqliteScript = `
import json, re, sqlite3, sys
db = sqlite3.connect(":memory:", isolation_level=None)
for name in sys.argv[1:]:
    sql = open(name, encoding="utf-8").read()
    sql = re.sub(r"^(SET LOCAL|LOCK TABLE) [^;]*;$", "", sql, flags=re.M)
    sql = sql.replace(") ON COMMIT DROP;", ");").replace("COMMIT;\n", "DROP TABLE imprint_fleet; COMMIT;\n")
    sql = re.sub(r"CAST\((\w+) AS json\)", r"\1", sql)
    db.executescript(sql)
    if name == sys.argv[1]:
        for row in [("", "*", "dev-1"), ("m", "dev-1", "dev-1"), ("", "dev-1", "dev-9"), ("", "dev-9", "dev-9")]:
            db.execute("INSERT INTO vmq_auth_acl VALUES (?, ?, ?, 'x', '[]', '[]')", row)
rows = db.execute("SELECT mountpoint, client_id, username, password, publish_acl, subscribe_acl FROM vmq_auth_acl ORDER BY client_id").fetchall()
print(json.dumps([list(r[:4]) + [json.loads(r[4]), json.loads(r[5])] for r in rows]))
`

// After the script the table is the fleet: who was gone is gone, rows that let in more
// than one client too, and whoever has other rights has only these.
func TestSQL(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Fatal("there is no python3: apt-get install python3")
	}
	f := small(t)
	f.Remove("dev-10")
	f.Remove("dev-3")
	f.Device(t, "dev-11", "valve", "yard", "correct horse")
	f.Device(t, "dev-12", "valve", "yard", "correct horse")
	var files []string
	export := func() {
		dir := t.TempDir()
		write(t, dir, f, templates.Options{Form: vernemq.PostgreSQL, Now: f.Now})
		files = append(files, filepath.Join(dir, vernemq.SQLName))
	}
	export()
	f.Remove("dev-11")
	f.Devices[0].Grants = []topic.Grant{{Action: topic.Publish, Filter: "o'clock/\"\\''/é"}}
	export()

	script := filepath.Join(t.TempDir(), "run.py")
	if err := os.WriteFile(script, []byte(sqliteScript), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "python3", append([]string{script}, files...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var rows [][]any
	if err := json.Unmarshal(out, &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != len(f.Devices) {
		t.Fatalf("%d rows, want %d: %s", len(rows), len(f.Devices), out)
	}
	for _, e := range f.Devices {
		found := false
		for _, r := range rows {
			if r[1] != string(e.ID) {
				continue
			}
			found = true
			var hash string
			for _, v := range e.Verifiers {
				if v.Scheme.String() == "bcrypt" {
					hash = string(v.Hash)
				}
			}
			if r[0] != "" || r[2] != string(e.ID) || r[3] != hash {
				t.Errorf("row %v, want one of %s without a mountpoint", r, e.ID)
			}
			if got := len(r[4].([]any)) + len(r[5].([]any)); got != len(e.Grants) {
				t.Errorf("%s has %d rules, want %d", e.ID, got, len(e.Grants))
			}
		}
		if !found {
			t.Errorf("%s has no row", e.ID)
		}
	}
	if want := `{"pattern": "o'clock/\"\\''/\u00e9"}`; !strings.Contains(string(out), want) {
		t.Errorf("no rule %s in %s", want, out)
	}
}
