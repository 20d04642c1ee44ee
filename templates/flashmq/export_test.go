package flashmq

import (
	"io/fs"
	"iter"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// FormTarget is one form as a target, with its own capabilities.
func FormTarget(form string) templates.Target { return templates.OfForm(Target(), form) }

// NewEvaluator reads an export as the broker does.
var NewEvaluator = newEvaluator

// Devices reads both lists, and holds them to the order of an export.
func Devices(src fs.FS) iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		var prev inventory.DeviceID
		for e, err := range readFiles(src) {
			if err == nil {
				err = templates.CheckEntry(prev, &e)
			}
			prev = e.ID
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Lists writes both lists.
func Lists(t testing.TB, entries []templates.Entry) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, l := range kit().Lists {
		var b []byte
		var err error
		for i := range entries {
			if b, err = l.Append(b, i, &entries[i], nil); err != nil {
				t.Fatal(err)
			}
		}
		out[l.Name] = b
	}
	return out
}
