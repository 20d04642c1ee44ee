package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/remote"
)

// The layout of a fleet directory, version 1.
//
//	imprint.yaml        configuration, for a person to edit
//	inventory.db        the inventory; journal and lock are its own
//	keys/               private keys of issuers, encrypted, and the store's key
//	root/               private key and certificate of the root, to be moved away
//	nodes/NAME/         certificate and private key of a broker node
//	crl/ISSUER.crl      the CRL that is published, DER
//	imprint.sock        while a server runs: its inventory, for other processes
const (
	keysDir  = "keys"
	rootDir  = "root"
	nodesDir = "nodes"
	crlDir   = "crl"

	storeKeyFile = "inventory.key" // in keys/: the key of the inventory's MACs, 32 octets
)

// fleet is an open fleet directory.
type fleet struct {
	app   *app
	cfg   config
	dir   *durable.Dir
	keys  *durable.Dir
	store storage

	storeConfig boltstore.Config
	*enroll.Registrar
}

// openFleet opens the fleet for reading and writing; nobody else may then.
func (a *app) openFleet(ctx context.Context) (*fleet, error) { return a.open(ctx, false) }

// readFleet opens the fleet for reading. Others may read it too.
func (a *app) readFleet(ctx context.Context) (*fleet, error) {
	f, err := a.open(ctx, true)
	if errors.Is(err, boltstore.ErrRecover) {
		// A process died while it wrote: whoever comes next cleans up.
		return a.open(ctx, false)
	}
	return f, err
}

func (a *app) open(ctx context.Context, readOnly bool) (_ *fleet, err error) {
	dir, err := durable.OpenDir(a.dir)
	if err != nil {
		return nil, configErrorf("no fleet: %w", err)
	}
	f := &fleet{app: a, dir: dir}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	cfg, instance, err := loadConfig(dir)
	if err != nil {
		return nil, err
	}
	f.cfg = cfg
	if f.keys, err = dir.Sub(keysDir); err != nil {
		return nil, configError{err}
	}
	key, err := readStoreKey(f.keys)
	if err != nil {
		return nil, err
	}
	f.storeConfig = boltstore.Config{Dir: dir, Instance: instance, Key: key, ReadOnly: readOnly, Mapped: a.mapped}
	if err = f.openStore(ctx); err != nil {
		return nil, err
	}
	f.Registrar, err = f.newRegistrar()
	return f, err
}

// newRegistrar returns a registrar over the open store.
func (f *fleet) newRegistrar() (*enroll.Registrar, error) {
	schemes, err := f.cfg.schemes()
	if err != nil {
		return nil, err
	}
	return enroll.New(enroll.Config{
		Store: f.store, Open: f.openIssuer, Organization: f.cfg.Name, TrustDomain: f.cfg.TrustDomain,
		Schemes: schemes, CRLValidity: f.cfg.crlValidity(), Now: f.app.now, TokenSigner: f.tokenSigner(),
	})
}

// storage is an inventory, wherever it is, with what backup and check need.
type storage interface {
	inventory.Store
	Backup(ctx context.Context, to io.Writer) error
	Check(ctx context.Context) (boltstore.Report, error)
}

// servedStore is the inventory that a running server holds.
type servedStore struct{ *remote.Store }

// Check implements storage.
func (s servedStore) Check(ctx context.Context) (boltstore.Report, error) {
	var r boltstore.Report
	return r, s.Store.Check(ctx, &r)
}

// socketFile is where a running server lets other processes work with the
// inventory.
const socketFile = "imprint.sock"

// openStore opens the inventory, through a server if one runs on it: a command does
// the same then, and nobody waits for anybody's lock.
func (f *fleet) openStore(ctx context.Context) error {
	if _, err := f.dir.Stat(socketFile); err == nil {
		s, err := remote.Dial(ctx, filepath.Join(f.dir.Path(), socketFile))
		if err == nil {
			f.store = servedStore{s}
			return nil
		}
		if !errors.Is(err, remote.ErrNoServer) {
			return err
		}
		// It was left behind by a server that is dead.
	}
	s, err := boltstore.Open(ctx, f.storeConfig)
	if err != nil {
		return err
	}
	f.store = s
	return nil
}

// readStoreKey reads the key that the inventory's MACs are made with.
func readStoreKey(keys *durable.Dir) ([32]byte, error) {
	var key [32]byte
	info, err := keys.Stat(storeKeyFile)
	if err != nil {
		return key, configErrorf("key of the inventory: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return key, configErrorf("key of the inventory: %s can be read by others: chmod 600 it", filepath.Join(keys.Path(), storeKeyFile))
	}
	b, err := keys.ReadFile(storeKeyFile, int64(len(key)))
	if err != nil || len(b) != len(key) {
		return key, configErrorf("key of the inventory: want a file of %d octets in %s", len(key), keys.Path())
	}
	copy(key[:], b)
	return key, nil
}

// Close releases the fleet. Errors have nowhere to go: everything that had to be
// durable is.
func (f *fleet) Close() {
	if f.store != nil {
		_ = f.store.Close()
	}
	if f.keys != nil {
		_ = f.keys.Close()
	}
	_ = f.dir.Close()
}

// openIssuer opens an issuer with its private key. The passphrase is asked for
// here, and only here.
func (f *fleet) openIssuer(ctx context.Context, iss inventory.Issuer) (*ca.Issuer, error) {
	cert, err := x509.ParseCertificate(iss.Certificate)
	if err != nil {
		return nil, fmt.Errorf("reading its certificate: %w", err)
	}
	if iss.Key == "" {
		return nil, fmt.Errorf("its key is not kept here: %w", ca.ErrKeyUnavailable)
	}
	key, err := ca.OpenKey(ctx, f.keyURI(iss.Key), f.app.askPassphrase)
	if err != nil {
		return nil, err
	}
	return ca.NewIssuer(cert, key, f.app.now)
}

// relativeKey marks a key URI whose file is in the fleet directory, so that the
// directory can be moved.
const relativeKey = "softkms:path=./"

// keyURI makes a key URI of the inventory absolute.
func (f *fleet) keyURI(uri string) string { return keyURI(f.dir.Path(), uri) }

func keyURI(dir, uri string) string {
	if rest, ok := strings.CutPrefix(uri, relativeKey); ok {
		return ca.KeyFileURI(filepath.Join(dir, rest))
	}
	return uri
}

// actor names who runs the command, for the audit log.
func actor() string {
	name := "uid " + fmt.Sprint(os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	return "cli:" + name
}

// trustBundle returns the certificates that vouch for the fleet, in PEM: the root
// alone, or with the issuers of a purpose for a peer that is sent no chain. Issuers
// that are retired vouch for nobody.
func trustBundle(in inventory.Reader, purposes ...inventory.Purpose) ([]byte, error) {
	var ders [][]byte
	for iss, err := range in.Issuers() {
		if err != nil {
			return nil, err
		}
		if iss.State == inventory.IssuerPending || iss.State == inventory.IssuerRetired {
			continue
		}
		for _, p := range purposes {
			if iss.Purpose == p {
				ders = append(ders, iss.Certificate)
			}
		}
	}
	return ca.CertificatePEM(ders...), nil
}
