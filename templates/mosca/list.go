package mosca

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// credentials.json is one JSON object with a device on each line:
//
//	{
//	"dev-1":{"salt":"...","hash":"...","authorizePublish":"#","authorizeSubscribe":"#","pub":[...],"sub":[...]},
//	"dev-2":{...}
//	}
const (
	head = "{"
	tail = "\n}\n"

	nothing = "#"     // to minimatch a comment, which matches nothing; no glob at all would match everything
	maxLine = 8 << 20 // bytes: 64 rules of 65,535 bytes are half of it

	iterations = 10_000 // fixed in pbkdf2-password
	hashSize   = 128
)

// A user is one line, without its name.
type user struct {
	Salt          []byte         `json:"salt"`
	Hash          []byte         `json:"hash"`
	PublishGlob   string         `json:"authorizePublish"`
	SubscribeGlob string         `json:"authorizeSubscribe"`
	Publish       []topic.Filter `json:"pub"`
	Subscribe     []topic.Filter `json:"sub"`
}

func isPBKDF2(v inventory.Verifier) bool {
	return v.Scheme == inventory.PBKDF2SHA1 && v.Iterations == iterations && len(v.Salt) > 0 && len(v.Hash) == hashSize
}

func appendDevice(b []byte, n int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	if len(e.Verifiers) == 0 {
		return nil, &templates.EntryError{ID: e.ID, Why: "has no password"}
	}
	v := e.Verifiers[0]
	d := user{v.Salt, v.Hash, nothing, nothing, []topic.Filter{}, []topic.Filter{}}
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
	b = append(b, "\n\""...)
	b = append(append(b, e.ID...), "\":"...)
	return append(b, line...), nil
}

// A lineError reports a line that imprint does not write.
type lineError struct {
	line int
	why  string
}

// Error names the line.
func (e *lineError) Error() string {
	return fmt.Sprintf("reading %s: line %d: %s", CredentialsName, e.line, e.why)
}

// devices reads credentials.json line by line. A line has to be what would be written for
// the device that it says.
func devices(src fs.FS, _ *templates.Setting) func(func(templates.Entry, error) bool) {
	return func(yield func(templates.Entry, error) bool) {
		f, err := templates.OpenFile(src, CredentialsName)
		if err != nil {
			yield(templates.Entry{}, err)
			return
		}
		defer func() { _ = f.Close() }() // read only
		s := templates.NewLineScanner(f, maxLine)
		r := reader{}
		for s.Scan() {
			e, ok, err := r.line(s.Bytes())
			if err != nil || ok {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
		if err := s.Err(); err != nil {
			yield(templates.Entry{}, fmt.Errorf("reading %s: %w", CredentialsName, err))
		} else if !r.ended {
			yield(templates.Entry{}, &lineError{r.n + 1, "the end is missing"})
		}
	}
}

// A reader knows where in the file it is.
type reader struct {
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
		if string(text) != head {
			return none, false, &lineError{r.n, "want the head of an export"}
		}
		return none, false, nil
	case r.ended:
		return none, false, &lineError{r.n, "comes after the end"}
	case string(text) == "}":
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
	var e templates.Entry
	name, text, ok := bytes.Cut(line, []byte(":"))
	var id string
	var u user
	if !ok || json.Unmarshal(name, &id) != nil || json.Unmarshal(text, &u) != nil {
		return e, errors.New("want a name and a device in JSON")
	}
	var err error
	if e.ID, err = inventory.ParseDeviceID(id); err != nil {
		return e, err
	}
	v := inventory.Verifier{Scheme: inventory.PBKDF2SHA1, Iterations: iterations, Salt: u.Salt, Hash: u.Hash}
	if !isPBKDF2(v) {
		return e, errors.New("want a salt, and a hash of 128 octets")
	}
	e.Verifiers = []inventory.Verifier{v}
	for _, f := range u.Publish {
		e.Grants = append(e.Grants, topic.Grant{Action: topic.Publish, Filter: f})
	}
	for _, f := range u.Subscribe {
		e.Grants = append(e.Grants, topic.Grant{Action: topic.Receive, Filter: f})
	}
	return e, templates.CheckEntry("", &e)
}
