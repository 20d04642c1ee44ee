package doctor

import (
	"bytes"
	"cmp"
	"crypto/pbkdf2"
	"crypto/sha512"
	"encoding/base64"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// An option is a line of a configuration.
type option struct {
	value string
	at    place
}

// mqSection is the general part of mosquitto.conf, or one listener.
type mqSection struct {
	at      place
	options map[string][]option
}

func (s *mqSection) get(key string) option {
	if v := s.options[key]; len(v) > 0 {
		return v[len(v)-1]
	}
	return option{}
}

func (s *mqSection) on(key string) bool { return s.get(key).value == "true" }

// mqConf is a mosquitto.conf with what it includes.
type mqConf struct {
	general   mqSection
	listeners []*mqSection
}

// mqListenerKeys are the options of mosquitto.conf(5) that belong to the listener
// above them. The others, above or below listeners, hold for the whole broker,
// but for mqSecurityKeys if per_listener_settings is true.
var mqListenerKeys = []string{
	"bind_address", "bind_interface", "cafile", "capath", "certfile", "ciphers", "ciphers_tls1.3", "crlfile", "keyfile",
	"listener_allow_anonymous", "max_connections", "max_qos", "mount_point", "protocol", "psk_hint", "require_certificate",
	"socket_domain", "tls_engine", "tls_keyform", "tls_version", "use_identity_as_username", "use_subject_as_username",
	"use_username_as_clientid", "disable_client_cert_date_checks",
}

var mqSecurityKeys = []string{
	"acl_file", "allow_anonymous", "allow_zero_length_clientid", "auto_id_prefix", "password_file", "plugin", "auth_plugin",
	"psk_file", "plugin_opt_config_file", "plugin_opt_password_file", "plugin_opt_acl_file",
}

const maxIncludes = 8 // how deep files include others

// auditMosquitto audits a mosquitto.conf.
func auditMosquitto(a *audit, file string, text []byte) {
	c := mqConf{general: mqSection{at: place{file, 0}, options: map[string][]option{}}}
	c.parse(a, file, text, maxIncludes)
	split := c.general.on("per_listener_settings")
	if split {
		a.add(rulePerListener, c.general.get("per_listener_settings").at, "each listener needs its own password_file, acl_file and allow_anonymous")
	}
	for _, l := range c.listeners {
		a.mqListener(l)
		if split {
			a.mqSecurity(&c.general, l, l)
		}
	}
	if !split {
		a.mqSecurity(&c.general, &c.general, c.listeners...)
	}
}

// parse reads a file, whatever it holds. Options before the first listener that
// belong to one make the default listener.
func (c *mqConf) parse(a *audit, file string, text []byte, depth int) {
	cur := &c.general
	for n, line := range lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
		o := option{strings.TrimSpace(value), place{file, n}}
		switch {
		case key == "include_dir":
			c.include(a, o, depth)
			continue
		case key == "listener", key == "port":
			cur = &mqSection{at: o.at, options: map[string][]option{}}
			c.listeners = append(c.listeners, cur)
		case slices.Contains(mqListenerKeys, key):
			cur.options[key] = append(cur.options[key], o)
			continue
		case slices.Contains(mqSecurityKeys, key) && c.general.on("per_listener_settings"):
			cur.options[key] = append(cur.options[key], o)
			continue
		default:
			c.general.options[key] = append(c.general.options[key], o)
			continue
		}
		cur.options["listener"] = []option{o}
		for k, v := range c.general.options { // bind_address may stand above port
			if key == "port" && slices.Contains(mqListenerKeys, k) {
				cur.options[k] = v
			}
		}
	}
}

// include reads the files of a directory whose names end in .conf, in order.
func (c *mqConf) include(a *audit, o option, depth int) {
	name, missing := a.find(o.value)
	switch {
	case missing:
		a.add(ruleMissingFile, o.at, "include_dir is %.128q, which is not there", o.value)
		return
	case name == "":
		a.unknown("what include_dir %.128q adds: it is not among the files given", o.value)
		return
	}
	entries, err := fs.ReadDir(a.src, name)
	if err != nil || depth == 0 || len(entries) > maxFiles {
		a.unknown("what include_dir %.128q adds: it is too deep or cannot be read", o.value)
		return
	}
	for _, e := range entries {
		file := path.Join(name, e.Name())
		if e.IsDir() || path.Ext(file) != ".conf" {
			continue
		}
		text, err := a.read(file)
		if err != nil {
			a.unknown("%s cannot be read: %v", file, err)
			continue
		}
		a.checked(file)
		c.parse(a, file, text, depth-1)
	}
}

// mqListener audits what is about one listener alone.
func (a *audit) mqListener(l *mqSection) {
	port, bind, _ := strings.Cut(l.get("listener").value, " ")
	if port == "0" {
		return // a socket of the machine
	}
	if bind = strings.TrimSpace(bind); bind == "" {
		bind = l.get("bind_address").value
	}
	psk := l.get("psk_hint").value != ""
	if !psk && l.get("certfile").value == "" {
		if !loopback(bind) && l.get("bind_interface").value != "lo" {
			a.add(rulePlaintext, l.at, "listener %.32s has no certfile, and is not on the loopback address", port)
		}
		return
	}
	if v := l.get("tls_version"); oldTLS(v.value) {
		a.add(ruleOldTLS, v.at, "tls_version is the lowest that is allowed: %.32s", v.value)
	}
	if !l.on("use_username_as_clientid") {
		a.add(ruleClientID, l.at, "listener %.32s: use_username_as_clientid is not true", port)
	}
	a.trustBundle(l.get("cafile").value, l.get("cafile").at)
	if o := l.get("capath"); o.value != "" {
		a.unknown("the certificates in capath %.128q", o.value)
	}
	a.serverChain(l.get("certfile").value, l.get("certfile").at)
	a.privateKey(l.get("keyfile").value, l.get("keyfile").at)
	a.crlFile(l.get("crlfile").value, l.get("crlfile").at)
	if !psk {
		a.mqCertificates(l, port)
	}
}

// mqCertificates audits what a listener asks of client certificates.
func (a *audit) mqCertificates(l *mqSection, port string) {
	identity := l.on("use_identity_as_username") || l.on("use_subject_as_username")
	required, crl := l.on("require_certificate"), l.get("crlfile")
	if !required {
		a.add(ruleNoClientCert, l.at, "listener %.32s: require_certificate is not true", port)
	}
	switch {
	case identity && !required:
		a.add(ruleIdentityNoCert, l.at, "listener %.32s", port)
	case !identity && required:
		a.add(ruleCertNoIdentity, l.at, "listener %.32s: use_identity_as_username is not true", port)
	}
	switch {
	case required && crl.value == "":
		a.add(ruleNoCRL, l.at, "listener %.32s has no crlfile", port)
	case !required && crl.value != "":
		a.add(ruleCRLNoEffect, crl.at, "listener %.32s", port)
	}
}

// mqSecurity audits who may connect and what they may do: the options of s, which
// hold for listeners, and the plugins of 2.1 that hold for all.
func (a *audit) mqSecurity(general, s *mqSection, listeners ...*mqSection) {
	pluginOption := func(key string) option { return cmp.Or(s.get(key), general.get(key)) }
	anonymous := s.get("allow_anonymous")
	for _, l := range listeners {
		if o := l.get("listener_allow_anonymous"); o.value == "true" {
			anonymous = o
		}
	}
	if anonymous.value == "true" {
		a.add(ruleAnonymous, anonymous.at, "allow_anonymous is true")
	}
	passwords, acl := s.get("password_file"), s.get("acl_file")
	decided, dynsec := false, false
	for _, p := range slices.Concat(s.options["plugin"], s.options["auth_plugin"], general.options["global_plugin"]) {
		switch path.Base(p.value) {
		case "mosquitto_dynamic_security.so":
			dynsec = true
		case "mosquitto_password_file.so":
			passwords = pluginOption("plugin_opt_password_file")
		case "mosquitto_acl_file.so":
			acl = pluginOption("plugin_opt_acl_file")
		default:
			decided = true
			a.unknown("whom the plugin %.128q lets in, and what it allows", path.Base(p.value))
		}
	}
	if dynsec {
		o := pluginOption("plugin_opt_config_file")
		if text, name, ok := a.open("plugin_opt_config_file", o.value, o.at, ruleMissingFile); ok {
			a.secrets(ruleFileReadable, "the file of the dynamic security plugin", name)
			a.dynsec(name, text)
		}
	}
	if text, name, ok := a.mqFile("password_file", passwords, ruleMissingFile); ok {
		a.secrets(ruleFileReadable, "the password file", name)
		a.mqPasswords(name, text)
	}
	if text, name, ok := a.mqFile("acl_file", acl, ruleACLMissing); ok {
		a.mqACL(name, text)
	}
	if acl.value == "" && !dynsec && !decided {
		a.add(ruleNoACL, s.at, "there is neither acl_file nor a plugin: every client may use every topic")
	}
}

func (a *audit) mqFile(what string, o option, whenMissing ruleID) (text []byte, name string, ok bool) {
	if o.value == "" {
		return nil, "", false
	}
	return a.open(what, o.value, o.at, whenMissing)
}

// mqPasswords audits a password file: USER:HASH lines.
func (a *audit) mqPasswords(file string, text []byte) {
	users, hashes := map[string]bool{}, map[string]string{}
	for n, line := range lines(text) {
		user, hash, ok := strings.Cut(line, ":")
		if line == "" || line[0] == '#' || !ok {
			continue
		}
		user, at := strings.TrimSpace(user), place{file, n}
		hash, _, _ = strings.Cut(hash, ":")
		if users[user] || user == "" {
			a.add(rulePasswordLine, at, "user %.128q is there a second time, or has no name", user)
		}
		users[user] = true
		a.userName(user, at)
		if other, ok := hashes[hash]; ok && other != user && hash != "" {
			a.add(ruleSharedHash, at, "users %.128q and %.128q", other, user)
		} else {
			hashes[hash] = user
		}
		a.mqHash(user, hash, at)
	}
}

// mqHash looks at the stored form of one password.
func (a *audit) mqHash(user, hash string, at place) {
	parts := strings.Split(hash, "$")
	switch {
	case strings.HasPrefix(hash, "$6$") && len(parts) == 4:
		a.add(ruleFastHash, at, "user %.128q: $6$ is one round of SHA-512", user)
		parts = parts[2:]
	case strings.HasPrefix(hash, "$7$") && len(parts) == 5:
		if n, err := strconv.Atoi(parts[2]); err != nil || n < 1 {
			a.add(rulePasswordLine, at, "user %.128q: the number of iterations is none", user)
		}
		parts = parts[3:]
	case strings.HasPrefix(hash, "$argon2id$"):
		return
	case strings.HasPrefix(hash, "$"), hash == "":
		a.add(rulePasswordLine, at, "user %.128q has a hash of an unknown form", user)
		return
	default:
		a.add(rulePlainPassword, at, "user %.128q has what looks like a password and not like a hash: mosquitto_passwd -U was not run", user)
		return
	}
	salt, err := base64.StdEncoding.DecodeString(parts[0])
	sum, err2 := base64.StdEncoding.DecodeString(parts[1])
	if err != nil || err2 != nil || len(sum) != 64 || len(salt) != 12 && len(salt) != 64 {
		a.add(rulePasswordLine, at, "user %.128q: salt or hash has the wrong length", user)
	}
	a.defaultPassword(user, hash, at)
}

// defaultPassword tries the passwords of installations on the users of
// installations, against a hash of Mosquitto's.
func (a *audit) defaultPassword(user, hash string, at place) {
	for _, l := range defaultLogins() {
		if l[0] == user && mqVerify(hash, l[1]) {
			a.add(ruleDefaultUser, at, "user %s has the password %s", l[0], l[1])
		}
	}
}

// maxIterations of PBKDF2 that are computed: some seconds' worth.
const maxIterations = 5_000_000

// mqVerify reports whether a password has the hash $6$SALT$HASH or
// $7$ITERATIONS$SALT$HASH.
func mqVerify(hash, password string) bool {
	parts := strings.Split(hash, "$")
	if len(parts) < 4 {
		return false
	}
	salt, err := base64.StdEncoding.DecodeString(parts[len(parts)-2])
	want, err2 := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || err2 != nil {
		return false
	}
	if parts[1] == "6" {
		got := sha512.Sum512(append([]byte(password), salt...))
		return bytes.Equal(got[:], want)
	}
	n, err := strconv.Atoi(parts[2])
	if err != nil || n < 1 || n > maxIterations {
		return false
	}
	got, err := pbkdf2.Key(sha512.New, password, salt, n, sha512.Size)
	return err == nil && bytes.Equal(got, want)
}

// userName looks at a name wherever one is defined.
func (a *audit) userName(user string, at place) {
	if unsafe(user) {
		a.add(ruleUnsafeName, at, "user %.128q", user)
	}
}
