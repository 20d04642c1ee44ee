// Package rabbitmqtest runs a real RabbitMQ in tests.
package rabbitmqtest

import (
	"bytes"
	"fmt"
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

// patience is how long the broker may take to start or to end: it boots an Erlang
// system.
const patience = 90 * time.Second

// A Broker is a RabbitMQ that runs until the test ends.
type Broker struct {
	Dir string // its own directory: database and logs

	tb   testing.TB
	cmd  *exec.Cmd
	env  []string
	log  *logBuffer
	done chan struct{} // closed when the process has ended
	err  error         // how it ended; read after done
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

// Start runs RabbitMQ with the files of an export, and waits until it serves.
func Start(tb testing.TB, files string) *Broker {
	tb.Helper()
	dir, err := os.MkdirTemp("", "rabbitmq")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) }) // in the directory for temporary files in any case
	ports := Ports(tb, 2)
	b := &Broker{Dir: dir, tb: tb, log: &logBuffer{}}
	b.env = append(os.Environ(), //nolint:forbidigo // the broker's program needs a PATH
		"HOME="+dir, "RABBITMQ_MNESIA_BASE="+filepath.Join(dir, "mnesia"), "RABBITMQ_LOG_BASE="+filepath.Join(dir, "log"),
		"RABBITMQ_NODENAME="+filepath.Base(dir)+"@localhost", fmt.Sprintf("RABBITMQ_DIST_PORT=%d", ports[0]), fmt.Sprintf("ERL_EPMD_PORT=%d", ports[1]), "ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_CONFIG_FILE="+filepath.Join(files, "rabbitmq"), "RABBITMQ_ADVANCED_CONFIG_FILE="+filepath.Join(files, "advanced.config"),
		"RABBITMQ_ENABLED_PLUGINS_FILE="+filepath.Join(files, "enabled_plugins"), "RABBITMQ_PID_FILE="+filepath.Join(dir, "pid"))
	b.run()
	return b
}

func (b *Broker) run() {
	b.tb.Helper()
	const program = "/usr/lib/rabbitmq/bin/rabbitmq-server"
	if _, err := os.Stat(program); err != nil {
		b.tb.Fatal("RabbitMQ is not installed: apt-get install rabbitmq-server")
	}
	b.cmd = exec.Command(program)
	b.cmd.Env, b.cmd.Stdout, b.cmd.Stderr = b.env, b.log, b.log
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := b.cmd.Start(); err != nil {
		b.tb.Fatal(err)
	}
	b.done = make(chan struct{})
	go func() {
		b.err = b.cmd.Wait()
		close(b.done)
	}()
	b.tb.Cleanup(b.Stop)
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if strings.Contains(b.Log(), "completed with") { // its plugins are running, and the definitions loaded
			return
		}
		select {
		case <-b.done:
			b.tb.Fatalf("rabbitmq has ended: %v\n%s", b.err, b.log)
		default:
		}
		if time.Now().After(end) {
			b.tb.Fatalf("rabbitmq does not get there\n%s", b.log)
		}
	}
}

// Log is what the broker has written to its output so far.
func (b *Broker) Log() string { return b.log.String() }

// Stop ends the broker and waits until it has.
func (b *Broker) Stop() {
	select {
	case <-b.done:
		return
	default:
	}
	_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL) // the shell around it, and the Erlang system: nothing is to be kept
	<-b.done
	kill := exec.Command("epmd", "-kill")
	kill.Env = b.env
	_ = kill.Run() // it may have ended with the last node
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
