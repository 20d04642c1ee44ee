package ca_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tool returns the path of a program that the tests need. A missing one is a
// failure: a conformance test that is skipped says nothing.
func tool(t testing.TB, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = "/usr/sbin/" + name // where Debian keeps mosquitto, outside of a user's PATH
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("%s is not installed: apt-get install %s", name, debianPackage)
		}
	}
	return path
}

// run runs a program and returns what it says on both outputs.
func run(t testing.TB, stdin string, path string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(path, args...) // #nosec G204 -- the test's own tools
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// mustRun is run for a program that must succeed.
func mustRun(t testing.TB, path string, args ...string) string {
	t.Helper()
	out, err := run(t, "", path, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(path), strings.Join(args, " "), err, out)
	}
	return out
}

// compileC compiles one of the programs in testdata.
func compileC(t testing.TB, source, debianPackage string, libraries ...string) string {
	t.Helper()
	cc := tool(t, "cc", "gcc libc6-dev")
	binary := filepath.Join(t.TempDir(), strings.TrimSuffix(source, ".c"))
	args := append([]string{"-O1", "-Wall", "-o", binary, filepath.Join("testdata", source)}, libraries...)
	if out, err := run(t, "", cc, args...); err != nil {
		t.Fatalf("compiling %s (apt-get install %s): %v\n%s", source, debianPackage, err, out)
	}
	return binary
}

// write writes a file in dir and returns its path.
func write(t testing.TB, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
