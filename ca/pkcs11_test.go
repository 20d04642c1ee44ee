//go:build pkcs11

package ca_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
)

const testPIN = "271828"

// library finds a shared object that Debian puts under the multiarch directory.
func library(t testing.TB, name, debianPackage string) string {
	t.Helper()
	for _, pattern := range []string{"/usr/lib/*/", "/usr/lib/*/pkcs11/", "/usr/lib/", "/usr/lib/softhsm/"} {
		if found, err := filepath.Glob(pattern + name); err == nil && len(found) > 0 {
			return found[0]
		}
	}
	t.Fatalf("%s is not installed: apt-get install %s", name, debianPackage)
	return ""
}

// A token is a SoftHSM2 token of its own.
type token struct{ module, label string }

func newToken(t *testing.T) token {
	t.Helper()
	dir := t.TempDir()
	conf := write(t, dir, "softhsm2.conf", []byte("directories.tokendir = "+dir+"\nobjectstore.backend = file\nlog.level = ERROR\n"))
	t.Setenv("SOFTHSM2_CONF", conf)
	label := "t" + filepath.Base(dir)
	mustRun(t, tool(t, "softhsm2-util", "softhsm2"), "--init-token", "--free", "--label", label, "--pin", testPIN, "--so-pin", "31415926")
	return token{library(t, "libsofthsm2.so", "softhsm2"), label}
}

func (k token) uri(key string) string {
	return fmt.Sprintf("pkcs11:module-path=%s;token=%s;%s", k.module, k.label, key)
}

// p11tool runs OpenSC's pkcs11-tool on the token.
func (k token) p11tool(t *testing.T, args ...string) string {
	t.Helper()
	args = append([]string{"--module", k.module, "--token-label", k.label, "--login", "--pin", testPIN}, args...)
	return mustRun(t, tool(t, "pkcs11-tool", "opensc"), args...)
}

func TestTokenKey(t *testing.T) {
	k := newToken(t)
	for n, alg := range []ca.KeyAlgorithm{ca.P256, ca.P384, ca.RSA3072} {
		t.Run(string(alg), func(t *testing.T) {
			uri := k.uri(fmt.Sprintf("id=0%d;object=ca-%d", n+1, n+1))
			made, err := ca.CreateKey(t.Context(), uri, alg, says(testPIN))
			if err != nil {
				t.Fatal(err)
			}
			if err := made.Close(); err != nil {
				t.Error(err)
			}
			key, err := ca.OpenKey(t.Context(), uri, says(testPIN))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := key.Close(); err != nil {
					t.Error(err)
				}
			}()
			if !sameKey(key.Public(), made.Public()) {
				t.Fatal("another key comes back")
			}
			if got := fmt.Sprintf("%+v", key); got != "[private key]" {
				t.Errorf("a key prints as %q", got)
			}
			issueAndRevoke(t, key)
			if _, err := ca.CreateKey(t.Context(), uri, alg, says(testPIN)); !errors.Is(err, ca.ErrKeyExists) {
				t.Errorf("CreateKey over a key = %v, want ErrKeyExists", err)
			}
		})
	}
	if _, err := ca.CreateKey(t.Context(), k.uri("id=09;object=ed"), ca.Ed25519, says(testPIN)); err == nil {
		t.Error("a token makes an Ed25519 key")
	}
}

// issueAndRevoke uses key as a device CA's, and as a root's.
func issueAndRevoke(t *testing.T, key ca.Key) {
	t.Helper()
	newRoot(t, key, ca.AuthorityConfig{Organization: "Acme", Generation: 1})
	issuer, err := ca.NewIssuer(deviceCA(t, catest.Key(t, ca.P256), key), key, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := prepare(t, issuer, catest.Profile(t, ca.Config{}), deviceSubject("dev-1"))
	if err := sign(t, d).CheckSignatureFrom(issuer.Certificate()); err != nil {
		t.Error(err)
	}
	makeCRL(t, issuer, 1, ca.Revoked{Serial: d.Serial(), Time: time.Now(), Reason: 1})
}

// A wrong PIN is tried once, as the calls at the token show: ca-009.
func TestTokenWrongPIN(t *testing.T) {
	k := newToken(t)
	key, err := ca.CreateKey(t.Context(), k.uri("id=01;object=ca"), ca.P256, says(testPIN))
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Close(); err != nil {
		t.Fatal(err)
	}
	spied := filepath.Join(t.TempDir(), "calls")
	t.Setenv("PKCS11SPY", k.module)
	t.Setenv("PKCS11SPY_OUTPUT", spied)
	k.module = library(t, "pkcs11-spy.so", "opensc")
	asked := 0
	_, err = ca.OpenKey(t.Context(), k.uri("id=01;object=ca"), func() ([]byte, error) {
		asked++
		return []byte("999999"), nil
	})
	if !errors.Is(err, ca.ErrPassphrase) {
		t.Errorf("OpenKey = %v, want ErrPassphrase", err)
	}
	calls, readErr := os.ReadFile(spied)
	if readErr != nil {
		t.Fatal(readErr)
	}
	if logins := bytes.Count(calls, []byte(": C_Login\n")); logins != 1 || asked != 1 {
		t.Errorf("%d logins, asked %d times, want 1 and 1", logins, asked)
	}
	if err != nil && strings.Contains(err.Error(), "999999") {
		t.Errorf("the error tells the PIN: %v", err)
	}
}

func TestTokenPINSource(t *testing.T) {
	k := newToken(t)
	pin := write(t, t.TempDir(), "pin", []byte(testPIN+"\n"))
	uri := k.uri("id=01;object=ca") + "?pin-source=" + pin
	key, err := ca.CreateKey(t.Context(), uri, ca.P256, neverAsked(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(pin, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.OpenKey(t.Context(), uri, neverAsked(t)); !errors.Is(err, ca.ErrKeyRefused) {
		t.Errorf("a PIN that others can read: %v, want ErrKeyRefused", err)
	}
	if _, err := ca.OpenKey(t.Context(), k.uri("id=01;object=ca")+"?pin-source="+pin+"x", neverAsked(t)); !errors.Is(err, ca.ErrKeyUnavailable) {
		t.Errorf("no PIN file: %v, want ErrKeyUnavailable", err)
	}
}

// ca-010: of two keys with one label the id tells which, and a key that is not
// the certificate's is refused.
func TestTokenSameLabel(t *testing.T) {
	k := newToken(t)
	key, err := ca.CreateKey(t.Context(), k.uri("id=01;object=ca"), ca.P256, says(testPIN))
	if err != nil {
		t.Fatal(err)
	}
	cert := deviceCA(t, catest.Key(t, ca.P256), key)
	if err := key.Close(); err != nil {
		t.Fatal(err)
	}
	k.p11tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "ca", "--id", "02")
	for id, want := range map[string]error{"01": nil, "02": ca.ErrKeyRefused} {
		key, err := ca.OpenKey(t.Context(), k.uri("id="+id+";object=ca"), says(testPIN))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ca.NewIssuer(cert, key, nil); !errors.Is(err, want) {
			t.Errorf("key %s: NewIssuer = %v, want %v", id, err, want)
		}
		if err := key.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, key := range []string{"object=ca", "id=01"} {
		_, err := ca.OpenKey(t.Context(), k.uri(key), neverAsked(t))
		if _, ok := errors.AsType[*ca.ConfigError](err); !ok {
			t.Errorf("OpenKey by %s = %v, want a *ConfigError", key, err)
		}
	}
}

func TestTokenNotThere(t *testing.T) {
	k := newToken(t)
	for what, uri := range map[string]string{
		"no such key":    k.uri("id=77;object=none"),
		"no such token":  token{k.module, "none"}.uri("id=01;object=ca"),
		"no such module": token{"/nonexistent.so", k.label}.uri("id=01;object=ca"),
	} {
		if _, err := ca.OpenKey(t.Context(), uri, says(testPIN)); !errors.Is(err, ca.ErrKeyUnavailable) {
			t.Errorf("%s: OpenKey = %v, want ErrKeyUnavailable", what, err)
		}
	}
}
