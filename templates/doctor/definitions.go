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

// A line of a JSON text is found by looking for the first "KEY":"VALUE" in it: good
// enough to lead somebody there.
type jsonLines struct {
	file string
	text string
}

func (j jsonLines) of(key, value string) place {
	quoted, err := json.Marshal(value)
	if err != nil {
		return place{j.file, 0}
	}
	m := -1
	for _, sep := range []string{`:`, `: `} {
		if i := strings.Index(j.text, `"`+key+`"`+sep+string(quoted)); i >= 0 && (m < 0 || i < m) {
			m = i
		}
	}
	if m < 0 {
		return place{j.file, 0}
	}
	return place{j.file, 1 + strings.Count(j.text[:m], "\n")}
}

// definitions audits definitions.json.
func (r *rabbit) definitions(file string, text []byte) {
	var d definitions
	if err := json.Unmarshal(text, &d); err != nil {
		r.unknown("users and permissions: %s is not JSON of definitions", file)
		return
	}
	r.secrets(ruleFileReadable, "the file with users and hashes", file)
	where := jsonLines{file, string(text)}
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
			r.add(ruleNoTopicRow, r.at(where, "user", p.User), "user %.128q has no topic permission for %.64q in %.64q", p.User, exchange, p.VHost)
		}
		if !bound && matches(p.Configure, "mqtt-subscription-doctor-asksqos0") {
			r.add(ruleClientID, r.at(where, "user", p.User), "user %.128q may use the queues of other client identifiers: configure is %.128q", p.User, p.Configure)
		}
	}
}

// at looks for a line only as long as findings of a rule are reported one by one:
// each look goes through the text.
func (r *rabbit) at(where jsonLines, key, value string) place {
	if len(r.rep.Findings) > 50*maxSame {
		return place{where.file, 0}
	}
	return where.of(key, value)
}

// users audits the users, and returns those who may do everything by their role.
func (r *rabbit) users(d *definitions, where jsonLines) (admins map[string]bool) {
	admins = map[string]bool{}
	hashes := map[string]string{}
	shown := 0
	for _, u := range d.Users {
		if adminLike(u.Name) || isAdministrator(u.Tags) {
			admins[u.Name] = true
		}
		shown++
		at := func() place {
			if shown > 50*maxSame {
				return place{where.file, 0}
			}
			return where.of("name", u.Name)
		}
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
	if len(d.Users) > 0 && len(d.Users) != len(admins) {
		for _, u := range d.Users {
			if u.Hash != "" {
				r.add(ruleFastHash, place{where.file, 0}, "RabbitMQ stores one round of a salted hash")
				break
			}
		}
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
func (r *rabbit) topicPattern(user, direction, pattern string, where jsonLines) {
	if pattern == "" {
		return
	}
	if strings.Contains(pattern, "{client_id}") {
		r.add(ruleClientIDPattern, r.at(where, "user", user), "user %.128q: %s %.128q", user, direction, pattern)
		pattern = strings.ReplaceAll(pattern, "{client_id}", "x")
	}
	pattern = strings.NewReplacer("{username}", "x", "{vhost}", "x").Replace(pattern)
	switch {
	case matches(pattern, "doctor.asks.3f9c") && matches(pattern, "q"):
		id := ruleWildcard
		if direction == "read" {
			id = ruleWildcardRead
		}
		r.add(id, r.at(where, "user", user), "user %.128q: %s %.128q matches every topic", user, direction, pattern)
	case !strings.HasPrefix(pattern, "^") || !strings.HasSuffix(pattern, "$"):
		r.add(ruleUnanchored, r.at(where, "user", user), "user %.128q: %s %.128q", user, direction, pattern)
	}
}

// matches reports whether a pattern matches somewhere in text. Patterns are PCRE;
// those that Go does not know match nothing here.
func matches(pattern, text string) bool {
	re, err := regexp.Compile(pattern)
	return err == nil && pattern != "" && re.MatchString(text)
}
