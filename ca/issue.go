package ca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// An Issuer is a CA certificate with its private key. It is safe for concurrent
// use if the key is, which all keys of [OpenKey] are.
type Issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
	now  func() time.Time
	alg  x509.SignatureAlgorithm
	aki  pkix.Extension // what certificates of this issuer carry
}

// NewIssuer puts a CA certificate and its key together. It refuses a key that is
// not the certificate's, a certificate that is not a CA's or has no subject key
// identifier, and, with [ErrExpired], one outside its validity. After its end an
// issuer signs no CRLs either: every certificate it could list has ended with it.
//
// now is asked whenever a date is decided; nil means [time.Now].
func NewIssuer(cert *x509.Certificate, key crypto.Signer, now func() time.Time) (*Issuer, error) {
	if now == nil {
		now = time.Now
	}
	const both = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	name := clip(cert.Subject.CommonName)
	switch {
	case !equalKeys(cert.PublicKey, key.Public()):
		return nil, fmt.Errorf("%w: it is not the key of issuer %q", ErrKeyRefused, name)
	case !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage&both != both:
		return nil, lintErr("issuer", "%q is not a CA certificate with certSign and cRLSign", name)
	case len(cert.SubjectKeyId) == 0 || len(cert.RawSubject) == 0:
		return nil, lintErr("issuer", "%q has no subject key identifier", name)
	}
	ka, refused := algorithmOf(key.Public())
	if refused != nil {
		return nil, lintErr("issuer", "key of %q: %s", name, refused.Detail)
	}
	i := &Issuer{cert: cert, key: key, now: now, alg: signatureOf(ka)}
	if err := i.checkTime(now()); err != nil {
		return nil, err
	}
	var err error
	if i.aki, err = authorityKeyExtension(cert.SubjectKeyId); err != nil {
		return nil, fmt.Errorf("encoding authority key identifier: %w", err)
	}
	return i, nil
}

// signatureOf is the algorithm with which a CA's key signs: the hash goes with
// the strength of the key, and RSA stays with PKCS #1 v1.5, which every TLS stack
// reads.
func signatureOf(alg KeyAlgorithm) x509.SignatureAlgorithm {
	switch alg {
	case P384:
		return x509.ECDSAWithSHA384
	case P521:
		return x509.ECDSAWithSHA512
	case Ed25519:
		return x509.PureEd25519
	case RSA2048, RSA3072, RSA4096:
		return x509.SHA256WithRSA
	case P256:
	}
	return x509.ECDSAWithSHA256
}

// Certificate returns the issuer's certificate. It must not be changed.
func (i *Issuer) Certificate() *x509.Certificate { return i.cert }

func (i *Issuer) checkTime(t time.Time) error {
	if t.Before(i.cert.NotBefore) || t.After(i.cert.NotAfter) {
		return fmt.Errorf("issuer %q: valid from %s to %s, and it is %s: %w", clip(i.cert.Subject.CommonName),
			i.cert.NotBefore.Format(time.RFC3339), i.cert.NotAfter.Format(time.RFC3339),
			t.UTC().Format(time.RFC3339), ErrExpired)
	}
	return nil
}

// A Draft is a certificate that has been built and linted but not signed.
// Only [Issuer.Prepare] makes one, so whatever is signed has been linted.
type Draft struct {
	issuer *Issuer
	tbs    []byte // TBSCertificate in DER: what was linted, and what is signed
	alg    []byte // AlgorithmIdentifier in DER, as it stands in tbs
	opts   crypto.SignerOpts
	serial [16]byte
	spent  atomic.Bool
}

// Serial returns the serial number, so that it can be reserved before Sign. Each
// Prepare draws another one.
func (d *Draft) Serial() [16]byte { return d.serial }

// Prepare builds the certificate of s under p for the key in req, and lints it.
// It signs nothing.
//
// The errors are a [*ConfigError] if s does not have what p needs, a
// [*RequestError] if p does not allow the key, [ErrExpired], and a [*LintError]
// if the outcome would not be what a certificate must be, which means that the
// issuer is not one for this kind of certificate, or a bug.
func (i *Issuer) Prepare(p *Profile, s Subject, req *Request) (*Draft, error) {
	now := i.now()
	if err := i.checkTime(now); err != nil {
		return nil, err
	}
	if err := i.issues(p.config.Kind); err != nil {
		return nil, err
	}
	if err := s.check(p); err != nil {
		return nil, err
	}
	if refused := p.policy.check(req.PublicKey); refused != nil {
		return nil, refused
	}
	b, err := i.build(p, s, req, now)
	if err != nil {
		return nil, err
	}
	d, err := i.draft(b.template, req.PublicKey)
	if err != nil {
		return nil, err
	}
	d.serial = b.serial
	if err := d.lint(p, s, req, b); err != nil {
		return nil, err
	}
	return d, nil
}

// issues checks that this issuer is one for certificates of kind k. A root signs
// no end-entity certificates, but the proof that one has its key.
func (i *Issuer) issues(k Kind) error {
	if k == KindVerification {
		return nil // any CA can be registered
	}
	if !i.cert.MaxPathLenZero {
		return lintErr("issuer", "%q is not an issuing CA: it has no pathLen 0", clip(i.cert.Subject.CommonName))
	}
	if k == KindResponder {
		return nil // one for each issuer, whatever that one is for
	}
	want := x509.ExtKeyUsageClientAuth
	if k == KindServer {
		want = x509.ExtKeyUsageServerAuth
	}
	if len(i.cert.ExtKeyUsage) != 1 || i.cert.ExtKeyUsage[0] != want || len(i.cert.UnknownExtKeyUsage) > 0 {
		return lintErr("issuer", "%q is a CA for another purpose than %s certificates", clip(i.cert.Subject.CommonName), k)
	}
	return nil
}

// A blueprint is what Prepare decided, for the builder and for the lint.
type blueprint struct {
	template *x509.Certificate
	serial   [16]byte
	altNames []byte // value of the extension; nil for none
	keyID    []byte // nil for none
}

// build decides everything that a certificate says.
func (i *Issuer) build(p *Profile, s Subject, req *Request, now time.Time) (*blueprint, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	subject, err := s.name(p.config.Kind)
	if err != nil {
		return nil, err
	}
	b := &blueprint{serial: serial}
	extensions := make([]pkix.Extension, 0, len(p.extensions.head)+len(p.extensions.tail)+3)
	extensions = append(extensions, p.extensions.head...)
	if !p.config.Lean {
		var e pkix.Extension
		if b.keyID, err = keyIdentifier(req.PublicKey); err != nil {
			return nil, err
		}
		if e, err = subjectKeyExtension(b.keyID); err != nil {
			return nil, fmt.Errorf("encoding subject key identifier: %w", err)
		}
		extensions = append(extensions, e)
	}
	extensions = append(extensions, i.aki)
	if b.altNames, err = altNames(p, s); err != nil {
		return nil, err
	}
	if b.altNames != nil {
		extensions = append(extensions, pkix.Extension{Id: oidSubjectAltName, Value: b.altNames})
	}
	notBefore, notAfter := i.validity(p, now)
	b.template = &x509.Certificate{
		SerialNumber:       new(big.Int).SetBytes(serial[:]),
		SignatureAlgorithm: i.alg,
		RawSubject:         subject,
		NotBefore:          notBefore,
		NotAfter:           notAfter,
		ExtraExtensions:    append(extensions, p.extensions.tail...),
	}
	return b, nil
}

// validity decides notBefore and notAfter. Both seconds belong to the validity
// (RFC 5280 §4.1.2.5), so a validity of 24 h ends one second before the 24 h are
// over. A certificate begins and ends within its issuer's validity; an IDevID
// without end is the exception that IEEE 802.1AR §8.7 asks for.
func (i *Issuer) validity(p *Profile, now time.Time) (notBefore, notAfter time.Time) {
	notBefore = now.UTC().Truncate(time.Second).Add(-time.Duration(p.config.Backdate))
	if notBefore.Before(i.cert.NotBefore) {
		notBefore = i.cert.NotBefore
	}
	if p.config.Validity == Never {
		notAfter = noExpiry()
		if p.config.Kind == KindIDevID {
			return notBefore, notAfter
		}
	} else {
		notAfter = notBefore.Add(time.Duration(p.config.Validity) - time.Second)
	}
	if notAfter.After(i.cert.NotAfter) {
		notAfter = i.cert.NotAfter
	}
	return notBefore, notAfter
}

// errCaptured ends x509.CreateCertificate where the signature would come.
var errCaptured = errors.New("to-be-signed bytes captured")

// A capture is a signer that does not sign: it keeps what it was to sign.
// crypto/x509 hands a [crypto.MessageSigner] the message itself and not its hash.
type capture struct {
	pub  crypto.PublicKey
	tbs  []byte
	opts crypto.SignerOpts
}

func (c *capture) Public() crypto.PublicKey { return c.pub }

func (c *capture) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("asked to sign a hash")
}

func (c *capture) SignMessage(_ io.Reader, msg []byte, opts crypto.SignerOpts) ([]byte, error) {
	c.tbs, c.opts = bytes.Clone(msg), opts
	return nil, errCaptured
}

// draft lets crypto/x509 encode template.
func (i *Issuer) draft(template *x509.Certificate, pub crypto.PublicKey) (*Draft, error) {
	c := &capture{pub: i.key.Public()}
	_, err := x509.CreateCertificate(rand.Reader, template, i.cert, pub, c)
	if !errors.Is(err, errCaptured) {
		return nil, fmt.Errorf("building certificate: %w", err)
	}
	d := &Draft{issuer: i, tbs: c.tbs, opts: c.opts}
	if d.alg, err = signatureField(c.tbs); err != nil {
		return nil, err
	}
	return d, nil
}

// signatureField returns the field signature of a TBSCertificate with tag and
// length: RFC 5280 §4.1.1.2 wants the same bytes beside the signature.
func signatureField(tbs []byte) ([]byte, error) {
	in := cryptobyte.String(tbs)
	var body, alg cryptobyte.String
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) ||
		!body.SkipOptionalASN1(cbasn1.Tag(0).ContextSpecific().Constructed()) ||
		!body.SkipASN1(cbasn1.INTEGER) || !body.ReadASN1Element(&alg, cbasn1.SEQUENCE) {
		return nil, errors.New("building certificate: unexpected shape")
	}
	return alg, nil
}

// assemble puts a Certificate together, RFC 5280 §4.1.
func (d *Draft) assemble(signature []byte) ([]byte, error) {
	return asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}{
		asn1.RawValue{FullBytes: d.tbs},
		asn1.RawValue{FullBytes: d.alg},
		asn1.BitString{Bytes: signature, BitLength: len(signature) * 8},
	})
}

// Sign signs the draft, byte for byte what was linted, and returns the
// certificate in DER. The signature is verified before it is returned, which
// catches a faulty signer and a key that leaks through faults. A draft can be
// signed once; after that Sign returns [ErrSpent].
func (d *Draft) Sign() ([]byte, error) {
	if !d.spent.CompareAndSwap(false, true) {
		return nil, ErrSpent
	}
	signature, err := crypto.SignMessage(d.issuer.key, rand.Reader, d.tbs, d.opts)
	if err != nil {
		return nil, fmt.Errorf("signing certificate: %w: %w", ErrKeyUnavailable, err)
	}
	if err := d.issuer.cert.CheckSignature(d.issuer.alg, d.tbs, signature); err != nil {
		return nil, fmt.Errorf("checking the signature just made: %w", err)
	}
	der, err := d.assemble(signature)
	if err != nil {
		return nil, fmt.Errorf("assembling certificate: %w", err)
	}
	return der, nil
}
