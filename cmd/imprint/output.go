package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Forms of output.
const (
	outputTable = "table"
	outputJSON  = "json"
)

// print writes v as JSON, or what table writes.
func (a *app) print(v any, table func(io.Writer)) error {
	if a.output == outputJSON {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	}
	table(a.out)
	return nil
}

// printRows writes a list: JSON as one array, a table with a header. It streams.
func (a *app) printRows(header []string, rows func(emit func(v any, cells ...string) error) error) error {
	if a.output == outputJSON {
		return a.printArray(rows)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	if _, err := fmt.Fprintln(w, strings.Join(header, "\t")); err != nil {
		return err
	}
	n := 0
	err := rows(func(_ any, cells ...string) error {
		for i := range cells {
			cells[i] = printable(cells[i])
		}
		if n++; n%1000 == 0 { // columns are as wide as they need be for so many rows at a time
			if err := w.Flush(); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintln(w, strings.Join(cells, "\t"))
		return err
	})
	if err != nil {
		return err
	}
	return w.Flush()
}

func (a *app) printArray(rows func(emit func(v any, cells ...string) error) error) error {
	sep := "[\n  "
	err := rows(func(v any, _ ...string) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out, "%s%s", sep, b)
		sep = ",\n  "
		return err
	})
	if err != nil {
		return err
	}
	if sep == "[\n  " {
		_, err = fmt.Fprintln(a.out, "[]")
		return err
	}
	_, err = fmt.Fprint(a.out, "\n]\n")
	return err
}

// printable keeps free text on one line and away from the terminal's controls.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return '\ufffd'
		}
		return r
	}, s)
}

// say writes a line for a person. With --output json it goes to standard error,
// so that standard output holds nothing but JSON.
func (a *app) say(format string, args ...any) {
	w := a.out
	if a.output == outputJSON {
		w = a.err
	}
	_, _ = fmt.Fprintf(w, format+"\n", args...)
}

// warn writes a line to standard error.
func (a *app) warn(text string) { _, _ = fmt.Fprintf(a.err, "warning: %s\n", text) }

func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.DateOnly)
}

// progress shows how far long work has come: a bar on a terminal, otherwise a
// line every ten seconds. The function it returns may be called from several
// goroutines; finish ends it.
func (a *app) progress(what string) (update func(done, total int), finish func()) {
	if f, ok := a.err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		bar := progressbar.NewOptions(-1, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(what),
			progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
		return func(done, total int) {
			bar.ChangeMax(total)
			_ = bar.Set(done)
		}, func() { _ = bar.Finish() }
	}
	const every = 10 * time.Second
	lines := make(chan [2]int, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		last := a.now()
		for n := range lines {
			if now := a.now(); now.Sub(last) >= every {
				last = now
				_, _ = fmt.Fprintf(a.err, "%s: %d of %d\n", what, n[0], n[1])
			}
		}
	}()
	return func(done, total int) {
		select {
		case lines <- [2]int{done, total}:
		default: // the last line has not been dealt with: this one would not be shown either
		}
	}, func() { close(lines); <-ended }
}
