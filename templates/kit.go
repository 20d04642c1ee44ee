package templates

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"text/template"
	"unicode"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates/proof"
)

// A Kit is a [Target] made of parts: texts that are filled in once, lists with a
// record for each device, and a reader of these lists. Most brokers are no more.
type Kit struct {
	Caps Capabilities

	// Rule says why the broker cannot enforce a rule exactly, and what one could do
	// instead; nothing if it can. Nil: it can enforce every rule.
	Rule func(r topic.Rule) (why string, choices []string)

	// Texts are the files without devices. At least one that is no Doc has the
	// setting's Stamp in it, if there is anything to set.
	Texts []Text

	// More makes further files from the view and the setting; may be nil.
	More     func(v View, s *Setting) (map[string][]byte, error)
	MoreFile []PlanFile // what More makes

	// Lists are the files with a record for each device.
	Lists []List

	// Devices reads the lists back, one device after the other in the order of
	// canonical IDs.
	Devices func(src fs.FS, s *Setting) func(yield func(Entry, error) bool)

	// Pick returns the password verifier that the broker reads. Nil: it reads none,
	// and devices with only a password are left out.
	Pick func(verifiers []inventory.Verifier) (inventory.Verifier, bool)

	// ServiceForms are the forms that leave decisions to a running imprint. They need
	// [Options.Service], hold no device, and can express every rule.
	ServiceForms []string

	// NoNode leaves out the server's certificate, key and addresses: the broker is
	// somebody else's. NoTrust leaves out the trust bundle as well.
	NoNode, NoTrust bool

	// Check may refuse a setting or warn of one; may be nil.
	Check func(v View, s *Setting, out *Output) error

	// Evaluator reads an export as the broker's manual says it is read, apart from
	// all the rest of the kit; may be nil. See package proof.
	Evaluator func(src fs.FS) (proof.Evaluator, error)

	Enforced, NotEnforced []string
}

// Names of the files of a kit that hold keys and certificates.
const (
	TrustFile = "trust.pem"
	CRLFile   = "crl.pem" // if the broker reads CRLs
	ChainFile = "server-chain.pem"
	KeyFile   = "server.key"
)

// A Text is a file that is filled in once, by text/template, from a [*Setting].
type Text struct {
	PlanFile
	Text string
	Form string // the form that has it; empty: all
}

// A List is a file with a record for each device.
type List struct {
	PlanFile
	Head, Tail string // before the first record and after the last one
	Form       string // the form that has it; empty: all

	// Append appends the record of the n-th device, counted from 0, to b. A device
	// may have none.
	Append func(b []byte, n int, e *Entry, s *Setting) ([]byte, error)
}

// A Setting is what varies in the texts of an export.
type Setting struct {
	Version, Form   string
	Dest            string // absolute path of the files on the broker's host
	Bind            string // IP address; empty: all
	CertificatePort uint16
	PasswordPort    uint16
	Fleet           string // organization of the certificates
	TrustDomain     string
	Service         string // where decisions are made: "https://host:port"; empty: in the broker
	ServiceToken    string // [A-Za-z0-9_-]; a text that has it, or the stamp beside it, is 0640
}

// ServiceHost is the name in the service's URL, without the port.
func (s *Setting) ServiceHost() string {
	u, err := url.Parse(s.Service)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// ServiceLogin is the service's URL with the token as a password (RFC 3986 §3.2.1),
// for brokers that can send no header of their own.
func (s *Setting) ServiceLogin() (string, error) {
	return Service{URL: s.Service, Token: inventory.NewSecret([]byte(s.ServiceToken))}.Login()
}

// Address is where a listener listens: the address, or 0.0.0.0, and the port.
func (s *Setting) Address(port uint16) string {
	a := netip.IPv4Unspecified()
	if s.Bind != "" {
		a = netip.MustParseAddr(s.Bind) // checked by newSetting
	}
	return netip.AddrPortFrom(a, port).String()
}

const stampStart, stampEnd = "imprint/1:", ":imprint"

// Stamp is the setting as one word of [A-Za-z0-9/:+=]. A file that has it can be
// read back: it is what this setting makes of the text, or it is not ours.
func (s *Setting) Stamp() string {
	fields := []string{s.Version, s.Form, s.Dest, s.Bind, fmt.Sprint(s.CertificatePort), fmt.Sprint(s.PasswordPort), s.Fleet, s.TrustDomain, s.Service, s.ServiceToken}
	return stampStart + base64.StdEncoding.EncodeToString([]byte(strings.Join(fields, "\n"))) + stampEnd
}

func parseStamp(text []byte) (*Setting, error) {
	_, rest, ok := bytes.Cut(text, []byte(stampStart))
	word, _, end := bytes.Cut(rest, []byte(stampEnd))
	if !ok || !end || len(word) > 1<<13 {
		return nil, errors.New("it has not the mark of an export")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(string(word))
	if err != nil {
		return nil, fmt.Errorf("mark of the export: %w", err)
	}
	f := strings.Split(string(raw), "\n")
	s := &Setting{}
	if len(f) != 10 {
		return nil, errors.New("mark of the export: want 10 fields")
	}
	s.Version, s.Form, s.Dest, s.Bind, s.Fleet, s.TrustDomain, s.Service, s.ServiceToken = f[0], f[1], f[2], f[3], f[6], f[7], f[8], f[9]
	for i, p := range []*uint16{&s.CertificatePort, &s.PasswordPort} {
		if _, err := fmt.Sscan(f[4+i], p); err != nil {
			return nil, fmt.Errorf("mark of the export: %w", err)
		}
	}
	return s, s.check()
}

func (s *Setting) check() error {
	if !path.IsAbs(s.Dest) || path.Clean(s.Dest) != s.Dest || strings.ContainsAny(s.Dest, "\"\\'#$;,{}<>&= ") || strings.Contains(s.Dest, "--") || strings.ContainsFunc(s.Dest, unicode.IsControl) {
		return &inventory.InvalidError{Field: "destination", Value: s.Dest, Want: "an absolute path of letters, digits, dots, dashes and underscores"}
	}
	if s.Bind != "" {
		if a, err := netip.ParseAddr(s.Bind); err != nil || a.Zone() != "" {
			return &inventory.InvalidError{Field: "listening address", Value: s.Bind, Want: "an IP address"}
		}
	}
	if s.Service != "" || s.ServiceToken != "" {
		if err := checkService(s.Service, s.ServiceToken); err != nil {
			return err
		}
	}
	if s.CertificatePort == s.PasswordPort {
		return &inventory.InvalidError{Field: "ports", Value: s.Bind, Want: "two different ports"}
	}
	return nil
}

func checkService(service, token string) error {
	u, err := url.Parse(service)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || service != u.Scheme+"://"+u.Host || strings.ContainsAny(u.Host, "\"'{}$#%@ ") {
		return &inventory.InvalidError{Field: "service", Value: service, Want: "https:// and a host with a port, and nothing after it: the running imprint that is asked"}
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && u.Hostname() != "localhost" && (err != nil || !ip.IsLoopback()) {
		return &inventory.InvalidError{Field: "service", Value: service, Want: "https: plain http is for the same host"}
	}
	const safe = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
	if token == "" || strings.Trim(token, safe) != "" {
		return errors.New("token for the service: want one of the role broker, in its text form")
	}
	return nil
}

// Capabilities implements [Target].
func (k *Kit) Capabilities() Capabilities { return k.Caps }

// check reports the first rule that the broker cannot express.
func (k *Kit) check(p inventory.Profile) error {
	for i, r := range p.Policy.Rules {
		if why, choices := k.why(r); why != "" {
			return &InexpressibleError{
				Target: k.Caps.Name, Rule: fmt.Sprintf("profile %s, rule %d: %s %.128q", p.Name, i+1, r.Action, r.Filter), Why: why, Choices: choices,
			}
		}
	}
	return nil
}

func (k *Kit) why(r topic.Rule) (string, []string) {
	if strings.HasPrefix(r.Filter, "$share/") {
		return "it has no rules for shared subscriptions", []string{"the filter without $share"}
	}
	if strings.TrimFunc(r.Filter, unicode.IsSpace) != r.Filter || strings.ContainsFunc(r.Filter, unicode.IsControl) {
		return "spaces at the ends and control characters are not safe in its files", []string{"another name for this level"}
	}
	if k.Rule == nil {
		return "", nil
	}
	return k.Rule(r)
}

// A kitTarget is a kit as a Target.
type kitTarget struct{ *Kit }

// NewTarget returns the target that a kit is.
func NewTarget(k Kit) Target { return kitTarget{&k} }

// Check implements [Target].
func (t kitTarget) Check(p inventory.Profile) error { return t.check(p) }

// Evaluator reads an export as its broker would, apart from Parse; nil if nobody has
// written that down.
func (t kitTarget) Evaluator(src fs.FS) (proof.Evaluator, error) {
	if t.Kit.Evaluator == nil {
		return nil, nil //nolint:nilnil // nothing to read it with is no error
	}
	return t.Kit.Evaluator(src)
}

// Write implements [Target].
func (t kitTarget) Write(dst *durable.Dir, v View, o Options) (Summary, error) {
	s, err := t.setting(v, cmp.Or(o.Dest, dst.Path()), o)
	if err != nil {
		return Summary{}, err
	}
	if t.asks(s) {
		v, o.AllowShrink = asking{v}, true // no device in the files is what is meant
	}
	for p, err := range v.Profiles() {
		if err != nil {
			return Summary{}, err
		}
		if err := t.check(p); err != nil && !t.asks(s) {
			return Summary{}, err
		}
	}
	return Export(dst, v, o, Plan{
		Target: t.Caps.Name, Version: s.Version, Form: s.Form, Files: t.files(s), RevocationLatency: t.Caps.RevocationLatency,
		Enforced: t.Enforced, NotEnforced: t.NotEnforced,
		Render: func(out *Output) error { return t.render(v, s, out) },
		Parse:  t.Parse,
	})
}

// asks reports whether the broker asks a running imprint.
func (k *Kit) asks(s *Setting) bool { return slices.Contains(k.ServiceForms, s.Form) }

// asking is a fleet as a broker knows it that asks: nobody is in its files.
type asking struct{ View }

// Entries implements [View].
func (asking) Entries() iter.Seq2[Entry, error] { return func(func(Entry, error) bool) {} }

func (k *Kit) setting(v View, dest string, o Options) (*Setting, error) {
	n := v.Node()
	s := &Setting{
		Version: cmp.Or(o.Version, k.Caps.Versions[0]), Form: cmp.Or(o.Form, k.Caps.Forms[0]), Dest: dest, Bind: n.Bind,
		CertificatePort: cmp.Or(n.CertificatePort, DefaultCertificatePort), PasswordPort: cmp.Or(n.PasswordPort, DefaultPasswordPort),
		Fleet: v.Fleet().Name, TrustDomain: v.Fleet().TrustDomain,
	}
	if k.asks(s) {
		s.Service, s.ServiceToken = o.Service.URL, string(o.Service.Token.Reveal())
		if err := checkService(s.Service, s.ServiceToken); err != nil {
			return nil, err
		}
	}
	switch {
	case !slices.Contains(k.Caps.Versions, s.Version):
		return nil, &inventory.InvalidError{Field: k.Caps.Name + " version", Value: s.Version, Want: "one of " + strings.Join(k.Caps.Versions, ", ")}
	case !slices.Contains(k.Caps.Forms, s.Form):
		return nil, &inventory.InvalidError{Field: k.Caps.Name + " form", Value: s.Form, Want: "one of " + strings.Join(k.Caps.Forms, ", ")}
	case n.Admin != nil:
		return nil, &inventory.InvalidError{Field: "administration", Value: n.Admin.Socket, Want: "none: imprint does not work on a running " + k.Caps.Title}
	case strings.ContainsFunc(s.Fleet+s.TrustDomain, unicode.IsControl):
		return nil, &inventory.InvalidError{Field: "fleet", Value: s.Fleet, Want: "a name without control characters"}
	}
	return s, s.check()
}

// files is the order in which an export is put in place: what takes rights away
// comes first.
func (k *Kit) files(s *Setting) []PlanFile {
	var files []PlanFile
	if k.Caps.CRL {
		files = append(files, PlanFile{Name: CRLFile, Mode: 0o644})
	}
	if !k.NoTrust {
		files = append(files, PlanFile{Name: TrustFile, Mode: 0o644})
	}
	for _, l := range k.Lists {
		if l.Form == "" || l.Form == s.Form {
			files = append(files, l.PlanFile)
		}
	}
	if !k.NoNode {
		files = append(files, PlanFile{Name: ChainFile, Mode: 0o644}, PlanFile{Name: KeyFile, Mode: 0o600})
	}
	files = append(files, k.MoreFile...)
	for _, t := range k.Texts {
		if t.Form == "" || t.Form == s.Form {
			files = append(files, t.PlanFile)
		}
	}
	return files
}

func (k *Kit) render(v View, s *Setting, out *Output) error {
	if err := checkPKI(v, out, k.omits()); err != nil {
		return err
	}
	if k.Check != nil {
		if err := k.Check(v, s, out); err != nil {
			return err
		}
	}
	plain := map[string][]byte{}
	if k.More != nil {
		more, err := k.More(v, s)
		if err != nil {
			return err
		}
		plain = more
	}
	if !k.NoTrust {
		plain[TrustFile] = v.TrustBundle()
	}
	if !k.NoNode {
		plain[ChainFile], plain[KeyFile] = v.Node().ServerChain, v.Node().ServerKey.Reveal()
	}
	for _, t := range k.Texts {
		if t.Form != "" && t.Form != s.Form {
			continue
		}
		b, err := fillText(t.Text, s)
		if err != nil {
			return fmt.Errorf("filling %s: %w", t.Name, err)
		}
		plain[t.Name] = b
	}
	for name, data := range plain {
		if _, err := out.File(name).Write(data); err != nil {
			return err
		}
	}
	if k.Caps.CRL {
		if err := WriteCRLs(out.File(CRLFile), v.CRLs()); err != nil {
			return err
		}
	}
	return k.renderLists(v, s, out)
}

// renderLists writes all lists in one pass over the devices.
func (k *Kit) renderLists(v View, s *Setting, out *Output) error {
	var lists []List
	var files []io.Writer
	for _, l := range k.Lists {
		if l.Form == "" || l.Form == s.Form {
			lists, files = append(lists, l), append(files, out.File(l.Name))
		}
	}
	for i, l := range lists {
		if _, err := io.WriteString(files[i], l.Head); err != nil {
			return err
		}
	}
	out.Devices, out.Users, out.Rules = 0, 0, 0
	var prev inventory.DeviceID
	var buf []byte
	left := 0
	for e, err := range v.Entries() {
		if err != nil {
			return err
		}
		if err := CheckEntry(prev, &e); err != nil {
			return err
		}
		prev = e.ID
		carried, ok, err := k.carry(e)
		if err != nil {
			return err
		}
		if !ok {
			left++
			continue
		}
		for i, l := range lists {
			if buf, err = l.Append(buf[:0], out.Devices, &carried, s); err != nil {
				return err
			}
			if _, err := files[i].Write(buf); err != nil {
				return err
			}
		}
		out.Devices++
		if len(carried.Verifiers) > 0 {
			out.Users++
		}
		out.Rules += len(carried.Grants)
	}
	for i, l := range lists {
		if _, err := io.WriteString(files[i], l.Tail); err != nil {
			return err
		}
	}
	if left > 0 {
		out.Warn(fmt.Sprintf("%d devices are left out: %s", left, k.leftOut()))
	}
	return nil
}

func (k *Kit) leftOut() string {
	if k.Pick == nil {
		return "they have only a password, and this broker knows none of imprint's"
	}
	return "they have only a certificate, and this broker takes no identity from one"
}

// carry returns what of e this broker can hold, and false if it lets the device in
// by nothing that it has. A password that could be held but has no verifier the
// broker reads is an error: it is more often a mistake than a wish.
func (k *Kit) carry(e Entry) (Entry, bool, error) {
	c := Entry{ID: e.ID, Certificate: e.Certificate && k.Caps.CertificateIdentity, Leafs: e.Leafs, Grants: e.Grants, HardwareSerial: e.HardwareSerial, Group: e.Group, Profile: e.Profile, Labels: e.Labels}
	if k.Pick != nil && len(e.Verifiers) > 0 {
		if v, ok := k.Pick(e.Verifiers); ok {
			c.Verifiers = []inventory.Verifier{v}
		} else if !c.Certificate {
			return c, false, &EntryError{e.ID, fmt.Sprintf("no password verifier that %s reads: want %v; set password-schemes and rotate its password", k.Caps.Title, k.Caps.Schemes)}
		}
	}
	return c, c.Certificate || len(c.Verifiers) > 0, nil
}

func fillText(text string, s *Setting) ([]byte, error) {
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, s); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
