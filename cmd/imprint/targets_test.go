package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/mosquitto/mosquittotest"
)

// fixedTopics are the rules of targets that have topics of their own.
func fixedTopics() map[string][2]string {
	return map[string][2]string{
		"akenza":  {"/up/device/id/{id}/#", "/down/device/id/{id}/#"},
		"rumqttd": {"/tenants/acme/#", "/tenants/acme/#"},
	}
}

// command runs imprint and returns its exit code and what it wrote.
func (r *running) exit(args ...string) (code int, stdout, stderr string) {
	r.t.Helper()
	cmd := r.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		r.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// file writes a file in the directory of the test.
func (r *running) file(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// Every target exports a fleet in each of its forms, is proven on its files, notices
// when these or the fleet change, and has a page that an operator can follow.
func TestEveryTarget(t *testing.T) {
	for _, target := range targets() {
		c := target.Capabilities()
		t.Run(c.Name, func(t *testing.T) {
			if _, err := os.Stat(filepath.Join("..", "..", "docs", "brokers", c.Name+".md")); err != nil {
				t.Errorf("there is no page for it: %v", err)
			}
			r := newFleet(t)
			rules := fixedTopics()[c.Name]
			if rules == [2]string{} {
				rules = [2]string{"fleet/{id}/up/#", "fleet/{id}/down/#"}
			}
			r.file("device.yaml", fmt.Sprintf("name: default\npassword: {schemes: [bcrypt, argon2id, pbkdf2-sha1]}\ntopics:\n  - {publish: %q, shared: %t}\n  - {receive: %q, shared: %t}\n",
				rules[0], c.Name == "rumqttd", rules[1], c.Name == "rumqttd"))
			r.imprint("profile", "add", "device.yaml")
			r.file("devices.csv", "id,serial,group\ndev-1,SN1,hall\ndev-10,SN2,hall\ndev-2,SN3,yard\n")
			r.imprint("bootstrap", "devices.csv", "--out", "bundles")
			r.file("broker-token", strings.TrimSpace(r.imprint("token", "create", "--role", "broker", "--name", "a broker"))+"\n")
			for _, form := range c.Forms {
				out := c.Name + "-" + form
				args := []string{"export", c.Name, "--form", form, "--out", out}
				if code, _, stderr := r.exit(args...); code == exitData && (strings.Contains(stderr, "service") || strings.Contains(stderr, "imprint that is asked")) {
					service := "https://imprint.example:8443"
					if c.Name == "nanomq" { // it asks over plain HTTP, the same host
						service = "http://127.0.0.1:8080"
					}
					args = append(args, "--service", service, "--service-token-file", "broker-token")
				}
				if code, _, stderr := r.exit(args...); code != exitOK {
					if form == c.Forms[0] || !strings.Contains(stderr, "cannot express") {
						t.Errorf("form %s: %d %s", form, code, stderr)
					}
					continue // a form with topics of its own
				}
				m, err := templates.Verify(os.DirFS(filepath.Join(r.dir, out)), nil)
				if err != nil || m.Target != c.Name || m.Form != form || m.RevocationLatency == "" || len(m.Enforced) == 0 || m.SignedBy == "" {
					t.Errorf("form %s: manifest %+v, %v", form, m, err)
				}
				if _, err := os.Stat(filepath.Join(r.dir, out, "README.md")); err != nil {
					t.Error(err)
				}
				if code, stdout, stderr := r.exit(append(args, "--check")...); code != exitOK {
					t.Errorf("form %s: --check: %d %s%s", form, code, stdout, stderr)
				}
				code, stdout, stderr := r.exit("--output", "json", "broker", "verify", c.Name, "--dir", out)
				var report struct {
					Asked int   `json:"asked"`
					Wider []any `json:"wider"`
				}
				if err := json.Unmarshal([]byte(stdout), &report); m.Devices > 0 && (err != nil || code != exitOK || report.Asked < 300 || len(report.Wider) > 0) {
					t.Errorf("form %s: verify: %d %.300s%.300s", form, code, stdout, stderr)
				}
			}
			out := c.Name + "-" + c.Forms[0]
			r.file("more.csv", "id\ndev-3\n")
			r.imprint("bootstrap", "more.csv", "--out", "bundles")
			if code, stdout, _ := r.exit("export", c.Name, "--out", out, "--check"); code != exitFound || !strings.Contains(stdout, "differs") {
				t.Errorf("a device more: --check: %d %s", code, stdout)
			}
			if code, _, stderr := r.exit("broker", "verify", c.Name, "--dir", out); code != exitFound || !strings.Contains(stderr, "export again") {
				t.Errorf("a device more: verify: %d %s", code, stderr)
			}
		})
	}
}

// A rule that a broker cannot express is refused, with choices; told to, an export
// goes on without it, says so, and is proven to be narrower and no more.
func TestApproximate(t *testing.T) {
	r := newFleet(t)
	r.file("device.yaml", "name: default\ntopics:\n  - publish: fleet/{id}/up\n  - receive: fleet/{id}/cmd/+\n")
	r.imprint("profile", "add", "device.yaml")
	r.file("devices.csv", "id\ndev-1\ndev-10\n")
	r.imprint("bootstrap", "devices.csv", "--out", "bundles")
	code, _, stderr := r.exit("export", "vernemq", "--out", "v")
	if code != exitData || !strings.Contains(stderr, "rule 2") || !strings.Contains(stderr, "cmd/+") {
		t.Errorf("%d %s", code, stderr)
	}
	if _, err := os.Stat(filepath.Join(r.dir, "v")); err == nil {
		t.Error("a refused export has left a directory")
	}
	if code, _, _ := r.exit("export", "vernemq", "--out", "v", "--approximate", "wider"); code != exitUsage {
		t.Errorf("--approximate wider: %d", code)
	}
	code, _, stderr = r.exit("export", "vernemq", "--out", "v", "--approximate", "narrower")
	if code != exitOK || !strings.Contains(stderr, "narrower than the policy") {
		t.Fatalf("%d %s", code, stderr)
	}
	m, err := templates.ReadManifest(os.DirFS(filepath.Join(r.dir, "v")))
	if err != nil || len(m.Approximated) != 1 || !strings.Contains(m.Approximated[0], "rule 2: receive") {
		t.Errorf("manifest: %+v, %v", m, err)
	}
	code, stdout, stderr := r.exit("broker", "verify", "vernemq", "--dir", "v")
	if code != exitOK || !strings.Contains(stdout, ", 0 wider") || !strings.Contains(stdout, "narrower  dev-1 may") {
		t.Errorf("%d %s%s", code, stdout, stderr)
	}
}

// A user proves a broker that runs: with the export it is as the policy says, and with
// a rule more it is told.
func TestVerifyRunningBroker(t *testing.T) {
	r := newFleet(t)
	r.file("devices.csv", "id\ndev-1\ndev-10\n")
	r.imprint("bootstrap", "devices.csv", "--out", "bundles")
	ports := mosquittotest.Ports(t, 2)
	config := filepath.Join(r.dir, "fleet", "imprint.yaml")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("certificate-port: 8883"), fmt.Appendf(nil, "certificate-port: %d", ports[0]), 1)
	text = bytes.Replace(text, []byte("password-port: 8884"), fmt.Appendf(nil, "password-port: %d", ports[1]), 1)
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r.imprint("export", "mosquitto", "--out", "mq", "--form", "expanded")
	args := []string{"broker", "verify", "mosquitto", "--dir", "mq", "--bundles", "bundles",
		"--connect", fmt.Sprintf("localhost:%d", ports[0]), "--connect-login", fmt.Sprintf("localhost:%d", ports[1])}
	if code, _, stderr := r.exit(args...); code != exitUnavailable {
		t.Errorf("a broker that is down: %d %s", code, stderr)
	}
	b := mosquittotest.New(t, "set_tcp_nodelay true", "include_dir "+filepath.Join(r.dir, "mq"))
	if err := b.Run(); err != nil {
		t.Fatalf("%v\n%s", err, b.Log())
	}
	code, stdout, stderr := r.exit(args...)
	if code != exitOK || !strings.Contains(stdout, "running broker") || !strings.Contains(stdout, ", 0 wider") {
		t.Errorf("%d %s%s", code, stdout, stderr)
	}

	// Somebody helps themselves on the broker, past the files of the export.
	b.Stop()
	acl, err := os.ReadFile(filepath.Join(r.dir, "mq", "acl_file"))
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(r.dir, "other")
	if err := exec.Command("cp", "-r", filepath.Join(r.dir, "mq"), other).Run(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other, "acl_file"), append(acl, "pattern readwrite devices/#\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, err := os.ReadFile(filepath.Join(other, "mosquitto.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other, "mosquitto.conf"), bytes.ReplaceAll(conf, []byte(filepath.Join(r.dir, "mq")), []byte(other)), 0o600); err != nil {
		t.Fatal(err)
	}
	b = mosquittotest.New(t, "set_tcp_nodelay true", "include_dir "+other)
	if err := b.Run(); err != nil {
		t.Fatalf("%v\n%s", err, b.Log())
	}
	code, stdout, stderr = r.exit(args...)
	if code != exitFound || !strings.Contains(stdout, "WIDER") || !strings.Contains(stderr, "allows what the policy does not") {
		t.Errorf("a rule more: %d %.500s%s", code, stdout, stderr)
	}
}
