package templates_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/mosquitto"
	"github.com/imprint-iot/imprint/templates/targettest"
)

func write(t *testing.T, dir string, v templates.View, o templates.Options) (templates.Summary, error) {
	t.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	return mosquitto.Target{}.Write(d, v, o)
}

func mustWrite(t *testing.T, dir string, v templates.View, o templates.Options) templates.Summary {
	t.Helper()
	sum, err := write(t, dir, v, o)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestShrink(t *testing.T) {
	for _, tt := range []struct {
		before, after int
		refused       bool
	}{
		{0, 0, false}, {0, 5, false}, {1, 0, true}, {10, 10, false}, {10, 5, false}, {10, 4, true}, {11, 6, false}, {11, 5, true}, {10, 0, true},
	} {
		for _, manifest := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d to %d, manifest %t", tt.before, tt.after, manifest), func(t *testing.T) {
				dir := t.TempDir()
				v := targettest.NewSynthetic(t, tt.before)
				mustWrite(t, dir, v, templates.Options{})
				if !manifest {
					if err := os.Remove(filepath.Join(dir, templates.ManifestName)); err != nil {
						t.Fatal(err)
					}
				}
				old := read(t, dir, mosquitto.PasswordName)
				v.N = tt.after
				_, err := write(t, dir, v, templates.Options{})
				if got := errors.Is(err, templates.ErrShrink); got != tt.refused || err != nil && !got {
					t.Fatalf("Write = %v, want refused = %t", err, tt.refused)
				}
				if !tt.refused {
					return
				}
				if text := err.Error(); !strings.Contains(text, fmt.Sprint(tt.before)) || !strings.Contains(text, fmt.Sprint(tt.after)) {
					t.Errorf("%q does not say the numbers", text)
				}
				if read(t, dir, mosquitto.PasswordName) != old {
					t.Error("a refused export has changed a file")
				}
				mustWrite(t, dir, v, templates.Options{AllowShrink: true})
			})
		}
	}
}

// Files that cannot be read as an export say nothing about how many devices
// would be lost.
func TestShrinkUnreadable(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, mosquitto.ACLName), []byte("topic\tread #"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := write(t, dir, targettest.Small(t, time.Now()), templates.Options{}); !errors.Is(err, templates.ErrShrink) {
		t.Errorf("Write = %v, want %v", err, templates.ErrShrink)
	}
}

func TestStaleCRL(t *testing.T) {
	now := time.Now()
	dir, f := t.TempDir(), targettest.Small(t, now)
	for _, tt := range []struct {
		next     time.Duration
		warnings int
		err      error
	}{
		{-time.Second, 0, templates.ErrStale}, {0, 0, templates.ErrStale}, {time.Hour, 1, nil}, {49 * time.Hour, 0, nil},
	} {
		f.Lists = []templates.CRL{f.PKI.CRL(t, now.Add(-48*time.Hour), now.Add(tt.next))}
		sum, err := write(t, dir, f, templates.Options{Now: now})
		if !errors.Is(err, tt.err) || len(sum.Warnings) != tt.warnings {
			t.Errorf("nextUpdate in %s: Write = %v, warnings %q", tt.next, err, sum.Warnings)
		}
	}
}

// openssl reads the signature of the manifest; nobody else's key verifies it,
// and no file and no manifest can be changed under it.
func TestManifestSignature(t *testing.T) {
	dir, f := t.TempDir(), targettest.Small(t, time.Now())
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o := templates.Options{Signer: key, SignerName: "export.pem"}
	mustWrite(t, dir, f, o)
	src := os.DirFS(dir)
	if m, err := templates.Verify(src, &key.PublicKey); err != nil || m.SignedBy != "export.pem" {
		t.Fatalf("Verify = %+v, %v", m, err)
	}
	if _, err := templates.Verify(src, &other.PublicKey); !errors.Is(err, templates.ErrManifest) {
		t.Errorf("Verify with another key = %v", err)
	}
	opensslVerify(t, dir, &key.PublicKey)

	sig := read(t, dir, templates.SignatureName)
	mustWrite(t, dir, f, o)
	if read(t, dir, templates.SignatureName) != sig {
		t.Error("the same export is signed again")
	}
	for _, name := range []string{mosquitto.ACLName, mosquitto.KeyName, templates.ManifestName, templates.SignatureName} {
		whole := read(t, dir, name)
		for _, change := range []func() error{
			func() error { return os.WriteFile(filepath.Join(dir, name), []byte(whole+"\n#"), 0o600) },
			func() error { return os.Remove(filepath.Join(dir, name)) },
		} {
			if err := change(); err != nil {
				t.Fatal(err)
			}
			if _, err := templates.Verify(src, &key.PublicKey); !errors.Is(err, templates.ErrManifest) && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s changed: Verify = %v", name, err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(whole), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustWrite(t, dir, f, templates.Options{})
	if _, err := templates.VerifyManifest(src, &key.PublicKey); !errors.Is(err, templates.ErrManifest) {
		t.Errorf("an export without a signature: VerifyManifest = %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, templates.SignatureName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old signature: %v", err)
	}
}

func opensslVerify(t *testing.T, dir string, pub *ecdsa.PublicKey) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is not installed: apt-get install openssl")
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := base64.StdEncoding.DecodeString(strings.TrimSpace(read(t, dir, templates.SignatureName)))
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	pubFile, sigFile := filepath.Join(tmp, "pub.pem"), filepath.Join(tmp, "sig")
	if err := errors.Join(os.WriteFile(pubFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600), os.WriteFile(sigFile, sig, 0o600)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("openssl", "dgst", "-sha256", "-verify", pubFile, "-signature", sigFile, filepath.Join(dir, templates.ManifestName)).CombinedOutput()
	if err != nil {
		t.Errorf("openssl: %v: %s", err, out)
	}
}

func TestSecondExportWaitsForNobody(t *testing.T) {
	dir := t.TempDir()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	lock, err := d.Lock(".imprint.lock")
	if err != nil {
		t.Fatal(err)
	}
	_, err = write(t, dir, targettest.Small(t, time.Now()), templates.Options{})
	if _, ok := errors.AsType[*durable.InUseError](err); !ok {
		t.Errorf("Write = %v, want an InUseError", err)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
}

const childEnv = "TEMPLATES_TEST_EXPORT_DIR"

// TestKillChild is the other half of TestKilled: it exports two fleets in turn
// until it is killed.
func TestKillChild(t *testing.T) {
	dir := os.Getenv(childEnv)
	if dir == "" {
		return // only has work to do as a child
	}
	v := targettest.NewSynthetic(t, 3000)
	for {
		for _, n := range []int{3000, 2000} {
			v.N = n
			mustWrite(t, dir, v, templates.Options{AllowShrink: true})
			_, _ = os.Stdout.WriteString("exported\n")
		}
	}
}

// brk-019, sto-026: killed at any moment, an export leaves each file whole, the
// old or the new one, and the next export goes on.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	for i := range 12 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKillChild$")
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 1)
		if _, err := out.Read(first); err != nil || first[0] != 'e' { // it has exported once
			t.Fatalf("the child says %q, %v", first, err)
		}
		<-time.After(time.Duration(i*3) * time.Millisecond) // another moment each time
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		v, err := mosquitto.Target{}.Parse(os.DirFS(dir))
		if err != nil {
			t.Fatalf("after kill %d: %v", i, err)
		}
		n := 0
		for _, err := range v.Entries() {
			if err != nil {
				t.Fatalf("after kill %d: %v", i, err)
			}
			n++
		}
		if n != 2000 && n != 3000 {
			t.Errorf("after kill %d: %d devices", i, n)
		}
	}
	mustWrite(t, dir, targettest.NewSynthetic(t, 3000), templates.Options{})
	if _, err := templates.Verify(os.DirFS(dir), nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".imprint-new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a killed export left is there: %v", err)
	}
}
