package nanomq

import (
	"io/fs"
	"iter"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// NewEvaluator reads an export as the broker does.
var NewEvaluator = newEvaluator

// Settings is what the evaluator reads a configuration with.
var Settings = settings

// FormTarget is form "acl" as a target.
func FormTarget() templates.Target { return allOf{templates.NewTarget(acl())} }

// Devices reads the rules, and holds them to the order of an export.
func Devices(src fs.FS) iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		var prev inventory.DeviceID
		for e, err := range readRules(src) {
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

// Rules writes the rules.
func Rules(t testing.TB, entries []templates.Entry) []byte {
	t.Helper()
	b := []byte(aclHead)
	var err error
	for i := range entries {
		if b, err = appendRules(b, i, &entries[i], nil); err != nil {
			t.Fatal(err)
		}
	}
	return append(b, aclTail...)
}
