package rabbitmq_test

import (
	"flag"
	"path/filepath"
	"testing"

	"github.com/imprint-iot/imprint/templates/rabbitmq"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTarget(t *testing.T) {
	targettest.Run(t, targettest.Case{
		Name: "definitions", Target: rabbitmq.Target{}, Golden: filepath.Join("testdata", "golden"), Update: *update, Large: 50_000,
	})
}
