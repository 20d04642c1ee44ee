package server_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
)

// A certificate that is used from two networks at one time is told of, once, and goes on
// working: it may be a device that roams.
func TestOneCertificateTwoNetworks(t *testing.T) {
	var log lockedLog
	f := servertest.Start(t, servertest.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	pair := f.Enroll("dev-1")
	use := func(from string) {
		t.Helper()
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c := http.Client{Transport: &http.Transport{
			DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: f.Roots, Certificates: []tls.Certificate{*pair}, ServerName: "localhost", MinVersion: tls.VersionTLS12},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return d.DialContext(ctx, network, f.Addr)
			},
		}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL+api.PathWhoami, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := res.Body.Close(); err != nil || res.StatusCode != http.StatusOK {
			t.Errorf("from %s: %s, %v", from, res.Status, err)
		}
	}
	const told = "used from two networks"
	use("127.0.0.1")
	use("127.0.0.9")
	if strings.Contains(log.String(), told) {
		t.Error("two addresses of one network are told of")
	}
	use("127.0.5.1")
	use("127.0.0.1")
	use("127.0.5.1")
	if n := strings.Count(log.String(), told); n != 1 {
		t.Errorf("told %d times, want once\n%s", n, log.String())
	}
}

type lockedLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
