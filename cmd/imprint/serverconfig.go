package main

import (
	"crypto/x509"
	"fmt"
	"path/filepath"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/server"
	"github.com/imprint-iot/imprint/inventory"
)

// serverConfig is the section server of imprint.yaml. Every zero value works.
type serverConfig struct {
	Node          string                 `yaml:"node,omitempty"`           // name in the inventory; default imprint-server
	Hosts         []string               `yaml:"hosts,omitempty"`          // names in its certificate; default those of the broker
	Listen        string                 `yaml:"listen,omitempty"`         // default :8443
	ListenHTTP    string                 `yaml:"listen-http,omitempty"`    // CRLs and OCSP without TLS; default none
	ListenMetrics string                 `yaml:"listen-metrics,omitempty"` // default none
	Limits        limitsConfig           `yaml:"limits,omitempty"`
	Labels        map[string]labelConfig `yaml:"est-labels,omitempty"`
	Makers        []makerConfig          `yaml:"makers,omitempty"`
	MaxClockJump  ca.Duration            `yaml:"max-clock-jump,omitempty"` // default 30d
	MQTTTokens    bool                   `yaml:"mqtt-tokens,omitempty"`    // make short-lived tokens for brokers; needs a restart
}

// limitsConfig is [server.Limits]: zero means its default, a negative number none.
type limitsConfig struct {
	Connections  int     `yaml:"connections,omitempty"`
	PeerRate     float64 `yaml:"peer-rate,omitempty"`     // requests in a second of one network
	IdentityRate float64 `yaml:"identity-rate,omitempty"` // of one token or device
	FailureRate  float64 `yaml:"failure-rate,omitempty"`  // of one network
}

type labelConfig struct {
	Profile      string `yaml:"profile,omitempty"`
	ServerKeygen bool   `yaml:"server-keygen,omitempty"`
}

// makerConfig is somebody else's CA whose birth certificates let devices enroll.
type makerConfig struct {
	Name    string `yaml:"name"`
	Roots   string `yaml:"roots"`             // file in PEM, relative to the fleet directory
	CAs     string `yaml:"cas,omitempty"`     // likewise
	IDFrom  string `yaml:"id-from,omitempty"` // cn (default) or serial
	Profile string `yaml:"profile,omitempty"`
	Group   string `yaml:"group,omitempty"`
	Approve bool   `yaml:"approve,omitempty"`
	Replace bool   `yaml:"replace,omitempty"`
}

func (c *serverConfig) check() error {
	if c.Node != "" {
		if _, err := inventory.ParseDeviceID(c.Node); err != nil {
			return configErrorf("%s: server.node: %w", configFile, err)
		}
	}
	for _, m := range c.Makers {
		switch {
		case m.Name == "" || m.Roots == "":
			return configErrorf("%s: server.makers: each has a name and roots", configFile)
		case m.IDFrom != "" && m.IDFrom != "cn" && m.IDFrom != "serial":
			return configErrorf("%s: server.makers: %s: id-from %.40q: want cn or serial", configFile, m.Name, m.IDFrom)
		}
	}
	return nil
}

// settings are what can change while the server runs.
func (c *serverConfig) settings() server.Settings {
	s := server.Settings{Limits: server.Limits(c.Limits), Labels: map[string]server.Label{}}
	for name, l := range c.Labels {
		s.Labels[name] = server.Label(l)
	}
	return s
}

// makers reads the certificates of the makers.
func (f *fleet) makers(c *serverConfig) ([]enroll.Maker, error) {
	var out []enroll.Maker
	for _, m := range c.Makers {
		x := enroll.Maker{Name: m.Name, Profile: m.Profile, Group: m.Group, Approve: m.Approve, Replace: m.Replace}
		if m.IDFrom == "serial" {
			x.IDFrom = enroll.IDFromSerial
		}
		var err error
		if x.Roots, err = f.pool(m.Roots); err != nil {
			return nil, configErrorf("%s: server.makers: %s: %w", configFile, m.Name, err)
		}
		if m.CAs != "" {
			if x.CAs, err = f.pool(m.CAs); err != nil {
				return nil, configErrorf("%s: server.makers: %s: %w", configFile, m.Name, err)
			}
		}
		out = append(out, x)
	}
	return out, nil
}

func (f *fleet) pool(path string) (*x509.CertPool, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(f.dir.Path(), path)
	}
	text, err := readFile(path, maxPEM)
	if err != nil {
		return nil, err
	}
	certs, err := ca.ParseCertificatesPEM(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}
