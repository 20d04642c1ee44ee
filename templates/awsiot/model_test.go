package awsiot_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/imprint-iot/imprint/templates/targettest"
)

// A second opinion on what is written: the model of the API that botocore has. It is
// asked about every call that a registration is, and every command of the README.
func TestModel(t *testing.T) {
	f := certificates(targettest.Small(t, targettestStart()))
	for i := range f.Devices {
		f.Devices[i].Leafs = [][]byte{f.PKI.Client(t, string(f.Devices[i].ID)).Leaf.Raw}
		f.Devices[i].HardwareSerial = "SN:1@x"
	}
	model(t, write(t, f, f))
}

// model runs testdata/model.py on an export.
func model(t *testing.T, dir string) {
	t.Helper()
	base := os.Getenv("IMPRINT_BROKERS")
	if base == "" {
		cache, err := os.UserHomeDir()
		if err != nil {
			t.Fatal(err)
		}
		base = filepath.Join(cache, ".cache", "imprint-brokers")
	}
	python := filepath.Join(base, "awsiot", "bin", "python")
	if _, err := os.Stat(python); err != nil {
		t.Fatalf("%v: run . scripts/lib/brokers/awsiot.sh && install_awsiot (Debian package python3-venv)", err)
	}
	out, err := exec.CommandContext(t.Context(), python, filepath.Join("testdata", "model.py"), dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("model: %s", out)
}
