package rabbitmq_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/rabbitmq"
	"github.com/imprint-iot/imprint/templates/rabbitmq/rabbitmqtest"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// RabbitMQ decides as the policy. What it does otherwise is in the README of the
// export: a dot is a slash there, and an empty level at the end is none.
func TestProof(t *testing.T) {
	f := targettest.ProofFleet(t, time.Now())
	ports := rabbitmqtest.Ports(t, 3)
	n := &f.Broker
	n.Bind, n.CertificatePort, n.PasswordPort = "127.0.0.1", ports[0], ports[1]
	dir, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	if _, err := (rabbitmq.Target{}).Write(dir, f, templates.Options{}); err != nil {
		t.Fatal(err)
	}
	rabbitmqtest.Start(t, dir.Path())
	devices := f.ProofDevices(t)
	r, err := (&proof.Broker{
		Target: "rabbitmq", Certificates: fmt.Sprintf("127.0.0.1:%d", ports[0]), Passwords: fmt.Sprintf("127.0.0.1:%d", ports[1]),
		Roots: f.PKI.Roots(), Observer: f.ProofObserver(t), Patience: 15 * time.Second,
		Skip: func(q proof.Question) string {
			if strings.Contains(q.Topic, ".") {
				return "a dot is a slash there"
			}
			return ""
		},
	}).Ask(t.Context(), devices, proof.Questions(devices))
	if err != nil {
		t.Fatal(err)
	}
	targettest.Report(t, r, nil)
}
