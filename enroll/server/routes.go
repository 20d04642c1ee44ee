package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
)

// A door is how a peer is recognised on a route.
type door uint8

const (
	open       door = iota // not at all: anyone may come
	byToken                // with a token in the Authorization header
	byDevice               // with its own certificate of this fleet
	byNewcomer             // with a token, or a birth certificate
	byAny                  // with a token or its own certificate
)

// A route is one thing that can be asked of the server.
type route struct {
	method  string
	pattern string // of http.ServeMux, without the method
	door    door
	roles   []inventory.Role // who may; none on an open door
	body    int64            // size of the largest request body, in bytes; 0 means there may be none
	chunked bool             // a body of unknown length is taken, up to its limit
	plain   bool             // also answered over plain HTTP
	est     bool             // errors are told as EST has it: RFC 8951 §5
	handle  func(*call) error

	// no answers whatever goes wrong, where an HTTP error would not be a denial:
	// see webhook.go. Such a route is for a broker, which has a fleet behind it.
	no func(*call)
}

// Sizes of bodies, in bytes.
const (
	enrollBody = 16 << 10
	adminBody  = 64 << 10
)

// table is all that can be asked. The matrix of roles in the tests is made of it.
func (s *Server) table() []route {
	return slices.Concat(s.estRoutes(), s.deviceRoutes(), s.operatorRoutes(), s.statusRoutes(), s.mqttTokenRoutes(), s.healthRoutes(), s.webhookRoutes())
}

// A call is one request on its way through a route.
type call struct {
	*http.Request
	w     http.ResponseWriter
	srv   *Server
	route *route
	peer  enroll.Peer
	who   enroll.Principal
	user  string // of HTTP Basic
	body  []byte
	code  string // of the problem, for the log; empty if there was none

	reason string // why a broker was denied, for the log
}

// handler is the server over TLS, or what of it is answered over plain HTTP.
func (s *Server) handler(plain bool) http.Handler {
	mux := http.NewServeMux()
	methods := map[string][]string{}
	for i := range s.routes {
		rt := &s.routes[i]
		if plain && !rt.plain {
			continue
		}
		methods[rt.pattern] = append(methods[rt.pattern], rt.method)
		mux.Handle(rt.method+" "+rt.pattern, s.serve(rt))
	}
	for pattern, allowed := range methods {
		mux.Handle(pattern, s.serve(&route{pattern: pattern, handle: func(c *call) error {
			c.w.Header().Set("Allow", strings.Join(allowed, ", "))
			return problemf(api.CodeMethod, "use %s", strings.Join(allowed, " or "))
		}}))
	}
	mux.Handle("/", s.serve(&route{pattern: "/", handle: func(*call) error { return problemf(api.CodeRouteUnknown, "there is nothing here") }}))
	var ocsp http.Handler
	for i := range s.routes {
		if rt := &s.routes[i]; rt.pattern == ocspPattern {
			ocsp = s.serve(rt)
		}
	}
	return exactPath(mux, ocsp)
}

// exactPath keeps ServeMux from redirecting to a cleaned path: a path that is not
// written as it is in the table is not there, so that nobody decides on another
// path than the one that is served. An OCSP request in the path is base64, in which
// "//" is nothing to clean.
func exactPath(mux *http.ServeMux, ocsp http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.EscapedPath()
		if r.Method == http.MethodGet && strings.HasPrefix(path, ocspPrefix) {
			ocsp.ServeHTTP(w, r)
			return
		}
		if strings.Contains(path, "//") || strings.Contains(path, "/.") && !strings.HasPrefix(path, "/.well-known/") || strings.Contains(path, "/./") ||
			strings.Contains(path, "/..") || strings.ContainsAny(path, ";\\%") {
			r = r.Clone(r.Context())
			r.URL.Path, r.URL.RawPath = "/", ""
		}
		mux.ServeHTTP(w, r)
	})
}

// serve runs one route: limits, fences, recognition, role, and only then the
// handler.
func (s *Server) serve(rt *route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		rec := &recorder{ResponseWriter: w, status: http.StatusOK}
		c := &call{Request: r, w: rec, srv: s, route: rt, peer: enroll.Peer{Addr: remote(r)}}
		if rt.no != nil {
			ctx, cancel := context.WithTimeout(r.Context(), webhookTimeout)
			defer cancel()
			c.Request = r.WithContext(ctx)
		}
		if r.TLS != nil {
			c.peer.Chain = r.TLS.PeerCertificates
		}
		defer func() {
			if v := recover(); v != nil {
				if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(v)
				}
				s.log.Error("fault in a handler", slog.Any("route", rt.pattern), slog.Any("fault", v), slog.Any("stack", string(debug.Stack())))
				if !rec.wrote {
					c.fail(errors.New("fault in a handler"))
				}
			}
			s.finish(c, rec, time.Since(began))
		}()
		if err := s.admit(c); err != nil {
			c.fail(err)
			return
		}
		if err := rt.handle(c); err != nil {
			c.fail(err)
		}
	})
}

// admit lets a request through to its handler, or says why not. What costs least
// is looked at first.
func (s *Server) admit(c *call) error {
	if c.route.no != nil {
		if !c.overLoopback() {
			return problemf(api.CodeRoleDenied, "a webhook over plain HTTP is for the same host")
		}
		// No limit by address: one broker with a wrong token must not lock out another
		// beside it, and to guess a token is hopeless.
	} else if err := s.limits.Load().request(c.peer.Addr); err != nil {
		return err
	}
	if len(c.URL.RawQuery) > 0 {
		if strings.Contains(c.URL.RawQuery, api.TokenPrefix) {
			return problemf(api.CodeTokenInURL, "a token in a URL is in somebody's log: it should be revoked")
		}
	}
	if c.route.method == "" {
		return nil // the answer is that there is nothing
	}
	if err := c.fenceBody(); err != nil {
		return err
	}
	if err := s.recognise(c); err != nil {
		return err
	}
	if c.route.door != open && !slices.Contains(c.route.roles, c.who.Role()) {
		return problemf(api.CodeRoleDenied, "not with the role %s", c.who.Role())
	}
	return c.readBody()
}

// fenceBody refuses a body by what its header says.
func (c *call) fenceBody() error {
	if len(c.TransferEncoding) > 0 && !c.route.chunked {
		// Two lengths in one request are two requests in the eyes of two readers.
		c.w.Header().Set("Connection", "close")
		return problemf(api.CodeLengthRequired, "a Content-Length is required, and no Transfer-Encoding")
	}
	if c.Header.Get("Content-Encoding") != "" {
		return problemf(api.CodeEncoding, "no Content-Encoding is taken")
	}
	if c.ContentLength > c.route.body {
		c.w.Header().Set("Connection", "close")
		return problemf(api.CodeTooLarge, "at most %d bytes are read", c.route.body)
	}
	return nil
}

// readBody reads the whole body, at most as long as the route allows.
func (c *call) readBody() error {
	if c.route.body == 0 {
		return nil
	}
	b, err := io.ReadAll(http.MaxBytesReader(c.w, c.Body, c.route.body))
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return problemf(api.CodeTooLarge, "at most %d bytes are read", tooLarge.Limit)
	}
	if err != nil {
		return problemf(api.CodeMalformed, "the body could not be read")
	}
	c.body = b
	return nil
}

// mediaType returns the type of the body without its parameters.
func (c *call) mediaType() string {
	t, params, err := mime.ParseMediaType(c.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	if cs, ok := params["charset"]; ok && !strings.EqualFold(cs, "utf-8") {
		return ""
	}
	return t
}

// answer writes a whole answer, with its length.
func (c *call) answer(status int, mediaType string, body []byte) error {
	h := c.w.Header()
	h.Set("Content-Type", mediaType)
	setLength(h, len(body))
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
	}
	h.Set("X-Content-Type-Options", "nosniff")
	c.w.WriteHeader(status)
	_, _ = c.w.Write(body) // a peer that has gone does not need it
	return nil
}

// context is that of the registrar's work: it outlives the connection, because
// what has been signed is recorded even if nobody waits for it.
func (c *call) context() context.Context {
	if c.route.no != nil {
		return c.Request.Context() // a question changes nothing, and its answer has to be in time
	}
	return context.WithoutCancel(c.Request.Context())
}

// finish counts and logs a request. The query is not logged, and neither is
// anything else that a peer could hide a secret in.
func (s *Server) finish(c *call, rec *recorder, took time.Duration) {
	s.metrics.request(c.route.pattern, c.Method, rec.status, took)
	level := slog.LevelInfo
	switch {
	case rec.status >= 500:
		level = slog.LevelError
	case c.route.plain: // CRLs, OCSP, health and brokers: many
		level = slog.LevelDebug
	}
	if !s.log.Enabled(c.Request.Context(), level) {
		return
	}
	s.log.LogAttrs(c.Request.Context(), level, "request",
		slog.String("method", c.Method), slog.String("route", c.route.pattern), slog.Int("status", rec.status),
		slog.String("peer", c.peer.Addr.String()), slog.String("who", c.who.Name()), slog.String("code", c.code),
		slog.String("reason", api.Redact(c.reason)), slog.Duration("took", took))
}

// A recorder notes the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
	wrote  bool
}

// WriteHeader implements [http.ResponseWriter].
func (r *recorder) WriteHeader(status int) {
	r.status, r.wrote = status, true
	r.ResponseWriter.WriteHeader(status)
}

// Write implements [io.Writer].
func (r *recorder) Write(b []byte) (int, error) {
	r.wrote = true
	return r.ResponseWriter.Write(b)
}

// Unwrap is for [http.ResponseController].
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
