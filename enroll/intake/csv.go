// Package intake reads lists of devices that somebody else wrote.
package intake

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
)

// maxRecord is the longest row, in bytes. It is also what an unclosed quote can
// cost.
const maxRecord = 64 << 10

// MaxCSRFile is the longest file that a csr column may name, in bytes: a request
// of 16 KiB in PEM.
const MaxCSRFile = 24 << 10

// An ImportError reports a list, or one row of it, that cannot be read.
type ImportError struct {
	Line   int    // counted from 1; 0 means the whole file
	Column string // may be empty
	Reason string
}

// Error names the column. The line is in the row that carries the error.
func (e *ImportError) Error() string {
	if e.Column == "" {
		return e.Reason
	}
	return "column " + e.Column + " " + e.Reason
}

// Columns that a list of devices may have; label.NAME are as many as one likes.
const (
	columnID      = "id"
	columnSerial  = "serial"
	columnProfile = "profile"
	columnGroup   = "group"
	columnCSR     = "csr"
	labelPrefix   = "label."
)

// Options say how a list is read.
type Options struct {
	Profile string // of devices whose row names none

	// ReadCSR reads the file that a csr column names, of at most MaxCSRFile
	// bytes. Nil refuses the column.
	ReadCSR func(name string) ([]byte, error)
}

// Devices reads a list of devices: CSV as in RFC 4180, in UTF-8 with or without
// a byte order mark, with a header line. The columns are id, which must be
// there, serial, profile, group, csr and any number of label.NAME; another
// column is an error, because its data would be lost.
//
// A row that cannot be read is yielded with Row.Err set. A file that cannot be
// read ends the sequence with an [*ImportError].
func Devices(r io.Reader, o Options) iter.Seq2[enroll.Row, error] {
	return func(yield func(enroll.Row, error) bool) {
		fence := &fencedReader{r: r}
		if err := fence.checkEncoding(); err != nil {
			yield(enroll.Row{}, err)
			return
		}
		in := csv.NewReader(fence)
		in.FieldsPerRecord = -1 // checked per row, so that one short row does not end the file
		in.ReuseRecord = true
		header, err := readHeader(in)
		if err != nil {
			yield(enroll.Row{}, err)
			return
		}
		for last := 1; ; {
			fence.mark()
			record, err := in.Read()
			if errors.Is(err, io.EOF) {
				return
			}
			row, err := header.row(in, record, err, o)
			if bad, ok := errors.AsType[*ImportError](err); ok && bad.Line == 0 {
				bad.Line = last + 1
			}
			if err != nil {
				yield(enroll.Row{}, err)
				return
			}
			if !yield(row, nil) {
				return
			}
			last = lastLine(in, record, row.Line)
		}
	}
}

// header says what each column holds.
type header []string

func readHeader(in *csv.Reader) (header, error) {
	record, err := in.Read()
	if errors.Is(err, io.EOF) {
		return nil, &ImportError{Reason: "the file is empty: want a header line with at least the column id"}
	}
	if err != nil {
		return nil, fileError(err)
	}
	h := make(header, len(record))
	seen := map[string]bool{}
	for i, name := range record {
		name = strings.TrimSpace(name)
		if seen[name] {
			return nil, &ImportError{Line: 1, Column: fmt.Sprintf("%.64q", name), Reason: "is there twice"}
		}
		seen[name] = true
		if label, ok := strings.CutPrefix(name, labelPrefix); ok {
			if _, err := inventory.ParseGroup(label); err != nil || label == "" {
				return nil, &ImportError{Line: 1, Column: fmt.Sprintf("%.64q", name), Reason: "want label. and a name of letters, digits, '-' and '_'"}
			}
		} else if !slices.Contains([]string{columnID, columnSerial, columnProfile, columnGroup, columnCSR}, name) {
			return nil, unknownColumn(name)
		}
		h[i] = name
	}
	if !seen[columnID] {
		return nil, &ImportError{Line: 1, Reason: "there is no column id"}
	}
	return h, nil
}

func unknownColumn(name string) error {
	reason := "is unknown: want id, serial, profile, group, csr or label.NAME"
	switch {
	case strings.Contains(name, "\r"):
		reason = "holds the end of a line: lines end with LF or CRLF, not with CR alone"
	case strings.Contains(name, ";"):
		reason = "is one: columns are separated by commas, not semicolons"
	case strings.Contains(name, "\t"):
		reason = "is one: columns are separated by commas, not tabs"
	}
	return &ImportError{Line: 1, Column: fmt.Sprintf("%.64q", name), Reason: reason}
}

// row makes a row of one record, or of the error in its place.
func (h header) row(in *csv.Reader, record []string, err error, o Options) (enroll.Row, error) {
	if bad, ok := errors.AsType[*csv.ParseError](err); ok {
		return enroll.Row{Line: bad.StartLine, Err: &ImportError{Line: bad.StartLine, Reason: bad.Err.Error()}}, nil
	}
	if err != nil {
		return enroll.Row{}, fileError(err)
	}
	line, _ := in.FieldPos(0)
	row := enroll.Row{Line: line}
	if len(record) != len(h) {
		row.Err = &ImportError{Line: line, Reason: fmt.Sprintf("has %d fields, the header has %d", len(record), len(h))}
		return row, nil
	}
	labels := map[string]string{}
	for i, value := range record {
		value = strings.Clone(value) // the record is one string: do not keep all of it for one field
		switch h[i] {
		case columnID:
			row.Device.ID, row.Err = inventory.ParseDeviceID(value)
		case columnSerial:
			row.Device.HardwareSerial = value
		case columnProfile:
			row.Device.Profile = value
		case columnGroup:
			row.Device.Group = value
		case columnCSR:
			if value != "" {
				row.CSR, err = o.readCSR(value)
			}
		default:
			if value != "" {
				labels[strings.TrimPrefix(h[i], labelPrefix)] = value
			}
		}
		if row.Err == nil && err != nil {
			row.Err = &ImportError{Line: line, Column: h[i], Reason: "cannot be read: " + err.Error()}
		}
		if row.Err != nil {
			return row, nil
		}
	}
	if row.Device.Profile == "" {
		row.Device.Profile = o.Profile
	}
	if len(labels) > 0 {
		row.Device.Labels = inventory.NewLabels(labels)
	}
	return row, nil
}

// lastLine is the line that a record ends on: a quoted field may have several.
func lastLine(in *csv.Reader, record []string, first int) int {
	if len(record) == 0 { // it could not be read
		return first
	}
	line, _ := in.FieldPos(len(record) - 1)
	return line + strings.Count(record[len(record)-1], "\n")
}

func (o Options) readCSR(name string) ([]byte, error) {
	if o.ReadCSR == nil {
		return nil, errors.New("requests are not read here")
	}
	return o.ReadCSR(name)
}

func fileError(err error) error {
	if _, ok := errors.AsType[*ImportError](err); ok {
		return err
	}
	if bad, ok := errors.AsType[*csv.ParseError](err); ok {
		return &ImportError{Line: bad.StartLine, Reason: bad.Err.Error()}
	}
	return fmt.Errorf("reading the list: %w", err)
}

// fencedReader bounds what one record can cost, refuses what is not UTF-8 and
// drops a byte order mark.
type fencedReader struct {
	r       io.Reader
	pending []byte // read by checkEncoding
	since   int    // bytes since mark
	lines   int    // line feeds that were read
	split   []byte // the beginning of a rune whose end has not been read
}

// checkEncoding looks at the first bytes.
func (f *fencedReader) checkEncoding() error {
	head := make([]byte, 3)
	n, err := io.ReadFull(f.r, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("reading the list: %w", err)
	}
	head = head[:n]
	if bytes.HasPrefix(head, []byte{0xff, 0xfe}) || bytes.HasPrefix(head, []byte{0xfe, 0xff}) || bytes.IndexByte(head, 0) >= 0 {
		return &ImportError{Reason: "the file is UTF-16: save it as UTF-8"}
	}
	f.pending = bytes.TrimPrefix(head, []byte("\ufeff"))
	return nil
}

// mark begins a new record.
func (f *fencedReader) mark() { f.since = 0 }

// Read implements [io.Reader].
func (f *fencedReader) Read(p []byte) (int, error) {
	if f.since > maxRecord {
		return 0, &ImportError{Reason: fmt.Sprintf("a row is longer than %d bytes: is a quote not closed?", maxRecord)}
	}
	var n int
	var err error
	if len(f.pending) > 0 {
		n = copy(p, f.pending)
		f.pending = f.pending[n:]
	} else {
		n, err = f.r.Read(p)
	}
	f.since += n
	if valid := f.validUTF8(p[:n]); valid < n || errors.Is(err, io.EOF) && len(f.split) > 0 {
		line := 1 + f.lines + bytes.Count(p[:valid], []byte("\n"))
		return 0, &ImportError{Line: line, Reason: "the file is not UTF-8: save it as UTF-8"}
	}
	f.lines += bytes.Count(p[:n], []byte("\n"))
	return n, err
}

// validUTF8 returns how many bytes of a stretch of the file are UTF-8. The stretch
// may end within a rune.
func (f *fencedReader) validUTF8(b []byte) int {
	n := len(b)
	before := len(f.split)
	b = append(f.split, b...)
	f.split = nil
	for back := 1; back < utf8.UTFMax && back <= len(b); back++ {
		if c := b[len(b)-back]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-back:]) {
				f.split = bytes.Clone(b[len(b)-back:])
				b = b[:len(b)-back]
			}
			break
		}
	}
	if utf8.Valid(b) {
		return n
	}
	valid := 0
	for valid < len(b) {
		r, size := utf8.DecodeRune(b[valid:])
		if r == utf8.RuneError && size == 1 {
			break
		}
		valid += size
	}
	return max(0, valid-before)
}
