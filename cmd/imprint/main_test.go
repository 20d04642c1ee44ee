package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// passphrase is that of every fleet in the scripts.
const passphrase = "correct horse battery"

// template is a fleet that each script gets a copy of: to make one costs three key
// derivations.
var template string

// programs is a directory with imprint in it.
var programs string

func TestMain(m *testing.M) {
	testscript.Main(setUp{m}, map[string]func(){
		"imprint": func() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// setUp makes the template before the tests, and not in the processes that are
// imprint itself.
type setUp struct{ *testing.M }

func (s setUp) Run() int {
	dir, err := os.MkdirTemp("", "imprint-test-*")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	pass := filepath.Join(dir, "pass")
	if err := os.WriteFile(pass, []byte(passphrase+"\n"), 0o600); err != nil {
		panic(err)
	}
	// Key derivation is tens of times slower under the race detector, and a script
	// derives dozens of keys: scripts run the program as it is released.
	programs = filepath.Join(dir, "bin")
	if out, err := exec.Command("go", "build", "-o", filepath.Join(programs, "imprint"), ".").CombinedOutput(); err != nil {
		panic(fmt.Sprintf("building imprint: %v\n%s", err, out))
	}
	template = filepath.Join(dir, "fleet")
	if out, err := exec.Command(filepath.Join(programs, "imprint"), "--fleet", template, "--passphrase-file", pass, "init", "--name", "acme", "--host", "localhost").CombinedOutput(); err != nil {
		panic(fmt.Sprintf("imprint init: %v\n%s", err, out))
	}
	return s.M.Run()
}

// TestScripts runs testdata/script. Each script starts in a directory with a fleet
// and the file pass.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", programs+string(os.PathListSeparator)+env.Getenv("PATH"))
			if err := os.WriteFile(filepath.Join(env.WorkDir, "pass"), []byte(passphrase+"\n"), 0o600); err != nil {
				return err
			}
			return copyTree(template, filepath.Join(env.WorkDir, "fleet"))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exitcode":  exitcodeCmd,
			"snapshot":  snapshotCmd,
			"unchanged": unchangedCmd,
			"json":      jsonCmd,
			"binary":    binaryCmd,
			"rows":      rowsCmd,
			"hold":      holdCmd,
			"truncate":  truncateCmd,
			"bundles":   bundlesCmd,
			"canary":    canaryCmd,
			"mortal":    mortalCmd,
		},
	})
}

func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, info.Mode())
	})
}

// exitcode N COMMAND...: the command ends with exactly this code.
func exitcodeCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exitcode N command...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// mortal N COMMAND...: as exitcode, without root's power to open everything.
func mortalCmd(ts *testscript.TestScript, neg bool, args []string) {
	if os.Getuid() == 0 && len(args) > 1 { // capabilities(7); setpriv is in util-linux
		args = slices.Concat(args[:1], []string{"setpriv", "--bounding-set", "-dac_override,-dac_read_search"}, args[1:])
	}
	exitcodeCmd(ts, neg, args)
}

// digest describes every file under a path: name, mode, content. Lock files name
// the last process; that is no change.
func digest(ts *testscript.TestScript, path string) string {
	var b strings.Builder
	err := filepath.WalkDir(ts.MkAbs(path), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == "lock" || d.Name() == ".imprint.lock" {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(&b, "%s %s", p, info.Mode())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			_, _ = fmt.Fprintf(&b, " %x", sha256.Sum256(data))
		}
		b.WriteByte('\n')
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return "not there"
	}
	ts.Check(err)
	return b.String()
}

// snapshot PATH remembers what is there; unchanged PATH compares.
func snapshotCmd(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv("snapshot_"+args[0], digest(ts, args[0]))
}

func unchangedCmd(ts *testscript.TestScript, neg bool, args []string) {
	want := ts.Getenv("snapshot_" + args[0])
	if want == "" {
		ts.Fatalf("%s: no snapshot", args[0])
	}
	if got := digest(ts, args[0]); (got == want) == neg {
		ts.Fatalf("%s has changed: %v; before:\n%safter:\n%s", args[0], got != want, want, got)
	}
}

// json FIELD VALUE: the last JSON document of stdout has this value, in Go's
// notation, at a path like credentials.0.state.
func jsonCmd(ts *testscript.TestScript, neg bool, args []string) {
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	dec.UseNumber()
	var v any
	for {
		var next any
		err := dec.Decode(&next)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			ts.Fatalf("stdout is not JSON: %v", err)
		}
		v = next
	}
	for key := range strings.SplitSeq(args[0], ".") {
		switch x := v.(type) {
		case map[string]any:
			value, ok := x[key]
			if !ok {
				ts.Fatalf("there is no %s in %v", key, x)
			}
			v = value
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(x) {
				ts.Fatalf("there is no %s in %d elements", key, len(x))
			}
			v = x[i]
		default:
			ts.Fatalf("%s: %v is no object", key, v)
		}
	}
	if len(args) == 1 {
		return
	}
	if got := fmt.Sprint(v); (got == args[1]) == neg {
		ts.Fatalf("%s is %q, want %q", args[0], got, args[1])
	}
}

// binary FILE TEXT writes a Go string literal's bytes.
func binaryCmd(ts *testscript.TestScript, _ bool, args []string) {
	text, err := strconv.Unquote(`"` + args[1] + `"`)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// rows FILE N PREFIX writes a list of N devices.
func rowsCmd(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	ts.Check(w.Write([]string{"id", "serial", "label.site"}))
	for i := range n {
		ts.Check(w.Write([]string{fmt.Sprintf("%s%05d", args[2], i), fmt.Sprintf("SN-%d", i), "Bonn, \"left\""}))
	}
	w.Flush()
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b.Bytes(), 0o600))
}

// hold DIR opens the fleet in another process, which keeps it until the script
// ends. It returns when the fleet is held.
func holdCmd(ts *testscript.TestScript, _ bool, args []string) {
	c := exec.Command(os.Args[0], "-test.run", "^TestHold$")
	c.Env = append(os.Environ(), "IMPRINT_TEST_HOLD="+ts.MkAbs(args[0]))
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	ts.Check(err)
	out, err := c.StdoutPipe()
	ts.Check(err)
	ts.Check(c.Start())
	ts.Defer(func() { _ = in.Close(); _ = c.Wait() })
	if _, err := io.ReadFull(out, make([]byte, len("held"))); err != nil {
		ts.Fatalf("the other process does not hold the fleet: %v", err)
	}
	ts.Setenv("HOLDER", strconv.Itoa(c.Process.Pid))
}

// TestHold is the other process of hold.
func TestHold(t *testing.T) {
	dir := os.Getenv("IMPRINT_TEST_HOLD")
	if dir == "" {
		return // nothing to test: this is a program for TestScripts
	}
	a := &app{in: strings.NewReader(""), out: io.Discard, err: os.Stderr, now: time.Now, dir: dir}
	f, err := a.openFleet(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, _ = os.Stdout.WriteString("held")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// truncate FILE BYTES.
func truncateCmd(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Check(os.Truncate(ts.MkAbs(args[0]), n))
}

// canary PATH...: no secret of any bundle in bundles/, and not the passphrase, is
// in the files under the paths, or in what the last command wrote.
func canaryCmd(ts *testscript.TestScript, _ bool, args []string) {
	secrets := map[string]string{"the passphrase": passphrase}
	matches, err := filepath.Glob(ts.MkAbs("bundles/*/*"))
	ts.Check(err)
	for _, path := range matches {
		b, err := os.ReadFile(path)
		ts.Check(err)
		switch filepath.Base(path) {
		case "password":
			secrets[path] = strings.TrimSpace(string(b))
		case "key.pem":
			secrets[path] = strings.Split(string(b), "\n")[2] // the line of base64 with the scalar
		}
	}
	if len(secrets) < 3 {
		ts.Fatalf("there are no bundles to look for")
	}
	for what, secret := range secrets {
		for _, stream := range []string{"stdout", "stderr"} {
			if strings.Contains(ts.ReadFile(stream), secret) {
				ts.Fatalf("%s is on %s", what, stream)
			}
		}
		for _, root := range args {
			ts.Check(filepath.WalkDir(ts.MkAbs(root), func(p string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				b, err := os.ReadFile(p)
				if err == nil && bytes.Contains(b, []byte(secret)) {
					err = fmt.Errorf("%s is in %s", what, p)
				}
				return err
			}))
		}
	}
}
