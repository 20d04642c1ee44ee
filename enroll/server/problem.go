package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
)

// A problem is an error as a peer is told of it.
type problem struct {
	code   string
	detail string
	retry  time.Duration // Retry-After, if it is not 0
}

// Error is for the log.
func (p *problem) Error() string { return p.code + ": " + p.detail }

func problemf(code, format string, args ...any) error {
	return &problem{code: code, detail: fmt.Sprintf(format, args...)}
}

func setLength(h http.Header, n int) { h.Set("Content-Length", strconv.Itoa(n)) }

// busy is how long a peer waits after a fault that passes.
const busy = 5 * time.Second

// toProblem says what of an error a peer is told: a code, and words of our own.
// The text of an error that is not meant for it stays in the log.
func toProblem(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	if p, ok := errors.AsType[*enroll.PendingError](err); ok {
		return &problem{code: api.CodePending, detail: "key " + p.Key.String(), retry: pendingRetry}
	}
	if q, ok := errors.AsType[*enroll.QuotaError](err); ok {
		return &problem{code: api.CodeQuota, detail: "the token has reached its limit", retry: q.Retry}
	}
	if r, ok := errors.AsType[*ca.RequestError](err); ok {
		return &problem{code: api.CodeCSR + string(r.Reason), detail: r.Detail}
	}
	if c, ok := errors.AsType[*inventory.ConflictError](err); ok {
		return conflictProblem(c)
	}
	if v, ok := errors.AsType[*inventory.InvalidError](err); ok {
		return &problem{code: api.CodeField, detail: v.Error()}
	}
	switch {
	case errors.Is(err, enroll.ErrToken):
		return &problem{code: api.CodeTokenInvalid}
	case errors.Is(err, enroll.ErrScope):
		return &problem{code: api.CodeTokenScope}
	case errors.Is(err, enroll.ErrNotApproved):
		return &problem{code: api.CodeNotApproved}
	case errors.Is(err, enroll.ErrRevoked):
		return &problem{code: api.CodeCertRevoked}
	case errors.Is(err, enroll.ErrTooOld):
		return &problem{code: api.CodeCertExpired}
	case errors.Is(err, enroll.ErrNoCertificate):
		return &problem{code: api.CodeCertUnknown}
	case isA[*enroll.CertifiedError](err):
		return &problem{code: api.CodeCertified, detail: "the device has a certificate for another key"}
	case isA[*enroll.StateError](err):
		return &problem{code: api.CodeDeviceState, detail: "the device is suspended, revoked or retired"}
	case errors.Is(err, enroll.ErrNoTokenKey):
		return &problem{code: api.CodeNotImplemented, detail: "no tokens for brokers are made here"}
	case errors.Is(err, enroll.ErrDenied):
		return &problem{code: api.CodeRoleDenied}
	case errors.Is(err, inventory.ErrNotFound):
		return &problem{code: api.CodeUnknown}
	case errors.Is(err, inventory.ErrFull):
		return &problem{code: api.CodeFull, retry: busy}
	case errors.Is(err, enroll.ErrQueueFull), errors.Is(err, context.DeadlineExceeded), errors.Is(err, inventory.ErrConflict), errors.Is(err, inventory.ErrStopped):
		return &problem{code: api.CodeBusy, retry: busy}
	}
	return &problem{code: api.CodeInternal}
}

// pendingRetry is when a device that waits for approval may ask again.
const pendingRetry = 10 * time.Second

func conflictProblem(c *inventory.ConflictError) *problem {
	switch c.Why {
	case inventory.KeyTaken:
		return &problem{code: api.CodeKeyTaken, detail: "the key is certified for another device"}
	case inventory.KeyBlocked:
		return &problem{code: api.CodeCSR + string(ca.BlockedKey), detail: "the key has been compromised"}
	case inventory.Exists:
		return &problem{code: api.CodeExists, detail: c.Record + " exists already"}
	case inventory.TokenSpent:
		return &problem{code: api.CodeTokenInvalid}
	case inventory.BadTransition:
		return &problem{code: api.CodeDeviceState}
	case inventory.Stale, inventory.SerialTaken:
	}
	return &problem{code: api.CodeBusy, retry: busy}
}

func isA[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// fail tells a peer of an error, and the log of all of it.
func (c *call) fail(err error) {
	if errors.Is(err, errNo) {
		c.code = "denied"
		c.route.no(c)
		return
	}
	p := toProblem(err)
	p.detail = api.Redact(p.detail)
	c.code = p.code
	text := api.Redact(err.Error())
	status := api.StatusOf(p.code)
	if status >= http.StatusInternalServerError {
		c.srv.log.Error("request failed", slog.Any("route", c.route.pattern), slog.String("err", text))
	} else {
		c.srv.log.Debug("request refused", slog.Any("route", c.route.pattern), slog.String("err", text))
	}
	if c.route.no != nil {
		c.route.no(c)
		return
	}
	h := c.w.Header()
	if p.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.retry+time.Second-1)/time.Second)))
	}
	if status == http.StatusUnauthorized && c.route.door != byDevice {
		// libest compares the name of this header with its case; Set would change it.
		h["WWW-Authenticate"] = []string{`Basic realm="imprint", charset="UTF-8"`}
	}
	if c.route.est {
		c.failEST(status, p)
		return
	}
	body, err := json.Marshal(api.Problem{Type: api.ProblemType + p.code, Title: api.TitleOf(p.code), Status: status, Detail: p.detail, Code: p.code})
	if err != nil {
		status, body = http.StatusInternalServerError, []byte("{}")
	}
	_ = c.answer(status, api.MediaProblem, append(body, '\n'))
}
