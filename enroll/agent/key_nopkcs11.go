//go:build !pkcs11

package agent

import (
	"crypto"
	"fmt"
)

// A PKCS #11 module is a C library: this build has no way to one.

func newTokenKey(string, string) ([]byte, error) { return nil, errNoTokens() }

func readTokenKey(string, string) (crypto.Signer, error) { return nil, errNoTokens() }

func removeTokenKey(string, string) error { return errNoTokens() }

func errNoTokens() error {
	return fmt.Errorf("%w: key: this build speaks to no PKCS #11 token: build it with -tags pkcs11", ErrConfig)
}
