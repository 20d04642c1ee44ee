// Package artemis exports a fleet to ActiveMQ Artemis: a whole broker.xml, a
// login.config, and the properties files that it reads users and roles from.
//
// Rights are security settings. A setting is for the addresses of one filter and names
// the roles that may send or consume there; of all settings that match an address,
// the most specific one counts, and the others count for nothing. So every setting has
// to name everybody who may, also those who have the right by a wider filter, and
// where two filters overlap there has to be a third setting for what both match. See
// [table].
//
// What else the files have to do with, all of it seen in Artemis 2.40 and its source:
//
//   - The cache of authorizations is by the user name that a client says, also where a
//     certificate has said otherwise: with the certificate of one device and the user
//     name of another a client had the other's rights. It is turned off.
//   - The cluster user may do everything, on every acceptor, and has a password that
//     is in the manual. Here both are derived from the server's key.
//   - The filter of a SUBSCRIBE is matched as if it were a topic: a/# goes through a/+.
//   - Of the characters that mean something in a regular expression only "." and "$"
//     are escaped.
package artemis

import (
	"crypto/x509"
	_ "embed"
	"fmt"
	"io/fs"
	"strings"
	"unicode"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/proof"
)

// Form is the one form of the export.
const Form = "files"

// Names of the files of an export that are Artemis's alone.
const (
	BrokerName       = "broker.xml"
	LoginName        = "login.config"
	KeystoreName     = "server.pemcfg" // names the PEM files of the server
	UsersName        = "artemis-users.properties"
	CertificatesName = "cert-users.properties"
	RolesName        = "artemis-roles.properties" // of both kinds of users
)

//go:embed broker.xml.tmpl
var brokerText string

//go:embed login.config.tmpl
var loginText string

//go:embed server.pemcfg.tmpl
var keystoreText string

//go:embed README.md.tmpl
var readmeText string

// manyDevices is above what Artemis should have settings for. It reads broker.xml in a
// time that grows with the square of the number of elements (XMLUtil,
// replaceSystemPropsInXml): 10 seconds for 1,000 devices with three rules, 95 for
// 3,000, and more than 5 minutes for 10,000, at each start and each change.
const manyDevices = 1_000

const latency = "new connections: a certificate within 5 seconds of the trust store being touched, a password within 10 seconds (a cache); " +
	"an open session of a device that is gone loses its rights within 10 seconds, any other goes on until it is closed"

// Target returns ActiveMQ Artemis as a target.
func Target() templates.Target { return newTarget(why) }

func newTarget(rule func(topic.Rule) (string, []string)) templates.Target {
	list := func(name string) templates.List {
		return templates.List{
			PlanFile: templates.PlanFile{Name: name, Mode: 0o640},
			// The table writes it: a role has many devices, and a setting many roles.
			Append: func(b []byte, _ int, _ *templates.Entry, _ *templates.Setting) ([]byte, error) { return b, nil },
		}
	}
	return templates.NewTarget(templates.Kit{
		Caps: templates.Capabilities{
			Name: "artemis", Title: "ActiveMQ Artemis", Versions: []string{"2.40"}, Forms: []string{Form}, Schemes: []inventory.Scheme{inventory.PBKDF2SHA1},
			CertificateIdentity: true, Password: true, SubscribeControl: true, CRL: true,
			Limits:            "broker.xml is read in a time that grows with the square of the fleet, at each start and each change: 10 s for 1,000 devices, more than 5 minutes for 10,000",
			RevocationLatency: latency,
		},
		Rule: rule,
		Texts: []templates.Text{
			{PlanFile: templates.PlanFile{Name: KeystoreName, Mode: 0o644}, Text: keystoreText},
			{PlanFile: templates.PlanFile{Name: LoginName, Mode: 0o644}, Text: loginText},
			{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: readmeText},
		},
		Lists: []templates.List{
			list(RolesName),
			{PlanFile: templates.PlanFile{Name: CertificatesName, Mode: 0o640}, Head: propertiesHead, Append: appendCertificate},
			{PlanFile: templates.PlanFile{Name: UsersName, Mode: 0o640}, Head: propertiesHead, Append: appendUser},
			list(BrokerName),
		},
		Pick:      pick,
		Check:     check,
		Devices:   readDevices,
		Evaluator: func(src fs.FS) (proof.Evaluator, error) { return newEvaluator(src) },
		Enforced: []string{
			"a certificate of the fleet that is not revoked on one listener, its subject being the user; user name and password on the other",
			"publish, last will and subscribe: every topic, and every filter of a SUBSCRIBE, against the device's rules",
		},
		NotEnforced: []string{
			"a client identifier is not bound to its user: one device can end the session of another with it",
			"a denied SUBSCRIBE to $share/CLIENTID/FILTER deletes the subscription that the client with that identifier has to the filter",
			"a shared subscription is allowed wherever the filter in it is; with another's client identifier as its group it takes messages from that one's subscription to the same filter",
			"narrower: the last will of a device with a certificate is not published, since the broker looks for the certificate when the connection is gone",
			"narrower: a + matches no empty level, and neither does a # a single empty one",
		},
	})
}

// pick is the verifier that Artemis reads: HMAC-SHA-1, with any salt and length.
func pick(verifiers []inventory.Verifier) (inventory.Verifier, bool) {
	for _, v := range verifiers {
		if v.Scheme == inventory.PBKDF2SHA1 && len(v.Salt) > 0 && len(v.Hash) > 0 {
			return v, true
		}
	}
	return inventory.Verifier{}, false
}

// special are the characters that mean something in a regular expression of Java and
// that Artemis does not escape.
const special = `\^|()[]{}?*`

// why says what Artemis cannot keep to.
func why(r topic.Rule) (string, []string) {
	plain := r.Filter
	for _, p := range r.Placeholders() {
		plain = strings.Replace(plain, p, "x", 1)
	}
	f := r.Filter
	switch {
	case strings.ContainsAny(plain, special):
		return "its settings are regular expressions, in which only . and $ are escaped", []string{"a level without any of " + special}
	case strings.Contains(f, "::"):
		return ":: is for the name of a queue there", []string{"another name for this level"}
	case strings.HasPrefix(f, "+"):
		return "a wildcard in the first level reaches the topics that begin with $", []string{"a name for the first level"}
	case r.Action == topic.Receive && strings.HasSuffix(f, "/+"):
		return "a subscription to # goes through a rule that ends in +", []string{"a name for the last level", "# for the last level, which is wider: " + strings.TrimSuffix(f, "+") + "#"}
	case r.Action == topic.Receive && strings.HasSuffix(f, "/+/#"):
		return "a subscription that has # in the place of +/# goes through", []string{"a name in place of the +", "the filter without it: " + strings.TrimSuffix(f, "+/#") + "#"}
	}
	return "", nil
}

// checkFilter refuses in a resolved filter what no setting can hold as it is.
func checkFilter(id inventory.DeviceID, f topic.Filter) error {
	s := string(f)
	if strings.TrimSpace(s) != s || strings.ContainsFunc(s, unicode.IsControl) || strings.ContainsAny(s, special+"\ufffd\ufffe\uffff") || strings.Contains(s, "::") {
		return &templates.EntryError{ID: id, Why: fmt.Sprintf("topic %.128q is not safe in its settings", s)}
	}
	return nil
}

// subject is the name in the certificate of a device as Java writes it (X500Name): the
// other way round than it is encoded, and in quotes what has a comma in it.
func subject(id inventory.DeviceID, fleet string) (string, error) {
	for _, r := range fleet {
		if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_.,&'()/ ", r)) {
			return "", &inventory.InvalidError{Field: "fleet", Value: fleet, Want: "letters, digits, spaces and -_.,&'()/ for Artemis, which compares the subjects of certificates as text"}
		}
	}
	// What Artemis keeps of a login is by user name, password and subject without
	// anything between them, "unavailable" where there is none.
	if fleet == "" || strings.TrimSpace(fleet) != fleet || strings.Contains(fleet, "  ") || strings.HasSuffix(fleet, "unavailable") {
		return "", &inventory.InvalidError{Field: "fleet", Value: fleet, Want: `a name without spaces at its ends or two in a row that does not end in "unavailable", for Artemis`}
	}
	if strings.Contains(fleet, ",") {
		fleet = `"` + fleet + `"`
	}
	return "CN=" + string(id) + ", O=" + fleet, nil
}

// checkSubject refuses a certificate that Artemis would not take for the device's.
func checkSubject(e *templates.Entry, fleet string) error {
	if len(e.Leafs) == 0 {
		return nil
	}
	c, err := x509.ParseCertificate(e.Leafs[len(e.Leafs)-1])
	if err != nil {
		return fmt.Errorf("reading certificate of %s: %w", e.ID, err)
	}
	n := c.Subject
	if len(n.Names) != 2 || n.CommonName != string(e.ID) || len(n.Organization) != 1 || n.Organization[0] != fleet || n.Names[1].Value != n.CommonName {
		return &templates.EntryError{ID: e.ID, Why: fmt.Sprintf("the subject of its certificate is %.128q: Artemis looks for organization and common name, in this order, and nothing else", n.String())}
	}
	return nil
}

// check makes the table of all rights and writes what has to be written from it.
func check(v templates.View, s *templates.Setting, out *templates.Output) error {
	if _, err := subject("x", s.Fleet); err != nil {
		return err
	}
	t := newTable()
	var prev inventory.DeviceID
	for e, err := range v.Entries() {
		if err != nil {
			return err
		}
		if err := templates.CheckEntry(prev, &e); err != nil {
			return err
		}
		prev = e.ID
		if _, ok := pick(e.Verifiers); !ok && !e.Certificate {
			continue // the kit says why not
		}
		if err := t.add(&e); err != nil {
			return err
		}
	}
	if len(t.ids) > manyDevices {
		out.Warn(fmt.Sprintf("%d devices: Artemis reads their settings in a time that grows with the square of their number, 10 s for 1,000 and more than 5 minutes for 10,000; above %d take another broker", len(t.ids), manyDevices))
	}
	if err := t.complete(); err != nil {
		return err
	}
	if err := t.writeRoles(out.File(RolesName)); err != nil {
		return err
	}
	return t.writeBroker(out.File(BrokerName), s, v.Node().ServerKey.Reveal())
}
