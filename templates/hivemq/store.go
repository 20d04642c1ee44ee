package hivemq

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"text/template"

	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"github.com/imprint-iot/imprint/templates"
)

// Salt of everything that is derived from the server's key (RFC 5869).
const derivation = "imprint/1 hivemq "

// derive returns n octets that nobody knows who does not have the server's key, the
// same each time.
func derive(serverKey []byte, use string, n int) ([]byte, error) {
	return hkdf.Key(sha256.New, serverKey, []byte(derivation), use, n)
}

// storePassword is the password of both stores: 128 bits in hexadecimal.
func storePassword(serverKey []byte) (string, error) {
	b, err := derive(serverKey, "store password", 16)
	return hex.EncodeToString(b), err
}

// brokerFiles makes the configuration of the broker and its key stores.
func brokerFiles(chain, key, trust []byte, s *templates.Setting) (map[string][]byte, error) {
	password, err := storePassword(key)
	if err != nil {
		return nil, err
	}
	conf, err := fillConf(s, password)
	if err != nil {
		return nil, err
	}
	keystore, err := encodeKeystore(chain, key, password)
	if err != nil {
		return nil, fmt.Errorf("making %s: %w", KeystoreName, err)
	}
	truststore, err := encodeTruststore(trust, key, password)
	if err != nil {
		return nil, fmt.Errorf("making %s: %w", TruststoreName, err)
	}
	return map[string][]byte{ConfName: conf, KeystoreName: keystore, TruststoreName: truststore}, nil
}

func fillConf(s *templates.Setting, password string) ([]byte, error) {
	t, err := template.New("").Option("missingkey=error").Parse(confText)
	if err != nil {
		return nil, err
	}
	bind := s.Bind
	if bind == "" {
		bind = "0.0.0.0"
	}
	var b bytes.Buffer
	err = t.Execute(&b, map[string]any{
		"Dest": s.Dest, "Bind": bind, "CertificatePort": s.CertificatePort, "PasswordPort": s.PasswordPort,
		"Keystore": KeystoreName, "Truststore": TruststoreName, "Password": password, "Stamp": s.Stamp(),
	})
	return b.Bytes(), err
}

// encoder encrypts with AES-256 and HMAC-SHA-256, which Java reads since 8u301. Salts
// come from the server's key.
func encoder(serverKey []byte, use string) (*pkcs12.Encoder, error) {
	const enough = 1 << 10 // octets of salts and initialization vectors
	stream, err := derive(serverKey, use, enough)
	if err != nil {
		return nil, err
	}
	return pkcs12.Modern2023.WithRand(bytes.NewReader(stream)), nil
}

func encodeKeystore(chain, key []byte, password string) ([]byte, error) {
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, err
	}
	certs := make([]*x509.Certificate, len(pair.Certificate))
	for i, der := range pair.Certificate {
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return nil, err
		}
	}
	enc, err := encoder(key, KeystoreName)
	if err != nil {
		return nil, err
	}
	return enc.Encode(pair.PrivateKey, certs[0], certs[1:], password)
}

func encodeTruststore(trust, key []byte, password string) ([]byte, error) {
	var entries []pkcs12.TrustStoreEntry
	for rest := trust; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		entries = append(entries, pkcs12.TrustStoreEntry{Cert: c, FriendlyName: fmt.Sprintf("ca-%d", len(entries)+1)})
	}
	if len(entries) == 0 {
		return nil, errors.New("no certificate to trust")
	}
	enc, err := encoder(key, TruststoreName)
	if err != nil {
		return nil, err
	}
	return enc.EncodeTrustStoreEntries(entries, password)
}

// checkBrokerFiles holds the files to what the PEM files beside them make.
func checkBrokerFiles(src fs.FS, s *templates.Setting) error {
	parts := map[string][]byte{templates.ChainFile: nil, templates.KeyFile: nil, templates.TrustFile: nil}
	for name := range parts {
		b, err := templates.ReadFile(src, name)
		if err != nil {
			return err
		}
		parts[name] = b
	}
	want, err := brokerFiles(parts[templates.ChainFile], parts[templates.KeyFile], parts[templates.TrustFile], s)
	if err != nil {
		return err
	}
	for name, text := range want {
		got, err := templates.ReadFile(src, name)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, text) {
			return fmt.Errorf("reading %s: it is not what imprint writes", name)
		}
	}
	return nil
}
