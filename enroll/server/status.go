package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
)

// actor is the server in the audit log.
const actor = "server"

// A statusService says which certificates are good: it keeps the CRLs signed and
// answers OCSP requests.
type statusService struct {
	registrar *enroll.Registrar
	files     CRLFiles
	log       *slog.Logger
	metrics   *metrics
	now       func() time.Time
	ocsp      *responders

	poke     chan struct{}
	stopping atomic.Bool

	mu   sync.RWMutex
	crls map[string]*published // by issuer
}

// A published CRL, ready to be sent.
type published struct {
	enroll.CRL
	pem  []byte
	etag string
}

func newStatusService(r *enroll.Registrar, files CRLFiles, log *slog.Logger, m *metrics, now func() time.Time) *statusService {
	return &statusService{
		registrar: r, files: files, log: log, metrics: m, now: now, ocsp: newResponders(r, m, now),
		poke: make(chan struct{}, 1), crls: map[string]*published{},
	}
}

// Revoked tells the server that certificates may have been revoked, by whatever
// door, so that CRLs are signed anew at once. It does not wait.
func (s *Server) Revoked() { s.status.again() }

func (s *statusService) again() {
	select {
	case s.poke <- struct{}{}:
	default: // one that is waiting covers this one too
	}
}

// How often CRLs are signed at most, and looked at at least. With many entries a
// CRL takes long to sign, so the pause grows with it: signing takes no more than a
// tenth of a core.
const (
	publishPause = time.Second
	publishEvery = time.Minute
)

// run publishes until ctx ends. The first round is made by [Server.Serve], before
// anybody is answered.
func (s *statusService) run(ctx context.Context) {
	tick := time.NewTicker(publishEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.poke:
		case <-tick.C:
		}
		began := time.Now()
		s.publish(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(publishPause, 10*time.Since(began))):
		}
	}
}

// publish brings the CRLs of all issuers up to date. An issuer whose key is not
// here, as that of an offline root, is served with the CRL that is on file.
func (s *statusService) publish(ctx context.Context) {
	issuers, err := s.registrar.Issuers(ctx)
	if err != nil {
		s.log.Error("CRLs cannot be published", slog.Any("err", err))
		return
	}
	for i := range issuers {
		iss := &issuers[i]
		if iss.State == inventory.IssuerPending {
			continue
		}
		err := s.publishOne(ctx, iss)
		if errors.Is(err, inventory.ErrConflict) { // somebody else has just signed one: look again
			s.again()
			continue
		}
		if err != nil && ctx.Err() == nil {
			s.metrics.crlFails.WithLabelValues(iss.Name).Inc()
			s.log.Error("CRL cannot be published", slog.Any("issuer", iss.Name), slog.Any("err", err))
		}
		s.measure(iss.Name)
	}
}

func (s *statusService) publishOne(ctx context.Context, iss *inventory.Issuer) error {
	have, err := s.have(iss.Name, iss.CRLNumber)
	if err != nil {
		return err
	}
	crl := enroll.CRL{Issuer: iss.Name, DER: have, Number: iss.CRLNumber, ThisUpdate: iss.CRLThisUpdate, NextUpdate: iss.CRLNextUpdate}
	if iss.Purpose != inventory.RootPurpose {
		if crl, err = s.registrar.PublishCRL(ctx, actor, iss.Name, have, false); err != nil {
			return err
		}
	}
	if len(crl.DER) == 0 {
		return nil
	}
	if string(crl.DER) != string(have) {
		if err := s.files.Save(iss.Name, crl.DER); err != nil {
			return fmt.Errorf("keeping it: %w", err)
		}
		s.log.Info("CRL published", slog.Any("issuer", iss.Name), slog.Any("number", crl.Number), slog.Any("entries", crl.Entries), slog.Any("next", crl.NextUpdate))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.crls[iss.Name]; old != nil && string(old.DER) == string(crl.DER) {
		return nil
	}
	s.crls[iss.Name] = &published{CRL: crl, pem: ca.CRLPEM(crl.DER), etag: fmt.Sprintf("%d-%.16s", crl.Number, ca.Fingerprint(crl.DER))}
	return nil
}

// have is the CRL published last: from memory, or from its file if somebody else has
// signed a newer one, or after a start.
func (s *statusService) have(issuer string, number uint64) ([]byte, error) {
	s.mu.RLock()
	p := s.crls[issuer]
	s.mu.RUnlock()
	if p != nil && p.Number == number {
		return p.DER, nil
	}
	return s.files.Load(issuer)
}

// measure sets the metric that an alarm is set on.
func (s *statusService) measure(issuer string) {
	s.mu.RLock()
	p := s.crls[issuer]
	s.mu.RUnlock()
	if p == nil {
		return
	}
	age := float64(s.now().Sub(p.ThisUpdate)) / float64(p.NextUpdate.Sub(p.ThisUpdate))
	s.metrics.crlAge.WithLabelValues(issuer).Set(age)
	if age > 0.55 { // it is signed anew at 0.5
		s.log.Warn("CRL is past half of its life and has not been signed anew", slog.Any("issuer", issuer), slog.Any("next", p.NextUpdate))
	}
}

// lapsed names the issuers whose CRL is over. Brokers refuse everybody then.
func (s *statusService) lapsed() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var names []string
	for name, p := range s.crls {
		if s.now().After(p.NextUpdate) {
			names = append(names, name)
		}
	}
	return names
}

func (s *Server) statusRoutes() []route {
	return []route{
		{method: http.MethodGet, pattern: "/crl/{file}", plain: true, handle: s.crl},
		{method: http.MethodPost, pattern: "/ocsp", plain: true, body: ocspBody, handle: s.ocspPost},
		{method: http.MethodGet, pattern: ocspPattern, plain: true, handle: s.ocspGet},
	}
}

// crl sends a CRL as DER or PEM. It may be kept by others for an hour, and never
// beyond its life.
func (s *Server) crl(c *call) error {
	file := c.PathValue("file")
	name, ext, _ := strings.Cut(file, ".")
	s.status.mu.RLock()
	p := s.status.crls[name]
	s.status.mu.RUnlock()
	if p == nil || ext != "crl" && ext != "pem" {
		return problemf(api.CodeRouteUnknown, "there is no such CRL")
	}
	body, media := p.DER, api.MediaCRL
	if ext == "pem" {
		body, media = p.pem, api.MediaPEM
	}
	h := c.w.Header()
	h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d, no-transform", maxAge(s.cfg.Now(), p.NextUpdate, time.Hour)))
	h.Set("Last-Modified", p.ThisUpdate.UTC().Format(http.TimeFormat))
	h.Set("ETag", `"`+p.etag+"-"+ext+`"`)
	if noneMatch(c.Header.Get("If-None-Match"), h.Get("ETag")) {
		c.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return c.answer(http.StatusOK, media, body)
}

// maxAge is how long an answer may be kept, in seconds.
func maxAge(now, next time.Time, most time.Duration) int {
	return int(max(0, min(most, next.Sub(now))) / time.Second)
}

// noneMatch reports whether a peer has what the tag names (RFC 9110 §13.1.2).
func noneMatch(header, tag string) bool {
	for t := range strings.SplitSeq(header, ",") {
		if t = strings.TrimSpace(t); t == "*" && header != "" || strings.TrimPrefix(t, "W/") == tag {
			return true
		}
	}
	return false
}
