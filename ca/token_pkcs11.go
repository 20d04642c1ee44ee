//go:build pkcs11

package ca

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/miekg/pkcs11"
	"go.step.sm/crypto/kms/apiv1"
	kmspkcs11 "go.step.sm/crypto/kms/pkcs11"
	"go.step.sm/crypto/kms/uri"
)

// A tokenURI is a pkcs11: URI (RFC 7512) taken apart: the token, without a PIN,
// and the key on it.
type tokenURI struct {
	token     string // pkcs11:module-path=...;token=...
	key       string // pkcs11:id=...;object=...
	pinSource string // a file, or ""
}

// parseTokenURI wants an id: labels are not unique on a token, and the wrong one
// of two keys would sign.
func parseTokenURI(s string) (*tokenURI, error) {
	u, err := uri.ParseWithScheme(schemeToken, s)
	if err != nil {
		return nil, badConfig("key URI", s, "a pkcs11: URI (RFC 7512)")
	}
	if u.Get("id") == "" || u.Get("object") == "" {
		return nil, badConfig("key URI", s, "id=HEX and object=LABEL: a label alone may mean two keys")
	}
	token, key := url.Values{}, url.Values{}
	for name, values := range uri.Values(u) {
		switch name {
		case "id", "object":
			key[name] = values
		case "pin-source":
		case "pin-prompt":
			return nil, badConfig("key URI", s, "no pin-prompt: imprint asks")
		default:
			token[name] = values
		}
	}
	return &tokenURI{
		token:     uri.New(schemeToken, token).String(),
		key:       uri.New(schemeToken, key).String(),
		pinSource: u.Get("pin-source"),
	}, nil
}

// login opens the token. It tries the PIN once: a token locks after a few wrong
// ones.
func (t *tokenURI) login(ctx context.Context, pass PassphraseFunc) (*kmspkcs11.PKCS11, error) {
	pin, err := t.pin(pass)
	if err != nil {
		return nil, err
	}
	defer clear(pin)
	token, err := kmspkcs11.New(ctx, apiv1.Options{Type: apiv1.PKCS11, URI: t.token, Pin: string(pin)})
	if err != nil {
		return nil, tokenError("opening the token", err)
	}
	return token, nil
}

func (t *tokenURI) pin(pass PassphraseFunc) ([]byte, error) {
	if t.pinSource == "" {
		return askPassphrase(pass, "the token")
	}
	data, err := readSecretFile(strings.TrimPrefix(t.pinSource, "file://"))
	if err != nil {
		return nil, fmt.Errorf("reading pin-source: %w", err)
	}
	pin := bytes.TrimRight(data, "\r\n")
	if len(pin) == 0 {
		return nil, fmt.Errorf("reading pin-source: it is empty: %w", ErrPassphrase)
	}
	return pin, nil
}

// tokenError says what can be done about an error of a token.
func tokenError(doing string, err error) error {
	code, ok := errors.AsType[pkcs11.Error](err)
	if !ok {
		return fmt.Errorf("%s: %w: %w", doing, ErrKeyUnavailable, err)
	}
	switch uint(code) {
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_LOCKED:
		return fmt.Errorf("%s: %w: %w", doing, ErrPassphrase, code)
	}
	return fmt.Errorf("%s: %w: %w", doing, ErrKeyUnavailable, code)
}

func createTokenKey(ctx context.Context, s string, alg KeyAlgorithm, pass PassphraseFunc) (Key, error) {
	if alg == Ed25519 {
		return nil, badConfig("key algorithm on a token", string(alg), "P-256, P-384, RSA-3072 or RSA-4096")
	}
	t, err := parseTokenURI(s)
	if err != nil {
		return nil, err
	}
	token, err := t.login(ctx, pass)
	if err != nil {
		return nil, err
	}
	_, err = token.CreateKey(&apiv1.CreateKeyRequest{Name: t.key, SignatureAlgorithm: kmsAlgorithm(alg), Bits: alg.bits()})
	if err != nil {
		if errors.As(err, &apiv1.AlreadyExistsError{}) {
			err = ErrKeyExists
		} else {
			err = tokenError("making a key on the token", err)
		}
		return nil, errors.Join(err, token.Close())
	}
	return t.open(token)
}

func openTokenKey(ctx context.Context, s string, pass PassphraseFunc) (Key, error) {
	t, err := parseTokenURI(s)
	if err != nil {
		return nil, err
	}
	token, err := t.login(ctx, pass)
	if err != nil {
		return nil, err
	}
	return t.open(token)
}

// open finds the key on a token that is logged in, which it closes on error.
func (t *tokenURI) open(token *kmspkcs11.PKCS11) (Key, error) {
	signer, err := token.CreateSigner(&apiv1.CreateSignerRequest{SigningKey: t.key})
	if err == nil {
		err = usableKey(signer)
	} else {
		err = tokenError("finding the key on the token", err)
	}
	if err != nil {
		return nil, errors.Join(err, token.Close())
	}
	return &handle{Signer: signer, close: token.Close}, nil
}
