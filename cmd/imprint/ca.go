package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
)

func newCACommand(a *app) *cobra.Command {
	return newGroupCommand("ca", "The fleet's certification authority",
		newCAShowCommand(a), newCACRLCommand(a), newCARollCommand(a), newCARetireCommand(a), newCARootCommand(a), newCAVerificationCommand(a))
}

// issuerView is an issuer as the command line shows it.
type issuerView struct {
	Name        string            `json:"name"`
	Purpose     inventory.Purpose `json:"purpose"`
	Generation  uint32            `json:"generation"`
	State       string            `json:"state"`
	Subject     string            `json:"subject"`
	KeyID       string            `json:"keyId"`
	NotAfter    time.Time         `json:"notAfter"`
	Key         string            `json:"key,omitempty"` // KMS URI
	CRLNumber   uint64            `json:"crlNumber"`
	CRLNext     time.Time         `json:"crlNextUpdate"`
	Revoked     int               `json:"revoked"`
	Certificate string            `json:"certificate,omitempty"` // PEM
}

func (f *fleet) issuers(ctx context.Context) ([]issuerView, error) {
	var out []issuerView
	err := f.store.Read(ctx, func(in inventory.Reader) error {
		for iss, err := range in.Issuers() {
			if err != nil {
				return err
			}
			v := issuerView{Name: iss.Name, Purpose: iss.Purpose, Generation: iss.Generation, State: iss.State.String(), NotAfter: iss.NotAfter, Key: iss.Key, CRLNumber: iss.CRLNumber, CRLNext: iss.CRLNextUpdate}
			if iss.State != inventory.IssuerPending {
				cert, err := x509.ParseCertificate(iss.Certificate)
				if err != nil {
					return fmt.Errorf("reading certificate of issuer %s: %w", iss.Name, err)
				}
				v.Subject, v.KeyID, v.Certificate = cert.Subject.String(), iss.KeyID.String(), string(ca.CertificatePEM(iss.Certificate))
				for _, err := range in.Revocations(iss.KeyID) {
					if err != nil {
						return err
					}
					v.Revoked++
				}
			}
			out = append(out, v)
		}
		return nil
	})
	return out, err
}

func newCAShowCommand(a *app) *cobra.Command {
	var asPEM bool
	cmd := &cobra.Command{
		Use:   "show [ISSUER...]",
		Short: "Show the issuers, their keys and CRLs",
		Long: `Show lists all issuers, or those named. With --pem it writes their certificates,
which makes a trust bundle, or the part of a chain above a device.`,
		Example: `  imprint ca show
  imprint ca show root-1 --pem > trust.pem`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			issuers, err := f.issuers(cmd.Context())
			if err != nil {
				return err
			}
			if issuers, err = chosen(issuers, args); err != nil {
				return err
			}
			if asPEM {
				for _, i := range issuers {
					if _, err := io.WriteString(a.out, i.Certificate); err != nil {
						return err
					}
				}
				return nil
			}
			return a.printRows([]string{"NAME", "STATE", "SUBJECT", "UNTIL", "REVOKED", "CRL", "NEXT UPDATE"}, func(emit func(any, ...string) error) error {
				for _, i := range issuers {
					if err := emit(i, i.Name, i.State, i.Subject, day(i.NotAfter), fmt.Sprint(i.Revoked), fmt.Sprint(i.CRLNumber), day(i.CRLNext)); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asPEM, "pem", false, "write the certificates, in PEM")
	return cmd
}

// chosen picks the issuers with the given names, or all.
func chosen(issuers []issuerView, names []string) ([]issuerView, error) {
	if len(names) == 0 {
		return issuers, nil
	}
	var out []issuerView
	for _, name := range names {
		i := slices.IndexFunc(issuers, func(v issuerView) bool { return v.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("issuer %.64q: %w", name, inventory.ErrNotFound)
		}
		out = append(out, issuers[i])
	}
	return out, nil
}

// maxCRLFile is the largest CRL file that is read back, in bytes: a million
// entries have 49 MB.
const maxCRLFile = 128 << 20

// crlBudget is how many entries a CRL may have before a warning: Mosquitto
// verifies all of it at every TLS handshake, which costs 57 to 95 ns per entry.
const crlBudget = 10000

// publishCRL returns the CRL of an issuer, signing a new one if that is due, and
// keeps it in the fleet directory. Another process may be doing the same.
func (f *fleet) publishCRL(ctx context.Context, issuer string, force bool) (enroll.CRL, error) {
	for tries := 0; ; tries++ {
		crl, err := f.publishCRLOnce(ctx, issuer, force)
		if !errors.Is(err, inventory.ErrConflict) || tries == 8 {
			return crl, err
		}
	}
}

func (f *fleet) publishCRLOnce(ctx context.Context, issuer string, force bool) (enroll.CRL, error) {
	dir, err := f.dir.Sub(crlDir)
	if err != nil {
		return enroll.CRL{}, err
	}
	defer func() { _ = dir.Close() }()
	name := issuer + ".crl"
	have, err := dir.ReadFile(name, maxCRLFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return enroll.CRL{}, err
	}
	crl, err := f.PublishCRL(ctx, actor(), issuer, have, force)
	if err != nil {
		return crl, err
	}
	if crl.Entries > crlBudget {
		f.app.warn(fmt.Sprintf("the CRL of %s has %d entries, more than %d: brokers pay for them at every handshake", issuer, crl.Entries, crlBudget))
	}
	if string(have) == string(crl.DER) {
		return crl, nil
	}
	if err := dir.WriteFile(name, crl.DER, 0o644); err != nil {
		return crl, err
	}
	if crl.Entries <= crlBudget {
		return crl, nil
	}
	next, err := f.RollIfFull(ctx, actor(), crlBudget)
	if next != "" {
		f.app.warn(fmt.Sprintf("%s issues from now on, so that CRLs stay small; make the next one: imprint ca roll device --standby", next))
	}
	return crl, err
}

func newCACRLCommand(a *app) *cobra.Command {
	var out string
	var force bool
	cmd := &cobra.Command{
		Use:   "crl [ISSUER]",
		Short: "Sign the CRL of an issuer if it is due, and write it",
		Long: `Crl signs the CRL of an issuer (default: the newest issuer of devices) if
something was revoked since the last one, or if that one is past half of its life,
and writes it as PEM.`,
		Example: `  imprint ca crl > device.crl.pem
  imprint ca crl root-1 --force --out root.crl.pem`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			name := ""
			if len(args) == 1 {
				name = args[0]
			} else if name, err = f.newestIssuer(cmd.Context(), inventory.DevicePurpose); err != nil {
				return err
			}
			crl, err := f.publishCRL(cmd.Context(), name, force)
			if err != nil {
				return err
			}
			pemText := ca.CRLPEM(crl.DER)
			if out != "" {
				if err := writeOut(out, pemText, 0o644); err != nil {
					return err
				}
			}
			if a.output == outputJSON {
				return a.print(map[string]any{"issuer": crl.Issuer, "number": crl.Number, "thisUpdate": crl.ThisUpdate, "nextUpdate": crl.NextUpdate, "entries": crl.Entries, "crl": string(pemText)}, nil)
			}
			if out == "" {
				_, err = a.out.Write(pemText)
				return err
			}
			a.say("CRL %d of %s, %d entries, next update %s", crl.Number, crl.Issuer, crl.Entries, crl.NextUpdate.Format(time.RFC3339))
			return nil
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "`file` to write instead of standard output")
	cmd.Flags().BoolVar(&force, "force", false, "sign a new one even if none is due")
	return cmd
}

// activeIssuer is the issuer that signs for a purpose now.
func (f *fleet) activeIssuer(ctx context.Context, purpose inventory.Purpose) (inventory.Issuer, error) {
	var active inventory.Issuer
	err := f.store.Read(ctx, func(in inventory.Reader) error {
		for iss, err := range in.Issuers() {
			if err != nil {
				return err
			}
			if iss.Purpose == purpose && iss.State == inventory.IssuerActive && iss.Generation > active.Generation {
				active = iss
			}
		}
		return nil
	})
	if err == nil && active.Name == "" {
		err = fmt.Errorf("%w for %s certificates", enroll.ErrNoIssuer, purpose)
	}
	return active, err
}

func (f *fleet) newestIssuer(ctx context.Context, purpose inventory.Purpose) (string, error) {
	var name string
	err := f.store.Read(ctx, func(in inventory.Reader) error {
		var generation uint32
		for iss, err := range in.Issuers() {
			if err != nil {
				return err
			}
			if iss.Purpose == purpose && iss.State != inventory.IssuerPending && iss.Generation > generation {
				name, generation = iss.Name, iss.Generation
			}
		}
		return nil
	})
	if err == nil && name == "" {
		err = fmt.Errorf("%w for %s certificates", enroll.ErrNoIssuer, purpose)
	}
	return name, err
}

// maxPEM is the largest certificate or request that is read, in bytes.
const maxPEM = 64 << 10

// parsePurpose reads --purpose.
func parsePurpose(text string) (inventory.Purpose, error) {
	for _, p := range []inventory.Purpose{inventory.DevicePurpose, inventory.ServerPurpose} {
		if p.String() == text {
			return p, nil
		}
	}
	return 0, usageErrorf("--purpose %q: want device or server", text)
}

func newCARootCommand(a *app) *cobra.Command {
	cmd := newGroupCommand("root", "A new issuer from a root that is kept offline",
		newRootExportCommand(a), newRootSignCommand(a), newRootImportCommand(a))
	cmd.Long = `A root that is kept offline signs in three steps: "export" makes the key of a new
issuer and a request for its certificate, "sign" answers the request on the machine
that has the root, and "import" puts the certificate to use.`
	cmd.Example = `  imprint ca root export --purpose device --out device-2.csr
  imprint ca root sign device-2.csr --root /media/usb/root --purpose device --generation 2 --out device-2.pem
  imprint ca root import device-2.pem`
	return cmd
}

func newRootExportCommand(a *app) *cobra.Command {
	var purpose, out, algorithm, uri string
	cmd := &cobra.Command{
		Use:     "export",
		Short:   "Make the key of a new issuer and the request for its certificate",
		Example: `  imprint ca root export --purpose device --out device-2.csr`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			p, err := parsePurpose(purpose)
			if err != nil {
				return err
			}
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			file, err := createOut(out, 0o644) // before the issuer is recorded: it is asked for once
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, file.close()) }()
			rec, csr, err := f.RequestIssuer(cmd.Context(), actor(), p, func(name string) (enroll.KeyRef, error) {
				return f.issuerKey(cmd.Context(), name, ca.KeyAlgorithm(algorithm), uri)
			})
			if err != nil {
				return err
			}
			if err := file.finish(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})); err != nil {
				return err
			}
			return a.print(map[string]any{"issuer": rec.Name, "purpose": purpose, "generation": rec.Generation, "request": out}, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "%s asks for a certificate in %s; where the root is, run\n  imprint ca root sign %s --root DIR --purpose %s --generation %d --out %s.pem\n", rec.Name, out, filepath.Base(out), purpose, rec.Generation, rec.Name)
			})
		},
	}
	cmd.Flags().StringVar(&purpose, "purpose", "device", "what the issuer signs: device or server")
	cmd.Flags().StringVar(&out, "out", "", "`file` for the request, PEM (required)")
	cmd.Flags().StringVar(&algorithm, "key", "P-256", "`algorithm` of the new key")
	cmd.Flags().StringVar(&uri, "key-uri", "", "KMS `URI` of the new key, as pkcs11:... (default: a file in the fleet)")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// issuerKey makes the key of a new issuer: at uri, or in the fleet, encrypted under
// the passphrase of the keys that are there. A file that is there already was left
// by a command that died before it recorded the issuer.
func (f *fleet) issuerKey(ctx context.Context, name string, algorithm ca.KeyAlgorithm, uri string) (enroll.KeyRef, error) {
	if uri != "" {
		key, err := ca.CreateKey(ctx, f.keyURI(uri), algorithm, f.app.askPassphrase)
		return enroll.KeyRef{URI: uri, Signer: key}, err
	}
	uri = relativeKey + keysDir + "/" + name + ".key"
	known, err := f.knownPassphrase(ctx)
	if err != nil {
		return enroll.KeyRef{}, err
	}
	pass := func() ([]byte, error) { return bytes.Clone(known), nil }
	key, err := ca.CreateKey(ctx, f.keyURI(uri), algorithm, pass)
	if errors.Is(err, ca.ErrKeyExists) {
		key, err = ca.OpenKey(ctx, f.keyURI(uri), pass)
	}
	return enroll.KeyRef{URI: uri, Signer: key}, err
}

func newRootSignCommand(a *app) *cobra.Command {
	var purpose, out, rootPath string
	var generation uint32
	cmd := &cobra.Command{
		Use:   "sign REQUEST",
		Short: "Sign the request of a new issuer with the root",
		Long: `Sign takes the key, and nothing else, from a request of "imprint ca root export",
and signs a CA certificate for it. It needs the directory root/ that init has made,
and no fleet.`,
		Example: `  imprint ca root sign device-2.csr --root /media/usb/root --purpose device --generation 2 --out device-2.pem`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := parsePurpose(purpose)
			if err != nil {
				return err
			}
			der, err := a.signWithRoot(cmd.Context(), rootPath, args[0], p, generation)
			if err != nil {
				return err
			}
			if err := writeOut(out, ca.CertificatePEM(der), 0o644); err != nil {
				return err
			}
			return a.print(map[string]any{"purpose": purpose, "generation": generation, "certificate": out}, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "certificate in %s; put it to use with: imprint ca root import %s\n", out, filepath.Base(out))
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&rootPath, "root", "", "`directory` with the key and the certificate of the root (required)")
	flags.StringVar(&purpose, "purpose", "device", "what the issuer signs: device or server")
	flags.Uint32Var(&generation, "generation", 0, "`number` of the issuer, as export said (required)")
	flags.StringVar(&out, "out", "", "`file` for the certificate, PEM (required)")
	for _, name := range []string{"root", "generation", "out"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag is defined above
		}
	}
	return cmd
}

// newestRootIn names the newest root whose certificate is in a directory.
func newestRootIn(dir string) (string, error) {
	names, err := filepath.Glob(filepath.Join(dir, "root-*.pem"))
	if err != nil {
		return "", err
	}
	newest, generation := "", 0
	for _, path := range names {
		name := strings.TrimSuffix(filepath.Base(path), ".pem")
		if n, err := strconv.Atoi(strings.TrimPrefix(name, "root-")); err == nil && n > generation {
			newest, generation = name, n
		}
	}
	if newest == "" {
		return "", fmt.Errorf("%s: no certificate of a root, as root-1.pem: %w", dir, fs.ErrNotExist)
	}
	return newest, nil
}

func (a *app) signWithRoot(ctx context.Context, rootPath, request string, purpose inventory.Purpose, generation uint32) (_ []byte, err error) {
	text, err := a.readIn(request, maxPEM)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, &inventory.InvalidError{Field: "file", Value: request, Want: "a certification request in PEM"}
	}
	name, err := newestRootIn(rootPath)
	if err != nil {
		return nil, err
	}
	rootPEM, err := a.readIn(filepath.Join(rootPath, name+".pem"), maxPEM)
	if err != nil {
		return nil, err
	}
	certs, err := ca.ParseCertificatesPEM(rootPEM)
	if err != nil {
		return nil, err
	}
	key, err := ca.OpenKey(ctx, ca.KeyFileURI(filepath.Join(rootPath, name+".key")), a.askPassphrase)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, key.Close()) }()
	return enroll.SignIssuer(certs[0].Raw, key, block.Bytes, purpose, generation, a.now)
}

func newRootImportCommand(a *app) *cobra.Command {
	var standby bool
	cmd := &cobra.Command{
		Use:     "import CERTIFICATE",
		Short:   "Put the certificate of a new issuer to use",
		Example: `  imprint ca root import device-2.pem`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := a.readIn(args[0], maxPEM)
			if err != nil {
				return err
			}
			certs, err := ca.ParseCertificatesPEM(text)
			if err != nil || len(certs) != 1 {
				return &inventory.InvalidError{Field: "file", Value: args[0], Want: "one certificate in PEM"}
			}
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			if err := f.openPending(cmd.Context(), certs[0]); err != nil {
				return err
			}
			rec, err := f.InstallIssuer(cmd.Context(), actor(), certs[0].Raw, standby)
			if err != nil {
				return err
			}
			if _, err := f.publishCRL(cmd.Context(), rec.Name, false); err != nil {
				return err
			}
			return a.print(map[string]any{"issuer": rec.Name, "purpose": rec.Purpose, "generation": rec.Generation}, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "%s signs from now on; export to the brokers, so that they trust it\n", rec.Name)
			})
		},
	}
	cmd.Flags().BoolVar(&standby, "standby", false, "do not use it yet: imprint ca roll does")
	return cmd
}

// openPending proves that the key of the issuer that waits for a certificate opens.
// It is needed for the first CRL, when there is no way back.
func (f *fleet) openPending(ctx context.Context, cert *x509.Certificate) error {
	spki, err := ca.SPKIHash(cert.PublicKey)
	if err != nil {
		return err
	}
	uri := ""
	err = f.store.Read(ctx, func(in inventory.Reader) error {
		for iss, err := range in.Issuers() {
			if err != nil {
				return err
			}
			if iss.State == inventory.IssuerPending && iss.SPKI == spki {
				uri = iss.Key
			}
		}
		return nil
	})
	if err != nil || uri == "" {
		return err
	}
	key, err := ca.OpenKey(ctx, f.keyURI(uri), f.app.askPassphrase)
	if err != nil {
		return err
	}
	return key.Close()
}
