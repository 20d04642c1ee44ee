package foreign

import (
	"encoding/json"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

func noVerifier() inventory.Verifier { return inventory.Verifier{} }

// A rabbitFile is the part of RabbitMQ's definitions that is about MQTT users.
type rabbitFile struct {
	users       []rabbitUser
	permissions map[string]rabbitPermission // of the vhost, by user
	topics      map[string]rabbitPermission // of vhost and exchange, by user
	elsewhere   map[string]bool             // users that have rights on other vhosts or exchanges
}

type rabbitUser struct {
	name                       string
	tags                       []string
	hasPassword, withAlgorithm bool
	verifier                   inventory.Verifier
	hashErr                    error
}

type rabbitPermission struct{ configure, write, read string }

// rabbitmq reads definitions as "rabbitmqctl export_definitions" writes them. To
// publish, a user needs to write to the exchange and a topic permission; to receive,
// to read from it, a queue of its own, and a topic permission. Without a topic
// permission RabbitMQ allows every topic.
func (b *builder) rabbitmq(t *tree) error {
	name, err := t.one(roleDefinitions)
	if err != nil {
		return err
	}
	d := &rabbitFile{permissions: map[string]rabbitPermission{}, topics: map[string]rabbitPermission{}, elsewhere: map[string]bool{}}
	err = t.stream(name, func(r io.Reader) error {
		dec := json.NewDecoder(r)
		err := fields(dec, map[string]any{
			"users":             func() error { return d.readUsers(dec, b) },
			"permissions":       func() error { return d.readPermissions(dec, &b.o, d.permissions, false) },
			"topic_permissions": func() error { return d.readPermissions(dec, &b.o, d.topics, true) },
		})
		return cmpErr(err, b.cancelled())
	})
	if err != nil {
		return err
	}
	compiled := map[string]*regexp.Regexp{}
	for i := range d.users {
		b.rabbitUser(d, &d.users[i], place{file: name}, compiled)
	}
	return nil
}

func (d *rabbitFile) readUsers(dec *json.Decoder, b *builder) error {
	return array(dec, func() error {
		var u rabbitUser
		var tags any
		var hash, algorithm, plain string
		err := fields(dec, map[string]any{"name": &u.name, "password_hash": &hash, "hashing_algorithm": &algorithm, "password": &plain, "tags": &tags})
		u.hasPassword, u.withAlgorithm = hash != "" || plain != "", algorithm != ""
		if plain != "" {
			u.hashErr = errPlain
		} else if hash != "" {
			u.verifier, u.hashErr = rabbitHash(hash, algorithm)
		}
		switch t := tags.(type) {
		case string: // before 3.8
			u.tags = strings.FieldsFunc(t, func(r rune) bool { return r == ',' || r == ' ' })
		case []any:
			for _, tag := range t {
				if s, ok := tag.(string); ok {
					u.tags = append(u.tags, s)
				}
			}
		}
		d.users = append(d.users, u)
		return cmpErr(err, b.cancelled())
	})
}

func (d *rabbitFile) readPermissions(dec *json.Decoder, o *Options, into map[string]rabbitPermission, topics bool) error {
	return array(dec, func() error {
		var p rabbitPermission
		var user, vhost, exchange string
		err := fields(dec, map[string]any{"user": &user, "vhost": &vhost, "exchange": &exchange, "configure": &p.configure, "write": &p.write, "read": &p.read})
		if err != nil {
			return err
		}
		if vhost != o.VHost || topics && exchange != o.Exchange {
			d.elsewhere[user] = true
			return nil
		}
		if _, again := into[user]; again {
			return errShape
		}
		into[user] = p
		return nil
	})
}

func (b *builder) rabbitUser(d *rabbitFile, r *rabbitUser, at place, compiled map[string]*regexp.Regexp) {
	u, fresh := b.user(r.name, at)
	if !fresh {
		u.problem("is there twice")
		b.find(Error, "twice", r.name, at, "the user is there twice")
		return
	}
	u.ruled = true
	if len(r.tags) > 0 {
		u.problem("has a tag of the management interface, and is no device")
		b.find(Error, "superuser", r.name, at, "has the tags %.128q: it may use the management interface", strings.Join(r.tags, " "))
	}
	if r.hasPassword {
		if !r.withAlgorithm && r.hashErr == nil {
			b.find(Warning, "hash", r.name, at, "no hashing_algorithm is given: it is taken for SHA-256, which is the default")
		}
		b.takeHash(u, at, r.verifier, r.hashErr)
	}
	if d.elsewhere[r.name] {
		b.find(Note, "elsewhere", r.name, at, "has rights on another virtual host or exchange: they are left out")
	}
	u.grants = b.rabbitGrants(d, r.name, at, compiled)
	delete(d.permissions, r.name) // a fleet's are many
	delete(d.topics, r.name)
}

func (b *builder) rabbitGrants(d *rabbitFile, name string, at place, compiled map[string]*regexp.Regexp) []topic.Grant {
	p, ok := d.permissions[name]
	if !ok {
		return nil // it cannot even connect
	}
	topics, ok := d.topics[name]
	if !ok {
		b.find(Error, "no-topic-permission", name, at, "has no topic permission: RabbitMQ allows it every topic, and nothing of that is carried over")
		return nil
	}
	matches := func(expression, resource string) bool { return b.rabbitMatch(compiled, name, at, expression, resource) }
	var grants []topic.Grant
	if matches(p.write, b.o.Exchange) {
		grants = b.rabbitFilters(name, at, topic.Publish, topics.write)
	}
	queue := func(qos string) bool {
		q := "mqtt-subscription-" + name + "qos" + qos
		return matches(p.configure, q) && matches(p.write, q) && matches(p.read, q)
	}
	if matches(p.read, b.o.Exchange) && (queue("0") || queue("1")) {
		grants = append(grants, b.rabbitFilters(name, at, topic.Receive, topics.read)...)
	} else if topics.read != "" && topics.read != "^$" {
		b.find(Note, "no-delivery", name, at, "may read topics but not the exchange, or may have no queue with its name as client identifier: it receives nothing")
	}
	return grants
}

// rabbitMatch evaluates a permission. An expression that only PCRE knows matches
// nothing here; the empty one matches nothing in RabbitMQ either.
func (b *builder) rabbitMatch(compiled map[string]*regexp.Regexp, name string, at place, expression, resource string) bool {
	if expression == "" {
		return false
	}
	if match, ok := plainMatch(expression, resource); ok {
		return match
	}
	re, known := compiled[expression]
	if !known {
		var err error
		if re, err = regexp.Compile(expression); err != nil {
			re = nil
		}
		if len(compiled) < 4096 {
			compiled[expression] = re
		}
	}
	if re == nil {
		b.find(Warning, "expression", name, at, "the permission %.128q cannot be evaluated: it is taken to allow nothing", expression)
		return false
	}
	return re.MatchString(resource)
}

// plainMatch evaluates an expression that is a list of words, as those for one device
// are, without compiling it: "^(amq\.topic|mqtt-subscription-dev1qos[01])$". It reports
// whether the expression is one.
func plainMatch(expression, resource string) (match, ok bool) {
	if expression == ".*" {
		return true, true
	}
	body, open := strings.CutPrefix(expression, "^")
	body, shut := strings.CutSuffix(body, "$")
	if !open || !shut || len(splitTop(body)) > 1 {
		return false, false
	}
	for _, word := range splitTop(ungroup(body)) {
		same, plain := sameWord(word, resource)
		if !plain {
			return false, false
		}
		match = match || same
	}
	return match, true
}

// sameWord compares an expression without operators, but for [01], with text.
func sameWord(word, text string) (same, plain bool) {
	same = true
	for i := 0; i < len(word); i++ {
		var one string // what may stand here
		switch c := word[i]; {
		case strings.HasPrefix(word[i:], "[01]"):
			one = "01"
			i += len("[01]") - 1
		case c == '\\' && i+1 < len(word) && !isWordByte(word[i+1]):
			i++
			one = word[i : i+1]
		case c >= 0x80 || strings.IndexByte(special, c) >= 0:
			return false, false
		default:
			one = word[i : i+1]
		}
		if same = same && text != "" && strings.IndexByte(one, text[0]) >= 0; same {
			text = text[1:]
		}
	}
	return same && text == "", true
}

// rabbitFilters makes grants of an expression over routing keys.
func (b *builder) rabbitFilters(name string, at place, action topic.Action, expression string) []topic.Grant {
	filters, notes := rabbitExpression(expression, name, action)
	for _, n := range notes {
		b.find(n.severity, n.code, name, at, "%s %.128q: %s", action, expression, n.text)
	}
	var grants []topic.Grant
	for _, text := range filters {
		f, err := topic.ParseFilter(text)
		if err != nil {
			b.find(Warning, "rule-dropped", name, at, "%s: the rule is left out", err)
			continue
		}
		if g := (topic.Grant{Action: action, Filter: f}); !slices.Contains(grants, g) {
			grants = append(grants, g)
		}
	}
	return grants
}
