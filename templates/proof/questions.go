package proof

import (
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory/topic"
)

// Questions returns the questions about devices, in the order of devices, verbs and
// topics. They are about every device's topics, also those of the others.
func Questions(devices []Device) []Question {
	names, filters := Topics(devices), Filters(devices)
	var out []Question
	for i := range devices {
		d := &devices[i]
		ask := func(v Verb, text string, want bool) {
			out = append(out, Question{Device: d.ID(), Verb: v, Topic: text, Want: want})
		}
		for n, name := range names {
			publish := d.Policy.Decide(d.Subject, topic.Publish, topic.Name(name)).Allowed
			ask(Publish, name, publish)
			ask(Receive, name, d.Policy.Decide(d.Subject, topic.Receive, topic.Name(name)).Allowed)
			if n%16 == 0 || publish && n%4 == 0 { // they cost a connection each
				ask(Will, name, publish)
				ask(Retain, name, publish)
			}
		}
		for _, f := range filters {
			ask(Subscribe, f, d.Policy.DecideSubscribe(d.Subject, topic.Filter(f)).Allowed)
		}
	}
	slices.SortStableFunc(out, func(a, b Question) int {
		if a.Device != b.Device {
			return 0
		}
		return int(a.Verb) - int(b.Verb)
	})
	return out
}

// Topics returns topic names near the rights of the devices, sorted: in them, one
// level more, one less, another device's, another case, empty levels, names that
// look like placeholders of some broker.
func Topics(devices []Device) []string {
	names := map[string]bool{"x": true, "fleet": true, "fleet/%u/down": true, "fleet/%c/down": true, "fleet/${username}/down": true, "/": true, "news/all": true, "news": true}
	for i := range devices {
		for _, g := range grants(&devices[i]) {
			for _, n := range inside(string(g.Filter)) {
				for _, m := range near(n, devices[i].ID()) {
					if _, err := topic.ParseName(m); err == nil {
						names[m] = true
					}
				}
			}
		}
	}
	out := make([]string, 0, len(names))
	for n := range names {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func grants(d *Device) []topic.Grant {
	g, err := d.Policy.Resolve(d.Subject)
	if err != nil {
		return nil // it may do nothing, and is asked about the others' topics
	}
	return g
}

// inside returns topics that a filter matches, and its own text as far as that is
// one.
func inside(filter string) []string {
	var out []string
	for _, p := range []string{strings.ReplaceAll(filter, "+", "x"), strings.ReplaceAll(filter, "+", "")} {
		if rest, ok := strings.CutSuffix(p, "#"); ok {
			out = append(out, strings.TrimSuffix(rest, "/"), rest, rest+"a", rest+"a/b")
		} else {
			out = append(out, p)
		}
	}
	return out
}

// near returns n and topics beside it.
func near(n, id string) []string {
	out := []string{n, n + "/", n + "/x", n + "x", "/" + n, strings.ReplaceAll(n, "/", "//"), strings.ToUpper(n),
		strings.ReplaceAll(n, id, ""), strings.ReplaceAll(n, id, "%u"), strings.ReplaceAll(n, id, id+"x"), strings.ReplaceAll(n, id, "x/"+id),
		strings.ReplaceAll(n, id, strings.ToLower(id)), strings.ReplaceAll(n, id, id+"/../dev-1"), strings.ReplaceAll(n, "/", ".")}
	if i := strings.LastIndexByte(n, '/'); i > 0 {
		out = append(out, n[:i], n[:i]+"/other")
	}
	return out
}

// Filters returns subscriptions: the rights of the devices, and what asks for more
// than one of them.
func Filters(devices []Device) []string {
	filters := map[string]bool{}
	for _, f := range []string{"#", "+/#", "+", "+/+", "+/+/+", "$SYS/#", "fleet/#", "fleet/+/down", "fleet/+/+", "news/#", "news/all", "news/+"} {
		filters[f] = true
	}
	for i := range devices {
		for _, g := range grants(&devices[i]) {
			f := string(g.Filter)
			parent := f[:strings.LastIndexByte(f, '/')+1]
			wide := []string{f, strings.ReplaceAll(f, devices[i].ID(), "+"), strings.TrimSuffix(f, "/#"), strings.ReplaceAll(f, "+", "x"), strings.TrimSuffix(f, "#") + "a", f + "x"}
			if parent != "" {
				wide = append(wide, parent+"#", parent+"+", parent+"+/x")
			}
			for _, w := range wide {
				if _, err := topic.ParseFilter(w); err == nil {
					filters[w] = true
				}
			}
		}
	}
	out := make([]string, 0, len(filters))
	for f := range filters {
		out = append(out, f)
	}
	slices.Sort(out)
	return out
}
