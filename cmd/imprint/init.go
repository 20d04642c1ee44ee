package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
)

type initOptions struct {
	name, trustDomain string
	hosts             []string
	node              string
	algorithm         string
	keyURIs           map[string]string // by purpose
	certPort          uint16
	passPort          uint16
	schemes           []string
}

func newInitCommand(a *app) *cobra.Command {
	var o initOptions
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a fleet: its CA, its inventory, its broker's certificate",
		Long: `Init makes a fleet directory in one step: a root, a CA for devices and one for
servers, an empty inventory with the profile "default", and a certificate for the
broker. It makes all of it or nothing.

The private keys are encrypted under a passphrase of at least 12 characters, from
--passphrase-file, from the credential imprint-passphrase of a systemd service, or
from the terminal.

With --key-uri the key of the root, device or server CA is made on a PKCS #11 token
instead (in builds with -tags pkcs11), in the syntax of RFC 7512:
device=pkcs11:module-path=...;token=...;id=%01;object=device?pin-source=FILE

The root's key is in the directory root/. It is needed only for a new CA: move
root/ to a medium that is kept offline.`,
		Example: `  imprint init --name acme --host mqtt.acme.example
  imprint --fleet /srv/acme init --name acme --host mqtt.acme.example --host 10.0.0.5 --passphrase-file pass`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runInit(cmd.Context(), o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.name, "name", "", "`name` of the fleet, the organization in every certificate (required)")
	flags.StringVar(&o.trustDomain, "trust-domain", "", "SPIFFE trust `domain` (default: the name in lower case)")
	flags.StringSliceVar(&o.hosts, "host", nil, "DNS name or IP `address` of the broker, may be repeated (required)")
	flags.StringVar(&o.node, "node", "broker", "`name` of the broker in the inventory")
	flags.StringVar(&o.algorithm, "key", "P-256", "`algorithm` of the CA keys: P-256, P-384, Ed25519, RSA-3072 or RSA-4096")
	flags.StringToStringVar(&o.keyURIs, "key-uri", nil, "`PURPOSE=URI` of a CA key that is kept elsewhere, as device=pkcs11:...; may be repeated")
	flags.Uint16Var(&o.certPort, "certificate-port", 8883, "broker's `port` for devices with certificates")
	flags.Uint16Var(&o.passPort, "password-port", 8884, "broker's `port` for devices with passwords")
	flags.StringSliceVar(&o.schemes, "password-scheme", nil, "dear password `scheme` to compute for every device: bcrypt, argon2id, pbkdf2-sha1")
	for _, name := range []string{"name", "host"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag is defined above
		}
	}
	return cmd
}

func (a *app) runInit(ctx context.Context, o initOptions) (err error) {
	if o.trustDomain == "" {
		o.trustDomain = trustDomainOf(o.name)
	}
	path, err := filepath.Abs(a.dir)
	if err != nil {
		return err
	}
	if err := refuseExisting(path); err != nil {
		return err
	}
	for purpose := range o.keyURIs {
		if purpose != "root" && purpose != "device" && purpose != "server" {
			return usageErrorf("--key-uri %.40q: want root, device or server before the =", purpose)
		}
	}
	if _, err := a.newPassphrase(); err != nil {
		return err
	}
	defer tidyOut(filepath.Dir(path))()
	parent, err := durable.CreateDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parent.Close()) }()
	// All of it is made under another name: the fleet is there whole, or not.
	tmp := "." + filepath.Base(path) + "." + rand.Text() + ".init"
	if err := a.build(ctx, filepath.Join(parent.Path(), tmp), o); err != nil {
		return errors.Join(err, parent.RemoveAll(tmp))
	}
	if err := parent.Swap(tmp, filepath.Base(path)); err != nil {
		return errors.Join(err, parent.RemoveAll(tmp))
	}
	return a.reportInit(ctx)
}

// refuseExisting lets an empty directory through, which a mount point may be.
func refuseExisting(path string) error {
	names, err := os.ReadDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return configError{err}
	case len(names) > 0:
		return fmt.Errorf("%s is there already and not empty: %w", path, enroll.ErrDenied)
	}
	return nil
}

// trustDomainOf makes a SPIFFE trust domain of a name.
func trustDomainOf(name string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '.', r == '-', r == '_':
			return r
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, name), "-")
}

// build makes a fleet directory at path, which nobody looks at yet.
func (a *app) build(ctx context.Context, path string, o initOptions) (err error) {
	dir, err := durable.CreateDir(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	instance, err := uuid.NewRandom()
	if err != nil {
		return err
	}
	cfg := config{
		Version: configVersion, Instance: hex.EncodeToString(instance[:]), Name: o.name, TrustDomain: o.trustDomain, PasswordSchemes: o.schemes,
		Broker: brokerConfig{Node: o.node, Hosts: o.hosts, CertificatePort: o.certPort, PasswordPort: o.passPort},
	}
	if err := cfg.check(); err != nil {
		return err
	}
	if err := writeConfig(dir, cfg); err != nil {
		return err
	}
	var storeKey [32]byte
	_, _ = rand.Read(storeKey[:])
	if err := makeKeys(dir, storeKey); err != nil {
		return err
	}
	if err := a.found(ctx, dir, cfg, instance, storeKey, o); err != nil {
		return err
	}
	return a.firstCertificates(ctx, path, cfg)
}

func writeConfig(dir *durable.Dir, cfg config) error {
	text, err := yaml.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", configFile, err)
	}
	return dir.WriteFile(configFile, text, 0o600)
}

// makeKeys makes the directories, and the keys that need no passphrase: that of
// the inventory's MACs, and the one that signs manifests of exports.
func makeKeys(dir *durable.Dir, storeKey [32]byte) error {
	for _, name := range []string{keysDir, rootDir, nodesDir, crlDir} {
		sub, err := dir.Mkdir(name)
		if err != nil {
			return err
		}
		if name == keysDir {
			err = errors.Join(sub.WriteFile(storeKeyFile, storeKey[:], 0o600), makeExportKey(sub))
		}
		if err := errors.Join(err, sub.Close()); err != nil {
			return err
		}
	}
	return nil
}

// found makes the issuers and the inventory.
func (a *app) found(ctx context.Context, dir *durable.Dir, cfg config, instance [16]byte, storeKey [32]byte, o initOptions) (err error) {
	f := enroll.Foundation{Actor: actor(), Organization: cfg.Name, Now: a.now, Profiles: []inventory.Profile{defaultProfile()}}
	for _, x := range []struct {
		purpose inventory.Purpose
		ref     *enroll.KeyRef
		file    string // in the fleet directory, unless --key-uri says otherwise
	}{
		{inventory.RootPurpose, &f.Root, rootDir + "/root-1.key"},
		{inventory.DevicePurpose, &f.Device, keysDir + "/device-1.key"},
		{inventory.ServerPurpose, &f.Server, keysDir + "/server-1.key"},
	} {
		uri := o.keyURIs[x.purpose.String()]
		if uri == "" {
			uri = relativeKey + x.file
		}
		key, err := ca.CreateKey(ctx, keyURI(dir.Path(), uri), ca.KeyAlgorithm(o.algorithm), a.newPassphrase)
		if err != nil {
			return fmt.Errorf("key of the %s CA: %w", x.purpose, err)
		}
		defer func() { err = errors.Join(err, key.Close()) }()
		*x.ref = enroll.KeyRef{URI: uri, Signer: key}
	}
	store, err := boltstore.Open(ctx, boltstore.Config{Dir: dir, Instance: instance, Key: storeKey, Create: true})
	if err != nil {
		return err
	}
	return errors.Join(enroll.Found(ctx, store, f), store.Close())
}

// firstCertificates issues the broker's certificate, the CRLs, and puts the
// root's certificate beside its key.
func (a *app) firstCertificates(ctx context.Context, path string, cfg config) error {
	b := *a
	b.dir = path
	f, err := b.openFleet(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.enrollNode(ctx, cfg.Broker); err != nil {
		return err
	}
	for _, name := range []string{"root-1", "device-1", "server-1"} {
		if _, err := f.publishCRL(ctx, name, false); err != nil {
			return err
		}
	}
	root, err := f.dir.Sub(rootDir)
	if err != nil {
		return err
	}
	var bundle []byte
	err = f.store.Read(ctx, func(in inventory.Reader) error {
		bundle, err = trustBundle(in, inventory.RootPurpose)
		return err
	})
	return errors.Join(err, root.WriteFile("root-1.pem", bundle, 0o644), root.Close())
}

// defaultProfile gives each device a subtree to publish to and one to receive
// from.
func defaultProfile() inventory.Profile {
	certificate, err := json.Marshal(ca.Config{})
	if err != nil {
		panic(err) // a struct of plain fields
	}
	return inventory.Profile{
		Name: defaultProfileName, Certificate: certificate,
		Policy: topic.Policy{Rules: []topic.Rule{
			{Action: topic.Publish, Filter: "devices/{id}/up/#"},
			{Action: topic.Receive, Filter: "devices/{id}/down/#"},
		}},
	}
}

// reportInit says what has been made.
func (a *app) reportInit(ctx context.Context) error {
	f, err := a.readFleet(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	issuers, err := f.issuers(ctx)
	if err != nil {
		return err
	}
	return a.print(map[string]any{"fleet": f.dir.Path(), "instance": f.cfg.Instance, "issuers": issuers}, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "fleet %s made in %s\n", f.cfg.Name, f.dir.Path())
		for _, i := range issuers {
			_, _ = fmt.Fprintf(w, "  %-9s %s, until %s\n", i.Name, i.Subject, day(i.NotAfter))
		}
		_, _ = fmt.Fprintf(w, "move %s to a medium that is kept offline: it is needed only for a new CA\n", filepath.Join(f.dir.Path(), rootDir))
	})
}

// makeExportKey makes the key that signs manifests.
func makeExportKey(keys *durable.Dir) error {
	return makeSigningKey(keys, exportKeyFile, exportPublicFile)
}

// makeSigningKey makes a key on P-256 that is kept without a passphrase.
func makeSigningKey(keys *durable.Dir, private, public string) error {
	key, err := ca.GenerateKey(ca.P256)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding key: %w", err)
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encoding key: %w", err)
	}
	return errors.Join(
		keys.WriteFile(private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600),
		keys.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}), 0o644),
	)
}
