package ca

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// A Kind is what a certificate is for. It fixes the extended key usage, and with
// it which CA may issue: nobody can write a profile that makes a device a broker.
type Kind string

// The kinds of a certificate profile.
const (
	KindDevice    Kind = "device"         // operational certificate (LDevID): clientAuth, SAN URI
	KindServer    Kind = "server"         // broker or imprint itself: serverAuth, DNS names and addresses
	KindResponder Kind = "ocsp-responder" // imprint itself, when it answers for an issuer: OCSPSigning, no names
	KindIDevID    Kind = "idevid"         // birth certificate, IEEE 802.1AR: hardwareModuleName, no extended key usage

	// KindVerification proves to somebody with whom a CA is being registered, as
	// AWS IoT Core or Azure IoT Hub, that one has its key: the common name is the
	// code that they gave. Nobody can log in with it: documentSigning, no names.
	KindVerification Kind = "ca-verification"
)

// A Config is a certificate profile as a person writes it. The zero value is a
// sane device profile. [NewProfile] checks it.
type Config struct {
	// Kind is KindDevice if empty.
	Kind Kind `json:"kind,omitempty" yaml:"kind,omitempty"`

	// Validity is the time from notBefore to notAfter, both included
	// (RFC 5280 §4.1.2.5). Zero means 730d for a device, 365d for a server, 24h
	// for a verification, which may have no more, and "never" for an IDevID. A
	// certificate never outlives its issuer, except an IDevID with "never", whose
	// path ends when the issuer's does.
	Validity Duration `json:"validity,omitempty" yaml:"validity,omitempty"`

	// Backdate moves notBefore into the past, for devices whose clock is behind.
	// It is part of Validity. Zero means 5m; at most 24h.
	Backdate Duration `json:"backdate,omitempty" yaml:"backdate,omitempty"`

	// Keys are the key algorithms allowed; none means P-256 and P-384.
	Keys []KeyAlgorithm `json:"keys,omitempty" yaml:"keys,omitempty"`

	// SANURI is the subject alternative name of a device, with {id} and
	// {trust-domain} filled in. Empty means
	// "spiffe://{trust-domain}/device/{id}"; "none" means none. Only for devices.
	SANURI string `json:"san-uri,omitempty" yaml:"san-uri,omitempty"`

	// Lean leaves out the subject key identifier, which RFC 5280 §4.2.1.2 only
	// recommends for end entities: 29 bytes less on the wire.
	Lean bool `json:"lean,omitempty" yaml:"lean,omitempty"`

	// CRLDistributionPoints, OCSP and CAIssuers are http or https URLs, at most 4
	// each. They cost a device about 50 bytes each per handshake and only the
	// broker reads them, so there are none by default.
	CRLDistributionPoints []string `json:"crl-distribution-points,omitempty" yaml:"crl-distribution-points,omitempty"`
	OCSP                  []string `json:"ocsp,omitempty" yaml:"ocsp,omitempty"`
	CAIssuers             []string `json:"ca-issuers,omitempty" yaml:"ca-issuers,omitempty"`

	// IDevID is for KindIDevID, which needs it, and for no other kind.
	IDevID IDevIDConfig `json:"idevid,omitzero" yaml:"idevid,omitempty"`
}

// An IDevIDConfig is what only a birth certificate has.
type IDevIDConfig struct {
	// HardwareType is the hwType of hardwareModuleName (RFC 4108 §5): an object
	// identifier in dotted form under the maker's private enterprise number,
	// like "1.3.6.1.4.1.32473.7".
	HardwareType string `json:"hardware-type,omitempty" yaml:"hardware-type,omitempty"`

	// PermanentIdentifier adds a permanentIdentifier (RFC 4043) with the hardware
	// serial number. Its assigner is HardwareType.
	PermanentIdentifier bool `json:"permanent-identifier,omitempty" yaml:"permanent-identifier,omitempty"`
}

const (
	defaultSANURI = "spiffe://{trust-domain}/device/{id}"
	noSANURI      = "none"
	maxURLs       = 4
	maxURLLength  = 255

	// maxVerification is how long a proof of possession is good: it is made for a
	// code that somebody is waiting for.
	maxVerification = Duration(day)
)

// A Profile is a [Config] that has passed validation. It does not change and is
// safe for concurrent use.
type Profile struct {
	config     Config // with the defaults filled in
	policy     KeyPolicy
	hash       [32]byte
	extensions profileExtensions
}

// NewProfile checks a Config. The error is a [*ConfigError] that names the field.
func NewProfile(c Config) (*Profile, error) {
	c = c.withDefaults()
	for _, check := range []func(Config) error{checkTimes, checkKeys, checkSANURI, checkURLs, checkIDevID} {
		if err := check(c); err != nil {
			return nil, err
		}
	}
	canonical, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encoding profile: %w", err)
	}
	p := &Profile{config: c, policy: KeyPolicy{Allow: c.Keys}, hash: sha256.Sum256(canonical)}
	if p.extensions, err = encodeProfile(c); err != nil {
		return nil, fmt.Errorf("encoding profile: %w", err)
	}
	return p, nil
}

// Config returns the configuration with every default filled in. The caller may
// change what it gets.
func (p *Profile) Config() Config { return p.config.clone() }

// Hash identifies the profile: the SHA-256 hash of its configuration with every
// default filled in, as JSON. Record it with a certificate, so that one can tell
// later what it was issued under.
func (p *Profile) Hash() [32]byte { return p.hash }

// KeyPolicy returns the policy for [ParseRequest] and [NewRequest]. It blocks no
// keys; the caller sets Blocked.
func (p *Profile) KeyPolicy() KeyPolicy { return KeyPolicy{Allow: slices.Clone(p.policy.Allow)} }

// Names are the names in the certificate of a device with an ID: the common name
// and, if the profile has one, the SAN URI. A request may have them.
func (p *Profile) Names(id, trustDomain string) []string {
	if p.config.SANURI == "" || p.config.SANURI == noSANURI {
		return []string{id}
	}
	return []string{id, fillSANURI(p.config.SANURI, id, trustDomain)}
}

func (c Config) clone() Config {
	c.Keys = slices.Clone(c.Keys)
	c.CRLDistributionPoints = slices.Clone(c.CRLDistributionPoints)
	c.OCSP = slices.Clone(c.OCSP)
	c.CAIssuers = slices.Clone(c.CAIssuers)
	return c
}

func (c Config) withDefaults() Config {
	c = c.clone()
	if c.Kind == "" {
		c.Kind = KindDevice
	}
	if c.Validity == 0 {
		switch c.Kind {
		case KindServer:
			c.Validity = Duration(365 * day)
		case KindResponder:
			c.Validity = Duration(30 * day)
		case KindVerification:
			c.Validity = maxVerification
		case KindIDevID:
			c.Validity = Never
		case KindDevice:
			c.Validity = Duration(730 * day)
		}
	}
	if c.Backdate == 0 {
		c.Backdate = Duration(5 * time.Minute)
	}
	if len(c.Keys) == 0 {
		c.Keys = []KeyAlgorithm{P256, P384}
	}
	if c.SANURI == "" && c.Kind == KindDevice {
		c.SANURI = defaultSANURI
	}
	return c
}

func checkTimes(c Config) error {
	switch c.Kind {
	case KindDevice, KindServer, KindResponder, KindIDevID, KindVerification:
	default:
		return badConfig("kind", string(c.Kind), "device, server, ocsp-responder, idevid or ca-verification")
	}
	if c.Validity < Duration(time.Minute) || c.Validity%Duration(time.Second) != 0 && c.Validity != Never {
		return badConfig("validity", c.Validity.String(), "at least 1m, in whole seconds")
	}
	if c.Validity == Never && (c.Kind == KindServer || c.Kind == KindResponder) {
		return badConfig("validity", c.Validity.String(), `an end; "never" is for devices that cannot renew`)
	}
	if c.Kind == KindVerification && c.Validity > maxVerification {
		return badConfig("validity", c.Validity.String(), "at most 24h: it is shown once")
	}
	if c.Backdate < 0 || c.Backdate > Duration(day) {
		return badConfig("backdate", c.Backdate.String(), "at most 24h")
	}
	if c.Backdate >= c.Validity {
		return badConfig("backdate", c.Backdate.String(), "less than validity")
	}
	return nil
}

func checkKeys(c Config) error {
	for i, k := range c.Keys {
		if !k.known() {
			return badConfig("keys", string(k), "P-256, P-384, P-521, Ed25519, RSA-2048, RSA-3072 or RSA-4096")
		}
		if slices.Contains(c.Keys[:i], k) {
			return badConfig("keys", string(k), "each algorithm once")
		}
	}
	return nil
}

func checkSANURI(c Config) error {
	if c.Kind != KindDevice {
		if c.SANURI != "" {
			return badConfig("san-uri", c.SANURI, "nothing: only device certificates have it")
		}
		return nil
	}
	if c.SANURI == noSANURI {
		return nil
	}
	const want = `a URI with {id} in it, and perhaps {trust-domain}, or "none"`
	if strings.Count(c.SANURI, "{id}") != 1 {
		return badConfig("san-uri", c.SANURI, want)
	}
	filled := fillSANURI(c.SANURI, "x", "example.org")
	u, err := url.Parse(filled)
	if err != nil || u.Scheme == "" || strings.ContainsAny(filled, "{}<>\"\\^`| ") || !printable([]byte(filled)) || len(filled) > maxURLLength {
		return badConfig("san-uri", c.SANURI, want)
	}
	return nil
}

func fillSANURI(template, id, trustDomain string) string {
	// Neither value can hold a brace, so the order does not matter.
	return strings.ReplaceAll(strings.ReplaceAll(template, "{id}", id), "{trust-domain}", trustDomain)
}

func checkURLs(c Config) error {
	for _, list := range []struct {
		field string
		urls  []string
	}{
		{"crl-distribution-points", c.CRLDistributionPoints},
		{"ocsp", c.OCSP},
		{"ca-issuers", c.CAIssuers},
	} {
		if err := checkURLList(list.field, list.urls); err != nil {
			return err
		}
	}
	return nil
}

func checkURLList(field string, urls []string) error {
	if len(urls) > maxURLs {
		return badConfig(field, urls[maxURLs], fmt.Sprintf("at most %d URLs", maxURLs))
	}
	for _, s := range urls {
		u, err := url.Parse(s)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil ||
			u.Fragment != "" || !printable([]byte(s)) || strings.Contains(s, " ") || len(s) > maxURLLength {
			return badConfig(field, s, "an http or https URL of at most 255 ASCII characters")
		}
	}
	return nil
}

func checkIDevID(c Config) error {
	if c.Kind != KindIDevID {
		if c.IDevID != (IDevIDConfig{}) {
			return badConfig("idevid", c.IDevID.HardwareType, "nothing: only kind idevid has it")
		}
		return nil
	}
	if _, err := parseOID(c.IDevID.HardwareType); err != nil {
		return badConfig("idevid.hardware-type", c.IDevID.HardwareType, `an object identifier like "1.3.6.1.4.1.32473.7"`)
	}
	return nil
}
