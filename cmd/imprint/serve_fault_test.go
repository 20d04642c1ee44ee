package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
)

// until polls.
func (r *running) until(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within 10 s\n%s", what, lastLines(r.log.String()))
		}
	}
}

// A second SIGTERM ends a server that waits for a slow peer, as an interruption and
// not as a fault. The socket is free for the next server.
func TestSecondSignal(t *testing.T) {
	r := serve(t)
	slow, err := net.Dial("tcp", r.http)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Close() }()
	if _, err := fmt.Fprintf(slow, "POST /ocsp HTTP/1.1\r\nHost: x\r\nContent-Type: application/ocsp-request\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	// The handler asks for the body, so the request is under way.
	if _, err := io.ReadFull(slow, make([]byte, len("HTTP/1.1 100 Continue"))); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.until("draining", func() bool { return strings.Contains(r.log.String(), "msg=stopping") })
	if r.cmd.ProcessState != nil {
		t.Fatalf("it did not wait for a request that is under way\n%s", r.log)
	}
	if code := r.stop(syscall.SIGTERM); code != exitInterrupted {
		t.Errorf("exit code %d, want %d\n%s", code, exitInterrupted, r.log)
	}
	r.start()
	if code := r.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("the next server: exit code %d\n%s", code, r.log)
	}
}

// A server that loses its admin socket ends, with what went wrong: one that went on
// could not be told of a revocation.
func TestAdminSocketLost(t *testing.T) {
	gone := errors.New("the socket is gone")
	done, local := make(chan error, 1), make(chan error, 1)
	local <- gone
	stopped := false
	s := &service{log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := s.wait(ctx, waits{done: done, local: local, drain: func() { done <- nil }, stop: func() { stopped = true }})
	if !errors.Is(err, gone) || !stopped {
		t.Errorf("wait = %v, stopped %t", err, stopped)
	}
}

// A disk that fills up under a server: 503 and try again, and when there is room it
// serves on, with all that it has acknowledged.
func TestServeFullDisk(t *testing.T) {
	r := serve(t)
	token := strings.TrimSpace(r.imprint("token", "create", "--role", "station", "--prefix", "d-", "--profile", "default", "--limit", "1000"))
	c := r.client(nil)
	var kept []string
	enroll := func(id string, csr []byte) (int, []byte) {
		code, body, err := r.post(c, api.PathEnroll, token, csr)
		if err != nil {
			t.Fatal(err)
		}
		if code == http.StatusOK {
			kept = append(kept, id)
		}
		return code, body
	}
	if code, body := enroll("d-0", servertest.CSR(t, "d-0", catest.Key(t, ca.P256))); code != http.StatusOK {
		t.Fatalf("before: %d %s", code, body)
	}
	// No file of the process may grow: what a file system without room does to it.
	r.limitFiles(1)
	csr := servertest.CSR(t, "d-1", catest.Key(t, ca.P256))
	code, body := enroll("d-1", csr)
	var p api.Problem
	if err := json.Unmarshal(body, &p); err != nil || code != http.StatusServiceUnavailable || p.Code != api.CodeFull {
		t.Errorf("on a full disk: %d %s", code, body)
	}
	if resp, err := c.Get("https://" + r.https + api.PathTrustBundle); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("reading on a full disk: %v %v", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	r.limitFiles(unix.RLIM_INFINITY)
	r.until("serving again", func() bool { code, _ := enroll("d-1", csr); return code == http.StatusOK })
	list := r.imprint("device", "list")
	for _, id := range kept {
		if !strings.Contains(list, id+" ") {
			t.Errorf("%s is lost\n%s", id, list)
		}
	}
	if code := r.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d\n%s", code, r.log)
	}
	r.imprint("check")
}

// limitFiles bounds the size of the files that the server writes, in bytes.
func (r *running) limitFiles(n uint64) {
	r.t.Helper()
	var have unix.Rlimit
	if err := unix.Prlimit(r.cmd.Process.Pid, unix.RLIMIT_FSIZE, nil, &have); err != nil {
		r.t.Fatal(err)
	}
	if err := unix.Prlimit(r.cmd.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: min(n, have.Max), Max: have.Max}, nil); err != nil {
		r.t.Fatal(err)
	}
}

// What a service manager is told (sd_notify(3)), in its order.
func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	t.Setenv("NOTIFY_SOCKET", path)
	want := func(message string) {
		t.Helper()
		if err := l.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 256)
		n, err := l.Read(b)
		if err != nil || string(b[:n]) != message {
			t.Errorf("told %q (%v), want %q", b[:n], err, message)
		}
	}
	r := serve(t)
	want("READY=1")
	if err := r.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	want("RELOADING=1")
	want("READY=1")
	if code := r.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d", code)
	}
	want("STOPPING=1")
}

// The server's own certificate: kept while it lives, replaced after two thirds of
// its life without a restart, and while it cannot be replaced the one there is stays.
func TestOwnCertificate(t *testing.T) {
	r := newFleet(t)
	var log bytes.Buffer
	now := time.Now()
	a := &app{
		in: strings.NewReader(""), out: io.Discard, err: &log, now: func() time.Time { return now },
		dir: filepath.Join(r.dir, "fleet"), output: outputTable, passphraseFile: filepath.Join(r.dir, "pass"),
	}
	f, err := a.openFleet(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := newService(t.Context(), f, slog.New(slog.NewTextHandler(&log, nil)), serveOptions{serverConfig: serverConfig{Hosts: []string{"localhost"}}})
	if err != nil {
		t.Fatal(err)
	}
	leaf := func() *x509.Certificate {
		t.Helper()
		pair, err := s.server.TLSConfig().GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf
	}
	first := leaf()
	life := first.NotAfter.Sub(first.NotBefore)
	now = first.NotBefore.Add(life*2/3 - time.Hour)
	s.keepOwn(t.Context())
	if !leaf().Equal(first) {
		t.Error("it was replaced before its time")
	}
	key := filepath.Join(a.dir, nodesDir, "imprint-server", nodeKeyFile)
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its key: %v %v", info, err)
	}
	now = first.NotBefore.Add(life*2/3 + time.Hour)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	s.keepOwn(ended)
	if !leaf().Equal(first) || !strings.Contains(log.String(), "own certificate cannot be renewed") {
		t.Errorf("one that cannot be replaced is gone, or nobody is told\n%s", log.String())
	}
	s.keepOwn(t.Context())
	if second := leaf(); second.Equal(first) || second.VerifyHostname("localhost") != nil {
		t.Error("it was not replaced")
	}
}

// A stolen token, from its first use to what it has bought: an operator lets the
// device in, finds the theft, and what was enrolled is revoked for all who ask.
func TestStolenToken(t *testing.T) {
	r := serve(t)
	token := strings.TrimSpace(r.imprint("token", "create", "--role", "station", "--prefix", "s-", "--profile", "default", "--limit", "9", "--approve"))
	c := r.client(nil)
	key := catest.Key(t, ca.P256)
	csr := servertest.CSR(t, "s-1", key)
	ask := func(want int) []byte {
		t.Helper()
		code, body, err := r.post(c, api.PathEnroll, token, csr)
		if err != nil || code != want {
			t.Fatalf("%d %s %v, want %d", code, body, err, want)
		}
		return body
	}
	ask(http.StatusAccepted)
	spki := strings.TrimSpace(lastWord(r.imprint("approval", "list")))
	if !strings.HasPrefix(spki, "spki-sha256:") {
		t.Fatalf("approval list ends in %q", spki)
	}
	r.imprint("approval", "deny", spki)
	ask(http.StatusForbidden)
	r.imprint("approval", "grant", spki)
	chain := ask(http.StatusOK)
	if again := ask(http.StatusOK); !bytes.Equal(again, chain) {
		t.Error("a repeated request gets another certificate")
	}
	leaf, rest := pem.Decode(chain)
	for name, b := range map[string][]byte{"leaf.pem": pem.EncodeToMemory(leaf), "issuer.pem": rest} {
		if err := os.WriteFile(filepath.Join(r.dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.ocsp(); !strings.Contains(got, "leaf.pem: good") {
		t.Errorf("OCSP says\n%s", got)
	}
	var all []struct{ ID string }
	if err := json.Unmarshal([]byte(r.imprint("token", "list", "--output", "json")), &all); err != nil || len(all) != 1 {
		t.Fatalf("token list: %v %v", all, err)
	}
	id := all[0].ID
	var shown struct {
		Uses     int
		Enrolled []string
	}
	if err := json.Unmarshal([]byte(r.imprint("token", "show", id, "--output", "json")), &shown); err != nil {
		t.Fatal(err)
	}
	if shown.Uses != 1 || len(shown.Enrolled) != 1 || shown.Enrolled[0] != "s-1" {
		t.Errorf("token show: %+v", shown)
	}
	if out := r.imprint("token", "revoke", id, "--and-devices"); !strings.Contains(out, "s-1\n1 devices enrolled with it, 0 revoked") {
		t.Errorf("token revoke: %s", out)
	}
	ask(http.StatusUnauthorized)
	pair := tls.Certificate{Certificate: [][]byte{leaf.Bytes}, PrivateKey: key}
	resp, err := r.client(&pair).Get("https://" + r.https + api.PathWhoami)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the device before it is revoked: %v %v", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	r.imprint("token", "revoke", id, "--and-devices", "--yes")
	if got := r.ocsp(); !strings.Contains(got, "leaf.pem: revoked") || !strings.Contains(got, "keyCompromise") {
		t.Errorf("OCSP says\n%s", got)
	}
	if strings.Contains(r.log.String(), token[len(api.TokenPrefix):]) {
		t.Error("the log holds the token")
	}
}

func lastWord(s string) string {
	words := strings.Fields(s)
	return words[len(words)-1]
}

// ocsp is what openssl says of leaf.pem.
func (r *running) ocsp() string {
	r.t.Helper()
	cmd := exec.Command("openssl", "ocsp", "-issuer", "issuer.pem", "-cert", "leaf.pem", "-CAfile", r.root(), "-url", "http://"+r.http+"/ocsp")
	cmd.Dir = r.dir
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Response verify OK") {
		r.t.Fatalf("openssl ocsp: %v\n%s", err, out)
	}
	return string(out)
}
