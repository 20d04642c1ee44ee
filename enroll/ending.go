package enroll

import (
	"errors"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// Notes of a device in an event that ends something of it. The names of the states
// are notes too.
const noteCut = "cut" // one of its credentials was ended; it may have others

// An Ending is a device whose sessions have to end, because a credential of it was
// revoked, held or replaced for lost.
type Ending struct {
	Device inventory.DeviceID
	Seq    uint64 // of the event
	Action string // of the event: "device.revoke"
	Time   time.Time

	// Gone says that the device has no credential left with which it could come
	// back, as things are now.
	Gone bool
}

// Endings returns the devices whose sessions have to end because of what happened
// after the event with the number after: each once, by its last event. limit is
// how many are returned at most, 0 means all; more says that there are others.
func Endings(in inventory.Reader, after uint64, limit int) (list []Ending, more bool, err error) {
	at := map[string]int{}
	for e, err := range in.Events(after + 1) {
		if err != nil {
			return nil, false, err
		}
		for _, o := range e.Objects {
			if o.Kind != "device" || !ends(e.Action, o.Note) {
				continue
			}
			x := Ending{Device: inventory.DeviceID(o.ID), Seq: e.Seq, Action: e.Action, Time: e.Time}
			key := x.Device.Canonical()
			if i, ok := at[key]; ok {
				list[i] = x
				continue
			}
			if limit > 0 && len(list) == limit {
				return list, true, gone(in, list)
			}
			at[key] = len(list)
			list = append(list, x)
		}
	}
	return list, false, gone(in, list)
}

func gone(in inventory.Reader, list []Ending) error {
	for i := range list {
		dev, err := in.Device(list[i].Device)
		if err != nil && !errors.Is(err, inventory.ErrNotFound) {
			return err
		}
		list[i].Gone = err != nil || dev.State != inventory.Active
	}
	return nil
}

// Ends reports whether an event ends sessions, so that brokers should hear of it at once.
func Ends(e *inventory.Event) bool {
	for _, o := range e.Objects {
		if o.Kind == "device" && ends(e.Action, o.Note) {
			return true
		}
	}
	return false
}

// ends reports whether an event with this action and this note of a device ends
// its sessions.
func ends(action, note string) bool {
	switch note {
	case inventory.Revoked.String(), inventory.Retired.String(), inventory.Suspended.String(), noteCut:
		return true
	}
	return action == "device.rekey"
}
