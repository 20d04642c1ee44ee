// Package rabbitmq exports a fleet to the MQTT plugin of RabbitMQ.
//
// RabbitMQ keeps users and rights in a database of its own. definitions.json is what
// it loads at its start, and adds: a user that is missing there stays. So a running
// broker is told by its management API ([Target.Connect]), which deletes; the file is
// for a broker that starts with nothing.
//
// One kind of listener serves certificates and passwords: ssl_options are the
// broker's, not a listener's, so a certificate is asked for and not demanded, and who
// shows none has to have a password. A user name and a password in CONNECT go before
// the certificate; a device with a certificate only has no password that could be
// right. The client identifier is bound to the user by the name of its queue:
// whoever subscribes as somebody else is refused, and its QoS 1 messages go nowhere.
//
// Rights are regular expressions over the routing key, in which "/" is "." and so is
// ".". Therefore a rule with a dot in a level cannot be expressed. Each expression is
// anchored, written by us level by level, and at most 1,024 bytes long, which is what
// RabbitMQ 4.3 takes.
//
// All of it has been run on RabbitMQ 3.10.8 with Erlang/OTP 25.
package rabbitmq

import (
	"cmp"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
)

// Names of the files of an export. Each CRL is in a file of its own, whose name is
// the hash of its issuer's name and ".r0".
const (
	DefinitionsName = "definitions.json"
	ConfName        = "rabbitmq.conf"
	AdvancedName    = "advanced.config"
	PluginsName     = "enabled_plugins"
	TrustName       = "trust.pem"
	ChainName       = "server-chain.pem"
	KeyName         = "server.key"
	crlSuffix       = ".r0"
)

// The forms of the export.
const (
	Definitions = "definitions" // users and rights in RabbitMQ's own database
	HTTP        = "http"        // a running imprint is asked (rabbitmq_auth_backend_http)
)

// The virtual host and the exchange of MQTT.
const (
	vhost    = "/"
	exchange = "amq.topic"
)

// manyUsers is above what RabbitMQ imports in a minute: about 1 ms for each user.
const manyUsers = 50_000

// Target is RabbitMQ as a [templates.Target]. The zero value is ready to use.
type Target struct{}

var _ templates.LiveTarget = Target{}

// Capabilities implements [templates.Target].
func (Target) Capabilities() templates.Capabilities {
	return templates.Capabilities{
		Name: "rabbitmq", Title: "RabbitMQ (MQTT plugin)",
		Versions: []string{"3.10", "3.11", "3.12", "3.13", "4.0", "4.1", "4.2"}, Forms: []string{Definitions, HTTP},
		Schemes:             []inventory.Scheme{inventory.RabbitSHA256},
		CertificateIdentity: true, Password: true, ClientIDBinding: true, SubscribeControl: true, CRL: true, LiveKick: true,
		Limits:            "users are imported at about 1,000 per second; rules of one device: 1,024 bytes as a regular expression",
		RevocationLatency: latency,
	}
}

const latency = "at once when imprint works on the broker: the user is deleted, which ends its sessions, and the CRL is read at every handshake; " +
	"from files alone: certificates at once, passwords not before the user is deleted"

// Check implements [templates.Target].
func (Target) Check(p inventory.Profile) error {
	for i, r := range p.Policy.Rules {
		switch {
		case strings.Contains(r.Filter, ".") && !strings.Contains(strings.ReplaceAll(r.Filter, "{label.", ""), "."):
		case strings.Contains(r.Filter, "."):
			return inexpressible(p, i, "a dot ends a level there as a slash does", "a '-' in place of the dot")
		case strings.HasPrefix(r.Filter, "$share/"):
			return inexpressible(p, i, "it has no rules for shared subscriptions", "the filter without $share")
		}
		if strings.TrimFunc(r.Filter, unicode.IsSpace) != r.Filter || strings.ContainsFunc(r.Filter, unicode.IsControl) {
			return inexpressible(p, i, "spaces at the ends and control characters are not safe in its expressions", "another name for this level")
		}
	}
	return nil
}

func inexpressible(p inventory.Profile, rule int, why string, choices ...string) error {
	r := p.Policy.Rules[rule]
	return &templates.InexpressibleError{
		Target: "rabbitmq", Rule: fmt.Sprintf("profile %s, rule %d: %s %.128q", p.Name, rule+1, r.Action, r.Filter), Why: why, Choices: choices,
	}
}

// Write implements [templates.Target].
func (t Target) Write(dst *durable.Dir, v templates.View, o templates.Options) (templates.Summary, error) {
	x, err := t.newExport(dst, v, o)
	if err != nil {
		return templates.Summary{}, err
	}
	return templates.Export(dst, v, o, x.plan())
}

// An export is one Write.
type export struct {
	target  Target
	view    templates.View
	conf    conf
	version string
	form    string
	crls    map[string][]byte // DER by file name
	names   []string          // of the CRL files, sorted
}

func (t Target) newExport(dst *durable.Dir, v templates.View, o templates.Options) (*export, error) {
	caps := t.Capabilities()
	x := &export{target: t, view: v, version: cmp.Or(o.Version, caps.Versions[0]), crls: map[string][]byte{}}
	if !slices.Contains(caps.Versions, x.version) {
		return nil, &inventory.InvalidError{Field: "rabbitmq version", Value: x.version, Want: "one of " + strings.Join(caps.Versions, ", ")}
	}
	x.form = cmp.Or(o.Form, Definitions)
	if !slices.Contains(caps.Forms, x.form) {
		return nil, &inventory.InvalidError{Field: "rabbitmq form", Value: x.form, Want: "one of " + strings.Join(caps.Forms, ", ")}
	}
	var err error
	if x.conf, err = newConf(v.Node(), cmp.Or(o.Dest, dst.Path())); err != nil {
		return nil, err
	}
	x.conf.Version = x.version
	if x.form == HTTP {
		if x.conf.Service, err = o.Service.Login(); err != nil {
			return nil, err
		}
	}
	for p, err := range v.Profiles() {
		if err != nil {
			return nil, err
		}
		if err := t.Check(p); err != nil {
			return nil, err
		}
	}
	for _, c := range v.CRLs() {
		name, err := crlName(c.DER)
		if err != nil {
			return nil, err
		}
		if x.crls[name] != nil {
			return nil, fmt.Errorf("CRL of %s: another issuer has the same hash", c.Issuer)
		}
		x.crls[name] = c.DER
		x.names = append(x.names, name)
	}
	slices.Sort(x.names)
	return x, nil
}

// plan is the export as [templates.Export] takes it: what takes rights away first.
func (x *export) plan() templates.Plan {
	var files []templates.PlanFile
	for _, name := range x.names {
		files = append(files, templates.PlanFile{Name: name, Mode: 0o644})
	}
	files = append(files,
		templates.PlanFile{Name: TrustName, Mode: 0o644},
		templates.PlanFile{Name: DefinitionsName, Mode: 0o600},
		templates.PlanFile{Name: ChainName, Mode: 0o644},
		templates.PlanFile{Name: KeyName, Mode: 0o600},
		templates.PlanFile{Name: PluginsName, Mode: 0o644},
		templates.PlanFile{Name: AdvancedName, Mode: 0o644},
		templates.PlanFile{Name: ConfName, Mode: 0o640},
		templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true})
	plan := templates.Plan{
		Target: "rabbitmq", Version: x.version, Form: x.form, Files: files, Render: x.render,
		Parse: func(src fs.FS) (templates.View, error) { return x.target.Parse(src) },
		Enforced: []string{
			"user name is the common name of the certificate, unless CONNECT has a user name and a password, which then have to be right",
			"publish and receive: every topic, and every filter of a SUBSCRIBE, against the device's rules",
			"client identifier equals user name for whoever subscribes",
			"CRL of the device's issuer at every TLS handshake",
		},
		NotEnforced: []string{
			"a client identifier of another user by a client that only publishes",
			"a level of a topic that a client writes with a dot is two levels",
			"users that are not in " + DefinitionsName + " any more are not deleted by loading it",
		},
		RevocationLatency: latency,
	}
	if x.form == HTTP {
		plan.NotEnforced[2] = "who is connected stays so when its device is revoked, and can do nothing more than it did before: end its session by the management API"
		plan.RevocationLatency = "at once for who connects; who is connected is asked about each topic once"
	}
	return plan
}

// conf is what the configuration files are filled with.
type conf struct {
	Version         string
	Dest            string // absolute path of the files on the broker's host
	Bind            string // IP address; empty: all
	CertificatePort uint16
	PasswordPort    uint16
	AdminIP         string // of the management API; empty: not said
	AdminPort       uint16
	Service         string // URL of the imprint that is asked, with a token; empty: nobody is
}

// ServiceTLS reports whether the service is asked over TLS.
func (c *conf) ServiceTLS() bool { return strings.HasPrefix(c.Service, "https:") }

// Addr is where a listener listens, in the form of rabbitmq.conf.
func (c *conf) Addr(port uint16) string {
	if c.Bind == "" {
		return strconv.Itoa(int(port))
	}
	return netip.AddrPortFrom(netip.MustParseAddr(c.Bind), port).String()
}

func newConf(n templates.Node, dest string) (conf, error) {
	c := conf{
		Dest: dest, Bind: n.Bind,
		CertificatePort: cmp.Or(n.CertificatePort, templates.DefaultCertificatePort),
		PasswordPort:    cmp.Or(n.PasswordPort, templates.DefaultPasswordPort),
	}
	if !path.IsAbs(dest) || path.Clean(dest) != dest || strings.ContainsAny(dest, "\"\\'#$ ") || strings.ContainsFunc(dest, unicode.IsControl) {
		return c, &inventory.InvalidError{Field: "destination", Value: dest, Want: "an absolute path without spaces, quotes, #, $ or backslashes"}
	}
	if c.Bind != "" {
		if a, err := netip.ParseAddr(c.Bind); err != nil || a.Zone() != "" {
			return c, &inventory.InvalidError{Field: "listening address", Value: c.Bind, Want: "an IP address"}
		}
	}
	if c.CertificatePort == c.PasswordPort {
		return c, &inventory.InvalidError{Field: "ports", Value: c.Bind, Want: "two different ports"}
	}
	if n.Admin == nil {
		return c, nil
	}
	a, err := netip.ParseAddrPort(strings.TrimPrefix(n.Admin.Socket, "http://"))
	if err != nil || !strings.HasPrefix(n.Admin.Socket, "http://") || a.Addr().Zone() != "" {
		return c, &inventory.InvalidError{Field: "administration", Value: n.Admin.Socket, Want: "http:// and an IP address with a port, where the broker is made to listen; for anything else give it an account of its own"}
	}
	c.AdminIP, c.AdminPort = a.Addr().String(), a.Port()
	return c, nil
}
