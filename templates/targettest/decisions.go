package targettest

import (
	"slices"
	"testing"

	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/proof"
)

// A Decision is what the reference evaluator says to one question.
type Decision struct {
	Device  string
	Action  topic.Action
	Topic   string
	Allowed bool
}

// Decisions asks [topic.Policy.Decide] about every device of f, each action, and
// topics that are near the rights of some device: in them, one level more, one
// less, another device's, another case, empty levels, names that look like
// placeholders. A broker with an export of f decides the same.
func Decisions(tb testing.TB, f *Memory) []Decision {
	tb.Helper()
	names := Topics(f)
	var out []Decision
	for _, e := range f.Devices {
		p := f.policy(tb, e.Profile)
		for _, n := range names {
			for _, a := range []topic.Action{topic.Publish, topic.Receive} {
				out = append(out, Decision{string(e.ID), a, n, p.Decide(Subject(e), a, topic.Name(n)).Allowed})
			}
		}
	}
	return out
}

// Topics returns topic names near the rights of the devices of f, sorted.
func Topics(f *Memory) []string {
	devices := make([]proof.Device, 0, len(f.Devices))
	for _, e := range f.Devices {
		d := proof.Device{Subject: Subject(e)}
		for _, g := range e.Grants { // with the names filled in, they are rules as well
			d.Policy.Rules = append(d.Policy.Rules, topic.Rule{Action: g.Action, Filter: string(g.Filter), Shared: true})
		}
		devices = append(devices, d)
	}
	return proof.Topics(devices)
}

// Filters are subscriptions that ask for more than a device may have.
func Filters(f *Memory) []string {
	out := []string{"#", "+/#", "+/+/+", "$SYS/#", "fleet/#", "fleet/+/down", "fleet/+/+", "news/#", "news/all", "news/+"}
	for _, e := range f.Devices {
		out = append(out, "fleet/"+string(e.ID)+"/#", "fleet/"+string(e.ID)+"/down", "fleet/"+string(e.ID)+"/+", "fleet/"+string(e.ID)+"/up/#", "fleet/"+string(e.ID)+"/state")
	}
	return append(out, "groups/hall/cmd/+", "groups/hall/cmd/x", "groups/hall/cmd/#", "groups/yard/cmd/+", "groups/+/cmd/+", "groups/hall/+/+")
}

// CheckNeverWider fails the test if an export, read back as got, allows a
// device what its policy does not, or refuses what it does.
func CheckNeverWider(t *testing.T, f *Memory, got templates.View) {
	t.Helper()
	rights := make(map[string][]topic.Grant)
	for e, err := range got.Entries() {
		if err != nil {
			t.Fatal(err)
		}
		rights[string(e.ID)] = e.Grants
	}
	for _, d := range Decisions(t, f) {
		grants, named := rights[d.Device]
		allowed := slices.ContainsFunc(grants, func(g topic.Grant) bool {
			return g.Action == d.Action && g.Filter.Match(topic.Name(d.Topic))
		})
		switch {
		case allowed && !d.Allowed:
			t.Errorf("%s may %s %q in the export, and may not by its policy", d.Device, d.Action, d.Topic)
		case !allowed && d.Allowed && named:
			t.Errorf("%s may not %s %q in the export, and may by its policy", d.Device, d.Action, d.Topic)
		}
	}
}
