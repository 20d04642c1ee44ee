// Package akenza exports a fleet as a list of devices for Akenza.
//
// Akenza takes no client certificates. A device connects over TLS with a JSON Web Token
// as its password, signed with a key of its own whose public half is registered: so the
// key pair of its certificate can be its key there, and this export is the list of these
// public keys. The certificate itself is looked at by nobody, and neither its end nor
// its revocation is.
//
// What columns Akenza's own import has is not documented. The list is therefore a
// generic one, as CSV or as JSON, to be brought into that form or to be fed to the API.
// None of this could be tried on Akenza.
//
// Topics are fixed: /up/device/id/ID, with topics below it, and /down/device/id/ID/#.
// Only a profile that says just this can be exported.
//
// Sources: docs.akenza.io, "Device Security" and "MQTT" of the device connectors.
package akenza

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	_ "embed"
	"encoding/pem"
	"fmt"
	"io/fs"
	"slices"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/proof"
)

// The forms of an export.
const (
	CSV  = "csv"
	JSON = "json"
)

// Names of the files of an export.
const (
	SettingName = "export.json"
	CSVName     = "devices.csv"
	JSONName    = "devices.json"
)

const name = "akenza"

const settingText = `{"format":"generic list of devices, no import format of Akenza","form":"{{.Form}}","imprint":"{{.Stamp}}"}
`

//go:embed README.md.tmpl
var readmeText string

// target is the kit, with a Check of all rules together.
type target struct{ templates.Target }

// Target is Akenza as a [templates.Target].
func Target() templates.Target { return target{templates.NewTarget(kit())} }

func kit() templates.Kit {
	return templates.Kit{
		Caps: templates.Capabilities{
			Name: name, Title: "Akenza (generic list of devices)", Versions: []string{"v3"}, Forms: []string{CSV, JSON},
			// It is the key of the certificate that tells who a device is.
			CertificateIdentity: true, ClientIDBinding: true, SubscribeControl: true,
			Limits:            "keys: ECDSA P-256 or RSA; topics are fixed; the list is generic, to be brought into the form of an import or fed to the API",
			RevocationLatency: "unknown: when a credential is deleted there; a token that is out is good until its exp, so keep that short",
		},
		Rule: why,
		Texts: []templates.Text{
			{PlanFile: templates.PlanFile{Name: SettingName, Mode: 0o644}, Text: settingText},
			{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: readmeText},
		},
		Lists: []templates.List{
			{PlanFile: templates.PlanFile{Name: CSVName, Mode: 0o644}, Form: CSV, Head: csvHead, Append: appendCSV},
			{PlanFile: templates.PlanFile{Name: JSONName, Mode: 0o644}, Form: JSON, Head: jsonHead, Tail: jsonTail, Append: appendJSON},
		},
		Devices: func(src fs.FS, s *templates.Setting) func(func(templates.Entry, error) bool) {
			if s.Form == JSON {
				return readJSON(src)
			}
			return readCSV(src)
		},
		NoNode: true, NoTrust: true,
		Evaluator: newEvaluator,
		Enforced: []string{
			"a token signed with the device's key, whose sub is the device's ID; the client identifier is the ID",
			"publish below /up/device/id/ID and receive below /down/device/id/ID only",
		},
		NotEnforced: []string{
			"certificates: Akenza looks at none, so the end or the revocation of one changes nothing there",
			"a list adds devices; it does not take one away that is not in it",
		},
	}
}

// Rules are what a device may do, all of it, and every device.
func fixedRules() []topic.Rule {
	return []topic.Rule{
		{Action: topic.Publish, Filter: "/up/device/id/{id}/#"},
		{Action: topic.Receive, Filter: "/down/device/id/{id}/#"},
	}
}

const fixedWhy = "its topics are fixed: each device may publish /up/device/id/{id}/# and receive /down/device/id/{id}/#, no more and no less"

func choices() []string { return []string{"a profile with just these two rules"} }

func why(r topic.Rule) (string, []string) {
	if slices.ContainsFunc(fixedRules(), func(f topic.Rule) bool { return f.Action == r.Action && f.Filter == r.Filter }) {
		return "", nil
	}
	return fixedWhy, choices()
}

// Check implements [templates.Target]. A profile with a single rule is taken for a
// question about that rule, as [templates.Narrow] asks; that one of the two is missing
// is then found by Write.
func (t target) Check(p inventory.Profile) error {
	if err := t.Target.Check(p); err != nil || len(p.Policy.Rules) == 1 {
		return err
	}
	return checkComplete(p)
}

// checkComplete refuses a profile that would have a device do less than Akenza lets it.
func checkComplete(p inventory.Profile) error {
	for _, f := range fixedRules() {
		if !slices.ContainsFunc(p.Policy.Rules, func(r topic.Rule) bool { return r.Action == f.Action && r.Filter == f.Filter }) {
			return &templates.InexpressibleError{Target: name, Rule: fmt.Sprintf("profile %s without %s %s", p.Name, f.Action, f.Filter), Why: fixedWhy, Choices: choices()}
		}
	}
	return nil
}

// Write implements [templates.Target].
func (t target) Write(dst *durable.Dir, v templates.View, o templates.Options) (templates.Summary, error) {
	for p, err := range v.Profiles() {
		if err != nil {
			return templates.Summary{}, err
		}
		if err := t.Check(p); err != nil {
			return templates.Summary{}, err
		}
		if err := checkComplete(p); err != nil {
			return templates.Summary{}, err
		}
	}
	return t.Target.Write(dst, v, o)
}

// Evaluator reads an export as Akenza would, apart from Parse.
func (target) Evaluator(src fs.FS) (proof.Evaluator, error) { return newEvaluator(src) }

// A device is one of the list.
type device struct {
	ID        string `json:"deviceId"`
	Name      string `json:"name"`
	Profile   string `json:"profile"`
	Group     string `json:"group"`
	Algorithm string `json:"algorithm"` // of its tokens: ES256 or RS256
	PublicKey string `json:"publicKey"` // PEM, SubjectPublicKeyInfo
}

// newDevice is a device with the key of its newest certificate.
func newDevice(e *templates.Entry) (device, error) {
	d := device{ID: string(e.ID), Name: string(e.ID), Profile: e.Profile, Group: e.Group}
	want, err := entry(d)
	if err != nil {
		return d, err
	}
	if !slices.EqualFunc(templates.SortGrants(want.Grants), templates.SortGrants(e.Grants), templates.SameGrant) {
		return d, &templates.EntryError{ID: e.ID, Why: "its rights are not those that Akenza gives every device"}
	}
	if len(e.Leafs) == 0 {
		return d, nil
	}
	c, err := x509.ParseCertificate(e.Leafs[len(e.Leafs)-1])
	if err != nil {
		return d, &templates.EntryError{ID: e.ID, Why: "its certificate cannot be read"}
	}
	if d.Algorithm = algorithm(c.PublicKey); d.Algorithm == "" {
		return d, &templates.EntryError{ID: e.ID, Why: fmt.Sprintf("Akenza takes ECDSA P-256 and RSA keys; this one is %s", c.PublicKeyAlgorithm)}
	}
	d.PublicKey = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: c.RawSubjectPublicKeyInfo}))
	return d, nil
}

// algorithm is that of the tokens a key signs (RFC 7518 §3.1); empty: Akenza takes none.
func algorithm(pub any) string {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return "ES256"
		}
	case *rsa.PublicKey:
		return "RS256"
	}
	return ""
}

// entry is the device as it is read back.
func entry(d device) (templates.Entry, error) {
	e := templates.Entry{ID: inventory.DeviceID(d.ID), Certificate: true, Profile: d.Profile, Group: d.Group}
	if d.Name != d.ID {
		return e, &templates.EntryError{ID: e.ID, Why: "has another name"}
	}
	if err := checkKey(d); err != nil {
		return e, &templates.EntryError{ID: e.ID, Why: err.Error()}
	}
	var err error
	if e.Grants, err = (topic.Policy{Rules: fixedRules()}).Resolve(topic.Subject{ID: d.ID}); err != nil {
		return e, &templates.EntryError{ID: e.ID, Why: err.Error()}
	}
	return e, nil
}

// checkKey holds the key that was read to what is written.
func checkKey(d device) error {
	if d.PublicKey == "" && d.Algorithm == "" {
		return nil
	}
	b, rest := pem.Decode([]byte(d.PublicKey))
	if b == nil || len(rest) > 0 || !bytes.Equal(pem.EncodeToMemory(b), []byte(d.PublicKey)) || b.Type != "PUBLIC KEY" || len(b.Headers) > 0 {
		return fmt.Errorf("its public key is not in PEM")
	}
	pub, err := x509.ParsePKIXPublicKey(b.Bytes)
	if err != nil {
		return fmt.Errorf("its public key cannot be read")
	}
	if algorithm(pub) != d.Algorithm {
		return fmt.Errorf("its key signs no %.16q tokens", d.Algorithm)
	}
	return nil
}
