package mosquitto

import (
	"fmt"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// render writes all files.
func (x *export) render(out *templates.Output) error {
	if err := templates.CheckPKI(x.view, out); err != nil {
		return err
	}
	if len(x.view.CRLs()) == 0 {
		return fmt.Errorf("mosquitto does not start with an empty %s: want a CRL", CRLName)
	}
	if err := templates.WriteCRLs(out.File(CRLName), x.view.CRLs()); err != nil {
		return err
	}
	n := x.view.Node()
	plain := map[string][]byte{TrustName: x.view.TrustBundle(), ChainName: n.ServerChain, KeyName: n.ServerKey.Reveal()}
	for name, data := range plain {
		if _, err := out.File(name).Write(data); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{ConfName: confText, templates.ReadmeName: readmeText} {
		b, err := fill(text, &x.conf)
		if err != nil {
			return fmt.Errorf("filling %s: %w", name, err)
		}
		if _, err := out.File(name).Write(b); err != nil {
			return err
		}
	}
	if x.form == Dynsec {
		return x.renderDynsec(out)
	}
	return x.renderACL(out)
}

// renderACL writes the password file and the ACL file in one pass.
func (x *export) renderACL(out *templates.Output) error {
	acl := aclWriter{w: out.File(ACLName), patterns: x.patterns}
	passwords := out.File(PasswordName)
	admin := x.view.Node().Admin
	if err := acl.header(admin != nil); err != nil {
		return err
	}
	if admin != nil {
		v, ok := pick(admin.Verifiers, x.version)
		if !ok {
			return &templates.EntryError{ID: templates.AdminName, Why: "no password verifier that Mosquitto reads"}
		}
		if _, err := passwords.Write(appendPassword(nil, templates.AdminName, v)); err != nil {
			return err
		}
	}
	var line []byte
	err := x.entries(out, func(e *templates.Entry, v inventory.Verifier, password bool) error {
		if password {
			out.Users++
			line = appendPassword(line[:0], string(e.ID), v)
			if _, err := passwords.Write(line); err != nil {
				return err
			}
		}
		return acl.entry(e)
	})
	if err != nil {
		return err
	}
	out.Rules = acl.rules
	if x.version == V20 && acl.stanzas > manyStanzas {
		out.Warn(fmt.Sprintf("%d user stanzas: Mosquitto 2.0 loads them in quadratic time, in up to %.0f s at every start and SIGHUP, and answers nobody meanwhile; form %q does not have them, 2.1 loads them in linear time",
			acl.stanzas, stanzaSeconds(acl.stanzas), Pattern))
	}
	return nil
}

// stanzaSeconds is how long 2.0 takes for n stanzas with two topics: 18.4 s for
// 50,000 on 2.0.22. 2.0.11 is about four times as fast.
func stanzaSeconds(n int) float64 {
	units := float64(n) / 50_000
	return 18.4 * units * units
}

func appendPassword(b []byte, user string, v inventory.Verifier) []byte {
	b = append(b, user...)
	b = append(b, ':')
	return append(appendVerifier(b, v), '\n')
}

// entries calls fn for each device, checked, with the password verifier that the
// broker will read, if there is one. It counts the devices.
func (x *export) entries(out *templates.Output, fn func(*templates.Entry, inventory.Verifier, bool) error) error {
	var prev inventory.DeviceID
	out.Devices = 0
	for e, err := range x.view.Entries() {
		if err != nil {
			return err
		}
		if err := templates.CheckEntry(prev, &e); err != nil {
			return err
		}
		v, ok := x.pick(e.Verifiers)
		if !ok {
			if err := unreadable(&e, out); err != nil {
				return err
			}
		}
		if err := fn(&e, v, ok); err != nil {
			return err
		}
		prev = e.ID
		out.Devices++
	}
	return nil
}

// pick is the verifier for this form: dynamic security reads only PBKDF2.
func (x *export) pick(verifiers []inventory.Verifier) (inventory.Verifier, bool) {
	v, ok := pick(verifiers, x.version)
	if x.form == Dynsec && v.Scheme != inventory.PBKDF2SHA512 {
		return inventory.Verifier{}, false
	}
	return v, ok
}

// unreadable says what becomes of a device without a readable password: with a
// certificate it can connect all the same.
func unreadable(e *templates.Entry, out *templates.Output) error {
	switch {
	case e.Certificate && len(e.Verifiers) == 0:
		return nil
	case e.Certificate:
		out.Warn(fmt.Sprintf("device %s: Mosquitto reads none of its password verifiers; it can connect with its certificate", e.ID))
		return nil
	case len(e.Verifiers) == 0:
		return &templates.EntryError{ID: e.ID, Why: "neither a certificate nor a password"}
	}
	return &templates.EntryError{ID: e.ID, Why: "no certificate, and no password verifier that Mosquitto reads: want pbkdf2-sha512 with a salt of 12 octets"}
}
