package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/delivery"
	"github.com/imprint-iot/imprint/inventory"
)

func newRolloverCommand(a *app) *cobra.Command {
	cmd := newGroupCommand("rollover", "Replace the root without losing a device",
		newRolloverPlanCommand(a), newRolloverStartCommand(a), newRolloverStatusCommand(a), newRolloverAdvanceCommand(a), newRolloverAbortCommand(a), newRolloverConfirmCommand(a))
	cmd.Long = `A root is replaced in phases, and every broker and device knows what it needs to know
before anything depends on it:

  trust    both roots are trusted everywhere; all is still issued under the old one
  issue    everything new is issued under the new root; brokers show certificates
           under it, and the link NewWithOld for those who do not know it yet
  done     the old root is trusted no more

"advance" goes to the next phase and refuses to if devices would be stranded, and
names them. "abort" goes back, as long as it is not done. Which roots a device trusts
is known from its bundle, from what its agent reports, or from "rollover confirm".`
	cmd.Example = `  imprint rollover plan
  imprint rollover start --root /media/usb/root
  imprint rollover status
  imprint rollover advance
  imprint rollover abort --reason "the new HSM is late"`
	return cmd
}

// rolloverView is a rollover as the command line shows it.
type rolloverView struct {
	Generation uint32               `json:"generation"`
	Phase      enroll.RolloverPhase `json:"phase"`
	Began      string               `json:"began"`
	Moved      string               `json:"moved"`
	Old        []string             `json:"old"`
	New        []string             `json:"new"`
	Standing   enroll.Standing      `json:"standing"`
	Next       enroll.RolloverPhase `json:"next,omitempty"`
	Stranded   int                  `json:"stranded"` // by the next phase
	Devices    []inventory.DeviceID `json:"strandedDevices"`
}

func (f *fleet) rollover(ctx context.Context, v *enroll.Rollover) (rolloverView, error) {
	standing, stranded, err := f.StandingOf(ctx, v)
	return rolloverView{
		Generation: v.Generation, Phase: v.Phase, Began: when(v.Began), Moved: when(v.Moved), Old: v.Old, New: v.New,
		Standing: standing, Next: stranded.Phase, Stranded: stranded.Count, Devices: append([]inventory.DeviceID{}, stranded.Devices...),
	}, err
}

func (a *app) printRollover(v rolloverView) error {
	return a.print(v, func(w io.Writer) {
		s := v.Standing
		_, _ = fmt.Fprintf(w, "root %d takes over from %s: phase %s since %s\n", v.Generation, strings.Join(v.Old, ", "), v.Phase, v.Moved)
		_, _ = fmt.Fprintf(w, "  %d devices: %d are known to trust the new root, %d have a certificate under it, %d have used it, %d have a password only\n", s.Devices, s.Trust, s.Issued, s.Seen, s.Without)
		if v.Next == "" {
			return
		}
		if v.Stranded == 0 {
			_, _ = fmt.Fprintf(w, "  ready for phase %s: imprint rollover advance\n", v.Next)
			return
		}
		_, _ = fmt.Fprintf(w, "  phase %s would strand %d devices:", v.Next, v.Stranded)
		const shown = 20
		for i, id := range v.Devices {
			if i == shown {
				_, _ = fmt.Fprint(w, " ...")
				break
			}
			_, _ = fmt.Fprintf(w, " %s", id)
		}
		_, _ = fmt.Fprintln(w)
	})
}

func newRolloverStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show how far the replacement of the root is, and who is not ready",
		Example: `  imprint rollover status --output json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			v, err := f.CurrentRollover(cmd.Context())
			if err != nil {
				return err
			}
			view, err := f.rollover(cmd.Context(), v)
			if err != nil {
				return err
			}
			return a.printRollover(view)
		},
	}
}

func newRolloverPlanCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "plan",
		Short: "Say what replacing the root would do, and for how many devices",
		Long: `Plan changes nothing. It lists what would be made and retired in each phase, and
counts the devices that have to learn of the new root and to renew.`,
		Example: `  imprint rollover plan`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			p, err := f.PlanRollover(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(p, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "start:   makes %s and the links between the roots; brokers and bundles trust both\n", strings.Join(p.New, ", "))
				_, _ = fmt.Fprintf(w, "advance: when %d devices are known to trust %s; brokers get new certificates, devices get theirs under it when they renew\n", p.Devices, p.New[0])
				_, _ = fmt.Fprintf(w, "advance: when %d devices have been seen with a new certificate; %s are trusted no more\n", p.Certificates, strings.Join(p.Old, ", "))
				_, _ = fmt.Fprintf(w, "the old root ends on %s by itself\n", day(p.OldEnds))
			})
		},
	}
}

func newRolloverStartCommand(a *app) *cobra.Command {
	var root, reason, algorithm string
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Make the next root, and let brokers and devices be told of it",
		Long: `Start makes the key and certificate of the next root beside those of the old one,
the issuers under it, and the link certificates. For this it needs the old root's key.
Nothing is issued under the new root yet.

Then every broker that imprint knows is brought up to date, so that it trusts both.
Devices with an agent learn of the new root by themselves; the others need a new
bundle, and "imprint rollover confirm" when they have it.`,
		Example: `  imprint rollover start --root /media/usb/root --reason "the root is ten years old"`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			from, err := f.revision(cmd.Context())
			if err != nil {
				return err
			}
			v, err := f.startRollover(cmd.Context(), root, reason, ca.KeyAlgorithm(algorithm))
			if err != nil {
				return err
			}
			return a.afterRollover(cmd.Context(), f, from, v)
		},
	}
	cmd.Flags().StringVar(&root, "root", "", "`directory` with the old root's key and certificate (default: root/ in the fleet)")
	cmd.Flags().StringVar(&reason, "reason", "", "`text` for the audit log")
	cmd.Flags().StringVar(&algorithm, "key", "P-256", "`algorithm` of the new keys")
	return cmd
}

// startRollover makes the keys: that of the root beside the old one, those of the
// issuers in the fleet.
func (f *fleet) startRollover(ctx context.Context, root, reason string, algorithm ca.KeyAlgorithm) (*enroll.Rollover, error) {
	old, err := f.activeIssuer(ctx, inventory.RootPurpose)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(f.dir.Path(), rootDir)
	uri := relativeKey + rootDir + "/"
	if root != "" {
		if dir, err = filepath.Abs(root); err != nil {
			return nil, err
		}
		uri = ca.KeyFileURI(dir) + "/"
	}
	oldKey, err := ca.OpenKey(ctx, ca.KeyFileURI(filepath.Join(dir, old.Name+".key")), f.app.askPassphrase)
	if err != nil {
		return nil, err
	}
	defer func() { _ = oldKey.Close() }()
	var newRoot string
	v, err := f.StartRollover(ctx, actor(), reason, func(rootName, device, server string) (enroll.RolloverKeys, error) {
		keys := enroll.RolloverKeys{Old: oldKey}
		newRoot = rootName
		var err error
		if keys.Root, err = f.keyAt(ctx, uri+rootName+".key", algorithm); err != nil {
			return keys, err
		}
		if keys.Device, err = f.issuerKey(ctx, device, algorithm, ""); err != nil {
			return keys, err
		}
		keys.ServerKey, err = f.issuerKey(ctx, server, algorithm, "")
		return keys, err
	})
	if err != nil {
		return nil, err
	}
	cert, err := f.issuerPEM(ctx, newRoot)
	if err != nil {
		return nil, err
	}
	for _, name := range v.New {
		if _, err := f.publishCRL(ctx, name, false); err != nil {
			return nil, err
		}
	}
	return v, writeOut(filepath.Join(dir, newRoot+".pem"), cert, 0o644)
}

// keyAt makes a key under the passphrase of the keys that are there. A file that is
// there already was left by a command that died.
func (f *fleet) keyAt(ctx context.Context, uri string, algorithm ca.KeyAlgorithm) (enroll.KeyRef, error) {
	key, err := ca.CreateKey(ctx, f.keyURI(uri), algorithm, f.app.askPassphrase)
	if errors.Is(err, ca.ErrKeyExists) {
		key, err = ca.OpenKey(ctx, f.keyURI(uri), f.app.askPassphrase)
	}
	return enroll.KeyRef{URI: uri, Signer: key}, err
}

func (f *fleet) issuerPEM(ctx context.Context, name string) ([]byte, error) {
	all, err := f.Issuers(ctx)
	for i := range all {
		if all[i].Name == name {
			return ca.CertificatePEM(all[i].Certificate), err
		}
	}
	return nil, errors.Join(err, fmt.Errorf("issuer %s: %w", name, inventory.ErrNotFound))
}

// afterRollover brings the brokers to the new phase and shows it.
func (a *app) afterRollover(ctx context.Context, f *fleet, from uint64, v *enroll.Rollover) error {
	names, err := f.nodeNames()
	if err != nil {
		return err
	}
	var receipts []delivery.Receipt
	var behind error
	if len(names) > 0 {
		receipts, behind = f.enforce(ctx, from, names)
	} else {
		a.say(`brokers learn it from "imprint export"`)
	}
	view, err := f.rollover(ctx, v)
	if err != nil {
		return errors.Join(err, behind)
	}
	if a.output != outputJSON && len(receipts) > 0 {
		if err := a.printReceipts(receipts); err != nil {
			return err
		}
	}
	return errors.Join(a.printRollover(view), behind)
}

func newRolloverAdvanceCommand(a *app) *cobra.Command {
	var force bool
	var reason string
	cmd := &cobra.Command{
		Use:   "advance",
		Short: "Go to the next phase, if no device is stranded by it",
		Long: `Advance goes to the next phase and brings every broker to it. If devices would be
stranded it refuses, names them, and changes nothing (exit code 77). --force, with a
reason, goes on without them; the audit log says how many they were.`,
		Example: `  imprint rollover advance
  imprint rollover advance --force --reason "the last three are scrapped"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if force && reason == "" {
				return usageErrorf("--force wants a --reason: devices may be lost")
			}
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			from, err := f.revision(cmd.Context())
			if err != nil {
				return err
			}
			v, err := f.AdvanceRollover(cmd.Context(), actor(), reason, force)
			if err != nil {
				return err
			}
			return a.afterRollover(cmd.Context(), f, from, v)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "even if devices are stranded")
	cmd.Flags().StringVar(&reason, "reason", "", "`text` for the audit log")
	return cmd
}

func newRolloverAbortCommand(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "abort",
		Short: "Go back to the old root",
		Long: `Abort goes back to the old root. If devices have certificates under the new root only,
both stay trusted until those have renewed under the old one (phase back); then
"imprint rollover advance" ends it.`,
		Example: `  imprint rollover abort --reason "the new HSM is late"`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			from, err := f.revision(cmd.Context())
			if err != nil {
				return err
			}
			v, err := f.AbortRollover(cmd.Context(), actor(), reason)
			if err != nil {
				return err
			}
			return a.afterRollover(cmd.Context(), f, from, v)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`text` for the audit log")
	return cmd
}

func newRolloverConfirmCommand(a *app) *cobra.Command {
	var reason string
	var s selection
	cmd := &cobra.Command{
		Use:   "confirm [ID...]",
		Short: "Note that devices trust the new root",
		Long: `Confirm is for devices without an agent, once they have been given a bundle with the
new root: by an update of their firmware, or by hand.`,
		Example: `  imprint rollover confirm dev-17 dev-18 --reason "firmware 4.2"
  imprint rollover confirm --group hall-2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			v, err := f.CurrentRollover(cmd.Context())
			if err != nil {
				return err
			}
			ids, err := s.devices(cmd.Context(), f, args)
			if err != nil {
				return err
			}
			root, err := f.fingerprintOf(cmd.Context(), v.New[0])
			if err != nil {
				return err
			}
			n, err := f.ConfirmTrust(cmd.Context(), actor(), reason, []inventory.Fingerprint{root}, ids...)
			if err != nil {
				return err
			}
			return a.print(map[string]int{"confirmed": n}, func(w io.Writer) { _, _ = fmt.Fprintf(w, "%d confirmed\n", n) })
		},
	}
	s.addFlags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "`text` for the audit log")
	return cmd
}

func (f *fleet) fingerprintOf(ctx context.Context, issuer string) (inventory.Fingerprint, error) {
	all, err := f.Issuers(ctx)
	if err != nil {
		return inventory.Fingerprint{}, err
	}
	for i := range all {
		if all[i].Name == issuer {
			cert := inventory.Certificate{DER: all[i].Certificate}
			return cert.Fingerprint(), nil
		}
	}
	return inventory.Fingerprint{}, fmt.Errorf("issuer %s: %w", issuer, inventory.ErrNotFound)
}
