package doctor_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/templates/doctor"
	"github.com/imprint-iot/imprint/templates/mosquitto/mosquittotest"
)

// TestFilesAgreeWithTheBroker: what is said about a configuration is what the real
// broker does with it, seen from outside. Who may come in without a name, and
// without a certificate, is asked of every combination of the options about it.
func TestFilesAgreeWithTheBroker(t *testing.T) {
	_, tlsLines := serverFiles(t)
	passwd := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(passwd, []byte("admin:"+mosquittoHash(t, "admin")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	required := []string{"require_certificate true", "cafile " + strings.TrimPrefix(tlsLines[0], "certfile ")}
	for _, global := range [][]string{nil, {"allow_anonymous true"}, {"allow_anonymous false"}} {
		for _, passwords := range [][]string{nil, {"password_file " + passwd}} {
			for _, transport := range [][]string{nil, tlsLines, slices.Concat(tlsLines, required)} {
				for _, split := range []bool{false, true} {
					addr := freeAddr(t)
					security := slices.Concat(global, passwords)
					lines := slices.Concat(security, []string{listener(addr)}, transport)
					if split {
						lines = slices.Concat([]string{"per_listener_settings true", listener(addr)}, security, transport)
					}
					agree(t, addr, lines)
				}
			}
		}
	}
}

func agree(t *testing.T, addr string, lines []string) {
	t.Helper()
	b := mosquittotest.Start(t, lines...)
	defer b.Stop()
	files, err := doctor.Files(os.DirFS("/"), strings.TrimPrefix(b.Dir, "/")+"/mosquitto.conf", doctor.FileOptions{Root: "/"})
	if err != nil {
		t.Fatal(err)
	}
	live, err := doctor.Endpoint(t.Context(), addr, doctor.EndpointOptions{})
	if err != nil {
		t.Fatal(err)
	}
	says := func(r doctor.Report, rule string) bool { return slices.Contains(found(r), rule) }
	secured := slices.Contains(lines, "require_certificate true")
	if !secured && says(files, "MQ002") != says(live, "MQ002") {
		t.Errorf("anonymous: %v from the files, %v from outside\n%s", says(files, "MQ002"), says(live, "MQ002"), strings.Join(lines, "\n"))
	}
	if says(files, "MQ010") != says(live, "MQ010") {
		t.Errorf("no certificate: %v from the files, %v from outside\n%s\n%s", says(files, "MQ010"), says(live, "MQ010"), strings.Join(lines, "\n"), dump(live))
	}
	users := strings.Contains(strings.Join(lines, "\n"), "password_file")
	if !secured && users && (!says(files, "MQ025") || !says(live, "MQ025")) {
		t.Errorf("admin/admin: %v from the files, %v from outside\n%s", says(files, "MQ025"), says(live, "MQ025"), strings.Join(lines, "\n"))
	}
}
