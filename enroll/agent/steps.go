package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/client"
)

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
	if !a.told && a.clock.now().Before(RenewAt(a.cfg.Device, p.tls.Leaf.NotBefore, p.tls.Leaf.NotAfter)) {
		return nil, nil
	}
	return func(context.Context) error {
		a.told = false // from here on what is on disk says how to go on
		return a.prepare()
	}, nil
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
	a.log.Info("pair in use", slog.Any("device", a.cfg.Device), slog.Any("serial", p.tls.Leaf.SerialNumber.Text(16)), slog.Any("until", p.tls.Leaf.NotAfter))
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
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "IMPRINT_PAIR=" + filepath.Join(a.dir.Path(), currentLink)}
	if out, err := cmd.CombinedOutput(); err != nil {
		a.log.Error("hook failed", slog.Any("err", err), slog.Any("output", string(out[:min(len(out), 512)])))
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
		answer, err := c.Report(ctx, api.StatusReport{Version: api.StatusVersion, Status: true, Trust: a.trusts()})
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
		if err := a.removePair(old); err != nil {
			return err
		}
		if err := a.stop("removed"); err != nil {
			return err
		}
	}
	return nil
}

// removePair removes a pair that has ended. A key that stays on its token takes room
// there and does no harm.
func (a *agent) removePair(n int) error {
	name := filepath.Join(pairsDir, strconv.Itoa(n))
	if text, err := a.dir.ReadFile(filepath.Join(name, keyFile), maxPEM); err == nil {
		if err := removeKey(a.cfg.Key, text); err != nil {
			a.log.Warn("the old key is still on the token", slog.Any("err", err))
		}
	}
	return a.dir.RemoveAll(name)
}
