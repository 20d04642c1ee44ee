// Package templates turns one moment of a fleet into the files that a broker
// reads.
//
// A [View] is the fleet at that moment: which devices may connect, how they
// prove who they are, and what they may publish and receive, with every name
// filled in. A [Target] is one broker: it writes a view as files and reads such
// files back as a view. The folder below this one that has a broker's name is
// everything imprint knows of that broker.
//
// All targets write through [Export], which makes an export one act: every file
// is written beside the export that is there, read back with the target's own
// strict parser and compared with the view, and only then put in place, each
// file by one rename. A broker that reads while this happens sees the old file
// or the new one, whole; [Verify] tells whether the files belong together.
//
// An export never escapes and hopes. IDs and topic filters that are not exactly
// in their grammar are refused here as they were at the door.
package templates

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strings"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// A View is one moment of the fleet, resolved for an export. The sequences may
// be ranged over several times; each range is a fresh pass over the same moment
// and stops after its first error.
type View interface {
	// Revision is the revision of the store at that moment.
	Revision() uint64

	// Fleet names the fleet.
	Fleet() Fleet

	// Node is the broker the export is for.
	Node() Node

	// Profiles yields the device profiles by name, also those without a device.
	Profiles() iter.Seq2[inventory.Profile, error]

	// Entries yields the devices that may connect, in the order of canonical
	// IDs.
	Entries() iter.Seq2[Entry, error]

	// TrustBundle is the set of CA certificates, in PEM, that client
	// certificates are checked with.
	TrustBundle() []byte

	// CRLs are the revocation lists, one per issuer.
	CRLs() []CRL
}

// A Partial is a [View] read back from files, which know less than the fleet.
type Partial interface {
	View

	// Carry returns what of e the files are able to hold, and false if a device
	// like e leaves no trace in them: a device with only a certificate is not
	// named by rules that hold for everybody.
	Carry(e Entry) (Entry, bool)

	// Omits says what the files do not hold for anybody.
	Omits() Omits
}

// A Fleet is what a fleet is called.
type Fleet struct {
	Name        string // the organization of its certificates
	TrustDomain string // of its SPIFFE IDs; may be empty
}

// A Node is one broker process: what it is called and where it listens.
type Node struct {
	Name        string           // of the server in the inventory
	Hosts       []string         // DNS names and IP addresses in its certificate
	ServerChain []byte           // PEM, the server's certificate first, without the root
	ServerKey   inventory.Secret // PEM, PKCS #8, not encrypted

	Bind            string // IP address to listen at; empty: all
	CertificatePort uint16 // mutual TLS; 0 means 8883
	PasswordPort    uint16 // password over TLS; 0 means 8884
	Admin           *Admin // local access for imprint itself; nil: none
}

// The ports that zero in a [Node] means.
const (
	DefaultCertificatePort = 8883 // secure-mqtt in the IANA registry
	DefaultPasswordPort    = 8884
)

// AdminName is the user name of imprint itself at a broker. No device can have
// it: it is a reserved ID.
const AdminName = "imprint-admin"

// An Admin is the account of a local administrator of the broker, who may
// publish and receive everything.
type Admin struct {
	Socket    string               // path of a Unix socket, or an HTTP URL: the target says which
	Verifiers []inventory.Verifier // of its password
}

// An Entry is one device that may connect.
type Entry struct {
	ID             inventory.DeviceID
	HardwareSerial string
	Profile        string
	Group          string
	Labels         inventory.Labels
	Revision       uint64

	// Certificate reports whether the device has a usable certificate.
	Certificate bool

	// Leafs are the usable certificates of the device, in DER, the newest last. They
	// are for targets that register certificates one by one, and are in no view that
	// was read back.
	Leafs [][]byte

	// Verifiers are those of the live password; nil if it has none.
	Verifiers []inventory.Verifier

	// Grants are the rights of the device: its policy with the names filled in.
	Grants []topic.Grant
}

// A CRL is a certificate revocation list (RFC 5280 §5).
type CRL struct {
	Issuer     string // the name of the issuer in the inventory
	DER        []byte
	Number     uint64
	ThisUpdate time.Time
	NextUpdate time.Time
	Entries    int
}

// A Target is a broker that imprint can write files for. Every implementation
// passes targettest.Run. Targets are safe for concurrent use.
type Target interface {
	// Capabilities says what the broker can and cannot do.
	Capabilities() Capabilities

	// Check reports whether the broker can enforce the policy of p, exactly. If
	// not, the error is an [*InexpressibleError].
	Check(p inventory.Profile) error

	// Write puts the files of v into dst by means of [Export]. On an error the
	// files that were there are there still.
	Write(dst *durable.Dir, v View, o Options) (Summary, error)

	// Parse reads files of the broker, ours or others', as strictly as the
	// strictest version of the broker. What it cannot represent is an error.
	// The view is a [Partial].
	Parse(src fs.FS) (View, error)
}

// Capabilities say what a target can do. Texts are for people.
type Capabilities struct {
	Name     string             // as on the command line: "mosquitto"
	Title    string             // "Eclipse Mosquitto"
	Versions []string           // broker versions, the default first
	Forms    []string           // forms of the export, the default first
	Schemes  []inventory.Scheme // password verifiers it reads, best first

	CertificateIdentity bool // takes the user name from the certificate
	Password            bool // knows passwords
	Both                bool // can ask one connection for certificate and password
	ClientIDBinding     bool // keeps a client identifier to its user
	SubscribeControl    bool // refuses a SUBSCRIBE, rather than not deliver
	CRL                 bool // reads CRLs
	LiveKick            bool // can end a session of a revoked device

	Limits            string // of scale
	RevocationLatency string // how long a revoked device may go on
}

// Options say how to export. The zero value is a good choice.
type Options struct {
	Version     string        // of the broker; empty: the target's default
	Form        string        // one of the target's forms; empty: its default
	AllowShrink bool          // go on when many devices are missing: see [ErrShrink]
	Dest        string        // absolute path of the files on the broker's host; empty: where they are written
	Signer      crypto.Signer // ECDSA P-256, signs the manifest; nil: it is not signed
	SignerName  string        // of the certificate of Signer, for whoever verifies
	Now         time.Time     // zero means time.Now
	Warn        func(string)  // told each warning as it comes up; may be nil

	// Service is where the broker asks, in a form that leaves decisions to a running
	// imprint. Only such a form needs it.
	Service Service

	// Approximated are the rules that the view is without, because the broker cannot
	// express them: see [Narrow]. They are named in the manifest.
	Approximated []*InexpressibleError

	// Passwords are those that whoever exports happens to know. Only a driver of a
	// running broker that takes no hashes uses them; they are written nowhere.
	Passwords map[inventory.DeviceID]inventory.Secret
}

// A Service is a running imprint that answers brokers.
type Service struct {
	URL   string           // "https://imprint.example:8443": a scheme, a host and a port
	Token inventory.Secret // of the role broker, in its text form
}

// Login is the URL with the token as a password (RFC 3986 §3.2.1), for brokers that
// can send no header of their own. A service that is not one is an
// [*inventory.InvalidError].
func (s Service) Login() (string, error) {
	token := string(s.Token.Reveal())
	if err := checkService(s.URL, token); err != nil {
		return "", err
	}
	scheme, host, _ := strings.Cut(s.URL, "://")
	return scheme + "://broker:" + token + "@" + host, nil
}

// A Summary is what an export came to.
type Summary struct {
	Files    []FileInfo
	Devices  int // that may connect
	Users    int // with a password
	Rules    int // lines or entries of topic rules
	Warnings []string

	// Changed reports whether a file that the broker reads is new or other than
	// before: whether there is something to reload.
	Changed bool
}

// FileInfo describes one file of an export.
type FileInfo struct {
	Name    string      `json:"name"`
	SHA256  string      `json:"sha256"` // lower-case hexadecimal
	Bytes   int64       `json:"bytes"`
	Mode    fs.FileMode `json:"-"`
	Changed bool        `json:"-"`
}

// What a caller can do about an error from an export, one sentinel each.
var (
	// ErrShrink reports that the export would lose many devices of the one that
	// is there, which more often is a mistake than a wish. [Options.AllowShrink]
	// says it is one.
	ErrShrink = errors.New("export would lose devices")

	// ErrParseBack reports that what was written does not read back as what was
	// meant. The old files are in place. It is a fault of imprint.
	ErrParseBack = errors.New("export does not read back as the fleet")

	// ErrStale reports a CRL that is past its nextUpdate: with it a broker would
	// refuse every device. Sign a new one.
	ErrStale = errors.New("CRL has expired")

	// ErrManifest reports files that are not those of the manifest, or a
	// manifest that is not what was signed. Export again.
	ErrManifest = errors.New("export is not what was written")
)

// An InexpressibleError reports that a broker cannot enforce a rule as it is
// meant. Nothing was written.
type InexpressibleError struct {
	Target  string // name of the target
	Rule    string // "profile sensor, rule 2: receive d/{id}/#"
	Why     string
	Choices []string // what one can do instead
}

// Error names the rule, the reason and the choices.
func (e *InexpressibleError) Error() string {
	text := fmt.Sprintf("%s cannot express %s: %s", e.Target, e.Rule, e.Why)
	for i, c := range e.Choices {
		if i == 0 {
			text += " ("
		} else {
			text += ", or "
		}
		text += c
	}
	if len(e.Choices) > 0 {
		text += ")"
	}
	return text
}

// An EntryError reports a device that cannot be exported.
type EntryError struct {
	ID  inventory.DeviceID
	Why string
}

// Error names the device, quoted and cut to 128 bytes.
func (e *EntryError) Error() string { return fmt.Sprintf("device %.128q: %s", e.ID, e.Why) }
