package ca_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// A hostile is a certification request that no library would make. What is nil
// is as it should be.
type hostile struct {
	key     crypto.Signer
	version int64
	subject []byte // RDNSequence
	spki    []byte
	attrs   []byte // inside of [0]
	alg     []byte // AlgorithmIdentifier
	sig     []byte
	tail    []byte // inside of the outer SEQUENCE, after the signature
}

func (h hostile) der(t testing.TB) []byte {
	t.Helper()
	// A well-formed request for the same key gives the right algorithm, and the
	// hash that goes with it.
	like, err := x509.ParseCertificateRequest(mustCSR(t, h.key))
	if err != nil {
		t.Fatal(err)
	}
	if h.spki == nil {
		h.spki = like.RawSubjectPublicKeyInfo
	}
	if h.subject == nil {
		h.subject = seq(nil)
	}
	if h.alg == nil {
		h.alg = algorithmOfCSR(t, like.Raw)
	}
	info := build(t, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(h.version)
			b.AddBytes(h.subject)
			b.AddBytes(h.spki)
			b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddBytes(h.attrs) })
		})
	})
	if h.sig == nil {
		opts := crypto.SignerOpts(crypto.SHA256)
		if like.SignatureAlgorithm == x509.ECDSAWithSHA384 {
			opts = crypto.SHA384
		}
		if like.SignatureAlgorithm == x509.PureEd25519 {
			opts = crypto.Hash(0)
		}
		if h.sig, err = crypto.SignMessage(h.key, rand.Reader, info, opts); err != nil {
			t.Fatal(err)
		}
	}
	return build(t, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(info)
			b.AddBytes(h.alg)
			b.AddASN1BitString(h.sig)
			b.AddBytes(h.tail)
		})
	})
}

func mustCSR(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func algorithmOfCSR(t testing.TB, der []byte) []byte {
	t.Helper()
	in := cryptobyte.String(der)
	var outer, alg cryptobyte.String
	if !in.ReadASN1(&outer, cbasn1.SEQUENCE) || !outer.SkipASN1(cbasn1.SEQUENCE) || !outer.ReadASN1Element(&alg, cbasn1.SEQUENCE) {
		t.Fatal("not a request")
	}
	return alg
}

func build(t testing.TB, f func(*cryptobyte.Builder)) []byte {
	t.Helper()
	var b cryptobyte.Builder
	f(&b)
	der, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// tlv is one DER element; seq and set are the constructed ones.
func tlv(tag byte, parts ...[]byte) []byte {
	body := bytes.Join(parts, nil)
	der, err := asn1.Marshal(asn1.RawValue{FullBytes: append(append([]byte{tag}, derLength(len(body))...), body...)})
	if err != nil {
		return nil
	}
	return der
}

func derLength(n int) []byte {
	if n < 0x80 {
		return []byte{byte(n)}
	}
	raw := big.NewInt(int64(n)).Bytes()
	return append([]byte{0x80 | byte(len(raw))}, raw...)
}

func seq(parts ...[]byte) []byte { return tlv(0x30, parts...) }
func set(parts ...[]byte) []byte { return tlv(0x31, parts...) }

func oid(arcs ...int) []byte {
	der, err := asn1.Marshal(asn1.ObjectIdentifier(arcs))
	if err != nil {
		return nil
	}
	return der
}

// cn is one attribute of a name, commonName, as a UTF8String.
func cn(value string) []byte { return seq(oid(2, 5, 4, 3), tlv(12, []byte(value))) }

// name is an RDNSequence of single-valued parts.
func name(parts ...[]byte) []byte {
	var rdns [][]byte
	for _, p := range parts {
		rdns = append(rdns, set(p))
	}
	return seq(rdns...)
}

// extensionRequest is the attribute with these extensions.
func extensionRequest(extensions ...[]byte) []byte {
	return seq(oid(1, 2, 840, 113549, 1, 9, 14), set(seq(extensions...)))
}

func extension(id []byte, value []byte) []byte { return seq(id, tlv(4, value)) }

// san is a subjectAltName extension.
func san(names ...[]byte) []byte { return extension(oid(2, 5, 29, 17), seq(names...)) }

func dns(s string) []byte { return tlv(0x82, []byte(s)) }

// rsaSPKI is a SubjectPublicKeyInfo of any modulus and exponent.
func rsaSPKI(n *big.Int, e int64) []byte {
	number, err := asn1.Marshal(n)
	if err != nil {
		return nil
	}
	exponent, err := asn1.Marshal(big.NewInt(e))
	if err != nil {
		return nil
	}
	return spki(seq(oid(1, 2, 840, 113549, 1, 1, 1), []byte{5, 0}), seq(number, exponent))
}

func spki(algorithm, key []byte) []byte {
	return seq(algorithm, tlv(3, append([]byte{0}, key...)))
}

// oddNumber has exactly so many bits and is a product of no small primes, but is
// otherwise of no use as a modulus.
func oddNumber(t testing.TB, bits int) *big.Int {
	t.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	for n.SetBit(n, 0, 1); ; n.Add(n, big.NewInt(2)) {
		free := true
		for q := int64(3); q < 752 && free; q += 2 {
			free = new(big.Int).Mod(n, big.NewInt(q)).Sign() != 0
		}
		if free {
			return n
		}
	}
}

// rocaModulus is the product of two primes as Infineon's RSALib made them:
// k*M + (65537^a mod M), M the product of the first 126 primes (Nemec et al.
// 2017, table 1, for 2048 bits).
func rocaModulus(t testing.TB) *big.Int {
	t.Helper()
	m := big.NewInt(1)
	for q, n := int64(2), 0; n < 126; q++ {
		if big.NewInt(q).ProbablyPrime(10) {
			m.Mul(m, big.NewInt(q))
			n++
		}
	}
	prime := func(a int64) *big.Int {
		base := new(big.Int).Exp(big.NewInt(65537), big.NewInt(a), m)
		k := new(big.Int).Div(new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 1024), big.NewInt(1)), m)
		for p := new(big.Int); ; k.Sub(k, big.NewInt(1)) {
			p.Add(p.Mul(k, m), base)
			if p.ProbablyPrime(4) {
				return p
			}
		}
	}
	return new(big.Int).Mul(prime(12345), prime(67890))
}

func toPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Every RSA key of the tests is made once.
func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
