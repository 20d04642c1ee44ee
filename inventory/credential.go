package inventory

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// A CredentialKind is what a device proves its identity with. The values are
// stored: do not reorder.
type CredentialKind uint8

// The kinds of credential.
const (
	CertificateCredential CredentialKind = iota + 1
	PasswordCredential
)

var credentialKinds = [...]string{CertificateCredential: "certificate", PasswordCredential: "password"}

// String is the kind in lower case.
func (k CredentialKind) String() string { return name(credentialKinds[:], uint8(k)) }

// MarshalText implements [encoding.TextMarshaler].
func (k CredentialKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// A CredentialState says whether a credential may be used. That a certificate
// has expired is not a state: it follows from the clock. The values are stored:
// do not reorder.
type CredentialState uint8

// The states of a credential. CredentialRevoked is final.
const (
	CredentialActive  CredentialState = iota + 1
	CredentialHeld                    // certificateHold: undone by Resume
	CredentialRevoked                 // for ever
)

var credentialStates = [...]string{CredentialActive: "active", CredentialHeld: "held", CredentialRevoked: "revoked"}

// String is the state in lower case.
func (s CredentialState) String() string { return name(credentialStates[:], uint8(s)) }

// MarshalText implements [encoding.TextMarshaler].
func (s CredentialState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Reason is a CRLReason of RFC 5280 §5.3.1, by its number there.
type Reason uint8

// The reasons imprint gives. RFC 5280 numbers them.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	CACompromise         Reason = 2
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
	CertificateHold      Reason = 6
	PrivilegeWithdrawn   Reason = 9
)

var reasons = [...]string{
	Unspecified: "unspecified", KeyCompromise: "keyCompromise", CACompromise: "cACompromise",
	AffiliationChanged: "affiliationChanged", Superseded: "superseded", CessationOfOperation: "cessationOfOperation",
	CertificateHold: "certificateHold", PrivilegeWithdrawn: "privilegeWithdrawn",
}

// String is the name in RFC 5280.
func (r Reason) String() string { return name(reasons[:], uint8(r)) }

// MarshalText implements [encoding.TextMarshaler].
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// ParseReason reads the name of a reason for which a credential can be revoked
// for good.
func ParseReason(text string) (Reason, error) {
	for _, r := range []Reason{Unspecified, KeyCompromise, AffiliationChanged, Superseded, CessationOfOperation, PrivilegeWithdrawn} {
		if r.String() == text {
			return r, nil
		}
	}
	return 0, &InvalidError{Field: "reason", Value: text, Want: "unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation or privilegeWithdrawn"}
}

// A Credential is one certificate or one generation of a password. It is named
// by device, kind and generation.
type Credential struct {
	Device     DeviceID
	Kind       CredentialKind
	Generation uint32 // counts from 1 for each device and kind
	State      CredentialState

	Certificate *Certificate // of a CertificateCredential
	Verifiers   []Verifier   // of a PasswordCredential; none once it is revoked

	Created    time.Time // UTC, whole seconds
	ReplacedBy uint32    // the generation that took over, or 0
	FirstSeen  time.Time // when it was first seen in use; zero if never
	RevokedAt  time.Time // when it was first revoked or held; zero if never
	Reason     Reason    // why, if RevokedAt is set

	// Revision is the revision of the store at which the credential was last
	// changed. Zero asks for a new one.
	Revision uint64
}

// A Certificate is what the inventory knows of an X.509 certificate. Only
// [ReadCertificate] and a store make one, so the fields always agree with DER.
type Certificate struct {
	DER       []byte
	Serial    Serial
	SPKI      SPKI
	Issuer    KeyID // the authority key identifier
	NotBefore time.Time
	NotAfter  time.Time // inclusive, RFC 5280 §4.1.2.5
}

// Fingerprint is the SHA-256 hash of the certificate.
func (c *Certificate) Fingerprint() Fingerprint { return sha256.Sum256(c.DER) }

// ReadCertificate reads a certificate that imprint made. One that does not have
// a serial number of 16 octets and an authority key identifier of 20 is not ours
// and is refused.
func ReadCertificate(der []byte) (*Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading certificate: %w", err)
	}
	c := &Certificate{
		DER:       der,
		SPKI:      sha256.Sum256(cert.RawSubjectPublicKeyInfo),
		NotBefore: cert.NotBefore.UTC(),
		NotAfter:  cert.NotAfter.UTC(),
	}
	if cert.SerialNumber.Sign() <= 0 || cert.SerialNumber.BitLen() > 8*len(c.Serial) || len(cert.AuthorityKeyId) != len(c.Issuer) {
		return nil, fmt.Errorf("reading certificate: %w", &InvalidError{Field: "certificate", Value: cert.SerialNumber.Text(16), Want: "a serial number of 16 octets and an authority key identifier of 20"})
	}
	cert.SerialNumber.FillBytes(c.Serial[:])
	copy(c.Issuer[:], cert.AuthorityKeyId)
	return c, nil
}

// A Scheme is the form a password verifier is stored in. One scheme serves every
// broker that can read it. The values are stored: do not reorder.
type Scheme uint8

// The schemes.
const (
	// PBKDF2SHA512: Hash = PBKDF2-HMAC-SHA512(password, Salt, Iterations, 64).
	// Mosquitto's $7$ and dynamic security, FlashMQ and HiveMQ read it.
	PBKDF2SHA512 Scheme = iota + 1
	// SHA512Suffix: Hash = SHA-512(password, Salt). Mosquitto's $6$, EMQX with
	// salt_position = suffix.
	SHA512Suffix
	// SHA256Suffix: Hash = SHA-256(password, Salt). EMQX with salt_position =
	// suffix.
	SHA256Suffix
	// RabbitSHA256: Hash = SHA-256(Salt, password) with a salt of 4 octets.
	RabbitSHA256
	// Bcrypt: Hash is the text "$2b$..."; Salt is empty.
	Bcrypt
	// Argon2id: Hash is the PHC string "$argon2id$..."; Salt is empty.
	Argon2id
	// SHA512Prefix: Hash = SHA-512(Salt, password). HiveMQ's Enterprise Security
	// Extension with one iteration.
	SHA512Prefix
	// PBKDF2SHA1: Hash = PBKDF2-HMAC-SHA1(password, Salt, Iterations, 128). Mosca,
	// with 10,000 iterations, and ActiveMQ Artemis.
	PBKDF2SHA1
)

var schemes = [...]string{PBKDF2SHA512: "pbkdf2-sha512", SHA512Suffix: "sha512-suffix", SHA256Suffix: "sha256-suffix", RabbitSHA256: "rabbitmq-sha256", Bcrypt: "bcrypt", Argon2id: "argon2id", SHA512Prefix: "sha512-prefix", PBKDF2SHA1: "pbkdf2-sha1"}

// String is the name of the scheme.
func (s Scheme) String() string { return name(schemes[:], uint8(s)) }

// ParseScheme reads the name of a scheme.
func ParseScheme(text string) (Scheme, error) {
	n, err := parseEnum("password scheme", schemes[:], text)
	return Scheme(n), err
}

// A Verifier is what is kept of a password: enough to check it, not to know it.
type Verifier struct {
	Scheme     Scheme
	Iterations uint32 // of PBKDF2
	Salt       []byte
	Hash       []byte
}

// Verifier returns the verifier of scheme s, and whether there is one.
func (c *Credential) Verifier(s Scheme) (Verifier, bool) {
	if i := slices.IndexFunc(c.Verifiers, func(v Verifier) bool { return v.Scheme == s }); i >= 0 {
		return c.Verifiers[i], true
	}
	return Verifier{}, false
}

// Usable reports whether the credential can be used to log in at the time now.
func (c *Credential) Usable(now time.Time) bool {
	return c.State == CredentialActive && (c.Certificate == nil || !now.After(c.Certificate.NotAfter))
}

// Validate reports a field outside its grammar as an [*InvalidError].
func (c *Credential) Validate() error {
	bad := func(want string) error {
		return &InvalidError{Field: c.Kind.String() + " credential of device", Value: string(c.Device), Want: want}
	}
	switch {
	case c.Device == "" || c.Generation == 0:
		return bad("a device and a generation")
	case c.Kind == CertificateCredential && (c.Certificate == nil || len(c.Certificate.DER) == 0 || c.Certificate.Serial.IsZero() || c.Certificate.SPKI.IsZero()):
		return bad("a certificate made by ReadCertificate")
	case c.Kind == PasswordCredential && c.Certificate != nil:
		return bad("no certificate in a password")
	case c.Kind != CertificateCredential && c.Kind != PasswordCredential:
		return bad("a known kind")
	case c.State < CredentialActive || c.State > CredentialRevoked:
		return bad("a known state")
	case c.State != CredentialActive && c.RevokedAt.IsZero():
		return bad("the time of revocation")
	case c.Kind == PasswordCredential && c.State == CredentialRevoked && len(c.Verifiers) > 0:
		return bad("no verifier of a revoked password")
	}
	return nil
}
