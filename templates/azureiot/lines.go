package azureiot

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"

	"github.com/imprint-iot/imprint/templates"
)

// maxLine bounds a line of a list, in bytes: two certificates of 16 KiB.
const maxLine = 1 << 16

// appendLine appends a value as one line of JSON.
func appendLine(b []byte, v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding a device: %w", err)
	}
	return append(b, buf.Bytes()...), nil
}

// readLine reads a line into v and holds it to what imprint makes of v.
func readLine(line []byte, v any) error {
	if err := json.Unmarshal(line, v); err != nil {
		return err
	}
	same, err := appendLine(nil, v)
	if err != nil {
		return err
	}
	if !bytes.Equal(bytes.TrimSuffix(same, []byte("\n")), line) {
		return fmt.Errorf("a line is not what imprint writes")
	}
	return nil
}

// readLines yields the device of each line of a list.
func readLines(src fs.FS, name string, read func(line []byte) (templates.Entry, error)) func(func(templates.Entry, error) bool) {
	return func(yield func(templates.Entry, error) bool) {
		f, err := src.Open(name)
		if err != nil {
			yield(templates.Entry{}, err)
			return
		}
		defer func() { _ = f.Close() }() // only read
		lines := bufio.NewScanner(f)
		lines.Buffer(make([]byte, 0, 1<<13), maxLine)
		for lines.Scan() {
			e, err := read(lines.Bytes())
			if err != nil {
				yield(e, fmt.Errorf("reading %s: %w", name, err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(templates.Entry{}, fmt.Errorf("reading %s: %w", name, err))
		}
	}
}
