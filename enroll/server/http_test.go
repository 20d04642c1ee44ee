package server_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/server"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
	"github.com/imprint-iot/imprint/inventory"
)

// raw sends octets over TLS and returns everything that comes back.
func raw(t *testing.T, f *servertest.Fleet, text string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", f.Addr, &tls.Config{RootCAs: f.Roots, ServerName: "localhost", MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, text) // the server may have had enough before the end
	_ = conn.CloseWrite()
	b, _ := io.ReadAll(conn)
	return string(b)
}

func status(answer string) int {
	var n int
	_, _ = fmt.Sscanf(answer, "HTTP/1.1 %d", &n)
	return n
}

func TestHostileHTTP(t *testing.T) {
	f := servertest.Start(t, servertest.Options{Settings: noLimits()})
	token := f.Token(inventory.Token{Devices: devices("dev-1"), Profile: "quiet"})
	const host = "Host: localhost\r\n"
	csr := string(servertest.CSR(t, "dev-1", catest.Key(t, ca.P256)))
	tests := []struct {
		name, request string
		want          int
	}{
		{"net-007: two lengths", "POST /v1/enroll HTTP/1.1\r\n" + host + "Authorization: Bearer " + token + "\r\nContent-Type: application/pkcs10\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/trust-bundle HTTP/1.1\r\n" + host + "\r\n", 411},
		{"chunked on the API", "POST /v1/enroll HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411},
		{"net-010: a header of 2 MB", "GET /v1/trust-bundle HTTP/1.1\r\n" + host + "X: " + strings.Repeat("a", 2<<20) + "\r\n\r\n", 431},
		{"net-010: 10,000 headers", "GET /v1/trust-bundle HTTP/1.1\r\n" + host + strings.Repeat("X-A: b\r\n", 10_000) + "\r\n", 431},
		{"net-010: 10,000 cookies", "GET /v1/trust-bundle HTTP/1.1\r\n" + host + "Cookie: " + strings.Repeat("a=b; ", 10_000) + "\r\n\r\n", 431},
		{"net-011: a query of 1 MB", "GET /v1/devices?" + strings.Repeat("a=b&", 250_000) + " HTTP/1.1\r\n" + host + "\r\n", 431},
		{"net-014: a compressed body", "POST /v1/enroll HTTP/1.1\r\n" + host + "Content-Encoding: gzip\r\nContent-Type: application/pkcs10\r\nContent-Length: 2\r\n\r\n\x1f\x8b", 415},
		{"a body that is too large", "POST /v1/enroll HTTP/1.1\r\n" + host + "Authorization: Bearer " + token + "\r\nContent-Length: 20000\r\n\r\n", 413},
		{"a body where there is none", "GET /v1/trust-bundle HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nhello", 413},
		{"two Authorization headers", "POST /v1/enroll HTTP/1.1\r\n" + host + "Authorization: Bearer " + token + "\r\nAuthorization: Bearer x\r\nContent-Type: application/pkcs10\r\nContent-Length: 1\r\n\r\nx", 400},
		{"another method", "DELETE /v1/enroll HTTP/1.1\r\n" + host + "\r\n", 405},
		{"net-012: //", "GET //v1/trust-bundle HTTP/1.1\r\n" + host + "\r\n", 404},
		{"net-012: /./", "GET /v1/./trust-bundle HTTP/1.1\r\n" + host + "\r\n", 404},
		{"net-012: /../", "GET /v1/x/../trust-bundle HTTP/1.1\r\n" + host + "\r\n", 404},
		{"net-012: /..;/", "GET /v1/..;/trust-bundle HTTP/1.1\r\n" + host + "\r\n", 404},
		{"net-012: %2f", "GET /v1%2ftrust-bundle HTTP/1.1\r\n" + host + "\r\n", 404},
		{"net-012: ..%2f", "GET /v1/devices/..%2f..%2fhealthz HTTP/1.1\r\n" + host + "\r\n", 404},
		{"net-012: %00", "GET /v1/trust-bundle%00 HTTP/1.1\r\n" + host + "\r\n", 404},
		{"net-012: ;", "GET /v1/trust-bundle;x HTTP/1.1\r\n" + host + "\r\n", 404},
		{"net-012: case", "GET /V1/trust-bundle HTTP/1.1\r\n" + host + "\r\n", 404},
		{"no path", "GET / HTTP/1.1\r\n" + host + "\r\n", 404},
		{"a label that is not there", "GET /.well-known/est/nobody/cacerts HTTP/1.1\r\n" + host + "\r\n", 404},
		{"fullcmc", "POST /.well-known/est/fullcmc HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\n", 501},
		{"not HTTP", "\x00\x01\x02\x03\r\n\r\n", 400},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := raw(t, f, tt.request)
			if status(got) != tt.want {
				t.Errorf("answer %.300q, want status %d", got, tt.want)
			}
			if n := strings.Count(got, "HTTP/1.1 "); n != 1 {
				t.Errorf("%d answers", n)
			}
		})
	}
	// EST clients may send chunked: the length is bounded all the same.
	chunk := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(csr), csr)
	head := "POST /.well-known/est/simpleenroll HTTP/1.1\r\n" + host + "Connection: close\r\nAuthorization: Bearer " + token + "\r\nContent-Type: application/pkcs10\r\nTransfer-Encoding: chunked\r\n\r\n"
	if got := raw(t, f, head+chunk); status(got) != 200 {
		t.Errorf("chunked EST: %.300q", got)
	}
	big := strings.Repeat("x", 20_000)
	if got := raw(t, f, head+fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(big), big)); status(got) != 413 {
		t.Errorf("a chunked body that is too large: %.300q", got)
	}
	// net-013: HTTP/2 is not there.
	conn, err := tls.Dial("tcp", f.Addr, &tls.Config{RootCAs: f.Roots, ServerName: "localhost", NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	if p := conn.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
		t.Errorf("net-013: %q is spoken", p)
	}
	_ = conn.Close()
}

// To the letter: what EST clients compare octet for octet.
func TestESTForm(t *testing.T) {
	f := servertest.Start(t, servertest.Options{Settings: noLimits()})
	got := raw(t, f, "GET /.well-known/est/cacerts HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(got)), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.Header.Get("Content-Type") != "application/pkcs7-mime; smime-type=certs-only" || resp.Header.Get("Content-Transfer-Encoding") != "base64" || resp.ContentLength != int64(len(body)) {
		t.Errorf("cacerts: %v, %v", resp.Header, err)
	}
	if n := bytes.Count(body, []byte("\n")); n != 1 || body[len(body)-1] != '\n' {
		t.Errorf("base64 has %d newlines, want one at its end", n)
	}
	got = raw(t, f, "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	if !strings.Contains(got, "\r\nWWW-Authenticate: Basic realm=\"imprint\"") || !strings.HasSuffix(got, "\r\n\r\n") || !strings.Contains(got, "Content-Length: 0") {
		t.Errorf("401: %q", got)
	}
}

// POP linking, in both versions of TLS.
func TestChannelBinding(t *testing.T) {
	f := servertest.Start(t, servertest.Options{Settings: noLimits()})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, right := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s %t", tls.VersionName(version), right), func(t *testing.T) {
				id := fmt.Sprintf("dev-%x-%t", version, right)
				token := f.Token(inventory.Token{Devices: devices(id), Profile: "quiet"})
				conn, err := tls.Dial("tcp", f.Addr, &tls.Config{RootCAs: f.Roots, ServerName: "localhost", MinVersion: version, MaxVersion: version})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close() }()
				state := conn.ConnectionState()
				binding := state.TLSUnique
				if version == tls.VersionTLS13 {
					if binding, err = state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); err != nil {
						t.Fatal(err)
					}
				}
				if !right {
					binding = bytes.Repeat([]byte{7}, len(binding))
				}
				body := api.EncodeLine(challengeCSR(t, id, binding))
				_, err = fmt.Fprintf(conn, "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer %s\r\nContent-Type: application/pkcs10\r\nContent-Length: %d\r\n\r\n%s", token, len(body), body)
				if err != nil {
					t.Fatal(err)
				}
				answer, _ := io.ReadAll(conn)
				want := 200
				if !right {
					want = 400
				}
				if status(string(answer)) != want {
					t.Errorf("answer %.300q, want %d", answer, want)
				}
			})
		}
	}
}

func TestServerKeygen(t *testing.T) {
	settings := noLimits()
	settings.Labels = map[string]server.Label{"weak": {Profile: "quiet", ServerKeygen: true}, "strict": {Profile: "quiet"}}
	f := servertest.Start(t, servertest.Options{Settings: settings})
	body := api.EncodeLine(challengeCSR(t, "dev-1", nil))
	post := func(label string, token string) servertest.Answer {
		return f.Do(call{Path: "/.well-known/est" + label, Token: token, Type: api.MediaPKCS10, Body: body})
	}
	token := f.Token(inventory.Token{Devices: devices("dev-1"), Profile: "quiet"})
	if a := post("/serverkeygen", token); a.Status != http.StatusNotImplemented {
		t.Errorf("by default: %d", a.Status)
	}
	if a := post("/strict/serverkeygen", token); a.Status != http.StatusNotImplemented {
		t.Errorf("with a label that does not allow it: %d", a.Status)
	}
	a := post("/weak/serverkeygen", token)
	if a.Status != http.StatusOK || !strings.HasPrefix(a.Header.Get("Content-Type"), "multipart/mixed") ||
		bytes.Index(a.Body, []byte("application/pkcs8")) > bytes.Index(a.Body, []byte("pkcs7-mime")) {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	events, err := f.Events(t.Context(), 1, 0)
	if err != nil || events[len(events)-1].Reason != "the key was made by the server" {
		t.Errorf("the log does not say who made the key: %v", err)
	}
	// A label lets in only its own profile.
	other := f.Token(inventory.Token{Devices: devices("dev-2"), Profile: "default"})
	if a := f.Do(call{Path: "/.well-known/est/strict/simpleenroll", Token: other, Type: api.MediaPKCS10, Body: api.EncodeLine(challengeCSR(t, "dev-2", nil))}); a.Status == http.StatusOK {
		t.Error("a device of another profile came in by a label")
	}
}

func TestLimits(t *testing.T) {
	f := servertest.Start(t, servertest.Options{Settings: server.Settings{Limits: server.Limits{FailureRate: 0.1}}})
	body := enrollBody(t, "dev-1", catest.Key(t, ca.P256), false)
	bad := api.TokenText(make([]byte, 32))
	var last servertest.Answer
	for range 30 {
		if last = f.Do(call{Path: api.PathEnroll, Token: bad, Body: body}); last.Status == http.StatusTooManyRequests {
			break
		}
	}
	want(t, "tok-015: guessing", last, api.CodeRateLimited)
	if last.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	// net-006, net-028: more connections than are taken wait, and are served.
	few := servertest.Start(t, servertest.Options{Settings: server.Settings{Limits: server.Limits{Connections: 2, PeerRate: -1}}})
	done := make(chan error, 20)
	for range cap(done) {
		go func() {
			c := few.Client(nil)
			resp, err := c.Get(few.URL + api.PathTrustBundle)
			if err == nil {
				_ = resp.Body.Close()
			}
			c.CloseIdleConnections()
			done <- err
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// net-002, net-022: what peers leave behind is cleared away.
func TestNothingLeaks(t *testing.T) {
	f := servertest.Start(t, servertest.Options{Settings: noLimits()})
	before := runtime.NumGoroutine()
	request := []byte("POST /v1/enroll HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
	for i := range 400 {
		if i%2 == 0 {
			c, err := net.Dial("tcp", f.Addr)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write([]byte{0x16, 3, 1, 2, 0, 1, 0}[:i%7+1])
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
			continue
		}
		c, err := tls.Dial("tcp", f.Addr, &tls.Config{RootCAs: f.Roots, ServerName: "localhost"})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(request[:i%len(request)+1])
		_ = c.NetConn().(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > before+10 {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, there were %d", runtime.NumGoroutine(), before)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if a := f.Do(call{Path: api.PathTrustBundle}); a.Status != http.StatusOK {
		t.Errorf("afterwards: %d", a.Status)
	}
}

// net-020: a chain that costs much to verify is not verified.
func TestLongChain(t *testing.T) {
	f := servertest.Start(t, servertest.Options{Settings: noLimits()})
	pair := newMaker(t).born(t, nil)
	for range 60 {
		pair.Certificate = append(pair.Certificate, pair.Certificate[0])
	}
	a, err := f.Try(call{Path: api.PathEnroll, Pair: pair, Body: enrollBody(t, "chip-1", catest.Key(t, ca.P256), false)})
	if err == nil {
		want(t, "net-020", a, api.CodeCertUnknown)
	}
}

// Before the listener opens there is a CRL, and one that has lapsed is said so.
func TestReady(t *testing.T) {
	f := servertest.Start(t, servertest.Options{})
	get := func(url string) (int, string) {
		resp, err := http.Get(url) //nolint:noctx // of the test's own server
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, body := get(f.Metrics + path); code != 200 {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if code, _ := get(f.HTTP + "/crl/device-1.crl"); code != 200 {
		t.Errorf("CRL: %d", code)
	}
	if code, _ := get(f.HTTP + "/v1/trust-bundle"); code != 404 {
		t.Errorf("the API without TLS: %d", code)
	}
	_, text := get(f.Metrics + "/metrics")
	for _, name := range []string{`imprint_crl_age_ratio{issuer="device-1"}`, "imprint_requests_total"} {
		if !strings.Contains(text, name) {
			t.Errorf("metrics lack %s", name)
		}
	}
}
