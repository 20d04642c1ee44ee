package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The program fits on a small gateway, and needs nothing there.
func TestSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "imprint-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f MB", float64(info.Size())/1e6)
	if info.Size() > 10e6 {
		t.Errorf("%d bytes, at most 10 MB", info.Size())
	}
	if out, err := exec.Command("file", "-b", path).Output(); err == nil && !strings.Contains(string(out), "statically linked") {
		t.Errorf("not static: %s", out)
	}
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.json")
	if err := os.WriteFile(bad, []byte(`{"server": "http://x", "color": 1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(dir, "good.json")
	if err := os.WriteFile(good, []byte(`{"server": "https://127.0.0.1:1", "trust": "`+bad+`", "device": "d", "state": "`+dir+`/state"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		want int
	}{
		{"", exitOK}, {"--help", exitOK}, {"version", exitOK}, {"fly --config " + good, exitUsage}, {"run --nonsense", exitUsage}, {"status more", exitUsage},
		{"run --config " + dir + "/none.json", exitConfig}, {"run --config " + bad, exitConfig}, {"enroll --config " + good, exitConfig},
		{"enroll --config " + good + " --token-file " + dir + "/none", exitConfig}, {"status --config " + good, exitIO},
	} {
		var out, errOut bytes.Buffer
		if got := run(t.Context(), strings.Fields(tt.args), &out, &errOut); got != tt.want {
			t.Errorf("imprint-agent %s: exit code %d, want %d\n%s", tt.args, got, tt.want, errOut.Bytes())
		}
	}
}
