// Package brokertest runs brokers that come from a package registry, in tests of
// targets. What scripts/lib/brokers/NAME.sh installs is in a directory of its own.
package brokertest

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

// patience is how long a broker may take to listen, or to do something else that a
// test waits for.
const patience = 60 * time.Second

// Home is where a broker has been installed. A broker that is not there fails the
// test: nothing is proven without it.
func Home(tb testing.TB, name string) string {
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
	if _, err := os.Stat(dir); err != nil {
		tb.Fatalf("%s is not installed: . scripts/lib/brokers/%s.sh && install_%s", name, name, name)
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

// A Process is a broker that runs until the test ends.
type Process struct {
	cmd  *exec.Cmd
	log  *Log
	done chan struct{}
}

// Start runs a broker and waits until it accepts connections at all addresses.
func Start(tb testing.TB, cmd *exec.Cmd, addresses ...string) *Process {
	tb.Helper()
	p := &Process{cmd: cmd, log: &Log{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("starting %s: %v", cmd.Path, err)
	}
	go func() {
		_ = cmd.Wait() // that it has ended is all one wants to know
		close(p.done)
	}()
	tb.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // nothing is to be kept
		<-p.done
		if tb.Failed() {
			tb.Logf("%s said:\n%s", cmd.Path, p.log)
		}
	})
	for _, a := range addresses {
		p.Wait(tb, "connection at "+a, func() bool {
			c, err := net.DialTimeout("tcp", a, time.Second)
			if err != nil {
				return false
			}
			return c.Close() == nil
		})
	}
	return p
}

// Signal sends a signal to the broker.
func (p *Process) Signal(tb testing.TB, s syscall.Signal) {
	tb.Helper()
	if err := syscall.Kill(p.cmd.Process.Pid, s); err != nil {
		tb.Fatal(err)
	}
}

// Says reports whether the broker has written a text since it started.
func (p *Process) Says(text string) bool { return strings.Contains(p.log.String(), text) }

// Count returns how often the broker has written a text since it started.
func (p *Process) Count(text string) int { return strings.Count(p.log.String(), text) }

// Wait waits until something is so, and fails the test if the broker ends first or it
// takes too long.
func (p *Process) Wait(tb testing.TB, what string, so func() bool) {
	tb.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !so(); <-tick.C {
		select {
		case <-p.done:
			tb.Fatalf("no %s: the broker has ended\n%s", what, p.log)
		default:
		}
		if time.Now().After(end) {
			tb.Fatalf("no %s after %v\n%s", what, patience, p.log)
		}
	}
}

// A Log is written by a process and read by a test. The zero value is empty.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements [io.Writer].
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String is everything that was written.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
