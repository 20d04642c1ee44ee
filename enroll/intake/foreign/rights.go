package foreign

import (
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory/topic"
)

// A sourceRule is a line of an access list that allows or denies.
type sourceRule struct {
	at     place
	allow  []topic.Action // none: the rule denies, both ways
	filter string
}

// allows parses the rule. What is no filter of ours allows nothing, and a finding
// says so.
func (b *builder) allows(r *sourceRule, whose string) []topic.Grant {
	f, err := topic.ParseFilter(r.filter)
	if err != nil {
		b.find(Warning, "rule-dropped", whose, r.at, "%s: the rule is left out", err)
		return nil
	}
	grants := make([]topic.Grant, len(r.allow))
	for i, a := range r.allow {
		grants[i] = topic.Grant{Action: a, Filter: f}
	}
	return grants
}

// A denial is a set of topics that is taken away again. A policy of ours has no
// deny, so what it touches is not given at all.
type denial struct {
	at     place
	filter topic.Filter
	all    bool // no filter that can be read: everything
	action topic.Action
}

// denyBoth makes a denial of a rule, for both directions.
func denyBoth(r *sourceRule) []denial {
	f, err := topic.ParseFilter(r.filter)
	return []denial{
		{at: r.at, filter: f, all: err != nil, action: topic.Publish},
		{at: r.at, filter: f, all: err != nil, action: topic.Receive},
	}
}

// touches reports whether a denial takes anything from a grant.
func (d *denial) touches(g topic.Grant) bool {
	return d.action == g.Action && (d.all || d.filter.Overlaps(g.Filter))
}

// narrow leaves out the grants that a denial touches: to carry the rest of one is
// not possible without a deny.
func (b *builder) narrow(grants []topic.Grant, denials []denial, whose string) []topic.Grant {
	if len(denials) == 0 {
		return grants
	}
	return slices.DeleteFunc(grants, func(g topic.Grant) bool {
		i := slices.IndexFunc(denials, func(d denial) bool { return d.touches(g) })
		if i >= 0 {
			b.find(Warning, "deny", whose, denials[i].at, "a deny takes a part of %s %.128q away, and policies only allow: that right is left out whole", g.Action, g.Filter)
		}
		return i >= 0
	})
}

// hasBraces reports text that would be taken for a placeholder of ours.
func hasBraces(s string) bool { return strings.ContainsAny(s, "{}") }

// isPart reports whether name is a part of a level, set off from the rest by
// something other than a letter or a digit: dev-1 in "x_dev-1", not in "dev-10".
func isPart(level, name string) bool {
	if name == "" || len(level) <= len(name) {
		return false
	}
	for from := 0; ; {
		i := strings.Index(level[from:], name)
		if i < 0 {
			return false
		}
		i += from
		if (i == 0 || !isWordByte(level[i-1])) && (i+len(name) == len(level) || !isWordByte(level[i+len(name)])) {
			return true
		}
		from = i + 1
	}
}

func isWordByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c >= 0x80
}
