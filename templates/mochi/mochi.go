// Package mochi exports a fleet to a mochi MQTT server, version 2.7.
//
// mochi is a library: a broker is a program that has it. The export is the data
// (imprint.json, CAs, CRLs) and the source of a hook that holds a mochi server to it,
// with a main function around it that is a whole broker. Whoever has a broker of
// their own takes the two files of the hook into it.
//
// There is no form for mochi's own auth ledger. It takes passwords in the clear, which
// imprint does not have, and does not hold what it says: a rule a/b matches a/b/c and
// a/b/#, a/+ matches a/#, what no rule matches is allowed, and rules that overlap are
// taken in a random order.
//
// The hook makes up for what the server does not do by itself: last wills are not
// checked at all; a topic alias is checked before it is resolved; client identifiers
// are anybody's. Its source is in _broker, a folder that the go command passes over,
// so that nothing of imprint depends on mochi; the tests build and run it.
package mochi

import (
	"crypto/sha512"
	_ "embed" // the texts
	"errors"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// Version is the version of the library that is written for.
const Version = "2.7"

// Hook is the form of the export.
const Hook = "hook"

// Names of the files of an export.
const (
	SettingsName    = "mochi.json"
	DevicesName     = "imprint.json"
	MainName        = "main.go"
	HookName        = "imprinthook.go"
	FleetSourceName = "imprintfleet.go"
)

//go:embed mochi.json.tmpl
var settingsText string

//go:embed README.md.tmpl
var readmeText string

//go:embed _broker/main.go
var mainText string

//go:embed _broker/imprinthook.go
var hookText string

//go:embed _broker/imprintfleet.go
var fleetText string

// Target returns mochi as a [templates.Target].
func Target() templates.Target { return templates.NewTarget(kit()) }

func kit() templates.Kit {
	text := func(name, text string, doc bool) templates.Text {
		return templates.Text{PlanFile: templates.PlanFile{Name: name, Mode: 0o644, Doc: doc}, Text: text}
	}
	return templates.Kit{
		Caps: templates.Capabilities{
			Name: "mochi", Title: "mochi MQTT",
			Versions: []string{Version},
			Forms:    []string{Hook},
			Schemes:  []inventory.Scheme{inventory.PBKDF2SHA512},

			CertificateIdentity: true,
			Password:            true,
			Both:                false,
			ClientIDBinding:     true,
			SubscribeControl:    true,
			CRL:                 true,
			LiveKick:            true,

			Limits:            "about 1 KB of memory and 10 µs of each reload for a device",
			RevocationLatency: "SIGHUP at once, without it 2 s: sessions end and new ones are refused",
		},
		Rule: rule,
		Texts: []templates.Text{
			text(SettingsName, settingsText, false),
			text(MainName, mainText, false),
			text(HookName, hookText, false),
			text(FleetSourceName, fleetText, false),
			text(templates.ReadmeName, readmeText, true),
		},
		Lists: []templates.List{
			{PlanFile: templates.PlanFile{Name: DevicesName, Mode: 0o640}, Head: devicesHead, Tail: devicesTail, Append: appendDevice},
		},
		Devices:   readDevices,
		Pick:      pick,
		Check:     check,
		Evaluator: newEvaluator,
		Enforced: []string{
			"the device is the common name of the certificate on the certificate listener, and the user name with its password on the other",
			"client identifier equals device ID",
			"publish: every topic, behind an alias too; a will at the connection and when it is sent",
			"subscribe: every filter; deliver: every message, retained ones too",
			"CRL at every TLS handshake and, for sessions that live, at every reload; an expired or missing CRL refuses",
			"at a reload: the sessions of devices that are gone, of revoked certificates and of changed passwords end",
		},
		NotEnforced: []string{
			"a certificate and a password together: each opens its own listener",
			"a will with a delay that has begun: it is published although its device is revoked meanwhile",
			"a subscription to x/+/#: the library does not send it what is on x/y, which x/+ would get",
		},
	}
}

// check refuses what the hook would not load.
func check(v templates.View, _ *templates.Setting, _ *templates.Output) error {
	if len(v.CRLs()) == 0 {
		return errors.New("the hook refuses every certificate without a CRL: want a CRL")
	}
	return nil
}

// rule says why a rule cannot be enforced exactly, or nothing.
func rule(r topic.Rule) (string, []string) {
	first, _, _ := strings.Cut(r.Filter, "/")
	switch {
	case strings.EqualFold(first, "$share"):
		return "it takes this for a shared subscription", []string{"the filter without " + first}
	case r.Action == topic.Publish && len(first) >= 4 && strings.EqualFold(first[:4], "$SYS"):
		return "it drops what clients publish to $SYS", []string{"a first level without $"}
	}
	return "", nil
}

func pick(verifiers []inventory.Verifier) (inventory.Verifier, bool) {
	i := slices.IndexFunc(verifiers, func(v inventory.Verifier) bool {
		return v.Scheme == inventory.PBKDF2SHA512 && isPBKDF2(v)
	})
	if i < 0 {
		return inventory.Verifier{}, false
	}
	return verifiers[i], true
}

func isPBKDF2(v inventory.Verifier) bool {
	return v.Iterations > 0 && v.Iterations <= 1<<24 && len(v.Salt) > 0 && len(v.Hash) == sha512.Size
}
