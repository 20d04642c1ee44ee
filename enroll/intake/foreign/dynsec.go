package foreign

import (
	"cmp"
	"encoding/json"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// A dynsecFile is what the dynamic security plugin of Mosquitto keeps: clients have
// roles, of their own and through groups, and a role has rules.
type dynsecFile struct {
	defaults struct{ send, receive, subscribe bool }
	clients  []dynsecClient
	roles    map[string][]dynsecRule
	groups   map[string]*dynsecGroup
	inGroups map[string][]dynsecMember // by client
	anyone   string                    // the group of clients without a name
	v21      bool                      // written by 2.1, which fills in %u
}

type dynsecClient struct {
	name, textName, clientID string
	hasPassword, disabled    bool
	verifier                 inventory.Verifier
	hashErr                  error
	roles                    []dynsecRef
}

type dynsecRef struct {
	name     string
	priority float64
}

type dynsecGroup struct{ roles []dynsecRef }

type dynsecMember struct {
	group    string
	priority float64
}

type dynsecRule struct {
	kind     string
	filter   string
	priority float64
	allow    bool
}

// The kinds of rule that matter for rights.
const (
	dynsecSend             = "publishClientSend"
	dynsecReceive          = "publishClientReceive"
	dynsecSubscribeLiteral = "subscribeLiteral"
	dynsecSubscribePattern = "subscribePattern"
)

// dynsecKind is the kind itself, so that not every rule keeps a text of its own; ""
// for those that are not about rights, as to unsubscribe.
func dynsecKind(kind string) string {
	for _, k := range []string{dynsecSend, dynsecReceive, dynsecSubscribeLiteral, dynsecSubscribePattern} {
		if k == kind {
			return k
		}
	}
	return ""
}

func (b *builder) dynsec(t *tree) error {
	name, err := t.one(roleDynsec)
	if err != nil {
		return err
	}
	d := &dynsecFile{roles: map[string][]dynsecRule{}, groups: map[string]*dynsecGroup{}, inGroups: map[string][]dynsecMember{}}
	err = t.stream(name, func(r io.Reader) error {
		dec := json.NewDecoder(r)
		if err := d.read(dec, b); err != nil {
			return err
		}
		return ended(dec)
	})
	if err != nil {
		return err
	}
	at := place{file: name}
	if d.defaults.send || d.defaults.subscribe {
		b.find(Error, "default-allow", "", at, "what no role mentions is allowed (defaultACLAccess): nothing of that is carried over")
	}
	if d.anyone != "" {
		b.find(Warning, "anonymous-rule", "", at, "clients without a name have the rights of the group %s: they are left out", show(d.anyone))
	}
	for i := range d.clients {
		b.dynsecClient(d, &d.clients[i], at)
	}
	return nil
}

func (d *dynsecFile) read(dec *json.Decoder, b *builder) error {
	return fields(dec, map[string]any{
		"changeIndex":    func() error { d.v21 = true; var n json.Number; return quiet(dec.Decode(&n)) },
		"anonymousGroup": &d.anyone,
		"defaultACLAccess": func() error {
			return fields(dec, map[string]any{"publishClientSend": &d.defaults.send, "publishClientReceive": &d.defaults.receive, "subscribe": &d.defaults.subscribe})
		},
		"clients": func() error {
			return array(dec, func() error {
				c, v21, err := readDynsecClient(dec)
				d.clients = append(d.clients, c)
				d.v21 = d.v21 || v21
				return cmpErr(err, b.cancelled())
			})
		},
		"groups": func() error { return array(dec, func() error { return d.readGroup(dec) }) },
		"roles":  func() error { return array(dec, func() error { return d.readRole(dec) }) },
	})
}

// cmpErr is the first error that there is.
func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// readDynsecClient reads a client, and whether 2.1 has written it. The password is
// made a verifier at once: of a hundred thousand, the texts would be heavy.
func readDynsecClient(dec *json.Decoder) (c dynsecClient, v21 bool, err error) {
	var password, salt, encoded string
	var iterations float64
	err = fields(dec, map[string]any{
		"username": &c.name, "textname": &c.textName, "clientid": &c.clientID, "disabled": &c.disabled,
		"password": &password, "salt": &salt, "iterations": &iterations, "encoded_password": &encoded,
		"roles": func() error { return readRefs(dec, &c.roles) },
	})
	c.hasPassword = password != "" || encoded != ""
	if encoded != "" {
		c.verifier, c.hashErr = mosquittoHash(encoded)
	} else if password != "" {
		c.verifier, c.hashErr = dynsecHash(password, salt, iterations)
	}
	return c, encoded != "", err
}

func readRefs(dec *json.Decoder, into *[]dynsecRef) error {
	return array(dec, func() error {
		var r dynsecRef
		err := fields(dec, map[string]any{"rolename": &r.name, "priority": &r.priority})
		*into = append(*into, r)
		return err
	})
}

func (d *dynsecFile) readGroup(dec *json.Decoder) error {
	var name string
	g := &dynsecGroup{}
	var members []struct {
		name     string
		priority float64
	}
	err := fields(dec, map[string]any{
		"groupname": &name,
		"roles":     func() error { return readRefs(dec, &g.roles) },
		"clients": func() error {
			return array(dec, func() error {
				m := struct {
					name     string
					priority float64
				}{}
				err := fields(dec, map[string]any{"username": &m.name, "priority": &m.priority})
				members = append(members, m)
				return err
			})
		},
	})
	if _, again := d.groups[name]; again {
		return errShape
	}
	d.groups[name] = g
	for _, m := range members {
		d.inGroups[m.name] = append(d.inGroups[m.name], dynsecMember{name, m.priority})
	}
	return err
}

func (d *dynsecFile) readRole(dec *json.Decoder) error {
	var name string
	var rules []dynsecRule
	err := fields(dec, map[string]any{
		"rolename": &name,
		"acls": func() error {
			return array(dec, func() error {
				var r dynsecRule
				err := fields(dec, map[string]any{"acltype": &r.kind, "topic": &r.filter, "priority": &r.priority, "allow": &r.allow})
				if r.kind = dynsecKind(r.kind); r.kind != "" {
					rules = append(rules, r)
				}
				return err
			})
		},
	})
	if _, again := d.roles[name]; again {
		return errShape
	}
	d.roles[name] = rules
	return err
}

// dynsecClient takes one client over.
func (b *builder) dynsecClient(d *dynsecFile, c *dynsecClient, at place) {
	u, fresh := b.user(c.name, at)
	if !fresh {
		u.problem("is there twice")
		b.find(Error, "twice", c.name, at, "the client is there twice")
		return
	}
	u.ruled = true
	if c.textName != "" {
		u.label("name", clip(c.textName))
	}
	if c.disabled {
		u.problem("is disabled")
		b.find(Warning, "disabled", c.name, at, "is disabled, and not taken over")
	}
	if c.clientID != "" && c.clientID != c.name {
		b.find(Warning, "client-id", c.name, at, "is bound to the client identifier %.128q; here the identifier is the user name", c.clientID)
	}
	if c.hasPassword {
		b.takeHash(u, at, c.verifier, c.hashErr)
	}
	if groups := d.inGroups[c.name]; len(groups) == 1 {
		if g, err := inventory.ParseGroup(groups[0].group); err == nil {
			u.group = g
		}
	} else if len(groups) > 1 {
		b.find(Note, "groups", c.name, at, "is in %d groups, a device is in one: none is taken", len(groups))
	}
	u.grants = b.dynsecGrants(d, c, at)
}

// dynsecHash reads PBKDF2-HMAC-SHA512 as in a password file.
func dynsecHash(password, salt string, iterations float64) (inventory.Verifier, error) {
	if iterations < 1 || iterations > maxIteration || iterations != float64(uint32(iterations)) {
		return inventory.Verifier{}, errHash
	}
	return decodeBoth(inventory.Verifier{Scheme: inventory.PBKDF2SHA512, Iterations: uint32(iterations)}, salt, password)
}

// maxLabel is the longest value of a label, in bytes.
const maxLabel = 256

// clip makes text fit for a label: valid, printable and not too long.
func clip(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > maxLabel {
		text = strings.ToValidUTF8(text[:maxLabel], "")
	}
	return text
}

// A rank says which of two rules the plugin asks first: client roles before groups,
// then higher priorities. It orders nothing else, so of rules with one rank either
// may come first.
type rank struct{ group, groupPriority, rolePriority, priority float64 }

func (r rank) compare(o rank) int {
	return cmp.Or(cmp.Compare(r.group, o.group), -cmp.Compare(r.groupPriority, o.groupPriority), -cmp.Compare(r.rolePriority, o.rolePriority), -cmp.Compare(r.priority, o.priority))
}

// A rankedRule is a rule of a client with its place in the order.
type rankedRule struct {
	rank
	dynsecRule
	role string
}

func (d *dynsecFile) rulesOf(c *dynsecClient) []rankedRule {
	var out []rankedRule
	add := func(group, groupPriority float64, refs []dynsecRef) {
		for _, ref := range refs {
			for _, r := range d.roles[ref.name] {
				at := rank{group, groupPriority, ref.priority, r.priority}
				if r.kind == dynsecSubscribeLiteral && !r.allow {
					at.priority = math.Inf(1) // of one role, literals are looked up before patterns
				}
				out = append(out, rankedRule{at, r, ref.name})
			}
		}
	}
	add(0, 0, c.roles)
	for _, m := range d.inGroups[c.name] {
		add(1, m.priority, d.groups[m.group].roles)
	}
	slices.SortStableFunc(out, func(x, y rankedRule) int { return x.compare(y.rank) })
	return out
}

// A rankedGrant is what is allowed, unless a deny comes first.
type rankedGrant struct {
	rank
	filter topic.Filter
}

// dynsecGrants makes grants of the rules of a client. To receive takes two rights
// there, to subscribe and to be sent; only what both allow is carried.
func (b *builder) dynsecGrants(d *dynsecFile, c *dynsecClient, at place) []topic.Grant {
	rules := d.rulesOf(c)
	var grants []topic.Grant
	for _, g := range b.dynsecAllowed(rules, c, at, d.v21, dynsecSend) {
		grants = append(grants, topic.Grant{Action: topic.Publish, Filter: g.filter})
	}
	subscribed := b.dynsecAllowed(rules, c, at, d.v21, dynsecSubscribeLiteral, dynsecSubscribePattern)
	sent := b.dynsecAllowed(rules, c, at, d.v21, dynsecReceive)
	var refused []rankedRule
	for _, r := range rules {
		if r.kind == dynsecReceive && !r.allow {
			refused = append(refused, r)
		}
	}
	for _, s := range subscribed {
		both := topic.Filter("")
		for _, g := range sent {
			if g.filter.Covers(s.filter) {
				both = s.filter
			} else if both == "" && s.filter.Covers(g.filter) {
				grants = append(grants, topic.Grant{Action: topic.Receive, Filter: g.filter})
			}
		}
		if both == "" && d.defaults.receive && !slices.ContainsFunc(refused, func(r rankedRule) bool { return r.touches(s.filter, c.name) }) {
			both = s.filter
		}
		if both != "" {
			grants = append(grants, topic.Grant{Action: topic.Receive, Filter: both})
		} else {
			b.find(Note, "no-delivery", c.name, at, "may subscribe to %.128q and is not, or not wholly, sent what is published there", s.filter)
		}
	}
	return grants
}

// dynsecAllowed are the filters that rules of some kinds allow, without those that a
// deny of the same or a higher rank touches.
func (b *builder) dynsecAllowed(rules []rankedRule, c *dynsecClient, at place, v21 bool, kinds ...string) []rankedGrant {
	var out []rankedGrant
	for _, r := range rules {
		if !r.allow || !slices.Contains(kinds, r.kind) {
			continue
		}
		text := r.filter
		if strings.Contains(text, "%u") || strings.Contains(text, "%c") {
			filled, ok := fill(text, c.name)
			if !ok || !v21 || r.kind == dynsecSubscribeLiteral {
				b.find(Warning, "partial", "", at, "role %s, %s %.128q: a placeholder is filled in by Mosquitto 2.1 only, and as a whole level only; the file does not tell that it is of 2.1, or the level is not whole: the rule is left out", show(r.role), r.kind, text)
				continue
			}
			text = filled
		}
		f, err := topic.ParseFilter(text)
		if err != nil {
			b.find(Warning, "rule-dropped", "", at, "role %s: %s: the rule is left out", show(r.role), err)
			continue
		}
		denied := slices.ContainsFunc(rules, func(n rankedRule) bool {
			return !n.allow && slices.Contains(kinds, n.kind) && n.compare(r.rank) <= 0 && n.touches(f, c.name)
		})
		if denied {
			b.find(Warning, "deny", c.name, at, "a deny takes a part of %s %.128q away, and policies only allow: that right is left out whole", r.kind, f)
			continue
		}
		out = append(out, rankedGrant{r.rank, f})
	}
	return out
}

// touches reports whether a rule has something in common with a filter. What is no
// filter touches all.
func (r *rankedRule) touches(f topic.Filter, name string) bool {
	d, err := topic.ParseFilter(cover(r.filter, name))
	own, ownErr := topic.ParseFilter(r.filter) // as 2.0 takes it
	return err != nil || ownErr != nil || d.Overlaps(f) || own.Overlaps(f)
}
