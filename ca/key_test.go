package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
)

const testPassphrase = "correct horse battery staple"

func says(secret string) ca.PassphraseFunc {
	return func() ([]byte, error) { return []byte(secret), nil }
}

// neverAsked fails the test if a passphrase is wanted for a key that must be
// refused before.
func neverAsked(t *testing.T) ca.PassphraseFunc {
	return func() ([]byte, error) {
		t.Error("the passphrase is asked for")
		return []byte(testPassphrase), nil
	}
}

// makeKey makes a key file and returns its path and public key.
func makeKey(t testing.TB, alg ca.KeyAlgorithm) (string, crypto.PublicKey) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.key")
	key, err := ca.CreateKey(t.Context(), ca.KeyFileURI(path), alg, says(testPassphrase))
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Close(); err != nil {
		t.Fatal(err)
	}
	return path, key.Public()
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

func TestKeyFile(t *testing.T) {
	for _, alg := range []ca.KeyAlgorithm{"", ca.P256, ca.P384, ca.Ed25519, ca.RSA3072} {
		t.Run("alg "+string(alg), func(t *testing.T) {
			path, pub := makeKey(t, alg)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("mode %o, want 600", info.Mode().Perm())
			}
			entries, err := os.ReadDir(filepath.Dir(path))
			if err != nil || len(entries) != 1 {
				t.Errorf("%d files beside the key, %v", len(entries)-1, err)
			}
			asked := []byte(testPassphrase)
			key, err := ca.OpenKey(t.Context(), ca.KeyFileURI(path), func() ([]byte, error) { return asked, nil })
			if err != nil {
				t.Fatal(err)
			}
			if !sameKey(key.Public(), pub) {
				t.Error("another key comes out than went in")
			}
			if len(bytes.Trim(asked, "\x00")) != 0 {
				t.Error("the passphrase is still in memory")
			}
			for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
				if got := fmt.Sprintf(format, key); got != "[private key]" {
					t.Errorf("a key prints as %q under %s", got, format)
				}
			}
			out, err := run(t, testPassphrase, tool(t, "openssl", "openssl"), "pkey", "-in", path, "-passin", "stdin", "-pubout")
			if err != nil || !strings.Contains(out, string(toPEM("PUBLIC KEY", mustSPKI(t, pub)))) {
				t.Errorf("openssl reads another key: %v\n%s", err, out)
			}
		})
	}
}

func TestCreateKeyReplacesNothing(t *testing.T) {
	path, _ := makeKey(t, ca.P256)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.CreateKey(t.Context(), ca.KeyFileURI(path), ca.P256, neverAsked(t)); !errors.Is(err, ca.ErrKeyExists) {
		t.Errorf("CreateKey over a key = %v, want ErrKeyExists", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Join(t.TempDir(), "nowhere"), link); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.CreateKey(t.Context(), ca.KeyFileURI(link), ca.P256, says(testPassphrase)); !errors.Is(err, ca.ErrKeyExists) {
		t.Errorf("CreateKey over a link = %v, want ErrKeyExists", err)
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the key has changed: %v", err)
	}
}

// sec-010, sec-011: the mode of a key does not depend on the umask.
func TestCreateKeyUmask(t *testing.T) {
	for _, umask := range []int{0, 0o777} {
		path := filepath.Join(t.TempDir(), "ca.key")
		old := syscall.Umask(umask)
		_, err := ca.CreateKey(t.Context(), ca.KeyFileURI(path), ca.P256, says(testPassphrase))
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("umask %o: mode %v, %v", umask, info.Mode(), err)
		}
	}
}

func TestOpenKeyRefuses(t *testing.T) {
	path, _ := makeKey(t, ca.P256)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string, data []byte, mode os.FileMode) string {
		p := write(t, dir, name, data)
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	link, fifo := filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.Symlink(path, link), syscall.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	plain := catest.KeyPEM(t, catest.Key(t, ca.P256))
	for _, tt := range []struct {
		id, path string
		want     error
	}{
		{"ca-009/not there", filepath.Join(dir, "none"), ca.ErrKeyUnavailable},
		{"ca-009/in no directory", filepath.Join(dir, "none", "none"), ca.ErrKeyUnavailable},
		{"sec-009/mode 0644", file("0644", data, 0o644), ca.ErrKeyRefused},
		{"sec-009/mode 0640", file("0640", data, 0o640), ca.ErrKeyRefused},
		{"sec-009/mode 0602", file("0602", data, 0o602), ca.ErrKeyRefused},
		{"sec-013/symbolic link", link, ca.ErrKeyRefused},
		{"sec-013/pipe", fifo, ca.ErrKeyRefused},
		{"sec-013/directory", dir, ca.ErrKeyRefused},
		{"ca-007/65 KiB", file("big", make([]byte, 64<<10+1), 0o600), ca.ErrKeyRefused},
		{"ca-005/empty", file("empty", nil, 0o600), ca.ErrKeyRefused},
		{"ca-005/not encrypted", file("plain", plain, 0o600), ca.ErrKeyRefused},
		{"ca-005/two keys", file("two", append(bytes.Clone(data), data...), 0o600), ca.ErrKeyRefused},
		{"ca-005/text before", file("text", append([]byte("hello\n"), data...), 0o600), ca.ErrKeyRefused},
	} {
		t.Run(tt.id, func(t *testing.T) {
			if _, err := ca.OpenKey(t.Context(), ca.KeyFileURI(tt.path), neverAsked(t)); !errors.Is(err, tt.want) {
				t.Errorf("OpenKey = %v, want %v", err, tt.want)
			}
		})
	}
}

// ca-004: a wrong passphrase and a damaged file have one message.
func TestOpenKeyPassphrase(t *testing.T) {
	path, _ := makeKey(t, ca.P256)
	uri := ca.KeyFileURI(path)
	message := ""
	for _, secret := range []string{"wrong", testPassphrase + " ", strings.ToUpper(testPassphrase)} {
		_, err := ca.OpenKey(t.Context(), uri, says(secret))
		if !errors.Is(err, ca.ErrPassphrase) {
			t.Fatalf("ca-004: OpenKey = %v, want ErrPassphrase", err)
		}
		if message != "" && err.Error() != message {
			t.Errorf("ca-004: message %q and %q", message, err)
		}
		message = err.Error()
	}
	if _, err := ca.OpenKey(t.Context(), uri, says("")); !errors.Is(err, ca.ErrPassphrase) {
		t.Errorf("empty passphrase: %v, want ErrPassphrase", err)
	}
	if _, err := ca.OpenKey(t.Context(), uri, nil); !errors.Is(err, ca.ErrKeyUnavailable) {
		t.Errorf("nobody to ask: %v, want ErrKeyUnavailable", err)
	}
	gone := errors.New("terminal is gone")
	if _, err := ca.OpenKey(t.Context(), uri, func() ([]byte, error) { return nil, gone }); !errors.Is(err, gone) {
		t.Errorf("no answer: %v, want %v", err, gone)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ca.OpenKey(ctx, uri, neverAsked(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// ca-005: a damaged or swapped key never becomes an issuer.
func TestDamagedKey(t *testing.T) {
	path, pub := makeKey(t, ca.P256)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	good, err := ca.OpenKey(t.Context(), ca.KeyFileURI(path), says(testPassphrase))
	if err != nil {
		t.Fatal(err)
	}
	cert := deviceCA(t, catest.Key(t, ca.P256), good)
	der, _ := pem.Decode(data)
	bad := filepath.Join(t.TempDir(), "bad.key")
	opened := 0
	try := func(what string, content []byte) {
		t.Helper()
		if err := os.WriteFile(bad, content, 0o600); err != nil {
			t.Fatal(err)
		}
		key, err := ca.OpenKey(t.Context(), ca.KeyFileURI(bad), says(testPassphrase))
		if err != nil {
			if !errors.Is(err, ca.ErrPassphrase) && !errors.Is(err, ca.ErrKeyRefused) {
				t.Errorf("ca-005 %s: %v", what, err)
			}
			return
		}
		opened++
		if _, err := ca.NewIssuer(cert, key, nil); err == nil && !sameKey(key.Public(), pub) {
			t.Errorf("ca-005 %s: an issuer with another key", what)
		} else if err != nil && !errors.Is(err, ca.ErrKeyRefused) {
			t.Errorf("ca-005 %s: NewIssuer = %v", what, err)
		}
	}
	for _, at := range []int{0, 20, 30, 60, 75, 90, 110, 130, 150, len(der.Bytes) - 40, len(der.Bytes) - 20, len(der.Bytes) - 1} {
		flipped := bytes.Clone(der.Bytes)
		flipped[at] ^= 0x10
		try(fmt.Sprint("bit flipped in byte ", at), toPEM(der.Type, flipped))
	}
	for _, n := range []int{1, 16, 17, 100} {
		try(fmt.Sprint("without its last bytes: ", n), toPEM(der.Type, der.Bytes[:len(der.Bytes)-n]))
		try(fmt.Sprint("without the end of the file: ", n), data[:len(data)-n])
	}
	other, _ := makeKey(t, ca.P256)
	swapped, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	before := opened
	try("swapped for another CA's", swapped)
	if opened != before+1 {
		t.Error("the other CA's key does not open")
	}
}

// keyHeader is an encrypted PKCS #8 key with the parameters given.
func keyHeader(t testing.TB, change func(*header)) []byte {
	t.Helper()
	h := header{iterations: 600000, salt: 16, iv: 16, data: 160, kdf: []int{1, 2, 840, 113549, 1, 5, 12},
		scheme: []int{1, 2, 840, 113549, 1, 5, 13}, prf: []int{1, 2, 840, 113549, 2, 9}, cipher: []int{2, 16, 840, 1, 101, 3, 4, 1, 42}}
	change(&h)
	iterations, err := asn1.Marshal(h.iterations)
	if err != nil {
		t.Fatal(err)
	}
	kdf := seq(oid(h.kdf...), seq(tlv(4, make([]byte, h.salt)), iterations, seq(oid(h.prf...), []byte{5, 0})))
	cipher := seq(oid(h.cipher...), tlv(4, make([]byte, h.iv)))
	return toPEM("ENCRYPTED PRIVATE KEY", seq(seq(oid(h.scheme...), seq(kdf, cipher)), tlv(4, make([]byte, h.data))))
}

type header struct {
	iterations, salt, iv, data int
	scheme, kdf, prf, cipher   []int
}

// ca-006, ca-007: the header is not authenticated, so it is held to bounds before
// any work is done.
func TestKeyFileParameters(t *testing.T) {
	for _, tt := range []struct {
		id     string
		change func(*header)
		want   error
	}{
		{"ca-006/1 iteration", func(h *header) { h.iterations = 1 }, ca.ErrKeyRefused},
		{"ca-006/2,048 iterations, OpenSSL's default", func(h *header) { h.iterations = 2048 }, ca.ErrKeyRefused},
		{"ca-006/99,999 iterations", func(h *header) { h.iterations = 99_999 }, ca.ErrKeyRefused},
		{"ca-006/0 iterations", func(h *header) { h.iterations = 0 }, ca.ErrKeyRefused},
		{"ca-006/negative", func(h *header) { h.iterations = -600000 }, ca.ErrKeyRefused},
		{"ca-006/short salt", func(h *header) { h.salt = 7 }, ca.ErrKeyRefused},
		{"ca-006/HMAC-SHA1", func(h *header) { h.prf = []int{1, 2, 840, 113549, 2, 7} }, ca.ErrKeyRefused},
		{"ca-006/3DES", func(h *header) { h.cipher, h.iv = []int{1, 2, 840, 113549, 3, 7}, 8 }, ca.ErrKeyRefused},
		{"ca-006/PBES1", func(h *header) { h.scheme = []int{1, 2, 840, 113549, 1, 5, 3} }, ca.ErrKeyRefused},
		{"ca-007/10,000,001 iterations", func(h *header) { h.iterations = 10_000_001 }, ca.ErrKeyRefused},
		{"ca-007/2^31 iterations", func(h *header) { h.iterations = 1 << 31 }, ca.ErrKeyRefused},
		{"ca-007/scrypt", func(h *header) { h.kdf = []int{1, 3, 6, 1, 4, 1, 11591, 4, 11} }, ca.ErrKeyRefused},
		{"ca-007/short IV", func(h *header) { h.iv = 15 }, ca.ErrKeyRefused},
		{"ca-007/no whole blocks", func(h *header) { h.data = 161 }, ca.ErrKeyRefused},
		{"ca-007/nothing encrypted", func(h *header) { h.data = 0 }, ca.ErrKeyRefused},
	} {
		t.Run(tt.id, func(t *testing.T) {
			path := write(t, t.TempDir(), "ca.key", keyHeader(t, tt.change))
			start := time.Now()
			if _, err := ca.OpenKey(t.Context(), ca.KeyFileURI(path), neverAsked(t)); !errors.Is(err, tt.want) {
				t.Errorf("OpenKey = %v, want %v", err, tt.want)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("takes %s", took)
			}
		})
	}
	path := write(t, t.TempDir(), "ca.key", keyHeader(t, func(h *header) { h.iterations = 100_000 }))
	if _, err := ca.OpenKey(t.Context(), ca.KeyFileURI(path), says("x")); !errors.Is(err, ca.ErrPassphrase) {
		t.Errorf("parameters within the bounds: %v, want ErrPassphrase", err)
	}
}

func TestKeyURI(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"plain", "a+b", "a b", "a%41", "semi;colon", "question?mark", "ümlaut"} {
		path := filepath.Join(dir, name)
		key, err := ca.CreateKey(t.Context(), ca.KeyFileURI(path), ca.P256, says(testPassphrase))
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
		if err := key.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, uri := range []string{"", "ca.key", "softkms:", "softkms:ca.key", "softkms:path=", "softkms:path=%zz",
		"softkms:path=a;x=y", "softkms:path=a%00b", "file:path=a", "awskms:key-id=1", "pkcs11:token=t;id=1?pin-value=1234"} {
		_, err := ca.OpenKey(t.Context(), uri, neverAsked(t))
		if bad, ok := errors.AsType[*ca.ConfigError](err); !ok || bad.Field != "key URI" {
			t.Errorf("OpenKey(%q) = %v, want a *ConfigError about the URI", uri, err)
		} else if strings.Contains(err.Error(), "1234") {
			t.Errorf("the error tells the PIN: %v", err)
		}
	}
	for _, alg := range []ca.KeyAlgorithm{ca.P521, ca.RSA2048, "P-224", "p-256"} {
		if _, err := ca.CreateKey(t.Context(), ca.KeyFileURI(filepath.Join(dir, "x")), alg, neverAsked(t)); err == nil {
			t.Errorf("a CA gets a %s key", alg)
		}
	}
}

// Several processes make one key at once: one of them does, and it is whole.
func TestCreateKeyRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.key")
	var wg sync.WaitGroup
	made := make(chan crypto.PublicKey, 4)
	for range cap(made) {
		wg.Go(func() {
			key, err := ca.CreateKey(t.Context(), ca.KeyFileURI(path), ca.P256, says(testPassphrase))
			if err == nil {
				made <- key.Public()
			} else if !errors.Is(err, ca.ErrKeyExists) {
				t.Errorf("CreateKey = %v", err)
			}
		})
	}
	wg.Wait()
	if len(made) != 1 {
		t.Fatalf("%d keys are made", len(made))
	}
	key, err := ca.OpenKey(t.Context(), ca.KeyFileURI(path), says(testPassphrase))
	if err != nil || !sameKey(key.Public(), <-made) {
		t.Errorf("what is there is not what was made: %v", err)
	}
}

// A key that OpenSSL made is opened if it is encrypted well enough.
func TestOpenKeyOfOpenSSL(t *testing.T) {
	openssl, dir := tool(t, "openssl", "openssl"), t.TempDir()
	plain := write(t, dir, "plain.pem", catest.KeyPEM(t, catest.Key(t, ca.P384)))
	for iterations, want := range map[string]error{"600000": nil, "2048": ca.ErrKeyRefused} {
		out := filepath.Join(dir, iterations)
		if said, err := run(t, testPassphrase, openssl, "pkcs8", "-topk8", "-in", plain, "-out", out, "-passout", "stdin",
			"-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA256", "-iter", iterations); err != nil {
			t.Fatal(err, said)
		}
		if _, err := ca.OpenKey(t.Context(), ca.KeyFileURI(out), says(testPassphrase)); !errors.Is(err, want) {
			t.Errorf("%s iterations: OpenKey = %v, want %v", iterations, err, want)
		}
	}
}

func TestGenerateKey(t *testing.T) {
	for _, alg := range []ca.KeyAlgorithm{"", ca.P256, ca.P384, ca.P521, ca.Ed25519, ca.RSA2048} {
		key, err := ca.GenerateKey(alg)
		if err != nil {
			t.Fatal(err)
		}
		policy := ca.AnyKey()
		if alg != "" {
			policy.Allow = []ca.KeyAlgorithm{alg}
		}
		if _, err := ca.NewRequest(key.Public(), policy); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
	if _, err := ca.GenerateKey("RSA-1024"); err == nil {
		t.Error("GenerateKey makes an RSA-1024 key")
	}
}

// ca-020: everything works under the FIPS 140-3 module. Its mode is fixed when a
// process starts, so the test runs itself.
func TestFIPS(t *testing.T) {
	const child = "IMPRINT_FIPS_CHILD"
	if os.Getenv(child) == "" {
		cmd := os.Args[0]
		for _, mode := range []string{"on", "only"} {
			out, err := run(t, "", tool(t, "env", "coreutils"), child+"=1", "GODEBUG=fips140="+mode, cmd, "-test.run=^TestFIPS$", "-test.v")
			if err != nil || !strings.Contains(out, "--- PASS: TestFIPS") {
				t.Errorf("ca-020 fips140=%s: %v\n%s", mode, err, out)
			}
		}
		return
	}
	path, _ := makeKey(t, ca.P256)
	if _, err := ca.OpenKey(t.Context(), ca.KeyFileURI(path), says(testPassphrase)); err != nil {
		t.Fatal(err)
	}
	for _, alg := range []ca.KeyAlgorithm{ca.P256, ca.P384, ca.Ed25519, ca.RSA3072} {
		key := catest.Key(t, alg)
		issuer, err := ca.NewIssuer(deviceCA(t, catest.Key(t, alg), key), key, nil)
		if err != nil {
			t.Fatal(err)
		}
		profile := catest.Profile(t, ca.Config{Keys: ca.AnyKey().Allow})
		req, err := ca.ParseRequest(catest.CSR(t, catest.Key(t, alg), "dev-1"), profile.KeyPolicy())
		if err != nil {
			t.Fatal(err)
		}
		d, err := issuer.Prepare(profile, deviceSubject("dev-1"), req)
		if err != nil {
			t.Fatal(err)
		}
		sign(t, d)
		makeCRL(t, issuer, 1, ca.Revoked{Serial: d.Serial(), Time: time.Now(), Reason: 1})
	}
}

// FuzzKeyFile: whatever stands in a key file, opening it costs little and never
// panics. The passphrase is the right one, so a header that is let through is
// decrypted.
func FuzzKeyFile(f *testing.F) {
	path, _ := makeKey(f, ca.P256)
	data, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(keyHeader(f, func(h *header) { h.iterations = 100_000 }))
	f.Add(keyHeader(f, func(h *header) { h.iv = 15 }))
	f.Add(catest.KeyPEM(f, catest.Key(f, ca.P256)))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		h := sha256.Sum256(data)
		path := filepath.Join(dir, fmt.Sprintf("%x", h[:8]))
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(path) //nolint:errcheck // in a temporary directory
		key, err := ca.OpenKey(t.Context(), ca.KeyFileURI(path), says(testPassphrase))
		if err != nil {
			if !errors.Is(err, ca.ErrKeyRefused) && !errors.Is(err, ca.ErrPassphrase) {
				t.Fatalf("OpenKey = %v", err)
			}
			return
		}
		if _, err := crypto.SignMessage(key, rand.Reader, data, crypto.SHA256); err != nil {
			t.Logf("the key does not sign: %v", err) // Ed25519 takes no hash
		}
	})
}
