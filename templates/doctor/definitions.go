package doctor

import (
	"cmp"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

// definitions are RabbitMQ's users and permissions.
type definitions struct {
	Users []struct {
		Name     string `json:"name"`
		Password string `json:"password"`
		Hash     string `json:"password_hash"`
		Hashing  string `json:"hashing_algorithm"`
		Tags     any    `json:"tags"` // a list; in older files a text
	} `json:"users"`
	Permissions []struct {
		User      string `json:"user"`
		VHost     string `json:"vhost"`
		Configure string `json:"configure"`
		Write     string `json:"write"`
		Read      string `json:"read"`
	} `json:"permissions"`
	Topics []struct {
		User     string `json:"user"`
		VHost    string `json:"vhost"`
		Exchange string `json:"exchange"`
		Write    string `json:"write"`
		Read     string `json:"read"`
	} `json:"topic_permissions"`
}

// A jsonIndex knows where names stand in the text of definitions, which
// encoding/json does not tell. It is made when it is first asked: a file of a fleet
// that is right is only decoded.
type jsonIndex struct {
	file  string
	text  string
	names map[string][]int // offsets of "name":"X" and "user":"X", by X as it is written
	lines []int            // offsets of line ends
}

// of returns the place of the first row of a user in a section.
func (j *jsonIndex) of(section, user string) place {
	if j.names == nil {
		j.names = map[string][]int{}
		for _, m := range regexp.MustCompile(`"(?:name|user)"\s*:\s*"((?:[^"\\]|\\.)*)"`).FindAllStringSubmatchIndex(j.text, -1) {
			name := j.text[m[2]:m[3]]
			j.names[name] = append(j.names[name], m[0])
		}
		for i := range len(j.text) {
			if j.text[i] == '\n' {
				j.lines = append(j.lines, i)
			}
		}
	}
	start := strings.Index(j.text, `"`+section+`"`)
	for _, offset := range j.names[user] {
		if offset > start {
			line, _ := slices.BinarySearch(j.lines, offset)
			return place{j.file, line + 1}
		}
	}
	return place{j.file, 0}
}

// definitions audits definitions.json.
func (r *rabbit) definitions(file string, text []byte) {
	var d definitions
	if err := json.Unmarshal(text, &d); err != nil {
		r.unknown("users and permissions: %s is not JSON of definitions", file)
		return
	}
	r.secrets(ruleFileReadable, "the file with users and hashes", file)
	where := &jsonIndex{file: file, text: string(text)}
	admins := r.users(&d, where)
	exchange := cmp.Or(r.conf.get("mqtt.exchange").value, "amq.topic")
	rows := map[[2]string]bool{}
	for _, t := range d.Topics {
		if t.Exchange == exchange || t.Exchange == "" {
			rows[[2]string{t.User, t.VHost}] = true
		}
		if admins[t.User] {
			continue
		}
		r.topicPattern(t.User, "write", t.Write, where)
		r.topicPattern(t.User, "read", t.Read, where)
	}
	bound := r.conf.get("mqtt.ssl_cert_client_id_from").value != ""
	for _, p := range d.Permissions {
		if admins[p.User] {
			continue
		}
		if !rows[[2]string{p.User, p.VHost}] {
			r.add(ruleNoTopicRow, where.of("permissions", p.User), "user %.128q has no topic permission for %.64q in %.64q", p.User, exchange, p.VHost)
		}
		if !bound && matches(p.Configure, "mqtt-subscription-doctor-asksqos0") {
			r.add(ruleClientID, where.of("permissions", p.User), "user %.128q may use the queues of other client identifiers: configure is %.128q", p.User, p.Configure)
		}
	}
}

// users audits the users, and returns those who may do everything by their role.
func (r *rabbit) users(d *definitions, where *jsonIndex) (admins map[string]bool) {
	admins = map[string]bool{}
	hashes := map[string]string{}
	for _, u := range d.Users {
		if adminLike(u.Name) || isAdministrator(u.Tags) {
			admins[u.Name] = true
		}
		at := func() place { return where.of("users", u.Name) }
		if unsafe(u.Name) {
			r.userName(u.Name, at())
		}
		if u.Name == "guest" {
			r.add(ruleDefaultUser, at(), "there is a user guest")
		}
		if u.Password != "" {
			r.add(rulePlainPassword, at(), "user %.128q", u.Name)
		}
		if strings.HasSuffix(u.Hashing, "_md5") {
			r.add(ruleWeakHash, at(), "user %.128q: %.64q", u.Name, u.Hashing)
		}
		if other, ok := hashes[u.Hash]; ok && u.Hash != "" {
			r.add(ruleSharedHash, at(), "users %.128q and %.128q", other, u.Name)
		}
		hashes[u.Hash] = u.Name
	}
	if len(hashes) > 1 || len(hashes) == 1 && hashes[""] == "" {
		r.add(ruleFastHash, place{where.file, 0}, "RabbitMQ stores one round of a salted hash")
	}
	return admins
}

// isAdministrator reads tags in both of their forms.
func isAdministrator(tags any) bool {
	switch t := tags.(type) {
	case string:
		return slices.Contains(strings.Split(t, ","), "administrator")
	case []any:
		return slices.Contains(t, any("administrator"))
	}
	return false
}

// topicPattern audits a pattern of a topic permission. Empty means ^$.
func (r *rabbit) topicPattern(user, direction, pattern string, where *jsonIndex) {
	if pattern == "" {
		return
	}
	if strings.Contains(pattern, "{client_id}") {
		r.add(ruleClientIDPattern, where.of("topic_permissions", user), "user %.128q: %s %.128q", user, direction, pattern)
		pattern = strings.ReplaceAll(pattern, "{client_id}", "x")
	}
	pattern = strings.NewReplacer("{username}", "x", "{vhost}", "x").Replace(pattern)
	switch {
	case matches(pattern, "doctor.asks.3f9c", "q"):
		id := ruleWildcard
		if direction == "read" {
			id = ruleWildcardRead
		}
		r.add(id, where.of("topic_permissions", user), "user %.128q: %s %.128q matches every topic", user, direction, pattern)
	case !strings.HasPrefix(pattern, "^") || !strings.HasSuffix(pattern, "$"):
		r.add(ruleUnanchored, where.of("topic_permissions", user), "user %.128q: %s %.128q", user, direction, pattern)
	}
}

// matches reports whether a pattern matches somewhere in each of the texts. Patterns
// are PCRE; those that Go does not know match nothing here.
func matches(pattern string, texts ...string) bool {
	re, err := regexp.Compile(pattern)
	if err != nil || pattern == "" {
		return false
	}
	return !slices.ContainsFunc(texts, func(t string) bool { return !re.MatchString(t) })
}
