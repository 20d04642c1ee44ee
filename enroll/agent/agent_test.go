package agent_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll/agent"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/client"
	"github.com/imprint-iot/imprint/enroll/server"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
	"github.com/imprint-iot/imprint/inventory"
)

// A world is a server and a clock that both sides go by.
type world struct {
	*servertest.Fleet
	moved atomic.Int64
	dir   string
}

func newWorld(t *testing.T, validity time.Duration) *world {
	t.Helper()
	w := &world{dir: t.TempDir()}
	w.Fleet = servertest.Start(t, servertest.Options{
		Now: w.now, Validity: ca.Duration(validity),
		Settings: server.Settings{Limits: server.Limits{PeerRate: -1, IdentityRate: -1, FailureRate: -1}},
	})
	return w
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.moved.Load())) }

func (w *world) move(d time.Duration) { w.moved.Add(int64(d)) }

func (w *world) config(id string) agent.Config {
	return agent.Config{Server: w.URL, Trust: w.RootFile, Device: id, State: filepath.Join(w.dir, id)}
}

func (w *world) token(id string) string {
	return w.Token(inventory.Token{Devices: []inventory.DeviceID{inventory.DeviceID(id)}, Profile: "quiet"})
}

// works checks that the pair in use is one that the server takes.
func (w *world) works(t *testing.T, cfg agent.Config) *tls.Certificate {
	t.Helper()
	at := filepath.Join(cfg.State, "current")
	pair, err := tls.LoadX509KeyPair(filepath.Join(at, "cert.pem"), filepath.Join(at, "key.pem"))
	if err != nil {
		t.Fatalf("the device has no pair: %v", err)
	}
	if _, err := w.Certificate(t.Context(), enroll(pair.Leaf)); err != nil {
		t.Fatalf("the device's pair does not work: %v", err)
	}
	return &pair
}

func TestEnrollAndRenew(t *testing.T) {
	w := newWorld(t, 30*24*time.Hour)
	cfg := w.config("dev-1")
	if _, err := agent.Enroll(t.Context(), cfg, agent.Options{Now: w.now}, "imp_"+strings.Repeat("A", 43)); !refusedWith(err, api.CodeTokenInvalid) {
		t.Errorf("with a bad token: %v", err)
	}
	s, err := agent.Enroll(t.Context(), cfg, agent.Options{Now: w.now}, w.token("dev-1")+"\n")
	if err != nil || s.State != agent.Waiting {
		t.Fatalf("%+v, %v", s, err)
	}
	first := w.works(t, cfg)
	if again, err := agent.Enroll(t.Context(), cfg, agent.Options{Now: w.now}, "whatever"); err != nil || again.Serial != s.Serial {
		t.Errorf("enrolling twice: %+v, %v", again, err)
	}
	// Nothing is due, and then it is.
	if _, err := agent.StopAfter(t.Context(), cfg, agent.Options{Now: w.now}, "", 1000); err != nil {
		t.Fatal(err)
	}
	if !w.works(t, cfg).Leaf.Equal(first.Leaf) {
		t.Error("renewed before it was due")
	}
	w.move(23 * 24 * time.Hour)
	if _, err := agent.StopAfter(t.Context(), cfg, agent.Options{Now: w.now}, "", 1000); err != nil {
		t.Fatal(err)
	}
	second := w.works(t, cfg)
	if second.Leaf.Equal(first.Leaf) {
		t.Fatal("not renewed")
	}
	if _, err := w.Certificate(t.Context(), enroll(first.Leaf)); err == nil {
		t.Error("the old certificate is still good after the new one was confirmed")
	}
	if names, _ := os.ReadDir(filepath.Join(cfg.State, "pairs")); len(names) != 1 {
		t.Errorf("%d pairs are kept", len(names))
	}
	status, err := agent.ReadStatus(cfg)
	if err != nil || status.State != agent.Waiting || status.Serial != second.Leaf.SerialNumber.Text(16) || status.Error != "" {
		t.Errorf("status %+v, %v", status, err)
	}
}

func refusedWith(err error, code string) bool {
	p, ok := errors.AsType[*client.ProblemError](err)
	return ok && p.Code == code
}

// agt-001, agt-002, I15: the power goes at every step. The device always has a pair
// that works, and in the end one renewal has cost one certificate.
func TestPowerCutAtEveryStep(t *testing.T) {
	w := newWorld(t, 30*24*time.Hour)
	o := agent.Options{Now: w.now}
	seen := map[string]bool{}
	for n := 1; ; n++ {
		id := fmt.Sprintf("dev-%d", n)
		cfg := w.config(id)
		token := w.token(id)
		// Enrolling: it can be begun again, with the same token.
		step, err := agent.StopAfter(t.Context(), cfg, o, token, n)
		if err != nil {
			t.Fatal(err)
		}
		seen["enroll "+step] = true
		if _, err := agent.Enroll(t.Context(), cfg, o, token); err != nil {
			t.Fatalf("after a cut at %q: %v", step, err)
		}
		w.works(t, cfg)
		rec, err := w.Device(t.Context(), inventory.DeviceID(id))
		if err != nil || len(rec.Credentials) != 1 {
			t.Fatalf("after a cut at %q of enrolling the device has %d certificates, %v", step, len(rec.Credentials), err)
		}
		// Renewing: first any number of cuts at the same step, then to the end.
		w.move(23 * 24 * time.Hour)
		last := ""
		for range 2 {
			if last, err = agent.StopAfter(t.Context(), cfg, o, "", n); err != nil {
				t.Fatalf("renewing, step %d: %v", n, err)
			}
			w.works(t, cfg)
			seen["renew "+last] = true
		}
		if _, err := agent.StopAfter(t.Context(), cfg, o, "", 1000); err != nil {
			t.Fatalf("after a cut at %q: %v", last, err)
		}
		w.works(t, cfg)
		rec, err = w.Device(t.Context(), inventory.DeviceID(id))
		live := 0
		for _, c := range rec.Credentials {
			if c.Usable(w.now()) {
				live++
			}
		}
		if err != nil || live != 1 || len(rec.Credentials) != 2 {
			t.Errorf("after a cut at %q: %d certificates, %d good, want 2 and 1", last, len(rec.Credentials), live)
		}
		if step == "" && last == "" {
			break
		}
	}
	for _, want := range []string{"prepared", "answered", "installed", "forgotten", "proved", "used", "hooked", "reported", "removed"} {
		if !seen["renew "+want] {
			t.Errorf("no cut at %q: %v", want, seen)
		}
	}
}

// A chaotic server stands before the real one: it refuses, delays, answers twice
// and cuts connections.
func chaos(t *testing.T, w *world) *httptest.Server {
	t.Helper()
	inner := w.Server.Handler()
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(1, 2))
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		mu.Lock()
		dice := r.IntN(100)
		mu.Unlock()
		switch {
		case dice < 10:
			rw.Header().Set("Retry-After", "1")
			http.Error(rw, `{"code":"store.busy"}`, http.StatusServiceUnavailable)
			return
		case dice < 15: // done, and the answer is lost
			inner.ServeHTTP(httptest.NewRecorder(), req)
			panic(http.ErrAbortHandler)
		case dice < 20:
			panic(http.ErrAbortHandler)
		}
		inner.ServeHTTP(rw, req)
	}))
	s.TLS = w.Server.TLSConfig()
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// A thousand agents renew through a server that refuses one good request in ten,
// loses one answer in twenty and cuts one connection in twenty.
func TestChaos(t *testing.T) {
	agents := 1000
	if testing.Short() {
		agents = 50
	}
	w := newWorld(t, 30*24*time.Hour)
	s := chaos(t, w)
	o := agent.Options{Now: w.now}
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	var renewed atomic.Int32
	run := func(fn func(i int)) {
		for i := range agents {
			slots <- struct{}{}
			wg.Go(func() { defer func() { <-slots }(); fn(i) })
		}
		wg.Wait()
	}
	config := func(i int) agent.Config {
		cfg := w.config(fmt.Sprintf("dev-%d", i))
		cfg.Server = "https://localhost:" + port
		return cfg
	}
	run(func(i int) {
		cfg := config(i)
		token := w.token(cfg.Device)
		for range 30 {
			if _, err := agent.Enroll(context.Background(), cfg, o, token); err == nil {
				return
			}
		}
		t.Errorf("%s did not enroll", cfg.Device)
	})
	w.move(24 * 24 * time.Hour)
	run(func(i int) {
		cfg := config(i)
		for range 30 {
			if _, err := agent.StopAfter(context.Background(), cfg, o, "", 1000); err == nil {
				renewed.Add(1)
				return
			}
		}
	})
	if got := int(renewed.Load()); got != agents {
		t.Errorf("%d of %d renewed", got, agents)
	}
	good := 0
	for i := range agents {
		rec, err := w.Device(t.Context(), inventory.DeviceID(fmt.Sprintf("dev-%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		live := 0
		for _, c := range rec.Credentials {
			if c.Usable(w.now()) {
				live++
			}
		}
		if live == 1 && len(rec.Credentials) == 2 {
			good++
		}
	}
	if good != agents {
		t.Errorf("%d of %d devices have two certificates of which one is good", good, agents)
	}
}

// A new pair is used once the broker has let it in, and not before. The broker here
// speaks as much of MQTT as CONNACK (MQTT 3.1.1 §3.2); a real one is in the tests of
// the command line.
func TestBrokerDecides(t *testing.T) {
	w := newWorld(t, 30*24*time.Hour)
	var accept atomic.Bool
	config := w.Server.TLSConfig()
	config.NextProtos = nil
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 256)
			if n, err := c.Read(buf); err == nil && n > 2 && buf[0] == 0x10 {
				code := byte(5)
				if accept.Load() {
					code = 0
				}
				_, _ = c.Write([]byte{0x20, 2, 0, code})
			}
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	cfg := w.config("dev-1")
	cfg.Broker = "localhost:" + port
	mark := filepath.Join(w.dir, "hooked")
	cfg.Hook = []string{"touch", mark}
	o := agent.Options{Now: w.now}
	if _, err := agent.Enroll(t.Context(), cfg, o, w.token("dev-1")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(mark); err != nil {
		t.Errorf("the hook did not run: %v", err)
	}
	first := w.works(t, cfg)
	w.move(24 * 24 * time.Hour)
	if _, err := agent.StopAfter(t.Context(), cfg, o, "", 1000); err == nil {
		t.Error("a broker that refuses is no error")
	}
	if !w.works(t, cfg).Leaf.Equal(first.Leaf) {
		t.Error("a pair that the broker refuses is in use")
	}
	if s, err := agent.ReadStatus(cfg); err != nil || s.State != agent.Proving || s.Code != "broker" {
		t.Errorf("status %+v, %v", s, err)
	}
	accept.Store(true)
	if _, err := agent.StopAfter(t.Context(), cfg, o, "", 1000); err != nil {
		t.Fatal(err)
	}
	if w.works(t, cfg).Leaf.Equal(first.Leaf) {
		t.Error("not renewed")
	}
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the hook did not run: %v", err)
	}
}

func TestBirthPair(t *testing.T) {
	w := newWorld(t, 30*24*time.Hour)
	// A device that is enrolled with the pair of another agent's making is refused:
	// what this fleet has issued is no birth certificate.
	first := w.config("dev-1")
	o := agent.Options{Now: w.now}
	if _, err := agent.Enroll(t.Context(), first, o, w.token("dev-1")); err != nil {
		t.Fatal(err)
	}
	cfg := w.config("dev-2")
	cfg.Certificate, cfg.PrivateKey = filepath.Join(first.State, "current/cert.pem"), filepath.Join(first.State, "current/key.pem")
	if _, err := agent.Enroll(t.Context(), cfg, o, ""); !refusedWith(err, api.CodeCertUnknown) {
		t.Errorf("%v", err)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"device":"dev-1","chain":"-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"}`), "5")
	f.Add(503, []byte(`{"code":"store.full"}`), "99999999999999999999")
	f.Add(202, []byte(`{}`), "-1")
	f.Add(403, []byte("{\"code\":\"x\\u0007\"}"), "Wed, 21 Oct 2015 07:28:00 GMT")
	var code int
	var body []byte
	var after string
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Retry-After"] = []string{after}
		w.WriteHeader(code)
		_, _ = w.Write(body)
	}))
	f.Cleanup(s.Close)
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	c, err := client.New(client.Config{URL: s.URL, Roots: pool})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, status int, b []byte, retry string) {
		if status < 200 || status > 599 || strings.ContainsAny(retry, "\r\n\x00") {
			return
		}
		code, body, after = status, b, retry
		_, err := c.Renew(t.Context(), api.EnrollRequest{CSR: "x"})
		if p, ok := errors.AsType[*client.ProblemError](err); ok {
			if p.RetryAfter < 0 || p.RetryAfter > 6*time.Hour {
				t.Errorf("Retry-After %q is %s", retry, p.RetryAfter)
			}
			if strings.ContainsFunc(p.Error(), func(r rune) bool { return r < ' ' }) {
				t.Errorf("the error has control characters: %q", p.Error())
			}
		}
	})
}
