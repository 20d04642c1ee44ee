package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"

	"go.step.sm/crypto/keyutil"
)

// A KeyAlgorithm is a kind of key, in the form in which a person writes it. The
// empty text means P-256, which every device stack verifies fast; Mbed TLS has no
// Ed25519 certificates at all.
type KeyAlgorithm string

// The key algorithms. RSA-2048 and P-521 are for device keys that some chip
// makes; CAs do not use them.
const (
	P256    KeyAlgorithm = "P-256"
	P384    KeyAlgorithm = "P-384"
	P521    KeyAlgorithm = "P-521"
	Ed25519 KeyAlgorithm = "Ed25519"
	RSA2048 KeyAlgorithm = "RSA-2048"
	RSA3072 KeyAlgorithm = "RSA-3072"
	RSA4096 KeyAlgorithm = "RSA-4096"
)

// known reports whether a is one of the constants.
func (a KeyAlgorithm) known() bool {
	switch a {
	case P256, P384, P521, Ed25519, RSA2048, RSA3072, RSA4096:
		return true
	}
	return false
}

// forCA reports whether an issuer may have such a key.
func (a KeyAlgorithm) forCA() bool {
	return a.known() && a != P521 && a != RSA2048
}

// bits is the size of an RSA modulus, 0 for other algorithms.
func (a KeyAlgorithm) bits() int {
	switch a {
	case RSA2048:
		return 2048
	case RSA3072:
		return 3072
	case RSA4096:
		return 4096
	case P256, P384, P521, Ed25519:
	}
	return 0
}

// GenerateKey makes a private key in memory, unencrypted: a device's. For a CA's
// key use [CreateKey].
func GenerateKey(alg KeyAlgorithm) (crypto.Signer, error) {
	var key crypto.Signer
	var err error
	switch alg {
	case "", P256:
		key, err = keyutil.GenerateSigner("EC", "P-256", 0)
	case P384, P521:
		key, err = keyutil.GenerateSigner("EC", string(alg), 0)
	case Ed25519:
		key, err = keyutil.GenerateSigner("OKP", "Ed25519", 0)
	case RSA2048, RSA3072, RSA4096:
		key, err = keyutil.GenerateSigner("RSA", "", alg.bits())
	default:
		return nil, badConfig("key algorithm", string(alg), "P-256, P-384, P-521, Ed25519, RSA-2048, RSA-3072 or RSA-4096")
	}
	if err != nil {
		return nil, fmt.Errorf("making a %s key: %w", alg, err)
	}
	return key, nil
}

// A KeyPolicy says which public keys may be certified. The zero value allows
// P-256 and P-384. No policy allows a weak key.
type KeyPolicy struct {
	// Allow lists the algorithms; empty means P-256 and P-384.
	Allow []KeyAlgorithm

	// Blocked, if not nil, reports whether the key with this SPKI hash must
	// never be certified: compromised, known to the public (like the Debian keys
	// of CVE-2008-0166), or one of imprint's own.
	Blocked func(spki [32]byte) bool
}

// AnyKey is the widest policy there is: every algorithm that some profile may
// allow. It is for requests whose profile is not known yet; see
// [Request.Allowed].
func AnyKey() KeyPolicy {
	return KeyPolicy{Allow: []KeyAlgorithm{P256, P384, P521, Ed25519, RSA2048, RSA3072, RSA4096}}
}

func (p KeyPolicy) allow() []KeyAlgorithm {
	if len(p.Allow) == 0 {
		return []KeyAlgorithm{P256, P384}
	}
	return p.Allow
}

// check looks at a public key. It makes no exponentiation, so its cost is
// bounded by the size of a request.
func (p KeyPolicy) check(pub crypto.PublicKey) *RequestError {
	alg, err := algorithmOf(pub)
	if err != nil {
		return err
	}
	if !slices.Contains(p.allow(), alg) {
		return refuse(KeyType, "%s keys are not allowed here, want one of %v", alg, p.allow())
	}
	return nil
}

func (p KeyPolicy) checkBlocked(spki [32]byte) *RequestError {
	if p.Blocked != nil && p.Blocked(spki) {
		return refuse(BlockedKey, "the key with SPKI hash %x must never be certified", spki)
	}
	return nil
}

// algorithmOf names the algorithm of pub. It refuses what is weak under any
// policy.
func algorithmOf(pub crypto.PublicKey) (KeyAlgorithm, *RequestError) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P224():
			return "", refuse(WeakKey, "P-224 is below 128 bits of security")
		case elliptic.P256():
			return P256, nil
		case elliptic.P384():
			return P384, nil
		case elliptic.P521():
			return P521, nil
		}
		return "", refuse(KeyType, "unsupported curve")
	case *rsa.PublicKey:
		return rsaAlgorithm(k)
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return "", refuse(Malformed, "an Ed25519 key has %d bytes", ed25519.PublicKeySize)
		}
		if smallOrder(k) {
			return "", refuse(WeakKey, "the Ed25519 point has small order: anyone can sign for it")
		}
		return Ed25519, nil
	}
	return "", refuse(KeyType, "unsupported key algorithm")
}

// rsaAlgorithm refuses RSA keys that can be factored or are dear to verify: the
// checks of NIST SP 800-89 §5.3.3 and of public CAs (CA/Browser Forum BR §6.1.6).
func rsaAlgorithm(k *rsa.PublicKey) (KeyAlgorithm, *RequestError) {
	bits := k.N.BitLen()
	switch {
	case bits < 2048 || bits > 4096:
		return "", refuse(WeakKey, "RSA modulus of %d bits, want 2048 to 4096", bits)
	case k.E != 65537:
		return "", refuse(WeakKey, "RSA public exponent is not 65537")
	case hasSmallFactor(k.N):
		return "", refuse(WeakKey, "RSA modulus is divisible by a small prime")
	case isROCA(k.N):
		return "", refuse(WeakKey, "RSA modulus has the ROCA fingerprint (CVE-2017-15361)")
	}
	for _, a := range []KeyAlgorithm{RSA2048, RSA3072, RSA4096} {
		if bits == a.bits() {
			return a, nil
		}
	}
	return "", refuse(KeyType, "RSA modulus of %d bits, want 2048, 3072 or 4096", bits)
}

// hasSmallFactor reports whether a prime below 752 divides n.
func hasSmallFactor(n *big.Int) bool {
	var p, rem big.Int
	for _, q := range primesBelow(752) {
		if rem.Mod(n, p.SetUint64(q)).Sign() == 0 {
			return true
		}
	}
	return false
}

// isROCA tests for keys of Infineon's RSALib (Nemec et al., "The Return of
// Coppersmith's Attack", 2017). Their primes are k*M + (65537^a mod M) with M the
// product of the first primes, so modulo each of those primes n lies in the group
// that 65537 generates. A random n passes for all primes up to 167 about once in
// 2^27.
func isROCA(n *big.Int) bool {
	var p, rem big.Int
	for _, q := range primesBelow(168) {
		want := rem.Mod(n, p.SetUint64(q)).Uint64()
		if !generates(65537%q, want, q) {
			return false
		}
	}
	return true
}

// generates reports whether want is a power of g modulo q.
func generates(g, want, q uint64) bool {
	for v, i := uint64(1), uint64(0); i < q; v, i = v*g%q, i+1 {
		if v == want {
			return true
		}
	}
	return false
}

func primesBelow(limit uint64) []uint64 {
	var primes []uint64
next:
	for n := uint64(2); n < limit; n++ {
		for _, p := range primes {
			if n%p == 0 {
				continue next
			}
		}
		primes = append(primes, n)
	}
	return primes
}

// smallOrder reports whether k encodes one of the points of order 1, 2, 4 or 8 on
// edwards25519, also in their non-canonical encodings. The sign bit is ignored.
func smallOrder(k ed25519.PublicKey) bool {
	var y [32]byte
	for i := range y {
		y[i] = k[31-i]
	}
	y[0] &= 0x7f
	v := new(big.Int).SetBytes(y[:])
	one := big.NewInt(1)
	prime := new(big.Int).Sub(new(big.Int).Lsh(one, 255), big.NewInt(19))
	v.Mod(v, prime)
	// Order 1, 2 and 4 have y = 1, -1 and 0.
	if v.Sign() == 0 || v.Cmp(one) == 0 || v.Cmp(new(big.Int).Sub(prime, one)) == 0 {
		return true
	}
	// Order 8: doubling gives y = 0, that is x^2 = -y^2. With
	// -x^2 + y^2 = 1 + d*x^2*y^2 this is d*y^4 + 2*y^2 - 1 = 0.
	d, ok := new(big.Int).SetString("52036cee2b6ffe738cc740797779e89800700a4d4141d8ab75eb4dca135978a3", 16) // RFC 8032 §5.1
	if !ok {
		return true
	}
	y2 := new(big.Int).Mul(v, v)
	y2.Mod(y2, prime)
	sum := new(big.Int).Mul(y2, y2)
	sum.Mul(sum, d)
	sum.Add(sum, y2).Add(sum, y2).Sub(sum, one)
	return sum.Mod(sum, prime).Sign() == 0
}

// NewRequest makes a [Request] for a key that imprint made itself, without a
// certification request. The key passes the same policy; a refusal is a
// [*RequestError].
func NewRequest(pub crypto.PublicKey, policy KeyPolicy) (*Request, error) {
	if err := policy.check(pub); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, refuse(Malformed, "the key cannot be encoded")
	}
	return newRequest(pub, der, policy)
}
