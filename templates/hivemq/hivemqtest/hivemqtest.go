// Package hivemqtest runs a real HiveMQ Community Edition in tests, with a reader of
// credentials.xml in place of the File RBAC extension, which cannot be had from a Maven
// repository: see testdata. Permissions are matched by the broker.
package hivemqtest

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long the broker may take to start.
const patience = 120 * time.Second

// Home is where scripts/lib/brokers/NAME.sh has put a broker.
func home(tb testing.TB, name string) string {
	tb.Helper()
	dir := os.Getenv("IMPRINT_BROKERS") //nolint:forbidigo // where the scripts have put it
	if dir == "" {
		user, err := os.UserHomeDir()
		if err != nil {
			tb.Fatal(err)
		}
		dir = filepath.Join(user, ".cache", "imprint-brokers")
	}
	dir = filepath.Join(dir, name)
	if _, err := os.Stat(filepath.Join(dir, "lib")); err != nil {
		tb.Fatalf("HiveMQ is not installed: . scripts/lib/brokers/hivemq.sh && install_hivemq (needs the packages default-jdk-headless and maven)")
	}
	return dir
}

// Ports returns n TCP ports of 127.0.0.1 that are free now.
func Ports(tb testing.TB, n int) []uint16 {
	tb.Helper()
	ports := make([]uint16, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		defer func() { _ = l.Close() }() // all of them at the end, so that they differ
		ports[i] = uint16(l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// Start runs HiveMQ with the files of an export until the test ends, and waits until
// it serves.
func Start(tb testing.TB, files string) {
	tb.Helper()
	log := &logBuffer{}
	cmd := exec.Command("java", "-Xmx512m", "-XX:+UseSerialGC",
		"--add-opens", "java.base/java.lang=ALL-UNNAMED", "--add-opens", "java.base/java.nio=ALL-UNNAMED", "--add-opens", "java.base/sun.nio.ch=ALL-UNNAMED",
		"-cp", filepath.Join(home(tb, "hivemq"), "lib", "*"), "imprint.Broker", files, tb.TempDir())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("starting HiveMQ (package default-jre-headless): %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tb.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // nothing is to be kept
		<-done
		if tb.Failed() {
			tb.Logf("the broker said:\n%s", log)
		}
	})
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); ; <-tick.C {
		if strings.Contains(log.String(), "imprint: the broker serves") {
			return
		}
		select {
		case err := <-done:
			done <- err
			tb.Fatalf("HiveMQ has ended: %v\n%s", err, log)
		default:
		}
		if time.Now().After(end) {
			tb.Fatalf("HiveMQ does not get there\n%s", log)
		}
	}
}

// A logBuffer is written by the process and read by the test.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
