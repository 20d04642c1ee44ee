package mosquitto_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/mosquitto"
	"github.com/imprint-iot/imprint/templates/mosquitto/mosquittotest"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// Mosquitto decides as the policy, in each form that can have an observer, and for
// both versions of MQTT. The form for everybody is in [TestBrokerDecidesAsPolicy].
func TestProof(t *testing.T) {
	for _, form := range []string{mosquitto.Auto, mosquitto.Expanded, mosquitto.Dynsec} {
		for _, version := range []int{4, 5} {
			t.Run(fmt.Sprintf("%s, MQTT %d", form, version), func(t *testing.T) {
				f := targettest.ProofFleet(t, time.Now())
				ports := mosquittotest.Ports(t, 2)
				n := &f.Broker
				n.Bind, n.CertificatePort, n.PasswordPort = "127.0.0.1", ports[0], ports[1]
				dir := openDir(t, t.TempDir())
				if _, err := (mosquitto.Target{}).Write(dir, f, templates.Options{Form: form}); err != nil {
					t.Fatal(err)
				}
				b := mosquittotest.New(t, "set_tcp_nodelay true", "include_dir "+dir.Path()) // the test is quicker
				if err := b.Run(); err != nil {
					t.Fatalf("%v\n%s", err, b.Log())
				}
				devices := f.ProofDevices(t)
				r, err := (&proof.Broker{
					Target: fmt.Sprintf("mosquitto %s, MQTT %d", form, version), Certificates: fmt.Sprintf("127.0.0.1:%d", ports[0]), Passwords: fmt.Sprintf("127.0.0.1:%d", ports[1]),
					Roots: f.PKI.Roots(), Version: version, Observer: f.ProofObserver(t), BindsClientID: true,
					Skip: func(q proof.Question) string {
						if q.Verb == proof.Subscribe && form != mosquitto.Dynsec {
							return "every SUBSCRIBE is granted, and what may not be received is not delivered"
						}
						return ""
					},
				}).Ask(t.Context(), devices, proof.Questions(devices))
				if err != nil {
					t.Fatalf("%v\n%s", err, b.Log())
				}
				targettest.Report(t, r, nil)
			})
		}
	}
}
