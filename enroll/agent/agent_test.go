package agent_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
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
	"github.com/imprint-iot/imprint/inventory/durable"
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

// agt-012: born in one minute, renewed all over a window: the peak is below twice
// the mean.
func TestRenewalsAreSpread(t *testing.T) {
	born := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	dies := born.Add(730 * 24 * time.Hour)
	const n, bins = 100_000, 200
	first, last := dies, born
	var at [n]time.Time
	for i := range at {
		at[i] = agent.RenewAt(fmt.Sprintf("acme-%06d", i), born.Add(time.Duration(i%60)*time.Second), dies)
		if at[i].Before(first) {
			first = at[i]
		}
		if at[i].After(last) {
			last = at[i]
		}
	}
	if first.Before(born.Add(730*24*time.Hour*2/3)) || last.After(born.Add(730*24*time.Hour*8/10)) {
		t.Errorf("renewals from %s to %s", first, last)
	}
	var count [bins + 1]int
	peak := 0
	for _, x := range at {
		b := int(float64(x.Sub(first)) / float64(last.Sub(first)) * bins)
		count[b]++
		peak = max(peak, count[b])
	}
	if mean := n / bins; peak > 2*mean {
		t.Errorf("peak %d, mean %d", peak, mean)
	}
}

// agt-005: whatever the server says, the agent waits: never less than it asks for,
// never longer than six hours and a tenth, never all at once.
func TestBackoff(t *testing.T) {
	for _, asked := range []time.Duration{0, time.Second, time.Hour, 6 * time.Hour} {
		seen := map[time.Duration]bool{}
		for tries := 1; tries < 100; tries++ {
			w := agent.Backoff(tries, asked)
			if w < max(asked, 2*time.Second) || w > 7*time.Hour {
				t.Errorf("try %d, asked for %s: %s", tries, asked, w)
			}
			seen[w] = true
		}
		if len(seen) < 50 {
			t.Errorf("asked for %s: %d different waits of 99", asked, len(seen))
		}
	}
}

func TestRevoked(t *testing.T) {
	w := newWorld(t, 30*24*time.Hour)
	cfg := w.config("dev-1")
	o := agent.Options{Now: w.now}
	if _, err := agent.Enroll(t.Context(), cfg, o, w.token("dev-1")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Revoke(t.Context(), "test", "", inventory.KeyCompromise, "dev-1"); err != nil {
		t.Fatal(err)
	}
	w.move(24 * 24 * time.Hour)
	if _, err := agent.StopAfter(t.Context(), cfg, o, "", 1000); !refusedWith(err, api.CodeCertRevoked) {
		t.Errorf("%v", err)
	}
	s, err := agent.ReadStatus(cfg)
	if err != nil || s.State != agent.Ended || s.Code != api.CodeCertRevoked || s.Hint == "" {
		t.Errorf("agt-005: status %+v, %v", s, err)
	}
}

// agt-010: two years in a drawer.
func TestDrawer(t *testing.T) {
	w := newWorld(t, 30*24*time.Hour)
	cfg := w.config("dev-1")
	o := agent.Options{Now: w.now}
	if _, err := agent.Enroll(t.Context(), cfg, o, w.token("dev-1")); err != nil {
		t.Fatal(err)
	}
	w.move(60 * 24 * time.Hour)
	_, err := agent.StopAfter(t.Context(), cfg, o, "", 1000)
	s, serr := agent.ReadStatus(cfg)
	if !refusedWith(err, api.CodeCertExpired) || serr != nil || s.State != agent.Ended || !strings.Contains(s.Hint, "token") {
		t.Errorf("%v; status %+v", err, s)
	}
	// What the hint says works.
	if err := os.RemoveAll(cfg.State); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Enroll(t.Context(), cfg, o, w.token("dev-1")); err != nil {
		t.Error(err)
	}
	w.works(t, cfg)
}

// agt-009, clk-005: a device that believes it is 1970, or 2099.
func TestWrongClock(t *testing.T) {
	for _, year := range []int{1970, 2099} {
		t.Run(fmt.Sprint(year), func(t *testing.T) {
			w := newWorld(t, 30*24*time.Hour)
			cfg := w.config("dev-1")
			start := time.Now()
			wrong := func() time.Time {
				return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Since(start)).Add(time.Duration(w.moved.Load()))
			}
			if _, err := agent.Enroll(t.Context(), cfg, agent.Options{Now: wrong}, w.token("dev-1")); err != nil {
				t.Fatal(err)
			}
			first := w.works(t, cfg)
			if _, err := agent.StopAfter(t.Context(), cfg, agent.Options{Now: wrong}, "", 1000); err != nil {
				t.Fatal(err)
			}
			if !w.works(t, cfg).Leaf.Equal(first.Leaf) && year == 1970 {
				t.Error("renewed at once")
			}
			w.move(24 * 24 * time.Hour)
			if _, err := agent.StopAfter(t.Context(), cfg, agent.Options{Now: wrong}, "", 1000); err != nil {
				t.Fatal(err)
			}
			second := w.works(t, cfg)
			// A server that is not the fleet's is refused whatever the time.
			cfg.Server = newWorld(t, time.Hour).URL
			w.move(30 * 24 * time.Hour)
			_, err := agent.StopAfter(t.Context(), cfg, agent.Options{Now: wrong}, "", 1000)
			if kept := filepath.Join(cfg.State, "current", "cert.pem"); err == nil && !sameLeaf(t, kept, second.Leaf) {
				t.Error("agt-017: another fleet's server was believed")
			}
		})
	}
}

// agt-008: a disk that cannot be written to.
func TestReadOnlyDisk(t *testing.T) {
	w := newWorld(t, 30*24*time.Hour)
	cfg := w.config("dev-1")
	o := agent.Options{Now: w.now}
	if _, err := agent.Enroll(t.Context(), cfg, o, w.token("dev-1")); err != nil {
		t.Fatal(err)
	}
	first := w.works(t, cfg)
	// A file where the next key's directory has to be: root is not stopped by modes.
	if err := os.WriteFile(filepath.Join(cfg.State, "next"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.move(24 * 24 * time.Hour)
	if _, err := agent.StopAfter(t.Context(), cfg, o, "", 1000); err == nil {
		t.Error("no error")
	}
	if !w.works(t, cfg).Leaf.Equal(first.Leaf) {
		t.Error("another pair is in use")
	}
	if err := os.Remove(filepath.Join(cfg.State, "next")); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.StopAfter(t.Context(), cfg, o, "", 1000); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if w.works(t, cfg).Leaf.Equal(first.Leaf) {
		t.Error("not renewed")
	}
}

func TestRefusesToStart(t *testing.T) {
	w := newWorld(t, 30*24*time.Hour)
	cfg := w.config("dev-1")
	o := agent.Options{Now: w.now}
	// agt-013: two agents.
	dir, err := durable.CreateDir(cfg.State)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := dir.Lock("lock")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Enroll(t.Context(), cfg, o, "x"); !isA[*durable.InUseError](err) {
		t.Errorf("agt-013: %v", err)
	}
	if err := errors.Join(lock.Unlock(), dir.Close()); err != nil {
		t.Fatal(err)
	}
	// agt-015: others may write.
	if err := os.Chmod(cfg.State, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Enroll(t.Context(), cfg, o, "x"); !errors.Is(err, agent.ErrConfig) {
		t.Errorf("agt-015: state directory: %v", err)
	}
	path := filepath.Join(t.TempDir(), "agent.json")
	good, err := json.Marshal(w.config("dev-2"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.ReadConfig(path); err != nil {
		t.Errorf("a good configuration: %v", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.ReadConfig(path); !errors.Is(err, agent.ErrConfig) {
		t.Errorf("agt-015: configuration: %v", err)
	}
	// agt-017: nothing but TLS.
	plain := w.config("dev-3")
	plain.Server = strings.Replace(plain.Server, "https", "http", 1)
	if _, err := agent.Enroll(t.Context(), plain, o, "x"); !errors.Is(err, agent.ErrConfig) {
		t.Errorf("agt-017: plain HTTP: %v", err)
	}
	pin := w.config("dev-4")
	pin.Trust = newWorld(t, time.Hour).RootFile
	if _, err := agent.Enroll(t.Context(), pin, o, w.token("dev-4")); err == nil {
		t.Error("agt-017: a server under another root was believed")
	}
}

func sameLeaf(t *testing.T, path string, leaf *x509.Certificate) bool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := ca.ParseCertificatesPEM(text)
	return err == nil && certs[0].Equal(leaf)
}

func isA[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
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
