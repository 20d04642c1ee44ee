package mosquitto

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/imprint-iot/imprint/templates"
)

// goodConf is the configuration of a plain export.
func goodConf(t testing.TB, version, form string) string {
	t.Helper()
	c := newConf(templates.Node{Bind: "127.0.0.1", CertificatePort: 1, PasswordPort: 2, Admin: &templates.Admin{Socket: "/run/a.sock"}},
		"/etc/x y", version, form, "/usr/lib")
	b, err := fill(confText, &c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReadSetup(t *testing.T) {
	for _, version := range []string{V20, V21} {
		for _, form := range []string{Auto, Dynsec} {
			s, err := readSetup(strings.NewReader(goodConf(t, version, form)))
			if err != nil {
				t.Fatal(err)
			}
			want := conf{Version: version, Form: form, Bind: "127.0.0.1", CertificatePort: 1, PasswordPort: 2, Socket: "/run/a.sock"}
			if s.conf != want {
				t.Errorf("%s %s: read %+v, want %+v", version, form, s.conf, want)
			}
			for role, name := range s.files {
				if role != name {
					t.Errorf("%s %s: %s is called %s", version, form, role, name)
				}
			}
		}
	}
}

// What could let somebody in, or is not understood, is refused.
func TestReadSetupRefuses(t *testing.T) {
	good := goodConf(t, V20, Auto)
	for _, tt := range []struct{ name, old, new string }{
		{"anonymous", "allow_anonymous false", "allow_anonymous true"},
		{"anonymous by default", "allow_anonymous false\n", ""},
		{"no ACL file", "acl_file /etc/x y/acl_file\n", ""},
		{"no password file", "password_file /etc/x y/password_file\n", ""},
		{"no identity", "use_identity_as_username true", "use_identity_as_username false"},
		{"no CRL", "crlfile /etc/x y/crl.pem\n", ""},
		{"no CA", "cafile /etc/x y/trust.pem\n", ""},
		{"client identifiers free", "use_username_as_clientid true", "use_username_as_clientid false"},
		{"no TLS", "certfile /etc/x y/server-chain.pem\n", ""},
		{"unknown option", "max_keepalive", "auth_plugin"},
		{"bridge", "max_keepalive 3600", "connection cloud"},
		{"include", "max_keepalive 3600", "include_dir /etc/mosquitto/conf.d"},
		{"per listener", "max_keepalive 3600", "per_listener_settings true"},
		{"unknown plugin", "max_keepalive 3600", "plugin /usr/lib/other.so"},
		{"option twice", "max_keepalive 3600", "max_keepalive 3600\nmax_keepalive 1"},
		{"global after listener", "require_certificate true", "require_certificate true\nallow_anonymous true"},
		{"listener option first", "max_keepalive 3600", "cafile /x"},
		{"tab", "max_keepalive 3600", "max_keepalive\t3600"},
		{"no value", "max_keepalive 3600", "max_keepalive"},
		{"port", "listener 1 ", "listener 70000 "},
		{"host name", "listener 1 127.0.0.1", "listener 1 localhost"},
		{"both kinds of rules", "max_keepalive 3600", "plugin /x/mosquitto_dynamic_security.so\nplugin_opt_config_file /x/d.json"},
		{"NUL", "max_keepalive", "max\x00keepalive"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(good, tt.old, tt.new, 1)
			if text == good {
				t.Fatalf("%q is not in the configuration", tt.old)
			}
			if s, err := readSetup(strings.NewReader(text)); err == nil {
				t.Errorf("read as %+v", s)
			}
		})
	}
}

func FuzzReadConf(f *testing.F) {
	f.Add(goodConf(f, V20, Auto))
	f.Add(goodConf(f, V21, Dynsec))
	f.Fuzz(func(t *testing.T, text string) {
		s, err := readSetup(strings.NewReader(text))
		if err != nil {
			return
		}
		if s.conf.Form == Dynsec != (s.files[DynsecName] != "") || (s.conf.Form == Auto) != (s.files[ACLName] != "") {
			t.Errorf("form %s with files %v", s.conf.Form, s.files)
		}
		for _, name := range s.files {
			if strings.ContainsAny(name, "/\n") && name != "/" {
				t.Errorf("file %q", name)
			}
		}
	})
}

const goodDynsec = `{"defaultACLAccess":{"publishClientSend":false,"publishClientReceive":false,"subscribe":false,"unsubscribe":true},
"clients":[{"username":"d1","textname":"x","clientid":"d1","password":"lp0Cm29zl+CI/RXyXDKvLye7OxM3OuE6RMzgXTX/f3imS/pFh2Ur7yarLDpKRUKpB0tOj6l0UrRv41zqxmD4tg==","salt":"AAECAwQFBgcICQoL","iterations":101,"roles":[{"rolename":"r","priority":0}]}],
"groups":[],
"roles":[{"rolename":"r","acls":[{"acltype":"publishClientSend","topic":"f/%u/up","priority":0,"allow":true},
{"acltype":"publishClientReceive","topic":"f/+/down","priority":0,"allow":true},{"acltype":"subscribePattern","topic":"f/+/down","priority":0,"allow":true}]}]}`

// parseDynsecText reads a file of dynamic security as Parse does.
func parseDynsecText(version, text string) ([]templates.Entry, error) {
	v := &view{src: fstest.MapFS{DynsecName: {Data: []byte(text)}}, setup: &setup{conf: conf{Version: version, Form: Dynsec}}}
	err := v.loadDynsec()
	return v.held, err
}

func TestReadDynsec(t *testing.T) {
	for version, want := range map[string]string{
		V20: "[{publish f/%u/up 0} {receive f/+/down 0}]", // %u is a name on 2.0
		V21: "[{publish f/d1/up 0} {receive f/+/down 0}]",
	} {
		got, err := parseDynsecText(version, goodDynsec)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || got[0].ID != "d1" || fmt.Sprint(got[0].Grants) != want || len(got[0].Verifiers) != 1 || got[0].Certificate {
			t.Errorf("%s: read %+v, want %s", version, got, want)
		}
	}
}

func TestReadDynsecRefuses(t *testing.T) {
	for _, tt := range []struct{ name, old, new string }{
		{"not JSON", "{", "["},
		{"something after", `]}]}`, `]}]} {}`},
		{"default allows", `"subscribe":false`, `"subscribe":true`},
		{"default missing", `"subscribe":false,"unsubscribe":true`, `"subscribe":false`},
		{"unknown key", `"textname"`, `"disabled"`},
		{"key in another case", `"textname"`, `"Username"`},
		{"key twice", `"textname":"x"`, `"username":"d2"`},
		{"groups", `"groups":[]`, `"groups":[{}]`},
		{"hostile name", `"username":"d1"`, `"username":"d1\n"`},
		{"other client identifier", `"clientid":"d1"`, `"clientid":"d2"`},
		{"short salt", `AAECAwQFBgcICQoL`, `AAECAwQF`},
		{"no iterations", `"iterations":101,`, ``},
		{"negative iterations", `"iterations":101`, `"iterations":-1`},
		{"unknown role", `"roles":[{"rolename":"r"`, `"roles":[{"rolename":"x"`},
		{"role priority", `"rolename":"r","priority":0`, `"rolename":"r","priority":1`},
		{"deny", `"allow":true`, `"allow":false`},
		{"rule priority", `"priority":0,"allow"`, `"priority":9,"allow"`},
		{"receive without subscribe", `{"acltype":"subscribePattern","topic":"f/+/down","priority":0,"allow":true}`, ``},
		{"wildcard in a literal", `"subscribePattern"`, `"subscribeLiteral"`},
		{"unknown rule", `"publishClientSend"`, `"unsubscribePattern"`},
		{"bad filter", `f/%u/up`, `f/#/up`},
		{"deep", `"textname":"x"`, `"textname":` + strings.Repeat("[", 20) + strings.Repeat("]", 20)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(goodDynsec, tt.old, tt.new, 1)
			text = strings.Replace(text, "true},\n]", "true}]", 1)
			text = strings.Replace(text, "true},]", "true}]", 1)
			if text == goodDynsec {
				t.Fatalf("%q is not in the file", tt.old)
			}
			got, err := parseDynsecText(V21, text)
			if err == nil {
				t.Fatalf("read as %+v", got)
			}
			if len(err.Error()) > 500 {
				t.Errorf("the error is %d bytes long", len(err.Error()))
			}
		})
	}
}

func FuzzReadDynsec(f *testing.F) {
	f.Add(goodDynsec)
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := parseDynsecText(V21, text)
		if err != nil {
			return
		}
		prev := templates.Entry{}
		for _, e := range entries {
			if err := templates.CheckEntry(prev.ID, &e); err != nil {
				t.Errorf("%q: %v", text, err)
			}
			prev = e
		}
	})
}

// Files of others: out of order, in several sections, without a configuration.
func TestParseOthers(t *testing.T) {
	src := fstest.MapFS{
		PasswordName: {Data: []byte("zoe:" + vectors[1].text + "\nbob:" + vectors[0].text + "\n")},
		ACLName:      {Data: []byte("user zoe\ntopic read z\nuser Ann\ntopic write a\npattern read d/%u\nuser zoe\ntopic write z\n")},
	}
	v, err := Target{}.Parse(src)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for range 2 { // each range is a fresh pass
		got = nil
		for e, err := range v.Entries() {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("%s %d %t %v", e.ID, len(e.Verifiers), e.Certificate, e.Grants))
		}
	}
	want := []string{
		"Ann 0 true [{receive d/Ann 0} {publish a 0}]",
		"bob 1 false [{receive d/bob 0}]",
		"zoe 1 false [{receive d/zoe 0} {receive z 0} {publish z 0}]",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	hash := vectors[1].text
	for _, tt := range []struct{ name, passwords, acl string }{
		{"a user twice", "a:" + hash + "\na:" + hash, ""},
		{"a user twice, apart", "b:" + hash + "\na:" + hash + "\nb:" + hash, ""},
		{"two names that differ in case", "a:" + hash + "\nA:" + hash, ""},
		{"two names that differ in case, in two files", "a:" + hash, "user A\ntopic read x"},
		{"a bad line at the end", "a:" + hash, "user a\ntopic read x\nuser b\ntopic\tx"},
		{"an administrator with other rights", "", "user imprint-admin\ntopic read x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, err := Target{}.Parse(fstest.MapFS{PasswordName: {Data: []byte(tt.passwords)}, ACLName: {Data: []byte(tt.acl)}})
			if err != nil {
				return
			}
			for _, err := range v.Entries() {
				if err != nil {
					return // seen while reading two files side by side
				}
			}
			t.Error("it is read")
		})
	}
	if _, err := (Target{}).Parse(fstest.MapFS{PasswordName: {Data: nil}}); err == nil {
		t.Error("a password file without an ACL file is read: the broker allows everything")
	}
}

// The second fence of the configuration.
func TestConfRefuses(t *testing.T) {
	good := newConf(templates.Node{}, "/etc/x", V20, Auto, "/usr/lib")
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*conf){
		"line in path":    func(c *conf) { c.Dest = "/etc/x\nallow_anonymous true" },
		"CR in path":      func(c *conf) { c.Dest = "/etc/x\r" },
		"tab in path":     func(c *conf) { c.Dest = "/etc/\tx" },
		"space at end":    func(c *conf) { c.Dest = "/etc/x " },
		"relative path":   func(c *conf) { c.Dest = "etc" },
		"path not clean":  func(c *conf) { c.Dest = "/etc/../x" },
		"line in plugins": func(c *conf) { c.Plugins = "/usr\n" },
		"line in socket":  func(c *conf) { c.Socket = "/run\n" },
		"line in address": func(c *conf) { c.Bind = "127.0.0.1\nallow_anonymous true" },
		"host name":       func(c *conf) { c.Bind = "localhost" },
		"address zone":    func(c *conf) { c.Bind = "fe80::1%x\n" },
		"one port":        func(c *conf) { c.PasswordPort = c.CertificatePort },
	} {
		c := good
		change(&c)
		if err := c.check(); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestTemplatesNameEveryFile(t *testing.T) {
	for _, form := range []string{Auto, Dynsec} {
		x := export{form: form}
		c := newConf(templates.Node{}, "/etc/x", V20, form, "/usr/lib")
		readme, err := fill(readmeText, &c)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range x.plan().Files {
			if !f.Doc && !bytes.Contains(readme, []byte("`"+f.Name+"`")) {
				t.Errorf("the README of form %s does not mention %s", form, f.Name)
			}
		}
	}
}
