package foreign

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"
)

// A stepConfig is the part of a step-ca's ca.json that matters here. The encrypted
// keys of provisioners are not read.
type stepConfig struct {
	address      string
	dbType       string
	provisioners []stepProvisioner
}

type stepProvisioner struct {
	kind, name   string
	max, initial string // durations of certificates
	requireEAB   bool
}

// step reads the folder of a step-ca: certificates of devices if they were put there,
// and the configuration. Those that step-ca has issued are in its database, of Badger
// or a server, which is not read.
func (b *builder) step(t *tree) error {
	name, err := t.one(roleStep)
	if err != nil {
		return err
	}
	data, err := t.whole(name)
	if err != nil {
		return err
	}
	var c stepConfig
	if err := c.read(json.NewDecoder(bytes.NewReader(data))); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	at := place{file: name}
	p := newPKIFolder(b)
	found := 0
	err = p.each(t, func(at place, cert *x509.Certificate) error {
		found++
		p.take(at, cert, time.Time{}, "")
		return nil
	})
	if err != nil {
		return err
	}
	text := "the certificates that step-ca has issued and revoked are in its database (%s), which is not read here: write them into a folder as PEM and import that, or give a list of devices as CSV"
	if c.dbType == "" {
		b.find(Error, "database", "", at, "the authority keeps no database: nobody knows what it has issued; give a list of devices as CSV")
	} else {
		b.find(Error, "database", "", at, text, show(c.dbType))
	}
	if found == 0 {
		b.find(Warning, "no-devices", "", place{}, "there is no certificate of a device in the folder")
	} else {
		b.find(Warning, "no-revocations", "", place{}, "the folder does not say which certificates are revoked: look at the CRL of the authority first")
	}
	b.stepProvisioners(&c, at)
	p.finish()
	return nil
}

func (c *stepConfig) read(dec *json.Decoder) error {
	return fields(dec, map[string]any{
		"address": &c.address,
		"db":      func() error { return fields(dec, map[string]any{"type": &c.dbType}) },
		"authority": func() error {
			return fields(dec, map[string]any{
				"provisioners": func() error { return array(dec, func() error { return c.readProvisioner(dec) }) },
			})
		},
	})
}

func (c *stepConfig) readProvisioner(dec *json.Decoder) error {
	var p stepProvisioner
	err := fields(dec, map[string]any{
		"type": &p.kind, "name": &p.name, "requireEAB": &p.requireEAB,
		"claims": func() error {
			return fields(dec, map[string]any{"maxTLSCertDuration": &p.max, "defaultTLSCertDuration": &p.initial})
		},
	})
	c.provisioners = append(c.provisioners, p)
	return err
}

// stepProvisioners says what takes the place of each provisioner.
func (b *builder) stepProvisioners(c *stepConfig, at place) {
	for _, p := range c.provisioners {
		instead := "has no counterpart"
		switch p.kind {
		case "JWK":
			instead = "one-time tokens take its place (imprint token)"
		case "X5C", "SCEP", "K8sSA", "Nebula", "SSHPOP":
			instead = "devices enroll with a token or a birth certificate instead"
		case "ACME":
			instead = "devices enroll over EST instead"
			if !p.requireEAB {
				b.find(Warning, "open-acme", p.name, at, "gives a certificate to whoever answers for a name: it is not a device that was registered")
			}
		}
		b.find(Note, "provisioner", p.name, at, "provisioner of type %s: %s", show(p.kind), instead)
		if d, err := time.ParseDuration(p.max); err == nil && d > 366*24*time.Hour {
			b.find(Note, "long-lived", p.name, at, "certificates are good for up to %s", d)
		}
	}
}
