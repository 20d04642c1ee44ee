package server

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/imprint-iot/imprint/ca/ocsp"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
)

// An OCSP request in a path is everything after the prefix.
const (
	ocspPrefix  = "/ocsp/"
	ocspPattern = ocspPrefix + "{request...}"
)

// ocspBody is the size of the largest OCSP request, in bytes.
const ocspBody = ocsp.MaxRequestSize

// How long an OCSP answer is good. One without a nonce is kept and sent again
// until half of that is over (RFC 5019 §2.2.4).
const ocspValidity = 24 * time.Hour

// maxAnswers is how many signed answers are kept. One takes about 1 KiB.
const maxAnswers = 20_000

// responders sign OCSP answers, one for each issuer. Their keys live in memory.
type responders struct {
	registrar *enroll.Registrar
	metrics   *metrics
	now       func() time.Time

	mu      sync.Mutex
	known   []*responder
	checked time.Time

	cacheMu sync.RWMutex
	cache   map[[sha256.Size]byte]answer
}

// A responder answers for one issuer.
type responder struct {
	issuer inventory.KeyID
	name   string
	id     ocsp.IssuerID
	sign   *ocsp.Responder
	until  time.Time // when a new one is made
}

// An answer is a signed one, kept by the hash of its request. It is sent only
// while the inventory says what it says.
type answer struct {
	der    []byte
	says   []enroll.CertificateStatus
	issuer *responder
	serial []inventory.Serial
	made   time.Time
}

func newResponders(r *enroll.Registrar, m *metrics, now func() time.Time) *responders {
	return &responders{registrar: r, metrics: m, now: now, cache: map[[sha256.Size]byte]answer{}}
}

// find returns the responder for the issuer that a CertID names, or nil. New
// issuers, and responders near their end, are looked at once in a minute.
func (o *responders) find(ctx context.Context, id ocsp.CertID) (*responder, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := o.now(); o.checked.IsZero() || now.Sub(o.checked) > time.Minute {
		if err := o.refresh(ctx, now); err != nil {
			return nil, err
		}
		o.checked = now
	}
	for _, r := range o.known {
		if r.id.Issued(id) {
			return r, nil
		}
	}
	return nil, nil
}

func (o *responders) refresh(ctx context.Context, now time.Time) error {
	issuers, err := o.registrar.Issuers(ctx)
	if err != nil {
		return err
	}
	var known []*responder
	for i := range issuers {
		iss := &issuers[i]
		if iss.Purpose == inventory.RootPurpose || iss.State == inventory.IssuerPending || now.After(iss.NotAfter) {
			continue
		}
		r := o.have(iss.KeyID, now)
		if r == nil {
			if r, err = o.make(ctx, *iss, now); err != nil {
				return fmt.Errorf("OCSP responder for %s: %w", iss.Name, err)
			}
		}
		known = append(known, r)
	}
	o.known = known
	return nil
}

func (o *responders) have(issuer inventory.KeyID, now time.Time) *responder {
	for _, r := range o.known {
		if r.issuer == issuer && now.Before(r.until) {
			return r
		}
	}
	return nil
}

func (o *responders) make(ctx context.Context, iss inventory.Issuer, now time.Time) (*responder, error) {
	e, err := o.registrar.EnrollResponder(ctx, actor, iss)
	if err != nil {
		return nil, err
	}
	defer e.Key.Wipe()
	key, err := x509.ParsePKCS8PrivateKey(e.Key.Reveal())
	if err != nil {
		return nil, fmt.Errorf("reading key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key does not sign")
	}
	cert, err := x509.ParseCertificate(e.Certificate.DER)
	if err != nil {
		return nil, fmt.Errorf("reading certificate: %w", err)
	}
	issuer, err := x509.ParseCertificate(iss.Certificate)
	if err != nil {
		return nil, fmt.Errorf("reading certificate: %w", err)
	}
	r := &responder{issuer: iss.KeyID, name: iss.Name, until: api.RenewAfter(now, cert.NotAfter)}
	if r.id, err = ocsp.IssuerOf(issuer); err != nil {
		return nil, err
	}
	r.sign, err = ocsp.NewResponder(cert, signer, issuer)
	return r, err
}

// respond answers a request. The status is always that of this moment; what may
// be older is the signature that says so.
func (o *responders) respond(ctx context.Context, der []byte) (out []byte, cacheable time.Time, err error) {
	if a, ok := o.cached(ctx, der); ok {
		o.metrics.ocsp.WithLabelValues("again", "before").Inc()
		return a.der, a.made.Add(ocspValidity), nil
	}
	req, err := ocsp.ParseRequest(der)
	if err != nil {
		o.metrics.ocsp.WithLabelValues("error", "no").Inc()
		return ocsp.MalformedRequest.Response(), time.Time{}, nil
	}
	r, err := o.find(ctx, req.IDs[0])
	if err != nil {
		return nil, time.Time{}, err
	}
	if r == nil {
		o.metrics.ocsp.WithLabelValues("unauthorized", "no").Inc()
		return ocsp.Unauthorized.Response(), time.Time{}, nil
	}
	a := answer{issuer: r, made: o.now().UTC().Truncate(time.Second)}
	mine := make([]bool, len(req.IDs))
	for i, id := range req.IDs {
		var s inventory.Serial
		if mine[i] = r.id.Issued(id) && len(id.Serial) <= len(s); mine[i] {
			copy(s[len(s)-len(id.Serial):], id.Serial)
		}
		a.serial = append(a.serial, s)
	}
	if a.says, err = o.registrar.Status(ctx, r.issuer, a.serial...); err != nil {
		return nil, time.Time{}, err
	}
	singles := make([]ocsp.Single, len(req.IDs))
	for i, st := range a.says {
		singles[i] = ocsp.Single{ID: req.IDs[i], ThisUpdate: a.made, NextUpdate: a.made.Add(ocspValidity)}
		switch {
		case !mine[i] || !st.Known: // unknown, and never good
		case st.Revoked:
			singles[i].State, singles[i].RevokedAt, singles[i].Reason = ocsp.Revoked, st.At, int(st.Reason)
		default:
			singles[i].State = ocsp.Good
		}
	}
	if a.der, err = r.sign.Sign(singles, req.Nonce, a.made); err != nil {
		return nil, time.Time{}, err
	}
	o.metrics.ocsp.WithLabelValues(stateName(singles[0].State), "now").Inc()
	if req.Nonce != nil {
		return a.der, time.Time{}, nil
	}
	o.keep(der, a)
	return a.der, a.made.Add(ocspValidity), nil
}

func stateName(s ocsp.State) string {
	switch s {
	case ocsp.Good:
		return "good"
	case ocsp.Revoked:
		return "revoked"
	case ocsp.Unknown:
	}
	return "unknown"
}

// cached returns the answer that was signed before for the same request, if it is
// still true and in the first half of its life.
func (o *responders) cached(ctx context.Context, der []byte) (answer, bool) {
	if len(der) > ocspBody {
		return answer{}, false
	}
	key := sha256.Sum256(der)
	o.cacheMu.RLock()
	a, ok := o.cache[key]
	o.cacheMu.RUnlock()
	now := o.now()
	if !ok || now.Before(a.made) || now.Sub(a.made) > ocspValidity/2 || now.After(a.issuer.until) {
		return answer{}, false
	}
	says, err := o.registrar.Status(ctx, a.issuer.issuer, a.serial...)
	if err != nil {
		return answer{}, false
	}
	for i := range says {
		if says[i] != a.says[i] {
			return answer{}, false
		}
	}
	return a, true
}

func (o *responders) keep(der []byte, a answer) {
	o.cacheMu.Lock()
	defer o.cacheMu.Unlock()
	if len(o.cache) >= maxAnswers {
		for k := range o.cache { // any one: who asks again gets it signed again
			delete(o.cache, k)
			break
		}
	}
	o.cache[sha256.Sum256(der)] = a
}

func (s *Server) ocspPost(c *call) error {
	if c.mediaType() != api.MediaOCSPAsk {
		return problemf(api.CodeMediaType, "want %s", api.MediaOCSPAsk)
	}
	return s.ocsp(c, c.body)
}

// ocspGet takes a request from the path, in base64 (RFC 6960 appendix A.1). Some
// clients escape it, and some do not.
func (s *Server) ocspGet(c *call) error {
	der, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(c.URL.Path, ocspPrefix))
	if err != nil {
		der = nil // malformed, and that is what the answer says
	}
	return s.ocsp(c, der)
}

func (s *Server) ocsp(c *call, der []byte) error {
	out, until, err := s.status.ocsp.respond(c.context(), der)
	if err != nil {
		s.log.Error("OCSP request cannot be answered", slog.Any("err", err))
		out = ocsp.TryLater.Response()
	}
	if !until.IsZero() { // RFC 5019 §6.2
		h := c.w.Header()
		now := s.cfg.Now()
		h.Set("Cache-Control", fmt.Sprintf("max-age=%d, public, no-transform, must-revalidate", maxAge(now, until, time.Hour)))
		h.Set("Last-Modified", until.Add(-ocspValidity).UTC().Format(http.TimeFormat))
		h.Set("Expires", until.UTC().Format(http.TimeFormat))
	}
	return c.answer(http.StatusOK, api.MediaOCSP, out)
}
