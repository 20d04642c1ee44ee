package mosquitto

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// maxDynsec is the largest file of dynamic security that is read, in bytes:
// 100,000 clients with ten rules each are 150 MB.
const maxDynsec = 256 << 20

func newReader(b []byte) io.Reader { return bytes.NewReader(b) }

// loadDynsec reads the file of dynamic security.
func (v *view) loadDynsec() error {
	name := v.setup.file(DynsecName)
	f, err := templates.OpenFile(v.src, name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	d, err := readDynsec(io.LimitReader(f, maxDynsec))
	if err == nil {
		err = v.takeDynsec(d)
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	return sortHeld(v.held)
}

// readDynsec decodes a file. A key that is not one of ours, or comes twice, is
// an error: Mosquitto takes the first of two, and Go the last.
func readDynsec(r io.Reader) (*dynsecFile, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if err := checkKeys(json.NewDecoder(bytes.NewReader(text))); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var d dynsecFile
	if err := dec.Decode(&d); err != nil {
		return nil, err
	}
	if len(d.Groups) > 0 {
		return nil, errors.New("groups: every client has its own role here")
	}
	return &d, nil
}

// dynsecKeys are the keys of the file, in their only spelling: encoding/json
// would take others.
func dynsecKeys() map[string]bool {
	keys := make(map[string]bool)
	for _, v := range []any{dynsecFile{}, dynsecDefault{}, dynsecClient{}, dynsecRoleRef{}, dynsecRole{}, dynsecACL{}} {
		for f := range reflect.TypeOf(v).Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			keys[name] = true
		}
	}
	return keys
}

// maxDepth of nesting: roles, a role, its ACLs, an ACL.
const maxDepth = 8

// checkKeys reads one JSON value and refuses a key that is unknown or comes
// twice in an object, and anything after the value.
func checkKeys(dec *json.Decoder) error {
	known := dynsecKeys()
	type object struct {
		seen map[string]bool // nil in an array
		key  bool            // the next token is a key
	}
	var stack []object
	ended := false
	for {
		t, err := dec.Token()
		if err == io.EOF && len(stack) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		if ended {
			return errors.New("something follows the file's one object")
		}
		if n := len(stack); n > 0 && stack[n-1].key && t != json.Delim('}') {
			key, _ := t.(string)
			if !known[key] || stack[n-1].seen[key] {
				return fmt.Errorf("key %.128q is unknown or comes twice", key)
			}
			stack[n-1].seen[key], stack[n-1].key = true, false
			continue
		}
		switch t {
		case json.Delim('{'):
			stack = append(stack, object{make(map[string]bool), true})
		case json.Delim('['):
			stack = append(stack, object{})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
			fallthrough
		default:
			if n := len(stack); n > 0 && stack[n-1].seen != nil {
				stack[n-1].key = true
			}
		}
		if len(stack) > maxDepth {
			return errors.New("nested too deep")
		}
		ended = len(stack) == 0
	}
}

// takeDynsec turns clients and roles into entries.
func (v *view) takeDynsec(d *dynsecFile) error {
	if d.Default != (dynsecDefault{Unsubscribe: true}) {
		return errors.New("defaultACLAccess: want false for all but unsubscribe")
	}
	roles := make(map[string]*dynsecRole, len(d.Roles))
	for i := range d.Roles {
		r := &d.Roles[i]
		if r.Name == "" || roles[r.Name] != nil {
			return fmt.Errorf("role %.128q comes twice or has no name", r.Name)
		}
		roles[r.Name] = r
	}
	for i := range d.Clients {
		c := &d.Clients[i]
		if err := v.takeClient(c, roles); err != nil {
			return fmt.Errorf("client %.128q: %w", c.Username, err)
		}
	}
	return nil
}

func (v *view) takeClient(c *dynsecClient, roles map[string]*dynsecRole) error {
	if err := checkUser(c.Username); err != nil {
		return err
	}
	var verifiers []inventory.Verifier
	if len(c.Password)+len(c.Salt) > 0 || c.Iterations != 0 {
		p := inventory.Verifier{Scheme: inventory.PBKDF2SHA512, Iterations: c.Iterations, Salt: c.Salt, Hash: c.Password}
		if !readable(p, v.setup.conf.Version) {
			return errors.New("password: want 64 octets, a salt of 12 and iterations")
		}
		verifiers = []inventory.Verifier{p}
	}
	if isAdmin(c.Username) {
		v.admin().Verifiers = verifiers
		return nil
	}
	if c.ClientID != "" && c.ClientID != c.Username {
		return errors.New("clientid: want the user name")
	}
	id := inventory.DeviceID(c.Username)
	e := templates.Entry{ID: id, Verifiers: verifiers, Certificate: verifiers == nil}
	for _, ref := range c.Roles {
		r, ok := roles[ref.Name]
		if !ok || ref.Priority != 0 {
			return fmt.Errorf("role %.128q is missing or has a priority", ref.Name)
		}
		grants, err := r.grants(id, v.setup.conf.Version)
		if err != nil {
			return fmt.Errorf("role %.128q: %w", r.Name, err)
		}
		e.Grants = append(e.Grants, grants...)
	}
	v.held = append(v.held, e)
	return nil
}

// grants is what a role allows a device. Delivery and subscription must go
// together: our rights do not tell them apart.
func (r *dynsecRole) grants(id inventory.DeviceID, version string) ([]topic.Grant, error) {
	var grants []topic.Grant
	var receive, subscribe []string
	for _, a := range r.ACLs {
		if !a.Allow || a.Priority != 0 {
			return nil, errors.New("want rules that allow, without priority")
		}
		text := a.Topic
		if version == V21 && a.Type != dynsecSubscribeLiteral {
			levels := strings.Split(text, "/")
			for i, l := range levels {
				if l == "%u" {
					levels[i] = string(id)
				}
			}
			text = strings.Join(levels, "/")
		}
		f, err := topic.ParseFilter(text)
		if err != nil {
			return nil, err
		}
		wild := strings.ContainsAny(a.Topic, "+#")
		switch {
		case a.Type == dynsecSend:
			grants = append(grants, topic.Grant{Action: topic.Publish, Filter: f})
		case a.Type == dynsecReceive:
			grants = append(grants, topic.Grant{Action: topic.Receive, Filter: f})
			receive = append(receive, text)
		case a.Type == dynsecSubscribePattern, a.Type == dynsecSubscribeLiteral && !wild:
			subscribe = append(subscribe, text)
		default:
			return nil, fmt.Errorf("rule type %.128q on %.128q", a.Type, a.Topic)
		}
	}
	slices.Sort(receive)
	slices.Sort(subscribe)
	if !slices.Equal(receive, subscribe) {
		return nil, errors.New("want the same filters to subscribe and to receive")
	}
	return grants, nil
}
