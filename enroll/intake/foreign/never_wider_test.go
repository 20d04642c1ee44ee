package foreign

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// The evaluators here are written from the brokers' documentation and share nothing
// with the reader: they match topics on their own, too.

// matches is MQTT 5.0 §4.7, level by level.
func matches(filter, name string) bool {
	if name[:min(1, len(name))] == "$" && (strings.HasPrefix(filter, "+") || strings.HasPrefix(filter, "#")) {
		return false
	}
	return matchLevels(strings.Split(filter, "/"), strings.Split(name, "/"))
}

func matchLevels(filter, name []string) bool {
	switch {
	case len(filter) > 0 && filter[0] == "#":
		return true
	case len(name) == 0:
		return len(filter) == 0
	case len(filter) == 0:
		return false
	case filter[0] != "+" && filter[0] != name[0]:
		return false
	}
	return matchLevels(filter[1:], name[1:])
}

// topics are all topics of up to three levels of some words.
func topics() []string {
	words := []string{"a", "b", "u1", "u2", "dev-u1", "north", "", "$SYS"}
	var out []string
	for _, x := range words {
		out = append(out, x)
		for _, y := range words {
			out = append(out, x+"/"+y)
			for _, z := range words {
				out = append(out, x+"/"+y+"/"+z)
			}
		}
	}
	return slices.DeleteFunc(out, func(s string) bool { return s == "" })
}

func filterGen(extra ...string) *rapid.Generator[string] {
	levels := append([]string{"a", "b", "u1", "u2", "dev-u1", "north", "+", "", "$SYS"}, extra...)
	return rapid.Custom(func(t *rapid.T) string {
		out := rapid.SliceOfN(rapid.SampledFrom(levels), 1, 3).Draw(t, "levels")
		if rapid.Bool().Draw(t, "hash") {
			out = append(out, "#")
		}
		return strings.Join(out, "/")
	})
}

// checkPlan holds a plan to what it promises whatever it was made of.
func checkPlan(t testing.TB, p *Plan) {
	t.Helper()
	profiles := map[string]inventory.Profile{}
	for _, pr := range p.Profiles {
		if err := pr.Validate(); err != nil {
			t.Errorf("profile: %v", err)
		}
		profiles[pr.Name] = pr
	}
	seen := map[string]bool{}
	for i := range p.Devices {
		d := &p.Devices[i]
		if len(d.Problems) > 0 {
			continue
		}
		rec := d.record()
		rec.Kind, rec.State = inventory.Equipment, inventory.Registered
		if err := rec.Validate(); err != nil {
			t.Errorf("device %q: %v", d.Name, err)
		}
		if seen[d.ID.Canonical()] {
			t.Errorf("id %s twice", d.ID)
		}
		seen[d.ID.Canonical()] = true
		if pr, ok := profiles[d.Profile]; ok {
			if _, err := enroll.RightsOf(pr, rec); err != nil {
				t.Errorf("device %q: %v", d.Name, err)
			}
		}
	}
}

// grantsOf are the filters that a plan gives a device.
func grantsOf(t testing.TB, p *Plan, name string) []topic.Grant {
	t.Helper()
	i := slices.IndexFunc(p.Devices, func(d Device) bool { return d.Name == name })
	if i < 0 || len(p.Devices[i].Problems) > 0 {
		return nil
	}
	d := &p.Devices[i]
	j := slices.IndexFunc(p.Profiles, func(pr inventory.Profile) bool { return pr.Name == d.Profile })
	if j < 0 {
		t.Fatalf("device %s has no profile of the plan: %q", name, d.Profile)
	}
	grants, err := p.Profiles[j].Policy.Resolve(enroll.Subject(d.record()))
	if err != nil {
		t.Fatal(err)
	}
	return grants
}

// An aclLine is one line of an access list of Mosquitto.
type aclLine struct {
	user   string // "" is a pattern
	access string
	filter string
}

func (l aclLine) may(a topic.Action) bool {
	return l.access == "readwrite" || l.access == "" || l.access == "write" && a == topic.Publish || l.access == "read" && a == topic.Receive
}

// evaluate is mosquitto.conf(5): own lines, the denials among them first; then
// patterns, the denials among them first; else no.
func evaluate(list []aclLine, v21 bool, user string, a topic.Action, name string) bool {
	fill := func(f string) string {
		if !v21 {
			return strings.ReplaceAll(strings.ReplaceAll(f, "%c", user), "%u", user)
		}
		levels := strings.Split(f, "/")
		for i, l := range levels {
			if l == "%u" || l == "%c" {
				levels[i] = user
			}
		}
		return strings.Join(levels, "/")
	}
	for _, who := range []string{user, ""} {
		for _, deny := range []bool{true, false} {
			for _, l := range list {
				f := l.filter
				if who == "" {
					f = fill(f)
				}
				if l.user == who && (l.access == "deny") == deny && (deny || l.may(a)) && matches(f, name) {
					return !deny
				}
			}
		}
	}
	return false
}

func renderACL(list []aclLine) string {
	var b strings.Builder
	for _, l := range list {
		if l.user == "" {
			fmt.Fprintf(&b, "pattern %s %s\n", l.access, l.filter)
			continue
		}
		fmt.Fprintf(&b, "user %s\ntopic %s %s\n", l.user, l.access, l.filter)
	}
	return b.String()
}

func TestMosquittoNeverWider(t *testing.T) {
	universe := topics()
	rapid.Check(t, func(rt *rapid.T) {
		list := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) aclLine {
			l := aclLine{user: rapid.SampledFrom([]string{"u1", "u2", ""}).Draw(rt, "user"), access: rapid.SampledFrom([]string{"read", "write", "readwrite", "deny"}).Draw(rt, "access")}
			if l.user == "" {
				l.filter = filterGen("%u", "%c", "dev-%u", "%u").Draw(rt, "filter")
			} else {
				l.filter = filterGen().Draw(rt, "filter")
			}
			return l
		}), 1, 8).Draw(rt, "list")
		p, err := Read(t.Context(), fstest.MapFS{"acl": {Data: []byte(renderACL(list))}, "passwd": {Data: []byte("u1:$6$x\nu2:$6$x\n")}}, Mosquitto, Options{AcceptShared: true})
		if err != nil {
			rt.Fatal(err)
		}
		checkPlan(t, p)
		for _, user := range []string{"u1", "u2"} {
			for _, g := range grantsOf(t, p, user) {
				for _, name := range universe {
					if !matches(string(g.Filter), name) {
						continue
					}
					for _, v21 := range []bool{false, true} {
						if !evaluate(list, v21, user, g.Action, name) {
							rt.Fatalf("%s may %s %q by %q, which Mosquitto (2.1: %v) refuses:\n%s", user, g.Action, name, g.Filter, v21, renderACL(list))
						}
					}
				}
			}
		}
	})
}

// What can be said exactly is not lost either.
func TestMosquittoExact(t *testing.T) {
	list := []aclLine{{"u1", "write", "a/u1/up"}, {"u2", "write", "a/u2/up"}, {"u1", "read", "a/u1/down/#"}, {"u2", "read", "a/u2/down/#"}, {"", "read", "b/%u"}, {"u1", "deny", "$SYS/#"}}
	p, err := Read(t.Context(), fstest.MapFS{"acl": {Data: []byte(renderACL(list))}}, "", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Profiles) != 1 {
		t.Fatalf("%d profiles, want one for both devices: %+v", len(p.Profiles), p.Profiles)
	}
	want := []topic.Rule{{Action: topic.Publish, Filter: "a/{id}/up"}, {Action: topic.Receive, Filter: "a/{id}/down/#"}, {Action: topic.Receive, Filter: "b/{id}"}}
	if got := p.Profiles[0].Policy.Rules; !slices.Equal(got, want) {
		t.Errorf("rules = %v, want %v", got, want)
	}
}

// dynsecEvaluator decides as the plugin does, a deny first where the order of two
// rules is not defined.
type dynsecEvaluator struct {
	Default map[string]bool
	Roles   map[string][]dynsecLine
	Clients map[string][]refLine // roles of a client
	Group   []refLine            // roles of the group north, in which all are
}

type dynsecLine struct {
	Type     string `json:"acltype"`
	Topic    string `json:"topic"`
	Priority int    `json:"priority"`
	Allow    bool   `json:"allow"`
}

type refLine struct {
	Name     string `json:"rolename"`
	Priority int    `json:"priority"`
}

// first finds what the rules of some kind say: 1 yes, -1 no, 0 nothing.
func (e *dynsecEvaluator) first(client string, hit func(dynsecLine) bool) int {
	for _, refs := range [][]refLine{e.Clients[client], e.Group} {
		type ranked struct {
			role int
			l    dynsecLine
		}
		var lines []ranked
		for _, r := range refs {
			for _, l := range e.Roles[r.Name] {
				if l.Type == "subscribeLiteral" && !l.Allow {
					l.Priority = 100 // a role's literals are looked up before its patterns
				}
				lines = append(lines, ranked{r.Priority, l})
			}
		}
		slices.SortStableFunc(lines, func(x, y ranked) int {
			if x.role != y.role {
				return y.role - x.role
			}
			if x.l.Priority != y.l.Priority {
				return y.l.Priority - x.l.Priority
			}
			switch {
			case x.l.Allow == y.l.Allow:
				return 0
			case y.l.Allow:
				return -1
			}
			return 1
		})
		for _, l := range lines {
			if !hit(l.l) {
				continue
			}
			if l.l.Allow {
				return 1
			}
			return -1
		}
	}
	return 0
}

func (e *dynsecEvaluator) publish(client, name string) bool {
	v := e.first(client, func(l dynsecLine) bool {
		return l.Type == "publishClientSend" && matches(fillLevel(l.Topic, client), name)
	})
	return v > 0 || v == 0 && e.Default["publishClientSend"]
}

// receive is to be sent a topic over some subscription.
func (e *dynsecEvaluator) receive(client, name string) bool {
	v := e.first(client, func(l dynsecLine) bool {
		return l.Type == "publishClientReceive" && matches(fillLevel(l.Topic, client), name)
	})
	if v < 0 || v == 0 && !e.Default["publishClientReceive"] {
		return false
	}
	subscriptions := []string{name}
	for _, lines := range e.Roles {
		for _, l := range lines {
			subscriptions = append(subscriptions, fillLevel(l.Topic, client))
		}
	}
	for _, s := range subscriptions {
		if !matches(s, name) {
			continue
		}
		v := e.first(client, func(l dynsecLine) bool {
			return l.Type == "subscribeLiteral" && l.Topic == s || l.Type == "subscribePattern" && coversLevels(strings.Split(fillLevel(l.Topic, client), "/"), strings.Split(s, "/"))
		})
		if v > 0 || v == 0 && e.Default["subscribe"] {
			return true
		}
	}
	return false
}

func fillLevel(filter, name string) string {
	levels := strings.Split(filter, "/")
	for i, l := range levels {
		if l == "%u" || l == "%c" {
			levels[i] = name
		}
	}
	return strings.Join(levels, "/")
}

func coversLevels(outer, inner []string) bool {
	switch {
	case len(outer) > 0 && outer[0] == "#":
		return len(inner) == 0 || !strings.HasPrefix(inner[0], "$")
	case len(inner) == 0 || len(outer) == 0:
		return len(outer) == len(inner)
	case inner[0] == "#" || outer[0] != "+" && outer[0] != inner[0]:
		return false
	}
	return coversLevels(outer[1:], inner[1:])
}

func (e *dynsecEvaluator) file(t testing.TB) []byte {
	t.Helper()
	type object = map[string]any
	clients, members, roles := []object{}, []object{}, []object{}
	for _, c := range []string{"u1", "u2"} {
		clients = append(clients, object{"username": c, "roles": e.Clients[c]})
		members = append(members, object{"username": c})
	}
	for _, name := range []string{"r1", "r2", "r3"} {
		roles = append(roles, object{"rolename": name, "acls": e.Roles[name]})
	}
	b, err := json.Marshal(object{
		"defaultACLAccess": e.Default, "changeIndex": 1, "clients": clients, "roles": roles,
		"groups": []object{{"groupname": "north", "roles": e.Group, "clients": members}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDynsecNeverWider(t *testing.T) {
	universe := topics()
	rapid.Check(t, func(rt *rapid.T) {
		line := rapid.Custom(func(rt *rapid.T) dynsecLine {
			return dynsecLine{
				rapid.SampledFrom([]string{"publishClientSend", "publishClientReceive", "subscribeLiteral", "subscribePattern"}).Draw(rt, "type"),
				filterGen("%u", "%u").Draw(rt, "topic"), rapid.IntRange(-1, 1).Draw(rt, "priority"), rapid.IntRange(0, 3).Draw(rt, "allow") > 0,
			}
		})
		refs := rapid.SliceOfNDistinct(rapid.Custom(func(rt *rapid.T) refLine {
			return refLine{rapid.SampledFrom([]string{"r1", "r2", "r3"}).Draw(rt, "role"), rapid.IntRange(0, 1).Draw(rt, "priority")}
		}), 0, 3, func(r refLine) string { return r.Name })
		e := &dynsecEvaluator{Default: map[string]bool{"publishClientReceive": rapid.Bool().Draw(rt, "default")}, Roles: map[string][]dynsecLine{}, Clients: map[string][]refLine{}}
		for _, r := range []string{"r1", "r2", "r3"} {
			e.Roles[r] = rapid.SliceOfN(line, 0, 4).Draw(rt, r)
		}
		for _, c := range []string{"u1", "u2"} {
			e.Clients[c] = refs.Draw(rt, c)
		}
		e.Group = refs.Draw(rt, "group")
		p, err := Read(t.Context(), fstest.MapFS{"d.json": {Data: e.file(t)}}, Dynsec, Options{AcceptShared: true})
		if err != nil {
			rt.Fatal(err)
		}
		checkPlan(t, p)
		for _, user := range []string{"u1", "u2"} {
			for _, g := range grantsOf(t, p, user) {
				for _, name := range universe {
					if !matches(string(g.Filter), name) {
						continue
					}
					if g.Action == topic.Publish && !e.publish(user, name) || g.Action == topic.Receive && !e.receive(user, name) {
						rt.Fatalf("%s may %s %q by %q, which the plugin refuses:\n%s", user, g.Action, name, g.Filter, e.file(t))
					}
				}
			}
		}
	})
}

// checkExpression holds filters made of an expression to the expression.
func checkExpression(t testing.TB, text string) {
	t.Helper()
	re, err := regexp.Compile(strings.NewReplacer("{username}", "u1", "{client_id}", "u1").Replace(text))
	if err != nil {
		return
	}
	key := strings.NewReplacer("/", ".", "+", "*")
	for _, a := range []topic.Action{topic.Publish, topic.Receive} {
		filters, _ := rabbitExpression(text, "u1", a)
		for _, f := range filters {
			if _, err := topic.ParseFilter(f); err != nil {
				continue
			}
			if a == topic.Receive {
				if !re.MatchString(key.Replace(f)) {
					t.Errorf("%q gives the subscription %q, which RabbitMQ refuses", text, f)
				}
				continue
			}
			for _, name := range topics() {
				if matches(f, name) && !re.MatchString(key.Replace(name)) {
					t.Errorf("%q gives %q, which allows %q: RabbitMQ does not", text, f, name)
					return
				}
			}
		}
	}
}

func TestRabbitExpressionNeverWider(t *testing.T) {
	pieces := []string{`a`, `b`, `u1`, `\.`, `\.`, `.`, `.*`, `[^.]*`, `[^.]+`, `(\..*)?`, `\..*`, `{username}`, `{client_id}`, `|`, `(`, `)`, `(?:`, `^`, `$`, `\*`, `#`, `\#`, `/`, `\/`, `+`, `?`, `\+`, `\d`, `[a|b]`, `.+`}
	rapid.Check(t, func(rt *rapid.T) {
		body := strings.Join(rapid.SliceOfN(rapid.SampledFrom(pieces), 0, 8).Draw(rt, "pieces"), "")
		checkExpression(t, "^"+body+"$")
		checkExpression(t, body)
		if t.Failed() {
			rt.FailNow()
		}
	})
}

func TestPlainMatch(t *testing.T) {
	pieces := []string{`a`, `b`, `\.`, `[01]`, `|`, `(`, `)`, `(?:`, `0`, `1`, `\\`, `.`, `-`, `\-`, `$`, `^`}
	seen := 0
	rapid.Check(t, func(rt *rapid.T) {
		text := "^" + strings.Join(rapid.SliceOfN(rapid.SampledFrom(pieces), 0, 6).Draw(rt, "pieces"), "") + "$"
		re, err := regexp.Compile(text)
		if err != nil {
			return
		}
		resource := rapid.StringMatching(`[ab01.\\-]{0,4}`).Draw(rt, "resource")
		got, ok := plainMatch(text, resource)
		if ok {
			seen++
		}
		if ok && got != re.MatchString(resource) {
			rt.Fatalf("%q and %q: %v", text, resource, got)
		}
	})
	if seen == 0 {
		t.Error("no expression was plain")
	}
	if got, ok := plainMatch(`^(amq\.topic|mqtt-subscription-dev1qos[01])$`, "mqtt-subscription-dev1qos1"); !got || !ok {
		t.Errorf("plainMatch = %v, %v", got, ok)
	}
}

func TestRabbitExpression(t *testing.T) {
	for _, tt := range []struct {
		text string
		want []string
	}{
		{`^fleet\.u1\.up(\..*)?$`, []string{"fleet/u1/up/#"}},
		{`^fleet\.{username}\.up$`, []string{"fleet/u1/up"}},
		{`^fleet.u1.up$`, []string{"fleet/u1/up"}},
		{`^fleet\.u1\..*$`, []string{"fleet/u1/+/#"}},
		{`^(a\.b|c\.[^.]*\.d)$`, []string{"a/b", "c/+/d"}},
		{`^(?:a|b)$`, []string{"a", "b"}},
		{`^a$|^b$`, []string{"a", "b"}},
		{`^a|b$`, nil},
		{`fleet\.u1`, nil},
		{`^(a)|(b)$`, nil},
		{`^fleet\.u[0-9]+$`, nil},
		{`^fleet\.u1-[^.]*$`, nil},
		{`^$`, nil},
		{``, nil},
		{`.*`, []string{"#"}},
	} {
		got, _ := rabbitExpression(tt.text, "u1", topic.Publish)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%q = %q, want %q", tt.text, got, tt.want)
		}
	}
}
