package aedes_test

import (
	"flag"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates/aedes"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTarget(t *testing.T) {
	targettest.Run(t, targettest.Case{
		Name: "module", Target: aedes.Target(), Golden: filepath.Join("testdata", "golden"), Update: *update,
		Volatile: []string{aedes.ModuleName, aedes.ServerName}, // they are in this directory as they are
	})
}

func TestRule(t *testing.T) {
	for filter, exact := range map[string]bool{
		"#": true, "+/a/+": true, "a/#": true,
		strings.Repeat("a/", 99) + "b":  true,
		strings.Repeat("a/", 100) + "b": false,
	} {
		err := aedes.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: []topic.Rule{{Action: topic.Receive, Filter: filter, Shared: true}}}})
		if (err == nil) != exact {
			t.Errorf("%.20s...: %v, want exact %v", filter, err, exact)
		}
	}
}
