package agent

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/imprint-iot/imprint/inventory/durable"
)

// A pair is a key and its certificate, in a directory of their own. Readers follow
// the link current and see one pair or the other, never half of each.
type pair struct {
	number int
	tls    tls.Certificate // Leaf is set
}

// readPair reads pair number n.
func readPair(dir *durable.Dir, kind string, n int) (*pair, error) {
	sub, err := subdir(dir, pairsDir, strconv.Itoa(n))
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Close() }()
	keyText, err := sub.ReadFile(keyFile, maxPEM)
	if err != nil {
		return nil, err
	}
	certText, err := sub.ReadFile(certFile, maxPEM)
	if err != nil {
		return nil, err
	}
	key, err := readKey(kind, keyText)
	if err != nil {
		return nil, err
	}
	made, err := assemble(certText, key)
	if err != nil {
		return nil, fmt.Errorf("pair %d: %w", n, err)
	}
	return &pair{number: n, tls: *made}, nil
}

func subdir(dir *durable.Dir, names ...string) (*durable.Dir, error) {
	at := dir
	for i, name := range names {
		next, err := at.Sub(name)
		if i > 0 {
			_ = at.Close()
		}
		if err != nil {
			return nil, err
		}
		at = next
	}
	return at, nil
}

// assemble puts a chain and a key together, if they belong together.
func assemble(chainPEM []byte, key crypto.Signer) (*tls.Certificate, error) {
	out := &tls.Certificate{PrivateKey: key}
	for rest := chainPEM; len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" || len(out.Certificate) == 8 {
			return nil, errors.New("the certificate is not in PEM")
		}
		out.Certificate = append(out.Certificate, block.Bytes)
	}
	if len(out.Certificate) == 0 {
		return nil, errors.New("there is no certificate")
	}
	leaf, err := x509.ParseCertificate(out.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	out.Leaf = leaf
	return out, nil
}

// pairs lists the numbers of the pairs that are there, in order.
func pairs(dir *durable.Dir) ([]int, error) {
	sub, err := dir.Sub(pairsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Close() }()
	names, err := sub.Names()
	if err != nil {
		return nil, err
	}
	var all []int
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil && n > 0 {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return all, nil
}

// current is the number of the pair in use, or 0.
func current(dir *durable.Dir) (int, error) {
	target, err := dir.Root().Readlink(currentLink)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(filepath.Base(target))
	if err != nil {
		return 0, fmt.Errorf("%s: it leads to %.60q", currentLink, target)
	}
	return n, nil
}

// install puts a pair under its number, all of it or nothing.
func install(dir *durable.Dir, n int, files map[string][]byte) error {
	const tmp = ".pair.tmp"
	if err := dir.RemoveAll(tmp); err != nil {
		return err
	}
	if err := make0700(dir, pairsDir); err != nil {
		return err
	}
	sub, err := dir.Mkdir(tmp)
	if err != nil {
		return err
	}
	for name, data := range files {
		if err := sub.WriteFile(name, data, 0o600); err != nil {
			return errors.Join(err, sub.Close())
		}
	}
	if err := sub.Close(); err != nil {
		return err
	}
	return dir.Swap(tmp, filepath.Join(pairsDir, strconv.Itoa(n)))
}

func make0700(dir *durable.Dir, name string) error {
	sub, err := dir.Mkdir(name)
	if err != nil {
		return err
	}
	return sub.Close()
}

// use makes a pair the current one, by one rename.
func use(dir *durable.Dir, n int) error {
	const tmp = ".current.tmp"
	if err := dir.Root().Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := dir.Root().Symlink(filepath.Join(pairsDir, strconv.Itoa(n)), tmp); err != nil {
		return err
	}
	return dir.Swap(tmp, currentLink)
}

// roots returns the trust bundle: what the server has sent, or what the device was
// given.
func roots(dir *durable.Dir, given string) (*x509.CertPool, []byte, error) {
	text, err := dir.ReadFile(trustFile, maxPEM)
	if errors.Is(err, fs.ErrNotExist) {
		if err := onlyOwnerWrites(given); err != nil {
			return nil, nil, fmt.Errorf("%w: trust: %w", ErrConfig, err)
		}
		text, err = os.ReadFile(given)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: trust: %w", ErrConfig, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, nil, fmt.Errorf("%w: trust: %s holds no certificate", ErrConfig, given)
	}
	return pool, text, nil
}
