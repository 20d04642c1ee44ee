package foreign

import (
	"crypto/pbkdf2"
	"crypto/sha512"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// A file that mosquitto_passwd has written is read, and the password opens it.
func TestMosquittoPasswd(t *testing.T) {
	tool, err := exec.LookPath("mosquitto_passwd")
	if err != nil {
		t.Fatal("mosquitto_passwd is not there: apt-get install mosquitto")
	}
	dir := t.TempDir()
	for _, args := range [][]string{{"-b", "-c", "passwd", "dev-1", "correct horse"}, {"-b", "passwd", "dev-2", "other"}} {
		cmd := exec.CommandContext(t.Context(), tool, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("mosquitto_passwd: %v\n%s", err, out)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	p, err := Read(t.Context(), root.FS(), "", Options{Profile: "default"})
	if err != nil {
		t.Fatal(err)
	}
	d := device(t, p, "dev-1")
	if len(p.Devices) != 2 || len(d.Verifiers) != 1 || len(d.Problems) > 0 {
		t.Fatalf("plan of %s:\n%s", filepath.Join(dir, "passwd"), report(p))
	}
	v := d.Verifiers[0]
	key, err := pbkdf2.Key(sha512.New, "correct horse", v.Salt, int(v.Iterations), sha512.Size)
	if err != nil || !slices.Equal(key, v.Hash) {
		t.Errorf("the password does not open the verifier: %v", err)
	}
}
