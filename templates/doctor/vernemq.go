package doctor

import "strings"

// auditVerneMQ audits a vernemq.conf. Defaults are those of its schema: both file
// plugins on, anonymous access off, TLS 1.2.
func auditVerneMQ(a *audit, file string, text []byte) {
	c := readFlat(file, text)
	if s := c.get("allow_anonymous"); yes(s.value) {
		a.add(ruleAnonymous, s.at, "allow_anonymous is on")
	}
	for _, kind := range []string{"tcp", "ws"} {
		for _, s := range c.under("listener." + kind + ".") {
			if !strings.Contains(s.key, ".") && !loopback(s.value) {
				a.add(rulePlaintext, s.at, "listener.%s.%.64s is %.64s", kind, s.key, s.value)
			}
		}
	}
	for _, kind := range []string{"ssl", "wss"} {
		prefix := "listener." + kind + "."
		for _, s := range c.under(prefix) {
			if !strings.Contains(s.key, ".") {
				a.verneListener(c, prefix, s)
			}
		}
	}
	a.verneFiles(c, file)
}

// verneListener audits a TLS listener. Options that it does not have itself may be
// set for all listeners of its kind, in front of its name.
func (a *audit) verneListener(c flat, prefix string, l setting) {
	get := func(key string) setting {
		if s := c.get(prefix + l.key + "." + key); s.value != "" {
			return s
		}
		return c.get(prefix + key)
	}
	if s := get("tls_version"); oldTLS(s.value) {
		a.add(ruleOldTLS, s.at, "tls_version is %.32s", s.value)
	}
	required := yes(get("require_certificate").value)
	crl := get("crlfile")
	switch {
	case !required:
		a.add(ruleNoClientCert, l.at, "listener %.64q: require_certificate is not on", l.key)
	case !yes(get("use_identity_as_username").value):
		a.add(ruleCertNoIdentity, l.at, "listener %.64q: use_identity_as_username is not on", l.key)
	}
	switch {
	case required && crl.value == "":
		a.add(ruleNoCRL, l.at, "listener %.64q has no crlfile", l.key)
	case !required && crl.value != "":
		a.add(ruleCRLNoEffect, crl.at, "listener %.64q", l.key)
	}
	if s := get("allow_anonymous_override"); yes(s.value) && !required {
		a.add(ruleAnonymous, s.at, "listener %.64q: allow_anonymous_override without require_certificate", l.key)
	}
	a.trustBundle(get("cafile").value, l.at)
	a.serverChain(get("certfile").value, l.at)
	a.privateKey(get("keyfile").value, l.at)
	a.crlFile(crl.value, l.at)
}

// verneFiles audits passwords and rules.
func (a *audit) verneFiles(c flat, file string) {
	off := func(plugin string) bool { s := c.get("plugins." + plugin); return s.value != "" && !yes(s.value) }
	others := false
	for _, p := range []string{"vmq_diversity", "vmq_webhooks"} {
		if yes(c.get("plugins." + p).value) {
			others = true
			a.unknown("what the plugin %s lets in and allows", p)
		}
	}
	if !others {
		a.add(ruleClientID, place{file, 0}, "VerneMQ ties identifiers to users only by a webhook or a script, or by rules with %%c")
	}
	if off("vmq_acl") && !others {
		a.add(ruleNoACL, c.get("plugins.vmq_acl").at, "plugins.vmq_acl is off")
	}
	if s := c.get("vmq_passwd.password_file"); s.value != "" && !off("vmq_passwd") {
		if text, name, ok := a.open("the password file", s.value, s.at, ruleMissingFile); ok {
			a.secrets(ruleFileReadable, "the password file", name)
			a.vernePasswords(name, text)
		}
	}
	if s := c.get("vmq_acl.acl_file"); s.value != "" && !off("vmq_acl") {
		if text, name, ok := a.open("the access list", s.value, s.at, ruleMissingFile); ok {
			a.verneACL(name, text)
		}
	}
}

// vernePasswords audits vmq.passwd: NAME:$6$SALT$HASH and nothing else.
func (a *audit) vernePasswords(file string, text []byte) {
	hashes := map[string]string{}
	for n, line := range lines(text) {
		if line == "" {
			continue
		}
		at := place{file, n}
		user, hash, _ := strings.Cut(line, ":")
		if strings.Count(hash, "$") != 3 || !strings.HasPrefix(hash, "$6$") || strings.Contains(hash, ":") {
			a.add(ruleLoaderCrash, at, "user %.128q: not NAME:$6$SALT$HASH", user)
			continue
		}
		a.userName(user, at)
		a.add(ruleFastHash, at, "user %.128q: $6$ is one round of SHA-512", user)
		if other, ok := hashes[hash]; ok {
			a.add(ruleSharedHash, at, "users %.128q and %.128q", other, user)
		}
		hashes[hash] = user
		a.defaultPassword(user, hash, at)
	}
}

// verneACL audits vmq.acl. Topic lines before the first user are for everybody.
func (a *audit) verneACL(file string, text []byte) {
	if strings.Contains(string(text), "\r") {
		a.add(ruleLoaderCrash, place{file, 0}, "lines end in carriage returns, which become part of the topics")
	}
	rules := readACL(file, text, a.aclUser, func(at place, line string) {
		a.add(ruleLoaderCrash, at, "%.128q", line)
	})
	for _, r := range rules {
		if r.access == "deny" || r.access == "readwrite" {
			a.add(ruleLiteralRule, r.at, "%s %.128q", r.access, r.filter)
			continue
		}
		if r.pattern && partial(r.filter, "%u", "%c", "%m") {
			a.add(rulePartial, r.at, "pattern %.128q", r.filter)
		}
		if r.may("read") && endsInPlus(r.filter) && !everything(r.filter) {
			a.add(ruleSubscribePlus, r.at, "%.128q", r.filter)
		}
		a.aclWildcard(r)
	}
}
