package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// A SyncConfig is what brings nodes up to date.
type SyncConfig struct {
	Registrar *enroll.Registrar
	Store     inventory.Store
	Actor     string // for the audit log
	Fleet     templates.Fleet

	// CRLs returns the CRLs that brokers check devices with, signed anew if that is
	// due, after everything that the store has by now.
	CRLs func(ctx context.Context) ([]templates.CRL, error)

	// Trust returns what brokers check devices with, and Roots what devices, and
	// the probes, check brokers with: CA certificates, PEM.
	Trust, Roots func(inventory.Reader) ([]byte, error)

	Now func() time.Time // nil means time.Now
}

// A Syncer brings nodes up to date. It is safe for concurrent use; one node is
// worked on by one call at a time.
type Syncer struct{ cfg SyncConfig }

// NewSyncer returns a Syncer.
func NewSyncer(cfg SyncConfig) *Syncer {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Syncer{cfg}
}

// What a caller can do about an error from Sync.
var (
	// ErrUnproven reports a node that was told, and did not show by its deadline
	// that it obeys. What was told is tried again by the next Sync.
	ErrUnproven = errors.New("the broker has not been seen to obey")

	// ErrBusy reports that another process is bringing the node up to date.
	ErrBusy = errors.New("another process works on this node")
)

const (
	lockFile        = "sync.lock"
	defaultDeadline = 15 * time.Second
	probeTimeout    = 5 * time.Second
	probePause      = 10 * time.Millisecond
	endTime         = 5 * time.Millisecond // more, for each session to be ended
)

// Sync brings a node to what the inventory says now, and proves it: a certificate
// that is in the new CRL is refused, one that is not is let in, a password that is
// new is let in, and no device that was ended has a session. Then the receipt is
// recorded, and with it the revision that the node is known to be at. If anything
// fails, or imprint dies, the node stays where it was known to be, and the next
// Sync does it all again: every step can be repeated.
//
// If the node is up to date already the receipt is nil. force does it all in any
// case. The error wraps [ErrUnproven], [ErrBusy] or [templates.ErrUnreachable].
func (s *Syncer) Sync(ctx context.Context, n *Node, force bool) (*Receipt, error) {
	lock, err := n.Dir.Lock(lockFile)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w: %w", n.Name, ErrBusy, err)
	}
	defer func() { _ = lock.Unlock() }() // the kernel releases it in any case
	need, err := s.due(ctx, n, force)
	if err != nil || need == nothing {
		return nil, err
	}
	w := &syncing{Syncer: s, node: n, began: time.Now()}
	err = w.run(ctx)
	if err == nil {
		err = w.record(ctx)
	}
	if err != nil {
		err = fmt.Errorf("node %s: %w", n.Name, err)
		return nil, errors.Join(err, s.fail(context.WithoutCancel(ctx), n, err))
	}
	return &w.receipt, nil
}

// A need says how soon a node has to be told.
type need uint8

const (
	nothing need = iota
	calm         // devices have come or renewed: soon, and many together
	urgent       // something was ended, or is not as it should be
)

// due reports whether there is anything to do: something has happened that is not
// imprint's own doing, or a CRL is past half of its life.
func (s *Syncer) due(ctx context.Context, n *Node, force bool) (need, error) {
	due := nothing
	err := s.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		p, _, err := readProgress(in, n.Name)
		if err != nil {
			return err
		}
		if force || p.Revision == 0 || !p.Failed.IsZero() || s.lapses(in, &p) {
			due = urgent
			return nil
		}
		due, err = changedAfter(in, p.Revision)
		return err
	})
	return due, err
}

// changedAfter reports whether something that a broker has to know has happened
// after a revision.
func changedAfter(in inventory.Reader, revision uint64) (need, error) {
	due := nothing
	for e, err := range in.Events(revision + 1) {
		if err != nil {
			return due, err
		}
		switch {
		case own(e.Action):
		case everyday(e.Action) && !enroll.Ends(&e):
			due = calm
		default:
			return urgent, nil
		}
	}
	return due, nil
}

// everyday reports whether an event is one of those that a large fleet has all the time.
func everyday(action string) bool {
	switch action {
	case "device.enroll", "device.renew", "device.confirm", "device.password", "device.bootstrap", "device.rotate", "device.seen", "server.enroll":
		return true
	}
	return false
}

// Behind returns how far those nodes are that have not been brought up to date with
// all that has happened.
func Behind(ctx context.Context, store inventory.Store, nodes []string) ([]Lag, error) {
	var out []Lag
	err := store.Read(ctx, func(in inventory.Reader) error {
		out = out[:0]
		for _, name := range nodes {
			p, _, err := readProgress(in, name)
			if err != nil {
				return err
			}
			changed, err := changedAfter(in, p.Revision)
			if err != nil {
				return err
			}
			if changed != nothing || p.Revision == 0 || !p.Failed.IsZero() {
				out = append(out, Lag{Node: name, Progress: p})
			}
		}
		return nil
	})
	return out, err
}

// own reports whether an event changes nothing that a broker has to know.
func own(action string) bool {
	switch action {
	case receiptAction, "node.fail", "canary.send", "crl.publish", "responder.enroll", "ca.verification", "device.add", "device.trust", "device.fault", "device.conflict":
		return true
	}
	noun, _, _ := strings.Cut(action, ".")
	return noun == "token" || noun == "approval" || noun == "rotation"
}

// lapses reports whether the CRLs of a node are past half of what they have left.
func (s *Syncer) lapses(in inventory.Reader, p *Progress) bool {
	if p.NextUpdate.IsZero() {
		return false
	}
	for iss, err := range in.Issuers() {
		if err != nil {
			return true // the next step will say so
		}
		if n, ok := p.CRLNumbers[iss.Name]; ok && n < iss.CRLNumber && !s.cfg.Now().Before(p.At.Add(p.NextUpdate.Sub(p.At)/2)) {
			return true
		}
	}
	return !s.cfg.Now().Before(p.At.Add(p.NextUpdate.Sub(p.At) / 2))
}

// fail records that a node cannot be brought up to date, once for each reason.
func (s *Syncer) fail(ctx context.Context, n *Node, why error) error {
	text := oneLine(why)
	return again(func() error {
		var p Progress
		var w inventory.Work
		err := s.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
			p, w, err = readProgress(in, n.Name)
			return err
		})
		if err != nil || p.Error == text {
			return err
		}
		now := inventory.UTC(s.cfg.Now())
		p.Target, p.Error = n.Target.Capabilities().Name, text
		if p.Failed.IsZero() {
			p.Failed = now
		}
		if w.Body, err = p.encode(); err != nil {
			return err
		}
		w.Updated = now
		return s.cfg.Store.Apply(ctx, inventory.Change{
			Event: inventory.Event{Time: now, Actor: s.cfg.Actor, Action: "node.fail", Objects: []inventory.Object{{Kind: "node", ID: n.Name, Note: text}}},
			Works: []inventory.Work{w},
		})
	})
}

// oneLine is an error as one line of at most 240 bytes.
func oneLine(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	if len(text) > 240 {
		text = strings.ToValidUTF8(text[:240], "") + "..."
	}
	return text
}

// again calls fn again while the facts change under it.
func again(fn func() error) error {
	for tries := 0; ; tries++ {
		err := fn()
		if !errors.Is(err, inventory.ErrConflict) || tries == 8 {
			return err
		}
	}
}

// A syncing is one Sync at work.
type syncing struct {
	*Syncer
	node    *Node
	began   time.Time
	receipt Receipt

	progress Progress
	endings  []enroll.Ending
	canary   *enroll.CanaryPair
	crls     []templates.CRL
	roots    []byte
	broker   templates.Node
}

func (w *syncing) step(name, note string) {
	w.receipt.Steps = append(w.receipt.Steps, Step{Name: name, At: time.Since(w.began), Note: note})
}

// run does all steps in the order that leaves no gap: first what refuses a new
// session, then what ends the old one, then what shows that both are so.
func (w *syncing) run(ctx context.Context) (err error) {
	w.receipt = Receipt{Node: w.node.Name, Target: w.node.Target.Capabilities().Name, Began: inventory.UTC(w.cfg.Now())}
	if w.broker, err = w.node.Broker(ctx); err != nil {
		return err
	}
	if w.canary, err = w.cfg.Registrar.SendCanary(ctx, w.cfg.Actor, w.node.Name); err != nil {
		return fmt.Errorf("sending a canary: %w", err)
	}
	if w.crls, err = w.cfg.CRLs(ctx); err != nil {
		return err
	}
	w.step("crl", crlNote(w.crls))
	driver, err := w.node.Target.Connect(w.node.Live)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, driver.Close()) }()
	if err := w.deliver(ctx, driver); err != nil {
		return err
	}
	if err := driver.Reload(ctx); err != nil {
		return err
	}
	w.step("reload", "")
	return w.prove(ctx, driver)
}

func crlNote(crls []templates.CRL) string {
	parts := make([]string, len(crls))
	for i, c := range crls {
		parts[i] = fmt.Sprintf("%s number %d with %d entries", c.Issuer, c.Number, c.Entries)
	}
	return strings.Join(parts, ", ")
}

// deliver writes one moment of the fleet, and notes which it was.
func (w *syncing) deliver(ctx context.Context, driver templates.Driver) error {
	var sum templates.Summary
	// A driver may talk to its broker while this moment is read. The store grows a
	// little meanwhile; nobody waits for it.
	err := w.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
		if w.progress, _, err = readProgress(in, w.node.Name); err != nil {
			return err
		}
		if w.endings, _, err = enroll.Endings(in, w.progress.Revision, 0); err != nil {
			return err
		}
		trust, err := w.cfg.Trust(in)
		if err != nil {
			return err
		}
		if w.roots, err = w.cfg.Roots(in); err != nil {
			return err
		}
		view, err := NewView(in, ViewConfig{
			Fleet: w.cfg.Fleet, Node: w.broker, TrustBundle: trust, CRLs: w.crls, Now: w.cfg.Now(), Canary: w.canary.Device,
		})
		if err != nil {
			return err
		}
		w.receipt.Revision = in.Revision()
		o := w.node.Options
		o.AllowShrink, o.Now = true, w.cfg.Now() // the audit log says who is gone, and why
		o.Passwords = map[inventory.DeviceID]inventory.Secret{w.canary.Device: w.canary.Accepted.Password}
		sum, err = driver.Deliver(ctx, view, o)
		return err
	})
	if err != nil {
		return err
	}
	w.receipt.ended(w.endings)
	w.step("deliver", fmt.Sprintf("%d devices, %d with a password", sum.Devices, sum.Users))
	return nil
}

// prove ends the sessions and waits until the broker is seen to obey.
func (w *syncing) prove(ctx context.Context, driver templates.Driver) error {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(w.node.Deadline, defaultDeadline)+time.Duration(len(w.endings))*endTime)
	defer cancel()
	roots, err := pool(w.roots)
	if err != nil {
		return err
	}
	p := &prober{
		address: w.node.Address, serverName: w.node.ServerName, roots: roots, timeout: probeTimeout,
		certPort: w.broker.CertificatePort, passPort: w.broker.PasswordPort,
	}
	// Until the CRL is in force a kicked device would come straight back.
	for _, check := range []struct {
		name string
		want verdict
		try  func(context.Context) (verdict, error)
	}{
		{"certificate in the CRL is refused", refused, func(ctx context.Context) (verdict, error) { return p.certificate(ctx, w.canary.Refused) }},
		{"certificate is let in", accepted, func(ctx context.Context) (verdict, error) { return p.certificate(ctx, w.canary.Accepted) }},
		{"new password is let in", accepted, func(ctx context.Context) (verdict, error) {
			return p.password(ctx, w.canary.Device, w.canary.Accepted.Password)
		}},
	} {
		note, err := until(ctx, check.want, check.try)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrUnproven, check.name, err)
		}
		w.step(check.name, note)
	}
	return w.end(ctx, driver)
}

// until repeats a probe until it comes out as wanted.
func until(ctx context.Context, want verdict, try func(context.Context) (verdict, error)) (string, error) {
	for {
		got, err := try(ctx)
		if got == want {
			if err != nil {
				return oneLine(err), nil
			}
			return "", nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = errors.New("it is let in")
			}
			return "", err
		case <-time.After(probePause):
		}
	}
}

// endBatch is how many sessions are ended, and looked at, at once: a driver may
// hold a connection for each.
const endBatch = 256

// end ends the sessions of devices, and sees that those without credentials do not
// come back.
func (w *syncing) end(ctx context.Context, driver templates.Driver) error {
	for batch := range slices.Chunk(w.endings, endBatch) {
		ids, gone := make([]inventory.DeviceID, len(batch)), []inventory.DeviceID{}
		for i := range batch {
			ids[i] = batch[i].Device
			if batch[i].Gone {
				gone = append(gone, batch[i].Device)
			}
		}
		if err := driver.Kick(ctx, ids); err != nil {
			return err
		}
		for {
			live, err := driver.Live(ctx, gone)
			if err != nil {
				return err
			}
			if len(live) == 0 {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("%w: %d devices still have a session, as %s", ErrUnproven, len(live), live[0])
			}
			if err := driver.Kick(ctx, live); err != nil {
				return err
			}
		}
		if err := driver.Close(); err != nil {
			return err
		}
	}
	if len(w.endings) > 0 {
		w.step("sessions ended", fmt.Sprintf("%d devices", len(w.endings)))
	}
	return nil
}

// record makes the receipt an entry of the audit log, and notes how far the node
// is.
func (w *syncing) record(ctx context.Context) error {
	w.receipt.Took = time.Since(w.began)
	return again(func() error {
		now := inventory.UTC(w.cfg.Now())
		p := Progress{Target: w.receipt.Target, Revision: w.receipt.Revision, At: now, CRLNumbers: map[string]uint64{}}
		for _, c := range w.crls {
			p.CRLNumbers[c.Issuer] = c.Number
		}
		for _, c := range w.crls {
			if p.NextUpdate.IsZero() || c.NextUpdate.Before(p.NextUpdate) {
				p.NextUpdate = c.NextUpdate
			}
		}
		w.receipt.NextUpdate = p.NextUpdate
		var work inventory.Work
		err := w.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
			_, work, err = readProgress(in, w.node.Name)
			return err
		})
		if err != nil {
			return err
		}
		if work.Body, err = p.encode(); err != nil {
			return err
		}
		work.Updated = now
		return w.cfg.Store.Apply(ctx, inventory.Change{Event: w.receipt.event(w.cfg.Actor, now), Works: []inventory.Work{work}})
	})
}

// SyncAll brings nodes up to date, all at the same time, and returns the receipts
// of those that were not. A node that fails does not stop the others.
func (s *Syncer) SyncAll(ctx context.Context, nodes []*Node, force bool) ([]Receipt, error) {
	receipts := make(map[string]*Receipt, len(nodes))
	errs := make([]error, len(nodes))
	type done struct {
		i int
		r *Receipt
	}
	results := make(chan done)
	for i, n := range nodes {
		go func() {
			r, err := s.Sync(ctx, n, force)
			errs[i] = err
			results <- done{i, r}
		}()
	}
	for range nodes {
		if d := <-results; d.r != nil {
			receipts[nodes[d.i].Name] = d.r
		}
	}
	out := []Receipt{}
	for _, name := range slices.Sorted(maps.Keys(receipts)) {
		out = append(out, *receipts[name])
	}
	return out, errors.Join(errs...)
}
