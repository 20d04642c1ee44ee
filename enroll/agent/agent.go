package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/client"
	"github.com/imprint-iot/imprint/inventory/durable"
)

// Options are what a program gives the agent beside its configuration.
type Options struct {
	Log *slog.Logger     // nil means none
	Now func() time.Time // the system's clock; nil means [time.Now]
}

// An agent works on one state directory.
type agent struct {
	cfg   Config
	log   *slog.Logger
	dir   *durable.Dir
	lock  *durable.Lock
	clock *clock
	token string // text form; empty: none

	status  Status
	bundled time.Time // when the trust bundle was asked for last

	stop func(step string) error // tests end the agent after any step with it
}

// open takes the state directory.
func open(cfg Config, o Options) (*agent, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	dir, lock, err := openState(cfg.State)
	if err != nil {
		return nil, err
	}
	return &agent{
		cfg: cfg, log: o.Log, dir: dir, lock: lock, clock: newClock(o.Now, dir),
		status: Status{Device: cfg.Device}, stop: func(string) error { return nil },
	}, nil
}

func (a *agent) close() error { return errors.Join(a.lock.Unlock(), a.dir.Close()) }

// Enroll gets the device its first pair, with a token in its text form, or, if it is
// empty, with the pair that the configuration names. If the device has a pair
// already it does nothing. The error is a [*client.ProblemError] if the server
// refuses; one that wraps [client.ErrPending] is worth another try.
func Enroll(ctx context.Context, cfg Config, o Options, token string) (Status, error) {
	a, err := open(cfg, o)
	if err != nil {
		return Status{}, err
	}
	a.token = strings.TrimSpace(token)
	err = a.enroll(ctx)
	return a.status, errors.Join(err, a.close())
}

func (a *agent) enroll(ctx context.Context) error {
	if n, err := current(a.dir); err != nil || n > 0 {
		if err == nil {
			a.report(Waiting, time.Time{}, nil)
		}
		return err
	}
	if a.token == "" && a.cfg.Certificate == "" {
		return fmt.Errorf("%w: a token, or certificate and private_key, are required to enroll", ErrConfig)
	}
	for {
		step, err := a.next()
		if err == nil && step == nil {
			a.report(Waiting, time.Time{}, nil)
			return nil
		}
		if err == nil {
			err = step(ctx)
		}
		if err != nil {
			a.report(NoPair, time.Time{}, err)
			return err
		}
	}
}

// Run keeps the pair alive until ctx ends.
func Run(ctx context.Context, cfg Config, o Options) error {
	a, err := open(cfg, o)
	if err != nil {
		return err
	}
	return errors.Join(a.run(ctx), a.close())
}

// Waits of run when nothing fails.
const (
	checkEvery   = time.Hour // in case the clock is put right, or a person acts
	bundleEvery  = 24 * time.Hour
	endedRecheck = maxWait
)

func (a *agent) run(ctx context.Context) error {
	tries := 0
	for {
		wait, err := a.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			tries = 0
		} else {
			tries++
			var asked time.Duration
			if p, ok := errors.AsType[*client.ProblemError](err); ok {
				asked = p.RetryAfter
			}
			wait = backoff(tries, asked)
			if a.status.State == Ended {
				wait = endedRecheck
			}
			a.status.Tries, a.status.Next = tries, a.clock.now().Add(wait)
			a.writeStatus()
			a.log.Warn("will try again", "state", a.status.State, "code", a.status.Code, "err", err, "in", wait.Round(time.Second))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// round does all that is due, and returns how long nothing is.
func (a *agent) round(ctx context.Context) (time.Duration, error) {
	for {
		step, err := a.next()
		if err != nil {
			a.report(a.stateNow(), time.Time{}, err)
			return 0, err
		}
		if step == nil {
			break
		}
		if err := step(ctx); err != nil {
			a.report(a.stateNow(), time.Time{}, err)
			return 0, err
		}
	}
	a.followBundle(ctx)
	n, err := current(a.dir)
	if err != nil || n == 0 {
		a.report(NoPair, time.Time{}, err)
		return checkEvery, err
	}
	p, err := readPair(a.dir, a.cfg.Key, n)
	if err != nil {
		a.report(a.stateNow(), time.Time{}, err)
		return 0, err
	}
	at := RenewAt(a.cfg.Device, p.tls.Leaf.NotBefore, p.tls.Leaf.NotAfter)
	a.report(Waiting, at, nil)
	return min(max(at.Sub(a.clock.now()), time.Second), checkEvery), nil
}

// stateNow is the state that a failure leaves.
func (a *agent) stateNow() State {
	n, err := current(a.dir)
	all, listErr := pairs(a.dir)
	switch {
	case err != nil || listErr != nil:
		return Renewing
	case n == 0:
		return NoPair
	case len(all) > 0 && all[len(all)-1] > n:
		return Proving
	}
	return Renewing
}

// next says what is to be done, from what is on disk; nil is nothing.
//
// The order is what keeps the device alive: a new pair is complete on disk before
// it is tried, tried at the broker before it is used, used before the server is
// told to end the old one, and only then is the old one removed.
func (a *agent) next() (func(context.Context) error, error) {
	n, err := current(a.dir)
	if err != nil {
		return nil, err
	}
	all, err := pairs(a.dir)
	if err != nil {
		return nil, err
	}
	newest := 0
	if len(all) > 0 {
		newest = all[len(all)-1]
	}
	asked, err := a.hasNextKey()
	switch {
	case err != nil:
		return nil, err
	case newest > n && asked:
		return func(context.Context) error { return a.forget() }, nil
	case newest > n:
		return func(ctx context.Context) error { return a.prove(ctx, n, newest) }, nil
	case n > 0 && len(all) > 1:
		return func(ctx context.Context) error { return a.settle(ctx, n, all) }, nil
	case asked:
		return func(ctx context.Context) error { return a.ask(ctx, n) }, nil
	}
	if n == 0 {
		if a.token == "" && a.cfg.Certificate == "" {
			return nil, nil
		}
		return func(context.Context) error { return a.prepare() }, nil
	}
	p, err := readPair(a.dir, a.cfg.Key, n)
	if err != nil {
		return nil, err
	}
	if a.clock.now().Before(RenewAt(a.cfg.Device, p.tls.Leaf.NotBefore, p.tls.Leaf.NotAfter)) {
		return nil, nil
	}
	return func(context.Context) error { return a.prepare() }, nil
}

func (a *agent) hasNextKey() (bool, error) {
	sub, err := a.dir.Sub(nextDir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = sub.Close() }()
	_, err = sub.Stat(keyFile)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// prepare makes the next key. It is kept before anybody is asked, so that the same
// key asks again when an answer is lost, and gets the same certificate.
func (a *agent) prepare() error {
	text, err := newKey(a.cfg.Key, a.cfg.Algorithm)
	if err != nil {
		return err
	}
	defer clear(text)
	sub, err := a.dir.Mkdir(nextDir)
	if err != nil {
		return err
	}
	if err := errors.Join(sub.WriteFile(keyFile, text, 0o600), sub.Close()); err != nil {
		return err
	}
	return a.stop("prepared")
}

// ask gets a certificate for the next key, and installs the pair beside the present
// one. What the server sends is believed only if it is for this key and this
// device and comes from the fleet.
func (a *agent) ask(ctx context.Context, n int) error {
	sub, err := a.dir.Sub(nextDir)
	if err != nil {
		return err
	}
	keyText, err := sub.ReadFile(keyFile, maxPEM)
	if err := errors.Join(err, sub.Close()); err != nil {
		return err
	}
	defer clear(keyText)
	key, err := readKey(a.cfg.Key, keyText)
	if err != nil {
		return err
	}
	csr, err := request(a.cfg.Device, key)
	if err != nil {
		return err
	}
	answer, err := a.send(ctx, n, string(csr))
	if err != nil {
		return a.refused(err, n)
	}
	if err := a.stop("answered"); err != nil {
		return err
	}
	chain := []byte(answer.Chain)
	made, err := assemble(chain, key)
	if err == nil {
		err = a.checkNew(made)
	}
	if err != nil {
		return fmt.Errorf("what the server sent: %w", err)
	}
	files := map[string][]byte{keyFile: keyText, certFile: chain}
	if answer.Password != "" {
		files[passFile] = []byte(answer.Password)
	}
	if err := install(a.dir, n+1, files); err != nil {
		return err
	}
	if err := a.stop("installed"); err != nil {
		return err
	}
	return a.forget()
}

// forget removes the next key, which is part of a pair by now.
func (a *agent) forget() error {
	if err := a.dir.RemoveAll(nextDir); err != nil {
		return err
	}
	return a.stop("forgotten")
}

// send asks the server: to renew with the pair in use, or to enroll without one.
func (a *agent) send(ctx context.Context, n int, csr string) (api.EnrollResponse, error) {
	var answer client.Answer[api.EnrollResponse]
	q := api.EnrollRequest{Device: a.cfg.Device, CSR: csr}
	err := a.clock.try(ctx, func(ctx context.Context) (err error) {
		if n > 0 {
			c, err := a.client(n)
			if err != nil {
				return err
			}
			answer, err = c.Renew(ctx, q)
			return err
		}
		c, err := a.newcomer()
		if err != nil {
			return err
		}
		answer, err = c.Enroll(ctx, a.token, q)
		return err
	})
	a.clock.saw(answer.Date)
	return answer.Value, err
}

// client returns a client that shows pair n.
func (a *agent) client(n int) (*client.Client, error) {
	p, err := readPair(a.dir, a.cfg.Key, n)
	if err != nil {
		return nil, err
	}
	return a.clientWith(&p.tls)
}

func (a *agent) clientWith(shown *tls.Certificate) (*client.Client, error) {
	pool, _, err := roots(a.dir, a.cfg.Trust)
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{
		URL: a.cfg.Server, Roots: pool, Time: a.clock.tlsTime,
		Certificate: func() (*tls.Certificate, error) { return shown, nil },
	})
}

// newcomer returns a client for a device without a pair.
func (a *agent) newcomer() (*client.Client, error) {
	if a.token != "" {
		return a.clientWith(nil)
	}
	for _, path := range []string{a.cfg.PrivateKey, a.cfg.Certificate} {
		if err := onlyOwnerWrites(path); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrConfig, err)
		}
	}
	keyText, err := os.ReadFile(a.cfg.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	defer clear(keyText)
	certText, err := os.ReadFile(a.cfg.Certificate)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	key, err := readKey(a.cfg.Key, keyText)
	if err != nil {
		return nil, err
	}
	shown, err := assemble(certText, key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return a.clientWith(shown)
}

// checkNew verifies a certificate that the server has sent.
func (a *agent) checkNew(made *tls.Certificate) error {
	leaf := made.Leaf
	if leaf.Subject.CommonName != a.cfg.Device {
		return fmt.Errorf("it is for %.64q", leaf.Subject.CommonName)
	}
	pool, _, err := roots(a.dir, a.cfg.Trust)
	if err != nil {
		return err
	}
	between := x509.NewCertPool()
	for _, der := range made.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: between, CurrentTime: leaf.NotBefore.Add(time.Second), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err == nil {
		a.clock.saw(leaf.NotBefore)
	}
	return err
}

// refused finds out whether a refusal can ever turn into something else.
func (a *agent) refused(err error, n int) error {
	p, ok := errors.AsType[*client.ProblemError](err)
	if !ok {
		return err
	}
	switch p.Code {
	case api.CodeCertRevoked, api.CodeCertExpired, api.CodeDeviceState, api.CodeCertUnknown:
		if n > 0 {
			a.status.State = Ended
		}
	}
	return err
}

// prove tries a new pair at the broker, makes it the current one and tells whoever
// uses it. If the broker does not let it in, the old one stays. The first pair has
// nothing to fall back to, and is used as it is.
func (a *agent) prove(ctx context.Context, old, n int) error {
	p, err := readPair(a.dir, a.cfg.Key, n)
	if err != nil {
		return err
	}
	if a.cfg.Broker != "" && old > 0 {
		pool, _, err := roots(a.dir, a.cfg.Trust)
		if err != nil {
			return err
		}
		err = a.clock.try(ctx, func(ctx context.Context) error {
			return tryBroker(ctx, a.cfg.Broker, a.cfg.clientID(), &p.tls, pool, a.clock.tlsTime)
		})
		if err != nil {
			return err
		}
	}
	if err := a.stop("proved"); err != nil {
		return err
	}
	if err := use(a.dir, n); err != nil {
		return err
	}
	a.log.Info("pair in use", "device", a.cfg.Device, "serial", p.tls.Leaf.SerialNumber.Text(16), "until", p.tls.Leaf.NotAfter)
	if err := a.stop("used"); err != nil {
		return err
	}
	a.hook(ctx)
	return a.stop("hooked")
}

// hook runs the configured program. That it fails is noted and no reason to stay
// with the old pair.
func (a *agent) hook(ctx context.Context) {
	if len(a.cfg.Hook) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.cfg.Hook[0], a.cfg.Hook[1:]...) //nolint:gosec // the owner of the configuration says so
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "IMPRINT_PAIR=" + filepath.Join(a.dir.Path(), currentLink)}
	if out, err := cmd.CombinedOutput(); err != nil {
		a.log.Error("hook failed", "err", err, "output", string(out[:min(len(out), 512)]))
	}
}

// settle tells the server that the new pair works, so that it ends the old one, and
// removes that.
func (a *agent) settle(ctx context.Context, n int, all []int) error {
	err := a.clock.try(ctx, func(ctx context.Context) error {
		c, err := a.client(n)
		if err != nil {
			return err
		}
		answer, err := c.Report(ctx, api.StatusReport{Version: api.StatusVersion, Status: true})
		a.clock.saw(answer.Date)
		return err
	})
	if err != nil {
		return a.refused(err, n)
	}
	if err := a.stop("reported"); err != nil {
		return err
	}
	for _, old := range all {
		if old == n {
			continue
		}
		if err := a.dir.RemoveAll(filepath.Join(pairsDir, strconv.Itoa(old))); err != nil {
			return err
		}
		if err := a.stop("removed"); err != nil {
			return err
		}
	}
	return nil
}

// followBundle takes over a new trust bundle, once a day. A failure waits until the
// next day: what is trusted now goes on being so.
func (a *agent) followBundle(ctx context.Context) {
	now := a.clock.now()
	if now.Sub(a.bundled) < bundleEvery {
		return
	}
	a.bundled = now
	var answer client.Answer[[]byte]
	err := a.clock.try(ctx, func(ctx context.Context) error {
		c, err := a.clientWith(nil)
		if err != nil {
			return err
		}
		answer, err = c.TrustBundle(ctx)
		return err
	})
	if err == nil {
		a.clock.saw(answer.Date)
		err = a.takeBundle(answer.Value)
	}
	if err != nil {
		a.log.Warn("trust bundle not taken", "err", err)
	}
}

// takeBundle stores a bundle if every certificate in it is trusted already or is
// signed by one that is, so that a stolen server certificate adds no root; and if
// it keeps one of those that are trusted.
func (a *agent) takeBundle(next []byte) error {
	_, have, err := roots(a.dir, a.cfg.Trust)
	if err != nil || bytes.Equal(have, next) {
		return err
	}
	trusted, err := parseBundle(have)
	if err != nil {
		return err
	}
	wanted, err := parseBundle(next)
	if err != nil {
		return err
	}
	var out []byte
	for _, c := range wanted {
		if !vouched(c, trusted, wanted) {
			return fmt.Errorf("root %.100q is vouched for by none that is trusted", c.Subject.String())
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	if len(out) == 0 {
		return errors.New("it is empty")
	}
	return a.dir.WriteFile(trustFile, out, 0o600)
}

// vouched reports whether c is trusted, or there is a certificate for its key that
// a trusted root has signed (a link certificate, RFC 4210 §4.4).
func vouched(c *x509.Certificate, trusted, wanted []*x509.Certificate) bool {
	for _, t := range trusted {
		if t.Equal(c) || c.CheckSignatureFrom(t) == nil {
			return true
		}
		for _, link := range wanted {
			if bytes.Equal(link.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo) && link.CheckSignatureFrom(t) == nil {
				return true
			}
		}
	}
	return false
}

func parseBundle(text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for rest := text; len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" || len(all) == 64 {
			return nil, errors.New("a trust bundle is certificates in PEM")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading the trust bundle: %w", err)
		}
		all = append(all, c)
	}
	return all, nil
}

// report says what the agent does, for people.
func (a *agent) report(state State, next time.Time, err error) {
	s := Status{Device: a.cfg.Device, State: state, Next: next, Tries: a.status.Tries}
	if a.status.State == Ended && err != nil {
		s.State = Ended
	}
	if err == nil {
		s.Tries = 0
	} else {
		s.Code, s.Hint = codeOf(err)
		s.Error = err.Error()
	}
	if n, cerr := current(a.dir); cerr == nil && n > 0 {
		if p, perr := readPair(a.dir, a.cfg.Key, n); perr == nil {
			s.Serial, s.NotAfter = p.tls.Leaf.SerialNumber.Text(16), p.tls.Leaf.NotAfter
		}
	}
	a.status = s
	a.writeStatus()
}

// codeOf says in a word, and in a sentence, what is wrong.
func codeOf(err error) (code, hint string) {
	if p, ok := errors.AsType[*client.ProblemError](err); ok {
		switch p.Code {
		case api.CodeCertRevoked, api.CodeDeviceState:
			hint = "the device is not wanted any more; if that is wrong, register it anew and enroll it with a token"
		case api.CodeCertExpired, api.CodeCertUnknown:
			hint = "remove the state directory and enroll with a token, or with the birth certificate"
		case api.CodeTokenInvalid:
			hint = "ask for another token"
		}
		if p.Status == http.StatusInsufficientStorage || p.Code == api.CodeFull {
			hint = "the server's disk is full"
		}
		return p.Code, hint
	}
	switch {
	case errors.Is(err, ErrConfig):
		return "config", "correct the configuration"
	case errors.Is(err, errBroker):
		return "broker", "the old pair stays in use; does the broker know the new certificate's issuer?"
	case errors.Is(err, errKey):
		return "key", ""
	case isDisk(err):
		return "disk", "the old pair stays in use; make room, or make the directory writable"
	}
	return "network", ""
}

func isDisk(err error) bool {
	_, path := errors.AsType[*os.PathError](err)
	_, link := errors.AsType[*os.LinkError](err)
	return path || link
}

// writeStatus keeps the status. On a full disk it cannot, and that is no reason to
// stop.
func (a *agent) writeStatus() {
	a.status.Updated = a.clock.now().UTC().Truncate(time.Second)
	b, err := json.MarshalIndent(a.status, "", "  ")
	if err == nil {
		err = a.dir.WriteFile(statusFile, append(b, '\n'), 0o600)
	}
	if err != nil {
		a.log.Debug("status not written", "err", err)
	}
}
