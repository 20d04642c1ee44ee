// Package hivemq exports a fleet to HiveMQ: to the Community Edition with the File
// RBAC extension, form "file-rbac", or to the database of the Enterprise Security
// Extension, form "ese-sql".
//
// In both forms a device is a user with a password. HiveMQ itself checks client
// certificates on the listener that demands them, and neither extension looks at the
// certificate there, so it says nothing about who the client is: a device that has
// only a certificate is left out.
//
// Rights are permissions that allow, and what none of them allows is denied. HiveMQ
// matches them in a way of its own (DefaultPermissionsEvaluator and
// PermissionTopicMatcherUtils of the Community Edition), which both extensions share:
//
//   - A "#" in the filter of a SUBSCRIBE goes through a "+" of a permission. A rule to
//     receive that ends in "+" or "+/#" is therefore refused.
//   - Slashes at the end of a topic do not count for a permission without wildcards.
//     Who may use a/b may use a/b/ as well. A rule without wildcards is therefore
//     refused; a/b/# is exact.
//   - A wildcard in the first level reaches the topics that begin with "$".
//
// The keystore is PKCS #12, which a Java that is asked for JKS reads as well. All its
// octets are derived from the server's key, so that the same fleet makes the same
// file.
package hivemq

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// The forms of an export.
const (
	FileRBAC = "file-rbac" // credentials.xml of the File RBAC extension
	ESESQL   = "ese-sql"   // rows for the Enterprise Security Extension in PostgreSQL
)

// Names of the files of an export that are HiveMQ's alone.
const (
	ConfName        = "hivemq.xml"      // is conf/config.xml of HiveMQ
	KeystoreName    = "keystore.p12"    // server-chain.pem and server.key
	TruststoreName  = "truststore.p12"  // trust.pem
	ExtensionName   = "config.xml"      // is conf/config.xml of the File RBAC extension
	CredentialsName = "credentials.xml" // is conf/credentials.xml of that extension
	ESEName         = "ese.xml"         // is conf/config.xml of the Enterprise Security Extension
	SQLName         = "users.sql"
)

//go:embed hivemq.xml.tmpl
var confText string

//go:embed config.xml.tmpl
var extensionText string

//go:embed ese.xml.tmpl
var eseText string

//go:embed README-rbac.md.tmpl
var rbacReadme string

//go:embed README-ese.md.tmpl
var eseReadme string

// Target returns HiveMQ as a target. Each form is a kit, since each reads passwords of
// its own.
func Target() templates.Target { return newTarget(why) }

func newTarget(rule func(topic.Rule) (string, []string)) templates.Target {
	caps := capabilities(FileRBAC, inventory.PBKDF2SHA512)
	caps.Forms, caps.Schemes = []string{FileRBAC, ESESQL}, []inventory.Scheme{inventory.PBKDF2SHA512, inventory.SHA512Prefix}
	return templates.NewTargetOf(templates.Forms{
		Caps: caps, Marked: ConfName, Evaluator: newEvaluator,
		Of: map[string]templates.Target{FileRBAC: templates.NewTarget(rbacKit(rule)), ESESQL: templates.NewTarget(eseKit(rule))},
	})
}

const latency = "new connections are refused within 5 seconds of the file being in place (form file-rbac), or at once after the rows are deleted (ese-sql); " +
	"a session that is open goes on until it is disconnected; certificates are not revoked at all: there is no CRL"

func capabilities(form string, scheme inventory.Scheme) templates.Capabilities {
	return templates.Capabilities{
		Name: "hivemq", Title: "HiveMQ", Versions: []string{"4"}, Forms: []string{form}, Schemes: []inventory.Scheme{scheme},
		Password: true, SubscribeControl: true,
		Limits:            "file-rbac: all users are in memory, and the whole file is read again at each change; above 20,000 devices take ese-sql",
		RevocationLatency: latency,
	}
}

func rbacKit(rule func(topic.Rule) (string, []string)) templates.Kit {
	k := kit(capabilities(FileRBAC, inventory.PBKDF2SHA512), rule)
	k.Texts = []templates.Text{
		{PlanFile: templates.PlanFile{Name: ExtensionName, Mode: 0o640}, Text: extensionText},
		{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: rbacReadme},
	}
	// Its users come before its roles, which is two passes over the fleet: check
	// writes it, and the list only says that it is there.
	k.Lists = []templates.List{{
		PlanFile: templates.PlanFile{Name: CredentialsName, Mode: 0o640},
		Append:   func(b []byte, _ int, _ *templates.Entry, _ *templates.Setting) ([]byte, error) { return b, nil },
	}}
	k.Check = func(v templates.View, _ *templates.Setting, out *templates.Output) error {
		return writeCredentials(v, out)
	}
	k.Devices = readCredentials
	return k
}

func eseKit(rule func(topic.Rule) (string, []string)) templates.Kit {
	k := kit(capabilities(ESESQL, inventory.SHA512Prefix), rule)
	k.Texts = []templates.Text{
		{PlanFile: templates.PlanFile{Name: ESEName, Mode: 0o640}, Text: eseText},
		{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: eseReadme},
	}
	k.Lists = []templates.List{{PlanFile: templates.PlanFile{Name: SQLName, Mode: 0o640}, Head: sqlHead, Tail: sqlTail, Append: appendSQL}}
	k.Devices = readSQL
	return k
}

// kit is what both forms share.
func kit(caps templates.Capabilities, rule func(topic.Rule) (string, []string)) templates.Kit {
	scheme := caps.Schemes[0]
	return templates.Kit{
		Caps: caps, Rule: rule,
		Pick: func(verifiers []inventory.Verifier) (inventory.Verifier, bool) {
			i := slices.IndexFunc(verifiers, func(v inventory.Verifier) bool { return v.Scheme == scheme && len(v.Salt) > 0 && len(v.Hash) == 64 })
			if i < 0 {
				return inventory.Verifier{}, false
			}
			return verifiers[i], true
		},
		MoreFile: []templates.PlanFile{{Name: KeystoreName, Mode: 0o600}, {Name: TruststoreName, Mode: 0o600}, {Name: ConfName, Mode: 0o600}},
		More: func(v templates.View, s *templates.Setting) (map[string][]byte, error) {
			return brokerFiles(v.Node().ServerChain, v.Node().ServerKey.Reveal(), v.TrustBundle(), s)
		},
		Enforced: []string{
			"user name and password on both listeners; on the listener for certificates one of the fleet's CAs as well",
			"publish, last will and subscribe: every topic, and every filter of a SUBSCRIBE, against the device's rules; shared subscriptions are denied",
		},
		NotEnforced: []string{
			"the certificate is not held against the user name: any certificate of the fleet will do",
			"a client identifier is not bound to its user",
			"CRLs: there are none in HiveMQ Community Edition, and none in these files",
			"sessions that are open keep the rights they connected with",
		},
	}
}

// why says what HiveMQ cannot keep to.
func why(r topic.Rule) (string, []string) {
	f := r.Filter
	switch {
	case strings.ContainsAny(f, `§\`) || strings.Contains(f, "${"):
		return `"${" and "§" are placeholders there, and a backslash is not safe in its database`, []string{"another name for this level"}
	case !strings.ContainsAny(f, "+#"):
		return "slashes at the end of a topic do not count for a rule without wildcards: it would open " + f + "/ as well", []string{"all topics below, too: " + strings.TrimRight(f, "/") + "/#"}
	case strings.HasSuffix(f, "/"):
		return "slashes at the end of a topic do not count there", []string{"a name for the last level"}
	case strings.HasPrefix(f, "+"):
		return "a wildcard in the first level reaches the topics that begin with $", []string{"a name for the first level"}
	case r.Action == topic.Receive && strings.HasSuffix(f, "/+"):
		return "a subscription to # goes through a rule that ends in +", []string{"a name for the last level", "# for the last level, which is wider: " + strings.TrimSuffix(f, "+") + "#"}
	case r.Action == topic.Receive && strings.HasSuffix(f, "/+/#"):
		return "a subscription that has # in the place of +/# goes through", []string{"a name in place of the +", "the filter without it: " + strings.TrimSuffix(f, "+/#") + "#"}
	}
	return "", nil
}

// checkText refuses in a resolved filter what no file of HiveMQ can hold as it is.
func checkText(e *templates.Entry, f topic.Filter) error {
	s := string(f)
	if strings.TrimSpace(s) != s || strings.ContainsFunc(s, unsafe) || strings.Contains(s, "${") {
		return &templates.EntryError{ID: e.ID, Why: fmt.Sprintf("topic %.128q is not safe in its files", s)}
	}
	return nil
}

// unsafe are control characters, placeholders, and what XML 1.0 has no way to write.
func unsafe(r rune) bool {
	return r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\\' || r == '§' || r == 0xfffe || r == 0xffff || r == 0xfffd
}
