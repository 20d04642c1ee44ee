// Package mosca exports a fleet to Mosca 2.8.3, the ancestor of Aedes. Mosca has not been
// maintained since 2019: this is for fleets on their way to package aedes.
//
// Mosca's credentials.json has PBKDF2 verifiers and, for each direction, one glob. No glob
// is a topic policy: minimatch takes several slashes for one and ignores one at the end,
// so the glob a/b lets through a//b and a/b/ as well; ** leaves out levels that begin with
// a dot and reaches $SYS; and the filter of a subscription is matched as if it were a
// topic, so a/* is satisfied by a/#. Nor does Mosca survive a reload: SIGHUP ends it with
// an error on every Node.js that tells a listener the signal's name.
//
// So an export has credentials.json for its form, with globs that match nothing, and the
// rights in fields of their own; and a module that answers Mosca's questions from them.
// Whoever starts Mosca without the module has a broker that allows nothing.
package mosca

import (
	_ "embed" // the texts
	"encoding/json"
	"io/fs"
	"slices"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/fleetfile"
	"github.com/imprint-iot/imprint/templates/proof"
)

// Version is the version of Mosca that is written for, the last one.
const Version = "2.8.3"

// Names of the files of an export.
const (
	CredentialsName = "credentials.json"
	ModuleName      = "imprint.js"
	ServerName      = "server.js"
	PackageName     = "package.json"
	ConfigName      = "config.json"
)

//go:embed imprint.js
var moduleText string

//go:embed server.js
var serverText string

//go:embed package.json.tmpl
var packageText string

//go:embed config.json.tmpl
var configText string

//go:embed README.md.tmpl
var readmeText string

// Target returns Mosca as a [templates.Target].
func Target() templates.Target {
	return templates.NewTarget(templates.Kit{
		Caps: templates.Capabilities{
			Name: "mosca", Title: "Mosca",
			Versions: []string{Version},
			Forms:    []string{"module"},
			Schemes:  []inventory.Scheme{inventory.PBKDF2SHA1},

			Password:         true,
			ClientIDBinding:  true,
			SubscribeControl: true,
			LiveKick:         true,

			Limits:            "one process of Node.js, unmaintained",
			RevocationLatency: "none after SIGHUP: sessions have ended when it has been dealt with",
		},
		Texts:   texts(),
		Lists:   []templates.List{{PlanFile: templates.PlanFile{Name: CredentialsName, Mode: 0o600}, Head: head, Tail: tail, Append: appendDevice}},
		Devices: devices,
		Pick:    pick,
		NoTrust: true,

		Evaluator: evaluator,
		Check: func(_ templates.View, _ *templates.Setting, out *templates.Output) error {
			out.Warn("Mosca is unmaintained since 2019, and so are packages it depends on: this export is for the time until the fleet is on Aedes")
			return nil
		},
		Enforced: []string{
			"the user name is the device, the client identifier has to be the same",
			"publish, will and retained messages: every topic against the device's rules",
			"subscribe: every filter has to be covered by a rule",
			"what is delivered: every topic against the device's rules as they are now",
			"on SIGHUP: sessions of devices that are gone and of changed passwords end, their wills are not published",
		},
		NotEnforced: []string{
			"client certificates: none are asked for",
			"all of this without imprint.js: Mosca alone allows nothing with these files",
		},
	})
}

// evaluator reads an export as the module does.
func evaluator(src fs.FS) (proof.Evaluator, error) {
	text, err := fs.ReadFile(src, CredentialsName)
	if err != nil {
		return nil, err
	}
	r := fleetfile.Rights{}
	return r, json.Unmarshal(text, &r)
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

func pick(verifiers []inventory.Verifier) (inventory.Verifier, bool) {
	i := slices.IndexFunc(verifiers, isPBKDF2)
	if i < 0 {
		return inventory.Verifier{}, false
	}
	return verifiers[i], true
}
