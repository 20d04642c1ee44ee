package mochi

import (
	"testing"

	"github.com/imprint-iot/imprint/templates"
)

// NewEvaluator reads an export as a server with the hook does.
var NewEvaluator = newEvaluator

// ReadDevices reads the devices of an export.
var ReadDevices = readDevices

// Devices writes devices as they are in an export.
func Devices(t testing.TB, entries []templates.Entry) []byte {
	t.Helper()
	b := []byte(devicesHead)
	var err error
	for i := range entries {
		if b, err = appendDevice(b, i, &entries[i], nil); err != nil {
			t.Fatal(err)
		}
	}
	return append(b, devicesTail...)
}
