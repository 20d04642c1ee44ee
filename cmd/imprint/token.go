package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
)

func newTokenCommand(a *app) *cobra.Command {
	return newGroupCommand("token", "Tokens that let devices enroll, and people administer, over the network",
		newTokenCreateCommand(a), newTokenListCommand(a), newTokenShowCommand(a), newTokenRevokeCommand(a))
}

// tokenView is a token as the command line shows it.
type tokenView struct {
	ID        inventory.TokenID    `json:"id"`
	Token     string               `json:"token,omitempty"` // once, when it is made
	State     string               `json:"state"`
	Role      inventory.Role       `json:"role"`
	Name      string               `json:"name"`
	Limit     uint32               `json:"limit"`
	Uses      uint32               `json:"uses"`
	Devices   []inventory.DeviceID `json:"devices,omitempty"`
	Prefix    string               `json:"prefix,omitempty"`
	Profile   string               `json:"profile,omitempty"`
	Group     string               `json:"group,omitempty"`
	Station   inventory.DeviceID   `json:"station,omitempty"`
	Networks  []netip.Prefix       `json:"networks,omitempty"`
	PerMinute uint32               `json:"perMinute,omitempty"`
	Approve   bool                 `json:"approve,omitempty"`
	Replace   bool                 `json:"replace,omitempty"`
	NotBefore time.Time            `json:"notBefore"`
	Expires   time.Time            `json:"expires"`
	CreatedBy string               `json:"createdBy"`
	Enrolled  []inventory.DeviceID `json:"enrolled,omitempty"`
}

func (a *app) viewToken(t inventory.Token) tokenView {
	v := tokenView{
		ID: t.ID(), State: "good", Role: t.Role, Name: t.Name, Limit: t.Limit, Uses: t.Uses, Devices: t.Devices, Prefix: t.Prefix, Profile: t.Profile,
		Group: t.Group, Station: t.Station, Networks: t.Networks, PerMinute: t.PerMinute, Approve: t.Approve, Replace: t.Replace,
		NotBefore: t.NotBefore, Expires: t.Expires, CreatedBy: t.CreatedBy,
	}
	switch now := a.now(); {
	case !t.RevokedAt.IsZero():
		v.State = "revoked"
	case t.Spent():
		v.State = "spent"
	case now.After(t.Expires):
		v.State = "expired"
	case now.Before(t.NotBefore):
		v.State = "waiting"
	}
	return v
}

type tokenOptions struct {
	role, name, prefix, profile, group, station string
	devices, networks                           []string
	limit, perMinute                            uint32
	expires                                     string
	approve, replace                            bool
	reason, out                                 string
}

func newTokenCreateCommand(a *app) *cobra.Command {
	var o tokenOptions
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token, and show it once",
		Long: `Create makes a token. It is shown once: the inventory keeps its hash.

A token of role device or station buys enrollments, as many as --limit says. It is
bound to what the flags name: devices, a prefix of IDs, a profile, a network, the
certificate of a station. With --profile it also registers devices that are not
known yet. The other roles are for brokers and people.`,
		Example: `  imprint token create --device dev-17
  imprint token create --role station --profile sensor --prefix acme- --limit 500 --expires 8h --network 10.1.0.0/16
  imprint token create --role operator --name "night shift" --expires 12h --out token`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := o.token(a.now())
			if err != nil {
				return err
			}
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			return a.createToken(cmd.Context(), f, t, o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.role, "role", "device", "what it is for: device, station, broker, operator, auditor or admin")
	flags.StringSliceVar(&o.devices, "device", nil, "`ID` of a device that it enrolls, may be repeated")
	flags.StringVar(&o.prefix, "prefix", "", "what the `ID` of a device has to start with")
	flags.StringVar(&o.profile, "profile", "", "`name` of the profile that a device has to have, or gets if it is not known yet")
	flags.StringVar(&o.group, "group", "", "`name` of the group of devices that are not known yet")
	flags.StringVar(&o.station, "station", "", "`ID` of the device whose certificate has to be shown with it")
	flags.StringSliceVar(&o.networks, "network", nil, "where it may be used from, as 10.1.0.0/16, may be repeated")
	flags.Uint32Var(&o.limit, "limit", 0, "how many enrollments it buys (default 1, or one for each --device)")
	flags.Uint32Var(&o.perMinute, "per-minute", 0, "how many of them in a minute")
	flags.StringVar(&o.expires, "expires", "24h", "how `long` it is good, as 8h or 30d")
	flags.BoolVar(&o.approve, "approve", false, "an operator has to approve each enrollment")
	flags.BoolVar(&o.replace, "replace", false, "a device may replace a certificate that it has")
	flags.StringVar(&o.name, "name", "", "`text` that says what it is for")
	flags.StringVar(&o.reason, "reason", "", "`text` for the audit log")
	flags.StringVar(&o.out, "out", "", "`file` for the token, instead of standard output")
	return cmd
}

// token is what the flags say.
func (o *tokenOptions) token(now time.Time) (inventory.Token, error) {
	t := inventory.Token{
		Name: o.name, Limit: o.limit, Prefix: o.prefix, Profile: o.profile, Group: o.group, Station: inventory.DeviceID(o.station),
		PerMinute: o.perMinute, Approve: o.approve, Replace: o.replace,
	}
	var err error
	if t.Role, err = inventory.ParseRole(o.role); err != nil {
		return t, err
	}
	if t.Devices, err = parseIDs(o.devices); err != nil {
		return t, err
	}
	for _, n := range o.networks {
		p, err := netip.ParsePrefix(n)
		if err != nil {
			return t, usageErrorf("--network %.60q: want a network such as 10.1.0.0/16", n)
		}
		t.Networks = append(t.Networks, p)
	}
	var life ca.Duration
	if err := life.UnmarshalText([]byte(o.expires)); err != nil || life <= 0 || life == ca.Never {
		return t, usageErrorf("--expires %.40q: want a time such as 8h or 30d", o.expires)
	}
	t.Expires = inventory.UTC(now).Add(time.Duration(life))
	if t.Role.Enrolls() && t.Limit == 0 {
		t.Limit = uint32(max(1, len(t.Devices)))
	}
	return t, nil
}

// createToken makes a token and shows it, for the only time. A token that could not
// be handed over is ended: nobody has it, and nobody would miss it.
func (a *app) createToken(ctx context.Context, f *fleet, t inventory.Token, o tokenOptions) (err error) {
	var file *outFile
	if o.out != "" {
		if file, err = createOut(o.out, 0o600); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, file.close()) }()
	}
	secret, made, err := f.MakeToken(ctx, actor(), o.reason, t)
	if err != nil {
		return err
	}
	defer secret.Wipe()
	text := api.TokenText(secret.Reveal())
	v := a.viewToken(made)
	if file == nil {
		v.Token = text
		return a.print(v, func(w io.Writer) {
			_, _ = fmt.Fprintln(w, text)
			_, _ = fmt.Fprintf(a.err, "token %s, good until %s; it is not shown again\n", v.ID, stamp(v.Expires))
		})
	}
	if err := file.finish([]byte(text + "\n")); err != nil {
		_, ended := f.RevokeToken(context.WithoutCancel(ctx), actor(), "it could not be written to its file", made.ID())
		return errors.Join(err, ended)
	}
	return a.print(v, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "token %s in %s, good until %s\n", v.ID, o.out, stamp(v.Expires))
	})
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func newTokenListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List tokens",
		Example: `  imprint token list --output json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			all, err := f.Tokens(cmd.Context())
			if err != nil {
				return err
			}
			return a.printRows([]string{"ID", "ROLE", "STATE", "USED", "EXPIRES", "FOR"}, func(emit func(v any, cells ...string) error) error {
				for _, t := range all {
					v := a.viewToken(t)
					used := "-"
					if t.Role.Enrolls() {
						used = fmt.Sprintf("%d/%d", t.Uses, t.Limit)
					}
					if err := emit(v, string(v.ID), v.Role.String(), v.State, used, stamp(v.Expires), v.purpose()); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

// purpose says in few words what a token is bound to.
func (v *tokenView) purpose() string {
	var parts []string
	add := func(what, text string) {
		if text != "" {
			parts = append(parts, what+text)
		}
	}
	add("", v.Name)
	if len(v.Devices) > 0 {
		add("", string(v.Devices[0]))
	}
	if len(v.Devices) > 1 {
		add("and ", fmt.Sprintf("%d more", len(v.Devices)-1))
	}
	add("prefix ", v.Prefix)
	add("profile ", v.Profile)
	add("station ", string(v.Station))
	return strings.Join(parts, ", ")
}

func newTokenShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "show ID",
		Short:   "Show a token and what was enrolled with it",
		Example: `  imprint token show 0123456789abcdef`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := inventory.ParseTokenID(args[0])
			if err != nil {
				return err
			}
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			t, err := f.FindToken(cmd.Context(), id)
			if err != nil {
				return err
			}
			v := a.viewToken(t)
			if v.Enrolled, err = f.BoughtWith(cmd.Context(), t); err != nil {
				return err
			}
			return a.print(v, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "token    %s\nrole     %s\nstate    %s\nused     %d of %d\nexpires  %s\nfor      %s\n", v.ID, v.Role, v.State, v.Uses, v.Limit, stamp(v.Expires), printable(v.purpose()))
				for _, d := range v.Enrolled {
					_, _ = fmt.Fprintf(w, "enrolled %s\n", d)
				}
			})
		},
	}
}

func newTokenRevokeCommand(a *app) *cobra.Command {
	var andDevices, yes bool
	var reason string
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "End a token at once, and what was enrolled with it if you say so",
		Long: `Revoke ends a token: whoever presents it is turned away from now on.

With --and-devices it lists the devices that were enrolled with it, for when the
token was stolen; with --yes it revokes them too, as keyCompromise.`,
		Example: `  imprint token revoke 0123456789abcdef --reason "laptop lost"
  imprint token revoke 0123456789abcdef --and-devices --yes`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := inventory.ParseTokenID(args[0])
			if err != nil {
				return err
			}
			if yes && !andDevices {
				return usageErrorf("--yes goes with --and-devices")
			}
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			t, err := f.RevokeToken(cmd.Context(), actor(), reason, id)
			if err != nil {
				return err
			}
			v := a.viewToken(t)
			revoked := 0
			if andDevices {
				if v.Enrolled, err = f.BoughtWith(cmd.Context(), t); err != nil {
					return err
				}
			}
			if yes && len(v.Enrolled) > 0 {
				if revoked, err = f.Revoke(cmd.Context(), actor(), reason, inventory.KeyCompromise, v.Enrolled...); err != nil {
					return err
				}
			}
			return a.print(map[string]any{"token": v, "devicesRevoked": revoked}, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "token %s revoked\n", v.ID)
				for _, d := range v.Enrolled {
					_, _ = fmt.Fprintln(w, d)
				}
				if andDevices {
					_, _ = fmt.Fprintf(w, "%d devices enrolled with it, %d revoked\n", len(v.Enrolled), revoked)
				}
			})
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&andDevices, "and-devices", false, "list what was enrolled with it")
	flags.BoolVar(&yes, "yes", false, "revoke those devices too")
	flags.StringVar(&reason, "reason", "", "`text` for the audit log")
	return cmd
}
