package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// Files of a broker node, in nodes/NAME, and the key of manifests, in keys.
const (
	nodeChainFile    = "chain.pem"
	nodeKeyFile      = "key.pem"
	exportKeyFile    = "export.key" // PKCS #8, not encrypted: an export asks for no passphrase
	exportPublicFile = "export.pub.pem"
)

// enrollNode gives the broker a new certificate.
func (f *fleet) enrollNode(ctx context.Context, b brokerConfig) error {
	id, err := inventory.ParseDeviceID(b.Node)
	if err != nil {
		return err
	}
	nodes, err := f.dir.Mkdir(nodesDir)
	if err != nil {
		return err
	}
	dir, err := nodes.Mkdir(b.Node)
	if err := errors.Join(err, nodes.Close()); err != nil {
		return err
	}
	e, err := f.EnrollServer(ctx, actor(), id, b.Hosts)
	if err != nil {
		return errors.Join(err, dir.Close())
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: e.Key.Reveal()})
	return errors.Join(
		dir.WriteFile(nodeKeyFile, key, 0o600), // the key first: a chain without its key would be taken for good
		dir.WriteFile(nodeChainFile, ca.CertificatePEM(e.Chain...), 0o644),
		dir.Close(),
	)
}

// node returns the broker with its certificate, and renews that first if it does
// not fit, or two thirds of its life are over.
func (f *fleet) node(ctx context.Context) (templates.Node, error) {
	b := f.cfg.Broker
	n := templates.Node{Name: b.Node, Hosts: b.Hosts, CertificatePort: b.CertificatePort, PasswordPort: b.PasswordPort}
	chain, key, err := f.certified(ctx, b)
	if err != nil {
		return n, err
	}
	n.ServerChain, n.ServerKey = chain, inventory.NewSecret(key)
	return n, nil
}

// certified returns the certificate and the key of a server, in PEM.
func (f *fleet) certified(ctx context.Context, b brokerConfig) (chain, key []byte, err error) {
	for try := 0; ; try++ {
		chain, key, err := f.readNode(b.Node)
		if err == nil {
			err = f.checkNode(ctx, b.Hosts, chain, key)
		}
		if err == nil {
			return chain, key, nil
		}
		if try > 0 {
			return nil, nil, fmt.Errorf("certificate of %s: %w", b.Node, err)
		}
		if err := f.enrollNode(ctx, b); err != nil {
			return nil, nil, err
		}
	}
}

func (f *fleet) readNode(name string) (chain, key []byte, err error) {
	nodes, err := f.dir.Sub(nodesDir)
	if err != nil {
		return nil, nil, err
	}
	dir, err := nodes.Sub(name)
	if err := errors.Join(err, nodes.Close()); err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if chain, err = dir.ReadFile(nodeChainFile, maxPEM); err != nil {
		return nil, nil, err
	}
	key, err = dir.ReadFile(nodeKeyFile, maxPEM)
	return chain, key, err
}

// checkNode reports why a server's certificate has to be replaced.
func (f *fleet) checkNode(ctx context.Context, hosts []string, chain, key []byte) error {
	issuer, err := f.activeIssuer(ctx, inventory.ServerPurpose)
	if err != nil {
		return err
	}
	certs, err := ca.ParseCertificatesPEM(chain)
	if err != nil || len(certs) == 0 {
		return fmt.Errorf("reading it: %w", err)
	}
	private, err := parseKey(key)
	if err != nil {
		return err
	}
	leaf := certs[0]
	if pub, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(private.Public()) {
		return errors.New("it does not belong to the key beside it")
	}
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	want := slices.Clone(hosts)
	slices.Sort(names)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		return fmt.Errorf("it names %v, not %v", names, want)
	}
	if !bytes.Equal(issuer.KeyID[:], leaf.AuthorityKeyId) {
		return errors.New("its issuer has been replaced")
	}
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	if f.app.now().After(leaf.NotBefore.Add(life * 2 / 3)) {
		return fmt.Errorf("it ends on %s", leaf.NotAfter.Format(time.DateOnly))
	}
	return nil
}

// parseKey reads a private key in PEM, PKCS #8, not encrypted.
func parseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("the key is not in PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the key cannot be read")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key cannot sign")
	}
	return signer, nil
}

// exportKey opens the key that signs manifests. A fleet that has none gets one.
func (f *fleet) exportKey() (crypto.Signer, error) {
	text, err := f.keys.ReadFile(exportKeyFile, maxPEM)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeExportKey(f.keys); err != nil {
			return nil, err
		}
		text, err = f.keys.ReadFile(exportKeyFile, maxPEM)
	}
	if err != nil {
		return nil, err
	}
	return parseKey(text)
}

// bundleTrust is what devices verify the broker with.
func (f *fleet) bundleTrust(ctx context.Context) ([]byte, error) {
	var bundle []byte
	err := f.store.Read(ctx, func(in inventory.Reader) (err error) {
		bundle, err = trustBundle(in, inventory.RootPurpose)
		return err
	})
	return bundle, err
}
