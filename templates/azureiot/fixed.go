package azureiot

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// The topics of a hub ("Communicate with an IoT hub using MQTT"): what a device may do,
// all of it, and every device.
func fixedRules() []topic.Rule {
	return []topic.Rule{
		{Action: topic.Publish, Filter: "devices/{id}/messages/events/#"},
		{Action: topic.Receive, Filter: "devices/{id}/messages/devicebound/#"},
	}
}

const fixedWhy = "a hub has fixed topics: each device may publish devices/{id}/messages/events/# and receive devices/{id}/messages/devicebound/#, no more and no less"

func fixedChoices() []string {
	return []string{"a profile with just these two rules", "the form eventgrid, which takes topics of one's own"}
}

// whyFixed says why a rule cannot be had from a hub.
func whyFixed(r rule) (string, []string) {
	if slices.ContainsFunc(fixedRules(), func(f topic.Rule) bool { return f.Action == r.Action && f.Filter == r.Filter }) {
		return "", nil
	}
	return fixedWhy, fixedChoices()
}

// checkComplete refuses a profile that would have a device do less than a hub lets it.
func checkComplete(p inventory.Profile) error {
	for _, f := range fixedRules() {
		if !slices.ContainsFunc(p.Policy.Rules, func(r topic.Rule) bool { return r.Action == f.Action && r.Filter == f.Filter }) {
			return &templates.InexpressibleError{Target: name, Rule: fmt.Sprintf("profile %s without %s %s", p.Name, f.Action, f.Filter), Why: fixedWhy, Choices: fixedChoices()}
		}
	}
	return nil
}

// fixedGrants are the rights of a device at a hub.
func fixedGrants(e *templates.Entry) ([]topic.Grant, error) {
	grants, err := topic.Policy{Rules: fixedRules()}.Resolve(topic.Subject{ID: string(e.ID)})
	if err != nil {
		return nil, &templates.EntryError{ID: e.ID, Why: err.Error()}
	}
	return grants, nil
}

// checkGrants refuses a device whose rights are others.
func checkGrants(e *templates.Entry) error {
	want, err := fixedGrants(e)
	if err != nil {
		return err
	}
	if !slices.EqualFunc(templates.SortGrants(want), templates.SortGrants(e.Grants), templates.SameGrant) {
		return &templates.EntryError{ID: e.ID, Why: "its rights are not those that a hub gives every device"}
	}
	return nil
}

// A deviceLine is a line of the blob devices.txt (ExportImportDevice in the SDKs).
type deviceLine struct {
	ID             string     `json:"id"`
	ImportMode     string     `json:"importMode"`
	Status         string     `json:"status"`
	Authentication deviceAuth `json:"authentication"`
	Tags           tags       `json:"tags"`
}

type deviceAuth struct {
	Type string `json:"type"`
}

// tags are those of a twin.
type tags struct {
	Profile string `json:"profile"`
	Group   string `json:"group,omitempty"`
}

func newDeviceLine(id string, t tags) deviceLine {
	return deviceLine{ID: id, ImportMode: "createOrUpdate", Status: "enabled", Authentication: deviceAuth{"certificateAuthority"}, Tags: t}
}

func appendDevice(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	if err := checkGrants(e); err != nil {
		return nil, err
	}
	return appendLine(b, newDeviceLine(string(e.ID), tags{e.Profile, e.Group}))
}

func readDevice(line []byte) (templates.Entry, error) {
	var d deviceLine
	if err := readLine(line, &d); err != nil {
		return templates.Entry{}, err
	}
	if d != newDeviceLine(d.ID, d.Tags) {
		return templates.Entry{}, errors.New("a line is not of an enabled device with a certificate")
	}
	return fixedEntry(d.ID, d.Tags)
}

func fixedEntry(id string, t tags) (templates.Entry, error) {
	e := templates.Entry{ID: inventory.DeviceID(id), Certificate: true, Profile: t.Profile, Group: t.Group}
	var err error
	e.Grants, err = fixedGrants(&e)
	return e, err
}

// An enrollment is an individual enrolment (IndividualEnrollment in the SDKs).
type enrollment struct {
	RegistrationID     string      `json:"registrationId"`
	DeviceID           string      `json:"deviceId"`
	Attestation        attestation `json:"attestation"`
	ProvisioningStatus string      `json:"provisioningStatus"`
	InitialTwin        twin        `json:"initialTwin"`
}

// An enrollmentGroup is one of devices whose certificates are from one CA.
type enrollmentGroup struct {
	ID                 string      `json:"enrollmentGroupId"`
	Attestation        attestation `json:"attestation"`
	ProvisioningStatus string      `json:"provisioningStatus"`
}

type attestation struct {
	Type string          `json:"type"`
	X509 x509Attestation `json:"x509"`
}

type x509Attestation struct {
	Client  *certificates `json:"clientCertificates,omitempty"`
	Signing *certificates `json:"signingCertificates,omitempty"`
}

type certificates struct {
	Primary   *certificate `json:"primary,omitempty"`
	Secondary *certificate `json:"secondary,omitempty"`
}

type certificate struct {
	Certificate string `json:"certificate"` // base64 of the DER
}

type twin struct {
	Tags       tags `json:"tags"`
	Properties struct {
		Desired struct{} `json:"desired"`
	} `json:"properties"`
}

func newCertificate(der []byte) *certificate {
	return &certificate{base64.StdEncoding.EncodeToString(der)}
}

// appendEnrollment appends an individual enrolment with the two newest certificates.
func appendEnrollment(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	if err := checkGrants(e); err != nil {
		return nil, err
	}
	if strings.HasSuffix(string(e.ID), "_") {
		return nil, &templates.EntryError{ID: e.ID, Why: "a registration ID of DPS ends in a letter, a digit or a hyphen"}
	}
	x := newEnrollment(string(e.ID), tags{e.Profile, e.Group})
	if n := len(e.Leafs); n > 0 {
		x.Attestation.X509.Client = &certificates{Primary: newCertificate(e.Leafs[n-1])}
		if n > 1 {
			x.Attestation.X509.Client.Secondary = newCertificate(e.Leafs[n-2])
		}
	}
	return appendLine(b, x)
}

func newEnrollment(id string, t tags) enrollment {
	return enrollment{
		RegistrationID: inventory.DeviceID(id).Canonical(), DeviceID: id, Attestation: attestation{Type: "x509"},
		ProvisioningStatus: "enabled", InitialTwin: twin{Tags: t},
	}
}

func readEnrollment(line []byte) (templates.Entry, error) {
	var x enrollment
	if err := readLine(line, &x); err != nil {
		return templates.Entry{}, err
	}
	want := newEnrollment(x.DeviceID, x.InitialTwin.Tags)
	want.Attestation.X509.Client = x.Attestation.X509.Client
	if x != want {
		return templates.Entry{}, errors.New("a line is not an enrolment of an enabled device with a certificate")
	}
	if c := x.Attestation.X509.Client; c != nil && c.Primary == nil {
		return templates.Entry{}, errors.New("an enrolment without a primary certificate")
	}
	return fixedEntry(x.DeviceID, x.InitialTwin.Tags)
}

// groups are the enrolment groups, one for each CA, disabled: with a group whoever has a
// certificate of the CA registers, so that is for the operator to decide.
func groups(issuers [][]byte) ([]byte, error) {
	var b []byte
	for i, der := range issuers {
		g := enrollmentGroup{ID: fmt.Sprintf("imprint-%d", i+1), ProvisioningStatus: "disabled", Attestation: attestation{Type: "x509"}}
		g.Attestation.X509.Signing = &certificates{Primary: newCertificate(der)}
		line, err := json.Marshal(g)
		if err != nil {
			return nil, fmt.Errorf("encoding an enrolment group: %w", err)
		}
		b = append(append(b, line...), '\n')
	}
	return b, nil
}
