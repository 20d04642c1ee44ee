package ca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"strconv"
	"time"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// A Purpose is what a CA is for. Purposes are kept apart from day one: a stolen
// device CA makes no broker.
type Purpose string

// The purposes of a CA.
const (
	PurposeRoot    Purpose = "root"    // trust anchor; signs CAs, CRLs and the proof of its key only
	PurposeDevice  Purpose = "device"  // operational certificates of devices
	PurposeServer  Purpose = "server"  // brokers and imprint's own doors
	PurposeFactory Purpose = "factory" // birth certificates of one site or lot
)

// An AuthorityConfig says what a CA certificate says.
type AuthorityConfig struct {
	// Organization is O and the first part of the CN: letters, digits, spaces or
	// .-_&'(), at most 40 characters.
	Organization string

	// Generation is n for the n-th key of this purpose, from 1. It is part of the
	// name, so two generations never have the same DN.
	Generation uint32

	// Purpose is what the CA is for. NewRoot takes PurposeRoot or "";
	// the others take any but PurposeRoot.
	Purpose Purpose

	// Validity is the time from notBefore to notAfter, both included. Zero means
	// 25 years for a root and 10 years for the others. A CA never outlives the
	// root that signs it.
	Validity time.Duration

	// CRLDistributionPoints are http or https URLs of the root's CRL; none by
	// default. Not for a root.
	CRLDistributionPoints []string

	// Now is the time; nil means [time.Now].
	Now func() time.Time
}

// caBackdate is how far in the past a CA begins, so that a device whose clock is
// behind accepts what is issued on the first day.
const caBackdate = day

func (c AuthorityConfig) withDefaults() AuthorityConfig {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Validity == 0 {
		c.Validity = 10 * 365 * day
		if c.Purpose == PurposeRoot {
			c.Validity = 25 * 365 * day
		}
	}
	return c
}

func (c AuthorityConfig) check() error {
	if err := checkOrganization(c.Organization, 40); err != nil {
		return err
	}
	if c.Generation == 0 {
		return badConfig("generation", "0", "at least 1")
	}
	if c.Validity < time.Hour || c.Validity > 100*365*day {
		return badConfig("validity", Duration(c.Validity).String(), "1h to 100y")
	}
	return checkURLList("crl-distribution-points", c.CRLDistributionPoints)
}

// name is the DN: O and a CN that says purpose and generation.
func (c AuthorityConfig) name() ([]byte, error) {
	var role string
	switch c.Purpose {
	case PurposeRoot:
		role = "Root R"
	case PurposeDevice:
		role = "Device CA D"
	case PurposeServer:
		role = "Server CA S"
	case PurposeFactory:
		role = "Factory CA F"
	default:
		return nil, badConfig("purpose", string(c.Purpose), "root, device, server or factory")
	}
	return encodeName([]rdn{
		{oidOrganization, cbasn1.UTF8String, c.Organization},
		{oidCommonName, cbasn1.UTF8String, c.Organization + " " + role + strconv.FormatUint(uint64(c.Generation), 10)},
	})
}

// template is what all CA certificates have: KeyUsage certSign and cRLSign
// (critical), a subject key identifier, a random serial number.
func (c AuthorityConfig) template(pub crypto.PublicKey) (*x509.Certificate, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	name, err := c.name()
	if err != nil {
		return nil, err
	}
	alg, refused := algorithmOf(pub)
	if refused != nil || !alg.forCA() {
		return nil, badConfig("key of a CA", string(alg), "P-256, P-384, Ed25519, RSA-3072 or RSA-4096")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	id, err := keyIdentifier(pub)
	if err != nil {
		return nil, err
	}
	begin := c.Now().UTC().Truncate(time.Second).Add(-caBackdate)
	return &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial[:]),
		RawSubject:            name,
		NotBefore:             begin,
		NotAfter:              begin.Add(c.Validity + caBackdate - time.Second),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            -1,
		SubjectKeyId:          id,
	}, nil
}

// NewRoot makes a self-signed trust anchor and returns it in DER. It has no
// pathLen, so that a later root can be linked to it.
func NewRoot(key crypto.Signer, c AuthorityConfig) ([]byte, error) {
	if c.Purpose == "" {
		c.Purpose = PurposeRoot
	}
	if c.Purpose != PurposeRoot {
		return nil, badConfig("purpose", string(c.Purpose), "root")
	}
	if len(c.CRLDistributionPoints) > 0 {
		return nil, badConfig("crl-distribution-points", c.CRLDistributionPoints[0], "nothing: nobody revokes a trust anchor by CRL")
	}
	template, err := c.withDefaults().template(key.Public())
	if err != nil {
		return nil, err
	}
	template.AuthorityKeyId = template.SubjectKeyId
	return signCA(template, template, key.Public(), key)
}

// NewIntermediateRequest makes the certification request (PKCS #10, DER) with
// which an issuing CA goes to an offline root. It proves possession of key and
// says for the person at the root what it is for; [SignIntermediate] takes
// nothing but the key from it.
func NewIntermediateRequest(key crypto.Signer, c AuthorityConfig) ([]byte, error) {
	template, err := c.withDefaults().template(key.Public())
	if err != nil {
		return nil, err
	}
	if c.Purpose == PurposeRoot {
		return nil, badConfig("purpose", string(c.Purpose), "device, server or factory")
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: template.RawSubject}, key)
	if err != nil {
		return nil, fmt.Errorf("making intermediate request: %w", err)
	}
	return der, nil
}

// SignIntermediate signs an issuing CA with the root and returns it in DER. From
// csr it takes the key only; the name, the purpose and the dates come from c. The
// CA has pathLen 0 and one extended key usage, and ends no later than the root.
//
// The error is a [*RequestError] if csr does not pass the fence.
func SignIntermediate(root *x509.Certificate, rootKey crypto.Signer, csr []byte, c AuthorityConfig) ([]byte, error) {
	if c.Purpose == PurposeRoot {
		return nil, badConfig("purpose", string(c.Purpose), "device, server or factory")
	}
	c = c.withDefaults()
	issuer, err := NewIssuer(root, rootKey, c.Now)
	if err != nil {
		return nil, err
	}
	if root.MaxPathLen != -1 || len(root.ExtKeyUsage) > 0 {
		return nil, lintErr("issuer", "%q is not a root", clip(root.Subject.CommonName))
	}
	req, err := ParseRequest(csr, KeyPolicy{Allow: []KeyAlgorithm{P256, P384, Ed25519, RSA3072, RSA4096}})
	if err != nil {
		return nil, err
	}
	template, err := c.template(req.PublicKey)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(template.RawSubject, root.RawSubject) || equalKeys(req.PublicKey, root.PublicKey) {
		return nil, lintErr("subject", "an issuing CA has another name and another key than its root")
	}
	template.MaxPathLen, template.MaxPathLenZero = 0, true
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if c.Purpose == PurposeServer {
		template.ExtKeyUsage[0] = x509.ExtKeyUsageServerAuth
	}
	template.CRLDistributionPoints = c.CRLDistributionPoints
	if template.NotBefore.Before(root.NotBefore) {
		template.NotBefore = root.NotBefore
	}
	if template.NotAfter.After(root.NotAfter) {
		template.NotAfter = root.NotAfter
	}
	return signCA(template, issuer.cert, req.PublicKey, rootKey)
}

// signCA signs a CA certificate and reads it back: it must be what the template
// says, for a CA that is wrong is wrong for ten years.
func signCA(template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) ([]byte, error) {
	alg, refused := algorithmOf(key.Public())
	if refused != nil {
		return nil, refused
	}
	template.SignatureAlgorithm = signatureOf(alg)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("signing CA certificate: %w", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading back CA certificate: %w", err)
	}
	if err := lintCA(c, template, parent); err != nil {
		return nil, err
	}
	return der, nil
}

func lintCA(c, template, parent *x509.Certificate) error {
	switch {
	case c.Version != 3 || !c.IsCA || !c.BasicConstraintsValid || c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign:
		return lintErr("ca", "it is not a CA certificate")
	case c.MaxPathLenZero != template.MaxPathLenZero || c.MaxPathLen != template.MaxPathLen:
		return lintErr("ca", "pathLen is not as it was meant")
	case !bytes.Equal(c.SubjectKeyId, template.SubjectKeyId) || !bytes.Equal(c.AuthorityKeyId, parent.SubjectKeyId):
		return lintErr("ca", "key identifiers are not as they were meant")
	case !c.NotBefore.Equal(template.NotBefore) || !c.NotAfter.Equal(template.NotAfter) || !c.NotAfter.After(c.NotBefore):
		return lintErr("ca", "validity is not as it was meant")
	}
	for _, e := range c.Extensions {
		critical := e.Id.Equal(oidKeyUsage) || e.Id.Equal(oidBasicConstraints)
		if e.Critical != critical || e.Id.Equal(oidSubjectAltName) {
			return lintErr("ca", "extension %s is not as it was meant", e.Id)
		}
	}
	return nil
}
