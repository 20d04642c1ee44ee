package azureiot_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/imprint-iot/imprint/templates/azureiot"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// A second opinion on what is written: the classes of Azure's SDKs. They have none for
// DPS that could be had.
func TestModel(t *testing.T) {
	f := targettest.ProofFleet(t, start())
	for i := range f.Devices {
		f.Devices[i].Certificate, f.Devices[i].Verifiers = true, nil
	}
	dir, _ := write(t, f, azureiot.EventGrid)
	model(t, dir)
	dir, _ = write(t, hubFleet(t), azureiot.IoTHub)
	model(t, dir)
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
	python := filepath.Join(base, "azureiot", "bin", "python")
	if _, err := os.Stat(python); err != nil {
		t.Fatalf("%v: run . scripts/lib/brokers/azureiot.sh && install_azureiot (Debian package python3-venv)", err)
	}
	out, err := exec.CommandContext(t.Context(), python, filepath.Join("testdata", "model.py"), dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("model: %s", out)
}
