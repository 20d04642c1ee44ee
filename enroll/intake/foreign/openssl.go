package foreign

import (
	"crypto/x509"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// An indexEntry is one line of index.txt, the data base of "openssl ca", which
// easy-rsa uses too. It has six fields with tabs between them: V, R or E; the end of
// validity; for R the time of revocation, with a reason perhaps; the serial number;
// a file name that nobody fills in; the subject, as /C=.../CN=...
type indexEntry struct {
	at        place
	status    byte
	expires   time.Time
	revokedAt time.Time
	reason    string
	serial    string
	name      string // of the subject
	taken     bool
}

// openssl reads index.txt, and the certificates that lie around, by serial number.
func (b *builder) openssl(t *tree) error {
	name, err := t.one(roleIndex)
	if err != nil {
		return err
	}
	var entries []*indexEntry
	bySerial := map[string][]*indexEntry{}
	err = b.lines(t, name, func(at place, line string) error {
		if line == "" {
			return nil
		}
		e, err := readIndexLine(line)
		if err != nil {
			b.find(Error, "syntax", "", at, "%s: the line is left out; was the certificate revoked?", err)
			return nil
		}
		e.at = at
		entries = append(entries, e)
		bySerial[e.serial] = append(bySerial[e.serial], e)
		return nil
	})
	if err != nil {
		return err
	}
	p := newPKIFolder(b)
	strays := 0
	err = p.each(t, func(at place, c *x509.Certificate) error {
		for _, e := range bySerial[serialText(c.SerialNumber)] {
			if e.name == nameOf(c) || e.name == c.Subject.CommonName {
				e.taken = true
				p.take(e.at, c, e.revokedAt, e.reason)
				return nil
			}
		}
		strays++
		return nil
	})
	if err != nil {
		return err
	}
	b.rest(p, entries)
	if strays > 0 {
		b.find(Warning, "stray-certificates", "", place{}, "%s that the index does not know: they are left out, of another authority or with their lines lost", count(strays, "certificate"))
	}
	p.finish()
	return nil
}

// rest takes over the entries that have no certificate beside them.
func (b *builder) rest(p *pkiFolder, entries []*indexEntry) {
	missing := 0
	for _, e := range entries {
		switch {
		case e.taken || p.others[e.serial]:
			continue
		case e.name == "":
			b.find(Warning, "no-name", "", e.at, "the certificate with the serial number %.64s has no common name", e.serial)
			continue
		}
		missing++
		u, _ := b.user(e.name, e.at)
		u.certificates = append(u.certificates, Certificate{Serial: e.serial, NotAfter: e.expires, RevokedAt: e.revokedAt, Reason: e.reason})
	}
	if missing > 0 {
		b.find(Note, "no-certificate", "", place{}, "%s of the index without its certificate: it may be a server's, and its key could not be looked at", count(missing, "line"))
	}
}

func readIndexLine(line string) (*indexEntry, error) {
	f := strings.Split(line, "\t")
	if len(f) != 6 || len(f[0]) != 1 || !strings.Contains("VRE", f[0]) {
		return nil, fmt.Errorf("want six fields, the first V, R or E")
	}
	e := &indexEntry{status: f[0][0]}
	var err error
	if e.expires, err = indexTime(f[1]); err != nil {
		return nil, err
	}
	if e.status == 'R' {
		when, reason, _ := strings.Cut(f[2], ",")
		if e.revokedAt, err = indexTime(when); err != nil {
			return nil, err
		}
		if e.reason, _, _ = strings.Cut(reason, ","); len(e.reason) > 64 {
			e.reason = e.reason[:64]
		}
	}
	n, ok := new(big.Int).SetString(f[3], 16)
	if !ok || len(f[3]) > 64 || n.Sign() < 0 {
		return nil, fmt.Errorf("serial number %.64q", f[3])
	}
	e.serial = serialText(n)
	e.name = commonName(f[5])
	return e, nil
}

// indexTime reads a UTCTime or a GeneralizedTime. The two digits of a year are those
// of RFC 5280 §4.1.2.5.1, as Go's are not from 2050 on.
func indexTime(text string) (time.Time, error) {
	layout := "20060102150405Z"
	if len(text) == len("060102150405Z") {
		century := "20"
		if text[0] >= '5' {
			century = "19"
		}
		text = century + text
	}
	when, err := time.Parse(layout, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("time %.32q", text)
	}
	return when, nil
}

// commonName finds the last CN of a subject in the form of X509_NAME_oneline. OpenSSL 3
// writes a slash in a value as \/ and a plus as \+; older ones escape neither, so a
// slash ends a value only where TYPE= follows.
func commonName(subject string) string {
	name := ""
	for rest := subject; ; {
		i := strings.Index(rest, "/CN=")
		if i < 0 {
			return name
		}
		name, rest = cutValue(rest[i+len("/CN="):])
	}
}

// cutValue splits a value from the rest of a subject.
func cutValue(text string) (value, rest string) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\\' && i+1 < len(text) && (text[i+1] == '/' || text[i+1] == '+'):
			i++
		case text[i] == '/' && isAttribute(text[i+1:]):
			return b.String(), text[i:]
		}
		b.WriteByte(text[i])
	}
	return b.String(), ""
}

// isAttribute reports whether text begins with TYPE=.
func isAttribute(text string) bool {
	kind, _, ok := strings.Cut(text, "=")
	if !ok || kind == "" {
		return false
	}
	for i := range len(kind) {
		if !isWordByte(kind[i]) && kind[i] != '.' {
			return false
		}
	}
	return true
}
