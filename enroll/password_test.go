package enroll_test

import (
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
)

func TestNewPassword(t *testing.T) {
	seen := map[string]bool{}
	counts := map[byte]int{}
	const n = 4000
	for range n {
		p := string(enroll.NewPassword(0).Reveal())
		if !regexp.MustCompile(`^[A-Za-z0-9_-]{32}$`).MatchString(p) {
			t.Fatalf("password of %d characters, or outside the alphabet", len(p))
		}
		if seen[p] {
			t.Fatal("a password came twice")
		}
		seen[p] = true
		for i := range len(p) {
			counts[p[i]]++
		}
	}
	// 64 characters, each n*32/64 times: six standard deviations either way.
	const want, deviation = n / 2, 45
	for c, got := range counts {
		if got < want-6*deviation || got > want+6*deviation {
			t.Errorf("%q came %d times, want about %d", c, got, want)
		}
	}
	if len(counts) != 64 {
		t.Errorf("%d characters are in use, want 64", len(counts))
	}
	if p := enroll.NewPassword(40); len(p.Reveal()) != 40 {
		t.Errorf("%d characters, want 40", len(p.Reveal()))
	}
}

// TestVerifiers recomputes each verifier by the formula in its broker's manual,
// and one of them with another program.
func TestVerifiers(t *testing.T) {
	secret := "correct horse"
	all, err := enroll.Verifiers(inventory.NewSecret([]byte(secret)), []inventory.Scheme{inventory.Bcrypt, inventory.Argon2id, inventory.PBKDF2SHA1})
	if err != nil {
		t.Fatal(err)
	}
	salts := map[string]bool{}
	by := make(map[inventory.Scheme]inventory.Verifier)
	for _, v := range all {
		by[v.Scheme] = v
		if len(v.Salt) > 0 && salts[string(v.Salt)] {
			t.Errorf("%s shares its salt", v.Scheme)
		}
		salts[string(v.Salt)] = true
	}
	if len(by) != 8 {
		t.Fatalf("%d schemes, want 8", len(by))
	}
	check := func(s inventory.Scheme, salt int, want []byte) {
		t.Helper()
		if v := by[s]; len(v.Salt) != salt || string(v.Hash) != string(want) {
			t.Errorf("%s: salt of %d octets, hash %x; want %d and %x", s, len(v.Salt), v.Hash, salt, want)
		}
	}
	v := by[inventory.PBKDF2SHA512]
	hash, err := pbkdf2.Key(sha512.New, secret, v.Salt, 101, 64)
	if err != nil || v.Iterations != 101 {
		t.Fatalf("%d iterations, %v", v.Iterations, err)
	}
	check(inventory.PBKDF2SHA512, 12, hash)
	sum512 := sha512.Sum512([]byte(secret + string(by[inventory.SHA512Suffix].Salt)))
	check(inventory.SHA512Suffix, 12, sum512[:])
	sum256 := sha256.Sum256([]byte(secret + string(by[inventory.SHA256Suffix].Salt)))
	check(inventory.SHA256Suffix, 12, sum256[:])
	rabbit := sha256.Sum256([]byte(string(by[inventory.RabbitSHA256].Salt) + secret))
	check(inventory.RabbitSHA256, 4, rabbit[:])
	prefix := sha512.Sum512([]byte(string(by[inventory.SHA512Prefix].Salt) + secret))
	check(inventory.SHA512Prefix, 12, prefix[:])
	mosca := by[inventory.PBKDF2SHA1]
	if hash, err = pbkdf2.Key(sha1.New, secret, mosca.Salt, 10_000, 128); err != nil || mosca.Iterations != 10_000 {
		t.Fatalf("%d iterations, %v", mosca.Iterations, err)
	}
	check(inventory.PBKDF2SHA1, 12, hash)
	for _, v := range all {
		if !regexp.MustCompile(`^[A-Za-z0-9_-]*$`).Match(v.Salt) {
			t.Errorf("%s: the salt %q is not text", v.Scheme, v.Salt) // EMQX has no form for other octets
		}
	}
	if err := bcrypt.CompareHashAndPassword(by[inventory.Bcrypt].Hash, []byte(secret)); err != nil {
		t.Error(err)
	}
	if !regexp.MustCompile(`^\$argon2id\$v=19\$m=47104,t=1,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$`).Match(by[inventory.Argon2id].Hash) {
		t.Errorf("argon2id: %s", by[inventory.Argon2id].Hash)
	}
	out, err := exec.Command("openssl", "kdf", "-keylen", "64", "-kdfopt", "digest:SHA512", "-kdfopt", "pass:"+secret,
		"-kdfopt", fmt.Sprintf("hexsalt:%x", v.Salt), "-kdfopt", "iter:101", "-binary", "PBKDF2").Output()
	if err != nil {
		t.Fatalf("openssl (Debian package openssl): %v", err)
	}
	if string(out) != string(v.Hash) {
		t.Errorf("openssl has %x, imprint %x", out, v.Hash)
	}
	if _, err := enroll.Verifiers(inventory.NewSecret([]byte(secret)), []inventory.Scheme{99}); err == nil {
		t.Error("an unknown scheme is computed")
	}
	if strings.Contains(fmt.Sprintf("%+v", all), base64.StdEncoding.EncodeToString([]byte(secret))) {
		t.Error("a verifier shows the password")
	}
}
