package topic

import (
	"errors"
	"fmt"
	"strings"
)

// An Action is what a device does with a message. The values are stored: do not
// reorder.
type Action uint8

// The actions.
const (
	Publish Action = iota + 1 // send
	Receive                   // subscribe to, and be sent
)

// String is "publish" or "receive".
func (a Action) String() string {
	switch a {
	case Publish:
		return "publish"
	case Receive:
		return "receive"
	}
	return "unknown"
}

// MarshalText implements [encoding.TextMarshaler].
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (a *Action) UnmarshalText(text []byte) error {
	v, err := ParseAction(string(text))
	*a = v
	return err
}

// ParseAction reads the text form.
func ParseAction(s string) (Action, error) {
	for _, a := range []Action{Publish, Receive} {
		if a.String() == s {
			return a, nil
		}
	}
	return 0, fmt.Errorf("action %.32q: want publish or receive", s)
}

// A Rule allows one action on the topics of a filter. The filter may have
// placeholders, each a whole level: {id}, {group} and {label.NAME}.
type Rule struct {
	Action Action `json:"action" yaml:"action"`
	Filter string `json:"filter" yaml:"filter"`

	// Shared declares that the rule is meant to reach beyond the device's own
	// topics. Without it such a rule is refused.
	Shared bool `json:"shared,omitempty" yaml:"shared,omitempty"`
}

// String is the rule as a person would say it: "publish fleet/{id}/up".
func (r Rule) String() string { return r.Action.String() + " " + r.Filter }

// A Policy is what the devices of a profile may do. What no rule allows is
// denied; the zero value allows nothing.
type Policy struct {
	Rules []Rule `json:"rules" yaml:"rules"`
}

// maxRules bounds a policy: every device carries it resolved.
const maxRules = 64

// A PolicyError reports a rule that is no rule.
type PolicyError struct {
	Rule   int // counted from 1; 0 means the whole policy
	Filter string
	Reason string
}

// Error names the rule.
func (e *PolicyError) Error() string {
	if e.Rule == 0 {
		return "topic policy: " + e.Reason
	}
	return fmt.Sprintf("topic policy: rule %d, %.128q: %s", e.Rule, e.Filter, e.Reason)
}

// The placeholders.
const (
	placeholderID    = "{id}"
	placeholderGroup = "{group}"
	labelPrefix      = "{label."
)

// placeholder reports whether a level is a placeholder, and for a label which.
func placeholder(level string) (label string, ok bool) {
	if level == placeholderID || level == placeholderGroup {
		return "", true
	}
	rest, found := strings.CutPrefix(level, labelPrefix)
	label, closed := strings.CutSuffix(rest, "}")
	if !found || !closed || label == "" {
		return "", false
	}
	for _, c := range []byte(label) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return "", false
		}
	}
	return label, true
}

// Placeholders returns the placeholders of the rule's filter, in order, each as
// often as it is there.
func (r Rule) Placeholders() []string {
	var out []string
	for level := range strings.SplitSeq(r.Filter, "/") {
		if _, ok := placeholder(level); ok {
			out = append(out, level)
		}
	}
	return out
}

// OnlyID reports whether {id} is the only placeholder of the rule, if it has any.
func (r Rule) OnlyID() bool {
	for _, p := range r.Placeholders() {
		if p != placeholderID {
			return false
		}
	}
	return true
}

// OwnsSubtree reports whether the rule stays within topics that no other device
// has: {id} is a level before the first wildcard.
func (r Rule) OwnsSubtree() bool {
	for level := range strings.SplitSeq(r.Filter, "/") {
		switch level {
		case placeholderID:
			return true
		case "+", "#":
			return false
		}
	}
	return false
}

// Validate reports the first rule that is no rule, as a [*PolicyError]. Whether
// the rules are wise is for [Policy.Lint].
func (p Policy) Validate() error {
	if len(p.Rules) > maxRules {
		return &PolicyError{Reason: fmt.Sprintf("%d rules, at most %d are possible", len(p.Rules), maxRules)}
	}
	for i, r := range p.Rules {
		if reason := r.check(); reason != "" {
			return &PolicyError{i + 1, r.Filter, reason}
		}
	}
	return nil
}

func (r Rule) check() string {
	if r.Action != Publish && r.Action != Receive {
		return "the action is neither publish nor receive"
	}
	for level := range strings.SplitSeq(r.Filter, "/") {
		if _, ok := placeholder(level); !ok && strings.ContainsAny(level, "{}") {
			return "a placeholder is a whole level: {id}, {group} or {label.NAME}"
		}
		if strings.ContainsRune(level, '%') {
			return "a % would be a placeholder of some broker"
		}
	}
	if _, err := ParseFilter(r.Filter); err != nil {
		var bad *SyntaxError
		if errors.As(err, &bad) {
			return bad.Reason
		}
		return err.Error()
	}
	return ""
}

// A Subject is a device as a policy sees it: the values of the placeholders.
type Subject struct {
	ID     string
	Group  string
	Labels func(name string) (string, bool) // nil means no labels
}

// A Grant is a rule with the names of one device filled in.
type Grant struct {
	Action Action
	Filter Filter
	Rule   int // index in Policy.Rules
}

// Resolve fills in the names of s. A value that is missing, or that could be
// read as more than one plain level, is an error: a name never widens a rule.
func (p Policy) Resolve(s Subject) ([]Grant, error) {
	grants := make([]Grant, 0, len(p.Rules))
	for i, r := range p.Rules {
		f, reason := r.resolve(s)
		if reason != "" {
			return nil, &PolicyError{i + 1, r.Filter, reason}
		}
		grants = append(grants, Grant{Action: r.Action, Filter: f, Rule: i})
	}
	return grants, nil
}

// resolve returns the filter for s, or the reason why there is none.
func (r Rule) resolve(s Subject) (Filter, string) {
	text := r.Filter
	if r.Action != Publish && r.Action != Receive {
		return "", "the action is neither publish nor receive"
	}
	if strings.IndexByte(text, '{') >= 0 {
		levels := strings.Split(text, "/")
		for i, level := range levels {
			label, ok := placeholder(level)
			if !ok {
				continue
			}
			value := s.value(level, label)
			if reason := checkValue(value); reason != "" {
				return "", "the value of " + level + " " + reason
			}
			levels[i] = value
		}
		text = strings.Join(levels, "/")
	}
	if strings.ContainsAny(text, "{}%") { // no value has any of these
		return "", "what is left in it would be a placeholder of some broker"
	}
	f, err := ParseFilter(text)
	if err != nil {
		return "", err.Error()
	}
	return f, ""
}

func (s Subject) value(level, label string) string {
	switch {
	case level == placeholderID:
		return s.ID
	case level == placeholderGroup:
		return s.Group
	case s.Labels == nil:
		return ""
	}
	v, _ := s.Labels(label)
	return v
}

// checkValue says what is wrong with a value as one plain level. It lets through
// what every broker takes literally.
func checkValue(v string) string {
	switch {
	case v == "":
		return "is missing"
	case v[0] == '$':
		return "begins with $"
	case strings.ContainsAny(v, "+#/{}%*"):
		return "has one of + # / { } % *"
	}
	if reason := checkText(v); reason != "" {
		return "is not possible: " + reason
	}
	return ""
}

// A Decision is the answer of the reference evaluator.
type Decision struct {
	Allowed bool   `json:"allowed"`
	Rule    string `json:"rule"`   // the rule that allows; empty if none does
	Reason  string `json:"reason"` // in words
}

// Decide says whether s may do a with n. A rule that cannot be resolved allows
// nothing, and what is no topic name is not allowed: not a filter either, which
// would go through a rule that ends in + as one more level.
func (p Policy) Decide(s Subject, a Action, n Name) Decision {
	if reason := n.check(); reason != "" {
		return Decision{Reason: "this is no topic name: " + reason}
	}
	for _, r := range p.Rules {
		if r.Action != a {
			continue
		}
		if f, reason := r.resolve(s); reason == "" && f.Match(n) {
			return Decision{true, r.String(), fmt.Sprintf("%s matches %s", n, f)}
		}
	}
	return Decision{Reason: fmt.Sprintf("no rule allows to %s %s", a, n)}
}

// check says why a broker would not take n, or nothing.
func (n Name) check() string {
	if strings.ContainsAny(string(n), "+#") {
		return "it has a wildcard"
	}
	return checkWire(string(n))
}

// DecideSubscribe says whether s may subscribe to f: whether one rule allows to
// receive all that f matches. What is no filter is not allowed, and neither is a
// shared subscription, $share/GROUP/FILTER: the filter in it is what to ask about.
func (p Policy) DecideSubscribe(s Subject, f Filter) Decision {
	reason := checkWire(string(f))
	if reason == "" {
		reason = checkWildcards(string(f))
	}
	if reason != "" {
		return Decision{Reason: "this is no topic filter: " + reason}
	}
	for _, r := range p.Rules {
		if r.Action != Receive {
			continue
		}
		if own, reason := r.resolve(s); reason == "" && own.Covers(f) {
			return Decision{true, r.String(), fmt.Sprintf("%s covers %s", own, f)}
		}
	}
	return Decision{Reason: fmt.Sprintf("no rule allows to receive all of %s", f)}
}

// An Explanation says what each rule had to do with a decision.
type Explanation struct {
	Decision
	Rules []RuleExplanation `json:"rules"`
}

// A RuleExplanation is one rule's part.
type RuleExplanation struct {
	Rule    string `json:"rule"`
	Filter  string `json:"filter,omitempty"` // with the names filled in
	Matches bool   `json:"matches"`
	Reason  string `json:"reason"`
}

// Explain is Decide with the part that each rule had in it.
func (p Policy) Explain(s Subject, a Action, n Name) Explanation {
	e := Explanation{Decision: p.Decide(s, a, n), Rules: []RuleExplanation{}}
	for _, r := range p.Rules {
		x := RuleExplanation{Rule: r.String()}
		f, reason := r.resolve(s)
		x.Filter = string(f)
		switch {
		case reason != "":
			x.Reason = reason
		case r.Action != a:
			x.Reason = "is about the other action"
		case n.check() != "" || !f.Match(n):
			x.Reason = "does not match"
		default:
			x.Matches, x.Reason = true, "matches"
		}
		e.Rules = append(e.Rules, x)
	}
	return e
}
