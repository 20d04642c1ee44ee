package ca

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

// What [ParseCertificatesPEM] reads at most. A trust bundle in the middle of a
// rollover has four certificates; these are fences, not targets.
const (
	maxBundleSize         = 1 << 20
	maxBundleCertificates = 64
)

// CertificatePEM returns certificates in DER as PEM (RFC 7468 §5), in the order
// given: leaf first for a chain, any order for a trust bundle.
func CertificatePEM(der ...[]byte) []byte {
	var out []byte
	for _, d := range der {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d})...)
	}
	return out
}

// CRLPEM returns a CRL in DER as PEM (RFC 7468 §6).
func CRLPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// ParseCertificatesPEM reads a chain or a trust bundle: 1 to 64 PEM blocks of
// type CERTIFICATE, at most 1 MiB, with nothing but white space around them. What
// other readers would skip (a comment, a key, half a block) is an error here, so
// that no two readers see a different bundle.
func ParseCertificatesPEM(data []byte) ([]*x509.Certificate, error) {
	if len(data) > maxBundleSize {
		return nil, fmt.Errorf("reading certificates: %d bytes, at most %d are read", len(data), maxBundleSize)
	}
	var certs []*x509.Certificate
	rest := bytes.TrimSpace(data)
	for len(rest) > 0 {
		if len(certs) == maxBundleCertificates {
			return nil, fmt.Errorf("reading certificates: more than %d", maxBundleCertificates)
		}
		block, tail, err := onePEM(rest)
		if err != nil {
			return nil, fmt.Errorf("reading certificate %d: %w", len(certs)+1, err)
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("reading certificate %d: not a CERTIFICATE block", len(certs)+1)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
		rest = bytes.TrimSpace(tail)
	}
	if len(certs) == 0 {
		return nil, errors.New("reading certificates: there are none")
	}
	return certs, nil
}

// onePEM reads the block that data must start with and returns what follows it.
// [pem.Decode] alone skips text and broken blocks and keeps headers.
func onePEM(data []byte) (block *pem.Block, rest []byte, err error) {
	begin := []byte("-----BEGIN ")
	if !bytes.HasPrefix(data, begin) {
		return nil, nil, errors.New("text outside of a PEM block")
	}
	block, rest = pem.Decode(data)
	if block == nil || bytes.Count(data[:len(data)-len(rest)], begin) != 1 {
		return nil, nil, errors.New("broken PEM block")
	}
	if len(block.Headers) > 0 {
		return nil, nil, errors.New("PEM block with headers")
	}
	return block, rest, nil
}

// Fingerprint returns the SHA-256 hash of a certificate or CRL in DER, as 64
// lower-case hexadecimal digits.
func Fingerprint(der []byte) string {
	h := sha256.Sum256(der)
	return hex.EncodeToString(h[:])
}
