package topic

import (
	"fmt"
	"strings"
)

// A Severity says how bad a finding is.
type Severity uint8

// The severities.
const (
	Warning Severity = iota + 1 // works, but is probably not meant
	Error                       // refused
)

// String is "warning" or "error".
func (s Severity) String() string {
	if s == Error {
		return "error"
	}
	return "warning"
}

// MarshalText implements [encoding.TextMarshaler].
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Finding is what Lint has to say about a rule.
type Finding struct {
	Rule     int      `json:"rule"` // counted from 1
	Severity Severity `json:"severity"`
	Code     string   `json:"code"` // short and stable
	Text     string   `json:"text"`
}

// String is one line.
func (f Finding) String() string {
	return fmt.Sprintf("rule %d: %s: %s (%s)", f.Rule, f.Severity, f.Text, f.Code)
}

// Lint looks for rules that give a device more than its own topics without
// saying so, that some broker cannot keep, or that change nothing. A finding of
// severity [Error] means that the policy must not be used.
func (p Policy) Lint() []Finding {
	var out []Finding
	for i, r := range p.Rules {
		add := func(s Severity, code, text string) {
			out = append(out, Finding{i + 1, s, code, text})
		}
		if reason := r.check(); reason != "" {
			add(Error, "syntax", reason)
			continue
		}
		r.lint(add)
		for j, other := range p.Rules {
			if j == i || other.Action != r.Action || other.check() != "" {
				continue
			}
			same := other.Filter == r.Filter
			if same && j < i || !same && Filter(other.Filter).Covers(Filter(r.Filter)) {
				add(Warning, "redundant", fmt.Sprintf("rule %d allows this already", j+1))
				break
			}
		}
	}
	return out
}

func (r Rule) lint(add func(Severity, string, string)) {
	first, _, _ := strings.Cut(r.Filter, "/")
	switch {
	case first == "#" || r.Filter == "+" || r.Filter == "+/#":
		add(Error, "everything", "this is every topic there is")
		return
	case strings.HasPrefix(first, "$"):
		add(Error, "system", "topics that begin with $ are the broker's own")
		return
	case first == "+":
		add(Error, "leading-wildcard", "a wildcard in the first level reaches into everything")
		return
	}
	switch {
	case r.OwnsSubtree():
	case !r.Shared && strings.ContainsAny(r.Filter, "+#"):
		add(Error, "foreign-wildcard", "the wildcard reaches other devices' topics: put {id} before it, or declare the rule shared")
	case !r.Shared:
		add(Error, "foreign", "every device may use this topic: put {id} in it, or declare the rule shared")
	}
	if r.Shared && r.OwnsSubtree() {
		add(Warning, "not-shared", "the rule is the device's own: it need not be declared shared")
	}
	if r.Shared && r.Action == Publish && !r.OwnsSubtree() && strings.ContainsAny(r.Filter, "+#") {
		add(Warning, "in-others-names", "whoever has this rule may publish what others are believed to have sent")
	}
	if r.Action == Receive && strings.HasSuffix(r.Filter, "/+") {
		add(Warning, "trailing-plus", "some brokers let a subscription to # through a rule that ends in +: end it in a name, or in #")
	}
	if r.hasDot() {
		add(Warning, "dot", "some brokers take a dot for a level and a * for a wildcard")
	}
	if strings.HasPrefix(r.Filter, "/") || strings.Contains(r.Filter, "//") || strings.HasSuffix(r.Filter, "/") {
		add(Warning, "empty-level", "an empty level is easily overlooked")
	}
}

// hasDot reports whether a level other than a placeholder has a . or a *.
func (r Rule) hasDot() bool {
	for level := range strings.SplitSeq(r.Filter, "/") {
		if _, ok := placeholder(level); !ok && strings.ContainsAny(level, ".*") {
			return true
		}
	}
	return false
}
