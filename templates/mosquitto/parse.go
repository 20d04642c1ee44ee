package mosquitto

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// Parse implements [templates.Target]. It reads mosquitto.conf, if it is there,
// and the files that it names, all from the top of src; without it, the files
// that have the names of an export.
//
// Files in the order of IDs, as ours are, are read as they are ranged over, so
// src must stay as it is; others are held in memory.
func (Target) Parse(src fs.FS) (templates.View, error) {
	s, err := findFiles(src)
	if err != nil {
		return nil, err
	}
	v := &view{src: src, setup: s}
	if v.trust, err = optional(templates.ReadCertificates(src, s.file(TrustName))); err != nil {
		return nil, err
	}
	if v.node.ServerChain, err = optional(templates.ReadCertificates(src, s.file(ChainName))); err != nil {
		return nil, err
	}
	key, err := optional(templates.ReadFile(src, s.file(KeyName)))
	if err != nil {
		return nil, err
	}
	v.node.ServerKey = inventory.NewSecret(key)
	if v.crls, err = optional(templates.ReadCRLs(src, s.file(CRLName))); err != nil {
		return nil, err
	}
	v.node.Bind, v.node.CertificatePort, v.node.PasswordPort = s.conf.Bind, s.conf.CertificatePort, s.conf.PasswordPort
	if s.conf.Form == Dynsec {
		err = v.loadDynsec()
	} else {
		err = v.loadACL()
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

// findFiles reads the configuration or, without one, goes by the names.
func findFiles(src fs.FS) (*setup, error) {
	text, err := templates.ReadFile(src, ConfName)
	if err == nil {
		s, err := readSetup(newReader(text))
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", ConfName, err)
		}
		return s, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	s := &setup{conf: conf{Version: V20, Form: Auto}, files: map[string]string{}}
	if _, err := fs.Stat(src, DynsecName); err == nil {
		s.conf.Form = Dynsec
	}
	return s, nil
}

func (s *setup) file(role string) string { return cmp.Or(s.files[role], role) }

// optional lets a file be missing: a broker without TLS has none of these.
func optional[T any](v T, err error) (T, error) {
	if errors.Is(err, fs.ErrNotExist) {
		var zero T
		return zero, nil
	}
	return v, err
}

// A view is a fleet as the files of a broker tell it.
type view struct {
	src   fs.FS
	setup *setup
	trust []byte
	crls  []templates.CRL
	node  templates.Node

	patterns []pattern         // ACL forms
	streams  bool              // both files are in order: entries are read anew each time
	held     []templates.Entry // if not
}

// Revision implements [templates.View]: files do not know it.
func (v *view) Revision() uint64 { return 0 }

// Fleet implements [templates.View]: files do not know it.
func (v *view) Fleet() templates.Fleet { return templates.Fleet{} }

// Node implements [templates.View].
func (v *view) Node() templates.Node { return v.node }

// TrustBundle implements [templates.View].
func (v *view) TrustBundle() []byte { return v.trust }

// CRLs implements [templates.View].
func (v *view) CRLs() []templates.CRL { return v.crls }

// Profiles implements [templates.View]: one, with the patterns.
func (v *view) Profiles() iter.Seq2[inventory.Profile, error] {
	return func(yield func(inventory.Profile, error) bool) {
		if len(v.patterns) == 0 {
			return
		}
		p := inventory.Profile{Name: "mosquitto"}
		for i := range v.patterns {
			p.Policy.Rules = append(p.Policy.Rules, v.patterns[i].rule)
		}
		yield(p, nil)
	}
}

// Entries implements [templates.View].
func (v *view) Entries() iter.Seq2[templates.Entry, error] {
	if v.streams {
		return v.stream
	}
	return func(yield func(templates.Entry, error) bool) {
		for _, e := range v.held {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Omits implements [templates.Partial]: all of it is there.
func (v *view) Omits() templates.Omits { return templates.Omits{} }

// Carry implements [templates.Partial]: a device that has no password and no
// rights but the patterns is not in the files.
func (v *view) Carry(e templates.Entry) (templates.Entry, bool) {
	c := templates.Entry{ID: e.ID, Grants: e.Grants}
	if p, ok := pick(e.Verifiers, v.setup.conf.Version); ok && (v.setup.conf.Form != Dynsec || p.Scheme == inventory.PBKDF2SHA512) {
		c.Verifiers = []inventory.Verifier{p}
	}
	if v.setup.conf.Form == Dynsec {
		return c, true
	}
	rest, _ := exceptions(nil, v.patterns, e.ID, e.Grants)
	return c, len(rest) > 0 || len(v.patterns) == 0 || len(c.Verifiers) > 0
}

// loadACL checks both files from end to end and finds out whether they are in
// order.
func (v *view) loadACL() error {
	v.streams = true
	last := ""
	order := func(user string) {
		if id := inventory.DeviceID(user).Canonical(); id > last {
			last = id
		} else {
			v.streams = false
		}
	}
	for p, err := range v.passwords() {
		if err != nil {
			return err
		}
		if isAdmin(p.user) {
			v.admin().Verifiers = []inventory.Verifier{p.verifier}
			continue
		}
		order(p.user)
	}
	last = ""
	for s, err := range v.stanzas() {
		switch {
		case err != nil:
			return err
		case isAdmin(s.user):
			if !slices.EqualFunc(merge(nil, s.grants), adminRules, func(a, b access) bool { return a == b }) {
				return fmt.Errorf("reading %s: %w", v.setup.file(ACLName), &lineError{s.line, s.user + " has other rules than imprint gives it"})
			}
			v.admin()
		case s.user == "":
			for _, r := range s.patterns {
				v.patterns = append(v.patterns, newPattern(r))
			}
		default:
			order(s.user)
		}
	}
	if v.streams {
		return nil
	}
	return v.hold()
}

// admin returns the administrator of the node, who is in the files.
func (v *view) admin() *templates.Admin {
	if v.node.Admin == nil {
		v.node.Admin = &templates.Admin{Socket: v.setup.conf.Socket}
	}
	return v.node.Admin
}

// hold reads files that are not in order into memory. Sections of one user
// merge, as they do in the broker; two passwords of one user are an error, as
// for 2.1: 2.0 takes the last.
func (v *view) hold() error {
	byUser := make(map[string]*templates.Entry)
	add := func(user string) *templates.Entry {
		e, ok := byUser[user]
		if !ok {
			e = &templates.Entry{ID: inventory.DeviceID(user)}
			byUser[user] = e
		}
		return e
	}
	for p, err := range v.passwords() {
		if err != nil {
			return err
		}
		if isAdmin(p.user) {
			continue
		}
		e := add(p.user)
		if e.Verifiers != nil {
			return fmt.Errorf("reading %s: %w", v.setup.file(PasswordName), &lineError{p.line, fmt.Sprintf("user %q a second time", p.user)})
		}
		e.Verifiers = []inventory.Verifier{p.verifier}
	}
	for s, err := range v.stanzas() {
		if err != nil {
			return err
		}
		if s.user != "" && !isAdmin(s.user) {
			e := add(s.user)
			e.Grants = append(e.Grants, s.grants...)
		}
	}
	for _, e := range byUser {
		v.held = append(v.held, v.complete(*e))
	}
	return sortHeld(v.held)
}

// sortHeld puts entries in the order of canonical IDs, and refuses two IDs that
// differ only in case.
func sortHeld(held []templates.Entry) error {
	slices.SortFunc(held, func(a, b templates.Entry) int { return cmp.Compare(a.ID.Canonical(), b.ID.Canonical()) })
	for i := 1; i < len(held); i++ {
		if held[i-1].ID.Canonical() == held[i].ID.Canonical() {
			return &templates.EntryError{ID: held[i].ID, Why: fmt.Sprintf("differs from %q only in case", held[i-1].ID)}
		}
	}
	return nil
}

// complete fills in the patterns. A device without a password can only have come
// with a certificate.
func (v *view) complete(e templates.Entry) templates.Entry {
	grants := make([]topic.Grant, 0, len(v.patterns)+len(e.Grants))
	for i := range v.patterns {
		grants = append(grants, topic.Grant{Action: v.patterns[i].rule.Action, Filter: v.patterns[i].fill(e.ID)})
	}
	e.Grants = append(grants, e.Grants...)
	e.Certificate = len(e.Verifiers) == 0
	return e
}

// stream yields the devices of two files in order, side by side.
func (v *view) stream(yield func(templates.Entry, error) bool) {
	nextPassword, stopPasswords := iter.Pull2(v.passwords())
	defer stopPasswords()
	nextStanza, stopStanzas := iter.Pull2(v.userStanzas())
	defer stopStanzas()

	p, perr, more := nextPassword()
	if more && perr == nil && isAdmin(p.user) {
		p, perr, more = nextPassword()
	}
	s, serr, moreStanzas := nextStanza()
	for more || moreStanzas {
		if err := errors.Join(perr, serr); err != nil {
			yield(templates.Entry{}, err)
			return
		}
		var e templates.Entry
		pid, sid := inventory.DeviceID(p.user).Canonical(), inventory.DeviceID(s.user).Canonical()
		takePassword := more && (!moreStanzas || pid <= sid)
		takeStanza := moreStanzas && (!more || sid <= pid)
		if takePassword {
			e.ID, e.Verifiers = inventory.DeviceID(p.user), []inventory.Verifier{p.verifier}
			p, perr, more = nextPassword()
		}
		if takeStanza {
			if takePassword && e.ID != inventory.DeviceID(s.user) {
				yield(templates.Entry{}, &templates.EntryError{ID: e.ID, Why: fmt.Sprintf("differs from %q only in case", s.user)})
				return
			}
			e.ID, e.Grants = inventory.DeviceID(s.user), s.grants
			s, serr, moreStanzas = nextStanza()
		}
		if !yield(v.complete(e), nil) {
			return
		}
	}
}

// passwords reads the password file.
func (v *view) passwords() iter.Seq2[passwordLine, error] {
	return readWith(v.src, v.setup.file(PasswordName), readPasswords)
}

// stanzas reads the ACL file.
func (v *view) stanzas() iter.Seq2[aclStanza, error] {
	return readWith(v.src, v.setup.file(ACLName), readACL)
}

// userStanzas are the stanzas of devices.
func (v *view) userStanzas() iter.Seq2[aclStanza, error] {
	return func(yield func(aclStanza, error) bool) {
		for s, err := range v.stanzas() {
			if err == nil && (s.user == "" || isAdmin(s.user)) {
				continue
			}
			if !yield(s, err) {
				return
			}
		}
	}
}

// readWith opens a file and reads it record by record. An error names the file.
func readWith[T any](src fs.FS, name string, read func(io.Reader) iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		f, err := templates.OpenFile(src, name)
		if err != nil {
			var zero T
			yield(zero, err)
			return
		}
		defer func() { _ = f.Close() }() // read only
		for rec, err := range read(f) {
			if err != nil {
				err = fmt.Errorf("reading %s: %w", name, err)
			}
			if !yield(rec, err) {
				return
			}
		}
	}
}
