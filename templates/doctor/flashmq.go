package doctor

import "strings"

// auditFlashMQ audits a flashmq.conf: KEY VALUE lines and listen { } blocks.
func auditFlashMQ(a *audit, file string, text []byte) {
	c := readTree(file, text)
	if n := c.get("allow_anonymous"); yes(n.text()) {
		a.add(ruleAnonymous, n.place(), "allow_anonymous is true")
	}
	plugin := c.get("plugin").text() != ""
	if plugin {
		a.unknown("whom the plugin lets in, and what it allows")
	}
	for _, l := range c.all("listen") {
		a.flashListener(l)
	}
	if n := c.get("mosquitto_password_file"); n.text() != "" {
		if text, name, ok := a.open("mosquitto_password_file", n.text(), n.place(), ruleMissingFile); ok {
			a.secrets(ruleFileReadable, "the password file", name)
			a.flashPasswords(name, text)
		}
	}
	n := c.get("mosquitto_acl_file")
	if n.text() == "" {
		if !plugin {
			a.add(ruleNoACL, place{file, 0}, "there is no mosquitto_acl_file")
		}
		return
	}
	if text, name, ok := a.open("mosquitto_acl_file", n.text(), n.place(), ruleMissingFile); ok {
		a.flashACL(name, text)
	}
}

// flashListener audits a listener. FlashMQ has no CRL, and binds sessions to user
// names by itself.
func (a *audit) flashListener(l *node) {
	chain := l.get("fullchain")
	if chain.text() == "" {
		if !loopback(l.get("inet4_bind_address").text()) && !loopback(l.get("inet6_bind_address").text()) {
			a.add(rulePlaintext, l.place(), "a listener has no fullchain, and is not on the loopback address")
		}
		return
	}
	if v := l.get("minimum_tls_version"); v.text() == "" || oldTLS(v.text()) {
		a.add(ruleOldTLS, l.place(), "minimum_tls_version is %.32q; without it FlashMQ takes TLS 1.1", v.text())
	}
	a.serverChain(chain.text(), chain.place())
	a.privateKey(l.get("privkey").text(), l.get("privkey").place())
	ca := l.get("client_verification_ca_file")
	if ca.text() == "" && l.get("client_verification_ca_dir").text() == "" {
		a.add(ruleNoClientCert, l.place(), "client_verification_ca_file is not set")
		return
	}
	a.trustBundle(ca.text(), ca.place())
	if !yes(l.get("client_verification_still_do_authn").text()) {
		a.add(ruleNoRevocation, l.place(), "client_verification_still_do_authn is not true")
	}
	a.add(ruleNoCRL, l.place(), "FlashMQ reads no CRL: removing the user's password line, or short-lived certificates, take its place")
}

// flashPasswords audits a password file: Mosquitto's, without comments, and with
// salts of any length.
func (a *audit) flashPasswords(file string, text []byte) {
	hashes := map[string]string{}
	for n, line := range lines(text) {
		user, hash, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		at := place{file, n}
		a.userName(user, at)
		if strings.ContainsAny(user, " ") {
			a.add(ruleCutUser, at, "user %.128q", user)
		}
		switch {
		case strings.HasPrefix(hash, "$6$"):
			a.add(ruleFastHash, at, "user %.128q: $6$ is one round of SHA-512", user)
		case !strings.HasPrefix(hash, "$"):
			a.add(rulePlainPassword, at, "user %.128q has what looks like a password and not like a hash", user)
		}
		if other, ok := hashes[hash]; ok && hash != "" {
			a.add(ruleSharedHash, at, "users %.128q and %.128q", other, user)
		}
		hashes[hash] = user
		a.defaultPassword(user, hash, at)
	}
}

// flashACL audits an access list: Mosquitto's, with deny before all else.
func (a *audit) flashACL(file string, text []byte) {
	user := func(at place, name string) {
		if strings.Contains(name, " ") {
			a.add(ruleCutUser, at, "user %.128q", name)
		}
		a.aclUser(at, name)
	}
	rules := readACL(file, text, user, func(at place, line string) {
		a.add(ruleACLSyntax, at, "%.128q: FlashMQ keeps all the old rules", line)
	})
	for _, r := range rules {
		if r.access == "deny" {
			a.add(ruleDeny, r.at, "deny %.128q", r.filter)
			continue
		}
		if r.pattern && partial(r.filter, "%u", "%c") {
			a.add(rulePartial, r.at, "pattern %.128q", r.filter)
		}
		if !r.pattern && r.user == "" {
			a.add(ruleBeforeUser, r.at, "topic %.128q", r.filter)
		}
		a.aclWildcard(r)
	}
}
