package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/delivery"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

func newBrokerCommand(a *app) *cobra.Command {
	cmd := newGroupCommand("broker", "The running brokers that imprint keeps up to date",
		newBrokerAddCommand(a), newBrokerListCommand(a), newBrokerSyncCommand(a), newBrokerVerifyCommand(a), newBrokerRemoveCommand(a))
	cmd.Long = `A broker that imprint knows is brought up to date when something is revoked, and
imprint sees to it that it obeys: it ends the sessions of revoked devices, and tries
with credentials of its own whether the new CRL and the new users are in force.`
	return cmd
}

type brokerAddOptions struct {
	nodeConfig
	user         string
	passwordFile string
}

func newBrokerAddCommand(a *app) *cobra.Command {
	var o brokerAddOptions
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Let imprint work on a running broker",
		Long: `Add writes nodes/NAME/node.yaml in the fleet directory, gives the broker a
certificate, and writes its files, with which it can be started. Given again for the
same name, it changes what is said and leaves the rest.

Mosquitto: --admin is the path of a Unix socket that the broker will listen at, in
a directory which only imprint and the broker can enter; imprint makes an account for
itself. The broker is told to reload by one of --pid-file, --unit, --reload-command.

RabbitMQ: --admin is the URL of the management API, --admin-user and
--admin-password-file an account with the tag administrator.

A broker on another host needs a --reload-command that brings the directory --out
there and reloads, and a way to --admin, as a forwarded socket.`,
		Example: `  imprint broker add mqtt-1 --target mosquitto --out /etc/mosquitto/imprint --admin /run/mosquitto/imprint.sock --unit mosquitto
  imprint broker add mqtt-2 --target rabbitmq --out /etc/rabbitmq/imprint --admin http://127.0.0.1:15672 --admin-user imprint --admin-password-file pw`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.addBroker(cmd, args[0], o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Target, "target", "mosquitto", "`kind` of broker: see imprint export list")
	flags.StringVar(&o.Out, "out", "", "`directory` of the broker's files (required)")
	flags.StringVar(&o.Dest, "dest", "", "absolute `path` of the files on the broker's host (default: --out)")
	flags.StringVar(&o.Admin, "admin", "", "`socket` path or URL of the broker's administration (required)")
	flags.StringVar(&o.user, "admin-user", templates.AdminName, "`name` of imprint's account at the broker")
	flags.StringVar(&o.passwordFile, "admin-password-file", "", "`file` with the password of an account that the broker has already")
	flags.StringVar(&o.PIDFile, "pid-file", "", "the broker's PID `file`: it is sent SIGHUP")
	flags.StringVar(&o.Unit, "unit", "", "systemd `unit` of the broker")
	flags.StringSliceVar(&o.ReloadCommand, "reload-command", nil, "`command` that makes the broker read its files again, with its arguments after commas")
	flags.StringSliceVar(&o.Hosts, "host", nil, "DNS name or IP `address` of the broker, may be repeated (default: those of the fleet)")
	flags.Uint16Var(&o.CertificatePort, "certificate-port", 0, "`port` for devices with certificates (default: that of the fleet)")
	flags.Uint16Var(&o.PasswordPort, "password-port", 0, "`port` for devices with passwords (default: that of the fleet)")
	flags.StringVar(&o.Bind, "bind", "", "IP `address` that the broker listens at (default: all)")
	flags.StringVar(&o.Address, "address", "", "`host` at which imprint connects to the broker (default: --bind, or 127.0.0.1)")
	flags.StringVar(&o.Form, "form", "", "`form` of the export")
	flags.StringVar(&o.Version, "broker-version", "", "`version` of the broker")
	for _, name := range []string{"out", "admin"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag is defined above
		}
	}
	return cmd
}

func (a *app) addBroker(cmd *cobra.Command, name string, o brokerAddOptions) (err error) {
	ctx := cmd.Context()
	id, err := inventory.ParseDeviceID(name)
	if err != nil {
		return err
	}
	if len(name) > enroll.MaxNodeName {
		return &inventory.InvalidError{Field: "name of a broker", Value: name, Want: fmt.Sprintf("at most %d bytes", enroll.MaxNodeName)}
	}
	if o.Out, err = filepath.Abs(o.Out); err != nil {
		return err
	}
	if err := o.check("broker add"); err != nil {
		return usageError{err}
	}
	var password []byte
	if o.passwordFile != "" {
		if password, err = readSecretLine(o.passwordFile); err != nil {
			return err
		}
	}
	f, err := a.openFleet(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.tryNode(o); err != nil {
		return err
	}
	if err := f.writeNode(string(id), o.nodeConfig, o.user, password); err != nil {
		return err
	}
	nodes, err := f.openNodes([]string{name})
	if err != nil {
		return err
	}
	defer closeNodes(nodes)
	sum, err := f.firstExport(ctx, nodes[0])
	if err != nil {
		return err
	}
	return a.print(map[string]any{"broker": name, "target": o.Target, "out": o.Out, "devices": sum.Devices}, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "%s: %s with %d devices; its files are in %s\n", name, o.Target, sum.Devices, o.Out)
		_, _ = fmt.Fprintf(w, "start it, or restart it, with these files (%s says how), then: imprint broker sync %s\n", filepath.Join(o.Out, "README.md"), name)
	})
}

// tryNode finds out whether what is said of a broker makes sense, before it is written
// down.
func (f *fleet) tryNode(o brokerAddOptions) error {
	t, err := liveTarget(o.Target)
	if err != nil {
		return err
	}
	d, err := t.Connect(templates.Live{
		Dir: f.dir, Admin: o.Admin, User: o.user, Secret: inventory.NewSecret([]byte("none")),
		Reload: templates.Reload{PIDFile: o.PIDFile, Unit: o.Unit, Command: o.ReloadCommand},
	})
	if err != nil {
		return err
	}
	return d.Close()
}

// firstExport writes the files that a broker can be started with.
func (f *fleet) firstExport(ctx context.Context, n *delivery.Node) (templates.Summary, error) {
	var sum templates.Summary
	broker, err := n.Broker(ctx)
	if err != nil {
		return sum, err
	}
	crls, err := f.deviceCRLs(ctx)
	if err != nil {
		return sum, err
	}
	err = f.store.Read(ctx, func(in inventory.Reader) error {
		trust, err := brokerTrust(in)
		if err != nil {
			return err
		}
		view, err := delivery.NewView(in, delivery.ViewConfig{
			Fleet: templates.Fleet{Name: f.cfg.Name, TrustDomain: f.cfg.TrustDomain}, Node: broker, TrustBundle: trust, CRLs: crls, Now: f.app.now(),
		})
		if err != nil {
			return err
		}
		o := n.Options
		o.Now, o.AllowShrink = f.app.now(), true
		sum, err = n.Target.Write(n.Live.Dir, view, o)
		return err
	})
	return sum, err
}

// readSecretLine reads the first line of a file.
func readSecretLine(path string) ([]byte, error) {
	text, err := readFile(path, 4096)
	if err != nil {
		return nil, err
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 {
		return nil, &inventory.InvalidError{Field: "file", Value: path, Want: "a password on its first line"}
	}
	return line, nil
}

// brokerView is a node as the command line shows it.
type brokerView struct {
	Name     string            `json:"name"`
	Target   string            `json:"target"`
	Out      string            `json:"out"`
	Admin    string            `json:"admin"`
	Progress delivery.Progress `json:"progress"`
	Pending  int               `json:"pending"` // revocations that have not been proven
}

func newBrokerListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the brokers and how far each is",
		Example: `  imprint broker list --output json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			names, err := f.nodeNames()
			if err != nil {
				return err
			}
			lags, err := delivery.Pending(cmd.Context(), f.store, names)
			if err != nil {
				return err
			}
			return a.printRows([]string{"NAME", "TARGET", "REVISION", "PROVEN", "PENDING", "CRL UNTIL", "FAULT"}, func(emit func(any, ...string) error) error {
				for _, l := range lags {
					c, err := f.readNodeConfig(l.Node)
					if err != nil {
						return err
					}
					v := brokerView{Name: l.Node, Target: c.Target, Out: c.Out, Admin: c.Admin, Progress: l.Progress, Pending: len(l.Endings)}
					if err := emit(v, v.Name, v.Target, fmt.Sprint(l.Progress.Revision), when(l.Progress.At), fmt.Sprint(v.Pending), when(l.Progress.NextUpdate), l.Progress.Error); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

// when is a time for people, or nothing.
func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

func newBrokerSyncCommand(a *app) *cobra.Command {
	var force, watch bool
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "sync [NAME...]",
		Short: "Bring brokers up to date, and see that they obey",
		Long: `Sync signs the CRLs anew if that is due, delivers them with the users and topic
rights, makes the broker reload, ends the sessions of devices that were revoked since
the last time, and tries with certificates and a password of its own whether all of it
is in force. A broker that is up to date is left alone, unless --force is given.

With --watch it goes on: it looks for changes each second, brings the brokers up to
date together for everything that has come meanwhile, tries those again that could not
be reached, and renews the CRLs long before they lapse. "imprint serve" does the same
by itself.

The exit code is 69 if a broker could not be brought up to date.`,
		Example: `  imprint broker sync
  imprint broker sync mqtt-1 --force
  imprint broker sync --watch --passphrase-file pass`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if watch {
				return a.watchBrokers(cmd.Context(), args, every)
			}
			return a.syncBrokers(cmd.Context(), args, force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also where nothing has changed")
	cmd.Flags().BoolVar(&watch, "watch", false, "go on until interrupted")
	cmd.Flags().DurationVar(&every, "every", time.Second, "`pause` between two looks, with --watch")
	return cmd
}

func (a *app) syncBrokers(ctx context.Context, names []string, force bool) error {
	f, err := a.openFleet(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	nodes, err := f.openNodes(names)
	if err != nil {
		return err
	}
	defer closeNodes(nodes)
	if len(nodes) == 0 {
		return configErrorf("no broker is known: imprint broker add makes one known")
	}
	receipts, err := f.syncer(actor()).SyncAll(ctx, nodes, force)
	if err != nil && len(receipts) == 0 && a.output != outputJSON {
		return err
	}
	return errors.Join(a.printReceipts(receipts), err)
}

func (a *app) watchBrokers(ctx context.Context, names []string, every time.Duration) error {
	if every < 100*time.Millisecond {
		return usageErrorf("--every %s: want at least 100ms", every)
	}
	f, err := a.openFleet(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	nodes, err := f.openNodes(names)
	if err != nil {
		return err
	}
	defer closeNodes(nodes)
	if len(nodes) == 0 {
		return configErrorf("no broker is known: imprint broker add makes one known")
	}
	f.syncer(actor()).Watch(ctx, nodes, every, func(_ string, r *delivery.Receipt, err error) {
		if err != nil {
			a.warn(err.Error())
			return
		}
		if err := a.printReceipts([]delivery.Receipt{*r}); err != nil {
			a.warn(err.Error())
		}
	})
	return nil
}

// printReceipts shows what was done at each node.
func (a *app) printReceipts(receipts []delivery.Receipt) error {
	return a.print(receipts, func(w io.Writer) {
		if len(receipts) == 0 {
			_, _ = fmt.Fprintln(w, "all brokers are up to date")
		}
		for _, r := range receipts {
			_, _ = fmt.Fprintf(w, "%s (%s): revision %d in force and proven in %s\n", r.Node, r.Target, r.Revision, r.Took.Round(time.Millisecond))
			for _, s := range r.Steps {
				_, _ = fmt.Fprintf(w, "  %8s  %s", s.At.Round(time.Millisecond), s.Name)
				if s.Note != "" {
					_, _ = fmt.Fprintf(w, ": %s", printable(s.Note))
				}
				_, _ = fmt.Fprintln(w)
			}
		}
	})
}

func newBrokerRemoveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME...",
		Short: "Forget brokers",
		Long: `Remove makes imprint forget how to work on a broker. The broker, its files and its
certificate stay as they are: it knows of no revocation from now on.`,
		Example: `  imprint broker remove mqtt-1`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := a.openFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			nodes, err := f.openNodes(args)
			if err != nil {
				return err
			}
			defer closeNodes(nodes)
			for _, n := range nodes {
				if err := errors.Join(n.Dir.Remove(nodeConfigFile), n.Dir.Remove(nodeAdminFile)); err != nil {
					return err
				}
			}
			return a.print(map[string]int{"removed": len(nodes)}, func(w io.Writer) { _, _ = fmt.Fprintf(w, "%d removed\n", len(nodes)) })
		},
	}
}
