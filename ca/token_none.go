//go:build !pkcs11

package ca

import (
	"context"
	"fmt"
)

func errNoTokens() error {
	return fmt.Errorf("opening a pkcs11: key: this build has no PKCS#11: build with -tags pkcs11: %w", ErrKeyUnavailable)
}

func createTokenKey(context.Context, string, KeyAlgorithm, PassphraseFunc) (Key, error) {
	return nil, errNoTokens()
}

func openTokenKey(context.Context, string, PassphraseFunc) (Key, error) {
	return nil, errNoTokens()
}
