package rumqttd

import (
	"testing/fstest"

	"github.com/imprint-iot/imprint/templates"
)

// Read reads a devices.txt.
func Read(text []byte) ([]templates.Entry, error) {
	var out []templates.Entry
	var first error
	readDevices(fstest.MapFS{DevicesName: {Data: text}}, "Acme", func(e templates.Entry, err error) bool {
		if err != nil {
			first = err
			return false
		}
		out = append(out, e)
		return true
	})
	return out, first
}
