package templates

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
)

// Longest PEM files that are read back, in bytes. A CRL with a million entries
// is 66 MB.
const (
	maxBundle = 1 << 20
	maxCRLs   = 256 << 20
)

// CheckPKI checks what a broker would trip over at its start: the server's
// certificate must fit its key, the trust bundle must hold CA certificates, and
// each CRL must be signed by one of them. It warns of an issuer of client
// certificates that has no CRL: OpenSSL then refuses its devices.
func CheckPKI(v View, out *Output) error { return checkPKI(v, out, Omits{}) }

// checkPKI is CheckPKI for files that do not hold all of it.
func checkPKI(v View, out *Output, omits Omits) error {
	n := v.Node()
	if _, err := tls.X509KeyPair(n.ServerChain, n.ServerKey.Reveal()); err != nil && !omits.Node {
		return fmt.Errorf("server certificate of %s: %w", n.Name, err)
	}
	cas, err := parseCertificates(v.TrustBundle())
	if err != nil {
		return fmt.Errorf("reading trust bundle: %w", err)
	}
	if len(cas) == 0 {
		return errors.New("reading trust bundle: it is empty")
	}
	covered := make([]bool, len(cas))
	for _, c := range v.CRLs() {
		list, err := x509.ParseRevocationList(c.DER)
		if err != nil {
			return fmt.Errorf("reading CRL of %s: %w", c.Issuer, err)
		}
		i := slices.IndexFunc(cas, func(ca *x509.Certificate) bool { return list.CheckSignatureFrom(ca) == nil })
		if i < 0 {
			return fmt.Errorf("CRL of %s: no certificate of the trust bundle signed it", c.Issuer)
		}
		covered[i] = true
	}
	for i, ca := range cas {
		if !ca.IsCA {
			return fmt.Errorf("trust bundle: %.128q is not a CA certificate", ca.Subject.CommonName)
		}
		if !covered[i] && !omits.CRLs && issuesClients(ca) {
			out.Warn(fmt.Sprintf("there is no CRL of %.128q: a broker refuses its devices", ca.Subject.CommonName))
		}
	}
	return nil
}

// issuesClients reports whether a CA certificate is for client certificates: not
// a root, and not limited to other purposes.
func issuesClients(ca *x509.Certificate) bool {
	if bytes.Equal(ca.RawSubject, ca.RawIssuer) {
		return false
	}
	return len(ca.ExtKeyUsage) == 0 || slices.Contains(ca.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || slices.Contains(ca.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// WriteCRLs writes CRLs in PEM.
func WriteCRLs(w io.Writer, crls []CRL) error {
	for _, c := range crls {
		if err := pem.Encode(w, &pem.Block{Type: "X509 CRL", Bytes: c.DER}); err != nil {
			return fmt.Errorf("writing CRL of %s: %w", c.Issuer, err)
		}
	}
	return nil
}

// ReadCRLs reads a file of CRLs in PEM. An issuer is named by the common name in
// its CRL.
func ReadCRLs(src fs.FS, name string) ([]CRL, error) {
	text, err := readFile(src, name, maxCRLs)
	if err != nil {
		return nil, err
	}
	blocks, err := pemBlocks(text, "X509 CRL")
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	crls := make([]CRL, 0, len(blocks))
	for _, der := range blocks {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		c := CRL{
			Issuer: list.Issuer.CommonName, DER: der, ThisUpdate: list.ThisUpdate,
			NextUpdate: list.NextUpdate, Entries: len(list.RevokedCertificateEntries),
		}
		if list.Number == nil || !list.Number.IsUint64() || list.Number.Uint64() > math.MaxInt64 {
			return nil, fmt.Errorf("reading %s: CRL of %.128q: want a CRL number below 2^63", name, c.Issuer)
		}
		c.Number = list.Number.Uint64()
		crls = append(crls, c)
	}
	return crls, nil
}

// ReadCertificates reads a file of certificates in PEM and returns its text as
// it is.
func ReadCertificates(src fs.FS, name string) ([]byte, error) {
	text, err := readFile(src, name, maxBundle)
	if err != nil {
		return nil, err
	}
	if certs, err := parseCertificates(text); err != nil || len(certs) == 0 {
		return nil, fmt.Errorf("reading %s: %w", name, cmpErr(err, errors.New("no certificate in it")))
	}
	return text, nil
}

// ReadFile reads a regular file of at most 1 MiB: a key, a configuration.
func ReadFile(src fs.FS, name string) ([]byte, error) { return readFile(src, name, maxBundle) }

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	blocks, err := pemBlocks(text, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	certs := make([]*x509.Certificate, 0, len(blocks))
	for _, der := range blocks {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// pemBlocks returns the contents of a PEM file that holds blocks of one type and
// nothing else.
func pemBlocks(text []byte, kind string) ([][]byte, error) {
	var blocks [][]byte
	for rest := bytes.TrimSpace(text); len(rest) > 0; {
		if !bytes.HasPrefix(rest, []byte("-----BEGIN ")) {
			return nil, errors.New("want PEM and nothing else")
		}
		var b *pem.Block
		b, rest = pem.Decode(rest)
		if b == nil || b.Type != kind || len(b.Headers) > 0 {
			return nil, fmt.Errorf("want PEM blocks of the type %s", kind)
		}
		blocks = append(blocks, b.Bytes)
		rest = bytes.TrimSpace(rest)
	}
	return blocks, nil
}
