package inventory

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// A Role says what the holder of a token may do. No role has the rights of
// another one: an operator cannot read the audit log because it is not an
// auditor. The values are stored: do not reorder.
type Role uint8

// The roles. The zero Role may do nothing.
const (
	DeviceRole   Role = iota + 1 // enroll one device, or a few
	StationRole                  // enroll the devices of a factory line
	BrokerRole                   // ask what a broker asks
	OperatorRole                 // see, register, suspend and revoke devices; make tokens to enroll with
	AuditorRole                  // see everything, change nothing
	AdminRole                    // what an operator may, and make tokens of every role
)

var roles = [...]string{DeviceRole: "device", StationRole: "station", BrokerRole: "broker", OperatorRole: "operator", AuditorRole: "auditor", AdminRole: "admin"}

// String is the role in lower case.
func (r Role) String() string { return name(roles[:], uint8(r)) }

// MarshalText implements [encoding.TextMarshaler].
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// ParseRole reads the name of a role.
func ParseRole(text string) (Role, error) {
	n, err := parseEnum("role", roles[:], text)
	return Role(n), err
}

// Enrolls reports whether a token of this role buys enrollments, so that it has
// a limit and is used up.
func (r Role) Enrolls() bool { return r == DeviceRole || r == StationRole }

// A TokenID names a token where the token itself must not be seen: the first 16
// hexadecimal digits of its hash.
type TokenID string

// ParseTokenID reads a TokenID.
func ParseTokenID(text string) (TokenID, error) {
	if b, err := hex.DecodeString(text); err != nil || len(b) != 8 || strings.ToLower(text) != text {
		return "", &InvalidError{Field: "token id", Value: text, Want: "16 hexadecimal digits in lower case"}
	}
	return TokenID(text), nil
}

// A Token is a secret that buys something, most often the enrollment of one
// device. What is kept is its hash: a token has 256 random bits, so no slow hash
// is needed, and who reads the inventory cannot use it.
//
// What a token is for never changes; it is used, and it can be revoked.
type Token struct {
	Hash Hash // SHA-256 of the secret octets; names the token
	Role Role
	Name string // what it is for, free text

	// Limit is how many enrollments it buys, and Uses how many it has bought. A
	// role that does not enroll has neither.
	Limit uint32
	Uses  uint32

	// What an enrollment with it is bound to. Empty means that it is not.
	Devices   []DeviceID     // only these
	Prefix    string         // only IDs that start so, ignoring case
	Profile   string         // only devices with it; a device that is not known is registered with it
	Group     string         // of devices that are registered
	Station   DeviceID       // whose certificate the peer has to show as well
	Networks  []netip.Prefix // where the peer has to be
	PerMinute uint32         // enrollments in a minute

	Approve bool // an operator has to approve each enrollment
	Replace bool // may replace a certificate that the device has, for another key

	NotBefore time.Time // UTC, whole seconds
	Expires   time.Time // UTC, whole seconds; always set
	Created   time.Time // UTC, whole seconds
	CreatedBy string
	RevokedAt time.Time // zero if it is not revoked

	Revision uint64 // as in [Device]
}

// Limits on what a token carries.
const (
	maxTokenDevices  = 1000
	maxTokenNetworks = 32
)

// ID names the token.
func (t *Token) ID() TokenID { return TokenID(hex.EncodeToString(t.Hash[:8])) }

// Spent reports whether the token buys nothing more.
func (t *Token) Spent() bool { return t.Role.Enrolls() && t.Uses >= t.Limit }

// Covers reports whether the token is for a device with this ID.
func (t *Token) Covers(id DeviceID) bool {
	canonical := id.Canonical()
	if !strings.HasPrefix(canonical, strings.ToLower(t.Prefix)) {
		return false
	}
	return len(t.Devices) == 0 || slices.ContainsFunc(t.Devices, func(d DeviceID) bool { return d.Canonical() == canonical })
}

// Validate reports a field outside its grammar as an [*InvalidError].
func (t *Token) Validate() error {
	bad := func(want string) error {
		return &InvalidError{Field: "token", Value: string(t.ID()), Want: want}
	}
	switch {
	case t.Hash == Hash{}:
		return bad("the hash of a secret")
	case t.Role < DeviceRole || t.Role > AdminRole:
		return bad("a known role")
	case t.Role.Enrolls() && t.Limit == 0:
		return bad("a limit")
	case !t.Role.Enrolls() && (t.Limit != 0 || t.Uses != 0):
		return bad("no limit: its role enrolls no devices")
	case t.Uses > t.Limit:
		return bad("no more uses than it buys")
	case t.Expires.IsZero() || !t.Expires.After(t.NotBefore):
		return bad("an end after its beginning")
	case len(t.Devices) > maxTokenDevices || len(t.Networks) > maxTokenNetworks:
		return bad("at most 1000 devices and 32 networks")
	}
	for _, p := range t.Networks {
		if !p.IsValid() {
			return bad("networks such as 192.0.2.0/24")
		}
	}
	return t.validateTexts()
}

func (t *Token) validateTexts() error {
	if err := checkFreeText("name of token", t.Name); err != nil {
		return err
	}
	if err := checkFreeText("maker of token", t.CreatedBy); err != nil {
		return err
	}
	if t.Prefix != "" {
		if _, err := ParseDeviceID(t.Prefix); err != nil {
			return err
		}
	}
	if t.Profile != "" {
		if _, err := ParseProfileName(t.Profile); err != nil {
			return err
		}
	}
	if _, err := ParseGroup(t.Group); err != nil {
		return err
	}
	ids := t.Devices
	if t.Station != "" {
		ids = append(slices.Clone(ids), t.Station)
	}
	for _, id := range ids {
		if _, err := ParseDeviceID(string(id)); err != nil {
			return err
		}
	}
	return nil
}

// CheckToken reports whether next may take the place of have, which is stored:
// a token can be revoked, and nothing else. The error is a [*ConflictError].
func CheckToken(have, next *Token) error {
	record := "token " + string(next.ID())
	if have.Revision != next.Revision {
		return &ConflictError{Why: Stale, Record: record}
	}
	same := *have
	same.RevokedAt = next.RevokedAt
	a, errA := same.AppendBinary(nil)
	b, errB := next.AppendBinary(nil)
	switch {
	case errA != nil || errB != nil || string(a) != string(b):
		return &ConflictError{Why: BadTransition, Record: record, Detail: "what a token is for never changes"}
	case !have.RevokedAt.IsZero() && !have.RevokedAt.Equal(next.RevokedAt):
		return &ConflictError{Why: BadTransition, Record: record, Detail: "it is revoked"}
	}
	return nil
}

// A TokenUse is one enrollment bought with a token. The store counts it, and
// refuses the change with [TokenSpent] if the token buys nothing more or is
// revoked, so that two who come at once cannot both have the last one.
type TokenUse struct {
	Token Hash
}

// An ApprovalState says what an operator has decided. The values are stored: do
// not reorder.
type ApprovalState uint8

// The states of an approval.
const (
	ApprovalPending ApprovalState = iota + 1
	ApprovalGranted
	ApprovalDenied
)

var approvalStates = [...]string{ApprovalPending: "pending", ApprovalGranted: "granted", ApprovalDenied: "denied"}

// String is the state in lower case.
func (s ApprovalState) String() string { return name(approvalStates[:], uint8(s)) }

// MarshalText implements [encoding.TextMarshaler].
func (s ApprovalState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// An Approval is a request to enroll that waits, or has waited, for an operator.
// It is named by the public key: a device may ask again with another request
// (RFC 7030 §4.2.3), but with the same key.
type Approval struct {
	Key     SPKI
	Device  DeviceID
	State   ApprovalState
	Asked   string    // who asked: a token or a birth certificate
	Created time.Time // UTC, whole seconds
	Decided time.Time // zero while it is pending

	Revision uint64 // as in [Device]
}

// Validate reports a field outside its grammar as an [*InvalidError].
func (a *Approval) Validate() error {
	if _, err := ParseDeviceID(string(a.Device)); err != nil {
		return err
	}
	if err := checkFreeText("who asked for approval", a.Asked); err != nil {
		return err
	}
	if a.Key.IsZero() || a.State < ApprovalPending || a.State > ApprovalDenied || a.Decided.IsZero() != (a.State == ApprovalPending) {
		return &InvalidError{Field: "approval of device", Value: string(a.Device), Want: "a key, a state and, once it is decided, a time"}
	}
	return nil
}

// CheckApproval reports whether next may take the place of have, which is
// stored. The error is a [*ConflictError].
func CheckApproval(have, next *Approval) error {
	record := "approval of " + next.Key.String()
	switch {
	case have.Revision != next.Revision:
		return &ConflictError{Why: Stale, Record: record}
	case have.Device != next.Device || have.Key != next.Key || !have.Created.Equal(next.Created):
		return &ConflictError{Why: BadTransition, Record: record, Detail: "it is for " + string(have.Device)}
	}
	return nil
}
