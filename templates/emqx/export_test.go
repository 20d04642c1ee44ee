package emqx

import (
	"io/fs"
	"iter"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// NewEvaluator reads an export as the broker does.
var NewEvaluator = newEvaluator

// FormTarget is one form as a target.
func FormTarget(form string) templates.Target { return templates.OfForm(Target(), form) }

func kitOf(form string) templates.Kit {
	switch form {
	case PostgreSQL:
		return postgreSQL()
	case API:
		return api()
	}
	return file()
}

// Devices reads the lists of a form, and holds them to the order of an export.
func Devices(src fs.FS, form string) iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		var prev inventory.DeviceID
		k := kitOf(form)
		for e, err := range k.Devices(src, nil) {
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

// Lists writes the lists of a form.
func Lists(t testing.TB, form string, entries []templates.Entry) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, l := range kitOf(form).Lists {
		b := []byte(l.Head)
		var err error
		for i := range entries {
			if b, err = l.Append(b, i, &entries[i], nil); err != nil {
				t.Fatal(err)
			}
		}
		out[l.Name] = append(b, l.Tail...)
	}
	return out
}

// ReadHOCON and the rest are what the evaluator reads with.
var ReadHOCON = readHOCON
