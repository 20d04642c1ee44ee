package inventory

import "time"

// A Query says which devices are wanted: those that match every field that is
// set. A store answers from an index, in the order of canonical IDs if no field
// but After and Limit is set, and otherwise in the order of some index.
type Query struct {
	Kind    DeviceKind // 0 means Equipment
	State   DeviceState
	Profile string
	Group   string
	Labels  Labels // all of them; not indexed, checked on each candidate

	// After continues where an earlier query stopped: only devices that come
	// after this one in the order of the same query.
	After DeviceID
	Limit int // 0 means all
}

// A CredentialQuery says which credentials are wanted: those that match every
// field that is set. Device, SPKI, Serial and ExpiresBefore have an index; at
// least one of them must be set, or All.
type CredentialQuery struct {
	Device        DeviceID // in any case; the answer is in the order of kind and generation
	Kind          CredentialKind
	State         CredentialState
	SPKI          SPKI
	Serial        Serial    // of any issuer
	ExpiresAfter  time.Time // certificates with NotAfter at or after
	ExpiresBefore time.Time // certificates with NotAfter before; in the order of NotAfter
	All           bool
}
