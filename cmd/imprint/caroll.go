package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
)

func newCARollCommand(a *app) *cobra.Command {
	var root, reason string
	var standby bool
	cmd := &cobra.Command{
		Use:   "roll PURPOSE",
		Short: "Let a new issuer take over, for devices or for servers",
		Long: `Roll makes the next issuer for devices or for servers under the root that there is,
lets every broker that imprint knows have its CRL, and only then issues under it. What
the one before has issued stays good. It needs the root's key; with --standby it stops
before the last step.

An issuer that stands by is taken by roll, without the root; and by imprint itself when
the CRL of the active one has more than 10,000 entries, which brokers pay for at every
handshake. So have one stand by when the root is kept offline.`,
		Example: `  imprint ca roll device --root /media/usb/root
  imprint ca roll device --root /media/usb/root --standby
  imprint ca roll device --reason "the CRL is long"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := parsePurpose(args[0])
			if err != nil {
				return err
			}
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			return a.rollIssuer(cmd.Context(), f, p, root, reason, standby)
		},
	}
	cmd.Flags().StringVar(&root, "root", "", "`directory` with the key and the certificate of the root (default: root/ in the fleet)")
	cmd.Flags().StringVar(&reason, "reason", "", "`text` for the audit log")
	cmd.Flags().BoolVar(&standby, "standby", false, "have it ready, and do not use it yet")
	return cmd
}

func (a *app) rollIssuer(ctx context.Context, f *fleet, p inventory.Purpose, root, reason string, standby bool) error {
	from, err := f.revision(ctx)
	if err != nil {
		return err
	}
	rec, err := f.standbyIssuer(ctx, p)
	if err != nil {
		return err
	}
	if rec.Name == "" {
		if rec, err = f.makeIssuer(ctx, p, root); err != nil {
			return err
		}
	}
	if _, err := f.publishCRL(ctx, rec.Name, false); err != nil {
		return err
	}
	names, err := f.nodeNames()
	if err != nil {
		return err
	}
	if len(names) > 0 {
		if _, err := f.enforce(ctx, from, names); err != nil {
			return fmt.Errorf("%s stands by and is not used: %w", rec.Name, err)
		}
	}
	if !standby {
		if rec, err = f.ActivateIssuer(ctx, actor(), reason, rec.Name); err != nil {
			return err
		}
	}
	return a.print(map[string]any{"issuer": rec.Name, "state": rec.State, "purpose": rec.Purpose, "generation": rec.Generation}, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "%s is %s, until %s\n", rec.Name, rec.State, day(rec.NotAfter))
		if len(names) == 0 {
			_, _ = fmt.Fprintln(w, `brokers need its CRL before they let in what it issues: run "imprint export" now, and reload them`)
		}
	})
}

// standbyIssuer returns the issuer that stands by, or one without a name.
func (f *fleet) standbyIssuer(ctx context.Context, p inventory.Purpose) (inventory.Issuer, error) {
	v, err := f.CurrentRollover(ctx)
	if err == nil && !v.Over() {
		return inventory.Issuer{}, fmt.Errorf("the root is being replaced, and its issuers with it: %w", enroll.ErrDenied)
	}
	if err != nil && !errors.Is(err, enroll.ErrNoRollover) {
		return inventory.Issuer{}, err
	}
	active, err := f.activeIssuer(ctx, p)
	if err != nil {
		return inventory.Issuer{}, err
	}
	all, err := f.Issuers(ctx)
	for i := range all {
		if all[i].Purpose == p && all[i].State == inventory.IssuerStandby && all[i].Generation > active.Generation {
			return all[i], err
		}
	}
	return inventory.Issuer{}, err
}

// makeIssuer makes the next issuer in one step, with the root at hand.
func (f *fleet) makeIssuer(ctx context.Context, p inventory.Purpose, root string) (inventory.Issuer, error) {
	if root == "" {
		root = filepath.Join(f.dir.Path(), rootDir)
	}
	name, err := newestRootIn(root)
	if err != nil {
		return inventory.Issuer{}, err
	}
	text, err := readFile(filepath.Join(root, name+".pem"), maxPEM)
	if err != nil {
		return inventory.Issuer{}, err
	}
	certs, err := ca.ParseCertificatesPEM(text)
	if err != nil {
		return inventory.Issuer{}, err
	}
	active, err := f.activeIssuer(ctx, inventory.RootPurpose)
	if err != nil {
		return inventory.Issuer{}, err
	}
	if !bytes.Equal(active.Certificate, certs[0].Raw) {
		return inventory.Issuer{}, fmt.Errorf("%s in %s is not the root of this fleet: %w", name, root, enroll.ErrDenied)
	}
	key, err := ca.OpenKey(ctx, ca.KeyFileURI(filepath.Join(root, name+".key")), f.app.askPassphrase)
	if err != nil {
		return inventory.Issuer{}, err
	}
	defer func() { _ = key.Close() }()
	rec, csr, err := f.RequestIssuer(ctx, actor(), p, func(name string) (enroll.KeyRef, error) { return f.issuerKey(ctx, name, ca.P256, "") })
	if err != nil {
		return rec, err
	}
	cert, err := x509.ParseCertificate(certs[0].Raw)
	if err != nil {
		return rec, err
	}
	der, err := enroll.SignIssuer(cert.Raw, key, csr, p, rec.Generation, f.app.now)
	if err != nil {
		return rec, err
	}
	return f.InstallIssuer(ctx, actor(), der, true)
}

func newCARetireCommand(a *app) *cobra.Command {
	var reason string
	var force, dryRun bool
	cmd := &cobra.Command{
		Use:   "retire ISSUER",
		Short: "End an issuer, and every certificate that it has issued",
		Long: `Retire recalls all certificates of an issuer at once: its key was stolen, or a whole lot
is bad. Brokers refuse them from then on, also where only the root is configured, because
they have no CRL of that issuer any more. Another issuer has to be active (imprint ca
roll); devices get new certificates by "imprint rotate", with a password or a token.

If devices have no other way in they are named, and nothing is done (exit code 77);
--dry-run says so in any case, and --force goes on.`,
		Example: `  imprint ca retire device-1 --dry-run
  imprint ca retire device-1 --reason "key found on a backup tape" --force`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !dryRun && reason == "" {
				return usageErrorf("--reason is needed: devices may be lost")
			}
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			return a.retireIssuer(cmd.Context(), f, args[0], reason, force, dryRun)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`text` for the audit log")
	cmd.Flags().BoolVar(&force, "force", false, "even if devices are stranded")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say which devices would be stranded and change nothing")
	return cmd
}

func (a *app) retireIssuer(ctx context.Context, f *fleet, name, reason string, force, dryRun bool) error {
	if dryRun {
		ids, n, err := f.OnlyUnder(ctx, name)
		if err != nil {
			return err
		}
		return a.print(map[string]any{"issuer": name, "stranded": n, "devices": append([]inventory.DeviceID{}, ids...)}, func(w io.Writer) {
			_, _ = fmt.Fprintf(w, "%d devices have no way in but a certificate of %s\n", n, name)
			for _, id := range ids {
				_, _ = fmt.Fprintf(w, "  %s\n", id)
			}
		})
	}
	from, err := f.revision(ctx)
	if err != nil {
		return err
	}
	n, err := f.RetireIssuer(ctx, actor(), reason, name, force)
	if err != nil {
		return err
	}
	r := turnResult{verb: "retired", changed: 1}
	names, err := f.nodeNames()
	if err != nil {
		return err
	}
	if len(names) > 0 {
		r.receipts, err = f.enforce(ctx, from, names)
	}
	if n > 0 {
		a.warn(fmt.Sprintf("%d devices have no way in any more", n))
	}
	return errors.Join(a.printTurn(r, len(names) > 0), err)
}
