package akenza

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/templates"
)

// The lists. A CSV file has a record of RFC 4180 for each device, with the public key in
// several lines; a JSON file one line.
const (
	csvHead  = "deviceId,name,profile,group,algorithm,publicKey\n"
	jsonHead = `{"format":"generic list of devices, no import format of Akenza","devices":[`
	jsonTail = "\n]}\n"
)

// maxLine bounds a line of JSON, in bytes: an RSA key of 16,384 bits has 2.9 KiB.
const maxLine = 1 << 14

func appendCSV(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	d, err := newDevice(e)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := csv.NewWriter(&buf)
	if err := w.Write([]string{d.ID, d.Name, d.Profile, d.Group, d.Algorithm, d.PublicKey}); err != nil {
		return nil, fmt.Errorf("encoding a device: %w", err)
	}
	w.Flush()
	return append(b, buf.Bytes()...), w.Error()
}

func appendJSON(b []byte, n int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	d, err := newDevice(e)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encoding a device: %w", err)
	}
	if n > 0 {
		b = append(b, ',')
	}
	return append(append(b, '\n'), text...), nil
}

// reading opens a list and says what went wrong in it.
func reading(src fs.FS, name string, read func(r *bufio.Reader, yield func(templates.Entry, error) bool) error) func(func(templates.Entry, error) bool) {
	return func(yield func(templates.Entry, error) bool) {
		f, err := src.Open(name)
		if err == nil {
			defer func() { _ = f.Close() }() // only read
			err = read(bufio.NewReader(f), yield)
		}
		if err != nil {
			yield(templates.Entry{}, fmt.Errorf("reading %s: %w", name, err))
		}
	}
}

func readCSV(src fs.FS) func(func(templates.Entry, error) bool) {
	return reading(src, CSVName, func(r *bufio.Reader, yield func(templates.Entry, error) bool) error {
		c := csv.NewReader(r)
		head := strings.Split(strings.TrimSuffix(csvHead, "\n"), ",")
		c.FieldsPerRecord = len(head)
		if first, err := c.Read(); err != nil || !slices.Equal(first, head) {
			return errors.New("it has not the columns of imprint")
		}
		for {
			f, err := c.Read()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			e, err := entry(device{f[0], f[1], f[2], f[3], f[4], f[5]})
			if err != nil {
				return err
			}
			if !yield(e, nil) {
				return nil
			}
		}
	})
}

func readJSON(src fs.FS) func(func(templates.Entry, error) bool) {
	return reading(src, JSONName, func(r *bufio.Reader, yield func(templates.Entry, error) bool) error {
		lines := bufio.NewScanner(r)
		lines.Buffer(make([]byte, 0, 1<<12), maxLine)
		if !lines.Scan() || lines.Text() != jsonHead {
			return errors.New("it does not begin as imprint begins it")
		}
		more := true // a line with a comma, or the first, is before a device or the end
		for n := 0; lines.Scan(); n++ {
			line := lines.Bytes()
			if string(line) == strings.Trim(jsonTail, "\n") {
				if lines.Scan() || more && n > 0 {
					return errors.New("it does not end as imprint ends it")
				}
				return lines.Err()
			}
			if !more {
				return errors.New("a device without a comma before it")
			}
			line, more = bytes.CutSuffix(line, []byte(","))
			var d device
			if err := json.Unmarshal(line, &d); err != nil {
				return err
			}
			if same, err := json.Marshal(d); err != nil || !bytes.Equal(same, line) {
				return errors.New("a line is not what imprint writes")
			}
			e, err := entry(d)
			if err != nil {
				return err
			}
			if !yield(e, nil) {
				return nil
			}
		}
		if err := lines.Err(); err != nil {
			return err
		}
		return io.ErrUnexpectedEOF
	})
}
