package fleetfile

import (
	"testing"
	"testing/fstest"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

func file() File { return File{"test/1"} }

// Line is the line of a device with a password and one right.
func Line(tb testing.TB, id inventory.DeviceID, v inventory.Verifier, g topic.Grant) string {
	tb.Helper()
	b, err := appendDevice(nil, 0, &templates.Entry{ID: id, Verifiers: []inventory.Verifier{v}, Grants: []topic.Grant{g}}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b[1:])
}

// Read reads the devices of a file.
func Read(text []byte) ([]templates.Entry, error) {
	var out []templates.Entry
	for e, err := range file().Devices(fstest.MapFS{Name: {Data: text}}, nil) {
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// Write writes a file.
func Write(tb testing.TB, entries []templates.Entry) []byte {
	tb.Helper()
	b := []byte(file().head())
	for i := range entries {
		var err error
		if b, err = appendDevice(b, i, &entries[i], nil); err != nil {
			tb.Fatal(err)
		}
	}
	return append(b, tail...)
}
