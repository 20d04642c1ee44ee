package server_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
	"github.com/imprint-iot/imprint/inventory"
)

// A fullStore has no room while full is set.
type fullStore struct {
	inventory.Store
	full *atomic.Bool
}

func (s fullStore) Apply(ctx context.Context, c inventory.Change) error {
	if s.full.Load() {
		return fmt.Errorf("writing: %w", inventory.ErrFull)
	}
	return s.Store.Apply(ctx, c)
}

// iss-003: a certificate that cannot be recorded is not handed out, the token is not
// used up, and once there is room the same request goes through.
func TestFullDisk(t *testing.T) {
	var full atomic.Bool
	f := servertest.Start(t, servertest.Options{Settings: noLimits(), Wrap: func(s inventory.Store) inventory.Store { return fullStore{s, &full} }})
	token := f.Token(inventory.Token{Devices: devices("dev-1"), Profile: "quiet"})
	body := enrollBody(t, "dev-1", catest.Key(t, ca.P256), false)
	full.Store(true)
	a := f.Do(call{Path: api.PathEnroll, Token: token, Body: body})
	want(t, "with a full disk", a, api.CodeFull)
	if a.Header.Get("Retry-After") == "" || bytes.Contains(a.Body, []byte("BEGIN CERTIFICATE")) {
		t.Errorf("%v %s", a.Header, a.Body)
	}
	if a := f.Do(call{Path: api.PathTrustBundle}); a.Status != http.StatusOK {
		t.Errorf("reading with a full disk: %d", a.Status)
	}
	full.Store(false)
	if got := readAnswer(t, f.Do(call{Path: api.PathEnroll, Token: token, Body: body})); got.Unchanged {
		t.Error("the certificate that was not recorded is there")
	}
	if _, err := f.Device(t.Context(), "dev-1"); err != nil {
		t.Error(err)
	}
}

// What is secret is in no log line and in no error answer, whatever goes wrong.
func TestNoSecretIsShown(t *testing.T) {
	var mu sync.Mutex
	var log bytes.Buffer
	f := servertest.Start(t, servertest.Options{
		Settings: noLimits(),
		Log:      slog.New(slog.NewJSONHandler(writerFunc(func(b []byte) (int, error) { mu.Lock(); defer mu.Unlock(); return log.Write(b) }), &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	token := f.Token(inventory.Token{Devices: devices("dev-1"), Profile: "default"})
	body := enrollBody(t, "dev-1", catest.Key(t, ca.P256), true)
	answer := readAnswer(t, f.Do(call{Path: api.PathEnroll, Token: token, Body: body}))
	var shown bytes.Buffer
	for _, c := range []call{
		{Path: api.PathEnroll + "?t=" + token, Body: body}, {Path: api.PathEnroll, Token: token, Body: []byte(`{"csr":"` + token + `"}`)},
		{Path: api.PathEnroll, Token: token, Body: []byte(`{"` + token + `":1}`)}, {Path: api.PathEnroll, Token: token, Body: enrollBody(t, "dev-2", catest.Key(t, ca.P256), false)},
		{Path: api.PathEnroll, Token: token + "x", Body: body}, {Path: "/v1/devices/" + token, Token: token}, {Path: "/" + token},
		{Path: "/.well-known/est/simpleenroll", Token: token, Type: api.MediaPKCS10, Body: []byte(token)},
		{Path: api.PathEnroll, Header: map[string]string{"Authorization": "Basic " + token}, Body: body},
	} {
		a := f.Do(c)
		if a.Status < 400 {
			t.Errorf("%s: %d", c.Path, a.Status)
		}
		if !strings.Contains(c.Path, token) && !bytes.Contains(c.Body, []byte(token)) {
			shown.Write(a.Body)
		}
	}
	f.Stop()
	mu.Lock()
	defer mu.Unlock()
	for what, secret := range map[string]string{"token": token[4:], "password": answer.Password} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("a %s is in the log", what)
		}
		if strings.Contains(shown.String(), secret) {
			t.Errorf("a %s is in an answer", what)
		}
	}
	if !strings.Contains(log.String(), `"route":"/v1/enroll"`) {
		t.Errorf("the log is not written: %s", log.String())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// FuzzRequest sends anything to any route. Nothing makes the server fail, and
// nobody is let in without a right.
func FuzzRequest(f *testing.F) {
	fleet := servertest.Start(f, servertest.Options{Settings: noLimits()})
	handler := fleet.Server.Handler()
	f.Add("POST", "/v1/enroll", "Bearer imp_x", "application/json", []byte(`{"csr":"x","password":true}`))
	f.Add("POST", "/.well-known/est/simpleenroll", "Basic ZGV2OmltcF94", "application/pkcs10", []byte("MIIB"))
	f.Add("GET", "/ocsp/MEMwQTA/MD0wOzAJ", "", "", []byte(nil))
	f.Add("POST", "/ocsp", "", "application/ocsp-request", []byte{0x30, 3, 0x30, 1, 0})
	f.Add("GET", "/v1/devices?state=x&after=y", "Bearer", "", []byte(nil))
	f.Add("POST", "/v1/approvals/spki-sha256:00/approve", "Digest", "text/plain", []byte(`[]`))
	f.Fuzz(func(t *testing.T, method, target, auth, media string, body []byte) {
		req, err := http.NewRequestWithContext(t.Context(), method, "https://localhost", bytes.NewReader(body))
		if err != nil || !strings.HasPrefix(target, "/") {
			return
		}
		if u, err := req.URL.Parse(target); err == nil {
			req.URL = u
		}
		req.RemoteAddr = "192.0.2.1:1"
		req.Header.Set("Authorization", auth)
		req.Header.Set("Content-Type", media)
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, req)
		if rec.Code >= 500 && rec.Code != http.StatusNotImplemented {
			t.Errorf("%s %q: %d %s", method, target, rec.Code, rec.Body)
		}
		if rec.Code == http.StatusOK && strings.HasPrefix(req.URL.Path, "/v1/") && req.URL.Path != api.PathTrustBundle && req.URL.Path != api.PathOpenAPI {
			t.Errorf("%s %q with %q: %d", method, target, auth, rec.Code)
		}
	})
}

// What a hostile request without a right costs: CPU and memory for each.
func BenchmarkHostile(b *testing.B) {
	f := servertest.Start(b, servertest.Options{Settings: noLimits()})
	handler := f.Server.Handler()
	big := bytes.Repeat([]byte("A"), 16<<10)
	for name, r := range map[string]struct {
		method, path, auth, media string
		body                      []byte
	}{
		"no token":       {"POST", api.PathEnroll, "", api.MediaPKCS10, big},
		"bad token":      {"POST", api.PathEnroll, "Bearer " + api.TokenText(make([]byte, 32)), api.MediaPKCS10, big},
		"deep JSON":      {"POST", api.PathEnroll, "Bearer x", api.MediaJSON, bytes.Repeat([]byte("["), 16<<10)},
		"ocsp":           {"POST", "/ocsp", "", api.MediaOCSPAsk, big[:4<<10]},
		"unknown route":  {"GET", "/x", "", "", nil},
		"cacerts":        {"GET", "/.well-known/est/cacerts", "", "", nil},
		"Basic of 12 KB": {"POST", "/.well-known/est/simpleenroll", "Basic " + string(big[:12<<10]), api.MediaPKCS10, big},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				req := httptest.NewRequest(r.method, r.path, bytes.NewReader(r.body))
				req.Header.Set("Authorization", r.auth)
				if r.auth == "" {
					req.Header.Del("Authorization")
				}
				req.Header.Set("Content-Type", r.media)
				handler.ServeHTTP(httptest.NewRecorder(), req)
			}
		})
	}
}
