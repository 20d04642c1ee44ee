package inventory

import (
	"encoding/hex"
	"time"

	"github.com/imprint-iot/imprint/inventory/topic"
)

// A KeyID is a subject key identifier of 20 octets (RFC 5280 §4.2.1.2). Issuers
// are told apart by it: two generations may have the same name, never the same
// key.
type KeyID [20]byte

// String is the text form: 40 hexadecimal digits.
func (k KeyID) String() string { return hex.EncodeToString(k[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (k KeyID) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// A Profile says what devices of one model get: a certificate, a password and
// topic rights.
type Profile struct {
	Name        string
	Certificate []byte // the certificate profile, in the JSON form of ca.Config
	Password    PasswordRule
	Policy      topic.Policy
	Grace       time.Duration // how long after expiry a certificate may still be renewed
	Revision    uint64        // as in [Device]
}

// A PasswordRule says what password a device gets.
type PasswordRule struct {
	None    bool     // devices of this profile have no password
	Length  uint8    // in characters; 0 means 32
	Schemes []Scheme // verifiers to compute besides the cheap ones
}

// Validate reports a field outside its grammar as an [*InvalidError], and a bad
// policy as the error of [topic.Policy.Validate].
func (p *Profile) Validate() error {
	if _, err := ParseProfileName(p.Name); err != nil {
		return err
	}
	if n := p.Password.Length; n != 0 && (n < 22 || n > 72) {
		return &InvalidError{Field: "password length", Value: p.Name, Want: "22 to 72 characters: 22 hold 128 bits, bcrypt reads 72"}
	}
	if p.Grace < 0 {
		return &InvalidError{Field: "grace", Value: p.Grace.String(), Want: "a duration that is not negative"}
	}
	return p.Policy.Validate()
}

// A Purpose says what an issuer signs. The values are stored: do not reorder.
type Purpose uint8

// The purposes.
const (
	RootPurpose    Purpose = iota + 1 // issuers
	DevicePurpose                     // client certificates
	ServerPurpose                     // server certificates
	FactoryPurpose                    // client certificates, at a factory
)

var purposes = [...]string{RootPurpose: "root", DevicePurpose: "device", ServerPurpose: "server", FactoryPurpose: "factory"}

// String is the purpose in lower case.
func (p Purpose) String() string { return name(purposes[:], uint8(p)) }

// MarshalText implements [encoding.TextMarshaler].
func (p Purpose) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// An IssuerState says what an issuer may still sign. The values are stored: do
// not reorder.
type IssuerState uint8

// The states of an issuer.
const (
	IssuerActive  IssuerState = iota + 1 // certificates and CRLs
	IssuerRetired                        // CRLs only, and nobody is told to trust it
	IssuerPending                        // nothing: its certificate has not come back from the root
	IssuerStandby                        // CRLs: it is trusted, and takes over when it is told to
)

var issuerStates = [...]string{IssuerActive: "active", IssuerRetired: "retired", IssuerPending: "pending", IssuerStandby: "standby"}

// String is the state in lower case.
func (s IssuerState) String() string { return name(issuerStates[:], uint8(s)) }

// MarshalText implements [encoding.TextMarshaler].
func (s IssuerState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// An Issuer is one CA: a purpose, a generation, a key.
type Issuer struct {
	Name        string // "device-1": purpose and generation; the store's key
	Purpose     Purpose
	Generation  uint32
	State       IssuerState
	KeyID       KeyID
	SPKI        SPKI
	Certificate []byte // DER; empty while pending
	Key         string // KMS URI of the private key; empty if it is kept elsewhere
	NotAfter    time.Time

	// The last CRL. A number once stored is never given to another CRL and never
	// lowered: Apply refuses that.
	CRLNumber     uint64
	CRLThisUpdate time.Time
	CRLNextUpdate time.Time
	CRLRevision   uint64 // the revision of the store that the CRL shows

	Revision uint64 // as in [Device]
}

// A Revocation is one entry of a CRL.
type Revocation struct {
	Issuer   KeyID
	Serial   Serial
	Device   DeviceID // empty if the certificate is not in this inventory
	Reason   Reason
	Time     time.Time
	NotAfter time.Time // of the certificate
}

// A KeyUse is what the inventory knows of a public key.
type KeyUse struct {
	Device  DeviceID // the device whose certificates hold it; empty if none
	Blocked bool     // it may never be certified again
}
