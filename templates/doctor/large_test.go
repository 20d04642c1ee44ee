package doctor_test

import (
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/doctor"
	"github.com/imprint-iot/imprint/templates/mosquitto"
	"github.com/imprint-iot/imprint/templates/rabbitmq"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// TestLarge audits what 20,000 devices need: the time grows with the size of the
// files, about 25 µs a device, and not with its square, which would take minutes.
func TestLarge(t *testing.T) {
	const devices, limit = 20_000, 30 * time.Second
	for _, tt := range []struct {
		name   string
		target templates.Target
	}{{"mosquitto", mosquitto.Target{}}, {"rabbitmq", rabbitmq.Target{}}} {
		t.Run(tt.name, func(t *testing.T) {
			fleet := targettest.NewSynthetic(t, devices, topic.Rule{Action: topic.Receive, Filter: "fleet/{id}/down"},
				topic.Rule{Action: topic.Publish, Filter: "fleet/{id}/up"})
			d, err := durable.OpenDir(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = d.Close() }() // of a test
			if _, err := tt.target.Write(d, fleet, templates.Options{}); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			r, err := doctor.Files(d.FS(), ".", doctor.FileOptions{})
			if err != nil {
				t.Fatal(err)
			}
			took := time.Since(start)
			t.Logf("%d devices in %v, %d findings", devices, took, len(r.Findings))
			if took > limit || r.Worst() == doctor.Error {
				t.Errorf("took %v\n%s", took, dump(r))
			}
		})
	}
}
