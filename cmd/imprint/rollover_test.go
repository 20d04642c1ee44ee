package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/templates/mqtt"
)

// rolledDevices is how many devices live through a rollover.
const rolledDevices = 200

// A roller is a device that lives through the replacement of a root.
type roller struct {
	id    string
	pair  tls.Certificate
	trust []byte // PEM
}

func newRoller(r *running, id string) *roller {
	r.t.Helper()
	dir := filepath.Join(r.dir, "bundles", id)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		r.t.Fatal(err)
	}
	trust, err := os.ReadFile(filepath.Join(dir, "trust.pem"))
	if err != nil {
		r.t.Fatal(err)
	}
	return &roller{id: id, pair: pair, trust: trust}
}

func (d *roller) tls() *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(d.trust)
	return &tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: []tls.Certificate{d.pair}, MinVersion: tls.VersionTLS12}
}

// connects reports whether the broker lets the device in, and the device the broker.
func (d *roller) connects(b *liveBroker) error {
	conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", b.certPort), d.tls())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := mqtt.Connect(conn, mqtt.Login{ClientID: d.id}, time.Now().Add(10*time.Second)); err != nil {
		return err
	}
	mqtt.Disconnect(conn)
	return nil
}

// ask asks the server for something, as the device.
func (d *roller) ask(r *running, method, path string, body any, answer any) error {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(r.t.Context(), method, "https://"+r.https+path, in)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", api.MediaJSON)
		req.Header.Set("Accept", api.MediaJSON)
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: d.tls(), DisableKeepAlives: true}, Timeout: 20 * time.Second}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, path, res.Status, text)
	}
	if raw, ok := answer.(*[]byte); ok {
		*raw = text
		return nil
	}
	return json.Unmarshal(text, answer)
}

// learn takes the trust bundle of the server over.
func (d *roller) learn(r *running) error {
	return d.ask(r, http.MethodGet, api.PathTrustBundle, nil, &d.trust)
}

// report says what the device trusts, and that it works with its pair.
func (d *roller) report(r *running) error {
	q := api.StatusReport{Version: api.StatusVersion, Status: true}
	for rest := d.trust; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		q.Trust = append(q.Trust, fmt.Sprintf("%x", sha256.Sum256(block.Bytes)))
	}
	var answer api.StatusResponse
	return d.ask(r, http.MethodPost, api.PathEnrollStatus, q, &answer)
}

// renew gets the next pair, and uses it from now on.
func (d *roller) renew(r *running) error {
	key, err := ca.GenerateKey(ca.P256)
	if err != nil {
		return err
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: catest.CSR(r.t, key, d.id)})
	var answer api.EnrollResponse
	if err := d.ask(r, http.MethodPost, api.PathRenew, api.EnrollRequest{CSR: string(csr)}, &answer); err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	d.pair, err = tls.X509KeyPair([]byte(answer.Chain), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return err
}

// all does something for many devices, a few at a time.
func all(t *testing.T, what string, devices []*roller, do func(*roller) error) {
	t.Helper()
	slots := make(chan struct{}, 8)
	var wait sync.WaitGroup
	for _, d := range devices {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			if err := do(d); err != nil {
				t.Errorf("%s: %s: %v", what, d.id, err)
			}
		})
	}
	wait.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// refusedCommand runs a command that has to be refused, and returns what it says.
func (r *running) refusedCommand(code int, args ...string) string {
	r.t.Helper()
	out, err := r.command(args...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		r.t.Fatalf("imprint %s: %v, want exit code %d\n%s", strings.Join(args, " "), err, code, out)
	}
	return string(out)
}

type rolloverState struct {
	Phase    string   `json:"phase"`
	Stranded int      `json:"stranded"`
	Devices  []string `json:"strandedDevices"`
}

func (r *running) rolloverState() rolloverState {
	r.t.Helper()
	var v rolloverState
	if err := json.Unmarshal([]byte(r.imprint("rollover", "status", "--output", "json")), &v); err != nil {
		r.t.Fatal(err)
	}
	return v
}

// trusted names the roots that the broker trusts.
func trustedRoots(t *testing.T, dir string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "trust.pem"))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := ca.ParseCertificatesPEM(text)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range certs {
		if bytes.Equal(c.RawSubject, c.RawIssuer) {
			names = append(names, c.Subject.CommonName)
		}
	}
	return names
}

// A root is replaced under 200 devices and a real broker: in every phase, all that
// have followed can connect; nobody is left behind unnamed; there is a way back.
func TestRollover(t *testing.T) {
	r := newFleet(t)
	list := "id\n"
	for i := range rolledDevices {
		list += fmt.Sprintf("r-%d\n", i)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "devices.csv"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	r.imprint("bootstrap", "devices.csv", "--out", "bundles")
	r.start()
	b, broker := runsMosquitto(r, "mq")
	_ = broker
	files := brokerFiles(t, r, "mq")
	var devices []*roller
	for i := range rolledDevices {
		devices = append(devices, newRoller(r, fmt.Sprintf("r-%d", i)))
	}
	connect := func(phase string) {
		t.Helper()
		all(t, phase, devices, func(d *roller) error { return d.connects(b) })
	}
	late, early := devices[:7], devices[7:]
	connect("before")

	r.imprint("rollover", "start", "--reason", "a test")
	if got := trustedRoots(t, files); len(got) != 2 {
		t.Errorf("the broker trusts %q", got)
	}
	connect("trust, nobody knows yet")
	all(t, "learn", early, func(d *roller) error { return errors.Join(d.learn(r), d.report(r)) })
	connect("trust")
	said := r.refusedCommand(exitRefused, "rollover", "advance")
	if !strings.Contains(said, "7 devices would be stranded") {
		t.Errorf("advance says %q", said)
	}
	if v := r.rolloverState(); v.Phase != "trust" || v.Stranded != 7 || len(v.Devices) != 7 || v.Devices[0] != "r-0" {
		t.Errorf("the controller says %+v", v)
	}
	r.imprint("rollover", "abort", "--reason", "a way back")
	if got := trustedRoots(t, files); len(got) != 1 || !strings.HasSuffix(got[0], "R1") {
		t.Errorf("after abort the broker trusts %q", got)
	}
	connect("aborted")

	r.imprint("rollover", "start")
	all(t, "learn", early, func(d *roller) error { return errors.Join(d.learn(r), d.report(r)) })
	r.imprint("rollover", "confirm", "r-0", "r-1", "r-2", "r-3", "r-4", "r-5", "r-6", "--reason", "by hand")
	r.imprint("rollover", "advance")
	// Seven trust the old root only, whatever was said of them: the link lets them in.
	connect("issue")
	all(t, "learn", late, func(d *roller) error { return errors.Join(d.learn(r), d.report(r)) })
	oldest := *devices[0]
	all(t, "renew", devices, func(d *roller) error { return d.renew(r) })
	connect("issue, renewed")
	all(t, "report", early, func(d *roller) error { return d.report(r) })
	said = r.refusedCommand(exitRefused, "rollover", "advance")
	if !strings.Contains(said, "7 devices would be stranded in phase done") {
		t.Errorf("advance says %q", said)
	}
	all(t, "report", late, func(d *roller) error { return d.report(r) })
	r.imprint("rollover", "advance")
	if got := trustedRoots(t, files); len(got) != 1 || !strings.HasSuffix(got[0], "R3") {
		t.Errorf("in the end the broker trusts %q", got)
	}
	all(t, "learn", devices, func(d *roller) error { return d.learn(r) })
	for _, d := range devices {
		if n := bytes.Count(d.trust, []byte("BEGIN CERTIFICATE")); n != 1 {
			t.Fatalf("%s trusts %d certificates in the end", d.id, n)
		}
	}
	connect("done")
	oldest.trust = devices[0].trust
	if err := oldest.connects(b); err == nil {
		t.Error("a certificate under the old root is let in")
	}
	if v := r.rolloverState(); v.Phase != "done" {
		t.Errorf("phase %s", v.Phase)
	}
	if got := r.refusedCommand(exitRefused, "rollover", "abort"); !strings.Contains(got, "done") {
		t.Errorf("abort after all is done says %q", got)
	}
}

// brokerFiles is where a broker's files are.
func brokerFiles(t *testing.T, r *running, name string) string {
	t.Helper()
	var nodes []struct{ Name, Out string }
	if err := json.Unmarshal([]byte(r.imprint("broker", "list", "--output", "json")), &nodes); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if n.Name == name {
			return n.Out
		}
	}
	t.Fatalf("no broker %s", name)
	return ""
}
