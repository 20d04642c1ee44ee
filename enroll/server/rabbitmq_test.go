package server_test

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/rabbitmq"
	"github.com/imprint-iot/imprint/templates/rabbitmq/rabbitmqtest"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// A real RabbitMQ that asks decides as the policy, and does not let a device in that
// is revoked.
func TestRabbitMQAsks(t *testing.T) {
	h := newHooked(t, servertest.Options{})
	policy := topic.Policy{Rules: []topic.Rule{{Action: topic.Publish, Filter: "d/{id}/up"}, {Action: topic.Receive, Filter: "d/{id}/down"}}}
	devices := []proof.Device{
		{Subject: topic.Subject{ID: "dev-1"}, Policy: policy, Password: []byte(h.password)},
		{Subject: topic.Subject{ID: "dev-3"}, Policy: policy, Certificate: h.Enroll("dev-3")},
		{Subject: topic.Subject{ID: "dev-10"}, Policy: policy, Password: []byte(password(t, h.Fleet, "dev-10"))},
	}
	f := targettest.NewFleet(t, time.Now())
	f.Trust, f.Lists = nil, nil
	ders, err := h.CACertificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.Trust = ca.CertificatePEM(ders...)
	crl, err := h.PublishCRL(t.Context(), "test", "device-1", nil, true)
	if err != nil {
		t.Fatal(err)
	}
	f.Lists = []templates.CRL{{Issuer: "device-1", DER: crl.DER, Number: crl.Number, ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}}
	ports := rabbitmqtest.Ports(t, 3)
	n := &f.Broker
	n.Bind, n.CertificatePort, n.PasswordPort = "127.0.0.1", ports[0], ports[1]
	const adminPassword = "admin password of the test"
	n.Admin = &templates.Admin{Socket: fmt.Sprintf("http://127.0.0.1:%d", ports[2]), Verifiers: targettest.Verifiers(t, templates.AdminName, adminPassword)}
	dir, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	_, err = rabbitmq.Target{}.Write(dir, f, templates.Options{Form: rabbitmq.HTTP, Service: templates.Service{URL: h.HTTP, Token: inventory.NewSecret([]byte(h.token))}})
	if err != nil {
		t.Fatal(err)
	}
	b := rabbitmqtest.Start(t, dir.Path())
	broker := &proof.Broker{
		Target: "rabbitmq http", Certificates: fmt.Sprintf("127.0.0.1:%d", ports[0]), Passwords: fmt.Sprintf("127.0.0.1:%d", ports[1]), Roots: f.PKI.Roots(),
		Observer: &proof.Device{Subject: topic.Subject{ID: templates.AdminName}, Password: []byte(adminPassword)}, Patience: 15 * time.Second,
		Skip: func(q proof.Question) string {
			if strings.Contains(q.Topic, ".") {
				return "a dot is a slash there"
			}
			return ""
		},
	}
	r, err := broker.Ask(t.Context(), devices, proof.Questions(devices))
	if err != nil {
		t.Fatalf("%v\n%s", err, b.Log())
	}
	targettest.Report(t, r, nil)
	if _, err := h.Revoke(t.Context(), "test", "", inventory.KeyCompromise, "dev-1"); err != nil {
		t.Fatal(err)
	}
	_, err = broker.Ask(t.Context(), devices[:1], nil)
	if _, ok := errors.AsType[*proof.RefusedError](err); !ok {
		t.Errorf("after its revocation dev-1 connects: %v", err)
	}
}

// password enrolls a device and returns its password.
func password(t *testing.T, f *servertest.Fleet, id string) string {
	t.Helper()
	a := f.Do(call{Path: api.PathEnroll, Token: f.Token(inventory.Token{Profile: "default"}), Body: enrollBody(t, id, catest.Key(t, ca.P256), true), Accept: api.MediaJSON})
	var got api.EnrollResponse
	if err := json.Unmarshal(a.Body, &got); err != nil || a.Status != http.StatusOK || got.Password == "" {
		t.Fatalf("enrolling %s: %d %s, %v", id, a.Status, a.Body, err)
	}
	if b, _ := pem.Decode([]byte(got.Certificate)); b == nil {
		t.Fatal("no certificate")
	}
	return got.Password
}
