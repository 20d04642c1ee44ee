// Package nanomq exports a fleet to NanoMQ.
//
// NanoMQ keeps passwords as they are, and imprint has only hashes of them. So in both
// forms it asks imprint serve, on the same host, who may connect:
//
//   - Form "acl", the default, writes what each device may do as a list of rules, which
//     NanoMQ reads from the top for each message: for up to ten thousand devices.
//   - Form "http" writes no devices. imprint serve is asked about each message and
//     subscription as well.
//
// There are no local users. NanoMQ asks its own table first and imprint afterwards, and
// both have to agree (verify_connect and nmq_auth_http_connect in nmq_mqtt.c): a table
// with anybody in it, a locked one too, would keep all devices out. Without a table
// everything hangs on the question, so a configuration without http_auth lets anybody
// in; [templates.Kit]'s Evaluator knows that.
//
// Questions are JSON. NanoMQ makes forms without escaping anything, so that a user name
// "dev-1&cn=dev-1" would be a certificate.
//
// What may be received is decided when a device subscribes, and the # of a filter
// satisfies a + of a rule, as in EMQX: a rule that ends in + has a denial of that one
// filter before it, with @ for "as text".
//
// The broker comes from no package registry: nothing here has been run on it. What is
// written follows its example configuration and source (acl_handler.c, sub_handler.c,
// pub_handler.c; auth_http.c, mqtt_parser.c and conf_ver2.c of NanoNNG).
package nanomq

import (
	_ "embed" // the texts
	"fmt"
	"io/fs"
	"iter"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
)

// Version is the version of the broker that is written for, as its source was in August
// 2026: it knows several listeners of a kind (since 0.23), "@" in rules, and tells
// imprint the common name of a certificate. An older one that does not refuses devices
// with a certificate.
const Version = "0.24"

// Forms of the export.
const (
	ACL  = "acl"
	HTTP = "http"
)

// Names of the files of an export.
const (
	ConfName = "nanomq.conf"
	ACLName  = "nanomq_acl.conf"
)

//go:embed nanomq.conf.tmpl
var confText string

//go:embed README.md.tmpl
var readmeText string

// manyDevices is how many devices form "acl" is for: auth_acl goes through the rules of
// all devices until one is met, for each message.
const manyDevices = 10_000

// Target returns NanoMQ as a [templates.Target].
func Target() templates.Target {
	return templates.NewTargetOf(templates.Forms{
		Caps: capabilities(), Marked: ConfName, Evaluator: newEvaluator,
		Of: map[string]templates.Target{ACL: allOf{templates.NewTarget(acl())}, HTTP: templates.NewTarget(http())},
	})
}

// capabilities are those of both forms together.
func capabilities() templates.Capabilities {
	return templates.Capabilities{
		Name: "nanomq", Title: "NanoMQ",
		Versions: []string{Version},
		Forms:    []string{ACL, HTTP},

		CertificateIdentity: true, // by imprint serve
		Password:            true, // by imprint serve
		ClientIDBinding:     true, // by imprint serve
		SubscribeControl:    true,

		Limits: "form \"acl\": each message costs the broker a search through all rules, so up to 10,000 devices; " +
			"both: a request to imprint serve for each connection, form \"http\" for each message, too",
		RevocationLatency: "no new session after 1 s; a live session until the broker is restarted, " +
			"in form \"acl\" with its old rights until nanomq reload, in form \"http\" with none after 1 s but what it has subscribed to",
	}
}

// kit is what both forms have.
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
			"who connects, by imprint serve from the live fleet: password, or certificate with the same name; client identifier equals user name",
			"publish: every topic, wills too, against the device's rules",
			"subscribe: every filter against the device's rules; no shared subscriptions",
		},
		NotEnforced: []string{
			"CRLs: the broker reads none; imprint serve refuses the name of a revoked device, not one of its certificates alone",
			"the end of a live session: the broker has nothing to end one with but a restart",
			"a certificate and a password together: each opens its own listener",
		},
	}
	k.Caps.Password = false // as far as files go
	return k
}

// acl is the kit of form "acl".
func acl() templates.Kit {
	k := kit()
	k.Lists = []templates.List{{PlanFile: templates.PlanFile{Name: ACLName, Mode: 0o640}, Head: aclHead, Tail: aclTail, Append: appendRules}}
	k.Devices = func(src fs.FS, _ *templates.Setting) func(func(templates.Entry, error) bool) { return readRules(src) }
	return k
}

// http is the kit of form "http". It has no list, so that every rule can be expressed.
func http() templates.Kit {
	k := kit()
	k.ServiceForms = []string{HTTP}
	k.Enforced = append(k.Enforced, "rights by imprint serve, from the live fleet: without it nobody publishes or subscribes")
	k.NotEnforced = append(k.NotEnforced, "filters with a comma: the broker asks about what is on both sides of it")
	return k
}

// check refuses a service that NanoMQ cannot ask, and warns of what it lacks.
func check(v templates.View, s *templates.Setting, out *templates.Output) error {
	out.Warn("NanoMQ reads no CRL and cannot end a session: a revoked device is refused when it connects, and goes on until then; restart the broker to be sure")
	if s.Form != ACL {
		if !strings.HasPrefix(s.Service, "http://") {
			return &inventory.InvalidError{Field: "service", Value: s.Service, Want: "http:// and this host: NanoMQ asks without TLS"}
		}
		return nil
	}
	n := 0
	for _, err := range v.Entries() {
		if err != nil {
			return err
		}
		if n++; n > manyDevices {
			out.Warn(fmt.Sprintf("more than %d devices: every message costs NanoMQ a search through the rules of all of them; form %q has no such search", manyDevices, HTTP))
			break
		}
	}
	return nil
}

// allOf is the target of form "acl". A kit leaves out devices of whose password the
// files say nothing; here imprint serve knows it, so that each device counts as one
// with a certificate.
type allOf struct{ templates.Target }

// Write implements [templates.Target].
func (a allOf) Write(dst *durable.Dir, v templates.View, o templates.Options) (templates.Summary, error) {
	return a.Target.Write(dst, everybody{v}, o)
}

// Parse implements [templates.Target].
func (a allOf) Parse(src fs.FS) (templates.View, error) {
	v, err := a.Target.Parse(src)
	if err != nil {
		return nil, err
	}
	p, ok := v.(templates.Partial)
	if !ok {
		return v, nil
	}
	return carried{p}, nil
}

// everybody is a view in which each device may come in.
type everybody struct{ templates.View }

// Entries implements [templates.View].
func (v everybody) Entries() iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		for e, err := range v.View.Entries() {
			e.Certificate = true
			if !yield(e, err) {
				return
			}
		}
	}
}

// carried is a view read back: every device leaves a trace in the rules.
type carried struct{ templates.Partial }

// Carry implements [templates.Partial].
func (c carried) Carry(e templates.Entry) (templates.Entry, bool) {
	e.Certificate = true
	return c.Partial.Carry(e)
}
