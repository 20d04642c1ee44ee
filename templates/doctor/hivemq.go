package doctor

import (
	"encoding/xml"
	"path"
	"strings"
)

// hiveConfig is the part of config.xml that is audited.
type hiveConfig struct {
	Listeners struct {
		TCP   []hiveListener `xml:"tcp-listener"`
		WS    []hiveListener `xml:"websocket-listener"`
		TLS   []hiveListener `xml:"tls-tcp-listener"`
		TLSWS []hiveListener `xml:"tls-websocket-listener"`
	} `xml:"listeners"`
}

type hiveListener struct {
	Port string `xml:"port"`
	Bind string `xml:"bind-address"`
	TLS  struct {
		Protocols []string `xml:"protocols>protocol"`
		Mode      string   `xml:"client-authentication-mode"`
	} `xml:"tls"`
}

// hiveRBAC is credentials.xml of the file RBAC extension.
type hiveRBAC struct {
	Users []struct {
		Name     string   `xml:"name"`
		Password string   `xml:"password"`
		Roles    []string `xml:"roles>id"`
	} `xml:"users>user"`
	Roles []struct {
		ID          string `xml:"id"`
		Permissions []struct {
			Topic    string `xml:"topic"`
			Activity string `xml:"activity"`
		} `xml:"permissions>permission"`
	} `xml:"roles>role"`
}

// auditHiveMQ audits config.xml and what it finds of extensions, or one of the
// files of the file RBAC extension.
func auditHiveMQ(a *audit, file string, text []byte) {
	if strings.Contains(string(text), "<file-rbac") {
		a.unknown("listeners and TLS: they are in config.xml")
		a.hiveRBAC(file, text, a.hivePlain())
		return
	}
	var c hiveConfig
	if err := xml.Unmarshal(text, &c); err != nil {
		a.unknown("all of %s: it is not XML", file)
		return
	}
	for _, l := range append(c.Listeners.TCP, c.Listeners.WS...) {
		if !loopback(l.Bind) {
			a.add(rulePlaintext, place{file, 0}, "listener at %.64s port %.16s has no TLS", l.Bind, l.Port)
		}
	}
	at := place{file, 0}
	for _, l := range append(c.Listeners.TLS, c.Listeners.TLSWS...) {
		for _, p := range l.TLS.Protocols {
			if oldTLS(strings.TrimSpace(p)) {
				a.add(ruleOldTLS, at, "listener at port %.16s: %.32s", l.Port, p)
			}
		}
		if strings.TrimSpace(l.TLS.Mode) != "REQUIRED" {
			a.add(ruleNoClientCert, at, "listener at port %.16s: client-authentication-mode is not REQUIRED", l.Port)
			continue
		}
		a.add(ruleNoCRL, at, "HiveMQ CE reads no CRL: removing the user, or short-lived certificates, take its place")
		a.add(ruleCertNoIdentity, at, "HiveMQ takes no user name from a certificate without an extension that does")
		a.unknown("the certificates in the key stores of HiveMQ")
	}
	a.hiveExtensions(file)
}

// hiveExtensions looks for the extensions that decide who gets in.
func (a *audit) hiveExtensions(file string) {
	found := false
	for _, base := range []string{a.dir, path.Dir(a.dir)} {
		ext := path.Join(base, "extensions")
		if !a.exists(ext) {
			continue
		}
		found = true
		all := path.Join(ext, "hivemq-allow-all-extension")
		if a.exists(all) && !a.exists(path.Join(all, "DISABLED")) {
			a.add(ruleAnonymous, place{all, 0}, "the extension that allows everything to everybody is installed")
		}
	}
	if !found {
		a.unknown("the extensions of HiveMQ: whether the one that allows everything is off, and which one decides")
	}
	rbac := false
	for _, name := range a.hivePlaces("credentials.xml") {
		if a.exists(name) && !rbac {
			rbac = true
			if text, err := a.read(name); err == nil {
				a.checked(name)
				a.hiveRBAC(name, text, a.hivePlain())
			}
		}
	}
	if !rbac {
		a.unknown("users and permissions: there is no credentials.xml of the file RBAC extension")
	}
	a.add(ruleClientID, place{file, 0}, "HiveMQ ties no client identifier to a user without an extension that does, or rules with ${{clientid}}")
}

// hivePlaces are where a file of the extension may be; the first wins in HiveMQ, too.
func (a *audit) hivePlaces(name string) []string {
	var out []string
	for _, base := range []string{".", "extensions/hivemq-file-rbac-extension", "../extensions/hivemq-file-rbac-extension"} {
		out = append(out, path.Join(a.dir, base, name), path.Join(a.dir, base, "conf", name))
	}
	return out
}

// hivePlain reports whether the extension is set to passwords as they are.
func (a *audit) hivePlain() bool {
	for _, name := range append(a.hivePlaces("extension-config.xml"), a.hivePlaces("config.xml")...) {
		if !a.exists(name) {
			continue
		}
		var c struct {
			XMLName xml.Name `xml:"extension-configuration"`
			Type    string   `xml:"password-type"`
			Next    string   `xml:"next-extension-instead-of-fail"`
		}
		if text, err := a.read(name); err == nil && xml.Unmarshal(text, &c) == nil {
			a.checked(name)
			if yes(strings.TrimSpace(c.Next)) {
				a.add(ruleNextExtension, place{name, 0}, "next-extension-instead-of-fail is true")
			}
			return strings.TrimSpace(c.Type) == "PLAIN"
		}
	}
	return false
}

func (a *audit) hiveRBAC(file string, text []byte, plain bool) {
	a.secrets(ruleFileReadable, "the file with users", file)
	at := place{file, 0}
	var c hiveRBAC // encoding/xml opens no external entities
	if err := xml.Unmarshal(text, &c); err != nil {
		a.add(ruleRefusedFile, at, "it is not XML")
		return
	}
	roles, holders := map[string]bool{}, map[string]string{}
	for _, r := range c.Roles {
		if roles[r.ID] {
			a.add(ruleRefusedFile, at, "role %.128q is there twice", r.ID)
		}
		roles[r.ID] = true
	}
	if len(c.Users) == 0 {
		a.add(ruleRefusedFile, at, "there are no users")
	}
	names, hashes := map[string]bool{}, map[string]string{}
	for _, u := range c.Users {
		a.userName(u.Name, at)
		if names[u.Name] || len(u.Roles) == 0 {
			a.add(ruleRefusedFile, at, "user %.128q is there twice, or has no roles", u.Name)
		}
		names[u.Name] = true
		for _, r := range u.Roles {
			if !roles[r] {
				a.add(ruleRefusedFile, at, "user %.128q: there is no role %.128q", u.Name, r)
			}
			if !adminLike(u.Name) {
				holders[r] = u.Name
			}
		}
		a.hivePassword(u.Name, u.Password, plain, hashes, at)
	}
	for _, r := range c.Roles {
		if holders[r.ID] == "" {
			continue // nobody, or administrators only
		}
		for _, p := range r.Permissions {
			if partial(p.Topic, "${{username}}", "${{clientid}}") {
				a.add(rulePartial, at, "role %.128q: %.128q", r.ID, p.Topic)
			}
			switch {
			case !everything(p.Topic):
			case p.Activity == "SUBSCRIBE":
				a.add(ruleWildcardRead, at, "role %.128q: %.128q", r.ID, p.Topic)
			default:
				a.add(ruleWildcard, at, "role %.128q: %.128q", r.ID, p.Topic)
			}
		}
	}
}

// hivePassword looks at the stored form of one password: SALT:ITERATIONS:HASH.
func (a *audit) hivePassword(user, password string, plain bool, hashes map[string]string, at place) {
	parts := strings.Count(password, ":") + 1
	switch {
	case plain || parts == 1:
		a.add(rulePlainPassword, at, "user %.128q", user)
	case parts == 2:
		a.add(ruleDeadHash, at, "user %.128q", user)
	}
	if other, ok := hashes[password]; ok {
		a.add(ruleSharedHash, at, "users %.128q and %.128q", other, user)
	}
	hashes[password] = user
}
