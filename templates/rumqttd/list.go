package rumqttd

import (
	"bufio"
	"fmt"
	"io/fs"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// readDevices yields the devices of devices.txt: an ID on each line.
func readDevices(src fs.FS, fleet string, yield func(templates.Entry, error) bool) {
	f, err := templates.OpenFile(src, DevicesName)
	if err != nil {
		yield(templates.Entry{}, err)
		return
	}
	defer func() { _ = f.Close() }() // read only
	s := templates.NewLineScanner(f, bufio.MaxScanTokenSize)
	n := 0
	for s.Scan() {
		n++
		id, err := inventory.ParseDeviceID(s.Text())
		if err != nil {
			yield(templates.Entry{}, fmt.Errorf("reading %s: line %d: %w", DevicesName, n, err))
			return
		}
		if !yield(templates.Entry{ID: id, Certificate: true, Grants: grants(fleet)}, nil) {
			return
		}
	}
	if err := s.Err(); err != nil {
		yield(templates.Entry{}, fmt.Errorf("reading %s: %w", DevicesName, err))
	}
}
