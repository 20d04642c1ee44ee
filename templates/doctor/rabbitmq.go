package doctor

import (
	"io/fs"
	"path"
	"regexp"
	"strings"
)

// A rabbit is a RabbitMQ's configuration: rabbitmq.conf, and advanced.config, which
// is Erlang terms and is only looked at for the options that matter here.
type rabbit struct {
	*audit
	file     string
	conf     flat
	advName  string
	advanced string // without comments
}

// auditRabbitMQ audits rabbitmq.conf with what is beside it, or one of the others
// alone.
func auditRabbitMQ(a *audit, file string, text []byte) {
	r := &rabbit{audit: a, file: file}
	switch {
	case strings.HasPrefix(strings.TrimSpace(string(text)), "{"):
		a.unknown("listeners and TLS: they are in rabbitmq.conf")
		r.definitions(file, text)
		return
	case path.Ext(file) == ".config":
		r.advName, r.advanced = file, erlangText(text)
		a.unknown("listeners and users: they are in rabbitmq.conf and in the definitions")
	default:
		r.conf = readFlat(file, text)
		if name := path.Join(a.dir, "advanced.config"); a.exists(name) {
			if text, err := a.read(name); err == nil {
				a.checked(name)
				r.advName, r.advanced = name, erlangText(text)
			}
		}
		r.listeners()
		r.logins()
	}
	r.tls()
	if r.conf != nil {
		r.findDefinitions()
	}
}

// erlangText replaces comments by blanks, so that lines keep their numbers.
func erlangText(text []byte) string {
	var b strings.Builder
	for _, line := range lines(text) {
		if i := strings.IndexByte(line, '%'); i >= 0 && strings.Count(line[:i], `"`)%2 == 0 {
			line = line[:i]
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// erlang finds {name, value} in advanced.config.
func (r *rabbit) erlang(name string) setting {
	re := regexp.MustCompile(`\{\s*` + regexp.QuoteMeta(name) + `\s*,\s*("[^"]*"|\[[^\]]*\]|'[^']*'|\w+)`)
	m := re.FindStringSubmatchIndex(r.advanced)
	if m == nil {
		return setting{}
	}
	return setting{name, strings.Trim(r.advanced[m[2]:m[3]], `"'`), place{r.advName, 1 + strings.Count(r.advanced[:m[0]], "\n")}}
}

// tlsOption is an option of ssl_options, from whichever file has it.
func (r *rabbit) tlsOption(name string) setting {
	if s := r.erlang(name); s.value != "" {
		return s
	}
	return r.conf.get("ssl_options." + name)
}

// listeners looks for MQTT without TLS: the plugin listens on 1883 unless told not to.
func (r *rabbit) listeners() {
	set := false
	for _, s := range append(r.conf.under("mqtt.listeners.tcp."), r.conf.get("mqtt.listeners.tcp"), r.conf.get("mqtt.tcp_listeners")) {
		if s.value == "" {
			continue
		}
		set = true
		if s.value != "none" && !loopback(s.value) {
			r.add(rulePlaintext, s.at, "MQTT listens on %.64s", s.value)
		}
	}
	if !set {
		r.add(rulePlaintext, place{r.file, 0}, "mqtt.listeners.tcp is not set: the plugin listens on 1883 everywhere; set it to none")
	}
}

// logins looks for clients without a name, and for guest.
func (r *rabbit) logins() {
	anonymous, user := r.conf.get("mqtt.allow_anonymous"), r.conf.get("anonymous_login_user")
	if anonymous.value != "false" && user.value != "none" {
		at := anonymous.at
		if at.file == "" {
			at = place{r.file, user.at.line}
		}
		r.add(ruleAnonymous, at, "neither mqtt.allow_anonymous = false (3.x) nor anonymous_login_user = none (4.x)")
	}
	for _, s := range []setting{r.conf.get("loopback_users.guest"), r.conf.get("loopback_users")} {
		if s.value == "false" || s.value == "none" {
			r.add(ruleGuestRemote, s.at, "guest is not bound to the loopback address")
		}
	}
	for _, key := range []string{"default_pass", "mqtt.default_pass"} {
		if s := r.conf.get(key); s.value == "guest" {
			r.add(ruleDefaultUser, s.at, "%s is guest", key)
		} else if s.value != "" {
			r.add(rulePlainPassword, s.at, "%s is in the configuration", key)
		}
	}
	if s := r.conf.get("auth_backends.1"); s.value != "" && s.value != "internal" && s.value != "rabbit_auth_backend_internal" {
		r.unknown("whom the backend %.64q lets in, and what it allows", s.value)
	}
}

// tls audits ssl_options.
func (r *rabbit) tls() {
	at := place{r.file, 0}
	verify, require := r.tlsOption("verify"), r.tlsOption("fail_if_no_peer_cert")
	switch {
	case verify.value != "verify_peer":
		r.add(ruleNoClientCert, at, "ssl_options.verify is not verify_peer")
	case require.value != "true":
		r.add(ruleNoClientCert, require.at, "ssl_options.fail_if_no_peer_cert is not true: clients with a password come without one")
	}
	if r.conf != nil && verify.value == "verify_peer" && !yes(r.conf.get("mqtt.ssl_cert_login").value) {
		r.add(ruleCertNoIdentity, verify.at, "mqtt.ssl_cert_login is not true")
	}
	versions := r.conf.under("ssl_options.versions.")
	if s := r.erlang("versions"); s.value != "" {
		for _, v := range strings.FieldsFunc(s.value, func(c rune) bool { return strings.ContainsRune("[]', \n\t", c) }) {
			versions = append(versions, setting{"", v, s.at})
		}
	}
	for _, s := range versions {
		if oldTLS(s.value) {
			r.add(ruleOldTLS, s.at, "versions has %.32s", s.value)
		}
	}
	trust, chain, key := r.tlsOption("cacertfile"), r.tlsOption("certfile"), r.tlsOption("keyfile")
	r.trustBundle(trust.value, trust.at)
	r.serverChain(chain.value, chain.at)
	r.privateKey(key.value, key.at)
	if verify.value == "verify_peer" {
		r.revocation(at)
	}
}

// revocation audits how CRLs are found, and those that are there.
func (r *rabbit) revocation(at place) {
	for _, s := range r.conf.under("ssl_options.crl_sources") {
		r.add(ruleCRLSources, s.at, "ssl_options.crl_sources%.32s", s.key)
	}
	switch check := r.tlsOption("crl_check"); check.value {
	case "":
		r.add(ruleNoCRL, at, "crl_check is not set")
		return
	case "best_effort", "false":
		r.add(ruleBestEffort, check.at, "crl_check is %s", check.value)
	}
	if !strings.Contains(r.advanced, "ssl_crl_hash_dir") {
		return
	}
	dir := r.erlang("dir")
	name, missing := r.find(dir.value)
	if missing {
		r.add(ruleMissingFile, dir.at, "the directory of the CRLs is %.128q, which is not there", dir.value)
		return
	}
	if name == "" {
		name = r.dir // a copy of the files, all in one folder
	}
	files, err := fs.Glob(r.src, path.Join(name, "*.r[0-9]"))
	if err != nil || len(files) == 0 {
		r.unknown("the CRLs in %.128q: there is no HASH.r0 among the files given", dir.value)
		return
	}
	for _, file := range files {
		if text, err := r.read(file); err == nil {
			r.checked(file)
			r.crls(file, text)
		}
	}
}

// findDefinitions audits the users and permissions that are loaded at the start.
func (r *rabbit) findDefinitions() {
	s := r.conf.get("load_definitions")
	if s.value == "" {
		s = r.conf.get("definitions.local.path")
	}
	if s.value == "" && r.exists(path.Join(r.dir, "definitions.json")) {
		s = setting{"", "definitions.json", place{r.file, 0}}
	}
	if s.value == "" {
		r.unknown("users and permissions: there are no definitions; get them with rabbitmqctl export_definitions")
		return
	}
	if text, name, ok := r.open("the definitions", s.value, s.at, ruleMissingFile); ok {
		r.definitions(name, text)
	}
}
