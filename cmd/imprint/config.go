package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
)

// configFile is the configuration of a fleet, in its directory.
const configFile = "imprint.yaml"

// configVersion is the version of the fleet directory's layout that this imprint
// writes. It reads this one and none that is newer.
const configVersion = 1

// maxConfig is the largest configuration file that is read, in bytes.
const maxConfig = 256 << 10

// config is imprint.yaml. A new key must have a zero value that works.
type config struct {
	Version     int    `yaml:"version"`
	Instance    string `yaml:"instance"`     // ties the database to this directory
	Name        string `yaml:"name"`         // O of every certificate
	TrustDomain string `yaml:"trust-domain"` // of the SPIFFE IDs in certificates

	Broker          brokerConfig `yaml:"broker"`
	PasswordSchemes []string     `yaml:"password-schemes,omitempty"` // bcrypt, argon2id, pbkdf2-sha1
	CRLValidity     ca.Duration  `yaml:"crl-validity,omitempty"`     // zero means 7d
	Server          serverConfig `yaml:"server,omitempty"`           // of imprint serve
}

// brokerConfig is the broker node that the fleet talks to.
type brokerConfig struct {
	Node            string   `yaml:"node"`  // its name in the inventory
	Hosts           []string `yaml:"hosts"` // DNS names and IP addresses, the first is written into bundles
	CertificatePort uint16   `yaml:"certificate-port"`
	PasswordPort    uint16   `yaml:"password-port"`
}

// decodeYAML reads YAML into v. An unknown key, a repeated one or a wrong type is
// an error that names the line.
func decodeYAML(what string, data []byte, v any) error {
	dec := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict(), yaml.DisallowUnknownField())
	if err := dec.Decode(v); err != nil {
		return configErrorf("%s: %s", what, yaml.FormatError(err, false, false))
	}
	return nil
}

// loadConfig reads the configuration of a fleet directory.
func loadConfig(dir *durable.Dir) (config, [16]byte, error) {
	var c config
	var instance [16]byte
	data, err := dir.ReadFile(configFile, maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return c, instance, configErrorf("%s is no fleet directory: it has no %s (imprint init makes one)", dir.Path(), configFile)
	}
	if err != nil {
		return c, instance, configError{err}
	}
	var peek struct {
		Version int `yaml:"version"`
	}
	if err := yaml.Unmarshal(data, &peek); err == nil && peek.Version > configVersion {
		return c, instance, configErrorf("%s: version %d was made by a newer imprint; this one knows version %d", configFile, peek.Version, configVersion)
	}
	if err := decodeYAML(configFile, data, &c); err != nil {
		return c, instance, err
	}
	if instance, err = inventory.ParseInstance(c.Instance); err != nil {
		return c, instance, configErrorf("%s: %w", configFile, err)
	}
	return c, instance, c.check()
}

func (c *config) check() error {
	switch {
	case c.Version != configVersion:
		return configErrorf("%s: version %d: want %d", configFile, c.Version, configVersion)
	case c.Name == "" || c.TrustDomain == "":
		return configErrorf("%s: name and trust-domain must be set", configFile)
	case len(c.Broker.Hosts) == 0:
		return configErrorf("%s: broker.hosts must name at least one host", configFile)
	}
	if _, err := inventory.ParseDeviceID(c.Broker.Node); err != nil {
		return configErrorf("%s: broker.node: %w", configFile, err)
	}
	if _, err := c.schemes(); err != nil {
		return configErrorf("%s: %w", configFile, err)
	}
	return c.Server.check()
}

func (c *config) schemes() ([]inventory.Scheme, error) {
	var out []inventory.Scheme
	for _, name := range c.PasswordSchemes {
		s, err := inventory.ParseScheme(name)
		if err != nil {
			return nil, fmt.Errorf("password-schemes: %w", err)
		}
		out = append(out, s)
	}
	return out, nil
}

func (c *config) crlValidity() time.Duration { return time.Duration(c.CRLValidity) }
