package hivemq_test

import (
	"flag"
	"path/filepath"
	"testing"

	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/hivemq"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTarget(t *testing.T) {
	for _, form := range []string{hivemq.FileRBAC, hivemq.ESESQL} {
		t.Run(form, func(t *testing.T) {
			targettest.Run(t, targettest.Case{
				Name: form, Target: hivemq.Lenient(), Options: templates.Options{Form: form},
				Golden: filepath.Join("testdata", "golden", form), Update: *update,
				Volatile: []string{hivemq.KeystoreName, hivemq.TruststoreName, hivemq.ConfName, hivemq.CredentialsName},
			})
		})
	}
}
