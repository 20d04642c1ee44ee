package remote_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/remote"
)

// childSocket names the socket that TestChild works with, and childTask what it does
// there.
const (
	childSocket = "REMOTE_TEST_SOCKET"
	childTask   = "REMOTE_TEST_TASK"
)

// TestChild is the other process of the tests below.
func TestChild(t *testing.T) {
	path := os.Getenv(childSocket)
	if path == "" {
		return // a program for other tests, no test
	}
	s, err := remote.Dial(context.Background(), path)
	if err != nil {
		_, _ = fmt.Fprintf(os.Stdout, "permission %t: %v\n", errors.Is(err, fs.ErrPermission), err)
		return
	}
	_, _ = fmt.Fprintln(os.Stdout, "connected")
	if os.Getenv(childTask) != "read" {
		return
	}
	err = s.Read(context.Background(), func(r inventory.Reader) error {
		for _, err := range r.Devices(inventory.Query{}) {
			if err != nil {
				return err
			}
			_, _ = fmt.Fprintln(os.Stdout, "reading")
			_, err := io.Copy(io.Discard, os.Stdin) // until it is killed
			return err
		}
		return nil
	})
	_, _ = fmt.Fprintln(os.Stdout, "read:", err)
}

// child starts TestChild.
func child(t *testing.T, path, task string, as *syscall.Credential) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	c := exec.Command("/proc/self/exe", "-test.run", "^TestChild$") // another user may not find it by its name
	c.Dir = "/"
	c.Env = append(os.Environ(), childSocket+"="+path, childTask+"="+task)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close() })
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewScanner(out)
}

// A process of another user is not heard, even if it gets as far as the socket.
func TestOtherUser(t *testing.T) {
	for _, tt := range []struct {
		uid, self int
		want      bool
	}{{1000, 1000, true}, {0, 1000, true}, {0, 0, true}, {1001, 1000, false}, {65534, 0, false}} {
		if got := remote.Heard(tt.uid, tt.self); got != tt.want {
			t.Errorf("user %d, by a server of %d: %t", tt.uid, tt.self, got)
		}
	}
	f := &fake{}
	_, path, _ := serveFake(t, f, time.Minute)
	before := f.reads.Load()
	c, lines := child(t, path, "", nil)
	if !lines.Scan() || lines.Text() != "connected" || c.Wait() != nil {
		t.Errorf("the server's own user: %q", lines.Text())
	}
	if f.reads.Load() == before {
		t.Error("the server has not heard its own user")
	}
	if os.Getuid() != 0 {
		return // nobody else may become another user
	}
	for _, tt := range []struct {
		name, want string
		mode       os.FileMode // of the socket
	}{
		{"kept out by the mode", "permission true: reaching the server: dial unix", 0o600},
		{"refused by the server", "permission true: reaching the server: it hears its own user and root only", 0o666},
	} {
		dir := filepath.Dir(path)
		for d := dir; d != os.TempDir(); d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		before := f.reads.Load()
		c, lines := child(t, path, "", &syscall.Credential{Uid: 65534, Gid: 65534})
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), tt.want) || c.Wait() != nil {
			t.Errorf("%s: %q, want %q", tt.name, lines.Text(), tt.want)
		}
		if f.reads.Load() != before {
			t.Errorf("%s: the store was read", tt.name)
		}
	}
}

// A client that is killed in the middle of a reading holds nothing any more.
func TestKilledClient(t *testing.T) {
	f := &fake{devices: 10_000}
	_, path, _ := serveFake(t, f, time.Hour)
	c, lines := child(t, path, "read", nil)
	for _, want := range []string{"connected", "reading"} {
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("the child said %q, want %q", lines.Text(), want)
		}
	}
	if n := f.reading.Load(); n != 1 {
		t.Fatalf("%d readings under way, want 1", n)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of the reading", func() bool { return f.reading.Load() == 0 })
	_ = c.Wait() // it was killed
}

// What a dead process has left is told from a server that is there.
func TestNoServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	if _, err := remote.Dial(t.Context(), path); !errors.Is(err, remote.ErrNoServer) {
		t.Errorf("where nothing is: %v", err)
	}
	leaveSocket(t, path)
	if _, err := remote.Dial(t.Context(), path); !errors.Is(err, remote.ErrNoServer) {
		t.Errorf("where a dead process was: %v", err)
	}
	for _, text := range []string{"imprint store 2\n", "imprint store 10\n", "HTTP/1.1 400 Bad"} {
		_, err := remote.Dial(t.Context(), scripted(t, text))
		if err == nil || errors.Is(err, remote.ErrNoServer) || !strings.Contains(err.Error(), "two versions of imprint") {
			t.Errorf("a server that says %q: %v", text, err)
		}
	}
}

// leaveSocket leaves a socket as a killed process does.
func leaveSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s.sock")
	l, err := remote.Listen(path)
	if err != nil {
		t.Fatalf("with a path longer than that of a socket: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := remote.Listen(path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("over the socket of a live process: %v", err)
	}
	stale := filepath.Join(t.TempDir(), "stale")
	leaveSocket(t, stale)
	leaveSocket(t, stale+".new") // killed while it was listening
	again, err := remote.Listen(stale)
	if err != nil {
		t.Fatalf("over the socket of a dead process: %v", err)
	}
	if err := errors.Join(again.Close(), l.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	for _, path := range []string{path, stale, stale + ".new"} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Listen(file); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}
