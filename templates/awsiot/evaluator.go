package awsiot

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/templates/proof"
)

// An evaluator does what AWS IoT Core is documented to do with an export: it registers
// the lines of things.jsonl with the template, creates the policies in some region, and
// evaluates them for each request. It shares nothing with what writes the files.
type evaluator struct {
	things   map[string]registered
	policies map[string][]evalStatement
}

// A registered thing is what the registry has of a device.
type registered struct {
	attributes map[string]string
	policies   []string
}

// evalARN is where the policies are created.
const evalARN = "arn:aws:iot:eu-central-1:123456789012:"

type evalStatement struct {
	Effect    string                         `json:"Effect"`
	Action    json.RawMessage                `json:"Action"`
	Resource  json.RawMessage                `json:"Resource"`
	Condition map[string]map[string][]string `json:"Condition"`

	actions, resources []string
}

// newEvaluator reads an export.
func newEvaluator(src fs.FS) (proof.Evaluator, error) {
	e := &evaluator{things: map[string]registered{}, policies: map[string][]evalStatement{}}
	files, err := fs.Glob(src, "policy-*.json")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if err := e.createPolicy(src, f); err != nil {
			return nil, fmt.Errorf("reading %s: %w", f, err)
		}
	}
	if err := e.register(src); err != nil {
		return nil, err
	}
	return e, nil
}

// createPolicy does what the README says: name and place.
func (e *evaluator) createPolicy(src fs.FS, file string) error {
	raw, err := fs.ReadFile(src, file)
	if err != nil {
		return err
	}
	text := strings.ReplaceAll(string(raw), "arn:aws:iot:REGION:ACCOUNT:", evalARN)
	if n := len(strings.Join(strings.Fields(text), "")); n > 2048 {
		return fmt.Errorf("%d bytes, at most 2048 are possible", n)
	}
	var doc struct {
		Version   string
		Statement []evalStatement
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		return err
	}
	if doc.Version != "2012-10-17" {
		return fmt.Errorf("version %q", doc.Version)
	}
	for i := range doc.Statement {
		s := &doc.Statement[i]
		if s.actions, err = oneOrMany(s.Action); err != nil {
			return err
		}
		if s.resources, err = oneOrMany(s.Resource); err != nil {
			return err
		}
	}
	e.policies["imprint-"+strings.TrimSuffix(strings.TrimPrefix(file, "policy-"), ".json")] = doc.Statement
	return nil
}

// oneOrMany reads what may be a string or a list of them in a policy.
func oneOrMany(raw json.RawMessage) ([]string, error) {
	var many []string
	if json.Unmarshal(raw, &many) == nil {
		return many, nil
	}
	var one string
	err := json.Unmarshal(raw, &one)
	return []string{one}, err
}

// register does a bulk registration.
func (e *evaluator) register(src fs.FS) error {
	type property struct {
		Type, Default string
	}
	var doc struct {
		Parameters map[string]property
		Resources  map[string]struct {
			Type       string
			Properties map[string]json.RawMessage
		}
	}
	text, err := fs.ReadFile(src, "provisioning-template.json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return err
	}
	f, err := src.Open("things.jsonl")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	for lines := bufio.NewReader(f); ; {
		line, err := lines.ReadBytes('\n')
		if len(line) == 0 && err != nil {
			return nil
		}
		given := map[string]string{}
		if err := json.Unmarshal(line, &given); err != nil {
			return err
		}
		ref := func(raw json.RawMessage) string {
			var r struct{ Ref string }
			var literal string
			if json.Unmarshal(raw, &literal) == nil {
				return literal
			}
			if json.Unmarshal(raw, &r) != nil {
				return ""
			}
			if v, ok := given[r.Ref]; ok {
				return v
			}
			return doc.Parameters[r.Ref].Default
		}
		var thing registered
		var name string
		for _, r := range doc.Resources {
			switch r.Type {
			case "AWS::IoT::Thing":
				name = ref(r.Properties["ThingName"])
				var payload map[string]json.RawMessage
				if err := json.Unmarshal(r.Properties["AttributePayload"], &payload); err != nil {
					return err
				}
				thing.attributes = map[string]string{}
				for k, v := range payload {
					thing.attributes[k] = ref(v)
				}
			case "AWS::IoT::Policy":
				thing.policies = append(thing.policies, ref(r.Properties["PolicyName"]))
			}
		}
		e.things[name] = thing
	}
}

// A call is one request that policies are evaluated for.
type call struct {
	thing      registered
	client     string
	attributes []string // of the connection
}

// Answer implements [proof.Evaluator]. A device connects with a registered certificate
// and its own name as client identifier.
func (e *evaluator) Answer(q proof.Question) (proof.Answer, error) {
	thing, ok := e.things[q.Device]
	c := call{thing: thing, client: q.Device}
	if q.Verb == proof.Will {
		c.attributes = []string{"LastWill"}
	}
	if !ok || q.Verb == proof.Connect || !e.may(c, "iot:Connect", "client/"+q.Device) {
		return proof.Denied, nil
	}
	fits := len(q.Topic) <= 256 && strings.Count(q.Topic, "/") <= 7
	var allowed bool
	switch q.Verb {
	case proof.Publish, proof.Will: // CONNECT is refused if the will may not be published
		allowed = fits && e.may(c, "iot:Publish", "topic/"+q.Topic)
	case proof.Retain:
		allowed = fits && e.may(c, "iot:Publish", "topic/"+q.Topic) && e.may(c, "iot:RetainPublish", "topic/"+q.Topic)
	case proof.Subscribe:
		allowed = fits && e.may(c, "iot:Subscribe", "topicfilter/"+q.Topic)
	case proof.Receive:
		allowed = fits && e.may(c, "iot:Receive", "topic/"+q.Topic) && e.reaches(c, q.Topic)
	case proof.Connect:
	}
	if allowed {
		return proof.Allowed, nil
	}
	return proof.Denied, nil
}

// reaches reports whether some filter that matches a topic may be subscribed to.
func (e *evaluator) reaches(c call, topic string) bool {
	levels := strings.Split(topic, "/")
	var try func(prefix string, at int) bool
	try = func(prefix string, at int) bool {
		if at == len(levels) {
			return e.may(c, "iot:Subscribe", "topicfilter/"+prefix) || e.may(c, "iot:Subscribe", "topicfilter/"+prefix+"/#")
		}
		join := func(level string) string {
			if at == 0 {
				return level
			}
			return prefix + "/" + level
		}
		if try(join(levels[at]), at+1) {
			return true
		}
		if at == 0 && strings.HasPrefix(topic, "$") {
			return false
		}
		return try(join("+"), at+1) || e.may(c, "iot:Subscribe", "topicfilter/"+join("#"))
	}
	return try("", 0)
}

// may evaluates all policies of the thing: an explicit Deny wins, what nothing allows
// is denied.
func (e *evaluator) may(c call, action, resource string) bool {
	allowed := false
	for _, name := range c.thing.policies {
		for _, s := range e.policies[name] {
			if !slices.Contains(s.actions, action) || !c.holds(s.Condition) {
				continue
			}
			if !slices.ContainsFunc(s.resources, func(p string) bool { return c.matches(p, evalARN+resource) }) {
				continue
			}
			if s.Effect != "Allow" {
				return false
			}
			allowed = true
		}
	}
	return allowed
}

// holds evaluates the conditions that imprint uses; another never holds.
func (c call) holds(condition map[string]map[string][]string) bool {
	for operator, keys := range condition {
		for key, want := range keys {
			switch operator + " " + key {
			case "Bool iot:Connection.Thing.IsAttached":
				if !slices.Equal(want, []string{"true"}) {
					return false
				}
			case "ForAllValues:StringEquals iot:ConnectAttributes":
				if slices.ContainsFunc(c.attributes, func(a string) bool { return !slices.Contains(want, a) }) {
					return false
				}
			default:
				return false
			}
		}
	}
	return true
}

// matches fills in the variables of a resource and compares. A variable without a
// value, or with a wildcard in it, makes the resource match nothing.
func (c call) matches(pattern, resource string) bool {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(pattern, "${")
		b.WriteString(before)
		if !ok {
			return glob(b.String(), resource)
		}
		variable, after, ok := strings.Cut(rest, "}")
		if !ok {
			return false
		}
		value := ""
		if variable == "iot:Connection.Thing.ThingName" {
			value = c.client
		} else if attribute, ok := strings.CutPrefix(variable, "iot:Connection.Thing.Attributes["); ok {
			value = c.thing.attributes[strings.TrimSuffix(attribute, "]")]
		}
		if value == "" || strings.ContainsAny(value, "*$+?#") {
			return false
		}
		b.WriteString(value)
		pattern = after
	}
}

// glob matches a text with a pattern in which * is any characters and ? is one.
func glob(pattern, text string) bool {
	p, t, star, mark := 0, 0, -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, t
			p++
		case p < len(pattern) && (pattern[p] == text[t] || pattern[p] == '?'):
			p++
			t++
		case star >= 0:
			mark++
			p, t = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
