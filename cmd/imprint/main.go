// Command imprint is the PKI and provisioning toolkit for MQTT fleets: it makes
// a private CA, gives each device its certificate and password, keeps the
// inventory, revokes, and writes what a broker reads.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/agent"
	"github.com/imprint-iot/imprint/enroll/campaign"
	"github.com/imprint-iot/imprint/enroll/client"
	"github.com/imprint-iot/imprint/enroll/delivery"
	"github.com/imprint-iot/imprint/enroll/intake"
	"github.com/imprint-iot/imprint/enroll/intake/foreign"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/bundle"
	"github.com/imprint-iot/imprint/templates/doctor"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// Exit codes, the same for every command. Most are those of sysexits.h.
const (
	exitOK          = 0
	exitFound       = 1   // a check was made, and it found something
	exitUsage       = 64  // the command line is wrong
	exitData        = 65  // what was given cannot be used; nothing was done
	exitUnavailable = 69  // a key, a token or a program is not there
	exitInternal    = 70  // a fault of imprint
	exitIO          = 74  // a disk is full or failing, or the inventory is damaged
	exitBusy        = 75  // another process works on this fleet; try again
	exitRefused     = 77  // not allowed, or decided on old facts; wrong passphrase
	exitConfig      = 78  // the fleet directory or its configuration is wrong
	exitInterrupted = 130 // stopped by a signal
)

const exitHelp = `
Exit codes:
  0 done   1 a check found something   64 wrong command line   65 bad data, nothing done
  69 key or token not there   70 fault of imprint   74 disk or inventory fault   75 fleet in use
  77 refused   78 wrong configuration   130 interrupted`

// A usageError is a command line that makes no sense.
type usageError struct{ error }

// A foundError says what a check has found. The check itself went well.
type foundError struct{ error }

// A configError is a fleet directory, or a configuration, that cannot be used.
type configError struct{ error }

// An interruptedError says what a signal has cut short.
type interruptedError struct{ error }

func (e configError) Unwrap() error    { return e.error }
func (e foundError) Unwrap() error     { return e.error }
func (e usageError) Unwrap() error     { return e.error }
func (interruptedError) Unwrap() error { return context.Canceled }

func configErrorf(format string, args ...any) error {
	return configError{fmt.Errorf(format, args...)}
}

func usageErrorf(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// run is the program: it reads and writes only what it is given, and returns the
// exit code.
func run(args []string, in io.Reader, out, errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{in: in, out: out, err: errOut, now: time.Now}
	root := newRootCommand(a)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err != nil {
		a.complain(err)
	}
	return exitCode(err)
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "imprint",
		Short: "PKI and device provisioning for MQTT fleets",
		Long: `imprint runs the private CA of a fleet of MQTT devices, gives each device a
certificate and a password of its own, keeps them in an inventory, revokes them,
and writes the files that a broker needs to enforce it all.
` + exitHelp,
		Example: `  imprint init --name acme --host mqtt.acme.example
  imprint bootstrap devices.csv --out bundles
  imprint export mosquitto --out /etc/mosquitto/imprint`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVar(&a.dir, "fleet", "fleet", "fleet `directory`")
	flags.StringVar(&a.output, "output", outputTable, "`form` of the output: table or json")
	flags.StringVar(&a.passphraseFile, "passphrase-file", "", "`file` with the passphrase of the CA keys, on its first line")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := cmd.ValidateRequiredFlags(); err != nil {
			return usageErrorf("%w: see %s --help", err, cmd.CommandPath())
		}
		return a.checkFlags()
	}
	root.AddCommand(
		newInitCommand(a), newCACommand(a), newProfileCommand(a), newBootstrapCommand(a), newDeviceCommand(a), newTokenCommand(a), newApprovalCommand(a), newServeCommand(a), newAgentCommand(a),
		newExportCommand(a), newBrokerCommand(a), newRevocationsCommand(a), newRolloverCommand(a), newRotateCommand(a), newPolicyCommand(a), newAuditCommand(a), newBackupCommand(a), newRestoreCommand(a),
		newImportCommand(a), newDoctorCommand(a), newCheckCommand(a), newVersionCommand(a),
	)
	strictArgs(root)
	return root
}

// strictArgs makes a wrong number of arguments, or an unknown subcommand, a usage
// error.
func strictArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageErrorf("%w: see %s --help", err, cmd.CommandPath())
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		strictArgs(sub)
	}
}

// newGroupCommand is a noun that only has verbs under it.
func newGroupCommand(use, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(verbs...)
	return cmd
}

// app is what all commands share: the streams, the clock and the global flags.
type app struct {
	in       io.Reader
	out, err io.Writer
	now      func() time.Time

	dir            string
	output         string
	passphraseFile string

	passphrase []byte // read once
	mapped     int64  // of boltstore.Config; a server has another one
}

func (a *app) checkFlags() error {
	if a.output != outputTable && a.output != outputJSON {
		return usageErrorf("--output %q: want table or json", a.output)
	}
	return nil
}

// complain writes an error: one line, or one per row if there are many.
func (a *app) complain(err error) {
	text := strings.TrimSpace(err.Error())
	for line := range strings.SplitSeq(text, "\n") {
		_, _ = fmt.Fprintf(a.err, "imprint: %s\n", line)
	}
	if hint := hintFor(err); hint != "" {
		_, _ = fmt.Fprintf(a.err, "  hint: %s\n", hint)
	}
}

// hintFor says what to do about an error whose text cannot know.
func hintFor(err error) string {
	switch {
	case is[configError](err):
		return ""
	case errors.Is(err, templates.ErrShrink):
		return "if that is what you want, add --allow-shrink"
	case errors.Is(err, enroll.ErrRejected):
		return "correct the rows, or add --partial to go on without them"
	case errors.Is(err, ca.ErrKeyUnavailable):
		return "bring back the key's file, token or medium; for a root that is kept offline see imprint ca root --help"
	case errors.Is(err, inventory.ErrStopped):
		return "look at the disk, then run imprint check"
	case errors.Is(err, inventory.ErrCorrupt), errors.Is(err, inventory.ErrForeign):
		return "nothing was changed; imprint restore puts a backup in place"
	case errors.Is(err, inventory.ErrVersion):
		return "install a newer imprint"
	case errors.Is(err, doctor.ErrUnknownKind):
		return "name the file, and the broker with --kind"
	}
	return ""
}

// exitCode is the one place where errors become exit codes.
func exitCode(err error) int {
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case is[foundError](err):
		return exitFound
	case is[usageError](err):
		return exitUsage
	case is[*durable.InUseError](err), errors.Is(err, syscall.EADDRINUSE):
		return exitBusy
	case errors.Is(err, client.ErrPending), errors.Is(err, delivery.ErrBusy):
		return exitBusy
	case is[configError](err), errors.Is(err, agent.ErrConfig), errors.Is(err, inventory.ErrForeign), errors.Is(err, inventory.ErrVersion):
		return exitConfig
	case errors.Is(err, inventory.ErrFull), errors.Is(err, inventory.ErrStopped), errors.Is(err, inventory.ErrCorrupt),
		errors.Is(err, templates.ErrManifest), is[backupError](err):
		return exitIO
	case errors.Is(err, enroll.ErrRejected), is[*intake.ImportError](err), is[*inventory.InvalidError](err),
		is[*ca.RequestError](err), is[*ca.ConfigError](err), is[*topic.PolicyError](err),
		is[*topic.SyntaxError](err), is[*templates.InexpressibleError](err), is[*templates.EntryError](err),
		errors.Is(err, inventory.ErrNotFound), errors.Is(err, enroll.ErrNoRollover), errors.Is(err, enroll.ErrNoProfile), errors.Is(err, durable.ErrTooLarge), errors.Is(err, durable.ErrNotRegular), errors.Is(err, bundle.ErrFormat), errors.Is(err, doctor.ErrUnknownKind),
		errors.Is(err, foreign.ErrUnknown), errors.Is(err, foreign.ErrAmbiguous), errors.Is(err, foreign.ErrProblems):
		return exitData
	case errors.Is(err, enroll.ErrDenied), errors.Is(err, inventory.ErrConflict), errors.Is(err, templates.ErrShrink),
		errors.Is(err, ca.ErrPassphrase), errors.Is(err, ca.ErrKeyRefused), errors.Is(err, ca.ErrKeyExists), errors.Is(err, enroll.ErrNotRecorded),
		errors.Is(err, fs.ErrExist), errors.Is(err, enroll.ErrClock), is[*client.ProblemError](err), errors.Is(err, campaign.ErrNotReady), errors.Is(err, campaign.ErrOver):
		return exitRefused
	case errors.Is(err, ca.ErrKeyUnavailable), errors.Is(err, ca.ErrExpired), errors.Is(err, enroll.ErrNoIssuer),
		errors.Is(err, templates.ErrStale), errors.Is(err, templates.ErrUnreachable), errors.Is(err, delivery.ErrUnproven), errors.Is(err, doctor.ErrNoEndpoint):
		return exitUnavailable
	case is[*os.PathError](err), is[*os.LinkError](err), is[*os.SyscallError](err), is[syscall.Errno](err):
		return exitIO
	}
	return exitInternal
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
