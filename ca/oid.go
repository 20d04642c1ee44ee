package ca

import (
	"encoding/asn1"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Object identifiers, with where they come from. They are never changed; Go has
// no constant slices.
var (
	// X.520 attribute types, RFC 5280 appendix A.1.
	oidCommonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSerialNumber = asn1.ObjectIdentifier{2, 5, 4, 5}
	oidOrganization = asn1.ObjectIdentifier{2, 5, 4, 10}

	// Extensions, RFC 5280 §4.2.
	oidSubjectKeyID     = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidCRLDistribution  = asn1.ObjectIdentifier{2, 5, 29, 31}
	oidAuthorityKeyID   = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidAuthorityInfo    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 1}

	// Key purposes and access methods, RFC 5280 §4.2.1.12 and §4.2.2.1.
	oidServerAuth  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	oidClientAuth  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
	oidOCSPSigning = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 9}
	oidDocSigning  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 36}    // id-kp-documentSigning, RFC 9336
	oidOCSPNoCheck = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5} // RFC 6960 §4.2.2.2.1
	oidOCSP        = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1}
	oidCAIssuers   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 2}

	// Other names: RFC 4043 §2, RFC 4108 §5.
	oidPermanentIdentifier = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 3}
	oidHardwareModuleName  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 4}

	// Attributes of a request: RFC 2985 §5.4.2, and the older one of Windows.
	oidExtensionRequest    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidChallengePassword   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	oidMicrosoftExtensions = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 14}

	// ChangeSubjectName, RFC 6402 §2.8.
	oidChangeSubjectName = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 7, 36}

	// Keys: RFC 3279 §2.3, RFC 5480 §2.1.1, RFC 8410 §3.
	oidRSA         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidECPublicKey = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidP224        = asn1.ObjectIdentifier{1, 3, 132, 0, 33}
	oidP256        = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	oidP384        = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
	oidP521        = asn1.ObjectIdentifier{1, 3, 132, 0, 35}
	oidEd25519     = asn1.ObjectIdentifier{1, 3, 101, 112}

	// Signatures: RFC 4055, RFC 5758.
	oidSHA256WithRSA   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	oidSHA384WithRSA   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12}
	oidSHA512WithRSA   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 13}
	oidRSAPSS          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
	oidMGF1            = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}
	oidECDSAWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	oidECDSAWithSHA384 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}
	oidECDSAWithSHA512 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}

	// Key files: RFC 8018 appendix A.
	oidPBES2          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidHMACWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}
	oidAES128CBC      = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}
	oidAES256CBC      = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}

	derNull = []byte{5, 0}
)

// weakSignatures are the algorithms with broken hashes, by name and not by
// absence, so that their sender is told the right thing.
func weakSignatures() []asn1.ObjectIdentifier {
	return []asn1.ObjectIdentifier{
		{1, 2, 840, 113549, 1, 1, 2},  // md2WithRSAEncryption
		{1, 2, 840, 113549, 1, 1, 3},  // md4WithRSAEncryption
		{1, 2, 840, 113549, 1, 1, 4},  // md5WithRSAEncryption
		{1, 2, 840, 113549, 1, 1, 5},  // sha1WithRSAEncryption
		{1, 2, 840, 113549, 1, 1, 14}, // sha224WithRSAEncryption
		{1, 3, 14, 3, 2, 29},          // sha1WithRSASignature
		{1, 2, 840, 10045, 4, 1},      // ecdsa-with-SHA1
		{1, 2, 840, 10045, 4, 3, 1},   // ecdsa-with-SHA224
		{1, 2, 840, 10040, 4, 3},      // dsa-with-sha1
	}
}

// Tags of GeneralName, RFC 5280 §4.2.1.6.
const (
	tagOtherName = cbasn1.Tag(0 | 0x80 | 0x20)
	tagEmail     = cbasn1.Tag(1 | 0x80)
	tagDNS       = cbasn1.Tag(2 | 0x80)
	tagURI       = cbasn1.Tag(6 | 0x80)
	tagIP        = cbasn1.Tag(7 | 0x80)
)
