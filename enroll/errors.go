package enroll

import (
	"errors"
	"fmt"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
)

var (
	// ErrDenied reports that the device may not have what was asked for. The
	// text says why, for an operator; a peer on the network is told no more than
	// this sentinel.
	ErrDenied = errors.New("denied")

	// ErrNoIssuer reports that the fleet has no issuer that could sign.
	ErrNoIssuer = errors.New("no active issuer")
)

// A StateError reports that a device is in a state in which the act is not
// possible. It wraps [ErrDenied].
type StateError struct {
	Device inventory.DeviceID
	State  inventory.DeviceState
	Hint   string // what to do, in words; may be empty
}

// Error says which device is in which state.
func (e *StateError) Error() string {
	s := fmt.Sprintf("device %s is %s", e.Device, e.State)
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

// Unwrap returns [ErrDenied].
func (e *StateError) Unwrap() error { return ErrDenied }

// A RowError reports one row of a bulk job that cannot be done.
type RowError struct {
	Line   int // in the file, counted from 1
	Device string
	Err    error
}

// Error names the line and the device, if the cause does not.
func (e *RowError) Error() string {
	cause := e.Err.Error()
	if e.Device == "" || strings.Contains(cause, e.Device) {
		return fmt.Sprintf("line %d: %s", e.Line, cause)
	}
	return fmt.Sprintf("line %d: device %s: %s", e.Line, e.Device, cause)
}

// Unwrap returns the cause.
func (e *RowError) Unwrap() error { return e.Err }
