// Package fleetfile is the list of devices that modules of imprint read in brokers that
// have no file of their own: JSON with a device on each line.
package fleetfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// Name is the name of the file.
const Name = "imprint.json"

// A File is the form of the file: one JSON object with a device on each line.
//
//	{"format":"FORMAT","devices":[
//	{"id":"dev-1","state":"active","certificate":false,"password":{...},"pub":[...],"sub":[...]},
//	{"id":"dev-2",...}
//	]}
type File struct {
	Format string // names whose it is, and its version
}

const (
	tail = "\n]}\n"

	active  = "active"
	maxLine = 8 << 20 // bytes: 64 rules of 65,535 bytes are half of it
)

// A device is one line. Without a password there is none to log in with.
type device struct {
	ID          inventory.DeviceID `json:"id"`
	State       string             `json:"state"`
	Certificate bool               `json:"certificate"`
	Password    *password          `json:"password,omitempty"`
	Publish     []topic.Filter     `json:"pub"`
	Subscribe   []topic.Filter     `json:"sub"`
}

// A password is a verifier: PBKDF2 with HMAC-SHA-512.
type password struct {
	Iterations uint32 `json:"iterations"`
	Salt       []byte `json:"salt"`
	Hash       []byte `json:"hash"`
}

// Pick returns the verifier of a password that the file can hold: PBKDF2 with
// HMAC-SHA-512.
func Pick(verifiers []inventory.Verifier) (inventory.Verifier, bool) {
	i := slices.IndexFunc(verifiers, isPBKDF2)
	if i < 0 {
		return inventory.Verifier{}, false
	}
	return verifiers[i], true
}

func isPBKDF2(v inventory.Verifier) bool {
	return v.Scheme == inventory.PBKDF2SHA512 && v.Iterations > 0 && len(v.Salt) > 0 && len(v.Hash) == 64
}

// List is the file as a part of a kit, for the eyes of the broker only.
func (file File) List() templates.List {
	return templates.List{PlanFile: templates.PlanFile{Name: Name, Mode: 0o600}, Head: file.head(), Tail: tail, Append: appendDevice}
}

func (file File) head() string { return `{"format":"` + file.Format + `","devices":[` }

func appendDevice(b []byte, n int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	d := device{ID: e.ID, State: active, Certificate: e.Certificate, Publish: []topic.Filter{}, Subscribe: []topic.Filter{}}
	if len(e.Verifiers) > 0 {
		v := e.Verifiers[0]
		d.Password = &password{v.Iterations, v.Salt, v.Hash}
	}
	for _, g := range e.Grants {
		if g.Action == topic.Publish {
			d.Publish = append(d.Publish, g.Filter)
		} else {
			d.Subscribe = append(d.Subscribe, g.Filter)
		}
	}
	line, err := json.Marshal(&d)
	if err != nil {
		return nil, fmt.Errorf("writing device %s: %w", e.ID, err)
	}
	if n > 0 {
		b = append(b, ',')
	}
	return append(append(b, '\n'), line...), nil
}

// A lineError reports a line that imprint does not write.
type lineError struct {
	line int
	why  string
}

// Error names the line.
func (e *lineError) Error() string {
	return fmt.Sprintf("reading %s: line %d: %s", Name, e.line, e.why)
}

// Devices reads the file line by line. A line has to be what would be written for the
// device that it says.
func (file File) Devices(src fs.FS, _ *templates.Setting) func(func(templates.Entry, error) bool) {
	return func(yield func(templates.Entry, error) bool) {
		f, err := templates.OpenFile(src, Name)
		if err != nil {
			yield(templates.Entry{}, err)
			return
		}
		defer func() { _ = f.Close() }() // read only
		s := templates.NewLineScanner(f, maxLine)
		r := reader{head: file.head()}
		for s.Scan() {
			e, ok, err := r.line(s.Bytes())
			if err != nil || ok {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
		if err := s.Err(); err != nil {
			yield(templates.Entry{}, fmt.Errorf("reading %s: %w", Name, err))
		} else if !r.ended {
			yield(templates.Entry{}, &lineError{r.n + 1, "the end is missing"})
		}
	}
}

// A reader knows where in the file it is.
type reader struct {
	head  string
	n     int // lines
	more  bool
	ended bool
	buf   []byte
}

// line reads a line, and reports whether it has a device.
func (r *reader) line(text []byte) (templates.Entry, bool, error) {
	var none templates.Entry
	r.n++
	switch {
	case r.n == 1:
		r.more = true
		if string(text) != r.head {
			return none, false, &lineError{r.n, "want the head of an export"}
		}
		return none, false, nil
	case r.ended:
		return none, false, &lineError{r.n, "comes after the end"}
	case string(text) == "]}":
		if r.more && r.n > 2 {
			return none, false, &lineError{r.n, "a comma before the end"}
		}
		r.ended = true
		return none, false, nil
	case !r.more:
		return none, false, &lineError{r.n, "no comma before it"}
	}
	text, r.more = bytes.CutSuffix(text, []byte(","))
	e, err := parseDevice(text)
	if err != nil {
		return none, false, &lineError{r.n, err.Error()}
	}
	if r.buf, err = appendDevice(r.buf[:0], 0, &e, nil); err != nil {
		return none, false, err
	}
	if !bytes.Equal(r.buf[1:], text) {
		return none, false, &lineError{r.n, "it is not what imprint writes"}
	}
	return e, true, nil
}

func parseDevice(line []byte) (templates.Entry, error) {
	var d device
	if err := json.Unmarshal(line, &d); err != nil {
		return templates.Entry{}, errors.New("want a device in JSON")
	}
	if _, err := inventory.ParseDeviceID(string(d.ID)); err != nil {
		return templates.Entry{}, err
	}
	if d.State != active {
		return templates.Entry{}, errors.New("want the state active")
	}
	e := templates.Entry{ID: d.ID, Certificate: d.Certificate}
	if d.Password != nil {
		v := inventory.Verifier{Scheme: inventory.PBKDF2SHA512, Iterations: d.Password.Iterations, Salt: d.Password.Salt, Hash: d.Password.Hash}
		if !isPBKDF2(v) {
			return templates.Entry{}, errors.New("want iterations, a salt, and a hash of 64 octets")
		}
		e.Verifiers = []inventory.Verifier{v}
	}
	for _, f := range d.Publish {
		e.Grants = append(e.Grants, topic.Grant{Action: topic.Publish, Filter: f})
	}
	for _, f := range d.Subscribe {
		e.Grants = append(e.Grants, topic.Grant{Action: topic.Receive, Filter: f})
	}
	return e, templates.CheckEntry("", &e)
}
