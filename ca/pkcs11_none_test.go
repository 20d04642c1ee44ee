//go:build !pkcs11

package ca_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/ca"
)

// A build without PKCS#11 says so, and how to get it.
func TestTokenNeedsTag(t *testing.T) {
	const uri = "pkcs11:module-path=/x.so;token=t;id=01;object=ca"
	_, open := ca.OpenKey(t.Context(), uri, neverAsked(t))
	_, create := ca.CreateKey(t.Context(), uri, ca.P256, neverAsked(t))
	for _, err := range []error{open, create} {
		if !errors.Is(err, ca.ErrKeyUnavailable) || !strings.Contains(err.Error(), "this build has no PKCS#11: build with -tags pkcs11") {
			t.Errorf("%v, want ErrKeyUnavailable and the tag", err)
		}
	}
}
