package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/enroll/intake/foreign"
	"github.com/imprint-iot/imprint/inventory"
)

type importOptions struct {
	kind, profile, prefix, scheme, reason string
	iterations                            uint32
	acceptShared, rename, apply, partial  bool
}

func newImportCommand(a *app) *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use:   "import DIR|FILE",
		Short: "Adopt the devices of a broker or a CA that exists",
		Long: `Import reads what somebody else keeps and reports, before anything is done: which
devices can be taken over, with which passwords and rights; what cannot; and what is
dangerous where it is now. With --apply each device is then taken over by a change of
its own. Given again, it goes on where it was interrupted.

It reads Mosquitto's password_file with acl_file, and the JSON of dynamic security;
definitions.json of RabbitMQ; users of EMQX as CSV or JSON; a CA's folder of openssl
ca or easy-rsa (index.txt), of step-ca, or of certificates in PEM; a CSV list.

A password goes over if its hash is one that imprint can check: the device notices
nothing. A certificate of another CA does not: its device has to enroll, and serial
number and fingerprint of the old one become labels. Rules that repeat become
profiles. None gives a device more than it had; what cannot be said exactly is left
out and reported.`,
		Example: `  imprint import /etc/mosquitto
  imprint import /etc/mosquitto --apply --rename
  imprint import users.csv --kind emqx --password-scheme sha256-suffix --apply`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runImport(cmd.Context(), args[0], o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.kind, "kind", "", "`kind` of source: mosquitto, dynsec, rabbitmq, emqx, openssl, step, pem, csv (default: what is found)")
	flags.StringVar(&o.profile, "profile", defaultProfileName, "`profile` of devices whose source says nothing of rights")
	flags.StringVar(&o.prefix, "prefix", "imported", "begin of the `names` of reconstructed profiles")
	flags.StringVar(&o.scheme, "password-scheme", "", "how EMQX has hashed the passwords: a `scheme` as sha256-suffix, sha512-suffix, sha512-prefix, pbkdf2-sha512")
	flags.Uint32Var(&o.iterations, "iterations", 0, "`number` of iterations of pbkdf2-sha512")
	flags.BoolVar(&o.acceptShared, "accept-shared", false, "take over rules that reach beyond a device's own topics, declared as shared")
	flags.BoolVar(&o.rename, "rename", false, "take devices whose names are no device IDs over under the names that the report suggests")
	flags.BoolVar(&o.apply, "apply", false, "do it, after the report")
	flags.BoolVar(&o.partial, "partial", false, "go on without the devices that cannot be taken over")
	flags.StringVar(&o.reason, "reason", "", "`text` for the audit log")
	return cmd
}

func (a *app) runImport(ctx context.Context, path string, o importOptions) error {
	plan, err := a.readForeign(ctx, path, o)
	if err != nil {
		return err
	}
	if !o.apply {
		return a.printPlan(plan, nil)
	}
	f, err := a.openFleet(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	progress, finished := a.progress("import")
	result, err := plan.Apply(ctx, f.Registrar, foreign.ApplyOptions{
		Actor: actor(), Reason: cmp.Or(o.reason, "import "+plan.Kind), Partial: o.partial, Progress: progress,
		Rejected: func(name string, err error) { a.warn(fmt.Sprintf("%s: %v", printable(name), err)) },
	})
	finished()
	if err != nil {
		return errors.Join(err, a.printPlan(plan, nil))
	}
	return a.printPlan(plan, &result)
}

// readForeign reads a directory, or one file, and nothing outside of it.
func (a *app) readForeign(ctx context.Context, path string, o importOptions) (_ *foreign.Plan, err error) {
	options := foreign.Options{
		Profile: o.profile, Prefix: o.prefix, AcceptShared: o.acceptShared, Rename: o.rename, Iterations: o.iterations, Now: a.now(),
	}
	if o.scheme != "" {
		if options.Scheme, err = inventory.ParseScheme(o.scheme); err != nil {
			return nil, err
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	dir := path
	if !info.IsDir() {
		dir, options.Files = filepath.Dir(path), []string{filepath.Base(path)}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return foreign.Read(ctx, root.FS(), o.kind, options)
}

// printPlan reports what could be done, or has been.
func (a *app) printPlan(p *foreign.Plan, done *foreign.Result) error {
	full := struct {
		*foreign.Plan

		Result *foreign.Result `json:"result,omitempty"`
	}{p, done}
	return a.print(full, func(w io.Writer) {
		ready, passwords := 0, 0
		for i := range p.Devices {
			if len(p.Devices[i].Problems) == 0 {
				ready++
			}
			if len(p.Devices[i].Verifiers) > 0 {
				passwords++
			}
		}
		_, _ = fmt.Fprintf(w, "%s: %d devices, %d can be taken over, %d with their password; %d profiles\n", p.Kind, len(p.Devices), ready, passwords, len(p.Profiles))
		for _, profile := range p.Profiles {
			n := 0
			for i := range p.Devices {
				if p.Devices[i].Profile == profile.Name {
					n++
				}
			}
			_, _ = fmt.Fprintf(w, "\nprofile %s, %d devices\n", profile.Name, n)
			for _, r := range profile.Policy.Rules {
				_, _ = fmt.Fprintf(w, "  %s\n", printable(r.String()))
			}
		}
		printFindings(w, p)
		if done != nil {
			_, _ = fmt.Fprintf(w, "\n%d profiles made, %d devices taken over, %d unchanged, %d rejected\n", done.Profiles, done.Adopted, done.Unchanged, done.Rejected)
		} else {
			_, _ = fmt.Fprint(w, "\nnothing was changed: --apply takes them over\n")
		}
	})
}

// printFindings prints the worst first, and of each kind only some.
func printFindings(w io.Writer, p *foreign.Plan) {
	const shown = 10
	for _, s := range []foreign.Severity{foreign.Error, foreign.Warning, foreign.Note} {
		codes := map[string]int{}
		for _, f := range p.Findings {
			if f.Severity != s {
				continue
			}
			if codes[f.Code]++; codes[f.Code] <= shown {
				_, _ = fmt.Fprintf(w, "%s\n", printable(f.String()))
			}
		}
		for code, n := range codes {
			if n > shown {
				_, _ = fmt.Fprintf(w, "%s: %d more (%s): --output json has all\n", s, n-shown, code)
			}
		}
	}
}
