package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
	"github.com/imprint-iot/imprint/templates/mosquitto/mosquittotest"
)

// A running is an imprint serve on a copy of the template fleet.
type running struct {
	t     *testing.T
	dir   string // has fleet and pass
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has
	log   *lockedBuffer
	https string // host:port
	http  string
}

// A lockedBuffer is written by a process and read by a test.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newFleet copies the template fleet.
func newFleet(t *testing.T) *running {
	t.Helper()
	r := &running{t: t, dir: t.TempDir()}
	if err := os.WriteFile(filepath.Join(r.dir, "pass"), []byte(passphrase+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := copyTree(template, filepath.Join(r.dir, "fleet")); err != nil {
		t.Fatal(err)
	}
	return r
}

// serve starts a server and waits until it serves.
func serve(t *testing.T, args ...string) *running {
	t.Helper()
	r := newFleet(t)
	r.start(args...)
	return r
}

var servingLine = regexp.MustCompile(`msg=serving https=(\S+) http=(\S+)`)

func (r *running) start(args ...string) {
	r.t.Helper()
	r.log = &lockedBuffer{}
	r.cmd = r.command(append([]string{"serve", "--listen", "127.0.0.1:0", "--listen-http", "127.0.0.1:0", "--host", "localhost", "--host", "127.0.0.1"}, args...)...)
	r.cmd.Stderr = r.log
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	done := make(chan struct{})
	var waited error
	cmd := r.cmd
	r.ended = done
	go func() { waited = cmd.Wait(); close(done) }()
	r.t.Cleanup(func() { _ = cmd.Process.Kill() })
	deadline := time.Now().Add(30 * time.Second)
	for {
		if m := servingLine.FindStringSubmatch(r.log.String()); m != nil {
			r.https, r.http = m[1], m[2]
			return
		}
		select {
		case <-done:
			r.t.Fatalf("imprint serve ended: %v\n%s", waited, r.log)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("imprint serve does not serve\n%s", r.log)
		}
	}
}

func (r *running) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(programs, "imprint"), append([]string{"--passphrase-file", "pass"}, args...)...)
	cmd.Dir = r.dir
	return cmd
}

// imprint runs a command on the fleet and returns its standard output.
func (r *running) imprint(args ...string) string {
	r.t.Helper()
	cmd := r.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("imprint %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return string(out)
}

func (r *running) root() string { return filepath.Join(r.dir, "fleet/root/root-1.pem") }

// client is an HTTP client that trusts the fleet and may show a pair.
func (r *running) client(pair *tls.Certificate) *http.Client {
	r.t.Helper()
	pem, err := os.ReadFile(r.root())
	if err != nil {
		r.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	if pair != nil {
		config.Certificates = []tls.Certificate{*pair}
	}
	tr := &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 64}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// post sends a PKCS #10 and returns status and body.
func (r *running) post(c *http.Client, path, token string, csr []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "https://"+r.https+path, bytes.NewReader(csr))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", api.MediaPKCS10)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// stop ends the server with a signal and returns its exit code.
func (r *running) stop(sig os.Signal) int {
	r.t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		r.t.Fatal(err)
	}
	select {
	case <-r.ended:
	case <-time.After(30 * time.Second):
		r.t.Fatalf("imprint serve does not end\n%s", r.log)
	}
	return r.cmd.ProcessState.ExitCode()
}

// Every command does the same beside a running server as without one, and what it
// revokes is revoked at once.
func TestBesideServer(t *testing.T) {
	r := serve(t)
	csv := "id,group\ndev-1,a\ndev-2,a\ndev-3,b\n"
	if err := os.WriteFile(filepath.Join(r.dir, "devices.csv"), []byte(csv), 0o600); err != nil {
		t.Fatal(err)
	}
	r.imprint("bootstrap", "devices.csv", "--out", "bundles")
	r.imprint("device", "add", "dev-4", "--profile", "default")
	r.imprint("device", "enroll", "dev-4", "--out", "late")
	pair, err := tls.LoadX509KeyPair(filepath.Join(r.dir, "bundles/dev-1/chain.pem"), filepath.Join(r.dir, "bundles/dev-1/key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	whoami := func() int {
		resp, err := r.client(&pair).Get("https://" + r.https + api.PathWhoami)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		return resp.StatusCode
	}
	if got := whoami(); got != http.StatusOK {
		t.Errorf("a device of the bootstrap: %d", got)
	}
	r.imprint("device", "revoke", "dev-1", "--reason", "keyCompromise")
	if got := whoami(); got != http.StatusForbidden {
		t.Errorf("once it is revoked: %d", got)
	}
	serial := strings.TrimLeft(pair.Leaf.SerialNumber.Text(16), "0")
	deadline := time.Now().Add(3 * time.Second)
	for !strings.Contains(r.crl(), strings.ToUpper(serial)) {
		if time.Now().After(deadline) {
			t.Fatalf("the CRL does not name it\n%s", r.log)
		}
		time.Sleep(20 * time.Millisecond)
	}
	r.imprint("export", "mosquitto", "--out", "broker")
	r.imprint("backup", "backup.age")
	beside := map[string]string{}
	commands := [][]string{
		{"device", "list", "--output", "json"}, {"device", "show", "dev-1"}, {"profile", "list"}, {"ca", "show", "--output", "json"},
		{"audit", "list", "--output", "json"}, {"audit", "verify"}, {"check"}, {"token", "list"}, {"approval", "list"}, {"policy", "explain", "dev-2", "publish", "devices/dev-2/up/x"},
	}
	for _, c := range commands {
		beside[strings.Join(c, " ")] = r.imprint(c...)
	}
	if code := r.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d\n%s", code, r.log)
	}
	for _, c := range commands {
		if got := r.imprint(c...); got != beside[strings.Join(c, " ")] {
			t.Errorf("imprint %s says\n%s\nand beside a server it said\n%s", strings.Join(c, " "), got, beside[strings.Join(c, " ")])
		}
	}
	if _, err := os.Lstat(filepath.Join(r.dir, "fleet", socketFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

// crl is the published list, as openssl reads it.
func (r *running) crl() string {
	r.t.Helper()
	out, err := exec.Command("sh", "-c", "curl -sS --fail http://"+r.http+"/crl/device-1.crl | openssl crl -inform DER -noout -text").CombinedOutput()
	if err != nil {
		r.t.Fatalf("reading the CRL: %v\n%s", err, out)
	}
	return string(out)
}

func TestServeRefuses(t *testing.T) {
	r := newFleet(t)
	fails := func(want int, args ...string) {
		t.Helper()
		cmd := r.command(append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)...)
		out, err := cmd.CombinedOutput()
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.ExitCode() != want {
			t.Errorf("%v: %v, want exit code %d\n%s", args, err, want, out)
		}
	}
	fails(exitUsage, "--log-format", "xml")
	fails(exitUsage, "--log-level", "loud")
	if err := os.WriteFile(filepath.Join(r.dir, "wrong"), []byte("not the passphrase\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(exitRefused, "--passphrase-file", "wrong")
	config := filepath.Join(r.dir, "fleet", configFile)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"  color: red\n", "  makers: [{name: x}]\n", "  makers: [{name: x, roots: none.pem}]\n", "  est-labels: {cacerts: {}}\n"} {
		if err := os.WriteFile(config, append(text, "server:\n"+bad...), 0o600); err != nil {
			t.Fatal(err)
		}
		fails(exitConfig)
	}
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r.start()
	fails(exitBusy)
	r.stop(syscall.SIGTERM)
	// clk-001: the clock is years ahead.
	var out, errOut bytes.Buffer
	a := &app{in: strings.NewReader(""), out: &out, err: &errOut, now: func() time.Time { return time.Now().AddDate(5, 0, 0) }}
	root := newRootCommand(a)
	root.SetArgs([]string{"--fleet", filepath.Join(r.dir, "fleet"), "--passphrase-file", filepath.Join(r.dir, "pass"), "serve", "--listen", "127.0.0.1:0"})
	if err := root.ExecuteContext(t.Context()); exitCode(err) != exitRefused || !strings.Contains(err.Error(), "clock") {
		t.Errorf("clk-001: %v", err)
	}
}

func TestReload(t *testing.T) {
	r := serve(t)
	config := filepath.Join(r.dir, "fleet", configFile)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	reload := func(section, want string) {
		t.Helper()
		if err := os.WriteFile(config, append(text, section...), 0o600); err != nil {
			t.Fatal(err)
		}
		before := strings.Count(r.log.String(), want)
		if err := r.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(10 * time.Second)
		for strings.Count(r.log.String(), want) == before {
			if time.Now().After(deadline) {
				t.Fatalf("no %q in the log\n%s", want, r.log)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	label := func() int {
		resp, err := r.client(nil).Get("https://" + r.https + "/.well-known/est/sensors/cacerts")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		return resp.StatusCode
	}
	if got := label(); got != http.StatusNotFound {
		t.Errorf("a label that is not there: %d", got)
	}
	reload("server:\n  est-labels: {sensors: {profile: default}}\n", "configuration read again")
	if got := label(); got != http.StatusOK {
		t.Errorf("a label that was added: %d", got)
	}
	reload("server:\n  est-labels: [\n", "the configuration was not changed")
	if got := label(); got != http.StatusOK {
		t.Errorf("after a configuration that cannot be read: %d", got)
	}
}

// SIGTERM under load: what was accepted is answered, and what was answered is
// there.
func TestStopUnderLoad(t *testing.T) {
	r := newFleet(t)
	config := filepath.Join(r.dir, "fleet", configFile)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, append(text, "server:\n  limits: {peer-rate: -1, identity-rate: -1, failure-rate: -1}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	r.start()
	token := strings.TrimSpace(r.imprint("token", "create", "--role", "station", "--prefix", "load-", "--profile", "default", "--limit", "100000"))
	client := r.client(nil)
	var wg sync.WaitGroup
	var n, broken atomic.Int64
	var mu sync.Mutex
	got := map[string][]byte{}
	ended := make(chan struct{})
	for range 16 {
		wg.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
				}
				id := fmt.Sprintf("load-%d", n.Add(1))
				code, body, err := r.post(client, api.PathEnroll, token, servertest.CSR(t, id, catest.Key(t, ca.P256)))
				switch {
				case err == nil && code == http.StatusOK:
					mu.Lock()
					got[id] = body
					mu.Unlock()
				case err != nil && strings.Contains(err.Error(), "refused"): // not accepted any more
					return
				case err != nil && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || strings.Contains(err.Error(), "server closed idle connection")):
					return // an idle connection that was closed before the request went out
				default:
					broken.Add(1)
					t.Logf("%s: %d %s %v", id, code, body, err)
					return
				}
			}
		})
	}
	time.Sleep(500 * time.Millisecond)
	code := r.stop(syscall.SIGTERM)
	close(ended)
	wg.Wait()
	if code != 0 || broken.Load() != 0 || len(got) == 0 {
		t.Errorf("exit code %d, %d broken requests, %d enrolled\n%.2000s", code, broken.Load(), len(got), lastLines(r.log.String()))
	}
	var list []struct{ ID string }
	if err := json.Unmarshal([]byte(r.imprint("device", "list", "--output", "json")), &list); err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, d := range list {
		there[d.ID] = true
	}
	for id := range got {
		if !there[id] {
			t.Errorf("%s has a certificate and is not in the inventory", id)
		}
	}
}

func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// From nothing to a device that publishes: the agent enrolls with a token, renews,
// and a real Mosquitto lets it in with the first pair and with the second.
func TestAgentOnRealBroker(t *testing.T) {
	r := serve(t)
	ports := mosquittotest.Ports(t, 2)
	config := filepath.Join(r.dir, "fleet", configFile)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`certificate-port: \d+`).ReplaceAll(text, fmt.Appendf(nil, "certificate-port: %d", ports[0]))
	text = regexp.MustCompile(`password-port: \d+`).ReplaceAll(text, fmt.Appendf(nil, "password-port: %d", ports[1]))
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	// A profile whose certificates have two thirds of their life behind them when they
	// are made.
	profile := "name: brief\ncertificate: {validity: 3m, backdate: 2m}\npassword: {none: true}\ntopics:\n  - publish: devices/{id}/up/#\n"
	if err := os.WriteFile(filepath.Join(r.dir, "brief.yaml"), []byte(profile), 0o600); err != nil {
		t.Fatal(err)
	}
	r.imprint("profile", "add", "brief.yaml")
	r.imprint("token", "create", "--device", "gw-1", "--profile", "brief", "--out", "token")
	agent := map[string]any{
		"server": "https://" + strings.Replace(r.https, "127.0.0.1", "localhost", 1), "trust": r.root(), "device": "gw-1",
		"state": filepath.Join(r.dir, "agent"), "broker": fmt.Sprintf("localhost:%d", ports[0]), "hook": []string{"touch", filepath.Join(r.dir, "hooked")},
	}
	b, err := json.Marshal(agent)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "agent.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	r.imprint("agent", "enroll", "--config", "agent.json", "--token-file", "token")
	r.imprint("export", "mosquitto", "--out", "broker")
	broker := mosquittotest.Start(t, "include_dir "+filepath.Join(r.dir, "broker"))
	login := func() mosquittotest.Login {
		at := filepath.Join(r.dir, "agent/current")
		pair, err := tls.LoadX509KeyPair(filepath.Join(at, "cert.pem"), filepath.Join(at, "key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pem, err := os.ReadFile(r.root())
		if err != nil {
			t.Fatal(err)
		}
		pool.AppendCertsFromPEM(pem)
		return mosquittotest.Login{
			Addr: fmt.Sprintf("localhost:%d", ports[0]), ClientID: "gw-1",
			TLS: &tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
		}
	}
	c := mosquittotest.MustConnect(t, login())
	if code := c.Publish("devices/gw-1/up/hello", "1"); code != mosquittotest.Success && code != mosquittotest.NoSubscribers {
		t.Errorf("publishing: %#x", code)
	}
	if code := c.Publish("devices/other/up/hello", "1"); code != mosquittotest.NotAuthorized {
		t.Errorf("publishing as another device: %#x", code)
	}
	c.Close()
	if err := os.Remove(filepath.Join(r.dir, "hooked")); err != nil {
		t.Errorf("the hook did not run when the device was enrolled: %v", err)
	}
	first := login()
	run := r.command("agent", "run", "--config", "agent.json")
	run.Stderr = os.Stderr
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(40 * time.Second)
	for {
		if _, err := os.Stat(filepath.Join(r.dir, "hooked")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no renewal\n%s", r.imprint("agent", "status", "--config", "agent.json"))
		}
		time.Sleep(50 * time.Millisecond)
	}
	c = mosquittotest.MustConnect(t, login())
	c.Close()
	if bytes.Equal(first.TLS.Certificates[0].Certificate[0], login().TLS.Certificates[0].Certificate[0]) {
		t.Error("the pair in use is the old one")
	}
	if err := run.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := run.Wait(); err != nil {
		t.Errorf("imprint agent run ends with %v", err)
	}
	status := r.imprint("agent", "status", "--config", "agent.json", "--output", "json")
	if !strings.Contains(status, `"state": "waiting"`) {
		t.Errorf("status %s", status)
	}
	show := r.imprint("device", "show", "gw-1")
	if strings.Count(show, "certificate ") != 2 || !strings.Contains(show, "superseded") {
		t.Errorf("the server's view:\n%s", show)
	}
	// The broker takes the client ID from the certificate; p2 is MQTT 3.1.1, which
	// only the agent speaks here.
	if !strings.Contains(broker.Log(), "as gw-1 (p2,") {
		t.Errorf("the agent did not try the new pair at the broker\n%s", broker.Log())
	}
}
