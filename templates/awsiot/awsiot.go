// Package awsiot exports a fleet to AWS IoT Core.
//
// AWS IoT Core has no passwords and reads no CRL: a device is let in by a certificate
// that is registered there, active, and attached to a thing. Its client identifier
// has to be the name of the thing, which is the device's ID. What it may do is said by
// IoT policies that are attached to the certificate, three for each profile, in which
// the names of the device are policy variables.
//
// In a policy "*" stands for any characters, a slash included, and "+" and "#" for
// themselves. A rule that ends in "#" is two resources; a "+" is a "*" and a Deny of
// whatever has more levels. Such a Deny goes before every other rule, so a profile in
// which it would hit another rule is refused. What a policy with a "*" cannot tell
// apart is refused as well: topics that begin with a wildcard, which would include
// those of AWS, and a "+" with a "#" after it.
//
// The policies name no region and no account: their text has REGION:ACCOUNT, which is
// replaced when they are created. Unreplaced they match nothing.
//
// Sources: AWS IoT Core Developer Guide ("Publish/Subscribe policy examples", "Thing
// policy variables", "Retained message policy examples", "Bulk registration",
// "Provisioning templates"), AWS General Reference for the limits.
package awsiot

import (
	_ "embed"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/proof"
)

//go:embed README.md.tmpl
var readmeText string

// Names of the files of an export. Beside them there are the policies of each profile,
// policy-PROFILE-publish.json and so on, and the issuers of the devices, ca-1.pem and on.
const (
	ThingsName   = "things.jsonl"
	TemplateName = "provisioning-template.json"
)

const (
	name   = "awsiot"
	prefix = "imprint-" // of the names of policies and of the thing type
)

const latency = "at once with delete-connection after the certificate is set to REVOKED; " +
	"minutes without; 6 to 8 minutes for a changed policy"

// target is AWS IoT Core. What every export has in common is in the kit; which
// policies there are depends on the profiles.
type target struct{ templates.Target }

// Target is AWS IoT Core as a [templates.Target].
func Target() templates.Target { return target{templates.NewTarget(newKit(&fleet{}))} }

// Check implements [templates.Target]: rule by rule, then all rules together, which
// may be too many for one policy or get in the way of each other.
func (t target) Check(p inventory.Profile) error {
	if err := t.Target.Check(p); err != nil {
		return err
	}
	_, err := documents(p)
	return err
}

// Write implements [templates.Target].
func (t target) Write(dst *durable.Dir, v templates.View, o templates.Options) (templates.Summary, error) {
	f, err := newFleet(v, t.Check)
	if err != nil {
		return templates.Summary{}, err
	}
	return templates.NewTarget(newKit(f)).Write(dst, v, o)
}

// Evaluator reads an export as AWS IoT Core does, apart from Parse.
func (target) Evaluator(src fs.FS) (proof.Evaluator, error) { return newEvaluator(src) }

// newKit is the export of one fleet.
func newKit(f *fleet) templates.Kit {
	return templates.Kit{
		Caps: templates.Capabilities{
			Name: name, Title: "AWS IoT Core", Versions: []string{"2012-10-17"}, Forms: []string{"registry"},
			CertificateIdentity: true, ClientIDBinding: true, SubscribeControl: true,
			Limits: "a policy has 2,048 bytes: about 15 topics to publish and 15 to receive for each profile; topics have 8 levels and 256 bytes; no QoS 2; " +
				"one bulk registration at a time, of about 10 devices a second unless the quota is raised",
			RevocationLatency: latency,
		},
		Rule:     why,
		Texts:    []templates.Text{{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: readmeText}},
		More:     func(templates.View, *templates.Setting) (map[string][]byte, error) { return f.files, nil },
		MoreFile: f.plan(),
		Lists: []templates.List{{PlanFile: templates.PlanFile{Name: ThingsName, Mode: 0o644}, Append: func(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
			return f.appendThing(b, e)
		}}},
		Devices:   func(src fs.FS, _ *templates.Setting) func(func(templates.Entry, error) bool) { return readThings(src) },
		NoNode:    true,
		Evaluator: newEvaluator,
		Enforced: []string{
			"the certificate is registered, active and attached to the thing",
			"client identifier is the name of the thing, which is the device's ID",
			"publish, retained messages and last wills: every topic against the policy of the profile",
			"subscribe and receive: every filter, and every message that is sent",
		},
		NotEnforced: []string{
			"no CRL is read: a revoked certificate has to be set to REVOKED there",
			"bulk registration adds and never takes away: what is not in " + ThingsName + " any more stays",
			"topics with more than 8 levels or 256 bytes, and QoS 2, end the connection",
		},
	}
}

// A fleet is what an export has that does not belong to one device.
type fleet struct {
	profiles map[string]inventory.Profile
	files    map[string][]byte // policies, issuers and the template, by name
	names    []string          // attributes of things, sorted
	issuers  map[string]string // PEM by subject and key identifier
}

// plan lists the files: what others refer to comes first.
func (f *fleet) plan() []templates.PlanFile {
	var plan []templates.PlanFile
	for n := range f.files {
		plan = append(plan, templates.PlanFile{Name: n, Mode: 0o644})
	}
	slices.SortFunc(plan, func(a, b templates.PlanFile) int { return strings.Compare(a.Name, b.Name) })
	return plan
}

func newFleet(v templates.View, check func(inventory.Profile) error) (*fleet, error) {
	f := &fleet{profiles: map[string]inventory.Profile{}, files: map[string][]byte{}, issuers: map[string]string{}}
	for p, err := range v.Profiles() {
		if err != nil {
			return nil, err
		}
		if err := check(p); err != nil {
			return nil, err
		}
		f.profiles[p.Name] = p
		docs, err := documents(p)
		if err != nil {
			return nil, err
		}
		for part, text := range docs {
			f.files[policyFile(p.Name, part)] = text
		}
		f.names = append(f.names, attributes(p)...)
	}
	slices.Sort(f.names)
	f.names = slices.Compact(f.names)
	if len(f.names) > maxAttributes-2 {
		return nil, &inventory.InvalidError{Field: "profiles", Value: fmt.Sprint(len(f.names)), Want: "at most 48 labels in the topic rules of all profiles: a thing has 50 attributes"}
	}
	text, err := template(f.names)
	if err != nil {
		return nil, err
	}
	f.files[TemplateName] = text
	return f, f.readIssuers(v.TrustBundle())
}

// readIssuers makes a file of each CA certificate that issues to devices: they are
// registered one by one.
func (f *fleet) readIssuers(bundle []byte) error {
	n := 0
	for rest := bundle; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		key, root, err := issuerKey(b.Bytes)
		if err != nil {
			return fmt.Errorf("reading trust bundle: %w", err)
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Bytes})
		f.issuers[key] = string(text)
		if !root {
			n++
			f.files[fmt.Sprintf("ca-%d.pem", n)] = text
		}
	}
	if len(f.issuers) == 0 {
		return errors.New("reading trust bundle: it is empty")
	}
	return nil
}
