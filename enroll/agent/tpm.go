package agent

import (
	"crypto"
	"fmt"
	"io"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
)

// A tpmSigner signs with a key in a TPM. The TPM is opened for each signature:
// others use it too, and a device signs once in a while.
type tpmSigner struct {
	path   string
	key    *keyfile.TPMKey
	public crypto.PublicKey
}

// Public implements [crypto.Signer].
func (s *tpmSigner) Public() crypto.PublicKey { return s.public }

// Sign implements [crypto.Signer].
func (s *tpmSigner) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	tpm, err := openTPM(s.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tpm.Close() }()
	signer, err := s.key.Signer(tpm, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: the TPM does not load it: %w", errKey, err)
	}
	return signer.Sign(r, digest, opts)
}
