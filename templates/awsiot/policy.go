package awsiot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

type rule = topic.Rule

// Limits of AWS IoT Core (AWS General Reference, "AWS IoT Core endpoints and quotas").
const (
	maxPolicy     = 2048 // bytes of a policy document; white space is not counted, but is here
	maxSlashes    = 7    // in a topic, or a topic filter
	maxTopic      = 256  // bytes of a topic, or a topic filter
	maxAttributes = 50   // of a thing that has a thing type
)

// arn is how every resource begins. place is what is replaced, and placed how long it
// can get: ap-southeast-1 and the twelve digits of an account.
const (
	place  = "REGION:ACCOUNT"
	arn    = "arn:aws:iot:" + place + ":"
	placed = len("ap-southeast-1:123456789012")
)

// The kinds of resources.
const (
	kindTopic  = "topic/"
	kindFilter = "topicfilter/"
)

// What a variable of a policy is filled with.
const (
	thingVariable     = "${iot:Connection.Thing.ThingName}"
	attributeVariable = "${iot:Connection.Thing.Attributes["
	variableEnd       = "]}"
)

// Names of attributes.
const (
	groupAttribute = "group"
	labelAttribute = "label_" // and the key of the label
)

// why says why a rule cannot be in a policy as it is meant, and what to do instead.
func why(r rule) (string, []string) {
	levels := strings.Split(r.Filter, "/")
	plus := slices.Index(levels, "+")
	switch {
	case levels[0] == "+" || levels[0] == "#":
		return "a wildcard at the beginning would include the topics that begin with $, which are AWS's", []string{"a first level without a wildcard"}
	case plus >= 0 && levels[len(levels)-1] == "#":
		return `its wildcard "*" does not end at a slash, so a + with a # after it cannot be told apart from longer topics`, []string{"a rule without the +", "a + for each level in place of the #"}
	case strings.HasPrefix(r.Filter, "$") && levels[0] != "$aws":
		return "topics that begin with $ are reserved there", []string{"another first level"}
	case strings.Contains(strings.TrimPrefix(r.Filter, "$"), "$"):
		return "a $ begins a variable in its policies", []string{"another name for this level"}
	case strings.ContainsAny(r.Filter, "*?"):
		return "* and ? are wildcards in its policies", []string{"another name for this level"}
	case strings.ContainsFunc(r.Filter, func(c rune) bool { return c < ' ' || c > '~' }):
		return "nothing is said of characters outside of ASCII in its policies", []string{"another name for this level"}
	case len(levels)-1 > maxSlashes && levels[0] != "$aws":
		return "a topic has at most 7 slashes there", []string{"fewer levels"}
	case len(r.Filter) > maxTopic:
		return "a topic has at most 256 bytes there", []string{"shorter names"}
	}
	return "", nil
}

// A statement is one of an IoT policy.
type statement struct {
	Effect    string
	Action    []string
	Resource  []string
	Condition map[string]map[string][]string `json:",omitempty"`
}

// connect allows a connection of an attached thing, with a last will or a session that
// stays if it likes: both need to be said (Developer Guide, "Using connectAttributes").
// ForAllValues holds for a connection with neither, too.
func connect() statement {
	return statement{
		Effect: "Allow", Action: []string{"iot:Connect"}, Resource: []string{arn + "client/" + thingVariable},
		Condition: map[string]map[string][]string{
			"Bool":                      {"iot:Connection.Thing.IsAttached": {"true"}},
			"ForAllValues:StringEquals": {"iot:ConnectAttributes": {"LastWill", "PersistentConnect"}},
		},
	}
}

// The policies of a profile: three, because one has 2,048 bytes. All of them are
// attached to a certificate.
const (
	publishPart   = "publish"
	subscribePart = "subscribe"
	receivePart   = "receive"
)

func parts() []string { return []string{publishPart, subscribePart, receivePart} }

// documents are the policies of a profile, by part, one statement on a line. The error
// is an [*templates.InexpressibleError].
func documents(p inventory.Profile) (map[string][]byte, error) {
	if err := checkTogether(p); err != nil {
		return nil, err
	}
	docs, err := render(p.Policy.Rules)
	if err != nil {
		return nil, err
	}
	for _, part := range parts() {
		text := docs[part]
		if n := len(text) + bytes.Count(text, []byte(place))*(placed-len(place)); n > maxPolicy {
			return nil, &templates.InexpressibleError{
				Target: name, Rule: "profile " + p.Name, Why: fmt.Sprintf("its rules to %s make a policy of %d bytes, and at most %d are possible", part, n, maxPolicy),
				Choices: []string{"fewer rules, such as one that ends in # for several", "shorter topics", "two profiles"},
			}
		}
	}
	return docs, nil
}

// checkTogether refuses rules of which one denies what another allows: a Deny always
// wins. It takes a placeholder for any level.
func checkTogether(p inventory.Profile) error {
	for i, r := range p.Policy.Rules {
		hit, ok := denied(r)
		if !ok {
			continue
		}
		for j, other := range p.Policy.Rules {
			if i != j && other.Action == r.Action && anyName(other).Overlaps(hit) {
				return &templates.InexpressibleError{
					Target: name, Rule: fmt.Sprintf("profile %s, rule %d: %s %.128q", p.Name, i+1, r.Action, r.Filter),
					Why:     fmt.Sprintf("to end its + at a slash, longer topics have to be denied, and rule %d, %.128q, has some of them", j+1, other.Filter),
					Choices: []string{"one rule that ends in # for both", "a profile of its own for one of them"},
				}
			}
		}
	}
	return nil
}

// denied is a filter with all topics that the Deny of a rule hits, if it has one: those
// with the levels before its first + and more levels than the rule.
func denied(r rule) (topic.Filter, bool) {
	levels := strings.Split(r.Filter, "/")
	plus := slices.Index(levels, "+")
	if plus < 0 {
		return "", false
	}
	hit := levels[:plus:plus]
	for range len(levels) + 1 - plus {
		hit = append(hit, "+")
	}
	return anyName(rule{Filter: strings.Join(append(hit, "#"), "/")}), true
}

// anyName is the filter of a rule for all devices at once.
func anyName(r rule) topic.Filter {
	levels := strings.Split(r.Filter, "/")
	for i, l := range levels {
		if strings.HasPrefix(l, "{") {
			levels[i] = "+"
		}
	}
	return topic.Filter(strings.Join(levels, "/"))
}

// render writes the policies of some rules, by part.
func render(rules []rule) (map[string][]byte, error) {
	publish, receive := resources(rules, topic.Publish), resources(rules, topic.Receive)
	denyFilters := append(slices.Clone(receive.deny), receive.denyFilters...)
	docs := map[string][]byte{}
	var err error
	for part, list := range map[string][]statement{
		publishPart:   append([]statement{connect()}, allowBut([]string{"iot:Publish", "iot:RetainPublish"}, of(kindTopic, publish.allow), of(kindTopic, publish.deny))...),
		subscribePart: allowBut([]string{"iot:Subscribe"}, of(kindFilter, receive.allow), of(kindFilter, denyFilters)),
		receivePart:   allowBut([]string{"iot:Receive"}, of(kindTopic, receive.allow), of(kindTopic, receive.deny)),
	} {
		if docs[part], err = encode(list); err != nil {
			return nil, err
		}
	}
	return docs, nil
}

// allowBut allows actions on some resources but others. With nothing to allow it denies
// all: a policy needs a statement.
func allowBut(actions, allow, deny []string) []statement {
	if len(allow) == 0 {
		return []statement{{Effect: "Deny", Action: actions, Resource: []string{"*"}}}
	}
	list := []statement{{Effect: "Allow", Action: actions, Resource: allow}}
	if len(deny) > 0 {
		list = append(list, statement{Effect: "Deny", Action: actions, Resource: deny})
	}
	return list
}

func encode(list []statement) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(`{"Version":"2012-10-17","Statement":[`)
	for i, s := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(s); err != nil {
			return nil, fmt.Errorf("encoding policy: %w", err)
		}
		b.Truncate(b.Len() - 1) // Encode ends a line
	}
	b.WriteString("\n]}\n")
	return b.Bytes(), nil
}

func of(kind string, patterns []string) []string {
	out := make([]string, 0, len(patterns))
	for _, p := range patterns {
		out = append(out, arn+kind+p)
	}
	return out
}

// patterns are the topics of rules as a policy has them.
type patterns struct {
	allow, deny []string
	denyFilters []string // of SUBSCRIBE only: a final # where a rule has a +
}

func resources(rules []rule, a topic.Action) patterns {
	var out patterns
	seen := map[string]bool{}
	for _, r := range rules {
		if r.Action != a || seen[r.Filter] {
			continue
		}
		seen[r.Filter] = true
		levels := strings.Split(r.Filter, "/")
		for i, l := range levels {
			levels[i] = variable(l)
		}
		if last := len(levels) - 1; levels[last] == "#" {
			p := strings.Join(levels[:last], "/")
			out.allow = append(out.allow, p, p+"/*")
			continue
		}
		out.allow = append(out.allow, pattern(levels, -1))
		for i, l := range levels {
			if l != "+" {
				continue
			}
			out.deny = append(out.deny, pattern(levels, i))
			if i == len(levels)-1 {
				out.denyFilters = append(out.denyFilters, strings.TrimSuffix(pattern(levels, -1), "*")+"#")
			}
		}
	}
	return out
}

// pattern is a filter without # as a policy has it. The + at index twice stands for
// two levels and more, if there is one.
func pattern(levels []string, twice int) string {
	var b strings.Builder
	for i, l := range levels {
		if i > 0 {
			b.WriteByte('/')
		}
		switch {
		case l != "+":
			b.WriteString(l)
		case i == twice:
			b.WriteString("*/*")
		default:
			b.WriteByte('*')
		}
	}
	return b.String()
}

// variable is a level of a rule as a policy has it.
func variable(level string) string {
	switch attribute := attributeOf(level); {
	case level == "{id}":
		return thingVariable
	case attribute != "":
		return attributeVariable + attribute + variableEnd
	}
	return level
}

// attributeOf is the attribute of a thing that a placeholder is filled with, or nothing.
func attributeOf(level string) string {
	switch key, ok := strings.CutPrefix(level, "{label."); {
	case ok:
		return labelAttribute + strings.TrimSuffix(key, "}")
	case level == "{group}":
		return groupAttribute
	}
	return ""
}

// attributes are those that the rules of a profile need.
func attributes(p inventory.Profile) []string {
	var out []string
	for _, r := range p.Policy.Rules {
		for _, level := range r.Placeholders() {
			if a := attributeOf(level); a != "" {
				out = append(out, a)
			}
		}
	}
	return out
}

// readPolicies reads the rules back from policies that render wrote, and from no
// others.
func readPolicies(docs map[string][]byte) ([]rule, error) {
	publish, err := readPolicy(topic.Publish, docs[publishPart])
	if err != nil {
		return nil, fmt.Errorf("to %s: %w", publishPart, err)
	}
	receive, err := readPolicy(topic.Receive, docs[receivePart])
	if err != nil {
		return nil, fmt.Errorf("to %s: %w", receivePart, err)
	}
	rules := append(publish, receive...)
	want, err := render(rules)
	if err != nil {
		return nil, err
	}
	for _, part := range parts() {
		if !bytes.Equal(want[part], docs[part]) {
			return nil, fmt.Errorf("to %s: it is not what imprint writes", part)
		}
	}
	return rules, nil
}

// readPolicy reads the rules of one action.
func readPolicy(a topic.Action, text []byte) ([]rule, error) {
	var doc struct{ Statement []statement }
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	var allow, deny []string
	for _, s := range doc.Statement {
		switch {
		case slices.Contains(s.Action, "iot:Connect"):
		case s.Effect == "Allow":
			allow = append(allow, s.Resource...)
		default:
			deny = append(deny, s.Resource...)
		}
	}
	rules := readResources(a, allow, deny)
	for _, r := range rules {
		if r.Filter == "" {
			return nil, errors.New("a resource without a topic")
		}
		if reason, _ := why(r); reason != "" {
			return nil, fmt.Errorf("resource %.128q: %s", r.Filter, reason)
		}
	}
	return rules, nil
}

// readResources reads the rules of one statement. Whether "a" and "a/*" are the rule
// "a/#", or "a" and "a/+", is told by what is denied.
func readResources(a topic.Action, allow, deny []string) []rule {
	var out []rule
	for i := 0; i < len(allow); i++ {
		p := strings.TrimPrefix(allow[i], arn+kindTopic)
		if i+1 < len(allow) && allow[i+1] == allow[i]+"/*" && !slices.Contains(deny, allow[i]+"/*/*") {
			i++
			p += "/#"
		} else {
			p = strings.ReplaceAll(p, "*", "+")
		}
		levels := strings.Split(p, "/")
		for i, l := range levels {
			if l == thingVariable {
				levels[i] = "{id}"
			}
			name, ok := strings.CutPrefix(l, attributeVariable)
			if !ok {
				continue
			}
			name = strings.TrimSuffix(name, variableEnd)
			if key, ok := strings.CutPrefix(name, labelAttribute); ok {
				levels[i] = "{label." + key + "}"
			} else {
				levels[i] = "{" + name + "}"
			}
		}
		out = append(out, rule{Action: a, Filter: strings.Join(levels, "/")})
	}
	return out
}
