package mosquitto

import (
	"bytes"
	"cmp"
	_ "embed" // the text of the configuration
	"net/netip"
	"path"
	"strings"
	"text/template"
	"unicode"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// A conf is what varies in mosquitto.conf. Its fields are read by the template.
type conf struct {
	Version, Form   string
	Dest            string // absolute path of the files on the broker's host
	Plugins         string // absolute path of the broker's plugins
	Bind            string // IP address; empty: all
	CertificatePort uint16
	PasswordPort    uint16
	Socket          string // absolute path; empty: none
}

func newConf(n templates.Node, dest, version, form, plugins string) conf {
	c := conf{
		Version: version, Form: form, Dest: dest, Plugins: plugins, Bind: n.Bind,
		CertificatePort: cmp.Or(n.CertificatePort, templates.DefaultCertificatePort),
		PasswordPort:    cmp.Or(n.PasswordPort, templates.DefaultPasswordPort),
	}
	if n.Admin != nil {
		c.Socket = n.Admin.Socket
	}
	return c
}

//go:embed mosquitto.conf.tmpl
var confText string

//go:embed README.md.tmpl
var readmeText string

// fill executes a template; the data are ours, and checked.
func fill(text string, data any) ([]byte, error) {
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// check refuses what would end a line of the configuration or mean something
// else there.
func (c *conf) check() error {
	if err := checkPath("destination", c.Dest); err != nil {
		return err
	}
	if err := checkPath("plugin directory", c.Plugins); err != nil {
		return err
	}
	if c.Socket != "" {
		if err := checkPath("admin socket", c.Socket); err != nil {
			return err
		}
	}
	if c.Bind != "" {
		if a, err := netip.ParseAddr(c.Bind); err != nil || a.Zone() != "" {
			return &inventory.InvalidError{Field: "listening address", Value: c.Bind, Want: "an IP address"}
		}
	}
	if c.CertificatePort == c.PasswordPort {
		return &inventory.InvalidError{Field: "ports", Value: c.Bind, Want: "two different ports"}
	}
	return nil
}

// checkPath accepts an absolute path that can stand in a line of the
// configuration.
func checkPath(field, p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsFunc(p, func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar }) || strings.TrimSpace(p) != p {
		return &inventory.InvalidError{Field: field, Value: p, Want: "an absolute path without control characters"}
	}
	return nil
}
