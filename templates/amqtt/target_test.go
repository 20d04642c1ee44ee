package amqtt_test

import (
	"flag"
	"path/filepath"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/amqtt"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTarget(t *testing.T) {
	targettest.Run(t, targettest.Case{
		Name: "plugin", Target: amqtt.Target(), Golden: filepath.Join("testdata", "golden"), Update: *update,
		Volatile: []string{amqtt.PluginName}, // it is in this directory as it is
	})
}

func TestRule(t *testing.T) {
	for _, tt := range []struct {
		action topic.Action
		filter string
		exact  bool
	}{
		{topic.Publish, "#", true},
		{topic.Publish, "+/a/+", true},
		{topic.Publish, "$x/a", false},
		{topic.Receive, "$x/a", true},
	} {
		err := amqtt.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: []topic.Rule{{Action: tt.action, Filter: tt.filter, Shared: true}}}})
		if (err == nil) != tt.exact {
			t.Errorf("%s %s: %v, want exact %v", tt.action, tt.filter, err, tt.exact)
		}
	}
}

func TestIPv6(t *testing.T) {
	f := targettest.ProofFleet(t, now())
	f.Broker.Bind = "::1"
	if err := export(t, t.TempDir(), f, templates.Options{}); err == nil {
		t.Error("an address that aMQTT cannot listen at is exported")
	}
}
