package rabbitmq

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// maxDefinitions is the largest file of definitions that is read, in bytes.
const maxDefinitions = 512 << 20

// Parse implements [templates.Target]. It reads the files of an export: users and
// rights of another shape than imprint's are an error.
func (Target) Parse(src fs.FS) (templates.View, error) {
	v := &view{}
	var err error
	if v.trust, err = optional(templates.ReadCertificates(src, TrustName)); err != nil {
		return nil, err
	}
	if v.node.ServerChain, err = optional(templates.ReadCertificates(src, ChainName)); err != nil {
		return nil, err
	}
	key, err := optional(templates.ReadFile(src, KeyName))
	if err != nil {
		return nil, err
	}
	v.node.ServerKey = inventory.NewSecret(key)
	if err := v.readCRLs(src); err != nil {
		return nil, err
	}
	if err := v.readConf(src); err != nil {
		return nil, err
	}
	f, err := templates.OpenFile(src, DefinitionsName)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	if err := v.readDefinitions(json.NewDecoder(bufio.NewReaderSize(io.LimitReader(f, maxDefinitions), 1<<16))); err != nil {
		return nil, fmt.Errorf("reading %s: %w", DefinitionsName, err)
	}
	return v, nil
}

// optional lets a file be missing.
func optional[T any](v T, err error) (T, error) {
	if errors.Is(err, fs.ErrNotExist) {
		var zero T
		return zero, nil
	}
	return v, err
}

// readCRLs reads each CRL and holds its name to its issuer. They are in the order of
// their issuers' names in the inventory: that of the common names.
func (v *view) readCRLs(src fs.FS) error {
	names, err := fs.Glob(src, "*"+crlSuffix)
	if err != nil {
		return err
	}
	for _, name := range names {
		crls, err := templates.ReadCRLs(src, name)
		if err != nil {
			return err
		}
		if len(crls) != 1 {
			return fmt.Errorf("reading %s: want one CRL", name)
		}
		if want, err := crlName(crls[0].DER); err != nil || want != name {
			return fmt.Errorf("reading %s: its CRL belongs into %s: %w", name, want, errors.Join(err, errName))
		}
		v.crls = append(v.crls, crls[0])
	}
	return nil
}

var errName = errors.New("the broker would not find it")

// A view is a fleet as the files of a broker tell it.
type view struct {
	trust []byte
	crls  []templates.CRL
	node  templates.Node
	held  []held // in the order of IDs
	asks  bool   // a running imprint: no device leaves a trace

	adminIP string // of the management API
}

// held is a device, with its rights as they are in the file.
type held struct {
	id          inventory.DeviceID
	hash        string
	write, read string
}

// Revision implements [templates.View]: files do not know it.
func (v *view) Revision() uint64 { return 0 }

// Fleet implements [templates.View]: files do not know it.
func (v *view) Fleet() templates.Fleet { return templates.Fleet{} }

// Node implements [templates.View].
func (v *view) Node() templates.Node { return v.node }

// TrustBundle implements [templates.View].
func (v *view) TrustBundle() []byte { return v.trust }

// CRLs implements [templates.View].
func (v *view) CRLs() []templates.CRL { return v.crls }

// Profiles implements [templates.View]: the files know none.
func (v *view) Profiles() iter.Seq2[inventory.Profile, error] {
	return func(func(inventory.Profile, error) bool) {}
}

// Entries implements [templates.View].
func (v *view) Entries() iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		for i := range v.held {
			e, err := v.held[i].entry()
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Carry implements [templates.Partial]: every device is a user, or none is.
func (v *view) Carry(e templates.Entry) (templates.Entry, bool) {
	if v.asks {
		return templates.Entry{}, false
	}
	c := templates.Entry{ID: e.ID, Grants: e.Grants}
	if p, ok := pick(e.Verifiers); ok {
		c.Verifiers = []inventory.Verifier{p}
	}
	return c, true
}

// Omits implements [templates.Partial]: all of it is there.
func (v *view) Omits() templates.Omits { return templates.Omits{} }

func (h *held) entry() (templates.Entry, error) {
	e := templates.Entry{ID: h.id}
	if h.hash != "" {
		b, err := base64.StdEncoding.Strict().DecodeString(h.hash)
		if err != nil || len(b) != rabbitSalt+32 {
			return e, fmt.Errorf("user %s: its password hash is not rabbitmq-sha256", h.id)
		}
		e.Verifiers = []inventory.Verifier{{Scheme: inventory.RabbitSHA256, Salt: b[:rabbitSalt], Hash: b[rabbitSalt:]}}
	}
	for _, x := range []struct {
		action topic.Action
		regex  string
	}{{topic.Publish, h.write}, {topic.Receive, h.read}} {
		filters, err := parseRegex(x.regex)
		if err != nil {
			return e, fmt.Errorf("user %s: %w", h.id, err)
		}
		for _, f := range filters {
			e.Grants = append(e.Grants, topic.Grant{Action: x.action, Filter: f})
		}
	}
	return e, nil
}

// readConf reads the listeners and the address of the management API.
func (v *view) readConf(src fs.FS) error {
	text, err := optional(templates.ReadFile(src, ConfName))
	if err != nil || text == nil {
		return err
	}
	for n, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, " = ")
		if !ok || !v.setting(key, value) {
			return fmt.Errorf("reading %s, line %d: want the settings of an export", ConfName, n+1)
		}
	}
	return nil
}

// setting takes one line over. What is not understood could let somebody in.
func (v *view) setting(key, value string) bool {
	fixed := map[string]string{
		"listeners.tcp": "none", "mqtt.listeners.tcp": "none", "mqtt.allow_anonymous": "false", "mqtt.vhost": vhost,
		"mqtt.exchange": exchange, "mqtt.ssl_cert_login": "true", "ssl_cert_login_from": "common_name",
		"auth_backends.1": "internal", "auth_backends.2": "http", "auth_http.http_method": "post", "auth_http.ssl_options.verify": "verify_peer",
	}
	if want, ok := fixed[key]; ok {
		return value == want
	}
	if path, ok := strings.CutPrefix(key, "auth_http."); ok {
		v.asks = true
		if path == "ssl_options.cacertfile" {
			return strings.HasSuffix(value, "/"+TrustName)
		}
		what, ok := strings.CutSuffix(path, "_path")
		return ok && strings.HasSuffix(value, "/v1/webhook/rabbitmq/"+what)
	}
	switch key {
	case "load_definitions":
		return strings.HasSuffix(value, "/"+DefinitionsName)
	case "mqtt.listeners.ssl.1":
		return v.listener(value, &v.node.CertificatePort)
	case "mqtt.listeners.ssl.2":
		return v.listener(value, &v.node.PasswordPort)
	case "management.tcp.ip":
		_, err := netip.ParseAddr(value)
		v.adminIP = value
		return err == nil
	case "management.tcp.port": // without it, imprint does not use the API
		v.admin().Socket = "http://" + net.JoinHostPort(v.adminIP, value)
		return true
	}
	return false
}

func (v *view) listener(value string, port *uint16) bool {
	bind := ""
	if a, err := netip.ParseAddrPort(value); err == nil {
		bind, *port = a.Addr().String(), a.Port()
	} else if n, err := fmt.Sscanf(value, "%d", port); n != 1 || err != nil {
		return false
	}
	same := v.node.Bind == bind || v.node.Bind == ""
	v.node.Bind = bind
	return same
}

func (v *view) admin() *templates.Admin {
	if v.node.Admin == nil {
		v.node.Admin = &templates.Admin{}
	}
	return v.node.Admin
}

// readDefinitions reads the file from end to end. Each user must have its records, in
// the same order, and no other.
func (v *view) readDefinitions(dec *json.Decoder) error {
	dec.DisallowUnknownFields()
	if err := expect(dec, json.Delim('{')); err != nil {
		return err
	}
	perms, topics := 0, 0
	var admin account
	steps := []struct {
		name string
		read func() error
	}{
		{"vhosts", func() error { return each(dec, func(r vhostRecord) error { return wantOnly(r.Name == vhost) }) }},
		{"users", func() error {
			return each(dec, func(r userRecord) error {
				if r.Name == templates.AdminName {
					admin.user = r
					return wantOnly(slices.Equal(r.Tags, []string{administrator}))
				}
				return v.takeUser(r)
			})
		}},
		{"permissions", func() error {
			return each(dec, func(r permissionRecord) error {
				if r.User == templates.AdminName {
					return nil
				}
				return v.takePermission(&perms, r)
			})
		}},
		{"topic_permissions", func() error {
			return each(dec, func(r topicRecord) error {
				if r.User == templates.AdminName {
					return nil
				}
				return v.takeTopics(&topics, r)
			})
		}},
	}
	for _, s := range steps {
		if err := expect(dec, s.name); err != nil {
			return err
		}
		if err := s.read(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if err := expect(dec, json.Delim('}')); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the file's one object")
	}
	if perms != len(v.held) || topics != len(v.held) {
		return fmt.Errorf("%d users, %d permissions and %d topic permissions: a user without a row may do everything", len(v.held), perms, topics)
	}
	return v.takeAdmin(admin)
}

func (v *view) takeAdmin(a account) error {
	if a.user.Name == "" {
		return nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(a.user.Hash)
	if err != nil || len(b) != rabbitSalt+32 {
		return errors.New("users: the administrator's password hash is not rabbitmq-sha256")
	}
	v.admin().Verifiers = []inventory.Verifier{{Scheme: inventory.RabbitSHA256, Salt: b[:rabbitSalt], Hash: b[rabbitSalt:]}}
	return nil
}

func (v *view) takeUser(r userRecord) error {
	id, err := inventory.ParseDeviceID(r.Name)
	if err != nil {
		return err
	}
	if n := len(v.held); n > 0 && v.held[n-1].id.Canonical() >= id.Canonical() {
		return fmt.Errorf("user %s: want each once, in order", id)
	}
	v.held = append(v.held, held{id: id, hash: r.Hash})
	return wantOnly(r.Hashing == hashing && len(r.Tags) == 0)
}

func (v *view) takePermission(n *int, r permissionRecord) error {
	if *n >= len(v.held) || string(v.held[*n].id) != r.User {
		return fmt.Errorf("user %.128q: it is not the next one", r.User)
	}
	*n++
	want, err := newAccount(&templates.Entry{ID: inventory.DeviceID(r.User)})
	if err != nil {
		return err
	}
	return wantOnly(r == want.perms)
}

func (v *view) takeTopics(n *int, r topicRecord) error {
	if *n >= len(v.held) || string(v.held[*n].id) != r.User {
		return fmt.Errorf("user %.128q: it is not the next one", r.User)
	}
	h := &v.held[*n]
	*n++
	h.write, h.read = r.Write, r.Read
	if _, err := h.entry(); err != nil {
		return err
	}
	return wantOnly(r.Vhost == vhost && r.Exchange == exchange)
}

func wantOnly(ok bool) error {
	if !ok {
		return errors.New("a record that imprint does not write")
	}
	return nil
}

func expect(dec *json.Decoder, want json.Token) error {
	got, err := dec.Token()
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("want %v", want)
	}
	return nil
}

// each reads an array, one element at a time. A key that comes twice in an element,
// or in another case, is an error.
func each[T any](dec *json.Decoder, take func(T) error) error {
	if err := expect(dec, json.Delim('[')); err != nil {
		return err
	}
	for dec.More() {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return err
		}
		strict := json.NewDecoder(bytes.NewReader(raw))
		strict.DisallowUnknownFields()
		var v T
		if err := strict.Decode(&v); err != nil {
			return err
		}
		var again bytes.Buffer
		enc := json.NewEncoder(&again)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			return err
		}
		var plain bytes.Buffer
		if err := json.Compact(&plain, raw); err != nil {
			return err
		}
		if !bytes.Equal(bytes.TrimSpace(again.Bytes()), plain.Bytes()) {
			return errors.New("a record that imprint does not write")
		}
		if err := take(v); err != nil {
			return err
		}
	}
	return expect(dec, json.Delim(']'))
}
