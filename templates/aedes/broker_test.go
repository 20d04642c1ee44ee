package aedes_test

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
	"github.com/imprint-iot/imprint/templates/aedes"
	"github.com/imprint-iot/imprint/templates/brokertest"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// node runs a script of CommonJS and returns what it prints.
func node(t *testing.T, script string) string {
	t.Helper()
	cmd := exec.Command("node", "-e", script)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("node (package nodejs, version 20 or later): %v", err)
	}
	return string(out)
}

// A running broker has the files of an export in dir.
type running struct {
	*brokertest.Process
	dir                     string
	certificates, passwords string
}

func write(t *testing.T, dir string, f templates.View) {
	t.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	if _, err := aedes.Target().Write(d, f, templates.Options{AllowShrink: true}); err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T, f *targettest.Memory) *running {
	t.Helper()
	ports := brokertest.Ports(t, 2)
	n := &f.Broker
	n.Bind, n.CertificatePort, n.PasswordPort = "127.0.0.1", ports[0], ports[1]
	r := &running{dir: t.TempDir(), certificates: fmt.Sprintf("127.0.0.1:%d", ports[0]), passwords: fmt.Sprintf("127.0.0.1:%d", ports[1])}
	write(t, r.dir, f)
	if err := os.Symlink(filepath.Join(brokertest.Home(t, "aedes"), "node_modules"), filepath.Join(r.dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	r.Process = brokertest.Start(t, exec.Command("node", filepath.Join(r.dir, aedes.ServerName)), r.certificates, r.passwords)
	return r
}

// reload exports f, and waits until the broker has dealt with it.
func (r *running) reload(t *testing.T, f *targettest.Memory) {
	t.Helper()
	write(t, r.dir, f)
	before := r.Count("reloaded\n")
	r.Signal(t, syscall.SIGHUP)
	r.Wait(t, "reload", func() bool { return r.Count("reloaded\n") > before })
	if r.Says("not reloaded") {
		t.Fatal("the broker does not take the files")
	}
}

// Aedes decides as the policy.
func TestProof(t *testing.T) {
	f := targettest.ProofFleet(t, time.Now())
	r := start(t, f)
	devices := f.ProofDevices(t)
	report, err := (&proof.Broker{
		Target: "aedes", Certificates: r.certificates, Passwords: r.passwords,
		Roots: f.PKI.Roots(), Version: 4, Observer: f.ProofObserver(t), BindsClientID: true,
	}).Ask(t.Context(), devices, proof.Questions(devices))
	if err != nil {
		t.Fatal(err)
	}
	targettest.Report(t, report, nil)
}

// A login is one try to connect.
type login struct {
	id, user, password string
	certificate        *tls.Certificate
	will               string
}

// connect returns a session and a channel that is closed when it ends.
func (r *running) connect(t *testing.T, f *targettest.Memory, l login) (paho.Client, <-chan struct{}, error) {
	t.Helper()
	address := r.passwords
	config := &tls.Config{RootCAs: f.PKI.Roots(), ServerName: "localhost", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	if l.certificate != nil {
		address, config.Certificates = r.certificates, []tls.Certificate{*l.certificate}
	}
	ended := make(chan struct{})
	o := paho.NewClientOptions().AddBroker("ssl://" + address).SetTLSConfig(config).SetProtocolVersion(4).
		SetClientID(l.id).SetUsername(l.user).SetPassword(l.password).
		SetAutoReconnect(false).SetConnectRetry(false).SetConnectTimeout(5 * time.Second).
		SetConnectionLostHandler(func(paho.Client, error) { close(ended) })
	if l.will != "" {
		o.SetWill(l.will, "gone", 1, false)
	}
	c := paho.NewClient(o)
	token := c.Connect()
	token.Wait()
	if token.Error() == nil {
		t.Cleanup(func() { c.Disconnect(0) })
	}
	return c, ended, token.Error()
}

func (r *running) mustConnect(t *testing.T, f *targettest.Memory, l login) (paho.Client, <-chan struct{}) {
	t.Helper()
	c, ended, err := r.connect(t, f, l)
	if err != nil {
		t.Fatalf("%+v: %v", l, err)
	}
	return c, ended
}

func wait(t *testing.T, what string, ended <-chan struct{}) {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal(what + " goes on")
	}
}

// After a reload the sessions of what is revoked have ended, their wills are not
// published, and they do not come back. The others stay.
func TestRevoke(t *testing.T) {
	f := targettest.ProofFleet(t, time.Now())
	dev10, dev3 := f.PKI.Client(t, "dev-10"), f.PKI.Client(t, "dev-3")
	r := start(t, f)

	wills := make(chan string, 10)
	observer, watching := r.mustConnect(t, f, login{id: targettest.ObserverID, user: targettest.ObserverID, password: "observe everything"})
	if token := observer.Subscribe("#", 0, func(_ paho.Client, m paho.Message) { wills <- m.Topic() }); token.Wait() && token.Error() != nil {
		t.Fatal(token.Error())
	}
	_, revoked := r.mustConnect(t, f, login{id: "dev-10", certificate: &dev10, will: "fleet/dev-10/state"})
	_, gone := r.mustConnect(t, f, login{id: "dev-1", user: "dev-1", password: "correct horse", will: "fleet/dev-1/state"})
	_, changed := r.mustConnect(t, f, login{id: "Dev-2", user: "Dev-2", password: "battery staple"})
	_, stays := r.mustConnect(t, f, login{id: "dev-3", certificate: &dev3})

	f.PKI.Revoke(dev10, f.Now)
	f.Lists = []templates.CRL{f.PKI.CRL(t, f.Now.Add(-time.Minute), f.Now.AddDate(0, 0, 7))}
	f.Remove("dev-1")
	for i := range f.Devices {
		if f.Devices[i].ID == "Dev-2" {
			f.Devices[i].Verifiers = targettest.Verifiers(t, "Dev-2", "another")
		}
	}
	r.reload(t, f)

	wait(t, "a session of a revoked certificate", revoked)
	wait(t, "a session of a device that is gone", gone)
	wait(t, "a session with an old password", changed)
	for what, l := range map[string]login{
		"a revoked certificate":  {id: "dev-10", certificate: &dev10},
		"a device that is gone":  {id: "dev-1", user: "dev-1", password: "correct horse"},
		"an old password":        {id: "Dev-2", user: "Dev-2", password: "battery staple"},
		"another's identifier":   {id: "dev-10", certificate: &dev3},
		"another's user name":    {id: "dev-3", user: "dev-10", certificate: &dev3},
		"no client identifier":   {user: "Dev-2", password: "another"},
		"a certificate's device": {id: "dev-3", user: "dev-3"},
	} {
		if _, _, err := r.connect(t, f, l); err == nil {
			t.Errorf("%s opens the door", what)
		}
	}
	again := f.PKI.Client(t, "dev-10")
	r.mustConnect(t, f, login{id: "dev-10", user: "dev-10", certificate: &again})
	r.mustConnect(t, f, login{id: "Dev-2", user: "Dev-2", password: "another"})
	if token := observer.Publish("end", 1, false, ""); token.Wait() && token.Error() != nil {
		t.Fatal(token.Error())
	}
	for topic := range wills {
		if topic == "end" {
			break
		}
		t.Errorf("a message on %s: a will of somebody who was shut out", topic)
	}
	select {
	case <-stays:
		t.Error("a session that nothing has happened to has ended")
	case <-watching:
		t.Error("the observer's session has ended")
	default:
	}
}

// A right that is gone is gone for subscriptions of before, too.
func TestNarrowedRights(t *testing.T) {
	f := targettest.ProofFleet(t, time.Now())
	r := start(t, f)
	observer, _ := r.mustConnect(t, f, login{id: targettest.ObserverID, user: targettest.ObserverID, password: "observe everything"})
	c, ended := r.mustConnect(t, f, login{id: "dev-1", user: "dev-1", password: "correct horse"})
	got := make(chan string, 10)
	if token := c.SubscribeMultiple(map[string]byte{"news/all": 1, "fleet/dev-1/down": 1}, func(_ paho.Client, m paho.Message) { got <- m.Topic() }); token.Wait() && token.Error() != nil {
		t.Fatal(token.Error())
	}
	tell := func() {
		for _, name := range []string{"news/all", "fleet/dev-1/down"} {
			if token := observer.Publish(name, 1, false, "x"); token.Wait() && token.Error() != nil {
				t.Fatal(token.Error())
			}
		}
	}
	tell()
	if a, b := <-got, <-got; a != "news/all" || b != "fleet/dev-1/down" {
		t.Fatalf("%s and %s before, want both", a, b)
	}
	for i := range f.Devices {
		f.Devices[i].Grants = withoutNews(f.Devices[i].Grants)
	}
	r.reload(t, f)
	tell()
	select {
	case name := <-got:
		if name != "fleet/dev-1/down" {
			t.Errorf("%s is delivered, and may not be", name)
		}
	case <-ended:
		t.Error("the session has ended")
	case <-time.After(10 * time.Second):
		t.Error("nothing is delivered")
	}
}

func withoutNews(grants []topic.Grant) []topic.Grant {
	var out []topic.Grant
	for _, g := range grants {
		if g.Filter != "news/all" {
			out = append(out, g)
		}
	}
	return out
}

// A CRL that has expired, or is missing, shuts its certificates out, and no others; a
// broken file changes nothing.
func TestStaleCRL(t *testing.T) {
	f := targettest.ProofFleet(t, time.Now())
	dev3 := f.PKI.Client(t, "dev-3")
	soon := 4 * time.Second
	f.Lists = []templates.CRL{f.PKI.CRL(t, f.Now.Add(-time.Minute), time.Now().Add(soon))}
	r := start(t, f)
	r.mustConnect(t, f, login{id: "dev-3", certificate: &dev3})
	r.Wait(t, "refusal after the nextUpdate", func() bool {
		c, _, err := r.connect(t, f, login{id: "dev-3", certificate: &dev3})
		if err == nil {
			c.Disconnect(0)
		}
		return err != nil
	})
	r.mustConnect(t, f, login{id: "dev-1", user: "dev-1", password: "correct horse"})

	f.Lists = []templates.CRL{f.PKI.CRL(t, f.Now.Add(-time.Minute), time.Now().Add(time.Hour))}
	r.reload(t, f)
	r.mustConnect(t, f, login{id: "dev-3", certificate: &dev3})

	f.Lists = nil
	r.reload(t, f)
	if _, _, err := r.connect(t, f, login{id: "dev-3", certificate: &dev3}); err == nil {
		t.Error("a certificate is let in without a CRL of its issuer")
	}

	if err := os.WriteFile(filepath.Join(r.dir, aedes.FleetName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Signal(t, syscall.SIGHUP)
	r.Wait(t, "word of the broken file", func() bool { return r.Says("not reloaded") })
	r.mustConnect(t, f, login{id: "dev-1", user: "dev-1", password: "correct horse"})
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
		Rule, Filter               string
		Covers, IsName, IsFilterOK bool
	}
	var pairs []pair
	for len(pairs) < 20_000 {
		p := pair{Rule: text(), Filter: text()}
		if _, err := topic.ParseFilter(p.Rule); err != nil {
			continue
		}
		_, nerr := topic.ParseName(p.Filter)
		_, ferr := topic.ParseFilter(p.Filter)
		p.IsName, p.IsFilterOK = nerr == nil, ferr == nil
		if p.IsFilterOK {
			p.Covers = topic.Filter(p.Rule).Covers(topic.Filter(p.Filter))
		}
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
	module, err := filepath.Abs(aedes.ModuleName)
	if err != nil {
		t.Fatal(err)
	}
	out := node(t, fmt.Sprintf(`
		import(%q).then(({ covers, isName, isFilter }) => {
			const wrong = JSON.parse(require('fs').readFileSync(%q)).filter(p =>
				isName(p.Filter) !== p.IsName || isFilter(p.Filter) !== p.IsFilterOK || (isFilter(p.Filter) && covers(p.Rule, p.Filter) !== p.Covers))
			console.log(JSON.stringify(wrong.slice(0, 10)))
		})`, module, name))
	if strings.TrimSpace(out) != "[]" {
		t.Errorf("the module says otherwise: %s", out)
	}
}

// What the module makes of an export, by a second reading, is the policy.
func TestEvaluator(t *testing.T) {
	f := targettest.ProofFleet(t, time.Now())
	dir := t.TempDir()
	write(t, dir, f)
	target, ok := aedes.Target().(interface {
		Evaluator(src fs.FS) (proof.Evaluator, error)
	})
	if !ok {
		t.Fatal("the target has no evaluator")
	}
	e, err := target.Evaluator(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := proof.Evaluate("aedes", e, proof.Questions(f.ProofDevices(t)))
	if err != nil {
		t.Fatal(err)
	}
	targettest.Report(t, r, nil)
}
