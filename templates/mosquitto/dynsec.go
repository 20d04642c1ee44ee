package mosquitto

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// The configuration of the dynamic security plugin, as both versions read it
// (plugins/dynamic-security of Mosquitto). A client without a password cannot
// log in with one, but gives its roles to a certificate of the same name.
type (
	dynsecFile struct {
		Default dynsecDefault  `json:"defaultACLAccess"`
		Clients []dynsecClient `json:"clients"`
		Groups  []struct{}     `json:"groups"`
		Roles   []dynsecRole   `json:"roles"`
	}
	dynsecDefault struct {
		Send        bool `json:"publishClientSend"`
		Receive     bool `json:"publishClientReceive"`
		Subscribe   bool `json:"subscribe"`
		Unsubscribe bool `json:"unsubscribe"`
	}
	dynsecClient struct {
		Username   string          `json:"username"`
		TextName   string          `json:"textname,omitempty"`
		ClientID   string          `json:"clientid,omitempty"`
		Password   []byte          `json:"password,omitempty"` // base64, as encoding/json does
		Salt       []byte          `json:"salt,omitempty"`
		Iterations uint32          `json:"iterations,omitempty"`
		Roles      []dynsecRoleRef `json:"roles"`
	}
	dynsecRoleRef struct {
		Name     string `json:"rolename"`
		Priority int    `json:"priority"`
	}
	dynsecRole struct {
		Name string      `json:"rolename"`
		ACLs []dynsecACL `json:"acls"`
	}
	dynsecACL struct {
		Type     string `json:"acltype"`
		Topic    string `json:"topic"`
		Priority int    `json:"priority"`
		Allow    bool   `json:"allow"`
	}
)

// ACL types.
const (
	dynsecSend             = "publishClientSend"
	dynsecReceive          = "publishClientReceive"
	dynsecSubscribeLiteral = "subscribeLiteral"
	dynsecSubscribePattern = "subscribePattern"
)

// Names of roles: a device's own, a profile's (2.1 only), and imprint's.
const (
	deviceRole  = "device-"
	profileRole = "profile-"
	adminRole   = "admin"
)

// dynsecControl is the plugin's own API. It never falls back to the defaults.
const dynsecControl = "$CONTROL/dynamic-security/#"

// renderDynsec writes the file in two passes: clients, then roles.
func (x *export) renderDynsec(out *templates.Output) error {
	w := &jsonWriter{w: out.File(DynsecName)}
	w.raw("{\n  \"defaultACLAccess\": {\"publishClientSend\": false, \"publishClientReceive\": false, \"subscribe\": false, \"unsubscribe\": true},\n  \"clients\": [")
	if admin := x.view.Node().Admin; admin != nil {
		v, ok := x.pick(admin.Verifiers)
		if !ok {
			return &templates.EntryError{ID: templates.AdminName, Why: "no password verifier that dynamic security reads: want pbkdf2-sha512"}
		}
		w.element(dynsecUser(templates.AdminName, v, adminRole))
	}
	err := x.entries(out, func(e *templates.Entry, v inventory.Verifier, password bool) error {
		if password {
			out.Users++
		}
		c := dynsecUser(string(e.ID), v, x.roleOf(e))
		c.ClientID, c.TextName = string(e.ID), remark(e)
		w.element(c)
		return w.err
	})
	if err != nil {
		return err
	}
	if out.Devices > maxClients {
		return &templates.InexpressibleError{
			Target: "mosquitto", Rule: fmt.Sprintf("%d clients of dynamic security", out.Devices),
			Why:     "it loads them in quadratic time, and 100,000 are not up after two minutes",
			Choices: []string{`form "auto"`, "several brokers"},
		}
	}
	if out.Devices > manyClients {
		out.Warn(fmt.Sprintf("%d clients of dynamic security: the broker loads them in quadratic time, 30,000 in 7 s, and writes the whole file at each change", out.Devices))
	}
	w.raw("\n  ],\n  \"groups\": [],\n  \"roles\": [")
	w.more = false
	if err := x.dynsecRoles(w, out); err != nil {
		return err
	}
	w.raw("\n  ]\n}\n")
	return w.err
}

func dynsecUser(name string, v inventory.Verifier, role string) dynsecClient {
	return dynsecClient{
		Username: name, Password: v.Hash, Salt: v.Salt, Iterations: v.Iterations,
		Roles: []dynsecRoleRef{{Name: role}},
	}
}

// roleOf names the role of a device.
func (x *export) roleOf(e *templates.Entry) string {
	if x.roles[e.Profile] {
		return profileRole + e.Profile
	}
	return deviceRole + string(e.ID)
}

// dynsecRoles writes imprint's role, those of profiles and those of devices.
func (x *export) dynsecRoles(w *jsonWriter, out *templates.Output) error {
	add := func(r dynsecRole) {
		out.Rules += len(r.ACLs)
		w.element(r)
	}
	if x.view.Node().Admin != nil {
		role := newRole(adminRole, adminRules)
		for _, t := range []string{dynsecSend, dynsecReceive, dynsecSubscribePattern} {
			role.ACLs = append(role.ACLs, dynsecACL{Type: t, Topic: dynsecControl, Allow: true})
		}
		add(role)
	}
	for p, err := range x.view.Profiles() {
		if err != nil {
			return err
		}
		if x.roles[p.Name] {
			add(newRole(profileRole+p.Name, mergePatterns(rulePatterns(p.Policy.Rules))))
		}
	}
	var merged []access
	for e, err := range x.view.Entries() {
		if err != nil {
			return err
		}
		if x.roles[e.Profile] {
			continue
		}
		merged = merge(merged[:0], e.Grants)
		add(newRole(deviceRole+string(e.ID), merged))
	}
	return w.err
}

func rulePatterns(rules []topic.Rule) []pattern {
	out := make([]pattern, len(rules))
	for i, r := range rules {
		out[i] = newPattern(r)
	}
	return out
}

// newRole says what a role may do: receive means delivery and subscription. The
// literal form matches one filter, as it is; it does not know %u.
func newRole(name string, rules []access) dynsecRole {
	r := dynsecRole{Name: name, ACLs: []dynsecACL{}}
	for _, a := range rules {
		if a.publish {
			r.ACLs = append(r.ACLs, dynsecACL{Type: dynsecSend, Topic: a.filter, Allow: true})
		}
		if !a.receive {
			continue
		}
		subscribe := dynsecSubscribeLiteral
		if strings.ContainsAny(a.filter, "+#%") {
			subscribe = dynsecSubscribePattern
		}
		r.ACLs = append(r.ACLs,
			dynsecACL{Type: dynsecReceive, Topic: a.filter, Allow: true},
			dynsecACL{Type: subscribe, Topic: a.filter, Allow: true})
	}
	return r
}

// A jsonWriter writes the elements of arrays, one per line. The first error
// sticks.
type jsonWriter struct {
	w    io.Writer
	more bool // an element has been written
	err  error
}

func (j *jsonWriter) raw(text string) {
	if j.err == nil {
		_, j.err = io.WriteString(j.w, text)
	}
}

func (j *jsonWriter) element(v any) {
	b, err := json.Marshal(v)
	if err != nil && j.err == nil {
		j.err = err
	}
	sep := "\n    "
	if j.more {
		sep = ",\n    "
	}
	j.more = true
	j.raw(sep)
	j.raw(string(b))
}
