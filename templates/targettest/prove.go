package targettest

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/proof"
)

// ObserverID is the device of a [ProofFleet] that may do everything.
const ObserverID = "observer-1"

type entry = templates.Entry

// proofPasswords are those of the devices of a [ProofFleet] that have one.
func proofPasswords() map[string]string {
	return map[string]string{"dev-1": "correct horse", "Dev-2": "battery staple", ObserverID: "observe everything"}
}

// ProofRules are the rules that a [ProofFleet] has, unless a target cannot express
// them.
func ProofRules() []topic.Rule {
	return []topic.Rule{
		{Action: topic.Publish, Filter: "fleet/{id}/up/#"},
		{Action: topic.Receive, Filter: "fleet/{id}/down"},
		{Action: topic.Receive, Filter: "fleet/{id}/cmd/#"},
		{Action: topic.Publish, Filter: "fleet/{id}/state"},
		{Action: topic.Receive, Filter: "fleet/{id}/state"},
		{Action: topic.Receive, Filter: "news/all", Shared: true},
		{Action: topic.Receive, Filter: "groups/{group}/cmd/+", Shared: true},
		{Action: topic.Publish, Filter: "groups/{group}/+/alarm", Shared: true},
		{Action: topic.Receive, Filter: "groups/{group}/+/alarm", Shared: true},
	}
}

// ProofFleet is a fleet to ask a broker about: devices whose names begin alike, of
// two profiles and groups, by password (dev-1, Dev-2) and by certificate (dev-10,
// dev-3), and an observer that has both and may do everything. Without rules it has
// those of [ProofRules]; the second profile is without the last of them.
func ProofFleet(tb testing.TB, now time.Time, rules ...topic.Rule) *Memory {
	tb.Helper()
	f := NewFleet(tb, now)
	if len(rules) == 0 {
		rules = ProofRules()
	}
	f.Profile("sensor", rules[:len(rules)-1]...)
	f.Profile("valve", rules...)
	f.Profile("observer", topic.Rule{Action: topic.Publish, Filter: "#", Shared: true}, topic.Rule{Action: topic.Receive, Filter: "#", Shared: true})
	passwords := proofPasswords()
	f.Device(tb, "dev-1", "sensor", "hall", passwords["dev-1"])
	f.Device(tb, "Dev-2", "valve", "hall", passwords["Dev-2"])
	f.Device(tb, "dev-10", "valve", "yard", "")
	f.Device(tb, "dev-3", "sensor", "yard", "")
	f.Device(tb, ObserverID, "observer", "hall", passwords[ObserverID])
	i := slices.IndexFunc(f.Devices, func(e entry) bool { return e.ID == ObserverID })
	f.Devices[i].Certificate, f.Devices[i].Leafs = true, [][]byte{f.PKI.Client(tb, ObserverID).Leaf.Raw}
	return f
}

// ProofDevices are the devices of f with what they connect with, without the
// observer. What has no password that this package knows gets a certificate.
func (f *Memory) ProofDevices(tb testing.TB) []proof.Device {
	tb.Helper()
	var out []proof.Device
	for _, e := range f.Devices {
		if e.ID != ObserverID {
			out = append(out, f.proofDevice(tb, e))
		}
	}
	return out
}

// ProofObserver is the observer of f.
func (f *Memory) ProofObserver(tb testing.TB) *proof.Device {
	tb.Helper()
	i := slices.IndexFunc(f.Devices, func(e entry) bool { return e.ID == ObserverID })
	if i < 0 {
		tb.Fatal("the fleet has no observer")
	}
	d := f.proofDevice(tb, f.Devices[i])
	return &d
}

func (f *Memory) proofDevice(tb testing.TB, e entry) proof.Device {
	tb.Helper()
	d := proof.Device{Subject: Subject(e), Policy: f.policy(tb, e.Profile), Password: []byte(proofPasswords()[string(e.ID)])}
	if e.Certificate {
		c := f.PKI.Client(tb, string(e.ID))
		if len(e.Leafs) > 0 && e.ID != inventory.DeviceID(ObserverID) {
			e.Leafs[len(e.Leafs)-1] = c.Leaf.Raw // the one that is registered is the one that is used
		}
		d.Certificate = &c
	}
	return d
}

// ProofReportEnv names a file that [Report] appends to, one report on a line.
const ProofReportEnv = "IMPRINT_PROOF_REPORT"

// Report fails the test if a broker decides otherwise than the policy. Narrower may
// excuse a question that the broker is known to deny; nil excuses none.
func Report(t *testing.T, r proof.Report, narrower func(q proof.Question) bool) {
	t.Helper()
	for i, q := range r.Wider {
		if i < 20 {
			t.Errorf("%s is wider than the policy: %s", r.Target, q)
		}
	}
	n := 0
	for _, q := range r.Narrower {
		if narrower != nil && narrower(q) {
			continue
		}
		if n++; n <= 20 {
			t.Errorf("%s is narrower than the policy: %s", r.Target, q)
		}
	}
	if len(r.Wider)+n > 20 {
		t.Errorf("%s: %d wider, %d narrower", r.Target, len(r.Wider), n)
	}
	if r.Asked == 0 {
		t.Errorf("%s was asked nothing", r.Target)
	}
	line := fmt.Sprintf("%-24s %-10s %6d decisions  %d wider  %d narrower  %d cannot be asked", r.Target, r.How, r.Asked, len(r.Wider), len(r.Narrower), r.Unknown)
	t.Log("proof: " + line)
	if name := os.Getenv(ProofReportEnv); name != "" { //nolint:forbidigo // the scripts read what is reported
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(line + "\n"); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}
