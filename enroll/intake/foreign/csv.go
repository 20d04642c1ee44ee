package foreign

import (
	"io"

	"github.com/imprint-iot/imprint/enroll/intake"
	"github.com/imprint-iot/imprint/inventory"
)

// csv reads a list of devices, as package intake does: id, serial, profile, group,
// label.NAME. A request in it is for "imprint bootstrap".
func (b *builder) csv(t *tree) error {
	name, err := t.one(roleCSV)
	if err != nil {
		return err
	}
	return t.stream(name, func(r io.Reader) error {
		for row, err := range intake.Devices(r, intake.Options{Profile: b.o.Profile}) {
			if err != nil {
				return err
			}
			if err := b.cancelled(); err != nil {
				return err
			}
			at := place{name, row.Line}
			if row.Err != nil {
				b.find(Error, "row", "", at, "%s: the row is left out", row.Err)
				continue
			}
			u, fresh := b.user(string(row.Device.ID), at)
			if !fresh {
				u.problem("is there twice")
				b.find(Error, "twice", u.name, at, "the device is there twice")
				continue
			}
			u.profile, u.group, u.serial = row.Device.Profile, row.Device.Group, row.Device.HardwareSerial
			u.labels = labelMap(row.Device.Labels)
		}
		return nil
	})
}

func labelMap(labels inventory.Labels) map[string]string {
	m := make(map[string]string, len(labels))
	for _, l := range labels {
		m[l.Key] = l.Value
	}
	return m
}
