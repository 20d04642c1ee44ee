package mosquitto

import (
	"fmt"
	"io"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Where an option of mosquitto.conf may stand.
const (
	global   = 1 << iota // before the first listener
	listener             // after one
	repeated             // more than once
)

// options lists the options that are read. Others are refused: what is not
// understood could let somebody in. They are those of mosquitto.conf(5) that
// neither open a way around the files nor lead to other brokers.
var options = map[string]int{
	"allow_anonymous": global, "allow_zero_length_clientid": global,
	"password_file": global, "acl_file": global,
	"plugin": global | repeated, "global_plugin": global | repeated,
	"plugin_opt_config_file": global, "plugin_opt_password_file": global, "plugin_opt_acl_file": global,
	"max_keepalive": global, "max_packet_size": global, "max_queued_messages": global, "max_queued_bytes": global,
	"max_inflight_messages": global, "max_inflight_bytes": global, "message_size_limit": global,
	"persistent_client_expiration": global, "queue_qos0_messages": global, "retain_available": global,
	"connection_messages": global, "log_type": global | repeated, "log_dest": global | repeated,
	"log_timestamp": global, "log_timestamp_format": global, "sys_interval": global, "set_tcp_nodelay": global,
	"persistence": global, "persistence_location": global, "persistence_file": global, "autosave_interval": global,
	"pid_file": global, "user": global,

	"listener": listener | repeated, "protocol": listener, "max_connections": listener, "max_qos": listener,
	"cafile": listener, "certfile": listener, "keyfile": listener, "crlfile": listener,
	"require_certificate": listener, "use_identity_as_username": listener, "use_username_as_clientid": listener,
	"tls_version": listener, "ciphers": listener, "ciphers_tls1.3": listener,
}

// A section is the global part of a configuration or one listener.
type section map[string][]string

func (s section) get(key string) string {
	if v := s[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// readConf reads a configuration into its global part and its listeners. The
// value of a listener's own line is under "listener".
func readConf(r io.Reader) (section, []section, error) {
	general, listeners := section{}, []section(nil)
	for l, err := range lines(r) {
		if err != nil {
			return nil, nil, err
		}
		key, value, err := splitConfLine(l)
		if err != nil {
			return nil, nil, err
		}
		if key == "" {
			continue
		}
		where, known := options[key]
		if !known {
			return nil, nil, &lineError{l.n, fmt.Sprintf("option %.128q is not one that is read here", key)}
		}
		cur := general
		switch {
		case key == "listener":
			cur = section{}
			listeners = append(listeners, cur)
		case where&global != 0 && len(listeners) > 0:
			return nil, nil, &lineError{l.n, key + " after a listener"}
		case where&listener != 0 && len(listeners) == 0:
			return nil, nil, &lineError{l.n, key + " before the first listener"}
		case where&listener != 0:
			cur = listeners[len(listeners)-1]
		}
		if where&repeated == 0 && len(cur[key]) > 0 {
			return nil, nil, &lineError{l.n, key + " a second time"}
		}
		cur[key] = append(cur[key], value)
	}
	return general, listeners, nil
}

// splitConfLine returns the option and its value; no option for a line that says
// nothing. Words are separated by spaces.
func splitConfLine(l textLine) (key, value string, err error) {
	text := strings.TrimRight(string(l.text), " ")
	if text == "" || text[0] == '#' {
		return "", "", nil
	}
	if !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return "", "", &lineError{l.n, "a tab or another control character"}
	}
	key, value, _ = strings.Cut(text, " ")
	value = strings.TrimLeft(value, " ")
	if key == "" || value == "" {
		return "", "", &lineError{l.n, "want OPTION VALUE"}
	}
	return key, value, nil
}

// A setup is what an export depends on in a configuration.
type setup struct {
	conf  conf
	files map[string]string // names of the files in the folder, by their role in an export
}

// readSetup reads a configuration and checks that nobody gets past the files:
// no anonymous clients, rules for everybody, the certificate's name as user name.
func readSetup(r io.Reader) (*setup, error) {
	general, listeners, err := readConf(r)
	if err != nil {
		return nil, err
	}
	s := &setup{files: map[string]string{}}
	if general.get("allow_anonymous") != "false" {
		return nil, fmt.Errorf("want allow_anonymous false: our fleets have no clients without a name")
	}
	if err := s.readRules(general); err != nil {
		return nil, err
	}
	for _, l := range listeners {
		if err := s.readListener(l); err != nil {
			return nil, fmt.Errorf("listener %s: %w", l.get("listener"), err)
		}
	}
	return s, nil
}

// readRules finds the files with passwords and rules, and so version and form.
func (s *setup) readRules(general section) error {
	plugins := slices.Concat(general["plugin"], general["global_plugin"])
	s.conf.Version, s.conf.Form = V20, Auto
	if len(general["global_plugin"]) > 0 {
		s.conf.Version = V21
	}
	roles := map[string]string{PasswordName: general.get("password_file"), ACLName: general.get("acl_file")}
	for _, p := range plugins {
		switch path.Base(p) {
		case "mosquitto_dynamic_security.so":
			s.conf.Form = Dynsec
			roles[DynsecName] = general.get("plugin_opt_config_file")
		case "mosquitto_password_file.so":
			roles[PasswordName] = general.get("plugin_opt_password_file")
		case "mosquitto_acl_file.so":
			roles[ACLName] = general.get("plugin_opt_acl_file")
		default:
			return fmt.Errorf("plugin %.128q is not one that is read here", path.Base(p))
		}
	}
	acl := roles[ACLName] != "" && roles[PasswordName] != ""
	if acl == (roles[DynsecName] != "") {
		return fmt.Errorf("want a password file and an ACL file, or dynamic security: without rules everything is allowed")
	}
	for role, p := range roles {
		if p != "" {
			s.files[role] = path.Base(p)
		}
	}
	return nil
}

// readListener sorts a listener into one of the three kinds of an export.
func (s *setup) readListener(l section) error {
	port, bind, _ := strings.Cut(l.get("listener"), " ")
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fmt.Errorf("want a port")
	}
	if n == 0 {
		if s.conf.Socket = bind; !path.IsAbs(bind) {
			return fmt.Errorf("want the path of a socket")
		}
		return nil
	}
	if bind != "" {
		if _, err := netip.ParseAddr(bind); err != nil {
			return fmt.Errorf("want an IP address to listen at")
		}
	}
	s.conf.Bind = bind
	if l.get("use_username_as_clientid") != "true" {
		return fmt.Errorf("want use_username_as_clientid true: else any user can take over any session")
	}
	for role, key := range map[string]string{TrustName: "cafile", ChainName: "certfile", KeyName: "keyfile", CRLName: "crlfile"} {
		if p := l.get(key); p != "" {
			s.files[role] = path.Base(p)
		}
	}
	if l.get("certfile") == "" || l.get("keyfile") == "" {
		return fmt.Errorf("want TLS: certfile and keyfile")
	}
	if l.get("require_certificate") != "true" {
		s.conf.PasswordPort = uint16(n)
		return nil
	}
	s.conf.CertificatePort = uint16(n)
	if l.get("use_identity_as_username") != "true" || l.get("cafile") == "" || l.get("crlfile") == "" {
		return fmt.Errorf("want use_identity_as_username true, cafile and crlfile")
	}
	return nil
}
