// Package amqtt exports a fleet to aMQTT 0.12.1, the MQTT broker in Python.
//
// aMQTT's own files cannot enforce a topic policy, whatever is in them. With
// FileAuthPlugin and TopicAccessControlListPlugin it publishes every last will without a
// question, sends whoever connects the retained messages of everybody's subscriptions,
// lets a device resume the session of another by its client identifier, and changes or
// ends that session before it looks at a password. In the lists themselves a + is
// satisfied by a #, a/# misses a, and no publish_acl at all allows everything.
//
// So an export is amqtt.yaml with one plugin of ours, imprint_amqtt.py, which answers all
// questions from imprint.json and stands in for these parts of the broker. It holds to
// one version of aMQTT: with another the broker does not start.
//
// A certificate or a password lets a device in, on both ports: aMQTT asks for
// certificates everywhere and insists on them nowhere. The common name of a certificate
// is the device.
package amqtt

import (
	_ "embed" // the texts
	"io/fs"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/fleetfile"
	"github.com/imprint-iot/imprint/templates/proof"
)

// Version is the version of aMQTT that is written for.
const Version = "0.12.1"

// Names of the files of an export.
const (
	ConfigName = "amqtt.yaml"
	FleetName  = fleetfile.Name
	PluginName = "imprint_amqtt.py"
)

//go:embed amqtt.yaml.tmpl
var configText string

//go:embed imprint_amqtt.py
var pluginText string

//go:embed README.md.tmpl
var readmeText string

// manyDevices is how many devices aMQTT is for: it is one thread of Python, in which
// every message is held to every subscription.
const manyDevices = 10_000

// Target returns aMQTT as a [templates.Target].
func Target() templates.Target {
	file := func(name, text string) templates.Text {
		return templates.Text{PlanFile: templates.PlanFile{Name: name, Mode: 0o644}, Text: text}
	}
	return templates.NewTarget(templates.Kit{
		Caps: templates.Capabilities{
			Name: "amqtt", Title: "aMQTT",
			Versions: []string{Version},
			Forms:    []string{"plugin"},
			Schemes:  []inventory.Scheme{inventory.PBKDF2SHA512},

			CertificateIdentity: true,
			Password:            true,
			ClientIDBinding:     true,
			SubscribeControl:    true,
			CRL:                 true,
			LiveKick:            true,

			Limits:            "one thread of Python, every message against every subscription: up to 10,000 devices",
			RevocationLatency: "none after SIGHUP: rights are gone when it has been dealt with, sessions end at once",
		},
		Rule: rule,
		Texts: []templates.Text{
			file(PluginName, pluginText), file(ConfigName, configText),
			{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: readmeText},
		},
		Lists:   []templates.List{fleet().List()},
		Devices: fleet().Devices,
		Pick:    fleetfile.Pick,
		Check:   check,

		Evaluator: evaluator,
		Enforced: []string{
			"a certificate or a password, whichever a client has; the client identifier has to be that of the device",
			"publish and retained messages: every topic against the device's rules; what is not allowed is dropped in silence",
			"last wills: when a client connects, which is refused for a will that is not allowed",
			"subscribe: every filter has to be covered by a rule",
			"what is delivered: every topic against the device's rules as they are now",
			"CRL when a device connects; one that is missing or past its nextUpdate refuses its certificates",
			"on SIGHUP: sessions of devices that are gone, of revoked certificates and of changed passwords end, their wills are not published",
		},
		NotEnforced: []string{
			"all of this with another version of aMQTT: the plugin does not let it start",
			"a certificate and a password together: a certificate is enough",
		},
	})
}

func fleet() fleetfile.File { return fleetfile.File{Format: "imprint-amqtt/1"} }

// evaluator reads an export as the plugin and the broker do.
func evaluator(src fs.FS) (proof.Evaluator, error) {
	e, err := fleet().Evaluator(src)
	return dollar{e}, err
}

// dollar is a broker that takes no messages to topics that begin with $.
type dollar struct{ proof.Evaluator }

// Answer implements [proof.Evaluator].
func (d dollar) Answer(q proof.Question) (proof.Answer, error) {
	if (q.Verb == proof.Publish || q.Verb == proof.Will || q.Verb == proof.Retain) && strings.HasPrefix(q.Topic, "$") {
		return proof.Denied, nil
	}
	return d.Evaluator.Answer(q)
}

// rule says why aMQTT cannot enforce a rule exactly.
func rule(r topic.Rule) (why string, choices []string) {
	if r.Action == topic.Publish && strings.HasPrefix(r.Filter, "$") {
		return "it ends the connection of whoever publishes to a topic that begins with $", []string{"another name for the first level"}
	}
	return "", nil
}

// check refuses what aMQTT would trip over.
func check(v templates.View, s *templates.Setting, out *templates.Output) error {
	if strings.Contains(s.Bind, ":") {
		return &inventory.InvalidError{Field: "listening address", Value: s.Bind, Want: "an IPv4 address: aMQTT keeps the brackets of others"}
	}
	n := 0
	for _, err := range v.Entries() {
		if err != nil {
			return err
		}
		if n++; n > manyDevices {
			out.Warn("more than 10,000 devices: aMQTT is one thread of Python, which holds every message to every subscription")
			break
		}
	}
	return nil
}
