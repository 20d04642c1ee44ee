package agent_test

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll/agent"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
)

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
		seen := make(map[time.Duration]bool)
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
