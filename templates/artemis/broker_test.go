package artemis_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/artemis"
	"github.com/imprint-iot/imprint/templates/brokertest"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// rules are what Artemis can keep to of the rules that all brokers are asked about,
// and more with wildcards that overlap each other.
func rules() []topic.Rule {
	kept := slices.DeleteFunc(targettest.ProofRules(), func(r topic.Rule) bool {
		return r.Action == topic.Receive && strings.HasSuffix(r.Filter, "/+")
	})
	return append([]topic.Rule{
		{Action: topic.Receive, Filter: "groups/{group}/cmd/#", Shared: true},
		{Action: topic.Publish, Filter: "groups/{group}/+/done", Shared: true},
		{Action: topic.Publish, Filter: "groups/{group}/cmd/+", Shared: true},
		{Action: topic.Receive, Filter: "groups/{group}/+/rows/#", Shared: true},
		{Action: topic.Publish, Filter: "fleet/{id}/a.b/<log & all>/+"},
	}, kept...)
}

// A stand is a fleet, its export and a broker that runs it.
type stand struct {
	fleet *targettest.Memory
	dir   string
	ports []uint16
	p     *brokertest.Process
}

func export(t *testing.T, target templates.Target, dir string, v templates.View) {
	t.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	if _, err := target.Write(d, v, templates.Options{AllowShrink: true}); err != nil {
		t.Fatal(err)
	}
}

// newStand adds what the manual says is not exact to the fleet: a device with rules
// that are refused otherwise.
func newStand(t *testing.T, f *targettest.Memory) *stand {
	t.Helper()
	s := &stand{fleet: f, dir: t.TempDir(), ports: brokertest.Ports(t, 2)}
	f.Broker.Bind, f.Broker.CertificatePort, f.Broker.PasswordPort = "127.0.0.1", s.ports[0], s.ports[1]
	f.Profile("refused", topic.Rule{Action: topic.Receive, Filter: "refused/one/+", Shared: true}, topic.Rule{Action: topic.Receive, Filter: "refused/all/+/#", Shared: true})
	f.Device(t, "refused-1", "refused", "hall", "refused password")
	export(t, artemis.Lenient(), s.dir, f)
	s.p = start(t, s.dir, s.ports)
	return s
}

// start runs Artemis with the files of an export, as their README.md says.
func start(t *testing.T, files string, ports []uint16) *brokertest.Process {
	t.Helper()
	instance := filepath.Join(t.TempDir(), "broker")
	create := exec.Command(filepath.Join(brokertest.Home(t, "artemis"), "bin", "artemis"), "create", instance,
		"--silent", "--user", "console", "--password", "of the console", "--require-login", "--no-autotune", "--no-web")
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("artemis create (package default-jre-headless): %v\n%s", err, out)
	}
	login, err1 := os.ReadFile(filepath.Join(instance, "etc", "login.config"))
	ours, err2 := os.ReadFile(filepath.Join(files, artemis.LoginName))
	bootstrap, err3 := os.ReadFile(filepath.Join(instance, "etc", "bootstrap.xml"))
	changed := regexp.MustCompile(`<server configuration="[^"]*"/>`).ReplaceAll(bootstrap, []byte(`<server configuration="file:`+filepath.Join(files, artemis.BrokerName)+`"/>`))
	err := errors.Join(err1, err2, err3,
		os.WriteFile(filepath.Join(instance, "etc", "login.config"), append(login, ours...), 0o600),
		os.WriteFile(filepath.Join(instance, "etc", "bootstrap.xml"), changed, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return brokertest.Start(t, exec.Command(filepath.Join(instance, "bin", "artemis"), "run"), fmt.Sprintf("127.0.0.1:%d", ports[0]), fmt.Sprintf("127.0.0.1:%d", ports[1]))
}

// empty reports whether a question is about a topic with an empty level, which a
// wildcard does not match there: the manifest says so.
func empty(q proof.Question) bool {
	return slices.Contains(strings.Split(q.Topic, "/"), "")
}

// The broker decides as the policy does.
func TestBroker(t *testing.T) {
	f := targettest.ProofFleet(t, time.Now(), rules()...)
	s := newStand(t, f)
	devices := f.ProofDevices(t)
	devices = slices.DeleteFunc(devices, func(d proof.Device) bool { return d.ID() == "refused-1" })
	b := &proof.Broker{
		Target: "artemis", Certificates: fmt.Sprintf("127.0.0.1:%d", s.ports[0]), Passwords: fmt.Sprintf("127.0.0.1:%d", s.ports[1]),
		Roots: f.PKI.Roots(), Version: 5, Observer: f.ProofObserver(t),
	}
	report, err := b.Ask(t.Context(), devices, proof.Questions(devices))
	if err != nil {
		t.Fatal(err)
	}
	// A last will is looked at when the connection is gone: the certificate with it, and
	// the session, if the client is faster to come back.
	targettest.Report(t, report, func(q proof.Question) bool { return empty(q) || q.Verb == proof.Will })
}

// A second reading of the files agrees with the policy.
func TestEvaluator(t *testing.T) {
	f := targettest.ProofFleet(t, time.Now(), rules()...)
	devices := f.ProofDevices(t)
	dir := t.TempDir()
	export(t, artemis.Target(), dir, f)
	r, err := proof.Evaluate("artemis", evaluator(t, dir), proof.Questions(devices))
	if err != nil {
		t.Fatal(err)
	}
	targettest.Report(t, r, empty)
}

const patience = 20 * time.Second

func (s *stand) options(t *testing.T, id, password string) *paho.ClientOptions {
	t.Helper()
	cfg := &tls.Config{RootCAs: s.fleet.PKI.Roots(), MinVersion: tls.VersionTLS12}
	o := paho.NewClientOptions().SetClientID(id).SetTLSConfig(cfg).SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(patience)
	port := s.ports[0]
	if password != "" {
		o.SetUsername(id).SetPassword(password)
		port = s.ports[1]
	} else {
		cfg.Certificates = []tls.Certificate{s.fleet.PKI.Client(t, id)}
	}
	return o.AddBroker(fmt.Sprintf("ssl://127.0.0.1:%d", port))
}

func connect(t *testing.T, o *paho.ClientOptions) (paho.Client, error) {
	t.Helper()
	c := paho.NewClient(o)
	t.Cleanup(func() { c.Disconnect(0) })
	token := c.Connect()
	if !token.WaitTimeout(patience) {
		return c, errors.New("no answer to CONNECT")
	}
	return c, token.Error()
}

func mustConnect(t *testing.T, o *paho.ClientOptions) paho.Client {
	t.Helper()
	c, err := connect(t, o)
	if err != nil {
		t.Fatalf("%s: %v", o.ClientID, err)
	}
	return c
}

func publishes(c paho.Client, name string) bool {
	token := c.Publish(name, 1, false, "x")
	return token.WaitTimeout(patience) && token.Error() == nil && c.IsConnectionOpen()
}

func subscribes(c paho.Client, filter string) bool {
	token := c.Subscribe(filter, 0, nil)
	return token.WaitTimeout(patience) && token.Error() == nil && token.(*paho.SubscribeToken).Result()[filter] < 0x80
}
