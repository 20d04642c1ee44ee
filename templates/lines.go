package templates

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
)

// NewLineScanner returns a scanner of lines that end in one \n, the last one too,
// and have at most longest bytes: what an export writes, and what was cut short is
// none of it.
func NewLineScanner(r io.Reader, longest int) *bufio.Scanner {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, min(1<<14, longest)), longest)
	s.Split(wholeLines)
	return s
}

// Lines yields the lines of a file, as [NewLineScanner] reads them. The text is valid
// until the next one.
func Lines(src fs.FS, name string, longest int) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		f, err := OpenFile(src, name)
		if err != nil {
			yield(nil, err)
			return
		}
		defer func() { _ = f.Close() }() // read only
		s := NewLineScanner(f, longest)
		for s.Scan() {
			if !yield(s.Bytes(), nil) {
				return
			}
		}
		if err := s.Err(); err != nil {
			yield(nil, fmt.Errorf("reading %s: %w", name, err))
		}
	}
}

func wholeLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return 0, nil, errors.New("the last line has no end")
	}
	return 0, nil, nil
}

// WithPasswords joins devices, with their rights, and the passwords of some of them,
// which are in another file in the same order. A password that no device has is an
// error, which names file.
func WithPasswords(devices, passwords iter.Seq2[Entry, error], file string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		next, stop := iter.Pull2(passwords)
		defer stop()
		p, perr, more := next()
		for e, err := range devices {
			if err == nil && more && perr == nil && p.ID == e.ID {
				e.Verifiers = p.Verifiers
				p, perr, more = next()
			}
			if err == nil {
				err = perr
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
		switch {
		case perr != nil:
			yield(Entry{}, perr)
		case more:
			yield(Entry{}, &EntryError{p.ID, fmt.Sprintf("has a password in %s and no rights, or is out of order", file)})
		}
	}
}
