// Package vernemq exports a fleet to VerneMQ 2.
//
// There are three forms:
//
//   - Form "file", the default, writes vmq.passwd and vmq.acl, which the broker reads
//     again every ten seconds. Each message is held to all rules of all devices, one
//     after the other, so this is for fleets of up to ten thousand.
//   - Form "postgresql" writes SQL that makes the rows of table vmq_auth_acl those of
//     the fleet. A row is for one client identifier, the device's own, so nobody
//     takes over another's session. Who comes with a certificate needs the password
//     as well: without one the broker looks into no table.
//   - Form "webhooks" writes no devices. The broker asks imprint serve about each
//     connection, message and subscription.
//
// On the listener for certificates the user name is the common name of the
// certificate (use_identity_as_username). In forms "file" and "webhooks" that is all:
// allow_anonymous_override skips the password, and the certificate is still required.
//
// What may be received is decided when a device subscribes. Its filter is matched
// like a topic (vmq_topic:match/2), so that a "#" in it satisfies a "+" of a rule:
// with a rule a/+ one can subscribe to a/#. Nor does the matcher know that wildcards
// at the start leave out topics that begin with $. Rules of these shapes are refused.
//
// The broker comes from no package registry: nothing here has been run on it. What
// is written follows its manual and source (apps/vmq_passwd, vmq_acl, vmq_diversity,
// vmq_webhooks, vmq_server.schema), and [templates.Kit]'s Evaluator, written apart,
// holds it to the policy.
package vernemq

import (
	_ "embed" // the texts
	"errors"
	"fmt"
	"slices"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// Version is the version of the broker that is written for.
const Version = "2"

// Forms of the export.
const (
	File       = "file"
	PostgreSQL = "postgresql"
	Webhooks   = "webhooks"
)

// Names of the files of an export.
const (
	ConfName     = "vernemq.conf"
	PasswordName = "vmq.passwd"
	ACLName      = "vmq.acl"
	SQLName      = "vmq_auth_acl.sql"
)

//go:embed vernemq.conf.tmpl
var confText string

//go:embed README.md.tmpl
var readmeText string

// manyDevices is how many devices form "file" is for. To find the rules of one user
// the broker reads the whole table (ets:match with a part of the key), for every
// message: 0.3 ms with 10,000 devices of two rules, 20 to 50 ms with 100,000. Loading
// the file takes 0.2 s and 3 to 5 s (the loader of vmq_acl.erl under OTP 25).
const manyDevices = 10_000

// Target returns VerneMQ as a [templates.Target].
func Target() templates.Target {
	return templates.NewTargetOf(templates.Forms{
		Caps: capabilities(), Marked: ConfName, Evaluator: newEvaluator,
		Of: map[string]templates.Target{
			File: templates.NewTarget(file()), PostgreSQL: templates.NewTarget(postgreSQL()), Webhooks: templates.NewTarget(webhooks()),
		},
	})
}

// capabilities are those of all forms together.
func capabilities() templates.Capabilities {
	return templates.Capabilities{
		Name: "vernemq", Title: "VerneMQ",
		Versions: []string{Version},
		Forms:    []string{File, PostgreSQL, Webhooks},
		Schemes:  []inventory.Scheme{inventory.SHA512Suffix, inventory.Bcrypt},

		CertificateIdentity: true,
		Password:            true,
		Both:                true, // form "postgresql"
		ClientIDBinding:     true, // form "postgresql"
		SubscribeControl:    true,
		CRL:                 true,
		LiveKick:            true,

		Limits: "form \"file\": each message costs the broker a search through all rules, 0.3 ms with 10,000 devices and 20 to 50 ms with 100,000; " +
			"form \"postgresql\": no limit found; form \"webhooks\": that of imprint serve",
		RevocationLatency: "no new session after 10 s (password file, rules, CRL); a live session until it is ended with vmq-admin; " +
			"form \"webhooks\": no message after 1 s",
	}
}

// kit is what all forms have.
func kit() templates.Kit {
	k := templates.Kit{
		Caps: capabilities(),
		Rule: rule,
		Texts: []templates.Text{
			{PlanFile: templates.PlanFile{Name: ConfName, Mode: 0o640}, Text: confText},
			{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: readmeText},
		},
		Check: check,
		Enforced: []string{
			"user name is the common name of the certificate on the certificate listener",
			"publish: every topic, wills too, against the device's rules",
			"subscribe: every filter against the device's rules",
			"CRL at every TLS handshake on the certificate listener, read again every 10 s",
		},
		NotEnforced: []string{
			"the dates, issuer and signature of a CRL: serial numbers alone count",
			"what is delivered: a subscription that a device has lives on when its rules change, until its session is ended",
		},
	}
	return k
}

// check refuses what the broker would trip over.
func check(v templates.View, s *templates.Setting, out *templates.Output) error {
	if len(v.CRLs()) == 0 {
		return errors.New("VerneMQ refuses every certificate without a CRL file: want a CRL")
	}
	if s.Form != File {
		return nil
	}
	out.Warn(`form "file" does not keep a client identifier to its device: one device can end the session of another, or resume it and be sent what waits in it; form "postgresql" keeps it`)
	n := 0
	for _, err := range v.Entries() {
		if err != nil {
			return err
		}
		if n++; n > manyDevices {
			out.Warn(fmt.Sprintf("more than %d devices: every message costs VerneMQ a search through the rules of all of them; form %q has no such search", manyDevices, PostgreSQL))
			break
		}
	}
	return nil
}

// pick returns the verifier of a scheme if accept says that it can be written.
func pick(s inventory.Scheme, accept func(inventory.Verifier) bool) func([]inventory.Verifier) (inventory.Verifier, bool) {
	return func(verifiers []inventory.Verifier) (inventory.Verifier, bool) {
		i := slices.IndexFunc(verifiers, func(v inventory.Verifier) bool { return v.Scheme == s && accept(v) })
		if i < 0 {
			return inventory.Verifier{}, false
		}
		return verifiers[i], true
	}
}
