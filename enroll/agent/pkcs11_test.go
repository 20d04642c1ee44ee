//go:build pkcs11

package agent_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/enroll/agent"
)

// agt-014: a key on a PKCS #11 token, here SoftHSM2.
func TestTokenKey(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+dir+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	pin := filepath.Join(dir, "pin")
	if err := os.WriteFile(pin, []byte("271828\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("softhsm2-util", "--init-token", "--free", "--label", "device", "--pin", "271828", "--so-pin", "31415926").CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util (Debian package softhsm2): %v\n%s", err, out)
	}
	modules, err := filepath.Glob("/usr/lib/*/softhsm/libsofthsm2.so")
	if err != nil || len(modules) == 0 {
		t.Fatal("libsofthsm2.so is required: install the Debian package softhsm2")
	}
	w := newWorld(t, 30*24*time.Hour)
	cfg := w.config("dev-hsm")
	cfg.Key = "pkcs11:module-path=" + modules[0] + ";token=device?pin-source=" + pin
	if _, err := agent.Enroll(t.Context(), cfg, agent.Options{Now: w.now}, w.token("dev-hsm")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(cfg.State, "current", "key.pem")
	key, err := os.ReadFile(file)
	if err != nil || strings.Contains(string(key), "PRIVATE") || strings.Contains(string(key), "271828") {
		t.Errorf("the key file: %q, %v", key, err)
	}
	w.move(24 * 24 * time.Hour)
	if _, err := agent.StopAfter(t.Context(), cfg, agent.Options{Now: w.now}, "", 1000); err != nil {
		t.Fatal(err)
	}
	next, err := os.ReadFile(file)
	if err != nil || bytes.Equal(key, next) {
		t.Errorf("not renewed for another key: %v", err)
	}
	out, err := exec.Command("pkcs11-tool", "--module", modules[0], "--token-label", "device", "--login", "--pin", "271828", "--list-objects", "--type", "privkey").CombinedOutput()
	if err != nil || strings.Count(string(out), "Private Key Object") != 1 {
		t.Errorf("the token holds more than the key in use: %v\n%s", err, out)
	}
}
