package azureiot

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/templates/proof"
)

// newEvaluator reads an export the second way: as the services are documented to. It
// shares nothing with what writes the files.
func newEvaluator(src fs.FS) (proof.Evaluator, error) {
	var setting struct{ Form string }
	if err := readJSON(src, "export.json", &setting); err != nil {
		return nil, err
	}
	switch setting.Form {
	case "eventgrid":
		return newGrid(src)
	case "iothub":
		return newHub(src, "devices.txt", "id")
	case "dps":
		return newHub(src, "enrollments.jsonl", "deviceId")
	}
	return nil, fmt.Errorf("form %.32q is not known", setting.Form)
}

func readJSON(src fs.FS, name string, v any) error {
	text, err := fs.ReadFile(src, name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	return nil
}

// eachLine decodes every line of a file.
func eachLine(src fs.FS, name string, each func(line map[string]any) error) error {
	f, err := src.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	for dec := json.NewDecoder(bufio.NewReader(f)); ; {
		var line map[string]any
		switch err := dec.Decode(&line); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading %s: %w", name, err)
		}
		if err := each(line); err != nil {
			return err
		}
	}
}

// A hub knows its devices and has fixed topics.
type hub map[string]bool

func newHub(src fs.FS, name, key string) (hub, error) {
	h := hub{}
	return h, eachLine(src, name, func(line map[string]any) error {
		id, ok := line[key].(string)
		if !ok {
			return fmt.Errorf("reading %s: no %s", name, key)
		}
		status := line["status"]
		if status == nil {
			status = line["provisioningStatus"]
		}
		h[id] = status == "enabled"
		return nil
	})
}

// Answer implements [proof.Evaluator]. The only subscription is the documented one; a
// topic goes on with properties after the last slash.
func (h hub) Answer(q proof.Question) (proof.Answer, error) {
	events, bound := "devices/"+q.Device+"/messages/events/", "devices/"+q.Device+"/messages/devicebound/"
	allowed := false
	switch q.Verb {
	case proof.Publish, proof.Will, proof.Retain:
		allowed = strings.HasPrefix(q.Topic, events)
	case proof.Receive:
		allowed = strings.HasPrefix(q.Topic, bound)
	case proof.Subscribe:
		allowed = q.Topic == bound+"#"
	case proof.Connect:
	}
	if allowed && h[q.Device] {
		return proof.Allowed, nil
	}
	return proof.Denied, nil
}

// A grid is an Event Grid namespace.
type grid struct {
	clients map[string]gridClient
	groups  map[string][2]string // attribute and value of the query, by group
	spaces  map[string][]string
	binds   []gridBinding
}

type gridClient struct {
	enabled    bool
	attributes map[string]any
}

type gridBinding struct{ group, space, permission string }

func newGrid(src fs.FS) (*grid, error) {
	g := &grid{clients: map[string]gridClient{}, groups: map[string][2]string{}, spaces: map[string][]string{}}
	var d struct {
		Resources []struct {
			Type, Name string
			Properties map[string]json.RawMessage
		}
	}
	if err := readJSON(src, "namespace.json", &d); err != nil {
		return nil, err
	}
	for _, r := range d.Resources {
		name, text := strings.Trim(strings.TrimPrefix(r.Name, "[concat(parameters('namespaceName'), "), "/')]"), map[string]string{}
		for k, v := range r.Properties {
			var s string
			if json.Unmarshal(v, &s) == nil {
				text[k] = s
			}
		}
		switch r.Type {
		case "Microsoft.EventGrid/namespaces/clientGroups":
			attribute, value, ok := strings.Cut(text["query"], " = ")
			if !ok || !strings.HasPrefix(attribute, "attributes.") || strings.Count(value, "'") != 2 {
				return nil, fmt.Errorf("query %.128q is not understood", text["query"])
			}
			g.groups[name] = [2]string{strings.TrimPrefix(attribute, "attributes."), strings.Trim(value, "'")}
		case "Microsoft.EventGrid/namespaces/topicSpaces":
			var list []string
			if err := json.Unmarshal(r.Properties["topicTemplates"], &list); err != nil {
				return nil, err
			}
			g.spaces[name] = list
		case "Microsoft.EventGrid/namespaces/permissionBindings":
			g.binds = append(g.binds, gridBinding{text["clientGroupName"], text["topicSpaceName"], text["permission"]})
		}
	}
	return g, eachLine(src, "clients.jsonl", func(line map[string]any) error {
		p, _ := line["properties"].(map[string]any)
		name, _ := p["authenticationName"].(string)
		attributes, _ := p["attributes"].(map[string]any)
		g.clients[name] = gridClient{p["state"] == "Enabled", attributes}
		return nil
	})
}

// Answer implements [proof.Evaluator].
func (g *grid) Answer(q proof.Question) (proof.Answer, error) {
	c, ok := g.clients[q.Device]
	permission := "Publisher"
	if q.Verb == proof.Receive || q.Verb == proof.Subscribe {
		permission = "Subscriber"
	}
	fits := len(q.Topic) <= 256 && strings.Count(q.Topic, "/") < 15 && !strings.HasPrefix(q.Topic, "$")
	if !ok || !c.enabled || !fits || q.Verb == proof.Connect {
		return proof.Denied, nil
	}
	for _, b := range g.binds {
		of := g.groups[b.group]
		if b.permission != permission || of[0] == "" || c.attributes[of[0]] != of[1] {
			continue
		}
		if slices.ContainsFunc(g.spaces[b.space], func(t string) bool { return c.template(q.Device, t, q.Topic) }) {
			return proof.Allowed, nil
		}
	}
	return proof.Denied, nil
}

// template reports whether a topic, or all that a filter stands for, is in a template
// for this client.
func (c gridClient) template(name, template, topic string) bool {
	want, have := strings.Split(template, "/"), strings.Split(topic, "/")
	for i, w := range want {
		if w == "#" {
			return true // nothing and anything after the parent
		}
		if variable, ok := strings.CutPrefix(w, "${client."); ok {
			variable = strings.TrimSuffix(variable, "}")
			value := any(name)
			if attribute, ok := strings.CutPrefix(variable, "attributes."); ok {
				value = c.attributes[attribute]
			} else if variable != "authenticationName" {
				return false
			}
			var isText bool
			if w, isText = value.(string); !isText || w == "+" || w == "" {
				return false
			}
		}
		if i >= len(have) || have[i] == "#" || w != "+" && w != have[i] {
			return false
		}
	}
	return len(have) == len(want)
}
