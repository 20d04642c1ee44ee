package azureiot

import (
	"bytes"
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

type rule = topic.Rule

// Limits of an Event Grid namespace ("Azure Event Grid quotas and limits", "Topic
// spaces", "Client groups").
const (
	maxGroups    = 9 // and $all
	maxTemplates = 10
	maxTopic     = 256 // bytes
	maxLevels    = 15
	maxName      = 50 // of a group, a topic space or a binding
)

// What a topic template is filled with.
const (
	nameVariable      = "${client.authenticationName}"
	attributeVariable = "${client.attributes."
	labelAttribute    = "label_" // and the key of the label
	profileAttribute  = "profile"
	groupAttribute    = "group"
)

// why says why a rule cannot be a topic template.
func why(r rule) (string, []string) {
	another := []string{"another name for this level"}
	switch {
	case strings.Contains(r.Filter, "$"):
		return "a $ is for variables and for topics of Azure there", another
	case strings.ContainsAny(r.Filter, "|"):
		return "a | has a meaning in its templates", another
	case strings.HasPrefix(r.Filter, "["):
		return "a [ at the beginning is an expression of the Resource Manager", another
	case strings.ContainsFunc(r.Filter, func(c rune) bool { return c < ' ' || c > '~' }):
		return "nothing is said of characters outside of ASCII in its templates", another
	case strings.Count(r.Filter, "/") >= maxLevels:
		return "a topic has at most 15 levels there", []string{"fewer levels"}
	case len(r.Filter) > maxTopic:
		return "a topic has at most 256 bytes there", []string{"shorter names"}
	}
	for _, l := range r.Placeholders() {
		if strings.Contains(strings.TrimPrefix(l, "{label."), "-") {
			return "attributes of its clients have letters, digits and underscores in their names", []string{"a label with an underscore in place of the hyphen"}
		}
	}
	return "", nil
}

// checkNames refuses a profile that cannot be the name of a client group.
func checkNames(p inventory.Profile) error {
	if strings.Contains(p.Name, "_") || len(spaceName(p.Name, subscriber, 99)) > maxName {
		return &templates.InexpressibleError{
			Target: name, Rule: "profile " + p.Name, Why: "a client group has letters, digits and hyphens in its name, and its topic spaces 50 characters",
			Choices: []string{"another name for the profile", "the forms iothub or dps"},
		}
	}
	return nil
}

// Permissions of a binding.
const (
	publisher  = "Publisher"
	subscriber = "Subscriber"
)

func groupName(profile string) string { return "p-" + profile }

func spaceName(profile, permission string, n int) string {
	return fmt.Sprintf("%s-%s-%d", groupName(profile), strings.ToLower(permission), n)
}

// A deployment is a template of the Azure Resource Manager.
type deployment struct {
	Schema         string               `json:"$schema"`
	ContentVersion string               `json:"contentVersion"`
	Parameters     map[string]parameter `json:"parameters"`
	Resources      []resource           `json:"resources"`
}

type parameter struct {
	Type string `json:"type"`
}

type resource struct {
	Type       string     `json:"type"`
	APIVersion string     `json:"apiVersion"`
	Name       string     `json:"name"`
	DependsOn  []string   `json:"dependsOn,omitempty"`
	Properties properties `json:"properties"`
}

// properties are those of a CA certificate, a client group, a topic space or a binding.
type properties struct {
	EncodedCertificate string   `json:"encodedCertificate,omitempty"`
	Query              string   `json:"query,omitempty"`
	TopicTemplates     []string `json:"topicTemplates,omitempty"`
	ClientGroupName    string   `json:"clientGroupName,omitempty"`
	TopicSpaceName     string   `json:"topicSpaceName,omitempty"`
	Permission         string   `json:"permission,omitempty"`
}

const (
	provider   = "Microsoft.EventGrid/namespaces/"
	apiVersion = "2025-02-15"
	kindCA     = "caCertificates"
	kindGroup  = "clientGroups"
	kindSpace  = "topicSpaces"
	kindBind   = "permissionBindings"
)

func newResource(kind, name string, p properties, dependsOn ...string) resource {
	return resource{
		Type: provider + kind, APIVersion: apiVersion, Name: "[concat(parameters('namespaceName'), '/" + name + "')]", Properties: p, DependsOn: dependsOn,
	}
}

func resourceID(kind, name string) string {
	return "[resourceId('" + provider + kind + "', parameters('namespaceName'), '" + name + "')]"
}

// namespace is what all clients share: CAs, groups, topic spaces, bindings.
func namespace(profiles map[string]inventory.Profile, issuers [][]byte) ([]byte, error) {
	if len(profiles) > maxGroups {
		return nil, &inventory.InvalidError{Field: "profiles", Value: fmt.Sprint(len(profiles)), Want: "at most 9 profiles: a namespace has 10 client groups, and one is $all"}
	}
	d := deployment{
		Schema:         "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
		ContentVersion: "1.0.0.0", Parameters: map[string]parameter{"namespaceName": {"string"}},
	}
	for i, der := range issuers {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		d.Resources = append(d.Resources, newResource(kindCA, fmt.Sprintf("imprint-ca-%d", i+1), properties{EncodedCertificate: string(text)}))
	}
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(profiles)) {
		folded := strings.ToLower(name)
		if seen[folded] {
			return nil, &inventory.InvalidError{Field: "profile", Value: name, Want: "names that differ not only in case: those of Azure do not"}
		}
		seen[folded] = true
		d.Resources = append(d.Resources, newResource(kindGroup, groupName(name), properties{Query: query(name)}))
		for _, a := range []topic.Action{topic.Publish, topic.Receive} {
			d.Resources = append(d.Resources, spaces(profiles[name], a)...)
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(d); err != nil {
		return nil, fmt.Errorf("encoding %s: %w", NamespaceName, err)
	}
	return b.Bytes(), nil
}

// query finds the clients of a profile. Its name has no quotes.
func query(profile string) string { return "attributes." + profileAttribute + " = '" + profile + "'" }

// spaces are the topic spaces for one action of a profile, ten templates in each, with
// their bindings.
func spaces(p inventory.Profile, a topic.Action) []resource {
	permission := publisher
	if a == topic.Receive {
		permission = subscriber
	}
	var list []string
	for _, r := range p.Policy.Rules {
		if t := topicTemplate(r.Filter); r.Action == a && !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	var out []resource
	n := 0
	for part := range slices.Chunk(list, maxTemplates) {
		n++
		space, group := spaceName(p.Name, permission, n), groupName(p.Name)
		out = append(out,
			newResource(kindSpace, space, properties{TopicTemplates: slices.Clone(part)}),
			newResource(kindBind, space, properties{ClientGroupName: group, TopicSpaceName: space, Permission: permission}, resourceID(kindGroup, group), resourceID(kindSpace, space)))
	}
	return out
}

// topicTemplate is a filter with variables in place of placeholders.
func topicTemplate(filter string) string {
	levels := strings.Split(filter, "/")
	for i, l := range levels {
		if l == "{id}" {
			levels[i] = nameVariable
		} else if a := attributeOf(l); a != "" {
			levels[i] = attributeVariable + a + "}"
		}
	}
	return strings.Join(levels, "/")
}

// attributeOf is the attribute that a placeholder is filled with, or nothing.
func attributeOf(level string) string {
	switch key, ok := strings.CutPrefix(level, "{label."); {
	case ok:
		return labelAttribute + strings.TrimSuffix(key, "}")
	case level == "{group}":
		return groupAttribute
	}
	return ""
}

// A client is a line of clients.jsonl: a resource of the namespace.
type client struct {
	Name       string           `json:"name"`
	Properties clientProperties `json:"properties"`
}

type clientProperties struct {
	AuthenticationName string            `json:"authenticationName"`
	State              string            `json:"state"`
	Authentication     clientAuth        `json:"clientCertificateAuthentication"`
	Attributes         map[string]string `json:"attributes"`
}

type clientAuth struct {
	ValidationScheme string `json:"validationScheme"`
}

func newClient(id string, attributes map[string]string) client {
	return client{id, clientProperties{id, "Enabled", clientAuth{"SubjectMatchesAuthenticationName"}, attributes}}
}

func (f *fleet) appendClient(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	p, ok := f.profiles[e.Profile]
	if !ok {
		return nil, &templates.EntryError{ID: e.ID, Why: "its profile is none of the fleet's"}
	}
	values, err := attributeValues(p.Policy.Rules, e)
	if err != nil {
		return nil, err
	}
	values[profileAttribute] = e.Profile
	return appendLine(b, newClient(string(e.ID), values))
}

// attributeSafe reports whether a value means nothing but itself in a topic template.
func attributeSafe(v string) bool {
	return v != "" && len(v) <= maxTopic && !strings.ContainsFunc(v, func(c rune) bool {
		return ('a' > c || c > 'z') && ('A' > c || c > 'Z') && ('0' > c || c > '9') && !strings.ContainsRune("_.,@:=-", c)
	})
}

// attributeValues are the attributes that the templates of e need, as its rights have
// them.
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
			return nil, &templates.EntryError{ID: e.ID, Why: fmt.Sprintf("a topic of %d bytes: Event Grid takes at most %d", len(g.Filter), maxTopic)}
		}
		for j, level := range want {
			attribute := attributeOf(level)
			switch {
			case level == "{id}" && have[j] == string(e.ID), attribute == "" && have[j] == level:
			case attribute == "":
				return nil, wrong
			case !attributeSafe(have[j]):
				return nil, &templates.EntryError{ID: e.ID, Why: fmt.Sprintf("%s is %.128q: only letters, digits and _.,@:=- are taken for an attribute", level, have[j])}
			case values[attribute] != "" && values[attribute] != have[j]:
				return nil, wrong
			default:
				values[attribute] = have[j]
			}
		}
	}
	return values, nil
}

// readClients yields the clients of an export with the rights of their groups.
func readClients(src fs.FS) func(func(templates.Entry, error) bool) {
	profiles, err := readNamespace(src)
	if err != nil {
		return func(yield func(templates.Entry, error) bool) {
			yield(templates.Entry{}, fmt.Errorf("reading %s: %w", NamespaceName, err))
		}
	}
	return readLines(src, ClientsName, func(line []byte) (templates.Entry, error) {
		var c client
		if err := readLine(line, &c); err != nil {
			return templates.Entry{}, err
		}
		a := c.Properties.Attributes
		e := templates.Entry{ID: inventory.DeviceID(c.Name), Certificate: true, Profile: a[profileAttribute], Group: a[groupAttribute]}
		want := newClient(c.Name, a)
		p, ok := profiles[e.Profile]
		if c.Properties.State != want.Properties.State || c.Properties.AuthenticationName != c.Name || c.Properties.Authentication != want.Properties.Authentication || !ok {
			return e, errors.New("a line is not of an enabled client with a certificate")
		}
		var err error
		e.Grants, err = p.Policy.Resolve(topic.Subject{ID: c.Name, Group: e.Group, Labels: func(key string) (string, bool) {
			v, ok := a[labelAttribute+key]
			return v, ok
		}})
		if err != nil {
			return e, &templates.EntryError{ID: e.ID, Why: err.Error()}
		}
		return e, nil
	})
}

// readNamespace reads the profiles back and holds the file to what imprint makes of
// them.
func readNamespace(src fs.FS) (map[string]inventory.Profile, error) {
	text, err := templates.ReadFile(src, NamespaceName)
	if err != nil {
		return nil, err
	}
	var d deployment
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, err
	}
	profiles := map[string]inventory.Profile{}
	var issuers [][]byte
	profile := ""
	var list []string
	for _, r := range d.Resources {
		switch r.Type {
		case provider + kindCA:
			b, _ := pem.Decode([]byte(r.Properties.EncodedCertificate))
			if b == nil {
				return nil, errors.New("a CA certificate that is not in PEM")
			}
			issuers = append(issuers, b.Bytes)
		case provider + kindGroup:
			profile = strings.TrimSuffix(strings.TrimPrefix(r.Properties.Query, "attributes."+profileAttribute+" = '"), "'")
			profiles[profile] = inventory.Profile{Name: profile}
		case provider + kindSpace:
			list = r.Properties.TopicTemplates
		case provider + kindBind:
			action := topic.Publish
			if r.Properties.Permission == subscriber {
				action = topic.Receive
			}
			p := profiles[profile]
			for _, t := range list {
				p.Policy.Rules = append(p.Policy.Rules, rule{Action: action, Filter: readTemplate(t)})
			}
			profiles[profile] = p
		}
	}
	for _, p := range profiles {
		if err := Target().Check(p); err != nil {
			return nil, err
		}
	}
	want, err := namespace(profiles, issuers)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(want, text) {
		return nil, errors.New("it is not what imprint writes")
	}
	return profiles, nil
}

// readTemplate is the filter of a topic template.
func readTemplate(t string) string {
	levels := strings.Split(t, "/")
	for i, l := range levels {
		attribute, ok := strings.CutPrefix(strings.TrimSuffix(l, "}"), attributeVariable)
		switch key, isLabel := strings.CutPrefix(attribute, labelAttribute); {
		case l == nameVariable:
			levels[i] = "{id}"
		case ok && isLabel:
			levels[i] = "{label." + key + "}"
		case ok:
			levels[i] = "{" + attribute + "}"
		}
	}
	return strings.Join(levels, "/")
}
