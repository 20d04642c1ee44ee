// Package mosquitto exports a fleet to Eclipse Mosquitto 2.0 and 2.1.
//
// There are two kinds of export. The first is a password file and an ACL file,
// which the broker reads again on SIGHUP:
//
//   - Form "pattern" writes each rule once, with %u for the device: the file does
//     not grow with the fleet. A pattern holds for every client, so a rule can be
//     one only if every profile has exactly this rule.
//   - Form "expanded" writes a stanza for each device, with every name filled in.
//     Mosquitto 2.0 loads stanzas in quadratic time: 10,000 in half a second,
//     50,000 in eighteen.
//   - Form "auto", the default, writes what all profiles share as patterns and
//     the rest as stanzas.
//
// The second is form "dynsec", the JSON file of the dynamic security plugin. It
// alone refuses a SUBSCRIBE: with an ACL file every SUBSCRIBE is answered with
// success, and only the delivery is checked. The broker does not read it again
// on SIGHUP.
//
// Certificates and passwords are two listeners. On the one for certificates the
// user name is the common name of the certificate, and what the client says in
// CONNECT is ignored; on both the client identifier is made equal to the user
// name, so that nobody can take over another's session.
//
// On a broker that runs, [Target.Connect] does what the files alone cannot: it tells
// dynamic security who is gone, and ends the sessions of whoever has a certificate.
//
// All forms have been run on Mosquitto 2.0.11. What is written for 2.1 (the
// password-file and acl-file plugins, global_plugin) follows its documentation
// and is accepted by 2.1 as far as that goes; no test here runs it.
package mosquitto

import (
	"cmp"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"unicode"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// Broker versions.
const (
	V20 = "2.0"
	V21 = "2.1"
)

// Forms of the export.
const (
	Auto     = "auto"
	Pattern  = "pattern"
	Expanded = "expanded"
	Dynsec   = "dynsec"
)

// Names of the files of an export.
const (
	ConfName     = "mosquitto.conf"
	PasswordName = "password_file"
	ACLName      = "acl_file"
	DynsecName   = "dynamic-security.json"
	CRLName      = "crl.pem"
	TrustName    = "trust.pem"
	ChainName    = "server-chain.pem"
	KeyName      = "server.key"
)

// Limits above which Mosquitto gets slow, measured with 2.0.11, 2.0.22 and 2.1.2.
const (
	manyStanzas = 10_000  // of an ACL file, 2.0 only
	manyClients = 10_000  // of dynamic security
	maxClients  = 100_000 // of dynamic security: more are not up after two minutes
)

// Target is Mosquitto as a [templates.Target]. The zero value is ready to use.
type Target struct {
	// PluginDir is the directory of the broker's plugins on its host. Empty
	// means where Debian puts them for 2.0 (for the architecture that imprint
	// runs on), and /usr/lib for 2.1.
	PluginDir string
}

var _ templates.Target = Target{}

// Capabilities implements [templates.Target].
func (Target) Capabilities() templates.Capabilities {
	return templates.Capabilities{
		Name:                "mosquitto",
		Title:               "Eclipse Mosquitto",
		Versions:            []string{V20, V21},
		Forms:               []string{Auto, Pattern, Expanded, Dynsec},
		Schemes:             []inventory.Scheme{inventory.PBKDF2SHA512, inventory.SHA512Suffix},
		CertificateIdentity: true,
		Password:            true,
		ClientIDBinding:     true,
		CRL:                 true,
		LiveKick:            true,
		Limits: "patterns: 1,000,000 devices load in 1.5 s; stanzas: 10,000 on 2.0, where loading is quadratic, and no limit on 2.1; " +
			"dynamic security: 10,000 without delay, 100,000 at most",
		RevocationLatency: latency(Auto),
	}
}

// latency says how long a revoked device may go on, in words for the operator.
func latency(form string) string {
	if form == Dynsec {
		return "at once when imprint works on the broker (imprint broker); from files alone: password until the broker is restarted; " +
			"certificate no new session after SIGHUP, a live session until it ends"
	}
	return "at once when imprint works on the broker (imprint broker); from files alone: password ended at SIGHUP, the session too; " +
		"certificate no new session after SIGHUP, a live session until it ends (in form \"expanded\" without rights after SIGHUP)"
}

// Check implements [templates.Target]. Every form can enforce what it lets
// through.
func (Target) Check(p inventory.Profile) error {
	for i, r := range p.Policy.Rules {
		levels := strings.Split(r.Filter, "/")
		switch {
		case strings.Contains(r.Filter, "%u"), strings.Contains(r.Filter, "%c"):
			return inexpressible(p, i, "it reads %u and %c as the names of the client", "another name for this level")
		case strings.HasPrefix(r.Filter, "$share/"):
			return inexpressible(p, i, "it has no rules for shared subscriptions", "the filter without $share")
		case len(levels) > maxLevels:
			return inexpressible(p, i, "it knows at most 200 topic levels", "fewer levels")
		case strings.TrimFunc(r.Filter, unicode.IsSpace) != r.Filter, strings.ContainsFunc(r.Filter, unicode.IsControl):
			return inexpressible(p, i, "its files have no way to write spaces at the ends or control characters", "another name for this level")
		}
	}
	return nil
}

// maxLevels is TOPIC_HIERARCHY_LIMIT of Mosquitto.
const maxLevels = 200

func inexpressible(p inventory.Profile, rule int, why string, choices ...string) error {
	r := p.Policy.Rules[rule]
	return &templates.InexpressibleError{
		Target:  "mosquitto",
		Rule:    fmt.Sprintf("profile %s, rule %d: %s %.128q", p.Name, rule+1, r.Action, r.Filter),
		Why:     why,
		Choices: choices,
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

// An export is one Write: the options resolved and the profiles looked at.
type export struct {
	target  Target
	view    templates.View
	conf    conf
	version string
	form    string

	patterns []pattern       // ACL forms: rules that hold for everybody
	roles    map[string]bool // dynsec for 2.1: profiles that have a role of their own
}

func (t Target) newExport(dst *durable.Dir, v templates.View, o templates.Options) (*export, error) {
	x := &export{target: t, view: v, version: cmp.Or(o.Version, V20), form: cmp.Or(o.Form, Auto)}
	caps := t.Capabilities()
	if !slices.Contains(caps.Versions, x.version) {
		return nil, &inventory.InvalidError{Field: "mosquitto version", Value: x.version, Want: "one of " + strings.Join(caps.Versions, ", ")}
	}
	if !slices.Contains(caps.Forms, x.form) {
		return nil, &inventory.InvalidError{Field: "export form", Value: x.form, Want: "one of " + strings.Join(caps.Forms, ", ")}
	}
	dest := cmp.Or(o.Dest, dst.Path())
	if err := checkPath("destination", dest); err != nil {
		return nil, err
	}
	n := v.Node()
	x.conf = newConf(n, dest, x.version, x.form, t.pluginDir(x.version))
	if err := x.conf.check(); err != nil {
		return nil, err
	}
	var profiles []inventory.Profile
	for p, err := range v.Profiles() {
		if err != nil {
			return nil, err
		}
		if err := t.Check(p); err != nil {
			return nil, err
		}
		profiles = append(profiles, p)
	}
	return x, x.choose(profiles)
}

// choose decides which rules are written once.
func (x *export) choose(profiles []inventory.Profile) error {
	switch x.form {
	case Dynsec:
		x.roles = make(map[string]bool)
		for _, p := range profiles {
			x.roles[p.Name] = x.version == V21 && !slices.ContainsFunc(p.Policy.Rules, func(r topic.Rule) bool { return !onlyID(r) })
		}
	case Expanded:
	case Pattern:
		x.patterns = common(profiles)
		for _, p := range profiles {
			for i, r := range p.Policy.Rules {
				if !slices.ContainsFunc(x.patterns, func(c pattern) bool { return c.rule.Action == r.Action && c.rule.Filter == r.Filter }) {
					return inexpressible(p, i, "a pattern holds for every client, and not every profile has this rule with no placeholder but {id}",
						`form "auto"`, "the same rules in every profile")
				}
			}
		}
	default:
		x.patterns = common(profiles)
	}
	return nil
}

// pluginDir is where the broker finds its plugins. The paths are those of the
// Debian package of 2.0 and of the documentation of 2.1.
func (t Target) pluginDir(version string) string {
	if t.PluginDir != "" {
		return t.PluginDir
	}
	if version == V21 {
		return "/usr/lib"
	}
	triplets := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu", "386": "i386-linux-gnu", "riscv64": "riscv64-linux-gnu"}
	return path.Join("/usr/lib", triplets[runtime.GOARCH])
}

// plan is the export as [templates.Export] takes it. Key and certificate come
// last of the PEM files: rights are taken before anything is given.
func (x *export) plan() templates.Plan {
	files := []templates.PlanFile{
		{Name: CRLName, Mode: 0o644},
		{Name: TrustName, Mode: 0o644},
	}
	if x.form == Dynsec {
		files = append(files, templates.PlanFile{Name: DynsecName, Mode: 0o600})
	} else {
		files = append(files,
			templates.PlanFile{Name: PasswordName, Mode: 0o640},
			templates.PlanFile{Name: ACLName, Mode: 0o640})
	}
	files = append(files,
		templates.PlanFile{Name: ChainName, Mode: 0o644},
		templates.PlanFile{Name: KeyName, Mode: 0o600},
		templates.PlanFile{Name: ConfName, Mode: 0o640},
		templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true})
	enforced, not := x.enforced()
	return templates.Plan{
		Target: "mosquitto", Version: x.version, Form: x.form, Files: files,
		Render: x.render, Parse: func(src fs.FS) (templates.View, error) { return x.target.Parse(src) },
		Enforced: enforced, NotEnforced: not, RevocationLatency: latency(x.form),
	}
}

// enforced lists what the broker makes of the files, and what it does not.
func (x *export) enforced() (yes, no []string) {
	yes = []string{
		"user name is the common name of the certificate on the certificate listener",
		"client identifier equals user name",
		"publish: every topic against the device's rules",
		"receive: every delivery against the device's rules",
		"CRL at every TLS handshake on the certificate listener",
	}
	no = []string{
		"a revoked intermediate CA: only the device's own certificate is looked up in the CRLs",
		"live sessions with a certificate are not ended by a new CRL, but by imprint (imprint broker)",
	}
	if x.form == Dynsec {
		yes = append(yes, "subscribe: every filter against the device's rules")
		no = append(no, "changes to "+DynsecName+" are read at the start of the broker only, not on SIGHUP")
	} else {
		no = append(no, "subscribe: answered with success; what may not be received is not delivered")
	}
	return yes, no
}
