package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/enroll/server"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/remote"
)

type serveOptions struct {
	serverConfig
	acceptTime bool
	logFormat  string
	logLevel   string
}

func newServeCommand(a *app) *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Let devices enroll and renew over the network, and say who is still good",
		Long: `Serve answers devices, factory stations and operators until it is told to stop:
EST (RFC 7030) under /.well-known/est, a JSON and PEM API under /v1 (described at
/v1/openapi.yaml), CRLs under /crl and OCSP at /ocsp.

Its own TLS certificate comes from the fleet's server CA, for the names given with
--host, and is renewed by itself. While it runs, other imprint commands on the same
fleet work through it.

SIGHUP reads imprint.yaml again; SIGTERM finishes what was begun and ends, a second
one ends at once. Flags go before the section "server" of imprint.yaml.

The passphrase of the CA keys is taken from --passphrase-file, from the credential
imprint-passphrase of a systemd service, or from the terminal.`,
		Example: `  imprint serve --host enroll.acme.example --listen :8443
  imprint serve --listen-http :8080 --listen-metrics 127.0.0.1:9091 --log-format json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serve(cmd.Context(), o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Listen, "listen", "", "`address` for everything, over TLS (default :8443)")
	flags.StringVar(&o.ListenHTTP, "listen-http", "", "`address` for CRLs and OCSP without TLS (default none)")
	flags.StringVar(&o.ListenMetrics, "listen-metrics", "", "`address` for /metrics, /healthz and /readyz (default none)")
	flags.StringSliceVar(&o.Hosts, "host", nil, "DNS name or IP `address` that the server is reached at, may be repeated (default those of the broker)")
	flags.BoolVar(&o.acceptTime, "accept-time", false, "the clock is right, however long ago the last entry of the audit log was made")
	flags.StringVar(&o.logFormat, "log-format", "text", "`form` of the log on standard error: text or json")
	flags.StringVar(&o.logLevel, "log-level", "info", "`level` of the log: debug, info, warn or error")
	return cmd
}

// logger writes the server's log.
func (a *app) logger(o serveOptions) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, usageErrorf("--log-level %q: want debug, info, warn or error", o.logLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(a.err, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(a.err, opts)), nil
	}
	return nil, usageErrorf("--log-format %q: want text or json", o.logFormat)
}

// A service is a fleet that is being served.
type service struct {
	*fleet
	log         *slog.Logger
	node        brokerConfig // the server itself, as a node with a certificate
	certificate atomic.Pointer[tls.Certificate]
	server      *server.Server
}

func (a *app) serve(ctx context.Context, o serveOptions) error {
	log, err := a.logger(o)
	if err != nil {
		return err
	}
	a.mapped = -1
	// What lives is small, and what is made for a request is garbage right after:
	// collecting it less often costs some tens of MiB. With many connections what
	// lives is not small any more, and is collected as often as ever.
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(352 << 20)
	f, err := a.openFleet(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, other := f.store.(servedStore); other {
		return fmt.Errorf("fleet %s: another server runs on it: %w", f.dir.Path(), syscall.EADDRINUSE)
	}
	s, err := newService(ctx, f, log, o)
	if err != nil {
		return err
	}
	l, err := listen(ctx, o.over(f.cfg.Server))
	if err != nil {
		return err
	}
	return s.run(ctx, l)
}

// over puts the flags over what the configuration says, and defaults under it.
func (o serveOptions) over(c serverConfig) serverConfig {
	c.Listen = cmp.Or(o.Listen, c.Listen, ":8443")
	c.ListenHTTP = cmp.Or(o.ListenHTTP, c.ListenHTTP)
	c.ListenMetrics = cmp.Or(o.ListenMetrics, c.ListenMetrics)
	c.Node = cmp.Or(c.Node, "imprint-server")
	if len(o.Hosts) > 0 {
		c.Hosts = o.Hosts
	}
	return c
}

// newService makes everything ready that can fail before anybody is answered.
func newService(ctx context.Context, f *fleet, log *slog.Logger, o serveOptions) (*service, error) {
	cfg := o.over(f.cfg.Server)
	if len(cfg.Hosts) == 0 {
		cfg.Hosts = f.cfg.Broker.Hosts
	}
	s := &service{fleet: f, log: log, node: brokerConfig{Node: cfg.Node, Hosts: cfg.Hosts}}
	f.store = &watchedStore{storage: f.store, revoked: func() { s.server.Revoked() }}
	var err error
	if f.Registrar, err = f.newRegistrar(); err != nil {
		return nil, err
	}
	jump := cmp.Or(time.Duration(cfg.MaxClockJump), 30*24*time.Hour)
	if o.acceptTime {
		jump = 0
	}
	if err := f.CheckClock(ctx, jump); err != nil {
		return nil, err
	}
	if err := f.OpenIssuers(ctx); err != nil {
		return nil, err
	}
	if f.cfg.Server.MQTTTokens {
		if _, err := f.TokenKeys(ctx); err != nil { // made now, so that brokers can be given it
			return nil, err
		}
	}
	makers, err := f.makers(&cfg)
	if err != nil {
		return nil, err
	}
	f.SetMakers(makers)
	s.server, err = server.New(server.Config{
		Registrar: f.Registrar, Certificate: func() (*tls.Certificate, error) { return s.certificate.Load(), nil },
		CRLs: crlFiles{f}, Orders: orders(f), Settings: cfg.settings(), Log: log, Now: f.app.now,
	})
	if err != nil {
		return nil, configError{err}
	}
	return s, s.renewOwn(ctx)
}

// renewOwn loads the server's own certificate, and gets a new one if that is due.
func (s *service) renewOwn(ctx context.Context) error {
	chain, key, err := s.certified(ctx, s.node)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return fmt.Errorf("certificate of %s: %w", s.node.Node, err)
	}
	s.certificate.Store(&pair)
	return nil
}

// listen opens the listeners of the server.
func listen(ctx context.Context, c serverConfig) (l server.Listeners, err error) {
	var lc net.ListenConfig
	for _, x := range []struct {
		addr string
		to   *net.Listener
	}{{c.Listen, &l.TLS}, {c.ListenHTTP, &l.Plain}, {c.ListenMetrics, &l.Metrics}} {
		if x.addr == "" {
			continue
		}
		if *x.to, err = lc.Listen(ctx, "tcp", x.addr); err != nil {
			return l, err
		}
	}
	return l, nil
}

// run serves until ctx ends.
func (s *service) run(ctx context.Context, l server.Listeners) error {
	socket, err := remote.Listen(filepath.Join(s.dir.Path(), socketFile))
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ctx, drain := context.WithCancel(ctx)
	defer drain()
	local := make(chan error, 1)
	go func() {
		local <- remote.Serve(work, socket, s.store, remote.Extra{
			Backup: s.store.Backup,
			Check:  func(ctx context.Context) (any, error) { return s.store.Check(ctx) },
		})
	}()
	go s.attend(work)
	brokers := make(chan struct{})
	go func() {
		defer close(brokers)
		s.keepBrokers(work)
	}()
	defer func() {
		stop()
		<-brokers
	}()
	s.ready(l)
	done := make(chan error, 1)
	go func() { done <- s.server.Serve(ctx, l) }()
	return s.wait(ctx, waits{done: done, local: local, drain: drain, stop: stop})
}

// waits are what the end of a server depends on.
type waits struct {
	done, local <-chan error // the server has ended; the admin socket has
	drain, stop func()       // end the one; end the other
}

// wait returns when all has ended. Without its admin socket a server would go on
// where nobody can revoke anything beside it, so both end then.
func (s *service) wait(ctx context.Context, w waits) error {
	again := s.secondSignal(ctx)
	var lost error
	for {
		select {
		case err := <-w.done:
			w.stop()
			if w.local != nil {
				lost = <-w.local
			}
			s.log.Info("stopped")
			return errors.Join(err, lost)
		case err := <-w.local:
			lost = cmp.Or(err, errors.New("the admin socket has closed"))
			w.local = nil
			w.drain()
		case <-again:
			return interruptedError{errors.New("stopped at once: requests under way were dropped")}
		}
	}
}

// ready tells people, and systemd, that the server answers.
func (s *service) ready(l server.Listeners) {
	attrs := []any{"https", l.TLS.Addr().String()}
	if l.Plain != nil {
		attrs = append(attrs, "http", l.Plain.Addr().String())
	}
	if l.Metrics != nil {
		attrs = append(attrs, "metrics", l.Metrics.Addr().String())
	}
	s.log.Info("serving", attrs...)
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
}

// secondSignal is told of a signal to end that comes after the first.
func (s *service) secondSignal(ctx context.Context) <-chan os.Signal {
	again := make(chan os.Signal, 1)
	go func() {
		<-ctx.Done()
		_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
		signal.Notify(again, os.Interrupt, syscall.SIGTERM)
	}()
	return again
}

// attend reads the configuration again when told to, and keeps the server's own
// certificate fresh.
func (s *service) attend(ctx context.Context) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			_, _ = daemon.SdNotify(false, daemon.SdNotifyReloading)
			if err := s.reload(); err != nil {
				s.log.Error("the configuration was not changed", slog.Any("err", err))
			} else {
				s.log.Info("configuration read again")
			}
			s.keepOwn(ctx)
			_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
		case <-tick.C:
			s.keepOwn(ctx)
		}
	}
}

// keepOwn is renewOwn while the server runs: it goes on with the certificate it has.
func (s *service) keepOwn(ctx context.Context) {
	if err := s.renewOwn(ctx); err != nil {
		s.log.Error("the server's own certificate cannot be renewed", slog.Any("err", err), slog.Any("ends", s.certificate.Load().Leaf.NotAfter))
	}
}

// reload takes over limits, labels and makers from imprint.yaml, all or none.
func (s *service) reload() error {
	cfg, instance, err := loadConfig(s.dir)
	if err != nil {
		return err
	}
	if instance != s.storeConfig.Instance {
		return configErrorf("%s: it is that of another fleet", configFile)
	}
	makers, err := s.makers(&cfg.Server)
	if err != nil {
		return err
	}
	if err := s.server.Configure(cfg.Server.settings()); err != nil {
		return configError{err}
	}
	s.SetMakers(makers)
	return nil
}

// watchedStore tells the server of revocations, whoever makes them.
type watchedStore struct {
	storage
	revoked func()
}

// Apply implements [inventory.Store].
func (w *watchedStore) Apply(ctx context.Context, c inventory.Change) error {
	if err := w.storage.Apply(ctx, c); err != nil {
		return err
	}
	ends := len(c.Revocations) > 0
	for i := range c.Credentials {
		// A new one is good, and anything else may have been revoked or resumed.
		ends = ends || c.Credentials[i].Kind == inventory.CertificateCredential && c.Credentials[i].Revision != 0
	}
	if ends {
		w.revoked()
	}
	return nil
}

// crlFiles keeps CRLs in the fleet directory.
type crlFiles struct{ *fleet }

// Load implements [server.CRLFiles].
func (c crlFiles) Load(issuer string) ([]byte, error) {
	dir, err := c.dir.Sub(crlDir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	b, err := dir.ReadFile(issuer+".crl", maxCRLFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// Save implements [server.CRLFiles].
func (c crlFiles) Save(issuer string, der []byte) error {
	dir, err := c.dir.Sub(crlDir)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return dir.WriteFile(issuer+".crl", der, 0o644)
}
