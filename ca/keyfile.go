package ca

import (
	"bytes"
	"context"
	"crypto"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/softkms"
	"go.step.sm/crypto/pemutil"
)

// maxSecretFile is the size in bytes of the largest key or PIN file that is read.
const maxSecretFile = 64 << 10

// What the header of a key file may ask for. It is not authenticated: whoever can
// write the file can lower the count, or raise it until opening takes for ever.
const (
	minIterations = 100_000
	maxIterations = 10_000_000
	minSalt       = 8 // RFC 8018 §4.1: at least 64 bits
	maxSalt       = 64
)

// createKeyFile makes a key and writes it, encrypted, to a file of its own.
func createKeyFile(ctx context.Context, path string, alg KeyAlgorithm, pass PassphraseFunc) (Key, error) {
	if _, err := os.Lstat(path); err == nil { // before anyone types a passphrase; writeNew decides
		return nil, fmt.Errorf("making key %s: %w", path, ErrKeyExists)
	}
	secret, err := askPassphrase(pass, path)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	kms, err := softkms.New(ctx, apiv1.Options{})
	if err != nil {
		return nil, fmt.Errorf("making key %s: %w", path, err)
	}
	made, err := kms.CreateKey(&apiv1.CreateKeyRequest{SignatureAlgorithm: kmsAlgorithm(alg), Bits: alg.bits()})
	if err != nil {
		return nil, fmt.Errorf("making key %s: %w", path, err)
	}
	block, err := pemutil.Serialize(made.PrivateKey, pemutil.WithPKCS8(true), pemutil.WithPassword(secret))
	if err != nil {
		return nil, fmt.Errorf("encrypting key %s: %w", path, err)
	}
	if err := writeNew(path, pem.EncodeToMemory(block)); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("making key %s: %w", path, ErrKeyExists)
		}
		return nil, fmt.Errorf("writing key %s: %w", path, err)
	}
	return &handle{Signer: made.CreateSignerRequest.Signer}, nil
}

// kmsAlgorithm is how a KMS calls a kind of key.
func kmsAlgorithm(alg KeyAlgorithm) apiv1.SignatureAlgorithm {
	switch alg {
	case P384:
		return apiv1.ECDSAWithSHA384
	case P521:
		return apiv1.ECDSAWithSHA512
	case Ed25519:
		return apiv1.PureEd25519
	case RSA2048, RSA3072, RSA4096:
		return apiv1.SHA256WithRSA
	case P256:
	}
	return apiv1.ECDSAWithSHA256
}

// writeNew writes a file that was not there, mode 0600 whatever the umask, and
// makes it and its name durable. The name appears when the file is whole: it is
// linked, not renamed, because a rename would replace a key that is there.
func writeNew(path string, data []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".key-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o600)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Link(f.Name(), path)
	}
	if err = errors.Join(err, os.Remove(f.Name())); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// openKeyFile reads and decrypts a key file.
func openKeyFile(ctx context.Context, path string, pass PassphraseFunc) (Key, error) {
	data, err := readSecretFile(path)
	if err != nil {
		return nil, fmt.Errorf("opening key %s: %w", path, err)
	}
	if err := checkKeyFile(data); err != nil {
		return nil, fmt.Errorf("opening key %s: %w", path, err)
	}
	secret, err := askPassphrase(pass, path)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	kms, err := softkms.New(ctx, apiv1.Options{})
	if err != nil {
		return nil, fmt.Errorf("opening key %s: %w", path, err)
	}
	signer, err := kms.CreateSigner(&apiv1.CreateSignerRequest{SigningKeyPEM: data, Password: secret})
	if err != nil {
		// One message for all causes: what the decrypted bytes look like is
		// nobody's business.
		return nil, fmt.Errorf("opening key %s: %w", path, ErrPassphrase)
	}
	if err := usableKey(signer); err != nil {
		return nil, fmt.Errorf("opening key %s: %w", path, err)
	}
	return &handle{Signer: signer}, nil
}

// usableKey refuses keys that a CA may not have. CBC does not authenticate, so a
// flipped bit can give another key that looks well; [NewIssuer] compares with the
// certificate and has the last word.
func usableKey(key crypto.Signer) error {
	alg, refused := algorithmOf(key.Public())
	if refused != nil {
		return fmt.Errorf("%w: %s", ErrKeyRefused, refused.Detail)
	}
	if !alg.forCA() {
		return fmt.Errorf("%w: a CA has no %s key", ErrKeyRefused, alg)
	}
	return nil
}

// readSecretFile reads a file that only its owner may read. It opens first and
// asks the open file, so nothing can be swapped in between, and follows no link.
func readSecretFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%w: it is a symbolic link", ErrKeyRefused)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyUnavailable, err)
	}
	defer f.Close() //nolint:errcheck // read only
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrKeyUnavailable, err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w: not a regular file", ErrKeyRefused)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%w: mode %04o lets others at it, want 0600", ErrKeyRefused, info.Mode().Perm())
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 && int64(owner.Uid) != int64(os.Geteuid()) {
		return nil, fmt.Errorf("%w: it belongs to user %d", ErrKeyRefused, owner.Uid)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyUnavailable, err)
	}
	if len(data) > maxSecretFile {
		return nil, fmt.Errorf("%w: above %d bytes", ErrKeyRefused, maxSecretFile)
	}
	return data, nil
}

// encryptedKey is EncryptedPrivateKeyInfo (RFC 5958 §3) with PBES2 and PBKDF2
// parameters (RFC 8018 appendix A).
type encryptedKey struct {
	Algorithm struct {
		ID     asn1.ObjectIdentifier
		Params struct {
			KDF struct {
				ID     asn1.ObjectIdentifier
				Params struct {
					Salt       []byte
					Iterations int
					KeyLength  int `asn1:"optional"`
					PRF        struct {
						ID     asn1.ObjectIdentifier
						Params asn1.RawValue `asn1:"optional"`
					} `asn1:"optional"`
				}
			}
			Cipher struct {
				ID asn1.ObjectIdentifier
				IV []byte
			}
		}
	}
	Data []byte
}

// checkKeyFile looks at the header of a key file before any work is done with the
// passphrase: one encrypted PKCS #8 key with parameters that are neither cheap
// nor ruinous.
func checkKeyFile(data []byte) error {
	block, rest, err := onePEM(bytes.TrimSpace(data))
	if err != nil || len(rest) > 0 || block.Type != "ENCRYPTED PRIVATE KEY" {
		return fmt.Errorf("%w: want one PEM block ENCRYPTED PRIVATE KEY and nothing else", ErrKeyRefused)
	}
	var k encryptedKey
	if rest, err := asn1.Unmarshal(block.Bytes, &k); err != nil || len(rest) > 0 {
		return fmt.Errorf("%w: not a PKCS #8 key encrypted with PBES2 and PBKDF2", ErrKeyRefused)
	}
	kdf, cipher := k.Algorithm.Params.KDF, k.Algorithm.Params.Cipher
	switch {
	case !k.Algorithm.ID.Equal(oidPBES2) || !kdf.ID.Equal(oidPBKDF2):
		return fmt.Errorf("%w: not encrypted with PBES2 and PBKDF2", ErrKeyRefused)
	case !kdf.Params.PRF.ID.Equal(oidHMACWithSHA256):
		return fmt.Errorf("%w: PBKDF2 is not with HMAC-SHA256", ErrKeyRefused)
	case kdf.Params.Iterations < minIterations || kdf.Params.Iterations > maxIterations:
		return fmt.Errorf("%w: %d iterations of PBKDF2, want %d to %d", ErrKeyRefused,
			kdf.Params.Iterations, minIterations, maxIterations)
	case len(kdf.Params.Salt) < minSalt || len(kdf.Params.Salt) > maxSalt:
		return fmt.Errorf("%w: salt of %d bytes, want %d to %d", ErrKeyRefused, len(kdf.Params.Salt), minSalt, maxSalt)
	case !cipher.ID.Equal(oidAES256CBC) && !cipher.ID.Equal(oidAES128CBC):
		return fmt.Errorf("%w: not encrypted with AES-CBC", ErrKeyRefused)
	case len(cipher.IV) != 16 || len(k.Data) == 0 || len(k.Data)%16 != 0:
		return fmt.Errorf("%w: the encrypted part is not whole blocks of AES", ErrKeyRefused)
	}
	return nil
}
