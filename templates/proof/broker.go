package proof

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imprint-iot/imprint/inventory/topic"
)

// A Broker is a running broker that is asked over MQTT.
type Broker struct {
	Target string // for the report

	Certificates string // "host:port" where certificates are asked for; empty: none
	Passwords    string // "host:port" where passwords are asked for; empty: none
	Roots        *x509.CertPool
	ServerName   string // in the broker's certificate; empty means "localhost"
	Version      int    // of MQTT: 5, or 4 and 0 for 3.1.1

	// Observer may publish and receive everything. Nil: there is nobody like that,
	// and the answers are the broker's own codes, as far as it gives any.
	Observer *Device

	// Skip says why a question cannot be put to this broker; empty: it can. Nil asks
	// everything.
	Skip func(q Question) string

	// BindsClientID says that a client identifier of another device must be refused
	// or changed.
	BindsClientID bool

	Patience time.Duration // for one answer; zero means 5 s
	Quiet    time.Duration // how long nothing comes before nothing is said to come; zero means 300 ms
}

func (b *Broker) patience() time.Duration {
	if b.Patience > 0 {
		return b.Patience
	}
	return 5 * time.Second
}

func (b *Broker) quiet() time.Duration {
	if b.Quiet > 0 {
		return b.Quiet
	}
	return 300 * time.Millisecond
}

func (b *Broker) serverName() string {
	if b.ServerName != "" {
		return b.ServerName
	}
	return "localhost"
}

// login opens a session of a device with what it has, a certificate before a
// password.
func (b *Broker) login(ctx context.Context, d *Device, will *message) (*client, error) {
	l := login{clientID: d.ID(), will: will}
	if d.Certificate != nil && b.Certificates != "" {
		return b.dial(ctx, b.Certificates, d.Certificate, l)
	}
	l.user, l.password = d.ID(), d.Password
	return b.dial(ctx, b.Passwords, nil, l)
}

// reachable reports whether a device has what a listener of the broker asks for.
func (b *Broker) reachable(d *Device) bool {
	return d.Certificate != nil && b.Certificates != "" || len(d.Password) > 0 && b.Passwords != ""
}

// Ask puts all questions to the broker, in the name of those devices that can
// connect. It ends with an error if the broker does not let one of them in, is away,
// or does not answer.
func (b *Broker) Ask(ctx context.Context, devices []Device, questions []Question) (Report, error) {
	r := Report{Target: b.Target, How: "broker"}
	a := &asking{Broker: b, devices: devices, report: &r}
	if b.Observer != nil {
		var err error
		if a.observer, err = b.login(ctx, b.Observer, nil); err != nil {
			return r, fmt.Errorf("observer %s: %w", b.Observer.ID(), err)
		}
		defer func() { a.observer.close() }()
		if code, err := a.observer.subscribe("#"); err != nil || code >= failure {
			return r, fmt.Errorf("observer %s may not subscribe to #: code %d, %w", b.Observer.ID(), code, err)
		}
	}
	if err := a.retain(questions); err != nil {
		return r, err
	}
	var all errgroup.Group // most of the time is spent in waiting
	if b.Observer == nil {
		all.SetLimit(1) // devices publish for one another, and each has one session
	}
	for i := range devices {
		d := &devices[i]
		if !b.reachable(d) {
			continue
		}
		own := a.own(d, questions)
		all.Go(func() error {
			if err := a.device(ctx, d, own); err != nil {
				return fmt.Errorf("asking as %s: %w", d.ID(), err)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return r, err
	}
	if err := a.forget(questions); err != nil {
		return r, err
	}
	return r, a.doors(ctx)
}

// asking is one Ask.
type asking struct {
	*Broker
	devices  []Device
	observer *client

	mu     sync.Mutex
	report *Report
	n      int // of payloads

	sending sync.Mutex // as the observer
}

// own returns the questions of d that can be put, by verb.
func (a *asking) own(d *Device, questions []Question) map[Verb][]Question {
	own := make(map[Verb][]Question)
	for _, q := range questions {
		switch {
		case q.Device != d.ID():
		case a.Skip != nil && a.Skip(q) != "":
			a.add(q, Unknown)
		default:
			own[q.Verb] = append(own[q.Verb], q)
		}
	}
	return own
}

func (a *asking) add(q Question, answer Answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.report.Add(q, answer)
}

// payload returns a text that no message had before.
func (a *asking) payload() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n++
	return fmt.Sprintf("imprint-proof-%d-%d", time.Now().UnixNano(), a.n)
}

// observe publishes as the observer.
func (a *asking) observe(messages []message) error {
	a.sending.Lock()
	defer a.sending.Unlock()
	return a.observer.publishAll(messages)
}

func (a *asking) device(ctx context.Context, d *Device, own map[Verb][]Question) error {
	if err := a.subscriptions(ctx, d, own[Subscribe], own[Receive]); err != nil {
		return err
	}
	if err := a.publish(ctx, d, own[Publish], false); err != nil {
		return err
	}
	if err := a.publish(ctx, d, own[Retain], true); err != nil {
		return err
	}
	return a.wills(ctx, d, own[Will])
}

// A session is opened again when the broker has ended it, which many do on what is
// not allowed.
type session struct {
	a *asking
	d *Device
	c *client
}

func (s *session) client(ctx context.Context) (*client, error) {
	if s.c != nil && s.c.alive() {
		return s.c, nil
	}
	if s.c != nil {
		s.c.drop()
	}
	var err error
	s.c, err = s.a.login(ctx, s.d, nil)
	return s.c, err
}

func (s *session) close() {
	if s.c != nil {
		s.c.close()
	}
}

// try does something in a session. If that ends without an answer, it is the answer;
// where the answer should be yes, it may have been for what was asked before, so it
// is asked once more in a new one.
func (s *session) try(ctx context.Context, want bool, do func(c *client) (byte, error)) (code byte, ended bool, err error) {
	for range 2 {
		c, err := s.client(ctx)
		if err != nil {
			return 0, false, err
		}
		code, err = do(c)
		switch {
		case err == nil:
			return code, false, nil
		case !errors.Is(err, errEnded):
			return 0, false, err
		case !want:
			return 0, true, nil
		}
	}
	return 0, true, nil
}

// publish asks what d may publish.
func (a *asking) publish(ctx context.Context, d *Device, questions []Question, retain bool) error {
	s := &session{a: a, d: d}
	defer s.close()
	payloads, codes := make([]string, len(questions)), make([]Answer, len(questions))
	var want []string
	for i, q := range questions {
		payloads[i] = a.payload()
		code, ended, err := s.try(ctx, q.Want, func(c *client) (byte, error) {
			return c.publish(message{topic: q.Topic, payload: []byte(payloads[i]), retain: retain})
		})
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", q, err)
		case ended || code >= failure:
			codes[i] = Denied
		case a.Version == 5:
			codes[i] = Allowed
		}
		if q.Want {
			want = append(want, payloads[i])
		}
	}
	if a.observer != nil && len(questions) > 0 {
		a.observer.settle(want, a.quiet())
	}
	for i, q := range questions {
		answer := codes[i]
		if a.observer != nil {
			answer = seenOrNot(a.observer, payloads[i])
		}
		a.add(q, answer)
	}
	if retain {
		return a.forget(questions)
	}
	return nil
}

func seenOrNot(c *client, payload string) Answer {
	if c.has(payload) {
		return Allowed
	}
	return Denied
}

// wills asks which last wills of d are published. Each connection says one, and ends
// without a word. A broker may lose one when the next connection of the same name
// comes quickly, so one that should have come gets another chance.
func (a *asking) wills(ctx context.Context, d *Device, questions []Question) error {
	answers := make([]Answer, len(questions))
	const tries = 3
	for try := range tries {
		payloads := make([]string, len(questions))
		var want []string
		for i, q := range questions {
			if a.observer == nil || answers[i] == Allowed || try > 0 && !q.Want {
				continue
			}
			payloads[i] = a.payload()
			if err := a.die(ctx, d, message{topic: q.Topic, payload: []byte(payloads[i])}); err != nil {
				return fmt.Errorf("%s: %w", q, err)
			}
			if q.Want {
				want = append(want, payloads[i])
			}
		}
		if a.observer == nil || try > 0 && len(want) == 0 {
			break
		}
		a.observer.settle(want, 2*a.quiet())
		for i := range questions {
			if payloads[i] != "" {
				answers[i] = seenOrNot(a.observer, payloads[i])
			}
		}
	}
	for i, q := range questions {
		a.add(q, answers[i])
	}
	return nil
}

// die connects with a will and ends without a word. A broker may refuse the
// connection because of the will.
func (a *asking) die(ctx context.Context, d *Device, will message) error {
	c, err := a.login(ctx, d, &will)
	if refused, ok := errors.AsType[*RefusedError](err); ok && refused != nil {
		return nil
	}
	if err != nil {
		return err
	}
	c.drop()
	return nil
}

// subscriptions asks what d may subscribe to and what it is sent when it has
// subscribed to all that it was let.
func (a *asking) subscriptions(ctx context.Context, d *Device, subscribe, receive []Question) error {
	s := &session{a: a, d: d}
	defer s.close()
	granted := map[string]bool{}
	ask := func(q Question) error {
		code, ended, err := s.try(ctx, q.Want, func(c *client) (byte, error) { return c.subscribe(q.Topic) })
		if err != nil {
			return fmt.Errorf("%s: %w", q, err)
		}
		granted[q.Topic] = !ended && code < failure
		return nil
	}
	for _, q := range subscribe {
		if err := ask(q); err != nil {
			return err
		}
		a.add(q, map[bool]Answer{true: Allowed, false: Denied}[granted[q.Topic]])
	}
	for _, q := range receive {
		if err := ask(q); err != nil {
			return err
		}
	}
	c, err := s.client(ctx)
	if err != nil {
		return err
	}
	for filter, ok := range granted { // again: the session may be a new one
		if !ok {
			continue
		}
		if code, err := c.subscribe(filter); err != nil || code >= failure {
			return fmt.Errorf("subscribing to %q, which was allowed before: code %d, %w", filter, code, err)
		}
	}
	return a.receive(ctx, d, c, granted, receive)
}

// receive publishes on each topic and looks what reaches c.
func (a *asking) receive(ctx context.Context, d *Device, c *client, granted map[string]bool, questions []Question) error {
	payloads := make([]string, len(questions))
	var want []string
	var all []message
	for i, q := range questions {
		sent := message{topic: q.Topic, payload: []byte(a.payload())}
		if a.observer == nil {
			if ok, err := a.instead(ctx, d, sent); err != nil {
				return err
			} else if !ok {
				continue
			}
		} else {
			all = append(all, sent)
		}
		payloads[i] = string(sent.payload)
		if q.Want {
			want = append(want, payloads[i])
		}
	}
	if a.observer != nil {
		if err := a.observe(all); err != nil {
			return fmt.Errorf("observer: publishing: %w", err)
		}
	}
	if len(questions) > 0 {
		c.settle(want, a.quiet())
	}
	for i, q := range questions {
		answer := Unknown
		switch {
		case payloads[i] != "":
			answer = seenOrNot(c, payloads[i])
		case !granted[q.Topic]:
			answer = Denied
		}
		if c.has(retained(q.Topic)) {
			answer = Allowed
		}
		a.add(q, answer)
	}
	if !c.alive() {
		return errEnded
	}
	return nil
}

// instead sends a message in the name of a device other than d that may, and reports
// whether there is one.
func (a *asking) instead(ctx context.Context, d *Device, m message) (bool, error) {
	for i := range a.devices {
		o := &a.devices[i]
		if o.ID() == d.ID() || !a.reachable(o) || !o.Policy.Decide(o.Subject, topic.Publish, topic.Name(m.topic)).Allowed {
			continue
		}
		c, err := a.login(ctx, o, nil)
		if err != nil {
			return false, fmt.Errorf("publishing as %s: %w", o.ID(), err)
		}
		defer c.close()
		_, err = c.publish(m)
		return err == nil, nil //nolint:nilerr // it may not after all, which is asked elsewhere
	}
	return false, nil
}

// retained is the payload of the message that is kept on a topic while the questions
// are asked: brokers have sent such to whom they would not send others.
func retained(name string) string { return "imprint-proof-retained-" + name }

func (a *asking) retain(questions []Question) error {
	return a.keep(questions, retained)
}

// forget removes what is retained on the topics of questions.
func (a *asking) forget(questions []Question) error {
	return a.keep(questions, func(string) string { return "" })
}

func (a *asking) keep(questions []Question, payload func(name string) string) error {
	if a.observer == nil {
		return nil
	}
	done := map[string]bool{}
	var all []message
	for _, q := range questions {
		if q.Verb != Receive && q.Verb != Retain || done[q.Topic] || a.Skip != nil && a.Skip(q) != "" {
			continue
		}
		done[q.Topic] = true
		all = append(all, message{topic: q.Topic, payload: []byte(payload(q.Topic)), retain: true})
	}
	if err := a.observe(all); err != nil {
		return fmt.Errorf("observer: retaining messages: %w", err)
	}
	return nil
}

// doors asks who is let in at all.
func (a *asking) doors(ctx context.Context) error {
	door := func(d *Device, what, address string, l login) error {
		if address == "" {
			return nil
		}
		q := Question{Device: d.ID(), Verb: Connect, Topic: what}
		c, err := a.dial(ctx, address, nil, l)
		if refused, ok := errors.AsType[*RefusedError](err); ok && refused != nil {
			a.add(q, Denied)
			return nil
		}
		if err != nil {
			return err
		}
		// TLS 1.3 lets a client speak before it hears that its certificate is refused.
		c.settle(nil, a.quiet())
		a.add(q, map[bool]Answer{true: Allowed, false: Denied}[c.alive()])
		c.drop()
		return nil
	}
	for i := range a.devices {
		d := &a.devices[i]
		if !a.reachable(d) {
			continue
		}
		var errs []error
		if len(d.Password) > 0 {
			errs = append(errs,
				door(d, "with a wrong password", a.Passwords, login{clientID: d.ID(), user: d.ID(), password: append([]byte("x"), d.Password...)}),
				door(d, "with an empty password", a.Passwords, login{clientID: d.ID(), user: d.ID()}))
		}
		errs = append(errs,
			door(d, "without a certificate", a.Certificates, login{clientID: d.ID()}),
			door(d, "without anything", a.Passwords, login{clientID: d.ID()}),
			door(d, "as nobody", a.Passwords, login{clientID: "nobody", user: "nobody", password: []byte("nothing")}))
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("connecting as %s: %w", d.ID(), err)
		}
	}
	if !a.BindsClientID {
		return nil
	}
	return a.takeovers(ctx)
}

// takeovers asks whether one device can end the session of another by its client
// identifier.
func (a *asking) takeovers(ctx context.Context) error {
	for i := range a.devices {
		d, victim := &a.devices[i], &a.devices[(i+1)%len(a.devices)]
		if d == victim || !a.reachable(d) || !a.reachable(victim) {
			continue
		}
		own, err := a.login(ctx, victim, nil)
		if err != nil {
			return err
		}
		l, address, cert := login{clientID: victim.ID()}, a.Certificates, d.Certificate
		if cert == nil || address == "" {
			l.user, l.password, address, cert = d.ID(), d.Password, a.Passwords, nil
		}
		thief, err := a.dial(ctx, address, cert, l)
		if err == nil {
			thief.settle(nil, a.quiet())
			thief.drop()
		} else if refused, ok := errors.AsType[*RefusedError](err); !ok || refused == nil {
			return err
		}
		a.add(Question{Device: d.ID(), Verb: Connect, Topic: "in place of " + victim.ID()}, map[bool]Answer{true: Denied, false: Allowed}[own.alive()])
		own.drop()
	}
	return nil
}
