package boltstore_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
)

// crashDir names the directory in which TestCrashChild works. A second word in it
// says what to do besides.
const crashDir = "BOLTSTORE_TEST_CRASH"

// TestCrashChild is the other process of the tests below: it enrols devices from
// eight goroutines until it is killed, revokes every fourth, and says so after
// each.
func TestCrashChild(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		return // a program for other tests, no test
	}
	s := open(t, config(t, dir))
	run := os.Getpid()
	_, _ = fmt.Fprintln(os.Stdout, "ready")
	if os.Getenv(crashDir+"_WAIT") != "" {
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("c-%d-%d-%d", run, w, i)
				c := enrol(t, id)
				c.TokenUses = []inventory.TokenUse{{Token: inventory.Hash{1}}}
				if err := s.Apply(t.Context(), c); err != nil {
					t.Error(err)
					return
				}
				_, _ = fmt.Fprintln(os.Stdout, "ack enrolled", id)
				if i%4 == 3 {
					end(t, s, id, inventory.Revoked, inventory.KeyCompromise)
					_, _ = fmt.Fprintln(os.Stdout, "ack revoked", id)
				}
			}
		})
	}
	wg.Wait()
}

// crashChild starts TestCrashChild in dir and waits until its store is open.
func crashChild(t *testing.T, dir string, env ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	c := exec.Command(os.Args[0], "-test.run", "^TestCrashChild$")
	c.Env = append(append(os.Environ(), crashDir+"="+dir), env...)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if len(env) > 0 {
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = in.Close() })
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("the child said %q: %v", lines.Text(), lines.Err())
	}
	return c, lines
}

// TestKill kills a writing process 30 times at a random moment (iss-001,
// aud-004). Every change that was acknowledged is there, whole, and nothing is
// damaged.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	s := fleet(t, dir)
	apply(t, s, inventory.Change{Event: event("token.make"), Tokens: []inventory.Token{token(1, 1<<30)}})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(9, 10))
	acked := map[string]inventory.DeviceState{}
	acks := 0
	for range 30 {
		c, lines := crashChild(t, dir)
		timer := time.AfterFunc(time.Duration(random.IntN(60))*time.Millisecond, func() { _ = c.Process.Kill() })
		for lines.Scan() {
			words := strings.Fields(lines.Text())
			if len(words) != 3 || words[0] != "ack" {
				continue // torn by the kill
			}
			acks++
			switch words[1] {
			case "enrolled":
				acked[words[2]] = max(acked[words[2]], inventory.Active)
			case "revoked":
				acked[words[2]] = inventory.Revoked
			}
		}
		_ = c.Wait() // it was killed
		timer.Stop()

		s := open(t, config(t, dir))
		clean(t, s)
		err := s.Read(t.Context(), func(r inventory.Reader) error {
			for id, state := range acked {
				d, err := r.Device(inventory.DeviceID(id))
				if err != nil || d.State < state {
					t.Errorf("device %s was %s, and is %v, %v", id, state, d.State, err)
				}
				creds, err := collect(r.Credentials(inventory.CredentialQuery{Device: d.ID}))
				if err != nil || len(creds) != 1 || string(creds[0].Certificate.DER) != string(certificate(t, id, 1).Certificate.DER) {
					t.Errorf("device %s has not the certificate that was acknowledged: %v", id, err)
				}
			}
			// The token was used for each device that is there, and is good: a crash
			// ends none.
			bought := 0
			for d, err := range r.Devices(inventory.Query{}) {
				if err != nil {
					return err
				}
				if strings.HasPrefix(string(d.ID), "c-") {
					bought++
				}
			}
			x, err := r.Token(inventory.Hash{1})
			if err != nil || int(x.Uses) != bought || !x.RevokedAt.IsZero() {
				t.Errorf("%d devices, token %+v, %v", bought, x, err)
			}
			_, _, err = inventory.VerifyChain(r.Events(0))
			return err
		})
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d acknowledged changes", acks)
	if acks < 100 {
		t.Errorf("only %d changes were made in 30 runs", acks)
	}
}

// TestFullDisk is sto-001: a store on a file system of 3 MiB that fills up. What
// was acknowledged stays, reads go on, and once there is room so do changes.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 { // mounting needs root: be it in a user namespace of its own
		c := exec.Command(os.Args[0], "-test.run", "^TestFullDisk$")
		c.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("as root of a user namespace: %v\n%s", err, out)
		}
		return
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=3m,mode=0700"); err != nil {
		t.Fatalf("mounting tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cfg := config(t, dir)
	cfg.Create = true
	s, err := boltstore.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; ; n++ {
		err := s.Apply(t.Context(), enrol(t, fmt.Sprintf("dev-%d", n)))
		if err == nil {
			continue
		}
		if !errors.Is(err, inventory.ErrFull) {
			t.Fatalf("on a full disk: %v", err)
		}
		break
	}
	for range 20 { // it may fit once more where pages were freed
		switch err := s.Apply(t.Context(), enrol(t, fmt.Sprintf("dev-%d", n))); {
		case err == nil:
			n++
		case !errors.Is(err, inventory.ErrFull):
			t.Errorf("again on a full disk: %v", err)
		}
	}
	if r := clean(t, s); r.Devices != uint64(n) {
		t.Errorf("%d devices while the disk is full, %d were acknowledged", r.Devices, n)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	apply(t, s, enrol(t, fmt.Sprintf("dev-%d", n)))
	end(t, s, "dev-0", inventory.Revoked, inventory.KeyCompromise)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Create = false
	s, err = boltstore.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if r := clean(t, s); r.Devices != uint64(n)+1 || n < 50 {
		t.Errorf("%d devices, want %d", r.Devices, n+1)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
