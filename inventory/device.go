package inventory

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// A DeviceState says where a device is in its life. The values are stored: do
// not reorder.
type DeviceState uint8

// The states of a device. Revoked and Retired are final.
const (
	Registered DeviceState = iota + 1 // known, has no credential yet
	Active                            // has, or had, a credential and may get another
	Suspended                         // credentials are held; Resume undoes it
	Revoked                           // may never have a credential again
	Retired                           // taken out of service, for good
)

var deviceStates = [...]string{Registered: "registered", Active: "active", Suspended: "suspended", Revoked: "revoked", Retired: "retired"}

// String is the state in lower case.
func (s DeviceState) String() string { return name(deviceStates[:], uint8(s)) }

// MarshalText implements [encoding.TextMarshaler].
func (s DeviceState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ParseDeviceState reads the text form.
func ParseDeviceState(text string) (DeviceState, error) {
	n, err := parseEnum("state", deviceStates[:], text)
	return DeviceState(n), err
}

// mayBecome says which states follow which: there is no way back from Revoked
// and Retired, and Suspended goes back only to where it came from.
var mayBecome = map[DeviceState][]DeviceState{
	Registered: {Registered, Active, Suspended, Revoked, Retired},
	Active:     {Active, Suspended, Revoked, Retired},
	Suspended:  {Suspended, Active, Registered, Revoked, Retired},
	Revoked:    {Revoked},
	Retired:    {Retired},
}

// A DeviceKind tells the devices of a fleet from the servers they talk to. The
// values are stored: do not reorder.
type DeviceKind uint8

const (
	// Equipment is a device: an MQTT client with topic rights.
	Equipment DeviceKind = iota + 1
	// Server is a broker node or an imprint server: it has a server certificate
	// and no topic rights.
	Server
	// Canary is imprint itself as a device of one broker node: its credentials are
	// ended on purpose, to see that the broker notices.
	Canary
)

// A Device is one thing that has an identity. A value read from a store may be
// changed and handed back in a [Change].
type Device struct {
	ID             DeviceID
	Kind           DeviceKind
	HardwareSerial string // the maker's serial number, free text; may be empty
	Profile        string // the name of a [Profile]; empty for a Server
	Group          string // may be empty
	Labels         Labels
	Hosts          []string // of a Server: the DNS names and IP addresses it is reached at
	State          DeviceState
	Created        time.Time // UTC, whole seconds
	Updated        time.Time // UTC, whole seconds

	// Trust is the newest generation of the root that the device is known to
	// trust: its bundle had it, or the device said so. Zero: nothing is known.
	Trust uint32

	// Revision is the revision of the store at which the device was last
	// changed. Zero asks for a new device.
	Revision uint64
}

// Limits on what a device carries: together they bound a record's size.
const (
	maxLabels    = 32
	maxFreeText  = 256 // bytes
	maxHosts     = 32
	maxHostBytes = 253 // RFC 1035 §2.3.4, in text form
)

// Validate reports a field outside its grammar as an [*InvalidError].
func (d *Device) Validate() error {
	if _, err := ParseDeviceID(string(d.ID)); err != nil {
		return err
	}
	if d.Kind < Equipment || d.Kind > Canary {
		return &InvalidError{Field: "device kind", Value: string(d.ID), Want: "equipment, server or canary"}
	}
	if _, ok := mayBecome[d.State]; !ok {
		return &InvalidError{Field: "device state", Value: string(d.ID), Want: "a known state"}
	}
	if err := checkFreeText("serial", d.HardwareSerial); err != nil {
		return err
	}
	if d.Kind != Server {
		if _, err := ParseProfileName(d.Profile); err != nil {
			return err
		}
	}
	if _, err := ParseGroup(d.Group); err != nil {
		return err
	}
	if len(d.Hosts) > maxHosts || (d.Kind != Server && len(d.Hosts) > 0) {
		return &InvalidError{Field: "hosts", Value: string(d.ID), Want: "up to 32 host names, of a server only"}
	}
	for _, h := range d.Hosts {
		if h == "" || len(h) > maxHostBytes || strings.ContainsFunc(h, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return &InvalidError{Field: "host", Value: h, Want: "a DNS name or an IP address"}
		}
	}
	return d.Labels.validate()
}

// A Label is one free remark on a device: a key in the alphabet of a device ID
// and any text.
type Label struct{ Key, Value string }

// Labels are the labels of a device, sorted by key, each key once.
type Labels []Label

// NewLabels makes Labels of m.
func NewLabels(m map[string]string) Labels {
	if len(m) == 0 {
		return nil
	}
	l := make(Labels, 0, len(m))
	for k, v := range m {
		l = append(l, Label{k, v})
	}
	slices.SortFunc(l, func(a, b Label) int { return cmp.Compare(a.Key, b.Key) })
	return l
}

// Get returns the value of the label key, and whether there is one.
func (l Labels) Get(key string) (string, bool) {
	for i := range l {
		if l[i].Key == key {
			return l[i].Value, true
		}
	}
	return "", false
}

// MarshalJSON writes an object.
func (l Labels) MarshalJSON() ([]byte, error) {
	m := make(map[string]string, len(l))
	for _, x := range l {
		m[x.Key] = x.Value
	}
	return json.Marshal(m)
}

func (l Labels) validate() error {
	if len(l) > maxLabels {
		return &InvalidError{Field: "labels", Value: l[maxLabels].Key, Want: "at most 32 labels"}
	}
	for i, x := range l {
		if err := parseWord("label", x.Key); err != nil {
			return err
		}
		if i > 0 && l[i-1].Key >= x.Key {
			return &InvalidError{Field: "label", Value: x.Key, Want: "each label once, in order"}
		}
		if err := checkFreeText("label "+x.Key, x.Value); err != nil {
			return err
		}
	}
	return nil
}

// checkFreeText lets any text through that fits on one line. What writes it
// somewhere still has to escape it.
func checkFreeText(field, s string) error {
	if len(s) > maxFreeText || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return &InvalidError{Field: field, Value: s, Want: "at most 256 bytes of UTF-8 text without control characters"}
	}
	return nil
}

func name(names []string, n uint8) string {
	if int(n) < len(names) && names[n] != "" {
		return names[n]
	}
	return "unknown"
}

func parseEnum(field string, names []string, text string) (uint8, error) {
	if i := slices.Index(names, text); i > 0 {
		return uint8(i), nil
	}
	return 0, &InvalidError{Field: field, Value: text, Want: "one of " + strings.Join(names[1:], ", ")}
}
