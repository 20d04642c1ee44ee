package main

import (
	"archive/tar"
	"bytes"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/imprint-iot/imprint/inventory"
)

var (
	kills    = flag.Int("kills", 12, "how often TestKill kills bootstrap in each form")
	killRows = flag.Int("kill-rows", 600, "devices in TestKill/directory; TestKill/archive has twenty times as many")
)

// A sandbox is a directory with a fleet, a passphrase, a list and the program.
type sandbox struct {
	t       *testing.T
	dir     string
	program string
}

func newSandbox(t *testing.T, rows int) *sandbox {
	t.Helper()
	s := &sandbox{t: t, dir: t.TempDir()}
	s.program = filepath.Join(s.dir, "imprint")
	if out, err := exec.Command("go", "build", "-o", s.program, ".").CombinedOutput(); err != nil {
		t.Fatalf("building imprint: %v\n%s", err, out)
	}
	if err := copyTree(template, s.path("fleet")); err != nil {
		t.Fatal(err)
	}
	s.write("pass", passphrase+"\n")
	var b strings.Builder
	b.WriteString("id,serial\n")
	for i := range rows {
		_, _ = fmt.Fprintf(&b, "dev-%05d,SN-%d\n", i, i)
	}
	s.write("devices.csv", b.String())
	return s
}

func (s *sandbox) path(name string) string { return filepath.Join(s.dir, name) }

func (s *sandbox) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// command prepares imprint, run by a shell after the given words.
func (s *sandbox) command(before string, args ...string) *exec.Cmd {
	c := exec.Command("sh", append([]string{"-c", before + ` exec "$0" --passphrase-file pass "$@"`, s.program}, args...)...)
	c.Dir = s.dir
	return c
}

// run returns the exit code and what was written.
func (s *sandbox) run(before string, args ...string) (int, string) {
	s.t.Helper()
	out, err := s.command(before, args...).CombinedOutput()
	if err == nil {
		return 0, string(out)
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		s.t.Fatal(err)
	}
	return exit.ExitCode(), string(out)
}

func (s *sandbox) must(args ...string) string {
	s.t.Helper()
	code, out := s.run("", args...)
	if code != 0 {
		s.t.Fatalf("imprint %v: exit code %d\n%s", args, code, out)
	}
	return out
}

// certificates reads the inventory: the certificates of each device, in DER.
func (s *sandbox) certificates() map[string][][]byte {
	s.t.Helper()
	a := &app{in: strings.NewReader(""), out: io.Discard, err: io.Discard, now: time.Now, dir: s.path("fleet")}
	f, err := a.openFleet(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	have := map[string][][]byte{}
	err = f.store.Read(s.t.Context(), func(in inventory.Reader) error {
		for c, err := range in.Credentials(inventory.CredentialQuery{All: true}) {
			if err != nil {
				return err
			}
			if c.Kind == inventory.CertificateCredential {
				have[string(c.Device)] = append(have[string(c.Device)], c.Certificate.DER)
			}
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return have
}

// released returns the leaf in each bundle that somebody could see.
func (s *sandbox) released() map[string][]byte {
	s.t.Helper()
	leaves := map[string][]byte{}
	entries, err := os.ReadDir(s.path("bundles"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue // the spool, encrypted
		}
		chain, err := os.ReadFile(filepath.Join(s.path("bundles"), e.Name(), "chain.pem"))
		if err != nil {
			s.t.Fatalf("a bundle is there in part: %v", err)
		}
		leaves[e.Name()] = leafOf(s.t, chain)
	}
	return leaves
}

func leafOf(t *testing.T, chain []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(chain)
	if block == nil {
		t.Fatalf("no certificate in %q", chain)
	}
	return block.Bytes
}

// recorded checks I1: what anyone can have seen is in the inventory, byte for
// byte.
func (s *sandbox) recorded(leaves map[string][]byte) {
	s.t.Helper()
	have := s.certificates()
	for id, der := range leaves {
		if len(have[id]) != 1 || !bytes.Equal(have[id][0], der) {
			s.t.Fatalf("%s: the certificate in its bundle is not the one in the inventory, which has %d", id, len(have[id]))
		}
	}
}

// complete checks the end of a job: everybody has one certificate and one bundle.
func (s *sandbox) complete(rows int, leaves map[string][]byte) {
	s.t.Helper()
	s.recorded(leaves)
	if len(leaves) != rows {
		s.t.Errorf("%d bundles, want %d", len(leaves), rows)
	}
	if have := s.certificates(); len(have) != rows+1 { // and the broker
		s.t.Errorf("%d have certificates, want %d", len(have), rows+1)
	}
	s.must("check")
	s.must("audit", "verify")
}

// killed runs bootstrap and kills it after a while, unless it ends before. The while
// begins with the process, or with its first write to the inventory.
func (s *sandbox) killed(working bool, after time.Duration, args ...string) {
	s.t.Helper()
	c := s.command("", args...)
	before := s.written()
	if err := c.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.Wait() // killed, or done
	}()
	for done := false; working && !done && s.written().Equal(before); {
		select {
		case <-ended:
			done = true
		case <-time.After(time.Millisecond):
		}
	}
	select {
	case <-ended:
	case <-time.After(after):
		_ = c.Process.Kill()
		<-ended
	}
}

// written is when the inventory was last written to.
func (s *sandbox) written() time.Time {
	s.t.Helper()
	info, err := os.Stat(s.path("fleet/inventory.db"))
	if err != nil {
		s.t.Fatal(err)
	}
	return info.ModTime()
}

// TestKill kills bootstrap again and again, at moments that nobody chose: whatever
// was seen by then is in the inventory, and in the end every device has one
// certificate and its bundle.
func TestKill(t *testing.T) {
	t.Run("directory", func(t *testing.T) {
		s := newSandbox(t, *killRows)
		args := []string{"bootstrap", "devices.csv", "--out", "bundles"}
		s.killLoop(args, func() { s.recorded(s.released()) })
		s.must(args...)
		s.complete(*killRows, s.released())
		if _, err := os.Stat(s.path("bundles/.imprint-spool")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the spool is still there: %v", err)
		}
	})
	t.Run("archive", func(t *testing.T) {
		rows := 20 * *killRows // without files of their own they are made faster
		s := newSandbox(t, rows)
		id, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"bootstrap", "devices.csv", "--out", "all.tar.age", "--recipient", id.Recipient().String()}
		s.killLoop(args, func() {})
		s.must(args...)
		s.complete(rows, unpackArchive(t, s.path("all.tar.age"), id))
	})
}

// killLoop kills the job at random moments: now of all its life, now of its work.
func (s *sandbox) killLoop(args []string, check func()) {
	random := rand.New(rand.NewPCG(1, uint64(len(args))))
	var seen []int
	for i := range *kills {
		s.killed(i%3 > 0, time.Duration(random.IntN(200))*time.Millisecond, args...)
		check()
		seen = append(seen, len(s.certificates())-1) // not the broker
	}
	s.t.Logf("%d kills, when so many devices had their certificate: %v", *kills, seen)
}

// unpackArchive returns the leaf of each device in an archive, and compares links
// with what they lead to.
func unpackArchive(t *testing.T, path string, id age.Identity) map[string][]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	plain, err := age.Decrypt(f, id)
	if err != nil {
		t.Fatal(err)
	}
	leaves := map[string][]byte{}
	files := map[string]bool{}
	for in := tar.NewReader(plain); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name] {
			t.Errorf("%s is twice in the archive", h.Name)
		}
		files[h.Name] = true
		if h.Typeflag == tar.TypeLink && !files[h.Linkname] {
			t.Errorf("%s is a link to %s, which does not come before it", h.Name, h.Linkname)
		}
		device, name, _ := strings.Cut(h.Name, "/")
		if name != "chain.pem" {
			continue
		}
		chain, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		leaves[device] = leafOf(t, chain)
	}
	for device := range leaves {
		for _, name := range []string{"key.pem", "trust.pem", "password", "device.json"} {
			if !files[device+"/"+name] {
				t.Fatalf("%s/%s is not in the archive", device, name)
			}
		}
	}
	return leaves
}

// TestInterrupt is Ctrl-C: exit code 130, and the next run goes on.
func TestInterrupt(t *testing.T) {
	const rows = 700
	s := newSandbox(t, rows)
	args := []string{"bootstrap", "devices.csv", "--out", "bundles"}
	c := s.command("", args...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		entries, err := os.ReadDir(s.path("bundles"))
		return err == nil && len(entries) > 1
	})
	for _, name := range []string{"cmdline", "environ"} { // proc(5): what others can see, and what is handed down
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", c.Process.Pid, name))
		if err != nil {
			t.Fatal(err)
		}
		if len(b) == 0 || bytes.Contains(b, []byte(passphrase)) {
			t.Errorf("%s: %d bytes; the passphrase must not be among them", name, len(b))
		}
	}
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); c.ProcessState.ExitCode() != exitInterrupted {
		t.Errorf("exit code %d (%v), want %d", c.ProcessState.ExitCode(), err, exitInterrupted)
	}
	s.recorded(s.released())
	s.must(args...)
	s.complete(rows, s.released())
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen within 30 s")
		}
		time.Sleep(time.Millisecond) // between two looks
	}
}

// TestFullDisk lets no file grow beyond what the inventory has now: a full disk.
// Nothing is lost, and when there is room the same command goes on.
func TestFullDisk(t *testing.T) {
	const rows = 9000
	s := newSandbox(t, rows)
	info, err := os.Stat(s.path("fleet/inventory.db"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"bootstrap", "devices.csv", "--out", "all.tar.age", "--recipient", id.Recipient().String()}
	blocks := strconv.FormatInt(info.Size()/512+16, 10)
	code, out := s.run("ulimit -f "+blocks+";", args...)
	if code != exitIO || !strings.Contains(out, "disk full") {
		t.Fatalf("exit code %d, want %d; it says\n%s", code, exitIO, out)
	}
	s.must("check")
	s.must(args...)
	s.complete(rows, unpackArchive(t, s.path("all.tar.age"), id))
}

// TestUmask: whatever the umask, secrets are for their owner, and everything can be
// read by them.
func TestUmask(t *testing.T) {
	for _, umask := range []string{"000", "777"} {
		t.Run(umask, func(t *testing.T) {
			s := newSandbox(t, 3) // which has no part in it but the list and the passphrase
			for _, args := range [][]string{
				{"--fleet", "new", "init", "--name", "acme", "--host", "h"},
				{"--fleet", "new", "bootstrap", "devices.csv", "--out", "bundles"},
				{"--fleet", "new", "export", "mosquitto", "--out", "mq"},
				{"--fleet", "new", "backup", "b.age"},
			} {
				if code, out := s.run("umask "+umask+";", args...); code != 0 {
					t.Fatalf("imprint %v: exit code %d\n%s", args, code, out)
				}
			}
			for _, root := range []string{"new", "bundles", "mq", "b.age"} {
				err := filepath.WalkDir(s.path(root), func(path string, d fs.DirEntry, err error) error {
					if err != nil {
						return err
					}
					info, err := d.Info()
					if err != nil {
						return err
					}
					mode := info.Mode().Perm()
					public := strings.HasSuffix(path, ".pem") || strings.HasSuffix(path, ".crl") || strings.HasSuffix(path, ".json") || strings.HasSuffix(path, ".md") || strings.HasSuffix(path, ".sig")
					switch {
					case d.IsDir() && mode != 0o700,
						!d.IsDir() && mode&0o600 != 0o600,
						!d.IsDir() && mode&0o022 != 0,
						!d.IsDir() && mode&0o004 != 0 && (!public || strings.HasSuffix(path, "key.pem")):
						t.Errorf("%s: mode %o", path, mode)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
}
