package amqtt_test

import (
	"bytes"
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
	"github.com/imprint-iot/imprint/templates/amqtt"
	"github.com/imprint-iot/imprint/templates/brokertest"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

func now() time.Time { return time.Now() }

// A running broker has the files of an export in dir.
type running struct {
	*brokertest.Process
	dir                     string
	certificates, passwords string
}

func export(t *testing.T, dir string, f templates.View, o templates.Options) error {
	t.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	_, err = amqtt.Target().Write(d, f, o)
	return err
}

func write(t *testing.T, dir string, f templates.View) {
	t.Helper()
	if err := export(t, dir, f, templates.Options{AllowShrink: true}); err != nil {
		t.Fatal(err)
	}
}

func command(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(filepath.Join(brokertest.Home(t, "amqtt"), "bin", "amqtt"), "-c", filepath.Join(dir, amqtt.ConfigName))
	cmd.Env = append(cmd.Environ(), "PYTHONPATH="+dir, "PYTHONDONTWRITEBYTECODE=1")
	return cmd
}

func start(t *testing.T, f *targettest.Memory) *running {
	t.Helper()
	ports := brokertest.Ports(t, 2)
	n := &f.Broker
	n.Bind, n.CertificatePort, n.PasswordPort = "127.0.0.1", ports[0], ports[1]
	r := &running{dir: t.TempDir(), certificates: fmt.Sprintf("127.0.0.1:%d", ports[0]), passwords: fmt.Sprintf("127.0.0.1:%d", ports[1])}
	write(t, r.dir, f)
	r.Process = brokertest.Start(t, command(t, r.dir), r.certificates, r.passwords)
	r.Wait(t, "start", func() bool { return r.Says("imprint: the broker serves") })
	return r
}

// reload exports f, and waits until the broker has dealt with it.
func (r *running) reload(t *testing.T, f *targettest.Memory) {
	t.Helper()
	write(t, r.dir, f)
	before := r.Count("imprint: reloaded")
	r.Signal(t, syscall.SIGHUP)
	r.Wait(t, "reload", func() bool { return r.Count("imprint: reloaded") > before })
}

// aMQTT with the plugin decides as the policy.
func TestProof(t *testing.T) {
	f := targettest.ProofFleet(t, now())
	r := start(t, f)
	devices := f.ProofDevices(t)
	report, err := (&proof.Broker{
		Target: "amqtt", Certificates: r.certificates, Passwords: r.passwords,
		Roots: f.PKI.Roots(), Version: 4, Observer: f.ProofObserver(t), BindsClientID: true, Quiet: time.Second,
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
	keep               bool // the session
}

// connect returns a session and a channel that is closed when it ends. What comes
// without a subscription goes to unasked.
func (r *running) connect(t *testing.T, f *targettest.Memory, l login, unasked chan<- string) (paho.Client, <-chan struct{}, error) {
	t.Helper()
	address := r.passwords
	config := &tls.Config{RootCAs: f.PKI.Roots(), ServerName: "localhost"}
	if l.certificate != nil {
		address, config.Certificates = r.certificates, []tls.Certificate{*l.certificate}
	}
	ended := make(chan struct{})
	o := paho.NewClientOptions().AddBroker("ssl://" + address).SetTLSConfig(config).SetProtocolVersion(4).
		SetClientID(l.id).SetUsername(l.user).SetPassword(l.password).SetCleanSession(!l.keep).
		SetAutoReconnect(false).SetConnectRetry(false).SetConnectTimeout(5 * time.Second).
		SetConnectionLostHandler(func(paho.Client, error) { close(ended) }).
		SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) {
			if unasked != nil {
				unasked <- m.Topic()
			}
		})
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
	c, ended, err := r.connect(t, f, l, nil)
	if err != nil {
		t.Fatalf("%+v: %v", l, err)
	}
	return c, ended
}

func do(t *testing.T, token paho.Token) {
	t.Helper()
	if token.WaitTimeout(10*time.Second) && token.Error() == nil {
		return
	}
	t.Fatalf("no answer, or %v", token.Error())
}

func observer(t *testing.T, r *running, f *targettest.Memory) (paho.Client, <-chan string) {
	t.Helper()
	seen := make(chan string, 100)
	c, _ := r.mustConnect(t, f, login{id: targettest.ObserverID, user: targettest.ObserverID, password: "observe everything"})
	do(t, c.Subscribe("#", 1, func(_ paho.Client, m paho.Message) { seen <- m.Topic() }))
	return c, seen
}

// until returns what is seen before a message of the observer's own.
func until(t *testing.T, c paho.Client, seen <-chan string) []string {
	t.Helper()
	do(t, c.Publish("end", 1, false, "x"))
	var out []string
	for {
		select {
		case name := <-seen:
			if name == "end" {
				return out
			}
			out = append(out, name)
		case <-time.After(10 * time.Second):
			t.Fatal("the observer sees nothing")
		}
	}
}

// After a reload the sessions of what is revoked have ended, their wills are not
// published, and they do not come back. The others stay.
func TestRevoke(t *testing.T) {
	f := targettest.ProofFleet(t, now())
	dev10, dev3 := f.PKI.Client(t, "dev-10"), f.PKI.Client(t, "dev-3")
	r := start(t, f)
	o, seen := observer(t, r, f)
	_, revoked := r.mustConnect(t, f, login{id: "dev-10", certificate: &dev10, will: "fleet/dev-10/state"})
	// The broker does not end the first of two with a clean session, and forgets it.
	_, forgotten := r.mustConnect(t, f, login{id: "dev-1", user: "dev-1", password: "correct horse", will: "fleet/dev-1/state"})
	_, gone := r.mustConnect(t, f, login{id: "dev-1", user: "dev-1", password: "correct horse", will: "fleet/dev-1/state"})
	_, changed := r.mustConnect(t, f, login{id: "Dev-2", user: "Dev-2", password: "battery staple", keep: true})
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
	for what, ended := range map[string]<-chan struct{}{"a revoked certificate": revoked, "a device that is gone": gone, "a device whose connection was forgotten": forgotten, "an old password": changed} {
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Errorf("the session of %s goes on", what)
		}
	}
	for what, l := range map[string]login{
		"a revoked certificate":  {id: "dev-10", certificate: &dev10},
		"a device that is gone":  {id: "dev-1", user: "dev-1", password: "correct horse"},
		"an old password":        {id: "Dev-2", user: "Dev-2", password: "battery staple"},
		"another's identifier":   {id: "dev-10", certificate: &dev3},
		"another's user name":    {id: "dev-3", user: "dev-10", certificate: &dev3},
		"no client identifier":   {user: "Dev-2", password: "another"},
		"a certificate's device": {id: "dev-3", user: "dev-3"},
		"a will of another":      {id: "dev-3", certificate: &dev3, will: "fleet/dev-10/state"},
		"a will on $":            {id: targettest.ObserverID, user: targettest.ObserverID, password: "observe everything", will: "$x/y"},
	} {
		if _, _, err := r.connect(t, f, l, nil); err == nil {
			t.Errorf("%s opens the door", what)
		}
	}
	again := f.PKI.Client(t, "dev-10")
	r.mustConnect(t, f, login{id: "dev-10", user: "dev-10", certificate: &again})
	r.mustConnect(t, f, login{id: "Dev-2", user: "Dev-2", password: "another", keep: true})
	if got := until(t, o, seen); len(got) > 0 {
		t.Errorf("messages on %q: wills of somebody who was shut out", got)
	}
	select {
	case <-stays:
		t.Error("a session that nothing has happened to has ended")
	default:
	}

	if err := os.WriteFile(filepath.Join(r.dir, amqtt.FleetName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Signal(t, syscall.SIGHUP)
	r.Wait(t, "word of the broken file", func() bool { return r.Says("imprint: not reloaded") })
	r.mustConnect(t, f, login{id: "Dev-2", user: "Dev-2", password: "another"})
}

// Nobody is sent what others have subscribed to, when he comes or when he comes back.
func TestRetained(t *testing.T) {
	f := targettest.ProofFleet(t, now())
	r := start(t, f)
	o, seen := observer(t, r, f)
	for _, name := range []string{"fleet/dev-1/down", "fleet/Dev-2/down", "news/all"} {
		do(t, o.Publish(name, 1, true, "kept"))
	}
	until(t, o, seen)
	unasked := make(chan string, 100)
	in := login{id: "dev-1", user: "dev-1", password: "correct horse", keep: true}
	c, _, err := r.connect(t, f, in, unasked)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 100)
	do(t, c.Subscribe("fleet/dev-1/down", 1, func(_ paho.Client, m paho.Message) { asked <- m.Topic() }))
	if got := <-asked; got != "fleet/dev-1/down" {
		t.Errorf("%s is retained, want fleet/dev-1/down", got)
	}
	c.Disconnect(100)

	// The rights are other ones when he comes back, and so is what has waited.
	do(t, o.Publish("fleet/dev-1/down", 1, false, "waits"))
	until(t, o, seen)
	for i := range f.Devices {
		f.Devices[i].Grants = without(f.Devices[i].Grants, "fleet/dev-1/down")
	}
	r.reload(t, f)
	if c, _, err = r.connect(t, f, in, unasked); err != nil {
		t.Fatal(err)
	}
	do(t, o.Publish("fleet/dev-1/down", 1, false, "live"))
	do(t, c.Subscribe("news/all", 1, func(_ paho.Client, m paho.Message) { asked <- m.Topic() }))
	if got := <-asked; got != "news/all" {
		t.Errorf("%s is retained, want news/all", got)
	}
	for len(unasked) > 0 {
		t.Errorf("%s comes unasked", <-unasked)
	}
}

func without(grants []topic.Grant, f topic.Filter) []topic.Grant {
	var out []topic.Grant
	for _, g := range grants {
		if g.Filter != f {
			out = append(out, g)
		}
	}
	return out
}

// Who is refused has done nothing to the session of the device whose identifier it gave.
func TestRefusedTouchesNothing(t *testing.T) {
	f := targettest.ProofFleet(t, now())
	r := start(t, f)
	o, seen := observer(t, r, f)
	c, ended := r.mustConnect(t, f, login{id: "dev-1", user: "dev-1", password: "correct horse", keep: true})
	got := make(chan string, 10)
	do(t, c.Subscribe("fleet/dev-1/down", 1, func(_ paho.Client, m paho.Message) { got <- m.Topic() }))
	for _, l := range []login{
		{id: "dev-1", user: "dev-1", password: "wrong", will: "fleet/dev-1/state"},
		{id: "dev-1", user: targettest.ObserverID, password: "wrong", keep: true, will: "any/topic"},
		{id: "dev-1", user: targettest.ObserverID, password: "observe everything", keep: true},
		{id: "dev-1"},
	} {
		if _, _, err := r.connect(t, f, l, nil); err == nil {
			t.Errorf("%+v opens the door", l)
		}
	}
	do(t, o.Publish("fleet/dev-1/down", 1, false, "x"))
	select {
	case <-got:
	case <-ended:
		t.Error("the session has ended")
	case <-time.After(10 * time.Second):
		t.Error("nothing is delivered")
	}
	for _, name := range until(t, o, seen) {
		if name != "fleet/dev-1/down" {
			t.Errorf("a message on %s: the will of somebody who was refused", name)
		}
	}
}

// A CRL that has expired, or is missing, shuts its certificates out.
func TestStaleCRL(t *testing.T) {
	f := targettest.ProofFleet(t, now())
	dev3 := f.PKI.Client(t, "dev-3")
	f.Lists = []templates.CRL{f.PKI.CRL(t, f.Now.Add(-time.Minute), time.Now().Add(5*time.Second))}
	r := start(t, f)
	r.mustConnect(t, f, login{id: "dev-3", certificate: &dev3})
	r.Wait(t, "refusal after the nextUpdate", func() bool {
		c, _, err := r.connect(t, f, login{id: "dev-3", certificate: &dev3}, nil)
		if err == nil {
			c.Disconnect(0)
		}
		return err != nil
	})
	r.mustConnect(t, f, login{id: "dev-1", user: "dev-1", password: "correct horse"})
	f.Lists = nil
	r.reload(t, f)
	if _, _, err := r.connect(t, f, login{id: "dev-3", certificate: &dev3}, nil); err == nil {
		t.Error("a certificate is let in without a CRL of its issuer")
	}
}

// Another version of aMQTT does not start with the plugin.
func TestOtherVersion(t *testing.T) {
	f := targettest.ProofFleet(t, now())
	dir := t.TempDir()
	write(t, dir, f)
	name := filepath.Join(dir, amqtt.PluginName)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(string(text), `VERSION = "0.12.1"`, `VERSION = "0.12.0"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := command(t, dir).CombinedOutput(); err == nil || !strings.Contains(string(out), "failed to start") {
		t.Errorf("%v, want a broker that does not start\n%s", err, out)
	}
}

// What the module makes of an export, by a second reading, is the policy.
func TestEvaluator(t *testing.T) {
	f := targettest.ProofFleet(t, now())
	dir := t.TempDir()
	write(t, dir, f)
	target, ok := amqtt.Target().(interface {
		Evaluator(src fs.FS) (proof.Evaluator, error)
	})
	if !ok {
		t.Fatal("the target has no evaluator")
	}
	e, err := target.Evaluator(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := proof.Evaluate("amqtt", e, proof.Questions(f.ProofDevices(t)))
	if err != nil {
		t.Fatal(err)
	}
	targettest.Report(t, r, nil)
}

// The matcher of the plugin is that of package topic, on filters that are alike.
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
	cmd := exec.Command(filepath.Join(brokertest.Home(t, "amqtt"), "bin", "python"), "-c", `
import json, sys
from imprint_amqtt import covers, is_filter, is_name
print([p for p in json.load(sys.stdin) if is_name(p["Filter"]) != p["IsName"] or is_filter(p["Filter"]) != p["IsFilter"]
	or (p["IsFilter"] and covers(p["Rule"], p["Filter"]) != p["Covers"])][:10])`)
	cmd.Env = append(cmd.Environ(), "PYTHONPATH=.", "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stdin = bytes.NewReader(raw)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "[]" {
		t.Errorf("%v: the plugin says otherwise: %s", err, out)
	}
}
