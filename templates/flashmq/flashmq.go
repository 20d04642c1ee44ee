// Package flashmq exports a fleet to FlashMQ 1.26 and later.
//
// FlashMQ reads Mosquitto's password file and its ACL file, both again within two
// seconds of a change. It has two forms:
//
//   - Form "either", the default, has a listener for certificates, where the user name
//     is the common name and no password is asked for, and one for passwords.
//   - Form "both" has one listener, and asks for a certificate and for the password of
//     the same device (client_verification_still_do_authn). Devices that lack either
//     are not let in.
//
// FlashMQ knows no CRL. A revoked device keeps a certificate that opens the door; it
// loses all its rights, as its section of the ACL file is gone, and in form "both" its
// password. A certificate that was revoked alone, of a device that goes on, stays good
// until it expires.
//
// Its ACL file differs from Mosquitto's (src acltree.cpp, plugin.cpp): "a/#" does not
// match "a", so that each such rule is two lines; a wildcard at the start matches
// topics that begin with $; a topic cannot have spaces; a will needs the right to
// receive its topic as well; a deny anywhere wins.
//
// The broker comes from no package registry: no test here runs it.
package flashmq

import (
	_ "embed" // the texts
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// Version is the first version of the broker that is written for.
const Version = "1.26"

// Forms of the export.
const (
	Either = "either" // a certificate or a password
	Both   = "both"   // a certificate and a password
)

// Names of the files of an export.
const (
	ConfName     = "flashmq.conf"
	PasswordName = "passwd"
	ACLName      = "acl"
)

//go:embed flashmq.conf.tmpl
var confText string

//go:embed README.md.tmpl
var readmeText string

// Target returns FlashMQ as a [templates.Target].
func Target() templates.Target {
	return templates.NewTargetOf(templates.Forms{
		Caps: capabilities(), Marked: ConfName, Evaluator: newEvaluator,
		Of: map[string]templates.Target{Either: templates.NewTarget(either()), Both: templates.NewTarget(both())},
	})
}

// capabilities are those of both forms together.
func capabilities() templates.Capabilities {
	return templates.Capabilities{
		Name: "flashmq", Title: "FlashMQ",
		Versions: []string{Version},
		Forms:    []string{Either, Both},
		Schemes:  []inventory.Scheme{inventory.PBKDF2SHA512, inventory.SHA512Suffix},

		CertificateIdentity: true,
		Password:            true,
		Both:                true, // form "both"
		ClientIDBinding:     true, // of a session that is there
		SubscribeControl:    false,
		CRL:                 false,
		LiveKick:            false,

		Limits: "every thread of the broker holds a copy of both files: 140 MiB for the rules of 100,000 devices",
		RevocationLatency: "without rights after 2 s, a live session too; no new session with a password after 2 s; " +
			"a certificate opens a session without rights until it expires: there is no CRL",
	}
}

func either() templates.Kit {
	k := kit()
	k.NotEnforced = append(k.NotEnforced, "a certificate and a password together: each opens its own listener")
	return k
}

func both() templates.Kit {
	k := kit()
	k.Caps.CertificateIdentity = false // alone it opens no door
	k.Enforced = append(k.Enforced, "a certificate and the password of the same device, both")
	return k
}

// kit is what both forms have.
func kit() templates.Kit {
	return templates.Kit{
		Caps: capabilities(),
		Rule: rule,
		Texts: []templates.Text{
			{PlanFile: templates.PlanFile{Name: ConfName, Mode: 0o640}, Text: confText},
			{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: readmeText},
		},
		Lists: []templates.List{
			{PlanFile: templates.PlanFile{Name: PasswordName, Mode: 0o640}, Append: appendPassword},
			{PlanFile: templates.PlanFile{Name: ACLName, Mode: 0o640}, Append: appendSection},
		},
		Devices: func(src fs.FS, _ *templates.Setting) func(func(templates.Entry, error) bool) { return readFiles(src) },
		Pick:    pick,
		Check:   check,
		Enforced: []string{
			"user name is the common name of the certificate on the certificate listener",
			"publish: every topic against the device's rules",
			"receive: every delivery against the device's rules",
			"a session belongs to the device that began it: no other can take it over by its client identifier",
		},
		NotEnforced: []string{
			"CRLs: FlashMQ reads none; a revoked certificate is let in until it expires, without rights if its device is revoked, with all rights if only the certificate is",
			"subscribe: answered with success; what may not be received is not delivered",
			"wills: narrower than the policy, as FlashMQ also wants the right to receive the topic of a will",
			"client identifiers that are free: the first device that uses one keeps others from it",
		},
	}
}

// check warns of what there is no setting against.
func check(v templates.View, s *templates.Setting, out *templates.Output) error {
	if s.Bind != "" && !netip.MustParseAddr(s.Bind).Is4() { // the kit has parsed it
		return &inventory.InvalidError{Field: "listening address", Value: s.Bind, Want: "an IPv4 address, or none for all"}
	}
	revoked := 0
	for _, c := range v.CRLs() {
		revoked += c.Entries
	}
	text := fmt.Sprintf(`FlashMQ reads no CRL: revoked certificates are let in, without rights if their devices are revoked, and %d are on the CRLs now`, revoked)
	if s.Form != Both {
		text += fmt.Sprintf("; form %q asks for a password as well", Both)
	}
	out.Warn(text)
	if s.Form != Both {
		return nil
	}
	without := 0
	for e, err := range v.Entries() {
		if err != nil {
			return err
		}
		if !e.Certificate {
			without++
		}
	}
	if without > 0 {
		out.Warn(fmt.Sprintf("%d devices have no certificate and cannot connect: form %q asks for one and for a password", without, Both))
	}
	return nil
}
