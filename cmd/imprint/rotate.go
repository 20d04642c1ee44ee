package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/campaign"
	"github.com/imprint-iot/imprint/inventory"
)

func newRotateCommand(a *app) *cobra.Command {
	cmd := newGroupCommand("rotate", "Replace certificates and passwords of many devices, in waves",
		newRotateStartCommand(a), newRotateStatusCommand(a), newRotateListCommand(a), newRotateAdvanceCommand(a), newRotateBundlesCommand(a), newRotateSeenCommand(a),
		newRotateSetCommand(a, "pause", campaign.Paused, "Tell nobody anything for now"),
		newRotateSetCommand(a, "resume", campaign.Running, "Go on after a pause"),
		newRotateSetCommand(a, "abort", campaign.Aborted, "Stop for good; what was issued stays"),
		newRotateEndCommand(a))
	cmd.Long = `A rotation gives devices new credentials beside those that they have. The old ones of
a device end when it is known to use the new ones: its agent has said so, or somebody
has seen it; never by time alone. So no device is left without a way in.

A few devices go first (the canaries); "advance" releases the next wave, and refuses to
while too few of the last one are done. Devices with an agent learn of their turn from
"imprint serve" within the hour; for the others "rotate bundles" makes new bundles.`
	cmd.Example = `  imprint rotate start spring --group hall-2 --certificates --dry-run
  imprint rotate start spring --group hall-2 --certificates --canary 5 --wave 20
  imprint rotate status spring
  imprint rotate advance spring`
	return cmd
}

// book returns the campaigns of the fleet.
func (f *fleet) book() *campaign.Book { return campaign.NewBook(f.Registrar, f.store, f.app.now) }

// orders is what a server tells devices of the campaigns.
func orders(f *fleet) func(context.Context, inventory.DeviceID) (api.Orders, error) {
	book := f.book()
	return func(ctx context.Context, id inventory.DeviceID) (api.Orders, error) {
		o, err := book.OrdersFor(ctx, id)
		return api.Orders{Renew: o.Campaign != "", Password: o.Password, Rotation: o.Campaign}, err
	}
}

type rotateOptions struct {
	campaign.Campaign
	canary, wave, need  float64 // percent
	expiring, passwords ca.Duration
	file, reason        string
	dryRun              bool
}

func newRotateStartCommand(a *app) *cobra.Command {
	var o rotateOptions
	cmd := &cobra.Command{
		Use:   "start NAME",
		Short: "Begin a rotation",
		Long: `Start begins a rotation of certificates, passwords or both, for the devices that match
everything that is said. With --dry-run it only counts them.`,
		Example: `  imprint rotate start spring --profile sensor --expiring-within 90d --certificates
  imprint rotate start leak --passwords --password-older-than 365d --canary 1 --rate 100`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Name = args[0]
			return a.startRotation(cmd.Context(), o)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.Certificate, "certificates", false, "new certificates")
	flags.BoolVar(&o.Password, "passwords", false, "new passwords")
	flags.StringVar(&o.Scope.Profile, "profile", "", "only devices of this `profile`")
	flags.StringVar(&o.Scope.Group, "group", "", "only devices of this `group`")
	flags.StringToStringVar(&o.Scope.Labels, "label", nil, "only devices with `NAME=TEXT`, may be repeated")
	flags.StringVar(&o.Scope.Issuer, "issuer", "", "only devices with a certificate of this `issuer`")
	flags.StringVar(&o.file, "file", "", "only the devices of this `file`, one id on each line, at most 1,000")
	flags.TextVar(&o.expiring, "expiring-within", ca.Duration(0), "only certificates that end within this `time`, as 90d")
	flags.TextVar(&o.passwords, "password-older-than", ca.Duration(0), "only passwords older than this `time`, as 365d")
	flags.Float64Var(&o.canary, "canary", 5, "`percent` of the devices that go first")
	flags.Float64Var(&o.wave, "wave", 25, "`percent` of the devices that each step adds")
	flags.Float64Var(&o.need, "need", 95, "`percent` of the released devices that have to be done before the next wave")
	flags.IntVar(&o.Rate, "rate", 0, "how `many` devices are told in a minute; 0 means any number")
	flags.StringVar(&o.reason, "reason", "", "`text` for the audit log")
	flags.BoolVar(&o.dryRun, "dry-run", false, "count the devices and change nothing")
	return cmd
}

func (a *app) startRotation(ctx context.Context, o rotateOptions) error {
	c := o.Campaign
	c.Canary, c.Wave, c.Need = o.canary/100, o.wave/100, o.need/100
	now := inventory.UTC(a.now())
	if o.expiring != 0 {
		c.Scope.ExpiringBefore = now.Add(time.Duration(o.expiring))
	}
	if o.passwords != 0 {
		c.Scope.PasswordBefore = now.Add(-time.Duration(o.passwords))
	}
	if o.file != "" {
		text, err := a.readIn(o.file, maxIDFile)
		if err != nil {
			return err
		}
		if c.Scope.Devices, err = readIDs(o.file, text); err != nil {
			return err
		}
	}
	if o.dryRun {
		return a.planRotation(ctx, c)
	}
	f, err := a.openFleet(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	started, err := f.book().Start(ctx, actor(), o.reason, c)
	if err != nil {
		return err
	}
	return a.printRotation(ctx, f, started)
}

// planRotation says what a rotation would do.
func (a *app) planRotation(ctx context.Context, c campaign.Campaign) error {
	f, err := a.readFleet(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	plan, err := f.book().Plan(ctx, c)
	if err != nil {
		return err
	}
	return a.print(plan, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "%d devices: %d certificates and %d passwords would be replaced\n", plan.Devices, plan.Certificates, plan.Passwords)
		for i, n := range plan.Waves {
			name := fmt.Sprintf("wave %d", i)
			if i == 0 {
				name = "canaries"
			}
			_, _ = fmt.Fprintf(w, "  %-9s %d\n", name, n)
		}
		_, _ = fmt.Fprintln(w, "nothing has been changed")
	})
}

type rotationView struct {
	*campaign.Campaign
	Standing campaign.Standing `json:"standing"`
}

func (a *app) printRotation(ctx context.Context, f *fleet, c *campaign.Campaign) error {
	s, err := f.book().Standing(ctx, c)
	if err != nil {
		return err
	}
	return a.print(rotationView{c, s}, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "%s: %s, %.0f %% released\n", c.Name, c.State, 100*c.Released)
		_, _ = fmt.Fprintf(w, "  %d devices, %d of them done\n", s.Devices, s.Done)
		_, _ = fmt.Fprintf(w, "  %d released: %d have nothing new yet, %d have and were not seen to use it\n", s.Released, s.Waiting, s.Issued)
		if s.Faults > 0 {
			_, _ = fmt.Fprintf(w, "  %d have reported that they cannot work with what they got: imprint audit list\n", s.Faults)
		}
	})
}

func newRotateStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "status NAME",
		Short:   "Show how far a rotation is, and who is late",
		Example: `  imprint rotate status spring --output json`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			c, err := f.book().Get(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.printRotation(cmd.Context(), f, c)
		},
	}
}

func newRotateListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the rotations",
		Example: `  imprint rotate list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			list, err := f.book().List(cmd.Context())
			if err != nil {
				return err
			}
			return a.printRows([]string{"NAME", "STATE", "BEGAN", "RELEASED"}, func(emit func(any, ...string) error) error {
				for _, c := range list {
					if err := emit(c, c.Name, string(c.State), when(c.Began), fmt.Sprintf("%.0f %%", 100*c.Released)); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

// newRotateVerb is a command that takes a rotation to another state.
func newRotateVerb(a *app, cmd *cobra.Command, do func(ctx context.Context, f *fleet, reason, name string) (*campaign.Campaign, error)) *cobra.Command {
	var reason string
	cmd.Args = cobra.ExactArgs(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := a.openFleet(cmd.Context())
		if err != nil {
			return err
		}
		defer f.Close()
		c, err := do(cmd.Context(), f, reason, args[0])
		if err != nil {
			return err
		}
		return a.printRotation(cmd.Context(), f, c)
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`text` for the audit log")
	return cmd
}

func newRotateSetCommand(a *app, verb string, state campaign.State, short string) *cobra.Command {
	return newRotateVerb(a, &cobra.Command{Use: verb + " NAME", Short: short, Example: "  imprint rotate " + verb + " spring"},
		func(ctx context.Context, f *fleet, reason, name string) (*campaign.Campaign, error) {
			return f.book().Set(ctx, actor(), reason, name, state)
		})
}

func newRotateAdvanceCommand(a *app) *cobra.Command {
	var force bool
	cmd := newRotateVerb(a, &cobra.Command{
		Use:   "advance NAME",
		Short: "Release the next wave, if the last one is done",
		Long: `Advance releases the next wave. It refuses while too few of the released devices are
done, or any has reported that it cannot work with what it got (exit code 77).`,
		Example: `  imprint rotate advance spring`,
	}, func(ctx context.Context, f *fleet, reason, name string) (*campaign.Campaign, error) {
		if force && reason == "" {
			return nil, usageErrorf("--force wants a --reason")
		}
		return f.book().Advance(ctx, actor(), reason, name, force)
	})
	cmd.Flags().BoolVar(&force, "force", false, "even if the last wave is not done")
	return cmd
}

func newRotateEndCommand(a *app) *cobra.Command {
	var endOld bool
	cmd := newRotateVerb(a, &cobra.Command{
		Use:   "end NAME",
		Short: "Close a rotation, and decide on the devices that never came",
		Long: `End closes a rotation. Devices that have new credentials and were never seen to use
them keep both, unless --end-old is given: then their old ones end. Devices that never
got anything new keep what they have.`,
		Example: `  imprint rotate end spring --end-old --reason "two months are enough"`,
	}, func(ctx context.Context, f *fleet, reason, name string) (*campaign.Campaign, error) {
		if endOld && reason == "" {
			return nil, usageErrorf("--end-old wants a --reason: devices may be lost")
		}
		c, n, err := f.book().End(ctx, actor(), reason, name, endOld)
		if err == nil && endOld {
			a.say("%d old credentials have ended", n)
		}
		return c, err
	})
	cmd.Flags().BoolVar(&endOld, "end-old", false, "end the old credentials of devices that were not seen to use the new ones")
	return cmd
}

func newRotateBundlesCommand(a *app) *cobra.Command {
	var o bundleOptions
	cmd := &cobra.Command{
		Use:   "bundles NAME",
		Short: "Make new bundles for the released devices that have no agent",
		Long: `Bundles makes new keys, certificates and passwords for those released devices that
have nothing new yet, and writes them as bundles. What the devices have stays good,
until "imprint rotate seen" says that they use the new ones. Given again, it goes on
with those that have still nothing new.`,
		Example: `  imprint rotate bundles spring --out new-bundles`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rotateBundles(cmd.Context(), args[0], o)
		},
	}
	o.addFlags(cmd)
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func (a *app) rotateBundles(ctx context.Context, name string, o bundleOptions) (err error) {
	destination, err := o.destination(a)
	if err != nil {
		return err
	}
	f, err := a.openFleet(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := f.book().Get(ctx, name)
	if err != nil {
		return err
	}
	ids, err := f.book().Turn(ctx, c)
	if err != nil {
		return err
	}
	defer tidyOut(o.dir())()
	out, err := f.openOutbox(ctx, o, destination)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	update, finish := a.progress("rotating")
	for i, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		q := enroll.Rotation{Actor: actor(), Reason: "rotation " + name, Device: id, Certificate: c.Certificate, Password: c.Password, Out: out}
		if _, err := f.Rotate(ctx, q); err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
		update(i+1, len(ids))
	}
	finish()
	if err := out.Finish(); err != nil {
		return err
	}
	return a.print(map[string]int{"bundles": len(ids)}, func(w io.Writer) { _, _ = fmt.Fprintf(w, "%d bundles in %s\n", len(ids), o.path) })
}

func newRotateSeenCommand(a *app) *cobra.Command {
	var s selection
	var reason string
	cmd := &cobra.Command{
		Use:   "seen [ID...]",
		Short: "Say that devices use their new credentials, and end the old ones",
		Long: `Seen is for devices without an agent, once it is known that they work with their new
bundle, as from the broker's log. Their older credentials end.`,
		Example: `  imprint rotate seen dev-17 dev-18 --reason "in the broker's log since Monday"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			ids, err := s.devices(cmd.Context(), f, args)
			if err != nil {
				return err
			}
			n, err := f.Seen(cmd.Context(), actor(), reason, ids...)
			if err != nil {
				return err
			}
			return a.print(map[string]int{"ended": n}, func(w io.Writer) { _, _ = fmt.Fprintf(w, "%d old credentials have ended\n", n) })
		},
	}
	s.addFlags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "`text` for the audit log")
	return cmd
}
