package emqx

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/imprint-iot/imprint/templates/proof"
)

// An evaluator reads an export the way EMQX does: a second reading of its manual and
// source that shares nothing with what writes or parses the files, down to what the
// broker makes of files that imprint would not write.
type evaluator struct {
	rules   map[string][]verdict // by user name
	all     []verdict            // for everybody, after those of the user
	super   map[string]bool
	noMatch bool   // what nobody has decided is allowed
	shared  bool   // shared subscriptions are possible
	open    string // why everything is allowed; empty: it is not
}

// A verdict is one rule: the first that is met decides.
type verdict struct {
	allow    bool
	pub, sub bool
	filter   []string // split at the slashes
	literal  bool     // compared as text
}

// newEvaluator reads an export. Form "http" has nothing to read: every answer is
// unknown.
func newEvaluator(src fs.FS) (proof.Evaluator, error) {
	text, err := fs.ReadFile(src, "emqx.conf")
	if err != nil {
		return nil, err
	}
	conf, err := readHOCON(string(text))
	if err != nil {
		return nil, fmt.Errorf("emqx.conf: %w", err)
	}
	e := &evaluator{rules: map[string][]verdict{}, super: map[string]bool{}, noMatch: conf["authorization.no_match"] != "deny"}
	e.open, e.shared = whyOpen(conf)
	if conf["authentication.0.backend"] == "built_in_database" {
		if err := e.readUsers(src, conf); err != nil {
			return nil, err
		}
	}
	switch conf["authorization.sources.0.type"] {
	case "file":
		err = e.readTermFile(src)
	case "built_in_database":
		err = e.readRuleLines(src)
	case "postgresql":
		err = e.readStatements(src)
	case "http":
		return elsewhere{}, nil
	default: // no source: no_match decides
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

// whyOpen says what of a configuration lets anybody in as anybody, and whether shared
// subscriptions are possible on some listener.
func whyOpen(conf map[string]string) (open string, shared bool) {
	names := map[string]bool{"tcp.default": true, "ws.default": true} // on unless they are turned off
	for key := range conf {
		if rest, ok := strings.CutPrefix(key, "listeners."); ok {
			p := strings.Split(rest, ".")
			names[p[0]+"."+p[1]] = true
		}
	}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		get := func(key string) string { return conf["listeners."+n+"."+key] }
		if get("enable") == "false" {
			continue
		}
		zone := "zones." + get("zone") + ".mqtt."
		shared = shared || conf[zone+"shared_subscription"] != "false"
		switch {
		case conf["authentication.0.mechanism"] == "" || conf["authentication.0.enable"] == "false":
			open = n + ": there is no authenticator"
		case get("enable_authn") != "false":
		case get("ssl_options.verify") != "verify_peer" || get("ssl_options.fail_if_no_peer_cert") != "true":
			open = n + ": neither a certificate nor a password is asked for"
		case conf[zone+"peer_cert_as_username"] != "cn":
			open = n + ": the certificate does not name the user"
		}
		if v := conf[zone+"clientid_override"]; v != "username" && v != "cn" {
			open = n + ": the client identifier is the client's own"
		}
	}
	return open, shared
}

// readUsers looks for superusers, who are held to no rule. The broker splits lines at
// commas, and trims.
func (e *evaluator) readUsers(src fs.FS, conf map[string]string) error {
	name := conf["authentication.0.bootstrap_file"]
	text, err := fs.ReadFile(src, name[strings.LastIndexByte(name, '/')+1:])
	if err != nil {
		return err
	}
	var columns []string
	for l := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimRight(l, "\r\n"), ",")
		if columns == nil {
			columns = cells
			continue
		}
		user := map[string]string{}
		for i, c := range cells {
			if i < len(columns) {
				user[strings.TrimSpace(columns[i])] = strings.TrimSpace(c)
			}
		}
		if user["is_superuser"] == "true" {
			e.super[user["user_id"]] = true
		}
	}
	return nil
}

// readTermFile reads the Erlang terms of the access list.
func (e *evaluator) readTermFile(src fs.FS) error {
	text, err := fs.ReadFile(src, "imprint-acl.conf")
	if err != nil {
		return err
	}
	terms, err := readErlang(string(text))
	if err != nil {
		return fmt.Errorf("imprint-acl.conf: %w", err)
	}
	for _, t := range terms {
		if err := e.addTerm(t); err != nil {
			return fmt.Errorf("imprint-acl.conf: %w", err)
		}
	}
	return nil
}

// addTerm is emqx_authz_rule:compile/1.
func (e *evaluator) addTerm(t term) error {
	v := verdict{allow: t.at(0).atom == "allow"}
	if len(t.kids) == 2 && t.at(1).atom == "all" {
		v.pub, v.sub, v.filter = true, true, []string{"#"}
		e.all = append(e.all, v)
		return nil
	}
	action := t.at(2).atom
	v.pub, v.sub = action == "publish" || action == "all", action == "subscribe" || action == "all"
	if len(t.kids) != 4 || !v.pub && !v.sub || !v.allow && t.at(0).atom != "deny" {
		return fmt.Errorf("%v is no rule", t)
	}
	for _, topic := range t.at(3).kids {
		w := v
		if topic.at(0).atom == "eq" {
			w.literal, topic = true, topic.at(1)
		}
		text := topic.text
		if rest, ok := strings.CutPrefix(text, "eq "); ok {
			w.literal, text = true, rest
		}
		w.filter = strings.Split(text, "/")
		switch who := t.at(1); {
		case who.atom == "all":
			e.all = append(e.all, w)
		case (who.at(0).atom == "username" || who.at(0).atom == "user") && len(who.kids) == 2:
			if len(e.all) > 0 {
				return fmt.Errorf("%v comes after a rule for everybody", t) // never met, or not by this reader
			}
			e.rules[who.at(1).text] = append(e.rules[who.at(1).text], w)
		default:
			return fmt.Errorf("%v is a condition that is not read here", who)
		}
	}
	return nil
}

// readRuleLines reads what goes to the built-in database.
func (e *evaluator) readRuleLines(src fs.FS) error {
	f, err := src.Open("imprint-rules.ndjson")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	for d := json.NewDecoder(bufio.NewReader(f)); d.More(); {
		var u map[string]any
		if err := d.Decode(&u); err != nil {
			return fmt.Errorf("imprint-rules.ndjson: %w", err)
		}
		name, _ := u["username"].(string)
		list, _ := u["rules"].([]any)
		e.rules[name] = nil // a PUT replaces
		for _, r := range list {
			rule, _ := r.(map[string]any)
			text := func(key string) string { s, _ := rule[key].(string); return s }
			e.add(name, text("permission"), text("action"), text("topic"))
		}
	}
	return nil
}

// readStatements takes the rows from the statements by a tokenizer of SQL that knows
// string literals, words and marks.
func (e *evaluator) readStatements(src fs.FS) error {
	text, err := fs.ReadFile(src, "imprint.sql")
	if err != nil {
		return err
	}
	prio := map[string]map[int][3]string{}
	for _, statement := range sqlStatements(string(text)) {
		if len(statement) < 5 || !slices.Equal(statement[:4], []string{"INSERT", "INTO", "imprint_new_acl", "VALUES"}) {
			continue
		}
		for row := statement[4:]; len(row) >= 11; row = row[min(12, len(row)):] { // ( a , b , c , d , e ) ,
			n, err := strconv.Atoi(row[3])
			if err != nil || row[0] != "(" || row[10] != ")" || len(row) > 11 && row[11] != "," {
				return fmt.Errorf("imprint.sql: %.64q is no row", row)
			}
			name := strings.TrimPrefix(row[1], "'")
			if prio[name] == nil {
				prio[name] = map[int][3]string{}
			}
			prio[name][n] = [3]string{row[5][1:], row[7][1:], row[9][1:]}
		}
	}
	for name, rows := range prio {
		for _, n := range slices.Sorted(maps.Keys(rows)) {
			e.add(name, rows[n][0], rows[n][1], rows[n][2])
		}
	}
	return nil
}

// add is emqx_authz_rule_raw:parse_rule/1.
func (e *evaluator) add(name, permission, action, topic string) {
	v := verdict{allow: permission == "allow", pub: action == "publish" || action == "all", sub: action == "subscribe" || action == "all"}
	topic, v.literal = strings.CutPrefix(topic, "eq ")
	v.filter = strings.Split(topic, "/")
	e.rules[name] = append(e.rules[name], v)
}

// sqlStatements splits a script into statements of tokens. A literal begins with a
// quote and has no end.
func sqlStatements(sql string) [][]string {
	var out [][]string
	var cur []string
	for i := 0; i < len(sql); i++ {
		c := sql[i]
		switch {
		case c == ';':
			out, cur = append(out, cur), nil
		case c == '-' && strings.HasPrefix(sql[i:], "--"):
			i += strings.IndexByte(sql[i:]+"\n", '\n')
		case c == '\'':
			var b strings.Builder
			for i++; i < len(sql); i++ {
				if sql[i] == '\'' {
					if i+1 >= len(sql) || sql[i+1] != '\'' {
						break
					}
					i++
				}
				b.WriteByte(sql[i])
			}
			cur = append(cur, "'"+b.String())
		case strings.IndexByte(" \t\n", c) >= 0:
		case strings.IndexByte("(),=.", c) >= 0:
			cur = append(cur, string(c))
		default:
			n := strings.IndexAny(sql[i:], " \t\n(),=.;'")
			if n < 0 {
				n = len(sql) - i
			}
			cur = append(cur, sql[i:i+n])
			i += n - 1
		}
	}
	return out
}

// Answer implements [proof.Evaluator]. Wills and retained messages are published like
// any other.
func (e *evaluator) Answer(q proof.Question) (proof.Answer, error) {
	if e.open != "" || e.super[q.Device] {
		return proof.Allowed, nil
	}
	allowed := false
	switch q.Verb {
	case proof.Publish, proof.Will, proof.Retain:
		allowed = e.decide(q.Device, true, q.Topic)
	case proof.Subscribe:
		allowed = e.subscribe(q.Device, q.Topic)
	case proof.Receive:
		allowed = e.reached(q.Device, strings.Split(q.Topic, "/"))
	case proof.Connect:
		return proof.Unknown, nil
	}
	if allowed {
		return proof.Allowed, nil
	}
	return proof.Denied, nil
}

// subscribe takes off what EMQX has before a filter.
func (e *evaluator) subscribe(device, filter string) bool {
	if rest, ok := strings.CutPrefix(filter, "$share/"); ok {
		_, rest, ok = strings.Cut(rest, "/")
		return ok && e.shared && e.decide(device, false, rest)
	}
	if rest, ok := strings.CutPrefix(filter, "$queue/"); ok {
		return e.shared && e.decide(device, false, rest)
	}
	return !strings.HasPrefix(filter, "$exclusive/") && e.decide(device, false, filter)
}

// decide is emqx_access_control:authorize/3 with the sources of an export.
func (e *evaluator) decide(device string, publish bool, topic string) bool {
	for strings.HasPrefix(topic, "$delayed/") {
		_, rest, ok := strings.Cut(strings.TrimPrefix(topic, "$delayed/"), "/")
		if !ok {
			return false
		}
		topic = rest
	}
	words := strings.Split(topic, "/")
	for _, list := range [][]verdict{e.rules[device], e.all} {
		for _, v := range list {
			if (publish && v.pub || !publish && v.sub) && v.met(words) {
				return v.allow
			}
		}
	}
	return e.noMatch
}

func (v *verdict) met(words []string) bool {
	if v.literal {
		return slices.Equal(words, v.filter)
	}
	if strings.HasPrefix(words[0], "$") && (v.filter[0] == "+" || v.filter[0] == "#") {
		return false
	}
	return match(words, v.filter)
}

// begins reports whether a rule may be met by something that begins with these levels.
func (v *verdict) begins(levels []string) bool {
	for i, w := range v.filter {
		switch {
		case i == len(levels), w == "#":
			return true
		case w != "+" && w != levels[i]:
			return false
		}
	}
	return true
}

// match is emqx_topic:match_tokens/2, clause by clause. The first argument may be a
// filter as well as a topic.
func match(words, filter []string) bool {
	switch {
	case len(words) == 0 && len(filter) == 0:
		return true
	case len(words) > 0 && len(filter) > 0 && (words[0] == filter[0] || filter[0] == "+"):
		return match(words[1:], filter[1:])
	default:
		return len(filter) == 1 && filter[0] == "#"
	}
}

// reached reports whether there is a filter that the device may subscribe to and that
// a message to the topic is delivered for. Nothing is checked at the delivery. All the
// filters there are for a topic are tried: each level itself or a +, and a # in place
// of any number of the last ones. What no rule begins like is not tried further.
func (e *evaluator) reached(device string, name []string) bool {
	var try func(filter []string) bool
	rules := append(slices.Clone(e.rules[device]), e.all...)
	try = func(filter []string) bool {
		if !e.noMatch && !slices.ContainsFunc(rules, func(v verdict) bool { return v.allow && v.begins(filter) }) {
			return false
		}
		i := len(filter)
		special := i == 0 && strings.HasPrefix(name[0], "$") // of no wildcard's (MQTT 5.0 §4.7.2)
		with := func(level string) []string { return append(slices.Clone(filter), level) }
		if !special && e.decide(device, false, strings.Join(with("#"), "/")) {
			return true
		}
		if i == len(name) {
			return e.decide(device, false, strings.Join(filter, "/"))
		}
		return try(with(name[i])) || !special && try(with("+"))
	}
	return try(nil)
}

// elsewhere is an evaluator of files that say nothing of rights.
type elsewhere struct{}

// Answer implements [proof.Evaluator].
func (elsewhere) Answer(proof.Question) (proof.Answer, error) { return proof.Unknown, nil }
