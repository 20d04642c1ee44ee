// Package mosquittotest runs a real Mosquitto, and real clients, in tests.
package mosquittotest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long anything here may take before a test fails.
const patience = 20 * time.Second

// A Broker is a Mosquitto that runs until the test ends.
type Broker struct {
	Dir string // its own directory: configuration and socket

	tb   testing.TB
	cmd  *exec.Cmd
	log  *logBuffer
	sock string
	done chan struct{} // closed when the process has ended
	err  error         // how it ended; read after done
}

// Start runs Mosquitto with a configuration made of the lines of conf, and waits
// until it serves. What is not about the test is added: it logs everything to
// its log, keeps the user it is started as, and has one more listener, a socket
// that nobody can log in to and that [Broker.Reload] needs.
//
// To run an export, give "include_dir DIR" as conf.
func Start(tb testing.TB, conf ...string) *Broker {
	tb.Helper()
	b := New(tb, conf...)
	if err := b.Run(); err != nil {
		tb.Fatalf("starting mosquitto: %v\n%s", err, b.Log())
	}
	return b
}

// New prepares what [Start] starts.
func New(tb testing.TB, conf ...string) *Broker {
	tb.Helper()
	// Not tb.TempDir: the path of a socket has at most 107 bytes.
	dir, err := os.MkdirTemp("", "mosquitto")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) }) // in the directory for temporary files in any case
	u, err := user.Current()
	if err != nil {
		tb.Fatal(err)
	}
	b := &Broker{Dir: dir, tb: tb, log: &logBuffer{}, sock: filepath.Join(dir, "sync.sock")}
	lines := append([]string{"user " + u.Username, "log_dest stderr", "log_type all", "persistence false"}, conf...)
	lines = append(lines, "listener 0 "+b.sock, "")
	if err := os.WriteFile(filepath.Join(dir, "mosquitto.conf"), []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		tb.Fatal(err)
	}
	return b
}

// Run starts the broker and waits until it serves, or returns why it does not.
// It may be called again after [Broker.Stop].
func (b *Broker) Run() error {
	b.tb.Helper()
	return b.run(filepath.Join(b.Dir, "mosquitto.conf"))
}

// RunFile is Run with a configuration file as it is; Reload then only waits for
// the log.
func (b *Broker) RunFile(conf string) error {
	b.tb.Helper()
	b.sock = ""
	return b.run(conf, "-v")
}

func (b *Broker) run(conf string, args ...string) error {
	b.tb.Helper()
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto" // Debian's place, not in everybody's PATH
		if _, err := os.Stat(path); err != nil {
			b.tb.Fatal("mosquitto is not installed: apt-get install mosquitto")
		}
	}
	b.cmd = exec.Command(path, append([]string{"-c", conf}, args...)...)
	b.cmd.Stderr, b.cmd.Stdout = b.log, b.log
	before := len(b.Log())
	if err := b.cmd.Start(); err != nil {
		return err
	}
	cmd, done := b.cmd, make(chan struct{})
	b.done = done
	go func() {
		b.err = cmd.Wait()
		close(done)
	}()
	b.tb.Cleanup(b.Stop)
	return b.wait(func(log string) bool {
		return strings.Contains(log[before:], " running") && (b.sock == "" || b.pingOnce() == nil)
	})
}

// wait polls until the log is as wanted; that the broker ends, or patience does,
// is an error.
func (b *Broker) wait(ok func(log string) bool) error {
	b.tb.Helper()
	for end := time.Now().Add(patience); ; {
		if ok(b.Log()) {
			return nil
		}
		select {
		case <-b.done:
			return fmt.Errorf("mosquitto has ended: %w", errors.Join(b.err, errors.New("see its log")))
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(end) {
			return errors.New("mosquitto does not get there")
		}
	}
}

// WaitLog waits until the log contains text.
func (b *Broker) WaitLog(text string) {
	b.tb.Helper()
	if err := b.wait(func(log string) bool { return strings.Contains(log, text) }); err != nil {
		b.tb.Fatalf("waiting for %q: %v\n%s", text, err, b.Log())
	}
}

// Log returns what the broker has logged so far.
func (b *Broker) Log() string { return b.log.String() }

// Reload sends SIGHUP and waits until all of it has been done: the broker has
// one thread, so once it answers on its socket again it has.
func (b *Broker) Reload() {
	b.tb.Helper()
	const said = "Reloading config."
	n := strings.Count(b.Log(), said)
	if err := b.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		b.tb.Fatal(err)
	}
	err := b.wait(func(log string) bool {
		return strings.Count(log, said) > n && (b.sock == "" || b.pingOnce() == nil)
	})
	if err != nil {
		b.tb.Fatalf("reloading: %v\n%s", err, b.Log())
	}
}

// pingOnce connects without a name and reads the refusal.
func (b *Broker) pingOnce() error {
	c, err := net.DialTimeout("unix", b.sock, patience)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // nothing is left to be said
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	// CONNECT, MQTT 3.1.1, clean session, client identifier "p".
	if _, err := c.Write([]byte("\x10\x0d\x00\x04MQTT\x04\x02\x00\x0a\x00\x01p")); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 4))
	return err
}

// Stop ends the broker and waits until it has.
func (b *Broker) Stop() {
	select {
	case <-b.done:
		return
	default:
	}
	_ = b.cmd.Process.Signal(syscall.SIGTERM) // it may have ended just now
	select {
	case <-b.done:
	case <-time.After(patience):
		_ = b.cmd.Process.Kill()
		<-b.done
	}
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
