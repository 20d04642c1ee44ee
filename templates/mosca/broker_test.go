package mosca_test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/brokertest"
	"github.com/imprint-iot/imprint/templates/mosca"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// node runs a script of CommonJS and returns what it prints.
func node(t *testing.T, script string) string {
	t.Helper()
	cmd := exec.Command("node", "--no-deprecation", "-e", script)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("node (package nodejs, version 20 or later): %v", err)
	}
	return string(out)
}

// fleet is the fleet of the proof, in which everybody has a password. The name of a
// device without one is its password.
func fleet(t *testing.T) (*targettest.Memory, []proof.Device) {
	t.Helper()
	f := targettest.ProofFleet(t, time.Now())
	for i, e := range f.Devices {
		if len(e.Verifiers) == 0 {
			f.Devices[i].Verifiers = targettest.Verifiers(t, string(e.ID), string(e.ID))
		}
	}
	devices := f.ProofDevices(t)
	for i, d := range devices {
		if len(d.Password) == 0 {
			devices[i].Password = []byte(d.ID())
		}
	}
	return f, devices
}

// A running broker has the files of an export in dir.
type running struct {
	*brokertest.Process
	dir, address string
}

func write(t *testing.T, dir string, f templates.View) {
	t.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	if _, err := mosca.Target().Write(d, f, templates.Options{AllowShrink: true}); err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T, f *targettest.Memory) *running {
	t.Helper()
	ports := brokertest.Ports(t, 1)
	f.Broker.Bind, f.Broker.PasswordPort = "127.0.0.1", ports[0]
	r := &running{dir: t.TempDir(), address: fmt.Sprintf("127.0.0.1:%d", ports[0])}
	write(t, r.dir, f)
	if err := os.Symlink(filepath.Join(brokertest.Home(t, "mosca"), "node_modules"), filepath.Join(r.dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	r.Process = brokertest.Start(t, exec.Command("node", filepath.Join(r.dir, mosca.ServerName)), r.address)
	return r
}

// Mosca decides as the policy.
func TestProof(t *testing.T) {
	f, devices := fleet(t)
	r := start(t, f)
	report, err := (&proof.Broker{
		Target: "mosca", Passwords: r.address, Roots: f.PKI.Roots(), Version: 4, Observer: f.ProofObserver(t), BindsClientID: true,
	}).Ask(t.Context(), devices, proof.Questions(devices))
	if err != nil {
		t.Fatal(err)
	}
	targettest.Report(t, report, nil)
}

// connect returns a session and a channel that is closed when it ends.
func (r *running) connect(t *testing.T, f *targettest.Memory, id, user, password, will string) (paho.Client, <-chan struct{}, error) {
	t.Helper()
	ended := make(chan struct{})
	o := paho.NewClientOptions().AddBroker("ssl://" + r.address).SetTLSConfig(&tls.Config{RootCAs: f.PKI.Roots(), ServerName: "localhost"}).SetProtocolVersion(4).
		SetClientID(id).SetUsername(user).SetPassword(password).SetAutoReconnect(false).SetConnectTimeout(5 * time.Second).
		SetConnectionLostHandler(func(paho.Client, error) { close(ended) })
	if will != "" {
		o.SetWill(will, "gone", 1, false)
	}
	c := paho.NewClient(o)
	token := c.Connect()
	token.Wait()
	if token.Error() == nil {
		t.Cleanup(func() { c.Disconnect(0) })
	}
	return c, ended, token.Error()
}

// After a reload the sessions of what is gone have ended, their wills are not published,
// and they do not come back. Others stay.
func TestRevoke(t *testing.T) {
	f, _ := fleet(t)
	r := start(t, f)
	login := func(id, password, will string) (paho.Client, <-chan struct{}) {
		c, ended, err := r.connect(t, f, id, id, password, will)
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		return c, ended
	}
	wills := make(chan string, 10)
	observer, _ := login(targettest.ObserverID, "observe everything", "")
	if token := observer.Subscribe("#", 0, func(_ paho.Client, m paho.Message) { wills <- m.Topic() }); token.Wait() && token.Error() != nil {
		t.Fatal(token.Error())
	}
	_, gone := login("dev-1", "correct horse", "fleet/dev-1/state")
	_, changed := login("Dev-2", "battery staple", "fleet/Dev-2/state")
	_, stays := login("dev-3", "dev-3", "")
	f.Remove("dev-1")
	for i := range f.Devices {
		if f.Devices[i].ID == "Dev-2" {
			f.Devices[i].Verifiers = targettest.Verifiers(t, "Dev-2", "another")
		}
	}
	write(t, r.dir, f)
	r.Signal(t, syscall.SIGHUP)
	r.Wait(t, "reload", func() bool { return r.Says("reloaded\n") })
	for what, ended := range map[string]<-chan struct{}{"a device that is gone": gone, "an old password": changed} {
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Errorf("the session of %s goes on", what)
		}
	}
	for _, l := range [][3]string{{"dev-1", "dev-1", "correct horse"}, {"Dev-2", "Dev-2", "battery staple"}, {"dev-1", "dev-3", "dev-3"}, {"", "dev-3", "dev-3"}, {"constructor", "constructor", ""}} {
		if _, _, err := r.connect(t, f, l[0], l[1], l[2], ""); err == nil {
			t.Errorf("client identifier %q, user %q, password %q open the door", l[0], l[1], l[2])
		}
	}
	login("Dev-2", "another", "")
	if token := observer.Publish("end", 1, false, ""); token.Wait() && token.Error() != nil {
		t.Fatal(token.Error())
	}
	for name := range wills {
		if name == "end" {
			break
		}
		if !strings.HasPrefix(name, "$SYS/") {
			t.Errorf("a message on %s: a will of somebody who was shut out", name)
		}
	}
	select {
	case <-stays:
		t.Error("a session that nothing has happened to has ended")
	default:
	}
}

// The matcher of the module is that of package topic, on filters that are alike.
func TestCovers(t *testing.T) {
	levels := []string{"a", "b", "+", "#", "", "$a", "a+", "aé", "\u0085"}
	rng := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		var out []string
		for range 1 + rng.IntN(4) {
			out = append(out, levels[rng.IntN(len(levels))])
		}
		return strings.Join(out, "/")
	}
	type pair struct {
		Rule, Filter             string
		Covers, IsName, IsFilter bool
	}
	var pairs []pair
	for len(pairs) < 20_000 {
		p := pair{Rule: text(), Filter: text()}
		if _, err := topic.ParseFilter(p.Rule); err != nil {
			continue
		}
		_, nerr := topic.ParseName(p.Filter)
		_, ferr := topic.ParseFilter(p.Filter)
		p.IsName, p.IsFilter = nerr == nil, ferr == nil
		p.Covers = p.IsFilter && topic.Filter(p.Rule).Covers(topic.Filter(p.Filter))
		pairs = append(pairs, p)
	}
	raw, err := json.Marshal(pairs)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "pairs.json")
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	module, err := filepath.Abs(mosca.ModuleName)
	if err != nil {
		t.Fatal(err)
	}
	out := node(t, fmt.Sprintf(`
		const { covers, isName, isFilter } = require(%q)
		const wrong = JSON.parse(require('fs').readFileSync(%q)).filter(p =>
			isName(p.Filter) !== p.IsName || isFilter(p.Filter) !== p.IsFilter || (p.IsFilter && covers(p.Rule, p.Filter) !== p.Covers))
		console.log(JSON.stringify(wrong.slice(0, 10)))`, module, name))
	if strings.TrimSpace(out) != "[]" {
		t.Errorf("the module says otherwise: %s", out)
	}
}

// What the module makes of an export, by a second reading, is the policy.
func TestEvaluator(t *testing.T) {
	f, devices := fleet(t)
	dir := t.TempDir()
	write(t, dir, f)
	target, ok := mosca.Target().(interface {
		Evaluator(src fs.FS) (proof.Evaluator, error)
	})
	if !ok {
		t.Fatal("the target has no evaluator")
	}
	e, err := target.Evaluator(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := proof.Evaluate("mosca", e, proof.Questions(devices))
	if err != nil {
		t.Fatal(err)
	}
	targettest.Report(t, r, nil)
}
