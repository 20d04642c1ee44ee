package templates

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// Names of the files that every export has beside those of the broker.
const (
	ManifestName  = "manifest.json"
	SignatureName = "manifest.sig"
	ReadmeName    = "README.md"
)

// maxManifest is the longest manifest that is read, in bytes. One with a
// hundred files is 20 KiB.
const maxManifest = 1 << 20

// A Manifest lists the files of an export and says what they are good for. It is
// written last: files that do not match it are from an export that was cut
// short, or have been changed by hand.
//
// The format has a version. A reader refuses a version it does not know; fields
// may be added without a new version.
type Manifest struct {
	Version        int            `json:"version"` // of this format: 1
	Target         string         `json:"target"`
	BrokerVersion  string         `json:"brokerVersion"`
	Form           string         `json:"form"`
	Fleet          string         `json:"fleet"`
	Node           string         `json:"node"`
	PolicyRevision uint64         `json:"policyRevision"` // View.Revision
	Created        time.Time      `json:"created"`        // UTC, whole seconds
	Files          []ManifestFile `json:"files"`
	Devices        int            `json:"devices"`
	Users          int            `json:"users"`
	Rules          int            `json:"rules"`
	Enforced       []string       `json:"enforced"`
	NotEnforced    []string       `json:"notEnforced"`

	// Approximated are rules that were left out because the broker cannot express
	// them: the export is narrower than the policy.
	Approximated []string `json:"approximated,omitempty"`

	// RevocationLatency says how long a revoked device may go on at most.
	RevocationLatency string `json:"revocationLatency"`

	// CRLNextUpdate is when the first of the CRLs expires; zero if there is none.
	CRLNextUpdate time.Time `json:"crlNextUpdate,omitzero"`

	// SignedBy is the file name of the certificate that manifest.sig verifies
	// with; empty if the manifest is not signed.
	SignedBy string `json:"signedBy,omitempty"`
}

// A ManifestFile is one file of a manifest.
type ManifestFile struct {
	FileInfo
	Mode string `json:"mode"` // octal: "0640"
}

const manifestVersion = 1

// encode returns the text of the manifest, which is what is signed.
func (m *Manifest) encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(m); err != nil {
		return nil, fmt.Errorf("encoding manifest: %w", err)
	}
	return b.Bytes(), nil
}

// ReadManifest reads the manifest in src. It checks nothing but its form: see
// [Verify]. If there is none, the error wraps [fs.ErrNotExist].
func ReadManifest(src fs.FS) (*Manifest, error) {
	m, _, err := readManifest(src)
	return m, err
}

func readManifest(src fs.FS) (*Manifest, []byte, error) {
	text, err := readFile(src, ManifestName, maxManifest)
	if err != nil {
		return nil, nil, err
	}
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, nil, fmt.Errorf("reading %s: %w: %w", ManifestName, ErrManifest, err)
	}
	if m.Version != manifestVersion {
		return nil, nil, fmt.Errorf("reading %s: %w: version %d, want %d", ManifestName, ErrManifest, m.Version, manifestVersion)
	}
	return &m, text, nil
}

// Verify checks that the files in src are those of the manifest there, byte for
// byte. If pub is not nil, the manifest must have been signed with its key. What
// does not hold is an error wrapping [ErrManifest].
func Verify(src fs.FS, pub *ecdsa.PublicKey) (*Manifest, error) {
	m, err := VerifyManifest(src, pub)
	if err != nil {
		return nil, err
	}
	for _, f := range m.Files {
		sum, n, err := HashFile(src, f.Name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("%s: %w: the file is missing", f.Name, ErrManifest)
		case err != nil:
			return nil, err
		case n != f.Bytes || sum != f.SHA256:
			return nil, fmt.Errorf("%s: %w: its hash is not that of the manifest", f.Name, ErrManifest)
		}
	}
	return m, nil
}

// VerifyManifest checks the signature of the manifest in src, if pub is not nil,
// and returns the manifest. It does not look at the files.
func VerifyManifest(src fs.FS, pub *ecdsa.PublicKey) (*Manifest, error) {
	m, text, err := readManifest(src)
	if err != nil {
		return nil, err
	}
	if pub == nil {
		return m, nil
	}
	sig, err := readFile(src, SignatureName, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: it is not signed", ErrManifest)
	}
	if err != nil {
		return nil, err
	}
	if !verifySignature(pub, text, sig) {
		return nil, fmt.Errorf("%w: the signature of the manifest does not verify", ErrManifest)
	}
	return m, nil
}

// sign returns the text of manifest.sig: an ECDSA signature over the SHA-256
// hash of the manifest, in DER (RFC 3279 §2.2.3), in base64, on one line.
// "base64 -d manifest.sig | openssl dgst -sha256 -verify PUB -signature
// /dev/stdin manifest.json" reads it.
func sign(key crypto.Signer, manifest []byte) ([]byte, error) {
	pub, ok := ecdsaKey(key)
	if !ok {
		return nil, errors.New("signing manifest: want an ECDSA key")
	}
	sum := sha256.Sum256(manifest)
	der, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing manifest: %w", err)
	}
	if !ecdsa.VerifyASN1(pub, sum[:], der) {
		return nil, errors.New("signing manifest: the signature does not verify")
	}
	return append(base64.StdEncoding.AppendEncode(nil, der), '\n'), nil
}

func ecdsaKey(key crypto.Signer) (*ecdsa.PublicKey, bool) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	return pub, ok
}

func verifySignature(pub *ecdsa.PublicKey, manifest, sig []byte) bool {
	der, err := base64.StdEncoding.Strict().DecodeString(string(bytes.TrimSuffix(sig, []byte("\n"))))
	if err != nil {
		return false
	}
	sum := sha256.Sum256(manifest)
	return ecdsa.VerifyASN1(pub, sum[:], der)
}

// HashFile returns the SHA-256 hash of a regular file, in hexadecimal, and its
// length.
func HashFile(src fs.FS, name string) (string, int64, error) {
	f, err := OpenFile(src, name)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = f.Close() }() // read only: nothing to lose
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return "", 0, fmt.Errorf("reading %s: %w", name, err)
	}
	return hex.EncodeToString(h.Sum(nil)), n, nil
}

// readFile reads a regular file of at most limit bytes.
func readFile(src fs.FS, name string, limit int64) ([]byte, error) {
	f, err := OpenFile(src, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only: nothing to lose
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading %s: %w", name, err)
	case int64(len(b)) > limit:
		return nil, fmt.Errorf("reading %s: more than %d bytes", name, limit)
	}
	return b, nil
}

// OpenFile opens a regular file. It looks before it opens, because opening a
// FIFO waits for a writer, and once more after.
func OpenFile(src fs.FS, name string) (fs.File, error) {
	info, err := fs.Stat(src, name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", name)
	}
	f, err := src.Open(name)
	if err != nil {
		return nil, err
	}
	if info, err = f.Stat(); err != nil || !info.Mode().IsRegular() {
		_ = f.Close() // refused in any case
		return nil, errors.Join(fmt.Errorf("%s: not a regular file", name), err)
	}
	return f, nil
}
