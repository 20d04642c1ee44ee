package mosquitto

import (
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

const idPlaceholder = "{id}"

// A pattern is a rule that holds for every client, with {id} for its name.
type pattern struct {
	rule   topic.Rule
	levels []string // of the filter
}

func newPattern(r topic.Rule) pattern { return pattern{r, strings.Split(r.Filter, "/")} }

// fill is the filter for one device.
func (p *pattern) fill(id inventory.DeviceID) topic.Filter {
	var b strings.Builder
	b.Grow(len(p.rule.Filter) + len(id))
	for i, l := range p.levels {
		if i > 0 {
			b.WriteByte('/')
		}
		if l == idPlaceholder {
			l = string(id)
		}
		b.WriteString(l)
	}
	return topic.Filter(b.String())
}

// gives reports whether filter is the pattern's for id, without allocating.
func (p *pattern) gives(id inventory.DeviceID, filter topic.Filter) bool {
	rest := string(filter)
	for i, l := range p.levels {
		if i > 0 {
			if rest == "" || rest[0] != '/' {
				return false
			}
			rest = rest[1:]
		}
		if l == idPlaceholder {
			l = string(id)
		}
		if !strings.HasPrefix(rest, l) {
			return false
		}
		rest = rest[len(l):]
	}
	return rest == ""
}

// text is the filter as Mosquitto writes it: %u for the user name.
func (p *pattern) text() string {
	levels := slices.Clone(p.levels)
	for i, l := range levels {
		if l == idPlaceholder {
			levels[i] = "%u"
		}
	}
	return strings.Join(levels, "/")
}

// onlyID reports whether a rule has no placeholder but {id}.
func onlyID(r topic.Rule) bool {
	for l := range strings.SplitSeq(r.Filter, "/") {
		if strings.HasPrefix(l, "{") && l != idPlaceholder {
			return false
		}
	}
	return true
}

// common returns the rules that every profile has, in the order of the first,
// and that can be written as patterns: for {id} or declared as shared.
func common(profiles []inventory.Profile) []pattern {
	if len(profiles) == 0 {
		return nil
	}
	var out []pattern
	for _, r := range profiles[0].Policy.Rules {
		if !onlyID(r) || !r.Shared && !slices.Contains(strings.Split(r.Filter, "/"), idPlaceholder) {
			continue
		}
		same := func(o topic.Rule) bool { return o.Action == r.Action && o.Filter == r.Filter }
		everywhere := !slices.ContainsFunc(profiles[1:], func(p inventory.Profile) bool { return !slices.ContainsFunc(p.Policy.Rules, same) })
		if everywhere && !slices.ContainsFunc(out, func(p pattern) bool { return same(p.rule) }) {
			out = append(out, newPattern(r))
		}
	}
	return out
}

// exceptions appends to buf the grants that no pattern gives. The second result
// is false if a pattern gives what is not among the grants: it would be wider
// than the policy.
func exceptions(buf []topic.Grant, patterns []pattern, id inventory.DeviceID, grants []topic.Grant) ([]topic.Grant, bool) {
	for i := range patterns {
		p := &patterns[i]
		if !slices.ContainsFunc(grants, func(g topic.Grant) bool { return g.Action == p.rule.Action && p.gives(id, g.Filter) }) {
			return buf, false
		}
	}
	for _, g := range grants {
		if !slices.ContainsFunc(patterns, func(p pattern) bool { return g.Action == p.rule.Action && p.gives(id, g.Filter) }) {
			buf = append(buf, g)
		}
	}
	return buf, true
}

// An access is what a line of an ACL file or an entry of a role allows on one
// filter.
type access struct {
	publish, receive bool
	filter           string
}

// word is the access in an ACL file.
func (a access) word() string {
	switch {
	case a.publish && a.receive:
		return "readwrite"
	case a.publish:
		return "write"
	}
	return "read"
}

// merge appends to buf one access for each filter of the grants, in the order in
// which the filters come.
func merge(buf []access, grants []topic.Grant) []access {
	for _, g := range grants {
		i := slices.IndexFunc(buf, func(a access) bool { return a.filter == string(g.Filter) })
		if i < 0 {
			i = len(buf)
			buf = append(buf, access{filter: string(g.Filter)})
		}
		if g.Action == topic.Publish {
			buf[i].publish = true
		} else {
			buf[i].receive = true
		}
	}
	return buf
}

// mergePatterns is merge for patterns: the filters are those of the file.
func mergePatterns(patterns []pattern) []access {
	grants := make([]topic.Grant, len(patterns))
	for i := range patterns {
		grants[i] = topic.Grant{Action: patterns[i].rule.Action, Filter: topic.Filter(patterns[i].text())}
	}
	return merge(nil, grants)
}
