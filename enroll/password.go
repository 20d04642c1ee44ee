package enroll

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // in PBKDF2, where two brokers know no other hash
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"

	"github.com/imprint-iot/imprint/inventory"
)

// passwordAlphabet has 64 characters, 6 bits each. All of them are safe on a
// label, in a URL, in a shell word and in every broker's files.
const passwordAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"

// defaultPasswordLength gives 192 bits and stays below the 72 bytes that bcrypt
// reads.
const defaultPasswordLength = 32

// NewPassword draws a password from the system's random source: length
// characters of [A-Za-z0-9_-], 32 if length is 0.
func NewPassword(length uint8) inventory.Secret {
	if length == 0 {
		length = defaultPasswordLength
	}
	b := make([]byte, length)
	_, _ = rand.Read(b) // never fails: it aborts the program instead
	for i := range b {
		b[i] = passwordAlphabet[b[i]%64] // 256 is a multiple of 64: no bias
	}
	return inventory.NewSecret(b)
}

// Costs of the verifiers. The passwords are random and have more than 128 bits,
// so stretching would add nothing to their strength, while a broker pays it at
// every connect: Mosquitto even for all connected clients at every reload.
const (
	pbkdf2Iterations = 101 // what mosquitto_passwd 2.0 writes
	pbkdf2Salt       = 12  // bytes; Mosquitto 2.0 reads no other length
	rabbitSalt       = 4   // bytes; rabbit_password.erl
	bcryptCost       = 4   // the least that bcrypt knows
	argon2Salt       = 16  // bytes
	moscaIterations  = 10_000
	moscaHash        = 128 // bytes; both fixed by Mosca, and Artemis reads any
)

// dearSchemes are computed for a fleet that asks for them.
var dearSchemes = []inventory.Scheme{inventory.Bcrypt, inventory.Argon2id, inventory.PBKDF2SHA1}

// Verifiers computes what is kept of a password: one verifier of each cheap
// scheme, so that a fleet can change brokers without touching a device, and of
// the dear ones that are asked for. Every verifier has a salt of its own.
func Verifiers(password inventory.Secret, dear []inventory.Scheme) ([]inventory.Verifier, error) {
	cheap := []inventory.Scheme{inventory.PBKDF2SHA512, inventory.SHA512Suffix, inventory.SHA256Suffix, inventory.RabbitSHA256, inventory.SHA512Prefix}
	salt := newSalt(4*pbkdf2Salt + rabbitSalt)
	pw := password.Reveal()
	out := make([]inventory.Verifier, 0, len(cheap)+len(dear))
	for _, s := range cheap {
		n := pbkdf2Salt
		if s == inventory.RabbitSHA256 {
			n = rabbitSalt
		}
		v, err := verifier(s, pw, salt[:n:n])
		if err != nil {
			return nil, err
		}
		out = append(out, v)
		salt = salt[n:]
	}
	for _, s := range dear {
		v, err := verifier(s, pw, nil)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// newSalt draws n characters that are safe as text: EMQX takes a salt as it is
// written, and has no form for other octets. 12 of them have 72 bits.
func newSalt(n int) []byte {
	salt := make([]byte, n)
	_, _ = rand.Read(salt) // never fails
	for i := range salt {
		salt[i] = passwordAlphabet[salt[i]%64]
	}
	return salt
}

// verifier computes one verifier; the dear schemes draw their own salt.
func verifier(s inventory.Scheme, pw, salt []byte) (inventory.Verifier, error) {
	v := inventory.Verifier{Scheme: s, Salt: salt}
	switch s {
	case inventory.PBKDF2SHA512:
		hash, err := pbkdf2.Key(sha512.New, string(pw), salt, pbkdf2Iterations, sha512.Size)
		if err != nil {
			return v, fmt.Errorf("computing %s: %w", s, err)
		}
		v.Iterations, v.Hash = pbkdf2Iterations, hash
	case inventory.SHA512Suffix:
		sum := sha512.Sum512(append(pw[:len(pw):len(pw)], salt...))
		v.Hash = sum[:]
	case inventory.SHA256Suffix:
		sum := sha256.Sum256(append(pw[:len(pw):len(pw)], salt...))
		v.Hash = sum[:]
	case inventory.SHA512Prefix:
		sum := sha512.Sum512(append(salt[:len(salt):len(salt)], pw...))
		v.Hash = sum[:]
	case inventory.PBKDF2SHA1:
		v.Salt = newSalt(pbkdf2Salt)
		hash, err := pbkdf2.Key(sha1.New, string(pw), v.Salt, moscaIterations, moscaHash)
		if err != nil {
			return v, fmt.Errorf("computing %s: %w", s, err)
		}
		v.Iterations, v.Hash = moscaIterations, hash
	case inventory.RabbitSHA256:
		sum := sha256.Sum256(append(salt[:len(salt):len(salt)], pw...))
		v.Hash = sum[:]
	case inventory.Bcrypt:
		hash, err := bcrypt.GenerateFromPassword(pw, bcryptCost)
		if err != nil {
			return v, fmt.Errorf("computing %s: %w", s, err)
		}
		v.Hash = hash
	case inventory.Argon2id:
		v.Hash = argon2PHC(pw)
	default:
		return v, fmt.Errorf("computing verifier: %w", &inventory.InvalidError{Field: "password scheme", Value: s.String(), Want: "a known scheme"})
	}
	return v, nil
}

// argon2PHC returns the PHC string of pw with the parameters that RFC 9106 §4
// calls its second choice, cut to one pass and 47104 KiB as mosquitto_passwd
// 2.1 writes it.
func argon2PHC(pw []byte) []byte {
	const passes, memory, threads = 1, 47104, 1
	salt := make([]byte, argon2Salt)
	_, _ = rand.Read(salt)
	tag := argon2.IDKey(pw, salt, passes, memory, threads, 32)
	b64 := base64.RawStdEncoding
	return fmt.Appendf(nil, "$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", memory, passes, threads, b64.EncodeToString(salt), b64.EncodeToString(tag))
}
