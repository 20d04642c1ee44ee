package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/enroll/campaign"
)

// An agent is told by the server that its certificate is being rotated, renews long
// before it is due, reports, and the rotation counts it as done.
func TestRotationReachesAgent(t *testing.T) {
	r := serve(t)
	r.imprint("token", "create", "--device", "gw-1", "--profile", "default", "--out", "token")
	config, err := json.Marshal(map[string]any{
		"server": "https://" + strings.Replace(r.https, "127.0.0.1", "localhost", 1), "trust": r.root(), "device": "gw-1", "state": filepath.Join(r.dir, "agent"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "agent.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	r.imprint("agent", "enroll", "--config", "agent.json", "--token-file", "token")
	if out := r.imprint("rotate", "start", "spring", "--certificates", "--canary", "100", "--dry-run"); !strings.Contains(out, "1 certificates") || !strings.Contains(out, "nothing has been changed") {
		t.Errorf("the plan is %q", out)
	}
	enrolled := time.Now().Unix() // times are in whole seconds: the certificate has to be of the time before
	waitFor(t, func() bool { return time.Now().Unix() > enrolled })
	r.imprint("rotate", "start", "spring", "--certificates", "--canary", "100", "--reason", "a test")
	run := r.command("agent", "run", "--config", "agent.json")
	run.Stderr = os.Stderr
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = run.Process.Signal(syscall.SIGTERM)
		_ = run.Wait()
	}()
	standing := func() (v struct{ Standing campaign.Standing }) {
		if err := json.Unmarshal([]byte(r.imprint("rotate", "status", "spring", "--output", "json")), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	eventually(t, 30*time.Second, "the rotation is done", func() bool { return standing().Standing.Done == 1 })
	if show := r.imprint("device", "show", "gw-1"); strings.Count(show, "certificate ") != 2 || !strings.Contains(show, "superseded") {
		t.Errorf("the device is\n%s", show)
	}
	if out := r.imprint("rotate", "advance", "spring"); !strings.Contains(out, "100 % released") {
		t.Errorf("advance says %q", out)
	}
	r.imprint("rotate", "end", "spring")
	if out := r.refusedCommand(exitRefused, "rotate", "resume", "spring"); !strings.Contains(out, "over") {
		t.Errorf("resuming what has ended says %q", out)
	}
	r.refusedCommand(exitData, "rotate", "status", "nosuch")
	r.refusedCommand(exitData, "rotate", "start", "nothing")
	r.refusedCommand(exitUsage, "rotate", "advance", "spring", "--force")
}
