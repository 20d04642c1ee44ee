package doctor

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"
)

// auditEMQX audits emqx.conf or base.hocon. What the dashboard has set since is in
// data/configs/cluster.hocon, which is a configuration of the same form.
func auditEMQX(a *audit, file string, text []byte) {
	root := readTree(file, text)
	a.unknown("what data/configs/cluster.hocon and EMQX_ environment variables change")
	for _, inc := range root.all("include") {
		a.unknown("what the included file %.128q says", inc.text())
	}
	for _, kind := range []string{"tcp", "ws"} {
		def := root.get("listeners", kind, "default")
		if def == nil {
			a.add(ruleDefaultListener, place{file, 0}, "listeners.%s.default is not mentioned", kind)
		}
		for _, l := range root.get("listeners", kind).each() {
			if emqxOn(l) && !loopback(l.get("bind").text()) {
				a.add(rulePlaintext, l.place(), "listeners.%s.%.64s", kind, l.key)
			}
		}
	}
	for _, kind := range []string{"ssl", "wss", "quic"} {
		for _, l := range root.get("listeners", kind).each() {
			if emqxOn(l) && len(l.kids) > 0 && l.get("ssl_options") != nil {
				a.emqxListener(root, kind, l)
			}
		}
	}
	a.emqxAuthn(root, file)
	a.emqxAuthz(root, file)
	switch p := root.get("dashboard", "default_password"); p.text() {
	case "":
		a.unknown("whether the dashboard's admin still has the password public")
	case "public":
		a.add(ruleDefaultUser, p.place(), "the dashboard's admin has the password public")
	}
}

// emqxOn reports whether something is enabled, which it is without a word.
func emqxOn(n *node) bool {
	return n.get("enable").text() != "false" && n.get("enabled").text() != "false"
}

// emqxListener audits a TLS listener and the identity it gives its clients.
func (a *audit) emqxListener(root *node, kind string, l *node) {
	o := l.get("ssl_options")
	name := kind + ":" + l.key
	for _, v := range o.get("versions").each() {
		if oldTLS(v.text()) {
			a.add(ruleOldTLS, v.place(), "listener %.64q: versions has %.32q", name, v.text())
		}
	}
	a.trustBundle(o.get("cacertfile").text(), o.get("cacertfile").place())
	a.serverChain(o.get("certfile").text(), o.get("certfile").place())
	a.privateKey(o.get("keyfile").text(), o.get("keyfile").place())
	zone := func(key string) string {
		z := l.get("zone").text()
		if v := root.get("zones", z, "mqtt", key).text(); v != "" {
			return v
		}
		return root.get("mqtt", key).text()
	}
	set := func(v string) bool { return v != "" && v != "disabled" }
	if !set(zone("clientid_override")) && !set(zone("peer_cert_as_clientid")) {
		a.add(ruleClientID, l.place(), "listener %.64q: neither clientid_override nor peer_cert_as_clientid", name)
	}
	if o.get("verify").text() != "verify_peer" || o.get("fail_if_no_peer_cert").text() != "true" {
		a.add(ruleNoClientCert, l.place(), "listener %.64q: not both verify = verify_peer and fail_if_no_peer_cert = true", name)
		if l.get("enable_authn").text() == "false" {
			a.add(ruleAnonymous, l.place(), "listener %.64q: enable_authn is false, and no certificate is required", name)
		}
		return
	}
	if !set(zone("peer_cert_as_username")) {
		a.add(ruleCertNoIdentity, l.place(), "listener %.64q: peer_cert_as_username is not set", name)
	}
	if o.get("enable_crl_check").text() != "true" {
		a.add(ruleNoCRL, l.place(), "listener %.64q: enable_crl_check is not true", name)
	}
}

// emqxAuthn audits the chain of authenticators: an empty one lets everybody in.
func (a *audit) emqxAuthn(root *node, file string) {
	chain := root.get("authentication")
	list := []*node{chain}
	if chain == nil || chain.list {
		list = chain.each()
	}
	on := 0
	for _, n := range list {
		if !emqxOn(n) {
			continue
		}
		on++
		a.emqxHash(n)
		if b := n.get("backend").text(); b != "built_in_database" && b != "" {
			a.unknown("whom the authentication backend %.64q lets in", b)
		}
		if f := n.get("bootstrap_file"); f.text() != "" {
			if text, name, ok := a.open("bootstrap_file", f.text(), f.place(), ruleMissingFile); ok {
				a.secrets(ruleFileReadable, "the file with users", name)
				a.emqxUsers(name, text)
			}
		}
	}
	if on == 0 {
		at := chain.place()
		if at.file == "" {
			at = place{file, 0}
		}
		a.add(ruleAnonymous, at, "there is no authenticator in this file")
	}
}

func (a *audit) emqxHash(n *node) {
	h := n.get("password_hash_algorithm")
	name := h.get("name").text()
	switch name {
	case "plain":
		a.add(rulePlainPassword, h.place(), "password_hash_algorithm is plain")
	case "md5", "sha":
		a.add(ruleWeakHash, h.place(), "password_hash_algorithm is %s", name)
	case "sha256", "sha512":
		if h.get("salt_position").text() == "disable" {
			a.add(ruleWeakHash, h.place(), "salt_position is disable: all users are guessed at once")
			return
		}
		a.add(ruleFastHash, h.place(), "password_hash_algorithm is %s", name)
	}
}

// emqxUser is a row of a file with users.
type emqxUser struct {
	ID        string `json:"user_id"`
	Hash      string `json:"password_hash"`
	Salt      string `json:"salt"`
	Password  string `json:"password"`
	Superuser any    `json:"is_superuser"`
}

// emqxUsers audits a file with users, CSV or JSON by its name.
func (a *audit) emqxUsers(file string, text []byte) {
	hashes := map[string]string{}
	check := func(u emqxUser, at place) {
		a.userName(u.ID, at)
		if fmt.Sprint(u.Superuser) == "true" {
			a.add(ruleSuperuser, at, "user %.128q", u.ID)
		}
		if u.Password != "" {
			a.add(rulePlainPassword, at, "user %.128q", u.ID)
		}
		key := u.Salt + ":" + u.Hash
		if other, ok := hashes[key]; ok && u.Hash != "" {
			a.add(ruleSharedHash, at, "users %.128q and %.128q", other, u.ID)
		}
		hashes[key] = u.ID
	}
	if path.Ext(file) == ".json" {
		var users []emqxUser
		if err := json.Unmarshal(text, &users); err != nil {
			a.unknown("users: %s is not JSON of users", file)
		}
		for _, u := range users {
			check(u, place{file, 0})
		}
		return
	}
	r := csv.NewReader(bytes.NewReader(text))
	r.LazyQuotes, r.FieldsPerRecord, r.ReuseRecord = true, -1, true
	var columns []string
	for {
		row, err := r.Read()
		if err == io.EOF {
			return
		}
		if err != nil {
			a.unknown("users: %s is not CSV after all", file)
			return
		}
		if columns == nil {
			columns = append(columns, row...)
			continue
		}
		line, _ := r.FieldPos(0)
		check(csvUser(columns, row), place{file, line})
	}
}

func csvUser(columns, row []string) emqxUser {
	var u emqxUser
	for i, c := range columns {
		if i >= len(row) {
			break
		}
		v := strings.TrimSpace(row[i])
		switch strings.TrimSpace(c) {
		case "user_id":
			u.ID = v
		case "password_hash":
			u.Hash = v
		case "salt":
			u.Salt = v
		case "password":
			u.Password = v
		case "is_superuser":
			u.Superuser = v
		}
	}
	return u
}
