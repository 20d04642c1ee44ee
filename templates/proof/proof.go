// Package proof asks a broker what it lets devices do, and holds each answer to the
// policy.
//
// [Questions] makes thousands of questions for a handful of devices: their own
// topics, those of their neighbours, topics that differ in one level or one letter,
// empty levels, filters that reach further than a rule. What the answer should be is
// what [topic.Policy.Decide] and DecideSubscribe say.
//
// A [Broker] is asked over MQTT as its devices would use it: each one connects with
// its certificate or its password, subscribes and publishes. An observer, who may do
// everything, sees what really was published and publishes what devices may not be
// sent. Without one, the broker's own answers count as far as it gives any. An
// [Evaluator] answers in place of a broker that cannot be had: written from that
// broker's manual, apart from what writes its files.
//
// The result is a [Report]. An answer that allows more than the policy is never
// right; one that allows less is right only where the broker is known to do so.
package proof

import (
	"crypto/tls"
	"fmt"

	"github.com/imprint-iot/imprint/inventory/topic"
)

// A Device is somebody in whose name questions are asked.
type Device struct {
	Subject topic.Subject
	Policy  topic.Policy

	// What it connects with; a device with neither is only talked about.
	Certificate *tls.Certificate
	Password    []byte
}

// ID is the name of the device: user name and client identifier.
func (d *Device) ID() string { return d.Subject.ID }

// A Verb is what a question is about.
type Verb uint8

// The verbs.
const (
	Publish   Verb = iota + 1 // a message to a topic
	Receive                   // a message on a topic, whatever it has subscribed to
	Subscribe                 // a subscription to a filter
	Will                      // a last will on a topic
	Retain                    // a retained message to a topic
	Connect                   // Topic says how: with a wrong password
)

var verbs = [...]string{Publish: "publish", Receive: "receive", Subscribe: "subscribe", Will: "will", Retain: "retain", Connect: "connect"}

// String is the verb in lower case.
func (v Verb) String() string {
	if int(v) >= len(verbs) || v == 0 {
		return "unknown"
	}
	return verbs[v]
}

// MarshalText implements [encoding.TextMarshaler].
func (v Verb) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// A Question asks whether a device may do something.
type Question struct {
	Device string `json:"device"`
	Verb   Verb   `json:"verb"`
	Topic  string `json:"topic"`   // a name, or for Subscribe a filter
	Want   bool   `json:"allowed"` // by the policy
}

// String is the question in words.
func (q Question) String() string {
	may := "may not"
	if q.Want {
		may = "may"
	}
	if q.Verb == Connect {
		return fmt.Sprintf("%s %s connect %s", q.Device, may, q.Topic)
	}
	return fmt.Sprintf("%s %s %s %q", q.Device, may, q.Verb, q.Topic)
}

// An Answer is what a broker made of a question.
type Answer uint8

// The answers.
const (
	Unknown Answer = iota // it cannot be told
	Allowed
	Denied
)

// An Evaluator answers like a broker with certain files: a second reading of its
// manual.
type Evaluator interface {
	// Answer is what the broker would answer to a device that is connected.
	Answer(q Question) (Answer, error)
}

// A Report counts what came of the questions.
type Report struct {
	Target   string         `json:"target"`
	How      string         `json:"how"` // "broker" or "evaluator"
	Asked    int            `json:"asked"`
	Verbs    map[string]int `json:"verbs"`
	Wider    []Question     `json:"wider"`    // allowed, and should not be
	Narrower []Question     `json:"narrower"` // not allowed, and should be
	Unknown  int            `json:"unknown"`
}

// Add counts one answer.
func (r *Report) Add(q Question, a Answer) {
	if r.Verbs == nil {
		r.Verbs = map[string]int{}
	}
	if a == Unknown {
		r.Unknown++
		return
	}
	r.Asked++
	r.Verbs[q.Verb.String()]++
	switch {
	case a == Allowed && !q.Want:
		r.Wider = append(r.Wider, q)
	case a == Denied && q.Want:
		r.Narrower = append(r.Narrower, q)
	}
}

// Evaluate asks an evaluator all questions.
func Evaluate(target string, e Evaluator, questions []Question) (Report, error) {
	r := Report{Target: target, How: "evaluator"}
	for _, q := range questions {
		a, err := e.Answer(q)
		if err != nil {
			return r, fmt.Errorf("asking whether %s: %w", q, err)
		}
		r.Add(q, a)
	}
	return r, nil
}
