// Package azureiot exports a fleet to the three services of Azure that devices connect
// to or through.
//
// Form "eventgrid" is the MQTT broker of an Event Grid namespace: a broker with topics
// of one's own. Devices are clients with attributes, profiles are client groups, and
// what a group may do is said by topic spaces, whose templates are MQTT filters with
// variables. The client's name is the common name of its certificate and the user name
// of CONNECT.
//
// Form "iothub" is an IoT hub. It has no policy: every device may publish to
// devices/ID/messages/events/ and receive devices/ID/messages/devicebound/, and nothing
// else. Only a profile that says just this can be exported.
//
// Form "dps" is a Device Provisioning Service, which assigns devices to hubs: an
// individual enrolment for each device, and enrolment groups for who prefers these. The
// profile has to be as for a hub.
//
// None of them reads a CRL. None could be run for this package: what is said of them
// here is from their documentation (Microsoft Learn, "Topic spaces", "MQTT clients",
// "Client groups", "Communicate with an IoT hub using MQTT", "Import and export device
// identities", "Enrollments") and from the models of their SDKs.
package azureiot

import (
	"cmp"
	"crypto/x509"
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

// The forms of an export.
const (
	EventGrid = "eventgrid"
	IoTHub    = "iothub"
	DPS       = "dps"
)

// Names of the files. Beside them there is ca-1.pem and on, for each issuer of devices.
const (
	SettingName     = "export.json"
	NamespaceName   = "namespace.json"          // eventgrid: a template of the Resource Manager
	ClientsName     = "clients.jsonl"           // eventgrid: one client on a line
	DevicesName     = "devices.txt"             // iothub: the blob of an import
	EnrollmentsName = "enrollments.jsonl"       // dps: one individual enrolment on a line
	GroupsName      = "enrollment-groups.jsonl" // dps: one group on a line
)

const name = "azureiot"

const settingText = `{"form":"{{.Form}}","imprint":"{{.Stamp}}"}
`

//go:embed eventgrid.md.tmpl
var eventGridReadme string

//go:embed iothub.md.tmpl
var iotHubReadme string

//go:embed dps.md.tmpl
var dpsReadme string

// target is one form of Azure; Write takes any form.
type target struct {
	templates.Target
	form string
}

// Target is Azure as a [templates.Target]; its Check is that of the form "eventgrid".
func Target() templates.Target { return FormTarget(EventGrid) }

// FormTarget is Azure with another form as its default, by which Check goes.
func FormTarget(form string) templates.Target {
	return target{templates.NewTarget(newKit(&fleet{}, form)), form}
}

// Check implements [templates.Target]. For a hub, a profile with a single rule is taken
// for a question about that rule, as [templates.Narrow] asks; that one of the two is
// missing is then found by Write.
func (t target) Check(p inventory.Profile) error {
	switch err := t.Target.Check(p); {
	case err != nil:
		return err
	case t.form == EventGrid:
		return checkNames(p)
	case len(p.Policy.Rules) == 1:
		return nil
	}
	return checkComplete(p)
}

// Write implements [templates.Target].
func (t target) Write(dst *durable.Dir, v templates.View, o templates.Options) (templates.Summary, error) {
	o.Form = cmp.Or(o.Form, t.form)
	if !slices.Contains(forms(), o.Form) {
		return t.Target.Write(dst, v, o) // says what is possible
	}
	f, err := newFleet(v, o.Form)
	if err != nil {
		return templates.Summary{}, err
	}
	return templates.NewTarget(newKit(f, o.Form)).Write(dst, v, o)
}

// OfForm is Azure with a form as its default; see [templates.OfForm].
func (target) OfForm(form string) templates.Target { return FormTarget(form) }

// Evaluator reads an export as Azure does, apart from Parse.
func (target) Evaluator(src fs.FS) (proof.Evaluator, error) { return newEvaluator(src) }

func forms() []string { return []string{EventGrid, IoTHub, DPS} }

// newKit is the export of one fleet in one form.
func newKit(f *fleet, form string) templates.Kit {
	order := slices.DeleteFunc(forms(), func(s string) bool { return s == form })
	k := templates.Kit{
		Caps: templates.Capabilities{
			Name: name, Title: "Azure IoT Hub, DPS, Event Grid", Versions: []string{"2025-02-15"}, Forms: append([]string{form}, order...),
			CertificateIdentity: true, SubscribeControl: true,
			Limits:            "eventgrid: 9 profiles, 10,000 sessions for each throughput unit; iothub, dps: 1,000,000 devices; topics have 15 levels and 256 bytes; no QoS 2",
			RevocationLatency: "minutes: there is no CRL; a client or device identity is disabled or deleted by whoever administers the service",
		},
		Rule: func(r rule) (string, []string) {
			if form == EventGrid {
				return why(r)
			}
			return whyFixed(r)
		},
		Texts: []templates.Text{
			{PlanFile: templates.PlanFile{Name: SettingName, Mode: 0o644}, Text: settingText},
			{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: eventGridReadme, Form: EventGrid},
			{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: iotHubReadme, Form: IoTHub},
			{PlanFile: templates.PlanFile{Name: templates.ReadmeName, Mode: 0o644, Doc: true}, Text: dpsReadme, Form: DPS},
		},
		More:     func(templates.View, *templates.Setting) (map[string][]byte, error) { return f.files, nil },
		MoreFile: f.plan(),
		Lists: []templates.List{
			{PlanFile: templates.PlanFile{Name: ClientsName, Mode: 0o644}, Form: EventGrid, Append: f.appendClient},
			{PlanFile: templates.PlanFile{Name: DevicesName, Mode: 0o644}, Form: IoTHub, Append: appendDevice},
			{PlanFile: templates.PlanFile{Name: EnrollmentsName, Mode: 0o644}, Form: DPS, Append: appendEnrollment},
		},
		Devices:   readDevices,
		NoNode:    true,
		Check:     warn,
		Evaluator: newEvaluator,
		NotEnforced: []string{
			"no CRL is read: a revoked device has to be disabled or deleted there",
			"an import or a deployment adds and changes; it does not take away a device that is not in it",
		},
	}
	if form == EventGrid {
		k.Enforced = []string{
			"the certificate is from a CA of the namespace, and its common name is the client's name and the user name",
			"publish, last wills, subscribe: every topic and filter against the topic spaces of the client's group",
		}
		k.NotEnforced = append(k.NotEnforced, "client identifiers: any that is not in use by another client")
		return k
	}
	k.Enforced = []string{
		"the certificate is from a CA of the service, and its common name is the device's ID and the client identifier",
		"publish to devices/ID/messages/events/ and receive devices/ID/messages/devicebound/ only",
	}
	k.NotEnforced = append(k.NotEnforced, "a device may use its own twin and direct methods ($iothub/...), whatever the policy says",
		"devices of one CA: every certificate of it with a device's name is that device's, an old one that is revoked as well")
	return k
}

// readDevices yields the devices of an export.
func readDevices(src fs.FS, s *templates.Setting) func(func(templates.Entry, error) bool) {
	switch s.Form {
	case IoTHub:
		return readLines(src, DevicesName, readDevice)
	case DPS:
		return readLines(src, EnrollmentsName, readEnrollment)
	}
	return readClients(src)
}

// warn tells of what is better known before: names in upper case, many sessions.
func warn(v templates.View, s *templates.Setting, out *templates.Output) error {
	const perUnit, units = 10_000, 40
	upper, n := 0, 0
	for e, err := range v.Entries() {
		if err != nil {
			return err
		}
		n++
		if string(e.ID) != e.ID.Canonical() {
			upper++
		}
	}
	switch {
	case s.Form == DPS && upper > 0:
		out.Warn(fmt.Sprintf("%d devices have letters in upper case: DPS takes registration IDs in lower case only, and a certificate whose common name differs in case may be refused", upper))
	case s.Form == EventGrid && n > perUnit*units:
		out.Warn(fmt.Sprintf("%d devices: an Event Grid namespace has at most 40 throughput units of 10,000 sessions", n))
	case s.Form != EventGrid && n > 1_000_000:
		out.Warn(fmt.Sprintf("%d devices: a hub and a DPS have at most 1,000,000", n))
	}
	return nil
}

// A fleet is what an export has that does not belong to one device.
type fleet struct {
	profiles map[string]inventory.Profile
	issuers  [][]byte          // DER
	files    map[string][]byte // by name
}

// plan lists the files by name.
func (f *fleet) plan() []templates.PlanFile {
	var plan []templates.PlanFile
	for n := range f.files {
		plan = append(plan, templates.PlanFile{Name: n, Mode: 0o644})
	}
	slices.SortFunc(plan, func(a, b templates.PlanFile) int { return strings.Compare(a.Name, b.Name) })
	return plan
}

func newFleet(v templates.View, form string) (*fleet, error) {
	f := &fleet{profiles: map[string]inventory.Profile{}, files: map[string][]byte{}}
	t := FormTarget(form)
	for p, err := range v.Profiles() {
		if err != nil {
			return nil, err
		}
		if err := t.Check(p); err != nil {
			return nil, err
		}
		if form != EventGrid {
			if err := checkComplete(p); err != nil {
				return nil, err
			}
		}
		f.profiles[p.Name] = p
	}
	if err := f.readIssuers(v.TrustBundle()); err != nil {
		return nil, err
	}
	var err error
	switch form {
	case EventGrid:
		f.files[NamespaceName], err = namespace(f.profiles, f.issuers)
	case DPS:
		f.files[GroupsName], err = groups(f.issuers)
	}
	return f, err
}

// readIssuers makes a file of each CA certificate that issues to devices: roots do not.
func (f *fleet) readIssuers(bundle []byte) error {
	for rest := bundle; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return fmt.Errorf("reading trust bundle: %w", err)
		}
		if !slices.Equal(c.RawSubject, c.RawIssuer) {
			f.issuers = append(f.issuers, c.Raw)
			f.files[fmt.Sprintf("ca-%d.pem", len(f.issuers))] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		}
	}
	if len(f.issuers) == 0 {
		return errors.New("reading trust bundle: no CA in it that issues to devices")
	}
	return nil
}
