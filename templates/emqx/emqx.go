// Package emqx exports a fleet to EMQX 5.8 to 6.2.
//
// There are four forms:
//
//   - Form "file", the default, writes users as CSV for the built-in database and rules
//     as Erlang terms (acl.conf). The rules are one list that EMQX reads from the top
//     for each message, so this is for fleets of up to ten thousand.
//   - Form "api" writes the same users, and rules for the built-in database, which finds
//     those of a device by its name. A script brings both to the broker's REST API.
//   - Form "postgresql" writes SQL that makes two tables the fleet, and the queries that
//     EMQX asks them with.
//   - Form "http" writes no devices. The broker asks imprint serve about each connection,
//     message and subscription.
//
// On the listener for certificates the user name is the common name of the certificate
// (peer_cert_as_username), on both listeners the client identifier is the user name
// (clientid_override), so nobody ends the session of another.
//
// What may be received is decided when a device subscribes. EMQX matches the filter as
// if it were a topic (emqx_topic:match/2): its "#" satisfies a "+" of a rule, so that with
// a rule a/+ one could subscribe to a/#. That one filter is denied before, literally.
// It cannot be where a level before the last one is a wildcard, too: such rules are
// refused.
//
// The broker comes from no package registry: nothing here has been run on it. What is
// written follows its manual and source (apps/emqx_auth, emqx_auth_mnesia,
// emqx_auth_postgresql, emqx_auth_http, emqx_schema), and [templates.Kit]'s Evaluator,
// written apart, holds it to the policy.
package emqx

import (
	"crypto/x509"
	_ "embed" // the texts
	"fmt"
	"io/fs"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// Versions of the broker that are written for. 5.8 is 5.8.3 or later, the first with
// clientid_override; it has no verify_peer_ext_key_usage in its open-source edition.
const (
	V62  = "6.2"
	V60  = "6.0"
	V510 = "5.10"
	V58  = "5.8"
)

// Forms of the export.
const (
	File       = "file"
	API        = "api"
	PostgreSQL = "postgresql"
	HTTP       = "http"
)

// Names of the files of an export.
const (
	ConfName   = "emqx.conf"
	UsersName  = "imprint-users.csv"
	ACLName    = "imprint-acl.conf"
	RulesName  = "imprint-rules.ndjson"
	SQLName    = "imprint.sql"
	ScriptName = "apply.sh"
)

//go:embed emqx.conf.tmpl
var confText string

//go:embed README.md.tmpl
var readmeText string

//go:embed apply.sh.tmpl
var scriptText string

// manyDevices is how many devices form "file" is for: emqx_authz_rule:matches/4 goes
// through the rules of all devices until one is met, for each message that is not in
// the connection's cache of decisions.
const manyDevices = 10_000

// Target returns EMQX as a [templates.Target].
func Target() templates.Target {
	return templates.NewTargetOf(templates.Forms{
		Caps: capabilities(), Marked: ConfName, Evaluator: newEvaluator,
		Of: map[string]templates.Target{
			File: templates.NewTarget(file()), API: templates.NewTarget(api()), PostgreSQL: templates.NewTarget(postgreSQL()), HTTP: templates.NewTarget(http()),
		},
	})
}

// capabilities are those of all forms together.
func capabilities() templates.Capabilities {
	return templates.Capabilities{
		Name: "emqx", Title: "EMQX",
		Versions: []string{V62, V60, V510, V58},
		Forms:    []string{File, API, PostgreSQL, HTTP},
		Schemes:  []inventory.Scheme{inventory.SHA256Suffix},

		CertificateIdentity: true,
		Password:            true,
		ClientIDBinding:     true,
		SubscribeControl:    true,
		CRL:                 true,
		LiveKick:            true,

		Limits: "form \"file\": each message costs the broker a search through all rules, so up to 10,000 devices; " +
			"forms \"api\" and \"postgresql\": no limit found; form \"http\": that of imprint serve; " +
			"the CRL is fetched from the URL in the certificates, over http",
		RevocationLatency: "a password: when apply.sh or the SQL has run; a certificate: 1 min, the refresh of the CRL; " +
			"a live session until it is kicked; its rights 1 min, the broker's cache of decisions",
	}
}

// kit is what all forms have.
func kit() templates.Kit {
	return templates.Kit{
		Caps: capabilities(),
		Rule: rule,
		Texts: []templates.Text{
			{PlanFile: templates.PlanFile{Name: ConfName, Mode: 0o640}, Text: confText},
			{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: readmeText},
		},
		Check: check,
		Enforced: []string{
			"user name is the common name of the certificate on the certificate listener",
			"client identifier is the user name on both listeners",
			"publish: every topic, wills too, against the device's rules",
			"subscribe: every filter against the device's rules; no shared subscriptions",
			"CRL at every TLS handshake on the certificate listener, fetched every minute",
		},
		NotEnforced: []string{
			"a certificate and a password together: each opens its own listener",
			"revocation of a CA below the root: the CRL is asked about the device's certificate only",
			"topics $delayed/N/T: the broker holds them to the rule of T",
			"what is delivered: a subscription that a device has lives on when its rules change, until its session is ended",
		},
	}
}

// users is the list of users in the built-in database, for the forms that have it.
func users(k templates.Kit) templates.Kit {
	k.Lists = append(k.Lists, templates.List{PlanFile: templates.PlanFile{Name: UsersName, Mode: 0o640}, Head: usersHead, Append: appendUser})
	k.Texts = append(k.Texts, templates.Text{PlanFile: templates.PlanFile{Name: ScriptName, Mode: 0o755}, Text: scriptText})
	k.Pick = pick
	return k
}

// file is the kit of form "file".
func file() templates.Kit {
	k := users(kit())
	k.Lists = append(k.Lists, templates.List{PlanFile: templates.PlanFile{Name: ACLName, Mode: 0o640}, Head: aclHead, Tail: aclTail, Append: appendTerms})
	k.Devices = func(src fs.FS, _ *templates.Setting) func(func(templates.Entry, error) bool) {
		return withUsers(src, readTerms(src))
	}
	return k
}

// api is the kit of form "api".
func api() templates.Kit {
	k := users(kit())
	k.Lists = append(k.Lists, templates.List{PlanFile: templates.PlanFile{Name: RulesName, Mode: 0o640}, Append: appendJSON})
	k.Devices = func(src fs.FS, _ *templates.Setting) func(func(templates.Entry, error) bool) {
		return withUsers(src, readJSON(src))
	}
	return k
}

// postgreSQL is the kit of form "postgresql".
func postgreSQL() templates.Kit {
	k := kit()
	k.Lists = []templates.List{{PlanFile: templates.PlanFile{Name: SQLName, Mode: 0o640}, Head: sqlHead, Tail: sqlTail, Append: appendRows}}
	k.Pick = pick
	k.Devices = func(src fs.FS, _ *templates.Setting) func(func(templates.Entry, error) bool) { return readRows(src) }
	k.NotEnforced = append(k.NotEnforced, "a password while the database is away: nobody gets in with one")
	return k
}

// check warns of what the broker would trip over.
func check(v templates.View, s *templates.Setting, out *templates.Output) error {
	n, looked, without := 0, 0, 0
	for e, err := range v.Entries() {
		if err != nil {
			return err
		}
		if n++; n > manyDevices {
			break
		}
		if len(e.Leafs) == 0 || looked == 100 { // one CA writes the same URL into all
			continue
		}
		looked++
		if !hasCRLAddress(e.Leafs[len(e.Leafs)-1]) {
			without++
		}
	}
	if n > manyDevices && s.Form == File {
		out.Warn(fmt.Sprintf("more than %d devices: every message costs EMQX a search through the rules of all of them; forms %q, %q and %q have no such search", manyDevices, API, PostgreSQL, HTTP))
	}
	if without > 0 {
		out.Warn("there are certificates without the http address of a CRL: EMQX refuses each of them, as it learns CRLs from nowhere else; give their profile a CRL distribution point and renew them")
	}
	return nil
}

// hasCRLAddress reports whether a certificate says where its CRL is, over http.
func hasCRLAddress(der []byte) bool {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return false
	}
	for _, u := range c.CRLDistributionPoints {
		if strings.HasPrefix(strings.ToLower(u), "http://") {
			return true
		}
	}
	return false
}
