//go:build unix

package mosquitto_test

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"
)

// chownMosquitto gives a directory to the user that Mosquitto drops to, if we
// can; the package makes that user.
func chownMosquitto(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	u, err := user.Lookup("mosquitto")
	if err != nil {
		t.Fatalf("%v: apt-get install mosquitto", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		t.Fatal(err)
	}
	// The testing package makes directories for ourselves alone.
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
}
