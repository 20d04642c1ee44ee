package artemis

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// A table is who may do what, by filter: what is written to broker.xml. Let S be the
// filters of all devices, and with any two filters that overlap the one that matches
// what both do. Then of the filters in S that match a topic there is one that all the
// others cover, and that is the most specific one to Artemis. Whoever has a filter
// that covers it may use the topic, and nobody else: these are its roles.
//
// All of it is in memory: about 150 bytes for each filter of each device.
type table struct {
	ids   []inventory.DeviceID
	index map[topic.Filter]int32
	rows  []row

	wild []topic.Filter // those with wildcards, sorted
}

// A row is one filter.
type row struct {
	filter           topic.Filter
	publish, receive []int32 // the devices that have the filter itself
}

func newTable() *table { return &table{index: map[topic.Filter]int32{}} }

func (t *table) row(f topic.Filter) *row {
	i, ok := t.index[f]
	if !ok {
		i = int32(len(t.rows))
		t.index[f] = i
		t.rows = append(t.rows, row{filter: f})
	}
	return &t.rows[i]
}

// add takes a device with its rights.
func (t *table) add(e *templates.Entry) error {
	t.ids = append(t.ids, e.ID)
	for _, g := range e.Grants {
		if err := t.grant(int32(len(t.ids)-1), g); err != nil {
			return err
		}
	}
	return nil
}

// grant gives the n-th device a right. Devices come in their order.
func (t *table) grant(n int32, g topic.Grant) error {
	if err := checkFilter(t.ids[n], g.Filter); err != nil {
		return err
	}
	r := t.row(g.Filter)
	list := &r.publish
	switch g.Action {
	case topic.Publish:
	case topic.Receive:
		list = &r.receive
	default:
		return &templates.EntryError{ID: t.ids[n], Why: "an action that is none"}
	}
	if k := len(*list); k == 0 || (*list)[k-1] != n {
		*list = append(*list, n)
	}
	return nil
}

// complete adds what two filters both match, until there is nothing to add, and sorts
// the rows by filter.
func (t *table) complete() error {
	limit := 2*len(t.rows) + 10_000
	for start := 0; start < len(t.rows); {
		t.sortWild()
		next := len(t.rows)
		// A row that is new may overlap an old one, and an old one a new wildcard.
		for i := range next {
			f := t.rows[i].filter
			for _, w := range t.overlapping(f) {
				if x := intersection(f, w); x != f && x != w {
					t.row(x)
				}
			}
			if len(t.rows) > limit {
				return &templates.InexpressibleError{
					Target: "artemis", Rule: string(f), Why: "too many filters overlap in part, and each overlap has to be a setting of its own", Choices: []string{"fewer wildcards"},
				}
			}
		}
		start = next
	}
	slices.SortFunc(t.rows, func(a, b row) int { return strings.Compare(string(a.filter), string(b.filter)) })
	t.index = nil
	return nil
}

func (t *table) sortWild() {
	t.wild = t.wild[:0]
	for _, r := range t.rows {
		if strings.ContainsAny(string(r.filter), "+#") {
			t.wild = append(t.wild, r.filter)
		}
	}
	slices.Sort(t.wild)
}

// overlapping returns the filters with wildcards, other than f, that match a topic
// that f matches.
func (t *table) overlapping(f topic.Filter) []topic.Filter {
	var out []topic.Filter
	t.search("", string(f), func(w topic.Filter) {
		if w != f {
			out = append(out, w)
		}
	})
	return out
}

// search goes down the levels: in the sorted list, filters that begin alike are
// neighbours. Prefix is what has been matched, rest the levels of the filter that have
// not.
func (t *table) search(prefix, rest string, found func(topic.Filter)) {
	level, more, deeper := strings.Cut(rest, "/")
	if level == "#" { // all that begin so, and the one without another level
		for _, w := range t.with(prefix) {
			found(w)
		}
		t.exactly(strings.TrimSuffix(prefix, "/"), found)
		return
	}
	t.exactly(prefix+"#", found)
	step := func(own string) {
		switch {
		case deeper && more == "#":
			t.exactly(prefix+own, found)
			for _, w := range t.with(prefix + own + "/") {
				found(w)
			}
		case deeper:
			t.search(prefix+own+"/", more, found)
		default:
			t.exactly(prefix+own, found)
			t.exactly(prefix+own+"/#", found)
		}
	}
	if level != "+" {
		step("+")
		step(level)
		return
	}
	// Every name of this level there is.
	for list := t.with(prefix); len(list) > 0; {
		own, _, _ := strings.Cut(string(list[0])[len(prefix):], "/")
		if own != "#" {
			step(own)
		}
		list = list[prefixes(list, prefix+own+"/", prefix+own):]
	}
}

// prefixes returns how many at the start of a sorted list are text or begin with it
// and a slash, at least one. Others may lie between them, which are left for later.
func prefixes(list []topic.Filter, begin, text string) int {
	n := 0
	for n < len(list) && (string(list[n]) == text || strings.HasPrefix(string(list[n]), begin)) {
		n++
	}
	return max(n, 1)
}

// with returns the filters that begin with text.
func (t *table) with(text string) []topic.Filter {
	from, _ := slices.BinarySearch(t.wild, topic.Filter(text))
	to, _ := slices.BinarySearchFunc(t.wild[from:], text, func(f topic.Filter, text string) int {
		if strings.HasPrefix(string(f), text) {
			return -1
		}
		return 1
	})
	return t.wild[from : from+to]
}

func (t *table) exactly(text string, found func(topic.Filter)) {
	if i, ok := slices.BinarySearch(t.wild, topic.Filter(text)); ok {
		found(t.wild[i])
	}
}

// intersection is the filter that matches what two filters that overlap both do.
func intersection(f, g topic.Filter) topic.Filter {
	a, b := strings.Split(string(f), "/"), strings.Split(string(g), "/")
	var out []string
	for i := 0; ; i++ {
		switch {
		case i == len(a) && i == len(b), i == len(a) && b[i] == "#", i == len(b) && a[i] == "#":
			return topic.Filter(strings.Join(out, "/"))
		case i == len(a) || i == len(b): // they do not overlap
			return f
		case a[i] == "#":
			return topic.Filter(strings.Join(append(out, b[i:]...), "/"))
		case b[i] == "#":
			return topic.Filter(strings.Join(append(out, a[i:]...), "/"))
		case a[i] == "+":
			out = append(out, b[i])
		default:
			out = append(out, a[i])
		}
	}
}

// A setting is a row as it is written: the roles of its own devices, and those of wider
// filters.
type setting struct {
	filter                         topic.Filter
	publish, receive               string   // one role; empty: nobody has it
	publishByWider, receiveByWider []string // sorted
}

// settings calls fn for each row. A filter of several devices has a role of its own.
func (t *table) settings(fn func(s *setting) error) error {
	t.sortWild()
	rows := make(map[topic.Filter]*row, len(t.wild))
	for i := range t.rows {
		if r := &t.rows[i]; strings.ContainsAny(string(r.filter), "+#") {
			rows[r.filter] = r
		}
	}
	for i := range t.rows {
		r := &t.rows[i]
		s := setting{filter: r.filter, publish: t.role(r.filter, "p", r.publish), receive: t.role(r.filter, "r", r.receive)}
		for _, w := range t.overlapping(r.filter) {
			if !w.Covers(r.filter) {
				continue
			}
			if err := ordered(r.filter, w); err != nil {
				return err
			}
			wide := rows[w]
			if role := t.role(w, "p", wide.publish); role != "" {
				s.publishByWider = append(s.publishByWider, role)
			}
			if role := t.role(w, "r", wide.receive); role != "" {
				s.receiveByWider = append(s.receiveByWider, role)
			}
		}
		for _, list := range []*[]string{&s.publishByWider, &s.receiveByWider} {
			slices.Sort(*list)
			*list = slices.Compact(*list)
		}
		if err := fn(&s); err != nil {
			return err
		}
	}
	return nil
}

// ordered refuses a filter that Artemis does not take for more specific than one that
// covers it: of two that end in # it takes the longer one.
func ordered(f, wider topic.Filter) error {
	if strings.HasSuffix(string(f), "#") && strings.HasSuffix(string(wider), "#") && len(f) <= len(wider) {
		return &templates.InexpressibleError{
			Target: "artemis", Rule: string(f), Why: fmt.Sprintf("it takes %.128q for as specific, of which it is a part", wider), Choices: []string{"a longer name for its levels"},
		}
	}
	return nil
}

// role is the role of the devices that have a filter: that of the device, if there is
// one, or one of the filter.
func (t *table) role(f topic.Filter, action string, devices []int32) string {
	switch len(devices) {
	case 0:
		return ""
	case 1:
		return string(t.ids[devices[0]])
	}
	sum := sha256.Sum256([]byte(action + string(f)))
	return fmt.Sprintf("@%x", sum[:12])
}
