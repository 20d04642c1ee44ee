// Package aedes exports a fleet to Aedes 1, the MQTT broker for Node.js.
//
// Aedes has no files of users or rights: it asks functions, and those that it comes with
// allow everything. So an export is a module that can be run as it is: imprint.mjs, which
// answers every question of the broker from imprint.json; server.mjs, a broker with a
// port for certificates and one for passwords; and package.json, which names Aedes as the
// only dependency. Who has a server of his own imports imprint.mjs and calls authorizer.
//
// On the port for certificates a device is the common name of its certificate, on the
// other one it is its user name; in both cases the client identifier has to be the same.
// Topics are matched as MQTT 3.1.1 §4.7 says, and a subscription has to be covered by one
// rule. What is delivered is held to the rules once more, so that a right that is gone is
// gone for subscriptions of before, too. Will and retained messages are publications like
// any other.
//
// CRLs are read by the module: the crl option of Node's TLS switches on
// X509_V_FLAG_CRL_CHECK_ALL, with which OpenSSL wants a CRL of the root as well.
package aedes

import (
	_ "embed" // the texts
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/fleetfile"
)

// Version is the version of Aedes that is written for.
const Version = "1"

// Names of the files of an export.
const (
	FleetName   = fleetfile.Name
	ModuleName  = "imprint.mjs"
	ServerName  = "server.mjs"
	PackageName = "package.json"
	ConfigName  = "config.json"
)

//go:embed imprint.mjs
var moduleText string

//go:embed server.mjs
var serverText string

//go:embed package.json.tmpl
var packageText string

//go:embed config.json.tmpl
var configText string

//go:embed README.md.tmpl
var readmeText string

// maxLevels is how many levels of a topic the matcher of Aedes takes (qlobber,
// max_words).
const maxLevels = 100

// manyDevices is how many devices are loaded in about a second (100,000 in 0.25 s, 27 MB), in which the broker does
// nothing else.
const manyDevices = 400_000

// Target returns Aedes as a [templates.Target].
func Target() templates.Target {
	return templates.NewTarget(templates.Kit{
		Caps:    capabilities(),
		Rule:    rule,
		Texts:   texts(),
		Lists:   []templates.List{fleet().List()},
		Devices: fleet().Devices,
		Pick:    fleetfile.Pick,
		Check:   check,

		Evaluator: fleet().Evaluator,
		Enforced: []string{
			"certificate port: the common name is the device, the client identifier and a user name have to be the same",
			"password port: the user name is the device, the client identifier has to be the same",
			"publish, will and retained messages: every topic against the device's rules",
			"subscribe: every filter has to be covered by a rule; again when a session is resumed",
			"what is delivered: every topic against the device's rules as they are now",
			"CRL when a device connects; one that is missing or past its nextUpdate refuses its certificates",
			"on SIGHUP: sessions of devices that are gone, of revoked certificates and of changed passwords end, their wills are not published",
		},
		NotEnforced: []string{
			"a certificate and a password together: each has its port",
			"topics of more than 100 levels: Aedes refuses them",
		},
	})
}

func fleet() fleetfile.File { return fleetfile.File{Format: "imprint-aedes/1"} }

func capabilities() templates.Capabilities {
	return templates.Capabilities{
		Name: "aedes", Title: "Aedes",
		Versions: []string{Version},
		Forms:    []string{"module"},
		Schemes:  []inventory.Scheme{inventory.PBKDF2SHA512},

		CertificateIdentity: true,
		Password:            true,
		ClientIDBinding:     true,
		SubscribeControl:    true,
		CRL:                 true,
		LiveKick:            true,

		Limits:            "one process of Node.js: a reload of 100,000 devices stops it for 0.2 s and takes 250 MB",
		RevocationLatency: "none after SIGHUP: sessions have ended when it has been dealt with",
	}
}

func texts() []templates.Text {
	file := func(name, text string) templates.Text {
		return templates.Text{PlanFile: templates.PlanFile{Name: name, Mode: 0o644}, Text: text}
	}
	return []templates.Text{
		file(ModuleName, moduleText), file(ServerName, serverText), file(PackageName, packageText), file(ConfigName, configText),
		{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: readmeText},
	}
}

// rule says why Aedes cannot enforce a rule exactly.
func rule(r topic.Rule) (why string, choices []string) {
	if strings.Count(r.Filter, "/") >= maxLevels {
		return "it takes no topic of more than 100 levels", []string{"fewer levels"}
	}
	return "", nil
}

func check(v templates.View, _ *templates.Setting, out *templates.Output) error {
	n := 0
	for _, err := range v.Entries() {
		if err != nil {
			return err
		}
		if n++; n > manyDevices {
			out.Warn("more than 400,000 devices: Aedes is one process, which stops for more than a second at each reload")
			break
		}
	}
	return nil
}
