// Package agent keeps the certificate of a Linux device alive: it enrolls it,
// renews it in time, proves the new one to the broker before the old one ends, and
// never leaves the device without a pair that works.
//
// All state is in one directory, and every step is one durable change of it; what
// to do next follows from what is there. So the agent can be killed, or lose its
// power, at any moment, and goes on where it was.
package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/imprint-iot/imprint/inventory/durable"
)

// A Config is what a person writes, in JSON. Server, Trust, Device and State must
// be set.
type Config struct {
	Server string `json:"server"` // https://enroll.example:8443
	Trust  string `json:"trust"`  // file with the fleet's roots, PEM
	Device string `json:"device"` // the device's ID
	State  string `json:"state"`  // directory of the agent's own

	// Key is how private keys are made: "file" (default) in the state directory,
	// "tpm:PATH" by the TPM 2.0 at PATH, as /dev/tpmrm0, or, in builds with -tags
	// pkcs11, a PKCS #11 URI (RFC 7512) with a token and a pin-source.
	Key string `json:"key,omitempty"`

	// Algorithm is that of a key: P-256 (default) or P-384.
	Algorithm string `json:"algorithm,omitempty"`

	// Broker is host:port of the broker's listener for certificates. A new pair is
	// tried there before the old one ends. Without it, connecting to the server
	// has to do.
	Broker string `json:"broker,omitempty"`

	// ClientID is the MQTT client ID for that. If it were the one that the device
	// itself connects with, that session would end. Default: the device's ID and
	// "-agent". A broker that takes the client ID from the certificate, as imprint
	// configures Mosquitto, ends that session all the same, for the moment of the
	// trial: the device connects again, as it has to for its new pair anyway.
	ClientID string `json:"client_id,omitempty"`

	// Hook is a program and its arguments, run without a shell when the pair has
	// changed, as to make the MQTT client read it again.
	Hook []string `json:"hook,omitempty"`

	// Certificate and PrivateKey are files of a pair to enroll with instead of a
	// token: a birth certificate (IDevID), PEM.
	Certificate string `json:"certificate,omitempty"`
	PrivateKey  string `json:"private_key,omitempty"`
}

// maxConfig is the size of the largest configuration file, in bytes.
const maxConfig = 64 << 10

// ErrConfig reports a configuration that cannot be used.
var ErrConfig = errors.New("agent configuration")

// ReadConfig reads a configuration file. The error wraps [ErrConfig].
func ReadConfig(path string) (Config, error) {
	var c Config
	if err := onlyOwnerWrites(path); err != nil {
		return c, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return c, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	defer func() { _ = f.Close() }()
	dec := json.NewDecoder(io.LimitReader(f, maxConfig))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return c, fmt.Errorf("%w: %s: %w", ErrConfig, path, err)
	}
	return c, c.check()
}

func (c *Config) check() error {
	u, err := url.Parse(c.Server)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("%w: server %.100q: want a URL as https://enroll.example:8443", ErrConfig, c.Server)
	case c.Trust == "":
		return fmt.Errorf("%w: trust: a file with the roots of the fleet is required", ErrConfig)
	case c.Device == "" || c.State == "":
		return fmt.Errorf("%w: device and state are required", ErrConfig)
	case (c.Certificate == "") != (c.PrivateKey == ""):
		return fmt.Errorf("%w: certificate and private_key go together", ErrConfig)
	case c.Algorithm != "" && c.Algorithm != "P-256" && c.Algorithm != "P-384":
		return fmt.Errorf("%w: algorithm %.40q: want P-256 or P-384", ErrConfig, c.Algorithm)
	}
	if c.Broker != "" {
		if _, _, err := net.SplitHostPort(c.Broker); err != nil {
			return fmt.Errorf("%w: broker %.100q: want host:port", ErrConfig, c.Broker)
		}
	}
	return nil
}

func (c *Config) clientID() string {
	if c.ClientID != "" {
		return c.ClientID
	}
	return c.Device + "-agent"
}

// onlyOwnerWrites refuses a file, or a directory, that others may change: whoever
// writes it decides which server is trusted and which program runs.
func onlyOwnerWrites(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be written by others: chmod go-w it", path)
	}
	return nil
}

// openState opens the state directory, alone.
func openState(path string) (*durable.Dir, *durable.Lock, error) {
	dir, err := durable.CreateDir(path)
	if err != nil {
		return nil, nil, err
	}
	if err := onlyOwnerWrites(filepath.Clean(path)); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%w: %w", ErrConfig, err), dir.Close())
	}
	lock, err := dir.Lock("lock")
	if err != nil {
		return nil, nil, errors.Join(err, dir.Close())
	}
	return dir, lock, nil
}

// Files of the state directory.
//
//	current        link to the pair that the device uses
//	pairs/N/       key.pem, cert.pem (the leaf and its issuer), the N-th pair
//	next/          key.pem of the pair that is being asked for
//	trust.pem      the roots, as the server has last sent them
//	status.json    what the agent does, for people
//	clock          the latest time that is known to have been
const (
	currentLink = "current"
	pairsDir    = "pairs"
	nextDir     = "next"
	trustFile   = "trust.pem"
	statusFile  = "status.json"
	clockFile   = "clock"
	keyFile     = "key.pem"
	certFile    = "cert.pem"
	passFile    = "password"
)

const maxPEM = 64 << 10 // bytes

// A Status is what the agent has to say of itself.
type Status struct {
	Device   string    `json:"device"`
	State    State     `json:"state"`
	Serial   string    `json:"serial,omitempty"` // of the pair in use
	NotAfter time.Time `json:"not_after,omitzero"`
	Next     time.Time `json:"next,omitzero"` // when something is tried next
	Tries    int       `json:"tries,omitempty"`
	Code     string    `json:"code,omitempty"`  // of the last error: a problem code, or "network", "disk", "broker", "hook"
	Error    string    `json:"error,omitempty"` // the last one, in words
	Hint     string    `json:"hint,omitempty"`  // what to do about it
	Updated  time.Time `json:"updated"`
}

// A State says where the agent is.
type State string

// The states.
const (
	NoPair   State = "no-pair"  // nothing to renew: enroll first
	Waiting  State = "waiting"  // the pair is good
	Renewing State = "renewing" // a new one is asked for
	Proving  State = "proving"  // a new one is tried at the broker
	Ended    State = "ended"    // the device is revoked, or its certificate too old: somebody has to act
)

// ReadStatus returns what the agent on a state directory said last. It needs no
// lock. The error wraps [fs.ErrNotExist] if it never said anything.
func ReadStatus(cfg Config) (Status, error) {
	var s Status
	dir, err := durable.OpenDir(cfg.State)
	if err != nil {
		return s, err
	}
	defer func() { _ = dir.Close() }()
	b, err := dir.ReadFile(statusFile, maxPEM)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(b, &s)
}
