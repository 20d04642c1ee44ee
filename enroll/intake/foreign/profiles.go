package foreign

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

const (
	placeholderID    = "{id}"
	placeholderGroup = "{group}"

	// maxProfiles is how many profiles are made of a source. A fleet has a few;
	// more means that the rules do not repeat.
	maxProfiles = 256
	maxRules    = 64 // of a policy, as package topic has it

	// maxCompared is how many rules of one user are compared with one another.
	maxCompared = 4096
)

// A ruleSet is what some devices have in common.
type ruleSet struct {
	key     string
	rules   []topic.Rule
	devices []int
}

// A verdict is what becomes of one rule.
type verdict struct {
	drop   bool
	foul   bool // the rule reaches beyond the device
	reason string
}

// reconstruct makes profiles of the rights of all users, and gives devices theirs.
func (b *builder) reconstruct(devices []Device) []inventory.Profile {
	sets := map[string]*ruleSet{}
	verdicts := map[topic.Rule]verdict{}
	for i, u := range b.order {
		if !u.ruled {
			continue
		}
		rules := b.rulesOf(u, verdicts) // also of who is not taken over: a wildcard is dangerous now
		u.grants = nil
		if len(u.problems) > 0 || devices[i].ID == "" {
			continue
		}
		if len(rules) > maxRules {
			u.problem("has %d rules, a profile at most %d", len(rules), maxRules)
			b.find(Error, "too-many-rules", u.name, u.at, "has %d rules, a profile has at most %d", len(rules), maxRules)
			continue
		}
		key := setKey(rules)
		s, ok := sets[key]
		if !ok {
			s = &ruleSet{key: key, rules: rules}
			sets[key] = s
		}
		s.devices = append(s.devices, i)
	}
	return b.profilesOf(sets, verdicts, devices)
}

func setKey(rules []topic.Rule) string {
	var k strings.Builder
	for _, r := range rules {
		k.WriteByte('0' + byte(r.Action))
		k.WriteString(r.Filter)
		k.WriteByte('\n') // no filter has one
	}
	return k.String()
}

func (b *builder) profilesOf(sets map[string]*ruleSet, verdicts map[topic.Rule]verdict, devices []Device) []inventory.Profile {
	ordered := make([]*ruleSet, 0, len(sets))
	for _, s := range sets {
		ordered = append(ordered, s)
	}
	slices.SortFunc(ordered, func(x, y *ruleSet) int {
		return cmp.Or(cmp.Compare(len(y.devices), len(x.devices)), strings.Compare(x.key, y.key))
	})
	var profiles []inventory.Profile
	for n, s := range ordered {
		if n == maxProfiles {
			b.find(Error, "too-many-profiles", "", place{}, "the source has %d different sets of rules; profiles are made of the %d most common ones", len(ordered), maxProfiles)
		}
		if n >= maxProfiles {
			for _, i := range s.devices {
				b.order[i].problem("no other devices have rules like its own: name a profile")
			}
			continue
		}
		p := inventory.Profile{Name: fmt.Sprintf("%s-%d", b.o.Prefix, n+1), Policy: topic.Policy{Rules: s.rules}}
		b.judge(&p, len(s.devices), verdicts)
		profiles = append(profiles, p)
		for _, i := range s.devices {
			devices[i].Profile = p.Name
		}
	}
	return profiles
}

// judge says what is wrong with a profile, and declares its rules shared if that was
// accepted.
func (b *builder) judge(p *inventory.Profile, devices int, verdicts map[topic.Rule]verdict) {
	if len(p.Policy.Rules) == 0 {
		b.find(Warning, "no-rights", p.Name, place{}, "allows nothing, to %s", count(devices, "device"))
	}
	for i := range p.Policy.Rules {
		r := &p.Policy.Rules[i]
		v := verdicts[*r]
		if !v.foul {
			continue
		}
		if b.o.AcceptShared {
			r.Shared = true
			b.find(Warning, "shared", p.Name, place{}, "%s of %s is declared shared: %s", r, count(devices, "device"), v.reason)
			continue
		}
		b.find(Error, "dangerous", p.Name, place{}, "%s of %s: %s", r, count(devices, "device"), v.reason)
	}
	for _, f := range p.Policy.Lint() {
		if f.Severity == topic.Warning {
			b.find(Warning, "rule-"+f.Code, p.Name, place{}, "%s: %s", p.Policy.Rules[f.Rule-1], f.Text)
		}
	}
}

// rulesOf makes rules of the grants of a user: sorted, without what another one
// covers, and without what no policy may have.
func (b *builder) rulesOf(u *user, verdicts map[topic.Rule]verdict) []topic.Rule {
	rules := make([]topic.Rule, 0, len(u.grants))
	for _, g := range u.grants {
		filter, ok := b.template(u, g)
		if !ok {
			continue
		}
		r := topic.Rule{Action: g.Action, Filter: filter}
		v, known := verdicts[r]
		if !known {
			v = judgeRule(r)
			verdicts[r] = v
		}
		if v.drop {
			b.find(Error, "dangerous", u.name, u.at, "may %s: %s; the right is left out", r, v.reason)
			continue
		}
		rules = append(rules, r)
	}
	slices.SortFunc(rules, func(x, y topic.Rule) int {
		return cmp.Or(cmp.Compare(x.Action, y.Action), strings.Compare(x.Filter, y.Filter))
	})
	rules = slices.Compact(rules)
	if len(rules) > maxCompared {
		return rules // too many for a profile, whatever covers what
	}
	kept := make([]topic.Rule, 0, len(rules))
	for i, r := range rules {
		covered := false
		for j, other := range rules {
			covered = covered || i != j && other.Action == r.Action && topic.Filter(other.Filter).Covers(topic.Filter(r.Filter))
		}
		if !covered {
			kept = append(kept, r)
		}
	}
	return kept
}

// template puts {id} and {group} in the place of the user's own names.
func (b *builder) template(u *user, g topic.Grant) (string, bool) {
	text := string(g.Filter)
	if hasBraces(text) || strings.Contains(text, "%") {
		b.find(Warning, "rule-dropped", u.name, u.at, "%s %.128q: braces and %% stand for something in policies and in brokers; the right is left out", g.Action, text)
		return "", false
	}
	levels := strings.Split(text, "/")
	for i, level := range levels {
		switch {
		case level == u.name:
			levels[i] = placeholderID
		case u.group != "" && level == u.group:
			levels[i] = placeholderGroup
		case isPart(level, u.name):
			b.find(Warning, "partial", u.name, u.at, "%s %.128q: its name is only a part of a level, which brokers fill in differently or not at all; the right is left out", g.Action, text)
			return "", false
		}
	}
	return strings.Join(levels, "/"), true
}

// judgeRule asks the lint of policies about one rule.
func judgeRule(r topic.Rule) verdict {
	for _, f := range (topic.Policy{Rules: []topic.Rule{r}}).Lint() {
		if f.Severity != topic.Error {
			continue
		}
		switch f.Code {
		case "foreign", "foreign-wildcard":
			return verdict{foul: true, reason: f.Text}
		}
		return verdict{drop: true, reason: f.Text}
	}
	return verdict{}
}
