package ca

import (
	"context"
	"crypto"
	"fmt"
	"io"
	"net/url"
	"strings"
)

// A PassphraseFunc returns the passphrase of a key file or the PIN of a token. It
// is asked only when a key is really opened or made, and at most once. The slice
// is overwritten with zeros after use; the function returns a copy of its own.
type PassphraseFunc func() ([]byte, error)

// A Key is a private key that is open: in memory, or a handle to a token. Close
// it when done. It is safe for concurrent use, and it formats as a placeholder,
// so it cannot end in a log.
type Key interface {
	crypto.Signer
	io.Closer
}

// The two kinds of key URI.
const (
	schemeFile  = "softkms"
	schemeToken = "pkcs11"
)

// KeyFileURI returns the URI of a key file for [CreateKey] and [OpenKey].
func KeyFileURI(path string) string {
	return schemeFile + ":path=" + strings.NewReplacer("%", "%25", ";", "%3B", "?", "%3F").Replace(path)
}

// CreateKey makes a private key where the URI says and opens it:
//
//   - "softkms:path=FILE": a PKCS #8 file, encrypted (PBES2: PBKDF2-HMAC-SHA256
//     with 600,000 iterations, AES-256-CBC; RFC 8018), mode 0600.
//   - "pkcs11:module-path=...;token=...;id=...;object=...?pin-source=FILE": a key
//     that never leaves a token (RFC 7512). Only in builds with -tags pkcs11.
//     Without pin-source, pass is asked for the PIN. A token makes no Ed25519.
//
// It never replaces a key: if there is one the error wraps [ErrKeyExists]. When
// CreateKey returns, a key file is durable. A CA's key cannot be P-521 or
// RSA-2048; alg "" means P-256.
func CreateKey(ctx context.Context, uri string, alg KeyAlgorithm, pass PassphraseFunc) (Key, error) {
	if alg == "" {
		alg = P256
	}
	if !alg.forCA() {
		return nil, badConfig("key algorithm of a CA", string(alg), "P-256, P-384, Ed25519, RSA-3072 or RSA-4096")
	}
	scheme, path, err := parseKeyURI(uri)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if scheme == schemeToken {
		return createTokenKey(ctx, uri, alg, pass)
	}
	return createKeyFile(ctx, path, alg, pass)
}

// OpenKey opens the private key at a URI of [CreateKey].
//
// The error wraps [ErrKeyUnavailable] if the key is not there, [ErrPassphrase] if
// it does not open, and [ErrKeyRefused] if it must not be used as it is. A wrong
// PIN is not tried twice.
func OpenKey(ctx context.Context, uri string, pass PassphraseFunc) (Key, error) {
	scheme, path, err := parseKeyURI(uri)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if scheme == schemeToken {
		return openTokenKey(ctx, uri, pass)
	}
	return openKeyFile(ctx, path, pass)
}

// parseKeyURI returns the scheme and, for a key file, its path. A "+" in a path is
// a "+": the percent signs of RFC 7512 are the only escapes.
func parseKeyURI(uri string) (scheme, path string, err error) {
	const want = `"softkms:path=FILE" or "pkcs11:..." (RFC 7512)`
	scheme, rest, _ := strings.Cut(uri, ":")
	switch scheme {
	case schemeToken:
		if strings.Contains(rest, "pin-value") {
			return "", "", &ConfigError{Field: "key URI", Value: "pkcs11:...", Want: "pin-source=FILE or a prompt: a PIN in a URI ends in a backup"}
		}
		return scheme, "", nil
	case schemeFile:
		value, ok := strings.CutPrefix(rest, "path=")
		if !ok || strings.ContainsAny(value, ";?") {
			return "", "", badConfig("key URI", uri, want)
		}
		path, err := url.PathUnescape(value)
		if err != nil || path == "" || strings.ContainsRune(path, 0) {
			return "", "", badConfig("key URI", uri, want)
		}
		return scheme, path, nil
	}
	return "", "", badConfig("key URI", uri, want)
}

// askPassphrase calls pass and checks what it says.
func askPassphrase(pass PassphraseFunc, what string) ([]byte, error) {
	if pass == nil {
		return nil, fmt.Errorf("opening key of %s: no passphrase was given: %w", what, ErrKeyUnavailable)
	}
	secret, err := pass()
	if err != nil {
		return nil, fmt.Errorf("asking for the passphrase of %s: %w: %w", what, ErrKeyUnavailable, err)
	}
	if len(secret) == 0 {
		return nil, fmt.Errorf("opening key of %s: the passphrase is empty: %w", what, ErrPassphrase)
	}
	return secret, nil
}

// A handle is a Key. It hides what it holds from fmt.
type handle struct {
	crypto.Signer
	close func() error
}

// Close implements [io.Closer].
func (h *handle) Close() error {
	if h.close == nil {
		return nil
	}
	return h.close()
}

// Format implements [fmt.Formatter], for every verb.
func (h *handle) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "[private key]")
}
