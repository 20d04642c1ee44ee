package awsiot

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// Parameters of the provisioning template. The attributes are parameters, too, by
// their own names.
const (
	paramThing     = "ThingName"
	paramPublish   = "PublishPolicy"
	paramSubscribe = "SubscribePolicy"
	paramReceive   = "ReceivePolicy"
	paramSerial    = "SerialNumber"
	paramCert      = "CertPem"
	paramCA        = "CaPem"
)

const serialAttribute = "serial"

// absent stands for an attribute that a device does not have.
const absent = "-"

// maxValue is the longest value of a parameter, in bytes (API reference, RegisterThing),
// and maxTemplate the longest template. maxLine bounds what is read as one line.
const (
	maxValue    = 4096
	maxTemplate = 10240
	maxLine     = 1 << 16
)

func policyFile(profile, part string) string { return "policy-" + profile + "-" + part + ".json" }

func policyName(profile, part string) string { return prefix + profile + "-" + part }

// attributeSafe reports whether AWS takes a text as the value of an attribute, and in
// a variable as it is: what it takes for attributes ([a-zA-Z0-9_.,@/:#=\[\]-], up to
// 800) without what means something in a topic.
func attributeSafe(v string) bool {
	return v != "" && len(v) <= 800 && !strings.ContainsFunc(v, func(c rune) bool {
		return ('a' > c || c > 'z') && ('A' > c || c > 'Z') && ('0' > c || c > '9') && !strings.ContainsRune("_.,@:=-", c)
	})
}

// template is the provisioning template of a fleet whose rules need some attributes.
func template(names []string) ([]byte, error) {
	type object map[string]any
	text := object{"Type": "String"}
	optional := object{"Type": "String", "Default": absent}
	params := object{paramThing: text, paramPublish: text, paramSubscribe: text, paramReceive: text, paramSerial: optional, paramCert: text, paramCA: text}
	ref := func(param string) object { return object{"Ref": param} }
	policy := func(param string) object {
		return object{"Type": "AWS::IoT::Policy", "Properties": object{"PolicyName": ref(param)}}
	}
	attributes := object{serialAttribute: ref(paramSerial)}
	for _, n := range names {
		params[n], attributes[n] = optional, ref(n)
	}
	doc := object{
		"Parameters": params,
		"Resources": object{
			"thing": object{
				"Type":             "AWS::IoT::Thing",
				"Properties":       object{"ThingName": ref(paramThing), "ThingTypeName": prefix + "device", "AttributePayload": attributes},
				"OverrideSettings": object{"AttributePayload": "REPLACE", "ThingTypeName": "REPLACE"},
			},
			"certificate": object{
				"Type":       "AWS::IoT::Certificate",
				"Properties": object{"CertificatePem": ref(paramCert), "CACertificatePem": ref(paramCA), "Status": "ACTIVE"},
			},
			publishPart:   policy(paramPublish),
			subscribePart: policy(paramSubscribe),
			receivePart:   policy(paramReceive),
		},
	}
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding provisioning template: %w", err)
	}
	if len(b) >= maxTemplate {
		return nil, &inventory.InvalidError{Field: "profiles", Value: fmt.Sprint(len(names)), Want: "fewer labels in the topic rules of all profiles: the provisioning template has at most 10240 bytes"}
	}
	return append(b, '\n'), nil
}

// issuerKey finds the issuer of a certificate: its subject and key identifier. Root
// says that the certificate issues nothing to devices.
func issuerKey(der []byte) (key string, root bool, err error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return "", false, err
	}
	return string(c.RawSubject) + "\x00" + string(c.SubjectKeyId), bytes.Equal(c.RawSubject, c.RawIssuer), nil
}

// appendThing appends a line for each certificate of a device. AWS takes them as two
// registrations of one thing.
func (f *fleet) appendThing(b []byte, e *templates.Entry) ([]byte, error) {
	p, ok := f.profiles[e.Profile]
	if !ok {
		return nil, &templates.EntryError{ID: e.ID, Why: "its profile is none of the fleet's"}
	}
	values, err := attributeValues(p.Policy.Rules, e)
	if err != nil {
		return nil, err
	}
	setNames(values, string(e.ID), e.Profile)
	if attributeSafe(e.HardwareSerial) {
		values[paramSerial] = e.HardwareSerial
	}
	if len(e.Leafs) == 0 {
		return appendLine(b, values)
	}
	for _, der := range e.Leafs {
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, &templates.EntryError{ID: e.ID, Why: "its certificate cannot be read"}
		}
		if leaf.Subject.CommonName != string(e.ID) {
			return nil, &templates.EntryError{ID: e.ID, Why: "its certificate has another name"}
		}
		ca, ok := f.issuers[string(leaf.RawIssuer)+"\x00"+string(leaf.AuthorityKeyId)]
		if !ok {
			return nil, &templates.EntryError{ID: e.ID, Why: "its certificate is from no CA of the trust bundle"}
		}
		values[paramCert] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		values[paramCA] = ca
		if len(ca) > maxValue || len(values[paramCert]) > maxValue {
			return nil, &templates.EntryError{ID: e.ID, Why: "its certificate or that of its CA has more than 4096 bytes in PEM"}
		}
		if b, err = appendLine(b, values); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// setNames sets the names of a thing and its policies.
func setNames(values map[string]string, id, profile string) {
	values[paramThing] = id
	values[paramPublish], values[paramSubscribe], values[paramReceive] = policyName(profile, publishPart), policyName(profile, subscribePart), policyName(profile, receivePart)
}

// attributeValues are the attributes that the policy of e needs, as its rights have
// them: with these its policy gives e exactly its rights.
func attributeValues(rules []rule, e *templates.Entry) (map[string]string, error) {
	wrong := &templates.EntryError{ID: e.ID, Why: "its rights are not those of its profile"}
	if len(rules) != len(e.Grants) {
		return nil, wrong
	}
	values := map[string]string{}
	for i, r := range rules {
		g := e.Grants[i]
		want, have := strings.Split(r.Filter, "/"), strings.Split(string(g.Filter), "/")
		if g.Action != r.Action || len(want) != len(have) {
			return nil, wrong
		}
		if len(g.Filter) > maxTopic {
			return nil, &templates.EntryError{ID: e.ID, Why: fmt.Sprintf("a topic of %d bytes: AWS IoT Core takes at most %d", len(g.Filter), maxTopic)}
		}
		for j, level := range want {
			attribute := attributeOf(level)
			switch {
			case level == "{id}" && have[j] == string(e.ID), attribute == "" && have[j] == level:
			case attribute == "":
				return nil, wrong
			case !attributeSafe(have[j]):
				return nil, &templates.EntryError{ID: e.ID, Why: fmt.Sprintf("%s is %.128q: AWS IoT Core takes letters, digits and _.,@:=- in an attribute", level, have[j])}
			case values[attribute] != "" && values[attribute] != have[j]:
				return nil, wrong
			default:
				values[attribute] = have[j]
			}
		}
	}
	return values, nil
}

// appendLine appends parameters as one line of JSON.
func appendLine(b []byte, values map[string]string) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(values); err != nil { // keys in order
		return nil, fmt.Errorf("encoding a thing: %w", err)
	}
	return append(b, buf.Bytes()...), nil
}

// readThings yields the devices of an export.
func readThings(src fs.FS) func(func(templates.Entry, error) bool) {
	return func(yield func(templates.Entry, error) bool) {
		r := &reader{src: src, policies: map[string][]rule{}}
		if err := r.readAll(yield); err != nil {
			yield(templates.Entry{}, fmt.Errorf("reading %s: %w", ThingsName, err))
		}
	}
}

// A reader reads things.jsonl and what its lines refer to.
type reader struct {
	src      fs.FS
	policies map[string][]rule // by profile
	names    []string          // attributes that the template knows
}

func (r *reader) readAll(yield func(templates.Entry, error) bool) error {
	if err := r.readTemplate(); err != nil {
		return err
	}
	f, err := r.src.Open(ThingsName)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 0, 1<<13), maxLine)
	var prev templates.Entry
	for lines.Scan() {
		e, err := r.readLine(lines.Bytes())
		if err != nil {
			return err
		}
		if e.ID == prev.ID { // another certificate
			if !slices.EqualFunc(e.Grants, prev.Grants, templates.SameGrant) {
				return &templates.EntryError{ID: e.ID, Why: "has other rights with another certificate"}
			}
			continue
		}
		prev = e
		if !yield(e, nil) {
			return nil
		}
	}
	return lines.Err()
}

// readTemplate holds the template to what render makes of its own attributes.
func (r *reader) readTemplate() error {
	text, err := templates.ReadFile(r.src, TemplateName)
	if err != nil {
		return err
	}
	var doc struct {
		Resources struct {
			Thing struct {
				Properties struct{ AttributePayload map[string]any }
			} `json:"thing"`
		}
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return fmt.Errorf("%s: %w", TemplateName, err)
	}
	for n := range doc.Resources.Thing.Properties.AttributePayload {
		if n != serialAttribute {
			r.names = append(r.names, n)
		}
	}
	slices.Sort(r.names)
	want, err := template(r.names)
	if err != nil {
		return err
	}
	if !bytes.Equal(want, text) {
		return fmt.Errorf("%s is not what imprint writes", TemplateName)
	}
	return nil
}

func (r *reader) readLine(line []byte) (templates.Entry, error) {
	var values map[string]string
	if err := json.Unmarshal(line, &values); err != nil {
		return templates.Entry{}, err
	}
	if same, err := appendLine(nil, values); err != nil || !bytes.Equal(bytes.TrimSuffix(same, []byte("\n")), line) {
		return templates.Entry{}, errors.New("a line is not what imprint writes")
	}
	profile, ok := strings.CutPrefix(strings.TrimSuffix(values[paramPublish], "-"+publishPart), prefix)
	want := maps.Clone(values)
	setNames(want, values[paramThing], profile)
	if _, err := inventory.ParseProfileName(profile); err != nil || !ok || !maps.Equal(want, values) {
		return templates.Entry{}, fmt.Errorf("policy %.128q is none of imprint's", values[paramPublish])
	}
	rules, err := r.rules(profile)
	if err != nil {
		return templates.Entry{}, err
	}
	for n := range values {
		if !slices.Contains([]string{paramThing, paramPublish, paramSubscribe, paramReceive, paramSerial, paramCert, paramCA}, n) && !slices.Contains(r.names, n) {
			return templates.Entry{}, fmt.Errorf("parameter %.128q is not in the template", n)
		}
	}
	e := templates.Entry{ID: inventory.DeviceID(values[paramThing]), Certificate: true, Profile: profile, Group: values[groupAttribute], HardwareSerial: values[paramSerial]}
	e.Grants, err = topic.Policy{Rules: rules}.Resolve(topic.Subject{ID: values[paramThing], Group: e.Group, Labels: func(key string) (string, bool) {
		v, ok := values[labelAttribute+key]
		return v, ok
	}})
	if err != nil {
		return e, &templates.EntryError{ID: e.ID, Why: err.Error()}
	}
	return e, nil
}

// rules reads the policies of a profile, once.
func (r *reader) rules(profile string) ([]rule, error) {
	if rules, ok := r.policies[profile]; ok {
		return rules, nil
	}
	docs := map[string][]byte{}
	for _, part := range parts() {
		text, err := templates.ReadFile(r.src, policyFile(profile, part))
		if err != nil {
			return nil, err
		}
		docs[part] = text
	}
	rules, err := readPolicies(docs)
	if err != nil {
		return nil, fmt.Errorf("policies of %s: %w", profile, err)
	}
	r.policies[profile] = rules
	return rules, nil
}
