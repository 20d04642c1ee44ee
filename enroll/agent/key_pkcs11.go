//go:build pkcs11

package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"go.step.sm/crypto/kms/apiv1"
	kmspkcs11 "go.step.sm/crypto/kms/pkcs11"
	"go.step.sm/crypto/kms/uri"
)

// A key on a PKCS #11 token. What is kept in the key file is its name there: an ID
// and a label (RFC 7512), new for each key, so that the old one works until its pair
// is removed.

// login opens the token of a configuration, as
// "pkcs11:module-path=/usr/lib/softhsm/libsofthsm2.so;token=device?pin-source=/etc/pin".
// The PIN is in a file, and is tried once: a token locks.
func login(kind string) (*kmspkcs11.PKCS11, error) {
	u, err := uri.ParseWithScheme("pkcs11", kind)
	if err != nil {
		return nil, fmt.Errorf("%w: key: want a pkcs11: URI (RFC 7512)", ErrConfig)
	}
	path := strings.TrimPrefix(u.Get("pin-source"), "file://")
	if path == "" {
		return nil, fmt.Errorf("%w: key: the URI needs a pin-source", ErrConfig)
	}
	pin, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: key: %w", ErrConfig, err)
	}
	defer clear(pin)
	token := url.Values{}
	for name, values := range uri.Values(u) {
		if name != "pin-source" {
			token[name] = values
		}
	}
	t, err := kmspkcs11.New(context.Background(), apiv1.Options{Type: apiv1.PKCS11, URI: uri.New("pkcs11", token).String(), Pin: string(bytes.TrimSpace(pin))})
	if err != nil {
		return nil, fmt.Errorf("%w: opening the token: %w", errKey, err)
	}
	return t, nil
}

func newTokenKey(kind, algorithm string) ([]byte, error) {
	t, err := login(kind)
	if err != nil {
		return nil, err
	}
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	name := "pkcs11:id=" + hex.EncodeToString(id) + ";object=imprint-" + hex.EncodeToString(id)
	sig := apiv1.ECDSAWithSHA256
	if algorithm == "P-384" {
		sig = apiv1.ECDSAWithSHA384
	}
	_, err = t.CreateKey(&apiv1.CreateKeyRequest{Name: name, SignatureAlgorithm: sig})
	if err := errors.Join(err, t.Close()); err != nil {
		return nil, fmt.Errorf("%w: the token makes none: %w", errKey, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: tokenKeyType, Bytes: []byte(name)}), nil
}

func readTokenKey(kind, name string) (crypto.Signer, error) {
	t, err := login(kind)
	if err != nil {
		return nil, err
	}
	key, err := t.CreateSigner(&apiv1.CreateSignerRequest{SigningKey: name})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: it is not on the token: %w", errKey, err), t.Close())
	}
	return &tokenSigner{kind: kind, name: name, public: key.Public()}, t.Close()
}

// removeTokenKey removes a key whose pair has been removed.
func removeTokenKey(kind, name string) error {
	t, err := login(kind)
	if err != nil {
		return err
	}
	return errors.Join(t.DeleteKey(name), t.Close())
}

// A tokenSigner opens the token for each signature: a device signs once in a while.
type tokenSigner struct {
	kind, name string
	public     crypto.PublicKey
}

// Public implements [crypto.Signer].
func (s *tokenSigner) Public() crypto.PublicKey { return s.public }

// Sign implements [crypto.Signer].
func (s *tokenSigner) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	t, err := login(s.kind)
	if err != nil {
		return nil, err
	}
	defer func() { _ = t.Close() }()
	key, err := t.CreateSigner(&apiv1.CreateSignerRequest{SigningKey: s.name})
	if err != nil {
		return nil, fmt.Errorf("%w: it is not on the token: %w", errKey, err)
	}
	return key.Sign(r, digest, opts)
}
