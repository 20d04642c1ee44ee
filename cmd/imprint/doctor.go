package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates/doctor"
)

// outputSARIF is a form of output that only doctor has.
const outputSARIF = "sarif"

type doctorOptions struct {
	output     string
	failOn     string
	kind       string
	trust      string
	serverName string
	timeout    time.Duration
}

func newDoctorCommand(a *app) *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor FILE|DIR|HOST:PORT",
		Short: "Audit a broker that somebody already runs",
		Long: `Doctor says what in a broker's configuration, or at a live endpoint, lets strangers
in, gives a device more than its own topics, or keeps a revocation from having an
effect: each finding with the reason and the fix. It needs no fleet, and changes
nothing. Brokers: Mosquitto, RabbitMQ, EMQX, VerneMQ, NanoMQ, FlashMQ, NATS, HiveMQ.

FILE is a configuration where the broker reads it: a file that it names and that is
not there is a finding. DIR is a copy, such as an export or a repository: files that
it names are looked for in it by the end of their path. HOST:PORT is looked at as a
stranger would, with at most ten connections; the logins admin/public, guest/guest
and admin/admin are tried once each. Audit only what is yours.

The exit code is 1 if there are findings as bad as --fail-on says, and 0 if not.
What could not be looked at is listed, and makes no difference to the exit code,
unless that is all: an endpoint that speaks neither MQTT nor TLS makes it 69.`,
		Example: `  imprint doctor /etc/mosquitto/mosquitto.conf
  imprint doctor deploy/broker --fail-on warning --output sarif > doctor.sarif
  imprint doctor mqtt.acme.example:8883 --trust trust.pem`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return a.runDoctor(cmd, args[0], o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.output, "output", outputTable, "`form` of the output: table, json or sarif") // instead of that of all commands
	flags.StringVar(&o.failOn, "fail-on", string(doctor.Error), "`severity` from which findings make the exit code 1: error, warning or never")
	flags.StringVar(&o.kind, "kind", "", "`broker` whose configuration it is, such as mosquitto (default: found out)")
	flags.StringVar(&o.trust, "trust", "", "PEM `file` of the roots that devices trust (default: those of the system)")
	flags.StringVar(&o.serverName, "server-name", "", "`name` of the endpoint that devices use (default: HOST)")
	flags.DurationVar(&o.timeout, "timeout", 5*time.Second, "`time` for each connection to the endpoint")
	return cmd
}

func (o doctorOptions) check() error {
	switch o.output {
	case outputTable, outputJSON, outputSARIF:
	default:
		return usageErrorf("--output %q: want table, json or sarif", o.output)
	}
	switch o.failOn {
	case string(doctor.Error), string(doctor.Warning), "never":
	default:
		return usageErrorf("--fail-on %q: want error, warning or never", o.failOn)
	}
	if o.timeout <= 0 {
		return usageErrorf("--timeout %s: want more than 0", o.timeout)
	}
	return nil
}

func (a *app) runDoctor(cmd *cobra.Command, subject string, o doctorOptions) error {
	r, err := a.audit(cmd, subject, o)
	if err != nil {
		return err
	}
	if err := a.printReport(r, o.output); err != nil {
		return err
	}
	if r.Kind == doctor.KindEndpoint && len(r.Findings) == 0 && len(r.Checked) == 1 {
		// All that is known is that plain MQTT is not spoken: no audit to pass.
		return fmt.Errorf("%s: %w as a broker would", subject, doctor.ErrNoEndpoint)
	}
	bad := 0
	for _, f := range r.Findings {
		if f.Severity == doctor.Error && o.failOn != "never" || f.Severity == doctor.Warning && o.failOn == string(doctor.Warning) {
			bad++
		}
	}
	switch {
	case bad == 0:
		return nil
	case o.failOn == string(doctor.Error):
		return foundError{fmt.Errorf("%s: %s", subject, count(bad, "finding of severity error", "findings of severity error"))}
	}
	return foundError{fmt.Errorf("%s: %s", subject, count(bad, "finding of severity warning or worse", "findings of severity warning or worse"))}
}

// audit audits a path if there is one of this name, and otherwise an endpoint.
func (a *app) audit(cmd *cobra.Command, subject string, o doctorOptions) (doctor.Report, error) {
	info, err := os.Stat(subject)
	switch {
	case err == nil:
		for _, name := range []string{"trust", "server-name", "timeout"} {
			if cmd.Flags().Changed(name) {
				return doctor.Report{}, usageErrorf("--%s is for an endpoint, and %s is a file", name, subject)
			}
		}
		return a.auditPath(subject, info, o.kind)
	case !errors.Is(err, fs.ErrNotExist):
		return doctor.Report{}, fileError(subject, err)
	case !isAddress(subject):
		return doctor.Report{}, fmt.Errorf("%w, and it is no HOST:PORT", fileError(subject, err))
	case o.kind != "":
		return doctor.Report{}, usageErrorf("--kind is for a configuration, and %s is an endpoint", subject)
	}
	return a.auditEndpoint(cmd.Context(), subject, o)
}

func isAddress(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// auditPath audits a file in its place, or a directory for itself. Files in the
// report are called as the user called it: relative to here, or absolute.
func (a *app) auditPath(subject string, info fs.FileInfo, kind string) (doctor.Report, error) {
	o := doctor.FileOptions{Kind: kind, Now: a.now}
	if info.IsDir() {
		prefix := strings.TrimSuffix(filepath.Join(subject, "x"), "x")
		return auditFiles(os.DirFS(subject), ".", subject, o, func(name string) string { return prefix + name })
	}
	if !info.Mode().IsRegular() {
		return doctor.Report{}, fmt.Errorf("%s: %w", subject, durable.ErrNotRegular)
	}
	path, err := filepath.Abs(subject)
	if err != nil {
		return doctor.Report{}, err
	}
	o.Root = "/" // the files of a broker may be anywhere
	here := ""
	if !filepath.IsAbs(subject) {
		if here, err = os.Getwd(); err != nil {
			return doctor.Report{}, err
		}
		here = strings.TrimSuffix(here, "/") + "/"
	}
	return auditFiles(os.DirFS("/"), strings.TrimPrefix(path, "/"), subject, o, func(name string) string { return strings.TrimPrefix("/"+name, here) })
}

// auditFiles audits a file or directory of src, and calls the files in the report, and
// in the error, by the names that the user knows.
func auditFiles(src fs.FS, file, subject string, o doctor.FileOptions, name func(string) string) (doctor.Report, error) {
	r, err := doctor.Files(src, file, o)
	if bad, ok := errors.AsType[*fs.PathError](err); ok {
		return r, fmt.Errorf("%s: %w", name(bad.Path), bad.Err)
	}
	if err != nil {
		return r, fmt.Errorf("%s: %w", subject, err)
	}
	r.Subject = subject
	for i, f := range r.Findings {
		if f.File != "" {
			r.Findings[i].File = name(f.File)
		}
	}
	for i, c := range r.Checked { // begins with the name of a file
		r.Checked[i] = name(c)
	}
	return r, nil
}

func (a *app) auditEndpoint(ctx context.Context, address string, o doctorOptions) (doctor.Report, error) {
	options := doctor.EndpointOptions{ServerName: o.serverName, Timeout: o.timeout, Now: a.now}
	if o.trust != "" {
		text, err := readFile(o.trust, maxTrust)
		if err != nil {
			return doctor.Report{}, err
		}
		options.Roots = x509.NewCertPool()
		if !options.Roots.AppendCertsFromPEM(text) {
			return doctor.Report{}, &ca.ConfigError{Field: "trust", Value: o.trust, Want: "a file of certificates in PEM"}
		}
	}
	r, err := doctor.Endpoint(ctx, address, options)
	if err == nil {
		err = ctx.Err() // an audit that was cut short knows less, and does not say why
	}
	return r, err
}

// maxTrust is for the bundles of whole systems, too: those have some 200 KB.
const maxTrust = 4 << 20

// printReport writes a report. SARIF has no place for what could not be looked at:
// that goes to standard error.
func (a *app) printReport(r doctor.Report, output string) error {
	a.output = output
	if output != outputSARIF {
		return a.print(r, func(w io.Writer) { writeReport(w, r) })
	}
	for _, u := range r.Unknown {
		a.warn("not looked at: " + printable(u))
	}
	text, err := r.SARIF(version)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "%s\n", text)
	return err
}
