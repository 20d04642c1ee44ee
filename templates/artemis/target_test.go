package artemis_test

import (
	"flag"
	"path/filepath"
	"testing"

	"github.com/imprint-iot/imprint/templates/artemis"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTarget(t *testing.T) {
	targettest.Run(t, targettest.Case{
		Name: "files", Target: artemis.Lenient(), Golden: filepath.Join("testdata", "golden"), Update: *update, Volatile: []string{artemis.BrokerName},
	})
}
