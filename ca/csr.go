package ca

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// MaxRequestSize is the size in bytes of the largest certification request that
// is looked at, in DER or PEM. A P-256 request has 250, an RSA-4096 one 1,600.
const MaxRequestSize = 16 << 10

// Fences inside a request.
const (
	maxNames      = 8  // subject alternative names
	maxRDNs       = 16 // in the subject
	maxAttributes = 16
	maxExtensions = 32
	maxChallenge  = 255
	maxCommonName = 64 // ub-common-name, RFC 5280 appendix A.1
)

// A Request is what imprint takes from a PKCS #10 certification request
// (RFC 2986): a public key, and the proof that the sender holds its private
// half. The attributes and the requested extensions are dropped; a certificate's
// names come from the inventory.
type Request struct {
	// PublicKey is an *ecdsa.PublicKey, an *rsa.PublicKey or an
	// ed25519.PublicKey that the key policy allows.
	PublicKey crypto.PublicKey

	// SPKI is the SHA-256 hash of the DER SubjectPublicKeyInfo, exactly as it
	// was received. Two requests for the same key have the same SPKI.
	SPKI [sha256.Size]byte

	// Names are the names that the request claims: the common name, if there is
	// one, and the subject alternative names, at most 9 in all, each printable
	// ASCII. They go into no certificate. They are here so that a request for
	// somebody else can be refused; see [Request.Match].
	Names []string

	// Subject is the whole subject, a Name in DER, and SAN the requested subject
	// alternative name, GeneralNames in DER, nil if there is none, both as they
	// were received. EST holds a renewal to them (RFC 7030 §4.2.2).
	Subject []byte
	SAN     []byte

	// Challenge is the challengePassword attribute (RFC 2985 §5.4.1), printable
	// ASCII, "" if there is none. It links the request to a TLS connection
	// (RFC 7030 §3.5) and is no secret of imprint's.
	Challenge string

	// ChangeSubjectName says that the request has that attribute (RFC 6402 §2.8).
	ChangeSubjectName bool

	spki []byte // DER, as received
}

// Match checks that a request names nobody but its owner: each of its names is
// one of want, byte for byte. A request without names matches. The error is a
// [*RequestError] with reason [IdentityMismatch].
func (r *Request) Match(want ...string) error {
	for _, n := range r.Names {
		if !slices.Contains(want, n) {
			return refuse(IdentityMismatch, "it names %q", clip(n))
		}
	}
	return nil
}

func newRequest(pub crypto.PublicKey, spki []byte, policy KeyPolicy) (*Request, error) {
	r := &Request{PublicKey: pub, SPKI: sha256.Sum256(spki), spki: spki}
	if err := policy.checkBlocked(r.SPKI); err != nil {
		return nil, err
	}
	return r, nil
}

// ParseRequest reads one certification request, in DER or as exactly one PEM
// block of type CERTIFICATE REQUEST or NEW CERTIFICATE REQUEST (RFC 7468 §7), and
// checks it against policy. If the request is refused, the error is a
// [*RequestError].
//
// The order of the checks bounds the cost of a hostile request: length first,
// then shape and names, then the type and size of the key, and only then the
// signature, whose cost grows with the key. (Verifying a 262 kB request with a
// million-bit RSA key takes 13 s of CPU.)
//
// The shape is read here and not by crypto/x509, which accepts version 1, two
// common names, a NUL in a name, trailing bytes in the SAN extension, and drops
// the names it does not know.
//
// If data holds a private key, it is overwritten with zeros and the reason is
// [PrivateKey]: whoever sent it must make a new one.
func ParseRequest(data []byte, policy KeyPolicy) (*Request, error) {
	if len(data) > MaxRequestSize {
		return nil, refuse(TooLarge, "%d bytes, at most %d are read", len(data), MaxRequestSize)
	}
	der, refused := requestDER(data)
	if refused != nil {
		return nil, refused
	}
	c, refused := readRequest(der)
	if refused != nil {
		return nil, refused
	}
	if c.names, refused = c.claimedNames(); refused != nil {
		return nil, refused
	}
	pub, refused := readPublicKey(c.spki)
	if refused != nil {
		return nil, refused
	}
	if refused := policy.check(pub); refused != nil {
		return nil, refused
	}
	r, err := newRequest(pub, bytes.Clone(c.spki), policy)
	if err != nil {
		return nil, err
	}
	if refused := c.checkSignature(pub); refused != nil {
		return nil, refused
	}
	r.Names, r.Challenge, r.ChangeSubjectName = c.names, c.challenge, c.changeName
	r.Subject, r.SAN = bytes.Clone(c.name), bytes.Clone(c.san)
	return r, nil
}

// Allowed checks the key of a request against another policy than the one that
// the request was parsed with. The error is a [*RequestError].
func (r *Request) Allowed(policy KeyPolicy) error {
	if refused := policy.check(r.PublicKey); refused != nil {
		return refused
	}
	if refused := policy.checkBlocked(r.SPKI); refused != nil {
		return refused
	}
	return nil
}

// requestDER takes the request out of its PEM, if it is in PEM, and recognises a
// private key in both forms.
func requestDER(data []byte) ([]byte, *RequestError) {
	if len(data) > 0 && data[0] == byte(cbasn1.SEQUENCE) {
		if looksPrivate(data) {
			clear(data)
			return nil, refuse(PrivateKey, "a private key was sent; make a new one, this one is burnt")
		}
		return data, nil
	}
	if bytes.Contains(data, []byte("PRIVATE KEY-----")) {
		clear(data)
		return nil, refuse(PrivateKey, "a private key was sent; make a new one, this one is burnt")
	}
	block, rest, err := onePEM(bytes.TrimSpace(data))
	if err != nil {
		return nil, refuse(Malformed, "neither DER nor one PEM block")
	}
	if len(rest) > 0 {
		return nil, refuse(Malformed, "something follows the PEM block")
	}
	if block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, refuse(Malformed, "the PEM block is not a CERTIFICATE REQUEST")
	}
	if looksPrivate(block.Bytes) {
		clear(data)
		clear(block.Bytes)
		return nil, refuse(PrivateKey, "a private key was sent; make a new one, this one is burnt")
	}
	return block.Bytes, nil
}

// looksPrivate recognises what may hold a private key: PKCS #1, SEC 1, PKCS #8
// and PKCS #12 open with a version number where a request has a SEQUENCE, and an
// encrypted PKCS #8 key has an OCTET STRING for its second and last element.
func looksPrivate(der []byte) bool {
	in := cryptobyte.String(der)
	var body cryptobyte.String
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) {
		return false
	}
	if body.PeekASN1Tag(cbasn1.INTEGER) {
		return true
	}
	return body.SkipASN1(cbasn1.SEQUENCE) && body.PeekASN1Tag(cbasn1.OCTET_STRING)
}

// A certificationRequest is the outer shape of RFC 2986 §4.
type certificationRequest struct {
	info       []byte            // CertificationRequestInfo with tag and length: what is signed
	name       []byte            // the subject with tag and length
	subject    cryptobyte.String // inside of the RDNSequence
	spki       []byte            // with tag and length
	attributes cryptobyte.String // inside of [0]
	algorithm  cryptobyte.String // inside of the AlgorithmIdentifier
	signature  []byte
	names      []string
	san        []byte // value of the extension
	challenge  string
	changeName bool
}

// readRequest takes a request apart: DER only, version 0, nothing left over.
func readRequest(der []byte) (*certificationRequest, *RequestError) {
	malformed := func(what string) (*certificationRequest, *RequestError) {
		return nil, refuse(Malformed, "not a certification request in DER: %s", what)
	}
	in := cryptobyte.String(der)
	var outer, info, element cryptobyte.String
	c := &certificationRequest{}
	if !in.ReadASN1(&outer, cbasn1.SEQUENCE) || !in.Empty() {
		return malformed("outer SEQUENCE, or bytes after it")
	}
	if !outer.ReadASN1Element(&element, cbasn1.SEQUENCE) {
		return malformed("CertificationRequestInfo")
	}
	c.info = element
	if !element.ReadASN1(&info, cbasn1.SEQUENCE) {
		return malformed("CertificationRequestInfo")
	}
	var version int64
	if !info.ReadASN1Integer(&version) || version != 0 {
		return malformed("version, want 0")
	}
	var name cryptobyte.String
	if !info.ReadASN1Element(&name, cbasn1.SEQUENCE) {
		return malformed("subject")
	}
	c.name = name
	if !name.ReadASN1(&c.subject, cbasn1.SEQUENCE) {
		return malformed("subject")
	}
	var spki cryptobyte.String
	if !info.ReadASN1Element(&spki, cbasn1.SEQUENCE) {
		return malformed("subjectPKInfo")
	}
	c.spki = spki
	if !info.ReadASN1(&c.attributes, cbasn1.Tag(0).ContextSpecific().Constructed()) || !info.Empty() {
		return malformed("attributes, or bytes after them")
	}
	if !outer.ReadASN1(&c.algorithm, cbasn1.SEQUENCE) {
		return malformed("signatureAlgorithm")
	}
	if !outer.ReadASN1BitStringAsBytes(&c.signature) || !outer.Empty() {
		return malformed("signature, or bytes after it")
	}
	return c, nil
}

// checkSignature verifies the proof of possession. The key has passed the policy,
// so the cost is bounded.
func (c *certificationRequest) checkSignature(pub crypto.PublicKey) *RequestError {
	alg, refused := signatureAlgorithm(c.algorithm, pub)
	if refused != nil {
		return refused
	}
	owner := x509.Certificate{PublicKey: pub}
	if err := owner.CheckSignature(alg, c.info, c.signature); err != nil {
		return refuse(BadSignature, "it is not signed with the key that it is for")
	}
	return nil
}
