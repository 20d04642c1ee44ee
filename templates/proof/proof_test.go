package proof_test

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// answers is an evaluator that says one thing.
type answers proof.Answer

func (a answers) Answer(proof.Question) (proof.Answer, error) { return proof.Answer(a), nil }

// Each question has the policy's own answer, there are some of both kinds about every
// device, and an evaluator that is wrong is found out.
func TestQuestions(t *testing.T) {
	f := targettest.ProofFleet(t, time.Now())
	devices := f.ProofDevices(t)
	questions := proof.Questions(devices)
	count := map[string]int{}
	for _, q := range questions {
		i := 0
		for devices[i].ID() != q.Device {
			i++
		}
		d := &devices[i]
		want := false
		switch q.Verb {
		case proof.Publish, proof.Will, proof.Retain:
			want = d.Policy.Decide(d.Subject, topic.Publish, topic.Name(q.Topic)).Allowed
		case proof.Receive:
			want = d.Policy.Decide(d.Subject, topic.Receive, topic.Name(q.Topic)).Allowed
		case proof.Subscribe:
			want = d.Policy.DecideSubscribe(d.Subject, topic.Filter(q.Topic)).Allowed
		case proof.Connect:
			t.Errorf("%s is none of these questions", q)
		}
		if want != q.Want {
			t.Errorf("%s, and the policy says %t", q, want)
		}
		count[q.Device+" "+q.Verb.String()+" "+map[bool]string{true: "may", false: "may not"}[want]]++
	}
	for _, d := range devices {
		for _, verb := range []string{"publish", "receive", "subscribe", "will", "retain"} {
			for _, may := range []string{"may", "may not"} {
				if key := d.ID() + " " + verb + " " + may; count[key] < 3 {
					t.Errorf("%d questions of the kind %q", count[key], key)
				}
			}
		}
	}
	yes, err := proof.Evaluate("x", answers(proof.Allowed), questions)
	if err != nil || len(yes.Wider) == 0 || len(yes.Narrower) != 0 || yes.Asked != len(questions) {
		t.Errorf("who allows everything: %d wider, %d narrower, %v", len(yes.Wider), len(yes.Narrower), err)
	}
	no, err := proof.Evaluate("x", answers(proof.Denied), questions)
	if err != nil || len(no.Narrower) == 0 || len(no.Wider) != 0 || len(no.Narrower)+len(yes.Wider) != len(questions) {
		t.Errorf("who allows nothing: %d wider, %d narrower, %v", len(no.Wider), len(no.Narrower), err)
	}
	unknown, err := proof.Evaluate("x", answers(proof.Unknown), questions)
	if err != nil || unknown.Asked != 0 || unknown.Unknown != len(questions) {
		t.Errorf("who knows nothing: %d asked, %d unknown, %v", unknown.Asked, unknown.Unknown, err)
	}
}

// everything is allowed by it.
type everything struct{ mqtt.HookBase }

func (*everything) ID() string { return "everything" }

func (*everything) Provides(b byte) bool {
	return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck
}

func (*everything) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

func (*everything) OnACLCheck(*mqtt.Client, string, bool) bool { return true }

// lax runs a broker that lets everybody in, and everything through.
func lax(t *testing.T, f *targettest.Memory) (address string) {
	t.Helper()
	pair, err := tls.X509KeyPair(f.Broker.ServerChain, f.Broker.ServerKey.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	secure := tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12})
	s := mqtt.New(&mqtt.Options{Logger: slog.New(slog.DiscardHandler)})
	if err := errors.Join(s.AddHook(&everything{}, nil), s.AddListener(listeners.NewNet("lax", secure))); err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve() }() // until Close
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().String()
}

// A real broker that enforces nothing is found out in every respect: by an observer,
// and by its own answers where there is none.
func TestLaxBroker(t *testing.T) {
	for _, version := range []int{4, 5} {
		f := targettest.ProofFleet(t, time.Now())
		address := lax(t, f)
		devices := f.ProofDevices(t)[:2]
		var questions []proof.Question
		for i, q := range proof.Questions(devices) {
			if i%5 == 0 && !strings.HasPrefix(q.Topic, "$") {
				questions = append(questions, q)
			}
		}
		b := &proof.Broker{Target: "lax", Certificates: address, Passwords: address, Roots: f.PKI.Roots(), Version: version, Observer: f.ProofObserver(t), BindsClientID: true}
		r, err := b.Ask(t.Context(), devices, questions)
		if err != nil {
			t.Fatal(err)
		}
		wider := make(map[proof.Verb]int)
		for _, q := range r.Wider {
			wider[q.Verb]++
		}
		for _, verb := range []proof.Verb{proof.Publish, proof.Receive, proof.Subscribe, proof.Will, proof.Retain, proof.Connect} {
			if wider[verb] == 0 {
				t.Errorf("MQTT %d: not found out by a question to %s", version, verb)
			}
		}
		if len(r.Narrower) > 0 {
			t.Errorf("MQTT %d: narrower: %v", version, r.Narrower)
		}
		b.Observer = nil
		if r, err = b.Ask(t.Context(), devices, questions); err != nil || len(r.Wider) == 0 {
			t.Errorf("MQTT %d, without an observer: %d wider, %v", version, len(r.Wider), err)
		}
	}
}

// A broker that is not there, and one that has another name, are no answers.
func TestNoBroker(t *testing.T) {
	f := targettest.ProofFleet(t, time.Now())
	address := lax(t, f)
	devices := f.ProofDevices(t)[:1]
	questions := proof.Questions(devices)[:10]
	for name, b := range map[string]*proof.Broker{
		"nobody":       {Certificates: "127.0.0.1:1", Passwords: "127.0.0.1:1", Roots: f.PKI.Roots()},
		"another name": {Certificates: address, Passwords: address, Roots: f.PKI.Roots(), ServerName: "mqtt.example"},
		"other roots":  {Certificates: address, Passwords: address, Roots: targettest.NewPKI(t, time.Now()).Roots()},
	} {
		if r, err := b.Ask(t.Context(), devices, questions); err == nil || r.Asked > 0 {
			t.Errorf("%s: %d answers, %v", name, r.Asked, err)
		}
	}
}
