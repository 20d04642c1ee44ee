package doctor

import (
	"regexp"
	"strings"
)

// emqxAuthz audits the sources of rules and what becomes of the rest.
func (a *audit) emqxAuthz(root *node, file string) {
	authz := root.get("authorization")
	if m := authz.get("no_match"); m.text() != "deny" {
		at := m.place()
		if at.file == "" {
			at = place{file, authz.place().line}
		}
		a.add(ruleDefaultAllow, at, "authorization.no_match is not deny: the default is allow up to 5.10")
	}
	sources := authz.get("sources")
	if sources == nil {
		a.unknown("the access rules: this file has no authorization.sources, so it is etc/acl.conf as it was shipped, or the dashboard's")
		return
	}
	if len(sources.kids) == 0 && authz.get("no_match").text() != "deny" {
		a.add(ruleNoACL, sources.place(), "authorization.sources is empty")
	}
	for _, s := range sources.each() {
		kind := s.get("type").text()
		if !emqxOn(s) {
			continue
		}
		if kind != "file" {
			a.unknown("what the authorization source %.64q allows", kind)
			continue
		}
		p := s.get("path")
		if p.text() == "" {
			a.unknown("the access rules: a source of type file has no path")
			continue
		}
		if text, name, ok := a.open("the access list", p.text(), p.place(), ruleACLMissing); ok {
			a.emqxACL(name, text)
		}
	}
}

// An erlTerm is a top-level tuple of acl.conf, as the texts of its elements.
type erlTerm struct {
	elements []string
	line     int
}

// erlTerms splits Erlang terms, each ending in a dot, into their elements. It does
// not read them: a rule of EMQX has at most four elements of a few forms.
func erlTerms(text string) []erlTerm {
	var terms []erlTerm
	var cur erlTerm
	var el strings.Builder
	line, depth, quoted := 1, 0, false
	flush := func() {
		if s := strings.TrimSpace(el.String()); s != "" {
			cur.elements = append(cur.elements, s)
		}
		el.Reset()
	}
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c == '\n' {
			line++
		}
		switch {
		case quoted:
			el.WriteByte(c)
			if c == '\\' && i+1 < len(text) {
				i++
				el.WriteByte(text[i])
			} else if c == '"' {
				quoted = false
			}
			continue
		case c == '"':
			quoted = true
		case c == '{' || c == '[':
			if depth++; depth == 1 {
				cur = erlTerm{line: line}
				continue
			}
		case c == '}' || c == ']':
			if depth = max(depth-1, 0); depth == 0 {
				flush()
				continue
			}
		case c == ',' && depth == 1:
			flush()
			continue
		case c == '.' && depth == 0:
			terms = append(terms, cur)
			cur = erlTerm{}
			continue
		}
		if depth > 0 {
			el.WriteByte(c)
		}
	}
	return terms
}

// emqxACL audits acl.conf.
func (a *audit) emqxACL(file string, text []byte) {
	filters := regexp.MustCompile(`"((?:[^"\\]|\\.)*)"`)
	for _, t := range erlTerms(erlangText(text)) {
		at := place{file, t.line}
		if len(t.elements) < 2 || t.elements[0] != "allow" {
			continue
		}
		who := t.elements[1]
		if len(t.elements) == 2 {
			if who == "all" {
				a.add(ruleDefaultAllow, at, "{allow, all}")
			}
			continue
		}
		if who == "{security_profile,legacy}" || adminLike(who) {
			continue
		}
		action := t.elements[2]
		publishes := !strings.Contains(action, "subscribe")
		topics := []string{"#"} // none, or the atom all
		if len(t.elements) > 3 && strings.HasPrefix(t.elements[3], "[") {
			topics = nil
			for _, m := range filters.FindAllStringSubmatch(t.elements[3], -1) {
				topics = append(topics, m[1])
			}
		}
		for _, f := range topics {
			a.hoconTopic(at, who, f, publishes, !strings.Contains(action, "publish"))
		}
	}
}

// hoconTopic audits one filter of a rule that allows.
func (a *audit) hoconTopic(at place, who, filter string, publishes, subscribes bool) {
	switch {
	case everything(filter) && publishes:
		a.add(ruleWildcard, at, "%.128q is allowed to %.128s", filter, who)
	case everything(filter):
		a.add(ruleWildcardRead, at, "%.128q is allowed to %.128s", filter, who)
	case subscribes && endsInPlus(filter):
		a.add(ruleSubscribePlus, at, "%.128q", filter)
	case partial(filter, "${username}", "${clientid}", "${cert_common_name}"):
		a.add(rulePartial, at, "%.128q", filter)
	}
}
