package foreign

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// A pkiFolder is what the certificates of a source say, before they are given to
// devices.
type pkiFolder struct {
	b    *builder
	keys map[inventory.SPKI]*x509.Certificate // the first certificate with each key
	seen map[[sha256.Size]byte]bool           // certificates, each once

	others map[string]bool // serial numbers of servers and authorities
}

func newPKIFolder(b *builder) *pkiFolder {
	return &pkiFolder{b: b, keys: map[inventory.SPKI]*x509.Certificate{}, seen: map[[sha256.Size]byte]bool{}, others: map[string]bool{}}
}

// each reads all certificates of the tree, each once, and calls take with those of
// devices.
func (p *pkiFolder) each(t *tree, take func(at place, c *x509.Certificate) error) error {
	authorities, servers := 0, 0
	for _, name := range t.byRole[roleCertificate] {
		if err := p.b.cancelled(); err != nil {
			return err
		}
		data, err := t.whole(name)
		if err != nil {
			return err
		}
		for _, der := range certificatesIn(data) {
			c, err := x509.ParseCertificate(der)
			at := place{file: name}
			switch {
			case err != nil:
				p.b.find(Warning, "certificate", "", at, "the certificate cannot be read: %s", err)
				continue
			case p.seen[sha256.Sum256(der)]:
				continue
			}
			p.seen[sha256.Sum256(der)] = true
			switch {
			case c.IsCA || c.Version < 3 && bytes.Equal(c.RawIssuer, c.RawSubject):
				authorities++
				p.others[serialText(c.SerialNumber)] = true
			case isServer(c):
				servers++
				p.others[serialText(c.SerialNumber)] = true
			default:
				if err := take(at, c); err != nil {
					return err
				}
			}
		}
	}
	if authorities > 0 {
		p.b.find(Note, "authorities", "", place{}, "%s of authorities: they are not imported; brokers need them for as long as a device uses its old certificate", count(authorities, "certificate"))
	}
	if servers > 0 {
		p.b.find(Note, "servers", "", place{}, "%s for servers only: they are no devices", count(servers, "certificate"))
	}
	if n := len(t.byRole[roleKey]); n > 0 {
		p.b.find(Warning, "private-keys", "", place{file: t.byRole[roleKey][0]}, "%s with private keys, which were not opened: whoever has this folder can be the devices, or the authority; let devices make their own keys", count(n, "file"))
	}
	return nil
}

// certificatesIn returns the certificates of a file, in PEM or DER. Anything else in
// it, as a private key, is passed over.
func certificatesIn(data []byte) [][]byte {
	if len(data) > 0 && data[0] == 0x30 {
		return [][]byte{data}
	}
	var out [][]byte
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return out
		}
		if block.Type == "CERTIFICATE" {
			out = append(out, block.Bytes)
		}
	}
}

// isServer reports whether a certificate is for servers and nobody else.
func isServer(c *x509.Certificate) bool {
	return slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// nameOf is the name of a device in its certificate: the common name, or else the
// first DNS name.
func nameOf(c *x509.Certificate) string {
	if c.Subject.CommonName == "" && len(c.DNSNames) > 0 {
		return c.DNSNames[0]
	}
	return c.Subject.CommonName
}

// take gives a certificate to its device. revokedAt is zero if it is good.
func (p *pkiFolder) take(at place, c *x509.Certificate, revokedAt time.Time, reason string) {
	name := nameOf(c)
	if name == "" {
		p.b.find(Warning, "no-name", "", at, "the certificate with the serial number %x has neither a common name nor a DNS name", c.SerialNumber)
		return
	}
	u, _ := p.b.user(name, at)
	if u.serial == "" {
		u.serial = clip(c.Subject.SerialNumber)
	}
	u.certificates = append(u.certificates, Certificate{
		DER: c.Raw, Serial: serialText(c.SerialNumber), Issuer: c.Issuer.String(), NotAfter: c.NotAfter.UTC(), RevokedAt: revokedAt, Reason: reason,
	})
	p.weigh(at, name, c)
}

func serialText(n *big.Int) string { return fmt.Sprintf("%02x", n) }

// weigh says what a certificate is worth.
func (p *pkiFolder) weigh(at place, name string, c *x509.Certificate) {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() < 2048 {
			p.b.find(Error, "weak-key", name, at, "RSA with %d bits: the next certificate must be for a new key", key.N.BitLen())
		}
	case *ecdsa.PublicKey:
		if key.Curve.Params().BitSize < 256 {
			p.b.find(Error, "weak-key", name, at, "a curve of %d bits: the next certificate must be for a new key", key.Curve.Params().BitSize)
		}
	}
	if slices.Contains([]x509.SignatureAlgorithm{x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1}, c.SignatureAlgorithm) {
		p.b.find(Error, "weak-signature", name, at, "is signed with %s, which can be forged", c.SignatureAlgorithm)
	}
	spki := inventory.SPKI(sha256.Sum256(c.RawSubjectPublicKeyInfo))
	first, ok := p.keys[spki]
	if !ok {
		p.keys[spki] = c
		return
	}
	if other := nameOf(first); other != name {
		p.b.find(Error, "shared-key", name, at, "has the key of %.128q: each of the two can be the other; give both new keys", other)
	}
}

// finish sorts each device's certificates, the newest first, and says which devices
// are gone, late or doubtful.
func (p *pkiFolder) finish() {
	for _, u := range p.b.order {
		slices.SortStableFunc(u.certificates, func(x, y Certificate) int {
			return cmp.Or(compareBool(x.RevokedAt.IsZero(), y.RevokedAt.IsZero()), y.NotAfter.Compare(x.NotAfter))
		})
		if len(u.certificates) == 0 {
			continue
		}
		best := &u.certificates[0]
		u.label("foreign-serial", clip(best.Serial))
		u.label("foreign-expires", best.NotAfter.Format(time.RFC3339))
		if best.Issuer != "" {
			u.label("foreign-issuer", clip(best.Issuer))
		}
		if len(best.DER) > 0 {
			u.label("foreign-fingerprint", inventory.Fingerprint(sha256.Sum256(best.DER)).String())
		}
		p.judge(u, best)
	}
}

// compareBool puts true first.
func compareBool(x, y bool) int {
	switch {
	case x == y:
		return 0
	case x:
		return -1
	}
	return 1
}

func (p *pkiFolder) judge(u *user, best *Certificate) {
	if !best.RevokedAt.IsZero() {
		u.problem("its certificate was revoked on %s", best.RevokedAt.Format(time.DateOnly))
		p.b.find(Warning, "revoked", u.name, u.at, "was revoked on %s, reason %s, and is not taken over: if it may come back, register it by hand, with a new key", best.RevokedAt.Format(time.DateOnly), show(cmp.Or(best.Reason, "unspecified")))
		return
	}
	if best.NotAfter.Before(p.b.now) {
		p.b.find(Warning, "expired", u.name, u.at, "its last certificate expired on %s: is the device still in use?", best.NotAfter.Format(time.DateOnly))
	}
	good := 0
	for _, c := range u.certificates {
		if c.RevokedAt.IsZero() && !c.NotAfter.Before(p.b.now) {
			good++
		}
	}
	if good > 1 {
		p.b.find(Warning, "duplicate-name", u.name, u.at, "has %d certificates that are good now: a renewal that was never finished, or several devices with one name", good)
	}
}

// pem reads a folder of certificates: each common name is a device. Nothing there
// says what has been revoked.
func (b *builder) pem(t *tree) error {
	p := newPKIFolder(b)
	err := p.each(t, func(at place, c *x509.Certificate) error {
		p.take(at, c, time.Time{}, "")
		return nil
	})
	if err != nil {
		return err
	}
	b.find(Warning, "no-revocations", "", place{}, "a folder of certificates does not say which of them are revoked: look at the CRL of the authority first")
	p.finish()
	return nil
}
