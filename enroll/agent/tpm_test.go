package agent_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/enroll/agent"
)

// agt-014: a key that a TPM 2.0 has made never leaves it. The TPM is swtpm, an
// emulator that speaks as one does.
func TestTPM(t *testing.T) {
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Fatal("swtpm is required: install the Debian package swtpm")
	}
	dir, err := os.MkdirTemp("", "tpm") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "sock")
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+socket,
		"--ctrl", "type=unixio,path="+filepath.Join(dir, "ctrl"), "--flags", "not-need-init,startup-clear")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	deadline := time.Now().Add(10 * time.Second)
	for {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("swtpm does not start: %s", out.Bytes())
		}
		time.Sleep(20 * time.Millisecond)
	}
	w := newWorld(t, 30*24*time.Hour)
	cfg := w.config("dev-tpm")
	cfg.Key = "tpm:" + socket
	if _, err := agent.Enroll(t.Context(), cfg, agent.Options{Now: w.now}, w.token("dev-tpm")); err != nil {
		t.Fatalf("%v\n%s", err, out.Bytes())
	}
	key, err := os.ReadFile(filepath.Join(cfg.State, "current", "key.pem"))
	if err != nil || !bytes.HasPrefix(key, []byte("-----BEGIN TSS2 PRIVATE KEY-----")) {
		t.Errorf("the key file: %.60q, %v", key, err)
	}
	// It renews with a handshake that the TPM signs, for a key that the TPM makes.
	w.move(24 * 24 * time.Hour)
	if _, err := agent.StopAfter(t.Context(), cfg, agent.Options{Now: w.now}, "", 1000); err != nil {
		t.Fatal(err)
	}
	next, err := os.ReadFile(filepath.Join(cfg.State, "current", "key.pem"))
	if err != nil || bytes.Equal(next, key) {
		t.Errorf("the key is the old one: %v", err)
	}
	rec, err := w.Device(t.Context(), "dev-tpm")
	if err != nil || len(rec.Credentials) != 2 {
		t.Errorf("%d certificates, %v", len(rec.Credentials), err)
	}
}
