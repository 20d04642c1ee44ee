package doctor

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"
)

// When the end of a certificate is near.
const (
	caSoon   = 90 * 24 * time.Hour
	leafSoon = 30 * 24 * time.Hour
)

// maxPEM is the most blocks that are read of one file.
const maxPEM = 10_000

// A certificate is one of a file, and where it starts.
type certificate struct {
	*x509.Certificate
	line int
}

// blocks reads the PEM blocks of a type, or, if there is no PEM, the text as DER.
func blocks(text []byte, kind string) (ders [][]byte, at []int) {
	rest, line := text, 1
	for len(ders) < maxPEM {
		before := len(rest)
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		read := text[len(text)-before : len(text)-len(rest)]
		start := max(bytes.Index(read, []byte("-----BEGIN")), 0)
		if b.Type == kind {
			ders, at = append(ders, b.Bytes), append(at, line+bytes.Count(read[:start], []byte("\n")))
		}
		line += bytes.Count(read, []byte("\n"))
	}
	if len(ders) == 0 && len(text) > 0 && text[0] == 0x30 { // SEQUENCE
		return [][]byte{text}, []int{0}
	}
	return ders, at
}

// certificates reads the certificates of a file; what cannot be read is a finding.
func (a *audit) certificates(what, name string, text []byte) []certificate {
	ders, at := blocks(text, "CERTIFICATE")
	var certs []certificate
	for i, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			a.add(ruleCertUnreadable, place{name, at[i]}, "%s: certificate %d cannot be parsed", what, i+1)
			continue
		}
		certs = append(certs, certificate{c, at[i]})
	}
	if len(ders) == 0 {
		a.add(ruleCertUnreadable, place{name, 0}, "%s has no certificate", what)
	}
	return certs
}

// trustBundle audits the CA certificates that clients are checked with.
func (a *audit) trustBundle(ref string, at place) {
	if ref == "" {
		return
	}
	text, name, ok := a.open("the trust bundle", ref, at, ruleMissingFile)
	if !ok {
		return
	}
	for _, c := range a.certificates("the trust bundle", name, text) {
		a.trust = append(a.trust, c)
		a.caDates(c, place{name, c.line})
		a.weak(c.Certificate, place{name, c.line})
	}
}

func (a *audit) caDates(c certificate, at place) {
	switch left := c.NotAfter.Sub(a.now); {
	case left < 0:
		a.add(ruleCAExpired, at, "%s expired %s", subject(c.Certificate), day(c.NotAfter))
	case left < caSoon:
		a.add(ruleCAExpiring, at, "%s expires %s", subject(c.Certificate), day(c.NotAfter))
	}
}

// serverChain audits the certificate of a listener and what is sent with it.
func (a *audit) serverChain(ref string, at place) {
	if ref == "" {
		return
	}
	text, name, ok := a.open("the server certificate", ref, at, ruleMissingFile)
	if !ok {
		return
	}
	for i, c := range a.certificates("the server certificate", name, text) {
		at := place{name, c.line}
		a.weak(c.Certificate, at)
		if i > 0 {
			a.caDates(c, at)
			continue
		}
		a.leafDates(c.Certificate, at)
	}
}

func (a *audit) leafDates(c *x509.Certificate, at place) {
	switch left := c.NotAfter.Sub(a.now); {
	case a.now.Before(c.NotBefore):
		a.add(ruleCertExpired, at, "%s is not valid before %s", subject(c), day(c.NotBefore))
	case left < 0:
		a.add(ruleCertExpired, at, "%s expired %s", subject(c), day(c.NotAfter))
	case left < leafSoon:
		a.add(ruleCertExpiring, at, "%s expires %s", subject(c), day(c.NotAfter))
	}
}

// weak looks at the key and, but for roots, whose own nobody relies on, at the
// signature.
func (a *audit) weak(c *x509.Certificate, at place) {
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			a.add(ruleWeakKey, at, "%s has an RSA key of %d bits", subject(c), k.N.BitLen())
		}
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize < 256 {
			a.add(ruleWeakKey, at, "%s has a key on %s", subject(c), k.Curve.Params().Name)
		}
	}
	if bytes.Equal(c.RawIssuer, c.RawSubject) {
		return
	}
	switch c.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		a.add(ruleWeakKey, at, "%s is signed with %s", subject(c), c.SignatureAlgorithm)
	default:
	}
}

// crlFile audits a file with CRLs. Of several from one issuer only the newest
// counts: brokers are given the old with the new.
func (a *audit) crlFile(ref string, at place) {
	if ref == "" {
		return
	}
	text, name, ok := a.open("the CRL", ref, at, ruleMissingFile)
	if !ok {
		return
	}
	a.crls(name, text)
}

func (a *audit) crls(name string, text []byte) {
	type list struct {
		*x509.RevocationList
		line int
	}
	ders, at := blocks(text, "X509 CRL")
	newest := map[string]list{}
	var order []string
	for i, der := range ders {
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			a.add(ruleCRLUnreadable, place{name, at[i]}, "CRL %d cannot be parsed", i+1)
			continue
		}
		issuer := string(l.RawIssuer)
		old, have := newest[issuer]
		if !have {
			order = append(order, issuer)
		}
		if !have || l.ThisUpdate.After(old.ThisUpdate) {
			newest[issuer] = list{l, at[i]}
		}
	}
	if len(ders) == 0 {
		a.add(ruleCRLUnreadable, place{name, 0}, "there is no CRL in it")
	}
	for _, issuer := range order {
		a.crl(newest[issuer].RevocationList, place{name, newest[issuer].line})
	}
}

// crl looks at dates and signature. A CRL without nextUpdate, which RFC 5280
// §5.1.2.5 does not allow, never ends.
func (a *audit) crl(l *x509.RevocationList, at place) {
	issuer := fmt.Sprintf("%.128q", l.Issuer.String())
	half := l.ThisUpdate.Add(l.NextUpdate.Sub(l.ThisUpdate) / 2)
	switch {
	case l.NextUpdate.IsZero():
		a.add(ruleCRLExpiring, at, "the CRL of %s has no nextUpdate: nobody notices when it is out of date", issuer)
	case a.now.After(l.NextUpdate):
		a.add(ruleCRLExpired, at, "the CRL of %s expired %s", issuer, l.NextUpdate.UTC().Format(time.RFC3339))
	case a.now.After(half):
		a.add(ruleCRLExpiring, at, "the CRL of %s expires %s", issuer, l.NextUpdate.UTC().Format(time.RFC3339))
	}
	if len(a.trust) == 0 {
		return
	}
	for _, c := range a.trust {
		if bytes.Equal(c.RawSubject, l.RawIssuer) && l.CheckSignatureFrom(c.Certificate) == nil {
			return
		}
	}
	a.add(ruleCRLForeign, at, "the CRL of %s", issuer)
}

func subject(c *x509.Certificate) string { return fmt.Sprintf("%.128q", c.Subject.String()) }

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }
