// Package rumqttd exports a fleet to rumqttd 0.20, as far as rumqttd can hold one.
//
// That is not far. rumqttd has no list of devices, no rules for topics, no CRL and no
// reload. What it has, in a build with the features verify-client-cert and
// validate-tenant-prefix, is one right for everybody: who comes with a certificate of a
// CA may publish and subscribe below /tenants/O/, where O is the first organization in
// the subject of the certificate. imprint's certificates have the name of the fleet
// there. So the only policy that can be exported is, for every device,
//
//	publish /tenants/FLEET/#
//	receive /tenants/FLEET/#
//
// and everything else is refused: less would be enforced as more. The topic
// /tenants/FLEET itself, which these filters match too, is refused by rumqttd.
//
// A revoked certificate opens the door until it expires. Passwords would be in plain text,
// which imprint does not have.
package rumqttd

import (
	"bytes"
	"crypto/x509"
	_ "embed" // the texts
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// Version is the version of rumqttd that is written for.
const Version = "0.20"

// Names of the files of an export.
const (
	ConfigName  = "rumqttd.toml"
	CAName      = "client-ca.pem"
	DevicesName = "devices.txt"
)

//go:embed rumqttd.toml.tmpl
var configText string

//go:embed README.md.tmpl
var readmeText string

// maxConnections is what the configuration sets max_connections to.
const maxConnections = 10_000

// Target returns rumqttd as a [templates.Target].
func Target() templates.Target {
	return templates.NewTarget(templates.Kit{
		Caps: templates.Capabilities{
			Name: "rumqttd", Title: "rumqttd",
			Versions: []string{Version},
			Forms:    []string{"tenant"},

			CertificateIdentity: true,
			SubscribeControl:    true,

			Limits:            "one policy for all devices; 10,000 connections; a log in memory for each topic, up to 2 MiB",
			RevocationLatency: "until the certificate expires: rumqttd reads no CRL and has no list of devices",
		},
		Rule: rule,
		Texts: []templates.Text{
			{PlanFile: templates.PlanFile{Name: ConfigName, Mode: 0o644}, Text: configText},
			{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: readmeText},
		},
		More: func(v templates.View, _ *templates.Setting) (map[string][]byte, error) {
			ca, err := clientCA(v.TrustBundle())
			return map[string][]byte{CAName: ca}, err
		},
		MoreFile: []templates.PlanFile{{Name: CAName, Mode: 0o644}},
		Lists:    []templates.List{{PlanFile: templates.PlanFile{Name: DevicesName, Mode: 0o644}, Append: appendDevice}},
		Devices:  devices,
		Check:    check,

		Evaluator: newEvaluator,
		Enforced: []string{
			"a certificate of the fleet's CA, with the fleet's name as its organization",
			"publish, will, retained messages and subscribe: topics that begin with /tenants/FLEET/",
		},
		NotEnforced: []string{
			"which device it is: every certificate of the fleet has the same rights, listed in " + DevicesName + " or not",
			"revocation: a certificate is good until it expires",
			"client identifiers: a device can end or resume the session of another by using its identifier",
			"the topic /tenants/FLEET itself, which the policy allows: rumqttd refuses it",
			"passwords: devices that have nothing else are left out",
			"all of this in a build without the features verify-client-cert and validate-tenant-prefix",
		},
	})
}

// tenant returns the organization of the only filter that rumqttd knows, or nothing.
func tenant(filter string) string {
	rest, ok := strings.CutPrefix(filter, "/tenants/")
	name, end := strings.CutSuffix(rest, "/#")
	if !ok || !end || !isTenant(name) {
		return ""
	}
	return name
}

// isTenant reports whether rumqttd takes an organization for a tenant.
func isTenant(name string) bool {
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9') {
			return false
		}
	}
	return name != ""
}

const only = "it has no rules: who has a certificate may publish and receive all of /tenants/O/#, with O the organization of the certificate, and nothing else"

func choices() []string {
	return []string{"a policy of exactly these two rules for every device", "another broker"}
}

// rule says why rumqttd cannot enforce a rule.
func rule(r topic.Rule) (why string, _ []string) {
	if tenant(r.Filter) == "" {
		return only, choices()
	}
	return "", nil
}

// grants are the rights of everybody in a fleet.
func grants(fleet string) []topic.Grant {
	f := topic.Filter("/tenants/" + fleet + "/#")
	return []topic.Grant{{Action: topic.Publish, Filter: f, Rule: 0}, {Action: topic.Receive, Filter: f, Rule: 1}}
}

// check refuses every policy but the one that rumqttd has. A policy with one of the two
// rules passes the look at each rule, and would be enforced as both.
func check(v templates.View, s *templates.Setting, out *templates.Output) error {
	if !isTenant(s.Fleet) {
		return &inventory.InvalidError{Field: "fleet", Value: s.Fleet, Want: "a name of ASCII letters and digits: rumqttd takes it from the certificates as the name of a tenant"}
	}
	out.Warn("rumqttd reads no CRL and has no list of devices: a revoked certificate opens the door until it expires")
	want := templates.SortGrants(grants(s.Fleet))
	for p, err := range v.Profiles() {
		if err != nil {
			return err
		}
		var have []topic.Grant
		for _, r := range p.Policy.Rules {
			have = append(have, topic.Grant{Action: r.Action, Filter: topic.Filter(r.Filter)})
		}
		if !slices.EqualFunc(templates.SortGrants(have), want, templates.SameGrant) {
			return &templates.InexpressibleError{Target: "rumqttd", Rule: "the policy of profile " + p.Name, Why: only, Choices: choices()}
		}
	}
	n := 0
	for e, err := range v.Entries() {
		if err != nil {
			return err
		}
		if !slices.EqualFunc(templates.SortGrants(e.Grants), want, templates.SameGrant) {
			return &templates.EntryError{ID: e.ID, Why: "has other rights than /tenants/" + s.Fleet + "/#, and rumqttd has no others"}
		}
		if n++; n == maxConnections+1 {
			out.Warn("more than 10,000 devices: the configuration allows 10,000 connections, and rumqttd keeps a log in memory for each topic")
		}
	}
	return nil
}

// clientCA returns the one certificate that rumqttd checks clients with: it reads the
// first in a file, and no other.
func clientCA(trust []byte) ([]byte, error) {
	var issuers [][]byte
	for block, rest := pem.Decode(trust); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading trust bundle: %w", err)
		}
		usage := len(c.ExtKeyUsage) == 0 || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
		if usage && !bytes.Equal(c.RawSubject, c.RawIssuer) {
			issuers = append(issuers, pem.EncodeToMemory(block))
		}
	}
	if len(issuers) != 1 {
		return nil, fmt.Errorf("rumqttd checks clients with one CA, and the trust bundle has %d that issue client certificates: take another broker while there is more than one", len(issuers))
	}
	return issuers[0], nil
}

// appendDevice writes the ID of a device, for people and for the comparison: rumqttd does
// not read it.
func appendDevice(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	return append(append(b, e.ID...), '\n'), nil
}

// devices reads the list of devices, and looks that the CA is the one of the bundle.
func devices(src fs.FS, s *templates.Setting) func(func(templates.Entry, error) bool) {
	return func(yield func(templates.Entry, error) bool) {
		if err := sameCA(src); err != nil {
			yield(templates.Entry{}, err)
			return
		}
		readDevices(src, s.Fleet, yield)
	}
}

func sameCA(src fs.FS) error {
	trust, err := templates.ReadCertificates(src, templates.TrustFile)
	if err != nil {
		return err
	}
	want, err := clientCA(trust)
	if err != nil {
		return err
	}
	have, err := templates.ReadFile(src, CAName)
	if err != nil {
		return err
	}
	if !bytes.Equal(have, want) {
		return errors.New("reading " + CAName + ": it is not the CA of " + templates.TrustFile)
	}
	return nil
}
