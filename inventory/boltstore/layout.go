package boltstore

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// All records and indexes are in one bucket, in one order, told apart by the
// first byte of the key. One order is what makes one chain of MACs (see seal.go)
// and leaves fewer pages to write than a bucket for each kind.
//
//	kind         key after the first byte            value
//	head         -                                   see head
//	by expiry    NotAfter, credential                -
//	by serial    serial number, issuer               credential
//	key          SPKI                                inventory.KeyUse
//	revocation   issuer, serial number               inventory.Revocation
//	by state     state, device                       -      (of devices that are not Active)
//	by profile   profile, 0, device                  -
//	by group     group, 0, device                    -
//	profile      name                                inventory.Profile
//	issuer       name                                inventory.Issuer
//	token        hash                                inventory.Token
//	approval     SPKI                                inventory.Approval
//	work         kind, 0, name                       inventory.Work
//	device       device                              inventory.Device
//	credential   device, 0, kind, generation         inventory.Credential
//	event        number                              inventory.Event
//
// A device is its canonical ID, a credential device, 0, kind and generation, a
// time its Unix seconds with the sign bit turned over; numbers are big endian.
//
// Rules of change: kinds are never reused, and what a kind means changes only
// with schemaVersion. The order was chosen so that a page that every change
// writes (with the head) holds small entries, and the log grows at the end.
const (
	kindHead       byte = 0x00
	kindByExpiry   byte = 0x10
	kindBySerial   byte = 0x20
	kindKey        byte = 0x30
	kindRevocation byte = 0x40
	kindByState    byte = 0x50
	kindByProfile  byte = 0x51
	kindByGroup    byte = 0x52
	kindProfile    byte = 0x60
	kindIssuer     byte = 0x61
	kindToken      byte = 0x62
	kindApproval   byte = 0x63
	kindWork       byte = 0x64
	kindDevice     byte = 0x70
	kindCredential byte = 0x80
	kindEvent      byte = 0xF0
)

// schemaVersion is the version of this layout.
const schemaVersion = 1

const bucketName = "imprint"

// kindNames names the kinds in errors and reports.
func kindName(kind byte) string {
	switch kind {
	case kindHead:
		return "head"
	case kindByExpiry:
		return "expiry index"
	case kindBySerial:
		return "serial index"
	case kindKey:
		return "key"
	case kindRevocation:
		return "revocation"
	case kindByState:
		return "state index"
	case kindByProfile:
		return "profile index"
	case kindByGroup:
		return "group index"
	case kindProfile:
		return "profile"
	case kindIssuer:
		return "issuer"
	case kindToken:
		return "token"
	case kindApproval:
		return "approval"
	case kindWork:
		return "work"
	case kindDevice:
		return "device"
	case kindCredential:
		return "credential"
	case kindEvent:
		return "audit event"
	}
	return "unknown record"
}

// recordName names a record in an error: its kind and key, never its content.
func recordName(key []byte) string {
	if len(key) == 0 {
		return "end of the records"
	}
	rest := key[1:]
	if len(rest) > 64 {
		rest = rest[:64]
	}
	switch key[0] {
	case kindHead:
		return "head"
	case kindProfile, kindIssuer, kindDevice, kindByProfile, kindByGroup:
		return fmt.Sprintf("%s %q", kindName(key[0]), rest)
	case kindCredential:
		if id, kind, gen, ok := cutCredential(rest); ok {
			return fmt.Sprintf("%s credential %d of device %q", kind, gen, id)
		}
	case kindToken:
		if len(rest) >= 8 {
			return fmt.Sprintf("token %x", rest[:8])
		}
	case kindEvent:
		if len(rest) == 8 {
			return fmt.Sprintf("audit event %d", binary.BigEndian.Uint64(rest))
		}
	}
	return fmt.Sprintf("%s %x", kindName(key[0]), rest)
}

func headKey() []byte { return []byte{kindHead} }

func deviceKey(canonical string) []byte { return append([]byte{kindDevice}, canonical...) }

// credentialRef names a credential without the kind of record.
func credentialRef(canonical string, kind inventory.CredentialKind, generation uint32) []byte {
	b := make([]byte, 0, len(canonical)+6)
	b = append(b, canonical...)
	b = append(b, 0, byte(kind))
	return binary.BigEndian.AppendUint32(b, generation)
}

// cutCredential takes a credentialRef apart.
func cutCredential(ref []byte) (id string, kind inventory.CredentialKind, generation uint32, ok bool) {
	n := len(ref) - 6
	if n < 1 || ref[n] != 0 {
		return "", 0, 0, false
	}
	return string(ref[:n]), inventory.CredentialKind(ref[n+1]), binary.BigEndian.Uint32(ref[n+2:]), true
}

func credentialKey(ref []byte) []byte { return append([]byte{kindCredential}, ref...) }

// credentialsOf is what the keys of all credentials of a device start with.
func credentialsOf(canonical string) []byte {
	b := append([]byte{kindCredential}, canonical...)
	return append(b, 0)
}

func expiryKey(notAfter time.Time, ref []byte) []byte {
	b := append([]byte{kindByExpiry}, sortableTime(notAfter)...)
	return append(b, ref...)
}

func sortableTime(t time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(t.Unix())^1<<63)
}

func serialKey(serial inventory.Serial, issuer inventory.KeyID) []byte {
	b := append([]byte{kindBySerial}, serial[:]...)
	return append(b, issuer[:]...)
}

func spkiKey(k inventory.SPKI) []byte { return append([]byte{kindKey}, k[:]...) }

func revocationKey(issuer inventory.KeyID, serial inventory.Serial) []byte {
	b := append([]byte{kindRevocation}, issuer[:]...)
	return append(b, serial[:]...)
}

func profileKey(name string) []byte { return append([]byte{kindProfile}, name...) }

func issuerKey(name string) []byte { return append([]byte{kindIssuer}, name...) }

func tokenKey(hash inventory.Hash) []byte { return append([]byte{kindToken}, hash[:]...) }

func workKey(kind, name string) []byte {
	b := append([]byte{kindWork}, kind...)
	return append(append(b, 0), name...)
}

func approvalKey(k inventory.SPKI) []byte { return append([]byte{kindApproval}, k[:]...) }

func eventKey(seq uint64) []byte { return binary.BigEndian.AppendUint64([]byte{kindEvent}, seq) }

// byState, byProfile and byGroup are what the index keys of one value start with.
func byState(s inventory.DeviceState) []byte { return []byte{kindByState, byte(s)} }

func byProfile(name string) []byte { return append(append([]byte{kindByProfile}, name...), 0) }

func byGroup(name string) []byte { return append(append([]byte{kindByGroup}, name...), 0) }

// deviceIndex returns the index entries of a device. Active has none by state:
// it is what most devices are, so a scan serves it as well, and an enrolment
// writes one page less.
func deviceIndex(d *inventory.Device) [][]byte {
	id := d.ID.Canonical()
	var keys [][]byte
	if d.State != inventory.Active {
		keys = append(keys, append(byState(d.State), id...))
	}
	if d.Profile != "" {
		keys = append(keys, append(byProfile(d.Profile), id...))
	}
	if d.Group != "" {
		keys = append(keys, append(byGroup(d.Group), id...))
	}
	return keys
}
