package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
)

func newDeviceCommand(a *app) *cobra.Command {
	return newGroupCommand("device", "Devices and their credentials",
		newDeviceAddCommand(a), newDeviceListCommand(a), newDeviceShowCommand(a), newDeviceEnrollCommand(a),
		newDeviceRevokeCommand(a), newDeviceSuspendCommand(a), newDeviceResumeCommand(a), newDeviceRetireCommand(a))
}

// parseIDs reads device IDs from the command line.
func parseIDs(args []string) ([]inventory.DeviceID, error) {
	ids := make([]inventory.DeviceID, len(args))
	for i, arg := range args {
		var err error
		if ids[i], err = inventory.ParseDeviceID(arg); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

func newDeviceAddCommand(a *app) *cobra.Command {
	var d inventory.Device
	var labels map[string]string
	var reason string
	cmd := &cobra.Command{
		Use:   "add ID...",
		Short: "Register devices",
		Long: `Add registers devices. It issues nothing: use "imprint device enroll" for that.

All IDs are registered, or none.`,
		Example: `  imprint device add dev-17
  imprint device add --profile sensor --group hall-2 --label site=bonn dev-18 dev-19`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := parseIDs(args)
			if err != nil {
				return err
			}
			if len(ids) > 1 && d.HardwareSerial != "" {
				return usageErrorf("--serial is of one device: give one ID")
			}
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			d.Labels = inventory.NewLabels(labels)
			devices := make([]inventory.Device, len(ids))
			for i, id := range ids {
				devices[i] = d
				devices[i].ID = id
			}
			if err := f.AddDevices(cmd.Context(), actor(), reason, devices); err != nil {
				return err
			}
			return a.print(map[string]int{"registered": len(devices)}, func(w io.Writer) { _, _ = fmt.Fprintf(w, "%d registered\n", len(devices)) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&d.Profile, "profile", defaultProfileName, "`name` of the profile")
	flags.StringVar(&d.Group, "group", "", "`name` of the group")
	flags.StringVar(&d.HardwareSerial, "serial", "", "the maker's serial `number`")
	flags.StringToStringVar(&labels, "label", nil, "`NAME=TEXT`, may be repeated")
	flags.StringVar(&reason, "reason", "", "`text` for the audit log")
	return cmd
}

// deviceView is a device as the command line shows it.
type deviceView struct {
	ID          inventory.DeviceID    `json:"id"`
	State       inventory.DeviceState `json:"state"`
	Profile     string                `json:"profile"`
	Group       string                `json:"group"`
	Serial      string                `json:"serial"`
	Labels      inventory.Labels      `json:"labels"`
	Hosts       []string              `json:"hosts,omitempty"` // of a server
	Created     time.Time             `json:"created"`
	Updated     time.Time             `json:"updated"`
	Credentials []credentialView      `json:"credentials,omitempty"`
	Rights      *enroll.Rights        `json:"topics,omitempty"`
}

// credentialView is a credential as the command line shows it.
type credentialView struct {
	Kind        inventory.CredentialKind  `json:"kind"`
	Generation  uint32                    `json:"generation"`
	State       inventory.CredentialState `json:"state"`
	Serial      string                    `json:"serial"`
	NotBefore   *time.Time                `json:"notBefore"`
	NotAfter    *time.Time                `json:"notAfter"`
	Fingerprint string                    `json:"fingerprint,omitempty"`
	Key         string                    `json:"key,omitempty"`
	Schemes     []string                  `json:"schemes,omitempty"`
	Created     time.Time                 `json:"created"`
	RevokedAt   *time.Time                `json:"revokedAt,omitempty"`
	Reason      string                    `json:"reason,omitempty"`
	ReplacedBy  uint32                    `json:"replacedBy,omitempty"`
	Certificate string                    `json:"certificate,omitempty"` // PEM
}

func newDeviceView(d inventory.Device) deviceView {
	return deviceView{ID: d.ID, State: d.State, Profile: d.Profile, Group: d.Group, Serial: d.HardwareSerial, Labels: d.Labels, Hosts: d.Hosts, Created: d.Created, Updated: d.Updated}
}

func newCredentialView(c *inventory.Credential) credentialView {
	v := credentialView{Kind: c.Kind, Generation: c.Generation, State: c.State, Created: c.Created, ReplacedBy: c.ReplacedBy}
	if cert := c.Certificate; cert != nil {
		v.Serial, v.NotBefore, v.NotAfter = cert.Serial.String(), &cert.NotBefore, &cert.NotAfter
		v.Fingerprint, v.Key, v.Certificate = cert.Fingerprint().String(), cert.SPKI.String(), string(ca.CertificatePEM(cert.DER))
	}
	for _, ver := range c.Verifiers {
		v.Schemes = append(v.Schemes, ver.Scheme.String())
	}
	if !c.RevokedAt.IsZero() {
		v.RevokedAt, v.Reason = &c.RevokedAt, c.Reason.String()
	}
	return v
}

func newDeviceListCommand(a *app) *cobra.Command {
	var q inventory.Query
	var state, after string
	var labels map[string]string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List devices",
		Example: `  imprint device list --state active --group hall-2
  imprint device list --limit 100 --after dev-00100 --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if state != "" {
				var err error
				if q.State, err = inventory.ParseDeviceState(state); err != nil {
					return err
				}
			}
			if q.Limit < 0 {
				return usageErrorf("--limit %d: want a number that is not negative", q.Limit)
			}
			q.After, q.Labels = inventory.DeviceID(after), inventory.NewLabels(labels)
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			return a.printRows([]string{"ID", "STATE", "PROFILE", "GROUP", "SERIAL"}, func(emit func(any, ...string) error) error {
				return f.store.Read(cmd.Context(), func(in inventory.Reader) error {
					for d, err := range in.Devices(q) {
						if err != nil {
							return err
						}
						if err := emit(newDeviceView(d), string(d.ID), d.State.String(), d.Profile, d.Group, d.HardwareSerial); err != nil {
							return err
						}
					}
					return nil
				})
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&state, "state", "", "only devices in this `state`: registered, active, suspended, revoked, retired")
	flags.StringVar(&q.Profile, "profile", "", "only devices of this `profile`")
	flags.StringVar(&q.Group, "group", "", "only devices of this `group`")
	flags.StringToStringVar(&labels, "label", nil, "only devices with `NAME=TEXT`, may be repeated")
	flags.StringVar(&after, "after", "", "begin after this `id`, in the same query")
	flags.IntVar(&q.Limit, "limit", 0, "at most so `many`; 0 means all")
	return cmd
}

func newDeviceShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "show ID",
		Short:   "Show a device, its credentials and its topics",
		Example: `  imprint device show dev-17 --output json`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := inventory.ParseDeviceID(args[0])
			if err != nil {
				return err
			}
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			v, err := f.show(cmd.Context(), id)
			if err != nil {
				return err
			}
			return a.print(v, func(w io.Writer) { writeDevice(w, v) })
		},
	}
}

func (f *fleet) show(ctx context.Context, id inventory.DeviceID) (deviceView, error) {
	var v deviceView
	err := f.store.Read(ctx, func(in inventory.Reader) error {
		d, err := in.Device(id)
		if err != nil {
			return err
		}
		v = newDeviceView(d)
		v.Credentials = []credentialView{}
		for c, err := range in.Credentials(inventory.CredentialQuery{Device: d.ID}) {
			if err != nil {
				return err
			}
			v.Credentials = append(v.Credentials, newCredentialView(&c))
		}
		if d.Kind == inventory.Server {
			return nil
		}
		p, err := profileNamed(in, d.Profile)
		if err != nil {
			return err
		}
		if rights, err := enroll.RightsOf(p, d); err == nil {
			v.Rights = &rights
		}
		return nil
	})
	return v, err
}

func writeDevice(w io.Writer, v deviceView) {
	line := func(name, value string) {
		if value != "" {
			_, _ = fmt.Fprintf(w, "%-12s %s\n", name, printable(value))
		}
	}
	line("id", string(v.ID))
	line("state", v.State.String())
	line("profile", v.Profile)
	line("group", v.Group)
	line("serial", v.Serial)
	for _, l := range v.Labels {
		line("label."+l.Key, l.Value)
	}
	for _, h := range v.Hosts {
		line("host", h)
	}
	if v.Rights != nil {
		line("publish", strings.Join(v.Rights.Publish, ", "))
		line("receive", strings.Join(v.Rights.Receive, ", "))
	}
	for _, c := range v.Credentials {
		text := fmt.Sprintf("%s, %s", c.State, c.Serial)
		if c.NotAfter != nil {
			text += ", until " + day(*c.NotAfter)
		} else {
			text = fmt.Sprintf("%s, generation %d", c.State, c.Generation)
		}
		if c.RevokedAt != nil {
			text += fmt.Sprintf(", %s since %s", c.Reason, c.RevokedAt.Format(time.RFC3339))
		}
		line(c.Kind.String(), text)
	}
}

func newDeviceEnrollCommand(a *app) *cobra.Command {
	var o bundleOptions
	var csr, reason string
	var rekey bool
	cmd := &cobra.Command{
		Use:   "enroll ID",
		Short: "Give a device its certificate and password",
		Long: `Enroll issues to one registered device, as bootstrap does to many. With --csr the
device keeps its own key; otherwise imprint makes one. Given again with the same
request, it gives the same certificate again.

With --rekey a device that has credentials gets new ones, and the old ones are
revoked as superseded: for a device whose key or password is lost.`,
		Example: `  imprint device enroll dev-17 --out bundles
  imprint device enroll dev-17 --csr dev-17.csr --out bundles
  imprint device enroll dev-17 --rekey --reason "flash replaced" --out bundles`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := inventory.ParseDeviceID(args[0])
			if err != nil {
				return err
			}
			q := enroll.Request{Actor: actor(), Reason: reason, Device: id, Rekey: rekey}
			if csr != "" {
				if q.CSR, err = a.readIn(csr, ca.MaxRequestSize+8192); err != nil {
					return err
				}
			}
			return a.runEnroll(cmd.Context(), q, o)
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&csr, "csr", "", "`file` with a PKCS #10 request, DER or PEM; - is standard input")
	cmd.Flags().BoolVar(&rekey, "rekey", false, "replace the credentials that the device has")
	cmd.Flags().StringVar(&reason, "reason", "", "`text` for the audit log")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func (a *app) runEnroll(ctx context.Context, q enroll.Request, o bundleOptions) (err error) {
	destination, err := o.destination(a)
	if err != nil {
		return err
	}
	f, err := a.openFleet(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	defer tidyOut(o.dir())()
	out, err := f.openOutbox(ctx, o, destination)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	q.Out = out
	e, err := f.Enroll(ctx, q)
	if err != nil {
		return err
	}
	if err := out.Finish(); err != nil {
		return err
	}
	v, err := f.show(ctx, e.Device.ID)
	if err != nil {
		return err
	}
	return a.print(v, func(w io.Writer) {
		if e.Unchanged {
			_, _ = fmt.Fprintf(w, "%s has this certificate already: %s, until %s\n", e.Device.ID, e.Certificate.Serial, day(e.Certificate.NotAfter))
			return
		}
		_, _ = fmt.Fprintf(w, "%s enrolled: certificate %s, until %s; bundle in %s\n", e.Device.ID, e.Certificate.Serial, day(e.Certificate.NotAfter), o.path)
	})
}

func uniqueIDs(ids []inventory.DeviceID) []string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.Canonical()
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func newDeviceRevokeCommand(a *app) *cobra.Command {
	var reason string
	var s selection
	cmd := newTurnCommand(a, &cobra.Command{
		Use:   "revoke [ID...]",
		Short: "End credentials of devices for good, at every broker",
		Long: `Revoke ends all credentials of devices, for good; they can have no others. All
devices are revoked, or none. To revoke a device again is no error.

With --certificate single certificates are ended, by their serial numbers, and the
devices go on with what else they have.

Reasons are those of RFC 5280: unspecified, keyCompromise, affiliationChanged,
superseded, cessationOfOperation, privilegeWithdrawn. With keyCompromise the keys can
never be certified again; of a single certificate, what was renewed from it since goes
too.

Then every broker that imprint knows is brought up to date, the sessions of the devices
are ended, and it is tried that the broker obeys. A broker that is down is tried again
by a running server or by "imprint broker sync"; until then "imprint revocations
pending" shows it, and the exit code is 69.`,
		Example: `  imprint device revoke dev-17 --reason keyCompromise --comment "found on a forum"
  imprint device revoke --certificate 4f1c9a6f2f3a5d1e8b7c6d5e4f3a2b1c --reason keyCompromise
  imprint device revoke --group hall-2 --reason privilegeWithdrawn
  imprint device revoke --file stolen.txt`,
	}, &s, "revoked", func(f *fleet, ctx context.Context, comment string, ids []inventory.DeviceID) (int, error) {
		r, err := inventory.ParseReason(reason)
		if err != nil {
			return 0, err
		}
		if len(s.certificates) == 0 {
			return f.Revoke(ctx, actor(), comment, r, ids...)
		}
		if len(ids) > 0 {
			return 0, usageErrorf("--certificate is for certificates alone: revoke the devices by a command of their own")
		}
		serials := make([]inventory.Serial, len(s.certificates))
		for i, text := range s.certificates {
			if serials[i], err = inventory.ParseSerial(text); err != nil {
				return 0, err
			}
		}
		return f.RevokeCertificates(ctx, actor(), comment, r, serials...)
	})
	cmd.Flags().StringVar(&reason, "reason", inventory.Unspecified.String(), "RFC 5280 `reason`")
	cmd.Flags().StringSliceVar(&s.certificates, "certificate", nil, "serial `number` of a certificate, may be repeated")
	return cmd
}

func newDeviceSuspendCommand(a *app) *cobra.Command {
	return newTurnCommand(a, &cobra.Command{
		Use:     "suspend [ID...]",
		Aliases: []string{"quarantine"},
		Short:   "Hold all credentials of devices, until resume, at every broker",
		Long: `Suspend puts devices on hold (certificateHold): their sessions end, and they cannot
come back until "imprint device resume". What the broker has queued for them is lost.`,
		Example: `  imprint device suspend dev-17 --comment "in the repair shop"`,
	}, &selection{}, "suspended", func(f *fleet, ctx context.Context, comment string, ids []inventory.DeviceID) (int, error) {
		return f.Suspend(ctx, actor(), comment, ids...)
	})
}

func newDeviceResumeCommand(a *app) *cobra.Command {
	return newTurnCommand(a, &cobra.Command{
		Use:     "resume [ID...]",
		Short:   "Undo suspend; what is revoked stays revoked",
		Example: `  imprint device resume dev-17`,
	}, &selection{}, "resumed", func(f *fleet, ctx context.Context, comment string, ids []inventory.DeviceID) (int, error) {
		return f.Resume(ctx, actor(), comment, ids...)
	})
}

func newDeviceRetireCommand(a *app) *cobra.Command {
	return newTurnCommand(a, &cobra.Command{
		Use:     "retire [ID...]",
		Short:   "Take devices out of service, for good, at every broker",
		Example: `  imprint device retire dev-17 --comment "scrapped"`,
	}, &selection{}, "retired", func(f *fleet, ctx context.Context, comment string, ids []inventory.DeviceID) (int, error) {
		return f.Retire(ctx, actor(), comment, ids...)
	})
}
