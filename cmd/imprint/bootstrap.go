package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/delivery"
	"github.com/imprint-iot/imprint/enroll/intake"
	"github.com/imprint-iot/imprint/inventory/durable"
)

type bootstrapOptions struct {
	file    string
	out     bundleOptions
	partial bool
	reason  string
}

func newBootstrapCommand(a *app) *cobra.Command {
	var o bootstrapOptions
	cmd := &cobra.Command{
		Use:   "bootstrap FILE.csv",
		Short: "Give every device of a list its certificate and password",
		Long: `Bootstrap reads a list of devices, registers those that are not known, and gives
each that has none a certificate and a password. What a device is handed goes to
--out: a directory with one directory per device, or, if the name ends in
.tar.age, one archive encrypted for --recipient. Passwords and keys are nowhere
else.

The list is CSV with a header line. Columns: id (required), serial, profile,
group, csr (a file with a certification request, relative to the list; without it
imprint makes the key), and label.NAME for any NAME.

All rows are checked first; if one cannot be done, nothing is done, unless
--partial is given. The command can be interrupted at any moment, also by a power
cut, and given again: no device gets a second certificate, and no bundle is lost.` + "\n" + exitHelp,
		Example: `  imprint bootstrap devices.csv --out bundles
  imprint bootstrap devices.csv --out batch-7.tar.age --recipient age1... --format pkcs12
  imprint bootstrap devices.csv --out bundles --partial --output json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.file = args[0]
			return a.runBootstrap(cmd.Context(), o)
		},
	}
	o.out.addFlags(cmd)
	cmd.Flags().BoolVar(&o.partial, "partial", false, "go on without the rows that cannot be done")
	cmd.Flags().StringVar(&o.reason, "reason", "", "`text` for the audit log")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// bootstrapMemory is where the collector begins to work harder, in bytes.
const bootstrapMemory = 64 << 20

// bootstrapSummary is the last thing that bootstrap --output json writes.
type bootstrapSummary struct {
	enroll.BulkResult
	Seconds float64 `json:"seconds"`
	Out     string  `json:"out"`
}

// maxRowReports is how many bad rows are written out one by one.
const maxRowReports = 100

func (a *app) runBootstrap(ctx context.Context, o bootstrapOptions) (err error) {
	start := a.now()
	// The work makes much garbage and keeps little: collect less often, within
	// bounds.
	defer debug.SetGCPercent(debug.SetGCPercent(1000))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(bootstrapMemory))
	destination, err := o.out.destination(a)
	if err != nil {
		return err
	}
	rows, err := a.openList(o.file)
	if err != nil {
		return err
	}
	defer rows.close()
	f, err := a.openFleet(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	defer tidyOut(o.out.dir())()
	out, err := f.openOutbox(ctx, o.out, destination)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	progress, finished := a.progress("bootstrap")
	reported := 0
	result, err := f.Bootstrap(ctx, enroll.Bulk{
		Actor: actor(), Reason: o.reason, Rows: rows.read, Out: out, Partial: o.partial, Progress: progress,
		Rejected: func(bad *enroll.RowError) {
			if reported++; reported <= maxRowReports {
				a.complain(fmt.Errorf("%s: %w", o.file, bad))
			}
		},
	})
	finished()
	if reported > maxRowReports {
		a.complain(fmt.Errorf("%s: and %d more", o.file, reported-maxRowReports))
	}
	if err == nil {
		err = out.Finish()
	}
	if err != nil {
		if bad, ok := errors.AsType[*intake.ImportError](err); ok && bad.Line > 0 {
			err = fmt.Errorf("line %d: %w", bad.Line, err)
		}
		err = fmt.Errorf("%s: %w", o.file, err)
		if result == (enroll.BulkResult{}) {
			return err // the list could not even be read
		}
	}
	summary := bootstrapSummary{BulkResult: result, Seconds: a.now().Sub(start).Round(time.Millisecond).Seconds(), Out: o.out.path}
	return errors.Join(err, a.print(summary, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "%d issued, %d unchanged, %d rejected in %.1f s", result.Issued, result.Unchanged, result.Rejected, summary.Seconds)
		if result.Issued > 0 {
			_, _ = fmt.Fprintf(w, "; bundles in %s", o.out.path)
		}
		_, _ = fmt.Fprintln(w)
	}))
}

// list is a CSV file that can be read several times.
type list struct {
	file *os.File
	dir  *durable.Dir // of the file: csr columns are relative to it
}

func (a *app) openList(path string) (*list, error) {
	if path == "-" {
		return nil, usageErrorf("the list is read more than once: give a file, not standard input")
	}
	file, dir, err := openIn(path)
	return &list{file: file, dir: dir}, err
}

func (l *list) close() {
	_ = l.file.Close()
	_ = l.dir.Close()
}

// read reads the list from its beginning.
func (l *list) read() iter.Seq2[enroll.Row, error] {
	return intake.Devices(io.NewSectionReader(l.file, 0, 1<<62), intake.Options{
		Profile: defaultProfileName,
		ReadCSR: func(name string) ([]byte, error) {
			if !filepath.IsLocal(name) {
				return nil, fmt.Errorf("%.128q: want a file in the directory of the list, or below", name)
			}
			b, err := l.dir.ReadFile(name, intake.MaxCSRFile)
			return b, fileError(name, err)
		},
	})
}

// bundleOptions say where bundles go and what is in them.
type bundleOptions struct {
	path       string
	recipients []string
	formats    []string
}

func (o *bundleOptions) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.path, "out", "", "`directory` for the bundles, or FILE.tar.age for one encrypted archive (required)")
	flags.StringSliceVar(&o.recipients, "recipient", nil, "age `key` (age1...) that can open the archive, may be repeated")
	flags.StringSliceVar(&o.formats, "format", nil, "`form` besides PEM: pkcs12, pkcs12-legacy, der, c-header; may be repeated")
}

const archiveSuffix = ".tar.age"

func (o *bundleOptions) destination(a *app) (delivery.Destination, error) {
	if !strings.HasSuffix(o.path, archiveSuffix) {
		if len(o.recipients) > 0 {
			return nil, usageErrorf("--recipient is for an archive: give --out a name that ends in %s", archiveSuffix)
		}
		return delivery.ToDirectory(o.path), nil
	}
	if len(o.recipients) == 0 {
		return nil, usageErrorf("an archive is encrypted: give --recipient age1... (age-keygen makes a key)")
	}
	var recipients []age.Recipient
	for _, text := range o.recipients {
		r, err := parseRecipient(text)
		if err != nil {
			return nil, err
		}
		recipients = append(recipients, r)
	}
	return delivery.ToArchive(o.path, a.now, recipients...), nil
}

// dir is the directory that bundles, or the archive, are put into.
func (o *bundleOptions) dir() string {
	if strings.HasSuffix(o.path, archiveSuffix) {
		return filepath.Dir(o.path)
	}
	return o.path
}

// parseRecipient reads --recipient.
func parseRecipient(text string) (age.Recipient, error) {
	r, err := age.ParseX25519Recipient(text)
	if err != nil {
		return nil, usageErrorf("--recipient %.80q: %w", text, err)
	}
	return r, nil
}
