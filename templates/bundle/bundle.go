// Package bundle makes the files that a device is flashed with.
//
// A bundle is a handful of small files: the key, the certificate chain, the
// certificates that vouch for the broker, the password, and device.json, which
// says where to connect and which topics there are. Other forms of the same
// things are made on request.
package bundle

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"software.sslmate.com/src/go-pkcs12"
)

// A Material is what one device is handed. It holds secrets.
type Material struct {
	ID          string   // common name, MQTT user name and client identifier
	KeyPKCS8    []byte   // DER; empty if the device has made its own key
	Chain       [][]byte // DER: the leaf, then its issuers, without the root
	TrustBundle []byte   // PEM: what the broker's certificate is verified with
	Password    []byte   // empty if it has none

	Host         string
	Port         uint16 // for certificates
	PasswordPort uint16

	Publish, Receive []string // topic filters
}

// A File is one file of a bundle.
type File struct {
	Name string
	Mode fs.FileMode
	Data []byte
}

// A Format is a form of the bundle's content besides PEM.
type Format string

// The formats.
const (
	PKCS12       Format = "pkcs12"        // device.p12: AES-256, PBKDF2; under the password of the device
	PKCS12Legacy Format = "pkcs12-legacy" // device-legacy.p12: 3DES, for tools before 2018
	DER          Format = "der"           // key.der, cert.der, issuers.der, trust.der
	CHeader      Format = "c-header"      // identity.h
)

// ErrFormat reports a format that cannot be made for a device. Ask for another.
var ErrFormat = errors.New("format is not possible")

// ParseFormat reads the name of a format.
func ParseFormat(text string) (Format, error) {
	switch f := Format(text); f {
	case PKCS12, PKCS12Legacy, DER, CHeader:
		return f, nil
	}
	return "", fmt.Errorf("format %.64q: want pkcs12, pkcs12-legacy, der or c-header", text)
}

// Names of the files that are always there; the key and the password only if the
// device is handed one.
const (
	KeyFile      = "key.pem"
	ChainFile    = "chain.pem"
	TrustFile    = "trust.pem"
	PasswordFile = "password"
	DeviceFile   = "device.json"
)

const (
	secretMode fs.FileMode = 0o600
	publicMode fs.FileMode = 0o644
)

// Files makes the files of a bundle: PEM and device.json, then the formats asked
// for, each once. A device that has made its own key gets no PKCS #12 file, which is
// there to carry one; a key without a password to protect it in one is an error.
func Files(m Material, formats ...Format) ([]File, error) {
	if err := Check(m, formats...); err != nil {
		return nil, err
	}
	var files []File
	if len(m.KeyPKCS8) > 0 {
		files = append(files, File{KeyFile, secretMode, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: m.KeyPKCS8})})
	}
	files = append(files,
		File{ChainFile, publicMode, certificates(m.Chain)},
		File{TrustFile, publicMode, m.TrustBundle})
	if len(m.Password) > 0 {
		files = append(files, File{PasswordFile, secretMode, append(bytes.Clone(m.Password), '\n')})
	}
	for i, f := range formats {
		if slices.Contains(formats[:i], f) {
			continue
		}
		more, err := m.format(f)
		if err != nil {
			return nil, fmt.Errorf("bundle: %s: %w", f, err)
		}
		files = append(files, more...)
	}
	device, err := m.device(files)
	return append(files, File{DeviceFile, publicMode, device}), err
}

// Check reports whether Files can make a bundle of m; if not, because of a format,
// the error wraps [ErrFormat]. It costs nothing, so it can be
// asked before a certificate is let out.
func Check(m Material, formats ...Format) error {
	if len(m.Chain) == 0 {
		return errors.New("bundle: there is no certificate")
	}
	for _, f := range formats {
		if (f == PKCS12 || f == PKCS12Legacy) && len(m.KeyPKCS8) > 0 && len(m.Password) == 0 {
			return fmt.Errorf("%w: %s: device %s has no password to protect its key with", ErrFormat, f, m.ID)
		}
	}
	return nil
}

func certificates(ders [][]byte) []byte {
	var b bytes.Buffer
	for _, der := range ders {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}) // a buffer takes everything
	}
	return b.Bytes()
}

// device is device.json: what a program has to know to connect. It holds no
// secret.
func (m Material) device(files []File) ([]byte, error) {
	type topics struct {
		Publish []string `json:"publish"`
		Receive []string `json:"receive"`
	}
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = f.Name
	}
	b, err := json.MarshalIndent(struct {
		ID           string   `json:"id"`
		Host         string   `json:"host"`
		Port         uint16   `json:"port"`
		PasswordPort uint16   `json:"passwordPort,omitempty"`
		ClientID     string   `json:"clientId"`
		Username     string   `json:"username"`
		Topics       topics   `json:"topics"`
		Files        []string `json:"files"`
	}{m.ID, m.Host, m.Port, m.PasswordPort, m.ID, m.ID, topics{orEmpty(m.Publish), orEmpty(m.Receive)}, names}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	return append(b, '\n'), nil
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func (m Material) format(f Format) ([]File, error) {
	switch f {
	case PKCS12:
		return m.pkcs12("device.p12", pkcs12.Modern2023)
	case PKCS12Legacy:
		return m.pkcs12("device-legacy.p12", pkcs12.LegacyDES)
	case DER:
		return m.der(), nil
	case CHeader:
		return []File{{"identity.h", m.secrecy(), m.header()}}, nil
	}
	return nil, errors.New("unknown format")
}

// pkcs12 protects the file with the device's own password, which has more than
// 128 bits: the few iterations of PKCS #12 add nothing to that.
func (m Material) pkcs12(name string, enc *pkcs12.Encoder) ([]File, error) {
	if len(m.KeyPKCS8) == 0 {
		return nil, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(m.KeyPKCS8)
	if err != nil {
		return nil, errors.New("the key cannot be read")
	}
	certs := make([]*x509.Certificate, len(m.Chain))
	for i, der := range m.Chain {
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("reading certificate: %w", err)
		}
	}
	b, err := enc.Encode(key, certs[0], certs[1:], string(m.Password))
	if err != nil {
		return nil, fmt.Errorf("encoding: %w", err)
	}
	return []File{{name, secretMode, b}}, nil
}

func (m Material) der() []File {
	files := []File{{"cert.der", publicMode, m.Chain[0]}, {"trust.der", publicMode, derOf(m.TrustBundle)}}
	if len(m.Chain) > 1 {
		files = append(files, File{"issuers.der", publicMode, bytes.Join(m.Chain[1:], nil)})
	}
	if len(m.KeyPKCS8) > 0 {
		files = append(files, File{"key.der", secretMode, m.KeyPKCS8})
	}
	return files
}

// derOf returns the certificates in PEM one after the other in DER.
func derOf(text []byte) []byte {
	var out []byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		out = append(out, block.Bytes...)
	}
	return out
}

// secrecy is the mode of a file that holds everything.
func (m Material) secrecy() fs.FileMode {
	if len(m.KeyPKCS8) > 0 || len(m.Password) > 0 {
		return secretMode
	}
	return publicMode
}
