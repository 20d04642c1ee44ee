package artemis_test

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/artemis"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// What the manual says of Artemis is so. Where it has changed, something can be left
// out of the files.
func TestQuirks(t *testing.T) {
	f := targettest.ProofFleet(t, time.Now(), rules()...)
	s := newStand(t, f)
	t.Run("doors", func(t *testing.T) { testDoors(t, s) })
	t.Run("another's name", func(t *testing.T) { testNames(t, s) })
	t.Run("filters", func(t *testing.T) { testFilters(t, s) })
	t.Run("queues", func(t *testing.T) { testQueues(t, s) })
	t.Run("revocation", func(t *testing.T) { testRevocation(t, s) })
}

func testDoors(t *testing.T, s *stand) {
	stranger := targettest.NewPKI(t, time.Now()).Client(t, "dev-3")
	certificate := func(c ...tls.Certificate) *paho.ClientOptions {
		o := s.options(t, "dev-3", "")
		o.TLSConfig.Certificates = c
		return o
	}
	cluster := s.options(t, "x", "CHANGE ME!!").SetUsername("ACTIVEMQ.CLUSTER.ADMIN.USER")
	for name, tt := range map[string]struct {
		o    *paho.ClientOptions
		want bool
	}{
		"certificate":                      {certificate(s.fleet.PKI.Client(t, "dev-3")), true},
		"certificate without a device":     {certificate(s.fleet.PKI.Client(t, "dev-4")), false},
		"certificate of another fleet":     {certificate(stranger), false},
		"no certificate":                   {certificate(), false},
		"password":                         {s.options(t, "dev-1", "correct horse"), true},
		"wrong password":                   {s.options(t, "dev-1", "wrong"), false},
		"password of a certificate's name": {s.options(t, "dev-3", "dev-3"), false},
		"the cluster user of the manual":   {cluster, false},
	} {
		if _, err := connect(t, tt.o); (err == nil) != tt.want {
			t.Errorf("%s: %v, want to be let in: %t", name, err, tt.want)
		}
	}
}

// The user name in CONNECT changes nothing for who has a certificate, though the other
// one has just used its rights.
func testNames(t *testing.T, s *stand) {
	victim := mustConnect(t, s.options(t, "dev-1", "correct horse"))
	if !publishes(victim, "fleet/dev-1/state") || !subscribes(victim, "fleet/dev-1/down") {
		t.Fatal("dev-1 may not do what it may")
	}
	thief := mustConnect(t, s.options(t, "dev-3", "").SetUsername("dev-1"))
	if publishes(thief, "fleet/dev-1/state") {
		t.Error("dev-3 publishes as dev-1")
	}
	thief = mustConnect(t, s.options(t, "dev-3", "").SetUsername("dev-1"))
	if subscribes(thief, "fleet/dev-1/down") {
		t.Error("dev-3 receives as dev-1")
	}
	own := mustConnect(t, s.options(t, "dev-3", "").SetUsername("dev-1"))
	if !publishes(own, "fleet/dev-3/state") {
		t.Error("dev-3 may not do what it may")
	}
}

func testFilters(t *testing.T, s *stand) {
	for _, tt := range []struct {
		filter string
		want   bool
	}{
		{"refused/one/+", true},
		{"refused/one/#", true},
		{"refused/one/x/y", false},
		{"refused/all/#", true},
		{"refused/all", false},
	} {
		c := mustConnect(t, s.options(t, "refused-1", "refused password"))
		if got := subscribes(c, tt.filter); got != tt.want {
			t.Errorf("SUBSCRIBE to %s: %t, want %t", tt.filter, got, tt.want)
		}
		c.Disconnect(0)
	}
}

// The name of a queue in a topic brings nobody anything that the topic would not.
func testQueues(t *testing.T, s *stand) {
	victim := mustConnect(t, s.options(t, "dev-1", "correct horse"))
	got := make(chan string, 10)
	token := victim.Subscribe("fleet/dev-1/cmd/#", 1, func(_ paho.Client, m paho.Message) { got <- m.Topic() })
	if !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatal("dev-1 may not subscribe")
	}
	for _, name := range []string{"fleet/dev-3/state::dev-1.fleet/dev-1/cmd/#", "fleet/dev-3/up/x::dev-1.fleet/dev-1/cmd/#"} {
		publishes(mustConnect(t, s.options(t, "dev-3", "")), name)
	}
	for _, filter := range []string{"fleet/dev-1/cmd/#::dev-1.fleet/dev-1/cmd/#", "$sys.mqtt.retain.fleet/dev-1/state", "$sys.mqtt.sessions"} {
		if subscribes(mustConnect(t, s.options(t, "dev-3", "")), filter) {
			t.Errorf("dev-3 may subscribe to %s", filter)
		}
	}
	if !publishes(mustConnect(t, s.options(t, targettest.ObserverID, "")), "fleet/dev-1/cmd/last") {
		t.Fatal("the observer may not publish")
	}
	select {
	case name := <-got:
		if name != "fleet/dev-1/cmd/last" {
			t.Errorf("dev-1 was sent %q", name)
		}
	case <-time.After(patience):
		t.Error("dev-1 was sent nothing")
	}
	// A shared subscription needs the right to its filter, whatever queue it names.
	const shared, filter = "$share/dev-1/fleet/dev-1/cmd/#", "fleet/dev-1/cmd/#" // of which paho says the second
	token = mustConnect(t, s.options(t, "dev-3", "")).Subscribe(shared, 0, nil)
	if token.WaitTimeout(patience) && token.Error() == nil && token.(*paho.SubscribeToken).Result()[filter] < 0x80 {
		t.Errorf("dev-3 may subscribe to %s: %v", shared, token.(*paho.SubscribeToken).Result())
	}
}

// A certificate is refused when its CRL has been exported and the trust store touched;
// a password when its user is gone, which an open session notices too.
func testRevocation(t *testing.T, s *stand) {
	open := mustConnect(t, s.options(t, "dev-1", "correct horse"))
	if !publishes(open, "fleet/dev-1/state") {
		t.Fatal("dev-1 may not do what it may")
	}
	stolen := s.options(t, "dev-3", "")
	mustConnect(t, stolen).Disconnect(0)
	s.fleet.PKI.Revoke(stolen.TLSConfig.Certificates[0], time.Now())
	s.fleet.Lists = []templates.CRL{s.fleet.PKI.CRL(t, time.Now().Add(-time.Minute), time.Now().Add(time.Hour))}
	s.fleet.Remove("dev-1")
	export(t, artemis.Lenient(), s.dir, s.fleet)
	now := time.Now().Add(2 * time.Second) // a whole second at least after the old date
	if err := os.Chtimes(filepath.Join(s.dir, templates.TrustFile), now, now); err != nil {
		t.Fatal(err)
	}
	refused := func(o *paho.ClientOptions) func() bool {
		return func() bool {
			c, err := connect(t, o)
			c.Disconnect(0)
			return err != nil
		}
	}
	begin := time.Now()
	s.p.Wait(t, "refusal of a revoked certificate", refused(stolen))
	t.Logf("a revoked certificate was refused after %v", time.Since(begin).Round(time.Millisecond))
	s.p.Wait(t, "refusal of a device that is gone", refused(s.options(t, "dev-1", "correct horse")))
	t.Logf("a password that is gone was refused after %v", time.Since(begin).Round(time.Millisecond))
	if _, err := connect(t, s.options(t, "dev-3", "")); err != nil {
		t.Errorf("another certificate of the device: %v", err)
	}
	s.p.Wait(t, "loss of rights", func() bool { return !publishes(open, "fleet/dev-1/state") })
	t.Logf("an open session had lost its rights after %v", time.Since(begin).Round(time.Millisecond))
}
