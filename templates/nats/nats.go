// Package nats exports a fleet to the NATS server, which speaks MQTT 3.1.1 itself.
//
// The server has one listener for MQTT, and that either asks for certificates or does
// not. So there are three forms:
//
//   - Form "certificate", the default: verify_and_map. The user of a device is the
//     SPIFFE ID in its certificate, spiffe://TRUST-DOMAIN/device/ID. The server takes
//     a SAN before the subject, does not look at the user name of a client, and refuses
//     one that sends a password.
//   - Form "both" is that, and a device that has a password has to send it as well.
//   - Form "password": TLS without client certificates; the user is the device ID, the
//     password a bcrypt hash.
//
// A right is a list of NATS subjects. A level of a topic is a token of a subject
// (mqttToNATSSubjectConversion in server/mqtt.go):
//
//	a/b     a.b        a level
//	a//b    a./.b      an empty level is the token /
//	a.b     a//b       a dot is two slashes
//	a/+/b   a.*.b
//	a/#     a.> and a  the server asks for both
//
// No two topics are one subject. What the server cannot hold exactly is refused: see
// rule.
//
// A user without permissions may do everything, and so may one whose list of subjects
// is empty. Every user here has both lists, and a device without rights has one
// subject that is no topic.
package nats

import (
	"crypto/x509"
	_ "embed" // the texts
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"slices"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// Version is the version of the server that is written for.
const Version = "2"

// Forms of the export.
const (
	Certificate = "certificate"
	Both        = "both"
	Password    = "password"
)

// Names of the files of an export.
const (
	ConfName  = "nats-server.conf"
	UsersName = "imprint-users.conf"
)

//go:embed nats-server.conf.tmpl
var confText string

//go:embed README.md.tmpl
var readmeText string

// manyDevices is how many devices one server is for: see [templates.Capabilities]'s
// Limits, which has what was measured.
const manyDevices = 50_000

// Target returns the NATS server as a [templates.Target].
func Target() templates.Target {
	return templates.NewTargetOf(templates.Forms{
		Caps: capabilities(), Marked: ConfName, Evaluator: newEvaluator,
		Of: map[string]templates.Target{
			Certificate: templates.NewTarget(certificate()), Both: templates.NewTarget(both()), Password: templates.NewTarget(password()),
		},
	})
}

// capabilities are those of all forms together.
func capabilities() templates.Capabilities {
	return templates.Capabilities{
		Name: "nats", Title: "NATS server",
		Versions: []string{Version},
		Forms:    []string{Certificate, Both, Password},
		Schemes:  []inventory.Scheme{inventory.Bcrypt},

		CertificateIdentity: true,
		Password:            true,
		Both:                true, // form "both"
		ClientIDBinding:     false,
		SubscribeControl:    true,
		CRL:                 false,
		LiveKick:            true, // a user that is gone at a reload

		Limits: "MQTT 3.1.1 only; the server reads all users at every reload",
		RevocationLatency: "a device that is revoked: until the reload, which ends its session; " +
			"a certificate of a device that stays: as long as it is valid, as the server reads no CRL",
	}
}

// noCRL is what no form with certificates can do.
const noCRL = "a revoked certificate of a device that stays: the server reads no CRL, and knows a device by its name and not by its serial number"

// certificate is the kit of form "certificate".
func certificate() templates.Kit {
	k := kit(Certificate)
	k.Caps.Password, k.Caps.Both, k.Caps.Schemes = false, false, nil
	k.Enforced = append([]string{"the user is the SPIFFE ID in the certificate, whatever the client says"}, k.Enforced...)
	k.NotEnforced = append(k.NotEnforced, noCRL, "passwords: a client that sends one is refused")
	return k
}

// both is the kit of form "both".
func both() templates.Kit {
	k := kit(Both)
	k.Pick = pickBcrypt
	k.Enforced = append([]string{
		"the user is the SPIFFE ID in the certificate, whatever the client says",
		"the password of a device that has one, beside its certificate",
	}, k.Enforced...)
	k.NotEnforced = append(k.NotEnforced, noCRL, "a device without a password: its certificate is enough")
	return k
}

// password is the kit of form "password".
func password() templates.Kit {
	k := kit(Password)
	k.Caps.CertificateIdentity, k.Caps.Both = false, false
	k.Pick = pickBcrypt
	k.Enforced = append([]string{"user name and password, held to a bcrypt hash"}, k.Enforced...)
	k.NotEnforced = append(k.NotEnforced, "client certificates: the server asks for none")
	return k
}

// kit is what all forms have.
func kit(form string) templates.Kit {
	return templates.Kit{
		Caps: capabilities(),
		Rule: rule,
		Texts: []templates.Text{
			{PlanFile: templates.PlanFile{Name: ConfName, Mode: 0o640}, Text: confText},
			{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: readmeText},
		},
		Lists: []templates.List{
			{PlanFile: templates.PlanFile{Name: UsersName, Mode: 0o640}, Head: usersHead, Tail: usersTail, Append: appendUser},
		},
		Devices: func(src fs.FS, s *templates.Setting) func(func(templates.Entry, error) bool) {
			return readUsers(src, form, s.TrustDomain)
		},
		Check: check,
		Enforced: []string{
			"publish: every topic, wills and retained messages too, against the device's subjects",
			"subscribe: every filter against the device's subjects; what is granted is what is delivered",
			"a device that is not in the files at a reload: its session ends",
		},
		NotEnforced: []string{
			"client identifiers: a device can end the session of another by using its identifier, and can throw away what waits in it",
			"the loss of a right to receive, in a session that lives: a subscription of QoS 1 or 2 goes on until the session ends",
			"MQTT 5: the server speaks 3.1.1",
		},
	}
}

// check refuses what the server would trip over, and warns of what it cannot do.
func check(v templates.View, s *templates.Setting, out *templates.Output) error {
	if s.Form != Password && s.TrustDomain == "" {
		return errors.New("the NATS server knows a device by the SPIFFE ID in its certificate: want a trust domain")
	}
	out.Warn("the NATS server does not keep a client identifier to its device: one device can end the session of another")
	n, bare, nameless := 0, 0, 0
	for e, err := range v.Entries() {
		if err != nil {
			return err
		}
		n++
		if s.Form != Password && e.Certificate && !named(&e, s.TrustDomain) {
			nameless++
		}
		if s.Form != Both {
			continue
		}
		if !e.Certificate {
			bare++
		} else if _, ok := pickBcrypt(e.Verifiers); !ok && len(e.Verifiers) > 0 {
			return &templates.EntryError{ID: e.ID, Why: "no password verifier that the NATS server reads: want bcrypt; set password-schemes and rotate its password"}
		}
	}
	if bare > 0 {
		out.Warn(fmt.Sprintf("%d devices have no certificate, and cannot connect without one", bare))
	}
	if nameless > 0 {
		out.Warn(fmt.Sprintf("%d devices have a certificate without the SPIFFE ID %s in it, and cannot connect with it", nameless, spiffe(s.TrustDomain, "ID")))
	}
	if n > manyDevices {
		out.Warn(fmt.Sprintf("more than %d devices: the NATS server goes through all of them at every reload, and for each certificate that it does not know", manyDevices))
	}
	return nil
}

// named reports whether the newest certificate of a device has its SPIFFE ID, as far
// as it is known.
func named(e *templates.Entry, trustDomain string) bool {
	if len(e.Leafs) == 0 {
		return true
	}
	c, err := x509.ParseCertificate(e.Leafs[len(e.Leafs)-1])
	if err != nil {
		return false
	}
	want := spiffe(trustDomain, e.ID)
	return slices.ContainsFunc(c.URIs, func(u *url.URL) bool { return u.String() == want })
}
