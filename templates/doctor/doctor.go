// Package doctor audits an MQTT broker that somebody already runs: its
// configuration files with [Files], or a live endpoint with [Endpoint]. It says
// what lets strangers in, what gives a device more than its own topics, and what
// will stop a revocation from having an effect.
//
// All that can be found is in one table, [Rules]: each rule has an ID that stays,
// a severity, a reason and a fix. A [Report] is honest about its limits: Checked
// says what was looked at, and Unknown what decides about access and could not be
// read. No finding holds a password, a hash or a key.
//
// Unlike the parsers of the targets, the ones here are lenient: a line that is not
// understood must not keep the rest from being looked at. What the brokers do with
// each setting was measured or read in their sources; the reasons are at the rules.
package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// A Severity says how bad a finding is.
type Severity string

// The severities, the worst first.
const (
	Error   Severity = "error"   // somebody gets in, or gets more than is meant, or nobody gets in soon
	Warning Severity = "warning" // one step from that
	Note    Severity = "note"    // right in some fleets and wrong in others
)

func (s Severity) rank() int {
	return slices.Index([]Severity{Note, Warning, Error}, s) // -1 for none
}

// A Finding is one rule that does not hold at one place.
type Finding struct {
	Rule     string   `json:"rule"` // ID of the rule, such as "MQ001-plaintext-listener"
	Severity Severity `json:"severity"`
	Title    string   `json:"title"`  // of the rule
	Detail   string   `json:"detail"` // what was found here
	Why      string   `json:"why"`
	Fix      string   `json:"fix"`
	File     string   `json:"file,omitempty"` // as it is called in the file system that was given
	Line     int      `json:"line,omitempty"` // counted from 1; 0: the whole file
}

// A Report is what an audit found.
type Report struct {
	Subject  string    `json:"subject"`  // what was audited: a file or an address
	Kind     string    `json:"kind"`     // one of the kinds, or "endpoint"
	Findings []Finding `json:"findings"` // the worst first
	Checked  []string  `json:"checked"`  // what was looked at
	Unknown  []string  `json:"unknown"`  // what could not be, and would have to be
}

// Worst returns the worst severity among the findings, and "" if there are none.
func (r Report) Worst() Severity {
	worst := Severity("")
	for _, f := range r.Findings {
		if f.Severity.rank() > worst.rank() {
			worst = f.Severity
		}
	}
	return worst
}

// The kinds of configuration that are read.
const (
	KindMosquitto = "mosquitto"
	KindRabbitMQ  = "rabbitmq"
	KindEMQX      = "emqx"
	KindVerneMQ   = "vernemq"
	KindNanoMQ    = "nanomq"
	KindFlashMQ   = "flashmq"
	KindNATS      = "nats"
	KindHiveMQ    = "hivemq"
	KindEndpoint  = "endpoint" // of a report on a live one
)

// ErrUnknownKind reports a file or a directory that holds no configuration of a
// broker known here. Name the kind in [FileOptions], or the right file.
var ErrUnknownKind = errors.New("no configuration of a known broker")

// FileOptions say how to read files. The zero value works.
type FileOptions struct {
	// Kind is the kind of the configuration; empty: found out by name and content.
	Kind string

	// Root is the directory that the file system given to [Files] is, as the
	// broker would call it, when its files are where the broker reads them: "/"
	// for os.DirFS("/"). A file that the configuration names below Root and that
	// is not there is then known to be missing.
	//
	// Empty means a copy, such as an export: a file that the configuration names
	// is looked for by the end of its path, and if there is none it is unknown.
	Root string

	// Now is the date certificates and CRLs are checked at; nil: [time.Now].
	Now func() time.Time
}

// Files audits the configuration of a broker. The name is that of the
// configuration file in src, or of a directory with one, such as "." for an
// export. Files that the configuration names are audited, too, as far as they are
// in src.
//
// The error is [ErrUnknownKind] or says what of the configuration file itself
// could not be read; whatever else cannot be read is in Report.Unknown.
func Files(src fs.FS, name string, o FileOptions) (Report, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	a := newAudit(src, o)
	a.rep.Subject = name
	info, err := fs.Stat(src, name)
	if err != nil {
		return Report{}, fmt.Errorf("reading the configuration: %w", err)
	}
	names := []string{name}
	if info.IsDir() {
		if names, err = candidates(src, name); err != nil {
			return Report{}, fmt.Errorf("reading the configuration: %w", err)
		}
	}
	kind, file, text, err := a.detect(names)
	if err != nil {
		return Report{}, err
	}
	a.rep.Kind, a.dir = kind, path.Dir(file)
	a.checked(file)
	run, ok := audits()[kind]
	if !ok {
		return Report{}, fmt.Errorf("kind %.32q: %w", kind, ErrUnknownKind)
	}
	clear(a.files)
	run(a, file, text)
	for _, other := range names {
		if other != file && !a.files[other] {
			a.unknown("what %s says: it is beside the configuration, which does not name it", other)
		}
	}
	return a.report(), nil
}

// audits are what is done with a configuration, by its kind.
func audits() map[string]func(a *audit, file string, text []byte) {
	return map[string]func(*audit, string, []byte){
		KindMosquitto: auditMosquitto,
		KindRabbitMQ:  auditRabbitMQ,
		KindEMQX:      auditEMQX,
		KindVerneMQ:   auditVerneMQ,
		KindNanoMQ:    auditNanoMQ,
		KindFlashMQ:   auditFlashMQ,
		KindNATS:      auditNATS,
		KindHiveMQ:    auditHiveMQ,
	}
}

// kindNames are the names that configurations have, the most telling first.
func kindNames() [][2]string {
	return [][2]string{
		{"mosquitto.conf", KindMosquitto}, {"rabbitmq.conf", KindRabbitMQ}, {"emqx.conf", KindEMQX},
		{"vernemq.conf", KindVerneMQ}, {"nanomq.conf", KindNanoMQ}, {"flashmq.conf", KindFlashMQ},
		{"nats-server.conf", KindNATS}, {"nats.conf", KindNATS}, {"base.hocon", KindEMQX},
		{"definitions.json", KindRabbitMQ}, {"advanced.config", KindRabbitMQ},
	}
}

// candidates are the files of a directory that may be a configuration: those with
// a known name first.
func candidates(src fs.FS, dir string) ([]string, error) {
	entries, err := fs.ReadDir(src, dir)
	if err != nil {
		return nil, err
	}
	rank := func(name string) int {
		return slices.IndexFunc(kindNames(), func(k [2]string) bool { return k[0] == name })
	}
	var known, other []string
	for _, e := range entries {
		switch ext := path.Ext(e.Name()); {
		case e.IsDir():
		case rank(e.Name()) >= 0:
			known = append(known, e.Name())
		case ext == ".conf" || ext == ".hocon" || ext == ".xml":
			other = append(other, e.Name())
		}
	}
	slices.SortFunc(known, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
	names := append(known, other...)
	for i := range names {
		names[i] = path.Join(dir, names[i])
	}
	return names, nil
}

// detect reads the first of the files that is a configuration.
func (a *audit) detect(names []string) (kind, file string, text []byte, err error) {
	for _, name := range names {
		if text, err = a.read(name); err != nil {
			return "", "", nil, fmt.Errorf("reading the configuration: %w", err)
		}
		kind = a.opts.Kind
		if i := slices.IndexFunc(kindNames(), func(k [2]string) bool { return k[0] == path.Base(name) }); kind == "" && i >= 0 {
			kind = kindNames()[i][1]
		}
		if kind == "" {
			kind = sniff(string(text))
		}
		if kind != "" {
			return kind, name, text, nil
		}
	}
	return "", "", nil, fmt.Errorf("%w: its name or its content does not tell which", ErrUnknownKind)
}

// sniff finds out the kind of a configuration by words that only one broker has;
// "" if there are none. The order matters: FlashMQ names Mosquitto's files.
func sniff(text string) string {
	for _, k := range []struct {
		kind  string
		words []string // one of them is in the text
	}{
		{KindHiveMQ, []string{"<hivemq", "<file-rbac"}},
		{KindVerneMQ, []string{"plugins.vmq_", "vmq_acl.", "vmq_passwd.", "listener.tcp.", "listener.ssl."}},
		{KindFlashMQ, []string{"mosquitto_password_file", "mosquitto_acl_file", "client_verification_ca_file"}},
		{KindEMQX, []string{"ssl_options {", "ssl_options.", "authentication = [", "authorization {", "node.cookie"}},
		{KindNATS, []string{"jetstream", "verify_and_map", "server_name:", "allowed_connection_types"}},
		{KindNanoMQ, []string{"http_server", "listeners.tcp {", "listeners.ssl {", "deny_action"}},
		{KindMosquitto, []string{"password_file ", "acl_file ", "allow_anonymous true", "allow_anonymous false", "require_certificate ", "listener 1", "listener 8", "per_listener_settings", "include_dir "}},
	} {
		if k.kind == KindEMQX && rabbitKey(text) {
			return KindRabbitMQ
		}
		if slices.ContainsFunc(k.words, func(w string) bool { return strings.Contains(text, w) }) {
			return k.kind
		}
	}
	if strings.Contains(text, `"topic_permissions"`) {
		return KindRabbitMQ
	}
	return ""
}

// rabbitKey reports whether a line sets a key of RabbitMQ: EMQX, too, has
// ssl_options, but inside of a listener.
func rabbitKey(text string) bool {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "mqtt.listeners.") || strings.HasPrefix(line, "ssl_options.") || strings.HasPrefix(line, "load_definitions") || strings.HasPrefix(line, "mqtt.allow_anonymous") {
			return true
		}
	}
	return false
}
