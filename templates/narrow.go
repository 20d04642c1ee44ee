package templates

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// Narrow returns v without the rules that t cannot express exactly, and these
// rules. What is left allows less than the policy, and never more. If t can
// express all of them, it is v itself.
func Narrow(v View, t Target) (View, []*InexpressibleError, error) {
	n := &narrowed{View: v, without: map[string][]bool{}}
	var dropped []*InexpressibleError
	for p, err := range v.Profiles() {
		if err != nil {
			return nil, nil, err
		}
		for i, r := range p.Policy.Rules {
			err := t.Check(inventory.Profile{Name: p.Name, Policy: topic.Policy{Rules: []topic.Rule{r}}})
			if err == nil {
				continue
			}
			bad, ok := errors.AsType[*InexpressibleError](err)
			if !ok {
				return nil, nil, err
			}
			if n.without[p.Name] == nil {
				n.without[p.Name] = make([]bool, len(p.Policy.Rules))
			}
			n.without[p.Name][i] = true
			bad.Rule = strings.Replace(bad.Rule, "rule 1:", fmt.Sprintf("rule %d:", i+1), 1) // it was asked alone
			dropped = append(dropped, bad)
		}
	}
	if len(dropped) == 0 {
		return v, nil, nil
	}
	return n, dropped, nil
}

// narrowed is a view without some rules.
type narrowed struct {
	View
	without map[string][]bool // by profile and index of the rule
}

// Profiles implements [View].
func (n *narrowed) Profiles() iter.Seq2[inventory.Profile, error] {
	return func(yield func(inventory.Profile, error) bool) {
		for p, err := range n.View.Profiles() {
			if drop := n.without[p.Name]; drop != nil && err == nil {
				var rules []topic.Rule
				for i, r := range p.Policy.Rules {
					if !drop[i] {
						rules = append(rules, r)
					}
				}
				p.Policy.Rules = rules
			}
			if !yield(p, err) || err != nil {
				return
			}
		}
	}
}

// Entries implements [View].
func (n *narrowed) Entries() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for e, err := range n.View.Entries() {
			if drop := n.without[e.Profile]; drop != nil && err == nil {
				e.Grants = slices.DeleteFunc(slices.Clone(e.Grants), func(g topic.Grant) bool { return drop[g.Rule] })
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}
