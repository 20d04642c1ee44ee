package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/imprint-iot/imprint/templates/doctor"
	"github.com/imprint-iot/imprint/templates/mosquitto/mosquittotest"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// A real broker, seen by a stranger: open, and closed as far as a listener with a
// password can be.
func TestDoctorOnRealBroker(t *testing.T) {
	dir := t.TempDir()
	pki := targettest.NewPKI(t, time.Now())
	node := pki.Node(t)
	file := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	root := file("root.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pki.Root.Certificate.Raw}))
	ports := mosquittotest.Ports(t, 3)
	mosquittotest.Start(t, "per_listener_settings true",
		fmt.Sprintf("listener %d 127.0.0.1", ports[0]), "allow_anonymous true",
		fmt.Sprintf("listener %d 127.0.0.1", ports[1]), "allow_anonymous false",
		"certfile "+file("chain.pem", node.ServerChain), "keyfile "+file("key.pem", node.ServerKey.Reveal()))
	open, closed := fmt.Sprintf("127.0.0.1:%d", ports[0]), fmt.Sprintf("localhost:%d", ports[1])
	smtp := answering(t, "220 smtp.example ESMTP\r\n")
	for _, tt := range []struct {
		name  string
		args  []string
		code  int
		rules []string
	}{
		{"open", []string{open}, exitFound, []string{"MQ002", "MQ025", "MQ901", "MQ904"}},
		{"open, and it is to be", []string{open, "--fail-on", "never"}, exitOK, []string{"MQ002", "MQ025", "MQ901", "MQ904"}},
		{"closed", []string{closed, "--trust", root}, exitOK, []string{"MQ010"}},
		{"closed, without certificates", []string{closed, "--trust", root, "--fail-on", "warning"}, exitFound, []string{"MQ010"}},
		{"closed, with roots of others", []string{closed}, exitFound, []string{"MQ010", "MQ902"}},
		{"closed, under another name", []string{closed, "--trust", root, "--server-name", "broker.example"}, exitFound, []string{"MQ010", "MQ903"}},
		{"no broker at all", []string{smtp}, exitUnavailable, []string{}},
		{"nobody", []string{fmt.Sprintf("127.0.0.1:%d", ports[2])}, exitUnavailable, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			args := append([]string{"doctor", "--output", "json", "--timeout", "10s"}, tt.args...)
			if code := run(args, strings.NewReader(""), &out, &errOut); code != tt.code {
				t.Errorf("exit code %d, want %d\n%s%s", code, tt.code, out.Bytes(), errOut.Bytes())
			}
			if tt.rules == nil {
				if out.Len() > 0 {
					t.Errorf("a report on nobody: %s", out.Bytes())
				}
				return
			}
			var r doctor.Report
			if err := json.Unmarshal(out.Bytes(), &r); err != nil {
				t.Fatalf("%v: %s", err, out.Bytes())
			}
			if got := rulesOf(r); !slices.Equal(got, tt.rules) || r.Subject != tt.args[0] || r.Kind != doctor.KindEndpoint {
				t.Errorf("%s, %s: found %v, want %v", r.Subject, r.Kind, got, tt.rules)
			}
		})
	}
}

// rulesOf are the rules that do not hold, by the first part of their IDs.
func rulesOf(r doctor.Report) []string {
	ids := []string{}
	for _, f := range r.Findings {
		id, _, _ := strings.Cut(f.Rule, "-")
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// answering says the same to whoever connects, until the test ends.
func answering(t *testing.T, text string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // the test has ended
			}
			_, _ = io.WriteString(c, text)
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

// An audit that was interrupted is no audit, whatever it has found by then.
func TestDoctorInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		c, err := l.Accept()
		cancel() // in the midst of it: the connection is made, and nothing is said
		if err == nil {
			_ = c.Close()
		}
	}()
	a := &app{out: io.Discard, err: io.Discard, now: time.Now}
	_, err = a.auditEndpoint(ctx, l.Addr().String(), doctorOptions{timeout: time.Second})
	if !errors.Is(err, context.Canceled) || exitCode(err) != exitInterrupted {
		t.Errorf("%v, exit code %d", err, exitCode(err))
	}
}

// TestReportFitsTheTerminal: no line is wider than 80 columns unless it is one word,
// and what a broker's files say does not reach the terminal as it is.
func TestReportFitsTheTerminal(t *testing.T) {
	r := doctor.Report{Subject: strings.Repeat("directory/", 10) + "mosquitto.conf", Kind: doctor.KindMosquitto, Checked: []string{"a\x1b[2Jb"}}
	for _, rule := range doctor.Rules() {
		for line := range 2 {
			r.Findings = append(r.Findings, doctor.Finding{
				Rule: rule.ID, Severity: rule.Severity, Title: rule.Title, Why: rule.Why, Fix: rule.Fix,
				Detail: "user \"\x1b[31mdev-ä\" may do what is not meant for a device of this kind or of another", File: "acl", Line: line,
			})
		}
	}
	var b strings.Builder
	writeReport(&b, r)
	for line := range strings.Lines(b.String()) {
		line = strings.TrimSuffix(line, "\n")
		if n := utf8.RuneCountInString(line); n > 80 && len(strings.Fields(line)) > 1 || strings.TrimRight(line, " ") != line {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	if strings.Contains(b.String(), "\x1b") {
		t.Error("an escape sequence is written to the terminal")
	}
	for _, rule := range doctor.Rules() {
		if n := strings.Count(b.String(), strings.ToUpper(string(rule.Severity))+" "+rule.ID+"\n"); n != 1 {
			t.Errorf("%s has %d headings", rule.ID, n)
		}
	}
}

// TestDoctorPage: the page has each rule, with its severity and title, and no other.
func TestDoctorPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "| `MQ") {
			have = append(have, strings.TrimSpace(line))
		}
	}
	var want []string
	for _, r := range doctor.Rules() {
		want = append(want, fmt.Sprintf("| `%s` | %s | %s |", r.ID, r.Severity, r.Title))
	}
	for _, row := range want {
		if !slices.Contains(have, row) {
			t.Errorf("docs/doctor.md lacks the row\n%s", row)
		}
	}
	for _, row := range have {
		if !slices.Contains(want, row) {
			t.Errorf("docs/doctor.md has a row of no rule\n%s", row)
		}
	}
	if !slices.Equal(have, want) {
		t.Error("the rows of docs/doctor.md are not in the order of the rules")
	}
}
