package doctor

import "slices"

// auditNanoMQ audits a nanomq.conf. NanoMQ has no CRL, never ties a certificate to
// a user, and stores passwords as they are.
func auditNanoMQ(a *audit, file string, text []byte) {
	root := readTree(file, text)
	listeners := root.get("listeners")
	for _, kind := range []string{"tcp", "ws"} {
		for _, l := range nanoListeners(listeners.get(kind)) {
			if emqxOn(l) && !loopback(l.get("bind").text()) {
				a.add(rulePlaintext, l.place(), "listeners.%s is on %.64q", kind, l.get("bind").text())
			}
		}
	}
	for _, kind := range []string{"ssl", "wss"} {
		for _, l := range nanoListeners(listeners.get(kind)) {
			if emqxOn(l) {
				a.nanoListener(l)
			}
		}
	}
	if h := root.get("http_server"); h != nil {
		if p := h.get("password").text(); p == "" || p == "public" {
			a.add(ruleDefaultUser, h.place(), "http_server has the password of the installation: admin/public")
		}
	}
	auth := root.get("auth")
	at := auth.place()
	if at.file == "" {
		at = place{file, 0}
	}
	if auth.get("allow_anonymous").text() != "false" {
		a.add(ruleAnonymous, at, "auth.allow_anonymous is not false")
	}
	if auth.get("no_match").text() != "deny" {
		a.add(ruleDefaultAllow, at, "auth.no_match is not deny")
	}
	// A service that is asked decides as well: then no table and no list are needed.
	asked := auth.get("http_auth") != nil
	if asked {
		a.unknown("whom the HTTP service lets in, and what it allows")
	}
	a.add(ruleClientID, at, "NanoMQ ties no client identifier to a user, unless each rule has both under \"and\"")
	if !asked || auth.get("password") != nil {
		if users, at, ok := a.nanoInclude(auth.get("password"), at, "the user table"); ok {
			a.nanoUsers(users, at)
		}
	}
	if !asked || auth.get("acl") != nil {
		if rules, at, ok := a.nanoInclude(auth.get("acl"), at, "the access list"); ok {
			a.nanoRules(rules.get("rules"), at)
		}
	}
}

// nanoListeners are one listener, or several by name.
func nanoListeners(n *node) []*node {
	if n == nil || n.get("bind") != nil {
		return slices.DeleteFunc([]*node{n}, func(n *node) bool { return n == nil })
	}
	return n.each()
}

func (a *audit) nanoListener(l *node) {
	if v := l.get("tls_version"); oldTLS(v.text()) {
		a.add(ruleOldTLS, v.place(), "tls_version is %.32q", v.text())
	}
	a.trustBundle(l.get("cacertfile").text(), l.get("cacertfile").place())
	a.serverChain(l.get("certfile").text(), l.get("certfile").place())
	a.privateKey(l.get("keyfile").text(), l.get("keyfile").place())
	if l.get("verify_peer").text() != "true" || l.get("fail_if_no_peer_cert").text() != "true" {
		a.add(ruleNoClientCert, l.place(), "not both verify_peer and fail_if_no_peer_cert are true")
		return
	}
	a.add(ruleNoCRL, l.place(), "NanoMQ reads no CRL: removing the user and restarting, or short-lived certificates, take its place")
	a.add(ruleCertNoIdentity, l.place(), "NanoMQ never compares the certificate with the user name")
}

// nanoInclude returns what is written at a place, or in the file that is included
// there, and where that is.
func (a *audit) nanoInclude(n *node, at place, what string) (*node, place, bool) {
	inc := n.get("include")
	switch {
	case n == nil && what == "the access list":
		a.add(ruleNoACL, at, "auth has no acl")
		return nil, at, false
	case n == nil:
		return &node{}, at, true // no table is an empty one
	case inc == nil:
		return n, n.at, true
	}
	text, name, ok := a.open(what, inc.text(), inc.place(), ruleMissingFile)
	if !ok {
		return nil, at, false
	}
	if what == "the user table" {
		a.secrets(ruleFileReadable, what, name)
	}
	return readTree(name, text), place{name, 0}, true
}

func (a *audit) nanoUsers(users *node, at place) {
	if len(users.kids) == 0 {
		a.add(ruleEmptyUsers, at, "the user table has no entry")
		return
	}
	a.add(rulePlainStore, at, "%d passwords", len(users.kids))
	byPassword := map[string]string{}
	for _, u := range users.kids {
		a.userName(u.key, u.at)
		if u.key == "admin" && u.value == "public" {
			a.add(ruleDefaultUser, u.at, "user admin has the password public")
		}
		if other, ok := byPassword[u.value]; ok {
			a.add(ruleSharedHash, u.at, "users %.128q and %.128q", other, u.key)
		}
		byPassword[u.value] = u.key
	}
}

// nanoRules audits the access list; the first rule that matches counts.
func (a *audit) nanoRules(rules *node, at place) {
	if len(rules.each()) == 0 {
		a.add(ruleNoACL, at, "the access list has no rules")
	}
	for _, r := range rules.each() {
		if r.get("permit").text() != "allow" {
			continue
		}
		who := ""
		for _, key := range []string{"username", "clientid", "ipaddr", "and", "or"} {
			if n := r.get(key); n != nil && who == "" {
				who = key + " " + n.text()
			}
		}
		topics := r.get("topics")
		switch {
		case who == "" && topics == nil:
			a.add(ruleDefaultAllow, r.at, "a rule allows everything to everybody")
			continue
		case who == "":
			a.add(ruleAnyUser, r.at, "permit allow")
		}
		if topics == nil || !topics.list || len(topics.kids) == 0 {
			a.add(ruleEmptyTopics, r.at, "%.128s", who)
			continue
		}
		if adminLike(who) {
			continue
		}
		action := r.get("action").text()
		for _, f := range topics.kids {
			a.hoconTopic(f.at, who, f.text(), action != "subscribe", action != "publish")
		}
	}
}
