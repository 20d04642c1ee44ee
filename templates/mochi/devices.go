package mochi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// imprint.json is an object with the version of the format and a list of devices, one
// on a line, in the order of their IDs:
//
//	{"imprint":1,"devices":[
//	{"id":"dev-1","certificate":false,"password":{"salt":"...","iterations":101,"hash":"..."},"publish":["..."],"receive":["..."]},
//	{"id":"dev-2","certificate":true,"publish":[],"receive":["..."]}
//	]}
//
// An empty list lets nobody in.
const (
	devicesHead = `{"imprint":1,"devices":[`
	devicesTail = "\n]}\n"
)

const maxLine = 1 << 24 // bytes: a device has at most 64 rules of 65,535 bytes, six for some of them

// A device is one record.
type device struct {
	ID          inventory.DeviceID `json:"id"`
	Certificate bool               `json:"certificate"`
	Password    *password          `json:"password,omitempty"`
	Publish     []topic.Filter     `json:"publish"`
	Receive     []topic.Filter     `json:"receive"`
}

// A password is a PBKDF2-HMAC-SHA-512 verifier.
type password struct {
	Salt       []byte `json:"salt"`
	Iterations uint32 `json:"iterations"`
	Hash       []byte `json:"hash"`
}

func appendDevice(b []byte, n int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	d := device{ID: e.ID, Certificate: e.Certificate, Publish: []topic.Filter{}, Receive: []topic.Filter{}}
	if len(e.Verifiers) > 0 {
		v := e.Verifiers[0]
		d.Password = &password{Salt: v.Salt, Iterations: v.Iterations, Hash: v.Hash}
	}
	for _, g := range e.Grants {
		if why, _ := rule(topic.Rule{Action: g.Action, Filter: string(g.Filter)}); why != "" {
			return nil, &templates.EntryError{ID: e.ID, Why: fmt.Sprintf("may %s %.128q, and mochi cannot hold that: %s", g.Action, g.Filter, why)}
		}
		if g.Action == topic.Publish {
			d.Publish = append(d.Publish, g.Filter)
		} else {
			d.Receive = append(d.Receive, g.Filter)
		}
	}
	line, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	if n > 0 {
		b = append(b, ',')
	}
	b = append(b, '\n')
	return append(b, line...), nil
}

// A lineError reports a line that imprint does not write.
type lineError struct {
	line int
	why  string
}

func (e *lineError) Error() string {
	return fmt.Sprintf("reading %s: line %d: %s", DevicesName, e.line, e.why)
}

// readDevices yields the devices of imprint.json. All of it is, to the octet, what
// imprint writes.
func readDevices(src fs.FS, _ *templates.Setting) func(func(templates.Entry, error) bool) {
	return func(yield func(templates.Entry, error) bool) {
		f, err := templates.OpenFile(src, DevicesName)
		if err != nil {
			yield(templates.Entry{}, err)
			return
		}
		defer func() { _ = f.Close() }() // read only
		s := templates.NewLineScanner(f, maxLine)
		n, more, done := 0, false, false // more: the line before ended in a comma
		for s.Scan() {
			n++
			var e templates.Entry
			line, comma := bytes.CutSuffix(s.Bytes(), []byte(","))
			switch {
			case done:
				err = &lineError{n, "there is something after the end"}
			case n == 1 && string(line) == devicesHead && !comma:
				continue
			case n > 1 && !more && !comma && string(line) == "]}":
				done = true
				continue
			case n == 1 || n > 2 && !more:
				err = &lineError{n, "it is not what imprint writes"}
			default:
				e, err = parseDevice(line, n)
			}
			more = comma
			if !yield(e, err) || err != nil {
				return
			}
		}
		switch {
		case s.Err() != nil:
			yield(templates.Entry{}, fmt.Errorf("reading %s: %w", DevicesName, s.Err()))
		case !done:
			yield(templates.Entry{}, &lineError{n, "the end is missing"})
		}
	}
}

// parseDevice reads a line that appendDevice wrote: it is one if what it says is
// written like that.
func parseDevice(line []byte, n int) (templates.Entry, error) {
	var d device
	var e templates.Entry
	if err := json.Unmarshal(line, &d); err != nil { // what it does not know is found below
		return e, &lineError{n, "want a device"}
	}
	id, err := inventory.ParseDeviceID(string(d.ID))
	if err != nil {
		return e, &lineError{n, err.Error()}
	}
	e.ID, e.Certificate = id, d.Certificate
	if p := d.Password; p != nil {
		v := inventory.Verifier{Scheme: inventory.PBKDF2SHA512, Iterations: p.Iterations, Salt: p.Salt, Hash: p.Hash}
		if !isPBKDF2(v) {
			return e, &lineError{n, "want a password with salt, iterations and a hash of 64 octets"}
		}
		e.Verifiers = []inventory.Verifier{v}
	}
	for i, filters := range [][]topic.Filter{d.Publish, d.Receive} {
		for _, f := range filters {
			if _, err := topic.ParseFilter(string(f)); err != nil {
				return e, &lineError{n, err.Error()}
			}
			e.Grants = append(e.Grants, topic.Grant{Action: []topic.Action{topic.Publish, topic.Receive}[i], Filter: f})
		}
	}
	if same, err := appendDevice(nil, 0, &e, nil); err != nil || !bytes.Equal(same[1:], line) {
		return e, &lineError{n, "it is not what imprint writes"}
	}
	return e, nil
}
