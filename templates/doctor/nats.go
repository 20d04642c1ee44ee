package doctor

import (
	"fmt"
	"strings"
)

// auditNATS audits the configuration of a NATS server with MQTT.
func auditNATS(a *audit, file string, text []byte) {
	root := readTree(file, text)
	mqtt := root.get("mqtt")
	if mqtt == nil {
		a.unknown("MQTT: there is no mqtt block in this file")
	} else {
		a.natsListener(mqtt)
	}
	for _, inc := range root.all("include") {
		a.unknown("what the included file %.128q says", inc.text())
	}
	for _, n := range []*node{root.get("no_auth_user"), mqtt.get("no_auth_user")} {
		if n.text() != "" {
			a.add(ruleAnonymous, n.place(), "no_auth_user: who says no name is %.128q", n.text())
		}
	}
	a.natsUsers(root, file)
}

func (a *audit) natsListener(mqtt *node) {
	addr := mqtt.get("listen").text()
	if addr == "" {
		addr = mqtt.get("host").text()
	}
	tls := mqtt.get("tls")
	if tls == nil {
		if !loopback(addr) {
			a.add(rulePlaintext, mqtt.place(), "mqtt has no tls")
		}
		return
	}
	if v := tls.get("min_version"); oldTLS(v.text()) {
		a.add(ruleOldTLS, v.place(), "min_version is %.32q", v.text())
	}
	a.trustBundle(tls.get("ca_file").text(), tls.get("ca_file").place())
	a.serverChain(tls.get("cert_file").text(), tls.get("cert_file").place())
	a.privateKey(tls.get("key_file").text(), tls.get("key_file").place())
	a.add(ruleClientID, mqtt.place(), "NATS ties no client identifier to a user")
	switch {
	case yes(tls.get("verify_and_map").text()):
	case yes(tls.get("verify").text()):
		a.add(ruleCertNoIdentity, tls.place(), "verify without verify_and_map")
	default:
		a.add(ruleNoClientCert, tls.place(), "neither verify_and_map nor verify")
		return
	}
	if tls.get("ocsp_peer") == nil {
		a.add(ruleNoCRL, tls.place(), "NATS reads no CRL, and ocsp_peer is not set: removing the mapped user takes its place")
	}
}

// natsUsers audits users, wherever they are.
func (a *audit) natsUsers(root *node, file string) {
	authz := root.get("authorization")
	known := authz.get("token") != nil || authz.get("auth_callout") != nil || authz.get("user") != nil ||
		root.get("operator") != nil || root.get("resolver") != nil
	if root.get("operator") != nil || root.get("resolver") != nil || authz.get("auth_callout") != nil {
		a.unknown("whom accounts outside of this file let in, and what they allow")
	}
	if authz.get("user") != nil {
		known = true
		a.natsUser(authz, authz.get("default_permissions") != nil)
	}
	lists := []*node{authz.get("users")}
	defaults := []bool{authz.get("default_permissions") != nil}
	for _, acc := range root.get("accounts").each() {
		if acc.key == "$SYS" || acc.key == root.get("system_account").text() {
			known = known || len(acc.get("users").each()) > 0
			continue
		}
		lists, defaults = append(lists, acc.get("users")), append(defaults, acc.get("default_permissions") != nil)
	}
	for i, list := range lists {
		for _, u := range list.each() {
			known = true
			a.natsUser(u, defaults[i])
		}
	}
	if !known {
		a.add(ruleAnonymous, place{file, authz.place().line}, "there are neither users nor accounts: everybody may connect")
	}
}

func (a *audit) natsUser(u *node, defaults bool) {
	name := u.get("user").text()
	if name == "" {
		name = u.get("nkey").text()
	}
	if p := u.get("password"); p.text() != "" && !strings.HasPrefix(p.text(), "$2") && !strings.HasPrefix(p.text(), "$") {
		a.add(rulePlainPassword, p.place(), "user %.128q", name)
	}
	p := u.get("permissions")
	if p == nil {
		if !defaults && !adminLike(name) {
			a.add(ruleNoACL, u.place(), "user %.128q has no permissions", name)
		}
		return
	}
	if adminLike(name) {
		return
	}
	for _, d := range []struct {
		keys []string
		id   ruleID
	}{{[]string{"publish", "pub"}, ruleWildcard}, {[]string{"subscribe", "sub"}, ruleWildcardRead}} {
		for _, key := range d.keys {
			for _, s := range natsSubjects(p.get(key)) {
				if s == ">" || s == "*.>" {
					a.add(d.id, p.get(key).place(), "user %.128q: %s %s", name, key, fmt.Sprintf("%.128q", s))
				}
			}
		}
	}
}

// natsSubjects are the subjects that are allowed: one, a list, or those under allow.
func natsSubjects(n *node) []string {
	if al := n.get("allow"); al != nil {
		n = al
	}
	if n == nil {
		return nil
	}
	if n.value != "" {
		return []string{n.value}
	}
	var out []string
	if n.list {
		for _, k := range n.kids {
			out = append(out, k.value)
		}
	}
	return out
}
