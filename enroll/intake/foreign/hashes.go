package foreign

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
)

// Sizes of what is read of a password, in bytes.
const (
	sha512Size   = 64
	sha256Size   = 32
	rabbitSalt   = 4
	maxSalt      = 128
	maxIteration = 10_000_000
	bcryptLength = 60
	maxPHC       = 512
)

// What can be wrong with a hash. The texts never quote it.
var (
	errPlain  = errors.New("the password is stored as it is")
	errHash   = errors.New("the hash cannot be read: the device needs a new password")
	errScheme = errors.New("passwords hashed like this cannot be carried over: the device needs a new one")
	errWeak   = errors.New("the hash is a broken one and is not carried over: the device needs a new password")
)

// mosquittoHash reads "$6$SALT$HASH", "$7$ITERATIONS$SALT$HASH" and, of 2.1,
// "$argon2id$...", as mosquitto_passwd(1) writes them, with salt and hash in padded
// base64.
func mosquittoHash(text string) (inventory.Verifier, error) {
	switch {
	case strings.HasPrefix(text, "$6$"):
		return saltAndHash(inventory.Verifier{Scheme: inventory.SHA512Suffix}, text[3:])
	case strings.HasPrefix(text, "$7$"):
		n, rest, ok := strings.Cut(text[3:], "$")
		if !ok {
			return inventory.Verifier{}, errHash
		}
		iterations, err := parseIterations(n)
		if err != nil {
			return inventory.Verifier{}, err
		}
		return saltAndHash(inventory.Verifier{Scheme: inventory.PBKDF2SHA512, Iterations: iterations}, rest)
	case strings.HasPrefix(text, "$argon2id$"):
		return argon2Hash(text)
	case strings.HasPrefix(text, "$"):
		return inventory.Verifier{}, errScheme
	}
	return inventory.Verifier{}, errPlain
}

func parseIterations(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 || n > maxIteration || text[0] == '0' || text[0] == '+' {
		return 0, errHash
	}
	return uint32(n), nil
}

func saltAndHash(v inventory.Verifier, text string) (inventory.Verifier, error) {
	salt, hash, ok := strings.Cut(text, "$")
	if !ok {
		return inventory.Verifier{}, errHash
	}
	return decodeBoth(v, salt, hash)
}

// decodeBoth reads a salt and a hash of 64 octets, both in base64.
func decodeBoth(v inventory.Verifier, salt, hash string) (inventory.Verifier, error) {
	b64 := base64.StdEncoding.Strict()
	if strings.ContainsAny(salt, "\r\n") || strings.ContainsAny(hash, "\r\n") { // base64 skips them
		return inventory.Verifier{}, errHash
	}
	var err error
	if v.Salt, err = b64.DecodeString(salt); err != nil || len(v.Salt) == 0 || len(v.Salt) > maxSalt {
		return inventory.Verifier{}, errHash
	}
	if v.Hash, err = b64.DecodeString(hash); err != nil || len(v.Hash) != sha512Size {
		return inventory.Verifier{}, errHash
	}
	return v, nil
}

// argon2Hash reads a PHC string: "$argon2id$v=19$m=...,t=...,p=...$SALT$HASH".
func argon2Hash(text string) (inventory.Verifier, error) {
	parts := strings.Split(text, "$")
	if len(parts) != 6 || parts[2] != "v=19" || len(text) > maxPHC || !strings.HasPrefix(parts[3], "m=") {
		return inventory.Verifier{}, errHash
	}
	b64 := base64.RawStdEncoding.Strict()
	for _, p := range parts[4:] {
		if raw, err := b64.DecodeString(p); err != nil || len(raw) < 8 || strings.ContainsAny(p, "\r\n") {
			return inventory.Verifier{}, errHash
		}
	}
	return inventory.Verifier{Scheme: inventory.Argon2id, Hash: []byte(text)}, nil
}

// bcryptHash reads "$2b$COST$..." in its three spellings.
func bcryptHash(text string) (inventory.Verifier, error) {
	ok := len(text) == bcryptLength && strings.HasPrefix(text, "$2") && strings.IndexByte("aby", text[2]) >= 0 && text[3] == '$' && text[6] == '$'
	for i := 4; ok && i < len(text); i++ {
		c := text[i]
		ok = i == 6 || isWordByte(c) && c < 0x80 || c == '.' || c == '/'
	}
	if !ok {
		return inventory.Verifier{}, errHash
	}
	return inventory.Verifier{Scheme: inventory.Bcrypt, Hash: []byte(text)}, nil
}

// rabbitHash reads base64 of a salt of 4 octets and the hash of salt and password
// (rabbit_password.erl).
func rabbitHash(text, algorithm string) (inventory.Verifier, error) {
	v := inventory.Verifier{}
	size := 0
	switch algorithm {
	case "rabbit_password_hashing_sha256", "":
		v.Scheme, size = inventory.RabbitSHA256, sha256Size
	case "rabbit_password_hashing_sha512":
		v.Scheme, size = inventory.SHA512Prefix, sha512Size
	case "rabbit_password_hashing_md5":
		return v, errWeak
	default:
		return v, errScheme
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != rabbitSalt+size {
		return inventory.Verifier{}, errHash
	}
	v.Salt, v.Hash = raw[:rabbitSalt:rabbitSalt], raw[rabbitSalt:]
	return v, nil
}

var errUnsaid = errors.New("the export does not say how EMQX hashed the password, its configuration does (authentication, password_hash_algorithm): say it")

// emqxHash reads a hash of EMQX: bcrypt by itself, others in hexadecimal as the
// options say. Salts are text there.
func emqxHash(hash, salt string, o *Options) (inventory.Verifier, error) {
	if strings.HasPrefix(hash, "$2") {
		return bcryptHash(hash)
	}
	size := sha512Size
	switch o.Scheme {
	case inventory.SHA256Suffix:
		size = sha256Size
	case inventory.SHA512Suffix, inventory.SHA512Prefix, inventory.PBKDF2SHA512:
	case 0:
		return inventory.Verifier{}, errUnsaid
	default:
		return inventory.Verifier{}, errScheme
	}
	raw, err := hex.DecodeString(hash)
	if err != nil || len(raw) != size || len(salt) > maxSalt || o.Scheme == inventory.PBKDF2SHA512 && (o.Iterations == 0 || o.Iterations > maxIteration || salt == "") {
		return inventory.Verifier{}, errHash
	}
	v := inventory.Verifier{Scheme: o.Scheme, Salt: []byte(salt), Hash: raw}
	if o.Scheme == inventory.PBKDF2SHA512 {
		v.Iterations = o.Iterations
	}
	return v, nil
}

// takeHash gives a user the verifier of its password, or says why it gets none.
func (b *builder) takeHash(u *user, at place, v inventory.Verifier, err error) {
	switch {
	case errors.Is(err, errPlain):
		b.find(Error, "plaintext-password", u.name, at, "%s: it is not kept; change it, it has been written down", err)
	case errors.Is(err, errWeak):
		b.find(Error, "weak-hash", u.name, at, "%s", err)
	case err != nil:
		b.find(Warning, "hash", u.name, at, "%s", err)
	default:
		u.verifiers = []inventory.Verifier{v}
		b.weigh(u, at, v)
	}
}

// weigh says what a password hash is worth.
func (b *builder) weigh(u *user, at place, v inventory.Verifier) {
	switch v.Scheme {
	case inventory.Bcrypt, inventory.Argon2id:
		return
	case inventory.PBKDF2SHA512:
		if len(v.Salt) != 12 {
			b.find(Note, "salt-length", u.name, at, "a salt of %d octets: Mosquitto 2.0 reads 12 only, 2.1 reads 12 or 64", len(v.Salt))
		}
	default:
		if len(v.Salt) == 0 {
			b.find(Error, "no-salt", u.name, at, "the password is hashed without a salt")
			return
		}
		b.find(Note, "fast-hash", u.name, at, "one round of a fast hash: good for random passwords only")
	}
}
