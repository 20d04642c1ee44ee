package doctor

import (
	"encoding/json"
	"slices"
	"strings"
)

// An aclRule is a line of an access list in Mosquitto's grammar, which VerneMQ and
// FlashMQ have taken over, each with changes.
type aclRule struct {
	pattern bool
	user    string // whose section it is in; "" before the first
	access  string // "", "read", "write", "readwrite" or "deny"
	filter  string
	at      place
}

// may reports whether the rule allows a direction.
func (r aclRule) may(direction string) bool {
	return r.access == "" || r.access == "readwrite" || r.access == direction
}

// whom says whom the rule is for.
func (r aclRule) whom() string {
	switch {
	case r.pattern:
		return "every client"
	case r.user == "":
		return "clients without a name"
	}
	return "one user"
}

// readACL reads an access list. Lines that are none of it are given to bad, and
// user lines to user.
func readACL(file string, text []byte, user, bad func(at place, line string)) []aclRule {
	var rules []aclRule
	current := ""
	for n, line := range lines(text) {
		if line == "" || line[0] == '#' || strings.Trim(line, " ") == "" {
			continue
		}
		at := place{file, n}
		word, rest, _ := strings.Cut(strings.TrimLeft(line, " "), " ")
		rest = strings.Trim(rest, " ")
		switch {
		case strings.Contains(line, "\t"), rest == "":
			bad(at, line)
		case word == "user":
			current = rest
			user(at, current)
		case word == "topic", word == "pattern":
			r := aclRule{pattern: word == "pattern", user: current, filter: rest, at: at}
			if access, filter, ok := strings.Cut(rest, " "); ok && slices.Contains([]string{"read", "write", "readwrite", "deny"}, access) {
				r.access, r.filter = access, strings.TrimLeft(filter, " ")
			}
			rules = append(rules, r)
		default:
			bad(at, line)
		}
	}
	return rules
}

// mqACL audits an acl_file of Mosquitto.
func (a *audit) mqACL(file string, text []byte) {
	rules := readACL(file, text, a.aclUser, func(at place, line string) {
		a.add(ruleACLSyntax, at, "%.128q", line)
	})
	for _, r := range rules {
		if r.access == "deny" {
			a.add(ruleDeny, r.at, "deny %.128q", r.filter)
			continue
		}
		if !r.pattern && r.user == "" {
			a.add(ruleBeforeUser, r.at, "topic %.128q", r.filter)
		}
		if r.pattern && partial(r.filter, "%u", "%c") {
			a.add(rulePartial, r.at, "pattern %.128q", r.filter)
		}
		a.aclWildcard(r)
	}
}

func (a *audit) aclUser(at place, user string) { a.userName(user, at) }

// aclWildcard reports a rule about everything.
func (a *audit) aclWildcard(r aclRule) {
	if !everything(r.filter) || r.access == "deny" || r.user != "" && !r.pattern && adminLike(r.user) {
		return
	}
	switch {
	case r.may("write") || r.pattern || r.user == "":
		a.add(ruleWildcard, r.at, "%.128q is allowed to %s", r.filter, r.whom())
	default:
		a.add(ruleWildcardRead, r.at, "user %.128q may read %.128q", r.user, r.filter)
	}
}

// dynsecFile is the part of the dynamic security plugin's file that is audited.
type dynsecFile struct {
	Default struct {
		Send      bool `json:"publishClientSend"`
		Subscribe bool `json:"subscribe"`
	} `json:"defaultACLAccess"`
	Clients []struct {
		Username string          `json:"username"`
		Password string          `json:"password"`
		Salt     string          `json:"salt"`
		Encoded  string          `json:"encoded_password"`
		Roles    []dynsecRoleRef `json:"roles"`
	} `json:"clients"`
	Groups []struct {
		Name    string          `json:"groupname"`
		Roles   []dynsecRoleRef `json:"roles"`
		Clients []struct {
			Username string `json:"username"`
		} `json:"clients"`
	} `json:"groups"`
	Roles []struct {
		Name string `json:"rolename"`
		ACLs []struct {
			Type  string `json:"acltype"`
			Topic string `json:"topic"`
			Allow bool   `json:"allow"`
		} `json:"acls"`
	} `json:"roles"`
}

type dynsecRoleRef struct {
	Name string `json:"rolename"`
}

// dynsec audits the file of Mosquitto's dynamic security plugin.
func (a *audit) dynsec(file string, text []byte) {
	var d dynsecFile
	if err := json.Unmarshal(text, &d); err != nil {
		a.unknown("what the dynamic security plugin allows: %s is not its JSON", file)
		return
	}
	at := place{file, 0}
	if d.Default.Send || d.Default.Subscribe {
		a.add(ruleDefaultAllow, at, "defaultACLAccess allows what no role mentions: publishClientSend %v, subscribe %v", d.Default.Send, d.Default.Subscribe)
	}
	hashes := map[string]string{}
	for _, c := range d.Clients {
		a.userName(c.Username, at)
		key := c.Salt + "$" + c.Password + c.Encoded
		if other, ok := hashes[key]; ok && key != "$" {
			a.add(ruleSharedHash, at, "users %.128q and %.128q", other, c.Username)
		}
		hashes[key] = c.Username
	}
	everyday := d.everydayRoles()
	for _, r := range d.Roles {
		for _, l := range r.ACLs {
			if !l.Allow || !everyday[r.Name] || !everything(l.Topic) || strings.HasPrefix(l.Type, "unsubscribe") {
				continue
			}
			if l.Type == "publishClientSend" {
				a.add(ruleWildcard, at, "role %.128q: %s %.128q", r.Name, l.Type, l.Topic)
			} else {
				a.add(ruleWildcardRead, at, "role %.128q: %s %.128q", r.Name, l.Type, l.Topic)
			}
		}
	}
}

// everydayRoles are the roles of somebody who is no administrator.
func (d *dynsecFile) everydayRoles() map[string]bool {
	roles := map[string]bool{}
	give := func(refs []dynsecRoleRef) {
		for _, r := range refs {
			roles[r.Name] = true
		}
	}
	for _, c := range d.Clients {
		if !adminLike(c.Username) {
			give(c.Roles)
		}
	}
	for _, g := range d.Groups {
		admins := len(g.Clients) > 0
		for _, c := range g.Clients {
			admins = admins && adminLike(c.Username)
		}
		if !admins && !adminLike(g.Name) {
			give(g.Roles)
		}
	}
	return roles
}
