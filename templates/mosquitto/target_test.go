package mosquitto_test

import (
	"flag"
	"path/filepath"
	"testing"

	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/mosquitto"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTarget(t *testing.T) {
	for _, version := range []string{mosquitto.V20, mosquitto.V21} {
		for _, form := range []string{mosquitto.Auto, mosquitto.Expanded, mosquitto.Dynsec} {
			name := version + "-" + form
			t.Run(name, func(t *testing.T) {
				c := targettest.Case{
					Name: name, Target: mosquitto.Target{PluginDir: "/usr/lib/plugins"},
					Options: templates.Options{Version: version, Form: form},
					Golden:  filepath.Join("testdata", "golden", name), Update: *update,
				}
				if form == mosquitto.Dynsec {
					c.Large = 10_000 // more is warned of
				}
				targettest.Run(t, c)
			})
		}
	}
}
