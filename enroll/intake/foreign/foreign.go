// Package foreign reads fleets that somebody else keeps: the users and access
// rules of a broker, or the folder of a certification authority.
//
// [Read] makes a [Plan]: what could be taken over, device by device, and what
// could not, or should not be. It writes nothing and asks nobody. [Plan.Apply]
// then hands the devices to a registrar, one change each. [Merge] joins what several
// sources know of one fleet.
//
// Two promises hold for every kind. A reconstructed profile never gives a device
// more than its source did: a rule that cannot be said exactly is dropped, and a
// finding says so. And a password that is stored as it is is neither kept nor
// printed.
//
// # Certificates
//
// A certificate of another authority never becomes a credential, even if it has the
// shape of one: a serial number of up to 16 octets and an authority key identifier of
// 20, as easy-rsa's have. imprint could not revoke it: the entry would belong into the CRL of that authority, whose
// key is elsewhere. And brokers are told to trust the fleet's own roots, so the
// device could not connect with it. Such a device is registered and must enroll;
// serial number, fingerprint, issuer and expiry of its last certificate are kept
// as labels, so that it can be found in the old books.
package foreign

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// The kinds of source, as [Detect] names them.
const (
	Mosquitto = "mosquitto" // password_file and acl_file
	Dynsec    = "dynsec"    // the JSON file of Mosquitto's dynamic security plugin
	RabbitMQ  = "rabbitmq"  // definitions.json
	EMQX      = "emqx"      // users of the built-in database, as CSV or JSON
	OpenSSL   = "openssl"   // index.txt of openssl ca or easy-rsa, with its certificates
	Step      = "step"      // the folder of a step-ca
	PEM       = "pem"       // a folder of certificates
	CSV       = "csv"       // a list of devices, as package intake reads it
)

// ErrUnknown reports that a source has no file that can be read, or none of the
// kind that was asked for.
var ErrUnknown = errors.New("nothing that can be imported")

// ErrAmbiguous reports that several files could be the one to read: name it in
// [Options.Files].
var ErrAmbiguous = errors.New("several files could be meant")

// Options say how a source is read.
type Options struct {
	// Files are the only files to look at, as paths within the source. None means
	// all.
	Files []string

	// Profile is that of devices whose source says nothing of rights.
	Profile string

	// Prefix begins the names of reconstructed profiles. Empty means "imported".
	Prefix string

	// AcceptShared declares rules that reach beyond a device's own topics as
	// shared. Without it they are in the plan as they are, and no registrar takes
	// the profile.
	AcceptShared bool

	// Rename takes a device whose name is no device ID under the ID that the plan
	// suggests. The device must then be told its new name.
	Rename bool

	// Scheme is how EMQX has hashed the passwords, which its configuration says
	// and its users do not: sha256-suffix, sha512-suffix, sha512-prefix or, with
	// Iterations, pbkdf2-sha512. Zero carries bcrypt only.
	Scheme     inventory.Scheme
	Iterations uint32

	// VHost and Exchange are where RabbitMQ's MQTT plugin works. Empty means "/"
	// and "amq.topic".
	VHost, Exchange string

	Now time.Time // to judge what has expired; zero means the present
}

// A Plan is what could be taken over from a source.
type Plan struct {
	Kind     string              `json:"kind"`
	Devices  []Device            `json:"devices"`  // in the order of the source
	Profiles []inventory.Profile `json:"profiles"` // reconstructed; the one with most devices first
	Findings []Finding           `json:"findings"`
}

// A Device is one device of a source.
type Device struct {
	ID      inventory.DeviceID `json:"id"`                // empty if the name is no ID and Options.Rename is not set
	Name    string             `json:"name"`              // as found
	Suggest inventory.DeviceID `json:"suggest,omitempty"` // the ID that would suit, if the name is none

	Profile        string           `json:"profile"`
	Group          string           `json:"group,omitempty"`
	HardwareSerial string           `json:"serial,omitempty"`
	Labels         inventory.Labels `json:"labels,omitempty"`

	Verifiers    []inventory.Verifier `json:"-"` // of its password, if the scheme is one of ours
	Certificates []Certificate        `json:"certificates,omitempty"`

	// Problems are why the device cannot be taken over as it is. None means it
	// can.
	Problems []string `json:"problems,omitempty"`
}

// A Certificate is one that the source knows of a device. It is for the report:
// see the package comment.
type Certificate struct {
	DER       []byte    `json:"-"`      // empty if only the index knows it
	Serial    string    `json:"serial"` // hexadecimal, as long as it is
	Issuer    string    `json:"issuer,omitempty"`
	NotAfter  time.Time `json:"notAfter"`
	RevokedAt time.Time `json:"revokedAt,omitzero"`
	Reason    string    `json:"reason,omitempty"` // as the index has it
}

// A Severity says how much a finding matters.
type Severity uint8

// The severities.
const (
	Note    Severity = iota + 1 // good to know
	Warning                     // something is lost, or weaker than it should be
	Error                       // dangerous where it is now, or in the way of the import
)

var severities = [...]string{Note: "note", Warning: "warning", Error: "error"}

// String is the severity in lower case.
func (s Severity) String() string {
	if int(s) < len(severities) && s > 0 {
		return severities[s]
	}
	return "unknown"
}

// MarshalText implements [encoding.TextMarshaler].
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Finding is what a person should know before a plan is carried out.
type Finding struct {
	Severity Severity `json:"severity"`
	Code     string   `json:"code"`    // short and stable
	Subject  string   `json:"subject"` // a name as found, quoted if it is strange; may be empty
	Text     string   `json:"text"`
	File     string   `json:"file,omitempty"`
	Line     int      `json:"line,omitempty"` // counted from 1; 0 means the whole file
}

// String is one line.
func (f Finding) String() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, ":%d", f.Line)
		}
		b.WriteString(": ")
	}
	b.WriteString(f.Severity.String() + ": ")
	if f.Subject != "" {
		b.WriteString(f.Subject + ": ")
	}
	return b.String() + f.Text + " (" + f.Code + ")"
}

// Detect returns the kinds of source that src holds, the most telling first; none
// is no error. Files with private keys are not opened.
func Detect(src fs.FS) ([]string, error) {
	t, err := scan(src, nil)
	if err != nil {
		return nil, err
	}
	var kinds []string
	for _, k := range readers() {
		if k.found(t) {
			kinds = append(kinds, k.kind)
		}
	}
	return kinds, nil
}

// Read makes a plan of what a source of one kind holds; "" means the first that
// Detect finds. The error wraps [ErrUnknown] or [ErrAmbiguous], or says which file
// could not be read.
//
// src should not lead outside of itself, as that of an [os.Root] does not.
func Read(ctx context.Context, src fs.FS, kind string, o Options) (*Plan, error) {
	t, err := scan(src, o.Files)
	if err != nil {
		return nil, err
	}
	for _, k := range readers() {
		if kind == "" && k.found(t) {
			kind = k.kind
		}
		if kind != k.kind {
			continue
		}
		if !k.found(t) {
			break
		}
		b := newBuilder(ctx, o)
		for _, name := range t.skipped {
			b.find(Warning, "not-read", "", place{file: name}, "is a link that leads outside of the source, or may not be read: it was left out")
		}
		if err := k.read(b, t); err != nil {
			return nil, fmt.Errorf("importing from %s: %w", kind, err)
		}
		return b.finish(kind), nil
	}
	return nil, fmt.Errorf("importing from %.32q: %w", kind, ErrUnknown)
}

// A reader is one kind of source. The order of readers is that of Detect.
type reader struct {
	kind  string
	found func(*tree) bool
	read  func(*builder, *tree) error
}

func readers() []reader {
	has := func(roles ...role) func(*tree) bool {
		return func(t *tree) bool {
			for _, r := range roles {
				if len(t.byRole[r]) > 0 {
					return true
				}
			}
			return false
		}
	}
	return []reader{
		{Dynsec, has(roleDynsec), (*builder).dynsec},
		{Mosquitto, has(rolePasswords, roleACL), (*builder).mosquitto},
		{RabbitMQ, has(roleDefinitions), (*builder).rabbitmq},
		{EMQX, has(roleEMQX), (*builder).emqx},
		{OpenSSL, has(roleIndex), (*builder).openssl},
		{Step, has(roleStep), (*builder).step},
		{PEM, func(t *tree) bool {
			return len(t.byRole[roleCertificate]) > 0 && len(t.byRole[roleIndex]) == 0 && len(t.byRole[roleStep]) == 0
		}, (*builder).pem},
		{CSV, has(roleCSV), (*builder).csv},
	}
}
