package rabbitmq

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/template"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

//go:embed rabbitmq.conf.tmpl
var confText string

//go:embed advanced.config.tmpl
var advancedText string

//go:embed enabled_plugins.tmpl
var pluginsText string

//go:embed README.md.tmpl
var readmeText string

// The records of definitions.json and of the management API.
type (
	userRecord struct {
		Name    string   `json:"name"`
		Hash    string   `json:"password_hash"` // base64; empty: no password is right
		Hashing string   `json:"hashing_algorithm"`
		Tags    []string `json:"tags"`
	}
	permissionRecord struct {
		User      string `json:"user"`
		Vhost     string `json:"vhost"`
		Configure string `json:"configure"`
		Write     string `json:"write"`
		Read      string `json:"read"`
	}
	topicRecord struct {
		User     string `json:"user"`
		Vhost    string `json:"vhost"`
		Exchange string `json:"exchange"`
		Write    string `json:"write"`
		Read     string `json:"read"`
	}
	vhostRecord struct {
		Name string `json:"name"`
	}
)

// hashing is how the password hashes are made (rabbit_password_hashing_sha256): four
// octets of salt, and SHA-256 of salt and password.
const hashing = "rabbit_password_hashing_sha256"

const administrator = "administrator"

// A grant of a device as RabbitMQ has it: three records of one user. The zero value
// of topics is no row, which RabbitMQ reads as "everything": every device has one.
type account struct {
	user   userRecord
	perms  permissionRecord
	topics topicRecord
}

// newAccount is a device as a user.
func newAccount(e *templates.Entry) (account, error) {
	name := string(e.ID)
	a := account{user: userRecord{Name: name, Hashing: hashing, Tags: []string{}}}
	if v, ok := pick(e.Verifiers); ok {
		a.user.Hash = base64.StdEncoding.EncodeToString(append(slices.Clone(v.Salt), v.Hash...))
	}
	// The queues of a session: its client identifier is part of their names.
	queue := "mqtt-subscription-" + name + "qos[01]"
	both := `^(amq\.topic|` + queue + `)$`
	a.perms = permissionRecord{User: name, Vhost: vhost, Configure: "^" + queue + "$", Write: both, Read: both}
	var publish, receive []topic.Filter
	for _, g := range e.Grants {
		switch g.Action {
		case topic.Publish:
			publish = append(publish, g.Filter)
		case topic.Receive:
			receive = append(receive, g.Filter)
		default:
			return a, &templates.EntryError{ID: e.ID, Why: "an action that is none"}
		}
	}
	a.topics = topicRecord{User: name, Vhost: vhost, Exchange: exchange}
	var err error
	if a.topics.Write, err = regexOf(publish); err != nil {
		return a, &templates.EntryError{ID: e.ID, Why: err.Error()}
	}
	if a.topics.Read, err = regexOf(receive); err != nil {
		return a, &templates.EntryError{ID: e.ID, Why: err.Error()}
	}
	return a, nil
}

// adminAccount is imprint itself at the broker.
func adminAccount(admin *templates.Admin) (account, error) {
	v, ok := pick(admin.Verifiers)
	if !ok {
		return account{}, &templates.EntryError{ID: templates.AdminName, Why: "no password verifier that RabbitMQ reads: want rabbitmq-sha256"}
	}
	return account{
		user: userRecord{
			Name: templates.AdminName, Hash: base64.StdEncoding.EncodeToString(append(slices.Clone(v.Salt), v.Hash...)), Hashing: hashing, Tags: []string{administrator},
		},
		perms:  permissionRecord{User: templates.AdminName, Vhost: vhost, Configure: ".*", Write: ".*", Read: ".*"},
		topics: topicRecord{User: templates.AdminName, Vhost: vhost, Exchange: exchange, Write: ".*", Read: ".*"},
	}, nil
}

// rabbitSalt is how long the salt of a verifier is, in octets.
const rabbitSalt = 4

// pick is the verifier that RabbitMQ reads.
func pick(verifiers []inventory.Verifier) (inventory.Verifier, bool) {
	for _, v := range verifiers {
		if v.Scheme == inventory.RabbitSHA256 && len(v.Salt) == rabbitSalt && len(v.Hash) == 32 {
			return v, true
		}
	}
	return inventory.Verifier{}, false
}

// accounts yields imprint's account, if there is one, and those of all devices.
func (x *export) accounts(yield func(account) error) error {
	if admin := x.view.Node().Admin; admin != nil {
		a, err := adminAccount(admin)
		if err != nil {
			return err
		}
		if err := yield(a); err != nil {
			return err
		}
	}
	if x.form == HTTP {
		return nil // whoever is no user here is asked about
	}
	var prev inventory.DeviceID
	for e, err := range x.view.Entries() {
		if err != nil {
			return err
		}
		if err := templates.CheckEntry(prev, &e); err != nil {
			return err
		}
		prev = e.ID
		if _, ok := pick(e.Verifiers); !ok && !e.Certificate {
			return &templates.EntryError{ID: e.ID, Why: "no certificate, and no password verifier that RabbitMQ reads: want rabbitmq-sha256"}
		}
		a, err := newAccount(&e)
		if err != nil {
			return err
		}
		if err := yield(a); err != nil {
			return err
		}
	}
	return nil
}

// render writes all files.
func (x *export) render(out *templates.Output) error {
	if err := templates.CheckPKI(x.view, out); err != nil {
		return err
	}
	for name, der := range x.crls {
		if err := templates.WriteCRLs(out.File(name), []templates.CRL{{DER: der}}); err != nil {
			return err
		}
	}
	n := x.view.Node()
	plain := map[string][]byte{TrustName: x.view.TrustBundle(), ChainName: n.ServerChain, KeyName: n.ServerKey.Reveal()}
	for name, text := range map[string]string{ConfName: confText, PluginsName: pluginsText, AdvancedName: advancedText, templates.ReadmeName: readmeText} {
		b, err := fill(text, &x.conf)
		if err != nil {
			return fmt.Errorf("filling %s: %w", name, err)
		}
		plain[name] = b
	}
	for name, data := range plain {
		if _, err := out.File(name).Write(data); err != nil {
			return err
		}
	}
	return x.renderDefinitions(out)
}

func fill(text string, c *conf) ([]byte, error) {
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, c); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// renderDefinitions writes one record on a line, in three passes over the devices.
func (x *export) renderDefinitions(out *templates.Output) error {
	w := out.File(DefinitionsName)
	if _, err := io.WriteString(w, "{\n  \"vhosts\": [{\"name\":\"/\"}],\n  \"users\": ["); err != nil {
		return err
	}
	out.Devices = 0
	l := list{w: w}
	err := x.accounts(func(a account) error {
		if a.user.Name != templates.AdminName {
			out.Devices++
			if a.user.Hash != "" {
				out.Users++
			}
		}
		return l.add(a.user)
	})
	if err != nil {
		return err
	}
	for _, part := range []struct {
		name   string
		record func(account) any
	}{
		{"permissions", func(a account) any { return a.perms }},
		{"topic_permissions", func(a account) any { return a.topics }},
	} {
		if _, err := fmt.Fprintf(w, "\n  ],\n  %q: [", part.name); err != nil {
			return err
		}
		l = list{w: w}
		if err := x.accounts(func(a account) error { return l.add(part.record(a)) }); err != nil {
			return err
		}
		out.Rules += l.n
	}
	if out.Devices > manyUsers {
		out.Warn(fmt.Sprintf("%d users: RabbitMQ imports about 1,000 in a second", out.Devices))
	}
	_, err = io.WriteString(w, "\n  ]\n}\n")
	return err
}

// A list writes the elements of a JSON array, one on a line.
type list struct {
	w io.Writer
	n int
}

func (l *list) add(v any) error {
	sep := ",\n    "
	if l.n == 0 {
		sep = "\n    "
	}
	l.n++
	var b bytes.Buffer
	b.WriteString(sep)
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encoding definitions: %w", err)
	}
	_, err := l.w.Write(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
	return err
}
