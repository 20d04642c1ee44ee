package azureiot_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/azureiot"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// newEvaluator reads an export the second way.
func newEvaluator(src fs.FS) (proof.Evaluator, error) {
	t, ok := azureiot.Target().(interface {
		Evaluator(src fs.FS) (proof.Evaluator, error)
	})
	if !ok {
		return nil, errors.New("the target has no evaluator")
	}
	return t.Evaluator(src)
}

func prove(t *testing.T, v templates.View, form string, devices []proof.Device) proof.Report {
	t.Helper()
	dir, _ := write(t, v, form)
	e, err := newEvaluator(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := proof.Evaluate("azureiot "+form, e, proof.Questions(devices))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// tooLong says that a topic is more than Event Grid takes from anybody.
func tooLong(q proof.Question) bool { return strings.Count(q.Topic, "/") > 14 || len(q.Topic) > 256 }

func TestProofEventGrid(t *testing.T) {
	f := targettest.ProofFleet(t, start())
	for i := range f.Devices {
		f.Devices[i].Certificate, f.Devices[i].Verifiers = true, nil
	}
	r := prove(t, f, azureiot.EventGrid, append(f.ProofDevices(t), *f.ProofObserver(t)))
	targettest.Report(t, r, func(q proof.Question) bool { return tooLong(q) || strings.HasPrefix(q.Topic, "$") })
}

// The proof sees a topic space that is too wide, and a client of another group.
func TestProofSees(t *testing.T) {
	for file, change := range map[string][2]string{
		azureiot.NamespaceName: {"fleet/${client.authenticationName}/down", "fleet/+/down"},
		azureiot.ClientsName:   {`"profile":"sensor"`, `"profile":"valve"`},
	} {
		f := targettest.ProofFleet(t, start())
		for i := range f.Devices {
			f.Devices[i].Certificate, f.Devices[i].Verifiers = true, nil
		}
		dir, _ := write(t, f, azureiot.EventGrid)
		text := read(t, dir, file)
		if !strings.Contains(text, change[0]) {
			t.Fatalf("%s has no %s", file, change[0])
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(strings.ReplaceAll(text, change[0], change[1])), 0o600); err != nil {
			t.Fatal(err)
		}
		e, err := newEvaluator(os.DirFS(dir))
		if err != nil {
			t.Fatal(err)
		}
		r, err := proof.Evaluate("azureiot", e, proof.Questions(f.ProofDevices(t)))
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Wider) == 0 {
			t.Errorf("%s with %s is not seen to be wider", file, change[1])
		}
	}
}

// A hub takes the one subscription it documents, and topics with something after the
// last slash: less than the policy, and never more.
func TestProofHub(t *testing.T) {
	for _, form := range []string{azureiot.IoTHub, azureiot.DPS} {
		f := hubFleet(t)
		r := prove(t, f, form, f.ProofDevices(t))
		targettest.Report(t, r, func(q proof.Question) bool {
			return q.Verb == proof.Subscribe || strings.HasSuffix(q.Topic, "/messages/events") || strings.HasSuffix(q.Topic, "/messages/devicebound")
		})
		if r.Asked-len(r.Narrower) < 100 {
			t.Errorf("%s: %d decisions as by the policy, want more", form, r.Asked-len(r.Narrower))
		}
	}
}
