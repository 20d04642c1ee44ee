// Package server is the enrollment server: the doors through which devices,
// stations and operators reach the [enroll.Registrar] over the network.
//
// A door translates and decides nothing. It fences what comes in by size, then
// type, then content; recognises the peer; asks the registrar; and tells the peer
// the outcome. The doors are EST (RFC 7030, 8951, 9908), a JSON and PEM API under
// /v1 for what is too small for EST, and, for those who check certificates, CRLs
// and OCSP.
//
// All routes are in one table, which says who may use each; a route that is not
// there does not exist, and a role that is not named is denied.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
)

// A Config is what a Server needs. Registrar, Certificate and CRLs must be set.
type Config struct {
	Registrar *enroll.Registrar

	// Certificate returns the server's own certificate, with its chain. It is
	// asked at every handshake, so that a renewed one is used at once.
	Certificate func() (*tls.Certificate, error)

	CRLs CRLFiles

	// Orders says what a device is to do now, as part of a rotation. Nil means that
	// nothing is being rotated.
	Orders func(ctx context.Context, id inventory.DeviceID) (api.Orders, error)

	Settings

	Log *slog.Logger     // nil means none
	Now func() time.Time // nil means time.Now
}

// Settings are what can change while a Server runs; see [Server.Configure].
type Settings struct {
	// Labels are the EST path segments (RFC 7030 §3.2.2). The one of the empty
	// name is for the paths without a label; it need not be there.
	Labels map[string]Label

	Limits Limits
}

// A Label is one EST path segment, for devices of one kind.
type Label struct {
	// Profile is what /csrattrs speaks of, and the only profile for which the
	// label enrolls. Empty means any.
	Profile string

	// ServerKeygen allows /serverkeygen: the key is made here and is known here
	// for a moment. It is recorded as such.
	ServerKeygen bool
}

// CRLFiles keeps CRLs where a restart finds them, by the name of the issuer.
type CRLFiles interface {
	// Load returns a CRL in DER, or nil if there is none.
	Load(issuer string) ([]byte, error)
	Save(issuer string, der []byte) error
}

// Timeouts of a connection. A TLS handshake has to be done within the first.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 20 * time.Second
	writeTimeout  = 30 * time.Second
	idleTimeout   = 2 * time.Minute
	drainTimeout  = 20 * time.Second
)

// maxHeader is the size of the largest request header, in bytes.
const maxHeader = 16 << 10

// A Server answers devices, stations, brokers and operators.
type Server struct {
	cfg       Config
	log       *slog.Logger
	limits    atomic.Pointer[limiter]
	labels    atomic.Pointer[map[string]Label]
	metrics   *metrics
	status    *statusService // CRLs and OCSP answers
	cursors   *cursors
	replays   *replays
	sightings sightings
	routes    []route
	started   time.Time
}

// New returns a Server. It opens nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Registrar == nil || cfg.Certificate == nil || cfg.CRLs == nil {
		return nil, errors.New("server: Config.Registrar, Certificate and CRLs must be set")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg, log: cfg.Log, metrics: newMetrics(), cursors: newCursors(), replays: newReplays(cfg.Now), started: cfg.Now()}
	s.status = newStatusService(cfg.Registrar, cfg.CRLs, s.log, s.metrics, cfg.Now)
	s.routes = s.table()
	return s, s.Configure(cfg.Settings)
}

// Configure changes settings, all at once, or none if the error is not nil.
// Connections keep the limit they were accepted under.
func (s *Server) Configure(x Settings) error {
	for name := range x.Labels {
		if slices.Contains(operations, name) || name != url.PathEscape(name) || strings.ContainsAny(name, "./") {
			return fmt.Errorf("EST label %.64q: want letters, digits, '-' or '_', and no name of an operation", name)
		}
	}
	s.labels.Store(&x.Labels)
	s.limits.Store(newLimiter(x.Limits, s.cfg.Now))
	return nil
}

// Listeners are where a Server listens, each a plain TCP listener. TLS must be
// set.
type Listeners struct {
	TLS     net.Listener // everything
	Plain   net.Listener // CRLs and OCSP only, over HTTP, for those who check certificates; may be nil
	Metrics net.Listener // Prometheus, /healthz and /readyz; may be nil
}

// Serve answers until ctx ends, and then finishes what it has begun: a request
// that was accepted is answered. It returns nil after that.
func (s *Server) Serve(ctx context.Context, l Listeners) error {
	work, stop := context.WithCancel(context.Background())
	defer stop()
	s.status.publish(ctx) // an overdue CRL comes before anybody who might need it
	servers := []*http.Server{s.httpServer(s.handler(false))}
	listeners := []net.Listener{tls.NewListener(s.limits.Load().listen(l.TLS), s.TLSConfig())}
	if l.Plain != nil {
		servers = append(servers, s.httpServer(s.handler(true)))
		listeners = append(listeners, s.limits.Load().listen(l.Plain))
	}
	if l.Metrics != nil {
		servers = append(servers, s.httpServer(s.metricsHandler()))
		listeners = append(listeners, l.Metrics)
	}
	failed := make(chan error, len(servers))
	for i, srv := range servers {
		go func() { failed <- srv.Serve(listeners[i]) }()
	}
	go s.status.run(work)
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	s.log.Info("stopping", slog.Any("timeout", drainTimeout))
	s.status.stopping.Store(true)
	drain, done := context.WithTimeout(context.Background(), drainTimeout)
	defer done()
	var errs []error
	for _, srv := range servers {
		if err := srv.Shutdown(drain); err != nil {
			errs = append(errs, err, srv.Close())
		}
	}
	return errors.Join(errs...)
}

func (s *Server) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader - 4096, // net/http adds 4096
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		// HTTP/1.1 only: EST clients speak nothing else, and what is not there
		// cannot be flooded.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
}

// TLSConfig is how the server speaks TLS: version 1.2 or later, one policy for
// all names. A client's certificate is asked for and never demanded, and no list
// of CAs is sent: a device that has only its leaf then sends it, and whether it
// is good is decided, and said, by the route.
//
// Session tickets are off. A resumed session repeats the certificate that was
// shown before, which is harmless here because each request looks it up, but it
// has no tls-unique of its own (RFC 7627 §6.2) and gains a device that enrolls
// once a year nothing.
func (s *Server) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		ClientAuth:             tls.RequestClientCert,
		NextProtos:             []string{"http/1.1"},
		SessionTicketsDisabled: true,
		// strongSwan reads one record and takes it for the answer.
		DynamicRecordSizingDisabled: true,
		GetCertificate:              func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.cfg.Certificate() },
	}
}

// remote returns the address of a peer, without the zone.
func remote(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// Handler answers requests without listening, with the routes that are there over
// TLS.
func (s *Server) Handler() http.Handler { return s.handler(false) }
