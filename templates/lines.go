package templates

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
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
