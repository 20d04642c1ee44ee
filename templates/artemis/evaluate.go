package artemis

import (
	"encoding/xml"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/templates/proof"
)

// An evaluator decides like HierarchicalObjectRepository and SecurityStoreImpl of
// Artemis. It shares no code with what writes the files.
type evaluator struct {
	exact map[string]roles
	wild  []wildMatch // the most specific first
	of    map[string]map[string]bool
}

// roles are those that a setting names, by permission.
type roles map[string][]string

type wildMatch struct {
	text    string
	pattern *regexp.Regexp
	roles   roles
}

func newEvaluator(src fs.FS) (proof.Evaluator, error) {
	text, err := fs.ReadFile(src, BrokerName)
	if err != nil {
		return nil, err
	}
	var doc struct {
		Core struct {
			Settings []struct {
				Match       string `xml:"match,attr"`
				Permissions []struct {
					Type  string `xml:"type,attr"`
					Roles string `xml:"roles,attr"`
				} `xml:"permission"`
			} `xml:"security-settings>security-setting"`
		} `xml:"core"`
	}
	if err := xml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("reading %s: %w", BrokerName, err)
	}
	e := &evaluator{exact: map[string]roles{}, of: map[string]map[string]bool{}}
	for _, s := range doc.Core.Settings {
		r := roles{}
		for _, p := range s.Permissions {
			for name := range strings.SplitSeq(p.Roles, ",") {
				r[p.Type] = append(r[p.Type], strings.TrimSpace(name))
			}
		}
		if !strings.ContainsAny(s.Match, "+#") {
			e.exact[s.Match] = r
			continue
		}
		pattern, err := javaPattern(s.Match)
		if err != nil {
			return nil, err
		}
		e.wild = append(e.wild, wildMatch{s.Match, pattern, r})
	}
	slices.SortStableFunc(e.wild, func(a, b wildMatch) int { return specific(a.text, b.text) })
	members, err := fs.ReadFile(src, RolesName)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(members)) {
		role, names, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if strings.HasPrefix(line, "#") || !ok {
			continue
		}
		for name := range strings.SplitSeq(names, ",") {
			if e.of[name] == nil {
				e.of[name] = map[string]bool{}
			}
			e.of[name][role] = true
		}
	}
	return e, nil
}

// javaPattern is Match.createPattern for the wildcards of MQTT.
func javaPattern(match string) (*regexp.Regexp, error) {
	if match == "#" {
		return regexp.Compile(`^.*$`)
	}
	p := strings.ReplaceAll(match, "/#", "#")
	p = strings.ReplaceAll(p, ".", `\.`)
	p = strings.ReplaceAll(p, "$", `\$`)
	p = strings.ReplaceAll(p, "+", "[^/]+")
	p = strings.ReplaceAll(p, "#", "(/.+)*")
	return regexp.Compile("^" + p + "$")
}

// specific is MatchComparator.
func specific(a, b string) int {
	anyA, anyB := strings.Contains(a, "#"), strings.Contains(b, "#")
	switch {
	case anyA != anyB:
		return sign(anyA)
	case anyA:
		return len(b) - len(a)
	}
	one, two := strings.Split(a, "/"), strings.Split(b, "/")
	for i := range one {
		if i >= len(two) {
			return -1
		}
		if x, y := one[i] == "+", two[i] == "+"; x != y {
			return sign(x)
		}
	}
	return len(a) - len(b)
}

func sign(later bool) int {
	if later {
		return 1
	}
	return -1
}

// Answer implements [proof.Evaluator].
func (e *evaluator) Answer(q proof.Question) (proof.Answer, error) {
	var need []string
	address := q.Topic
	switch q.Verb {
	case proof.Publish, proof.Will, proof.Retain:
		need = []string{"createAddress", "send"}
	case proof.Receive, proof.Subscribe:
		need = []string{"createAddress", "createNonDurableQueue", "consume"}
		if rest, ok := strings.CutPrefix(address, "$share/"); ok {
			_, address, _ = strings.Cut(rest, "/")
		}
	default:
		return proof.Unknown, nil
	}
	address, _, _ = strings.Cut(address, "::")
	granted := e.match(address)
	for _, kind := range need {
		if !slices.ContainsFunc(granted[kind], func(role string) bool { return e.of[q.Device][role] }) {
			return proof.Denied, nil
		}
	}
	return proof.Allowed, nil
}

// match is the most specific setting of an address.
func (e *evaluator) match(address string) roles {
	if r, ok := e.exact[address]; ok {
		return r
	}
	for _, w := range e.wild {
		if w.pattern.MatchString(address) {
			return w.roles
		}
	}
	return nil
}
