package agent

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// errKey reports a key that cannot be made or used.
var errKey = errors.New("key")

const (
	tpmPrefix   = "tpm:"
	tokenPrefix = "pkcs11:"
)

// tokenKeyType is the type of the PEM block that names a key on a PKCS #11 token.
const tokenKeyType = "PKCS11 KEY NAME" //nolint:gosec // the type of a block, and no secret

// newKey makes a private key and returns what is kept of it, PEM: PKCS #8 for a
// key in a file; for one that a TPM made and that never leaves it, the TSS2
// PRIVATE KEY form, which only that TPM can use; for one on a PKCS #11 token, its
// name there.
func newKey(kind, algorithm string) ([]byte, error) {
	curve := elliptic.P256()
	if algorithm == "P-384" {
		curve = elliptic.P384()
	}
	if path, ok := strings.CutPrefix(kind, tpmPrefix); ok {
		return newTPMKey(path, curve.Params().BitSize)
	}
	if strings.HasPrefix(kind, tokenPrefix) {
		return newTokenKey(kind, algorithm)
	}
	if kind != "" && kind != "file" {
		return nil, fmt.Errorf("%w: key %.60q: want file, tpm:PATH or a pkcs11: URI", ErrConfig, kind)
	}
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errKey, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errKey, err)
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func newTPMKey(path string, bits int) ([]byte, error) {
	tpm, err := openTPM(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tpm.Close() }()
	key, err := keyfile.NewLoadableKey(tpm, tpm2.TPMAlgECC, bits, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: the TPM makes none: %w", errKey, err)
	}
	return key.Bytes(), nil
}

// openTPM opens a TPM 2.0: a device, or the Unix socket of an emulator.
func openTPM(path string) (transport.TPMCloser, error) {
	var tpm transport.TPMCloser
	var err error
	if strings.HasPrefix(path, "/dev/") {
		tpm, err = linuxtpm.Open(path)
	} else {
		tpm, err = linuxudstpm.Open(path)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: opening TPM %s: %w", errKey, path, err)
	}
	return tpm, nil
}

// readKey reads what newKey returned.
func readKey(kind string, text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%w: it is not in PEM", errKey)
	}
	switch block.Type {
	case "TSS2 PRIVATE KEY":
		return readTPMKey(kind, text)
	case tokenKeyType:
		return readTokenKey(kind, string(block.Bytes))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		if ec, ecErr := x509.ParseECPrivateKey(block.Bytes); ecErr == nil {
			return ec, nil // a birth key of openssl's
		}
		return nil, fmt.Errorf("%w: it cannot be read", errKey)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: it does not sign", errKey)
	}
	return signer, nil
}

func readTPMKey(kind string, text []byte) (crypto.Signer, error) {
	path, ok := strings.CutPrefix(kind, tpmPrefix)
	if !ok {
		return nil, fmt.Errorf("%w: it is a TPM's, and the configuration names no TPM", ErrConfig)
	}
	key, err := keyfile.Decode(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errKey, err)
	}
	pub, err := key.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errKey, err)
	}
	return &tpmSigner{path: path, key: key, public: pub}, nil
}

// removeKey removes what a pair's files do not hold: a key on a token. A TPM keeps
// nothing.
func removeKey(kind string, text []byte) error {
	if block, _ := pem.Decode(text); block != nil && block.Type == tokenKeyType {
		return removeTokenKey(kind, string(block.Bytes))
	}
	return nil
}

// request makes a certification request for the device. Its name is all that it
// says: what a certificate says comes from the server.
func request(device string, key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}, key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errKey, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}
