package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/imprint-iot/imprint/templates/doctor"
)

// reportWidth is that of a terminal nobody has made wider.
const reportWidth = 80

// writeReport writes a report for a person: the worst first, a rule's reason and fix
// once, below all the places where it does not hold.
func writeReport(w io.Writer, r doctor.Report) {
	n := make(map[doctor.Severity]int)
	for _, f := range r.Findings {
		n[f.Severity]++
	}
	summary := "no findings"
	if len(r.Findings) > 0 {
		summary = strings.Join([]string{
			count(n[doctor.Error], "error", "errors"), count(n[doctor.Warning], "warning", "warnings"), count(n[doctor.Note], "note", "notes"),
		}, ", ")
	}
	writeWrapped(w, "", "", fmt.Sprintf("%s (%s): %s", r.Subject, r.Kind, summary))
	for i, f := range r.Findings {
		if i == 0 || r.Findings[i-1].Rule != f.Rule {
			_, _ = fmt.Fprintf(w, "\n%s %s\n", strings.ToUpper(string(f.Severity)), f.Rule)
			writeWrapped(w, "  ", "  ", f.Title+".")
		}
		writeWrapped(w, "  - ", "    ", placeOf(f)+f.Detail)
		if i == len(r.Findings)-1 || r.Findings[i+1].Rule != f.Rule {
			writeWrapped(w, "  Why: ", "       ", f.Why)
			writeWrapped(w, "  Fix: ", "       ", f.Fix)
		}
	}
	writeList(w, "Looked at", r.Checked)
	writeList(w, "Could not be looked at", r.Unknown)
}

func placeOf(f doctor.Finding) string {
	switch {
	case f.File == "":
		return ""
	case f.Line == 0:
		return f.File + ": "
	}
	return fmt.Sprintf("%s:%d: ", f.File, f.Line)
}

func writeList(w io.Writer, title string, list []string) {
	if len(list) == 0 {
		return
	}
	_, _ = fmt.Fprintf(w, "\n%s:\n", title)
	for _, text := range list {
		writeWrapped(w, "  - ", "    ", text)
	}
}

// writeWrapped writes text in lines of reportWidth characters, the first of which
// begins with first and the others with rest. A longer word has a line of its own.
func writeWrapped(w io.Writer, first, rest, text string) {
	line, empty := first, true
	for word := range strings.FieldsSeq(printable(text)) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > reportWidth {
			_, _ = fmt.Fprintln(w, line)
			line, empty = rest, true
		}
		if !empty {
			line += " "
		}
		line += word
		empty = false
	}
	_, _ = fmt.Fprintln(w, line)
}

// count is a number with its noun: "1 error", "2 errors".
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
