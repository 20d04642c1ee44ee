package artemis

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// maxLine is the longest line that is read back, in bytes: the members of one role.
const maxLine = 64 << 20

func foreign(name string) error {
	return fmt.Errorf("reading %s: it is not what imprint writes", name)
}

// eachLine yields the lines of a file, without their ends. A line is good until the
// next one.
func eachLine(src fs.FS, name string) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		f, err := templates.OpenFile(src, name)
		if err != nil {
			yield(nil, err)
			return
		}
		defer func() { _ = f.Close() }() // it was only read
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, maxLine)
		for lines.Scan() {
			if !yield(lines.Bytes(), nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(nil, fmt.Errorf("reading %s: %w", name, err))
		}
	}
}

// A property is one line of a file in the form of java.util.Properties.
type property struct{ key, value []byte }

// eachProperty reads such a file of ours.
func eachProperty(src fs.FS, name string) iter.Seq2[property, error] {
	return func(yield func(property, error) bool) {
		first := true
		for line, err := range eachLine(src, name) {
			if first && err == nil && string(line)+"\n" == propertiesHead {
				first = false
				continue
			}
			key, value, ok := bytes.Cut(line, []byte("="))
			if err == nil && (first || !ok) {
				err = foreign(name)
			}
			if !yield(property{key, value}, err) || err != nil {
				return
			}
		}
	}
}

// A reading is an export that is read back.
type reading struct {
	src     fs.FS
	setting *templates.Setting
	table   *table
	at      map[string]int32 // index by ID
	named   []bool           // whether there is a certificate of the device
	own     [][]topic.Grant
}

// readDevices reads the files, as a function that yields the devices. What was read is
// written again, and has to be the same: there is one way to write it.
func readDevices(src fs.FS, s *templates.Setting) func(yield func(templates.Entry, error) bool) {
	return func(yield func(templates.Entry, error) bool) {
		r := &reading{src: src, setting: s, table: newTable(), at: map[string]int32{}}
		err := r.readNames()
		if err == nil {
			err = r.readRights()
		}
		if err == nil {
			err = r.same()
		}
		if err != nil {
			yield(templates.Entry{}, err)
			return
		}
		r.yield(yield)
	}
}

// readNames merges the devices of both files, which are in the order of canonical IDs.
func (r *reading) readNames() error {
	users, stopUsers := iter.Pull2(eachProperty(r.src, UsersName))
	defer stopUsers()
	certs, stopCerts := iter.Pull2(eachProperty(r.src, CertificatesName))
	defer stopCerts()
	next := func(pull func() (property, error, bool)) (inventory.DeviceID, error) {
		p, err, ok := pull()
		if !ok || err != nil {
			return "", err
		}
		return inventory.DeviceID(p.key), nil
	}
	u, err1 := next(users)
	c, err2 := next(certs)
	for u != "" || c != "" {
		id := u
		if id == "" || c != "" && c.Canonical() < id.Canonical() {
			id = c
		}
		if _, twice := r.at[string(id)]; twice {
			return foreign(UsersName)
		}
		r.at[string(id)] = int32(len(r.table.ids))
		r.table.ids, r.named = append(r.table.ids, id), append(r.named, c == id)
		if c == id {
			c, err2 = next(certs)
		}
		if u == id {
			u, err1 = next(users)
		}
	}
	return errors.Join(err1, err2)
}

// readRights reads from broker.xml who has which filter himself.
func (r *reading) readRights() error {
	groups := map[string][]int32{}
	for p, err := range eachProperty(r.src, RolesName) {
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(p.key, []byte("@")) || string(p.key)+"=" == lockedRole {
			continue
		}
		var list []int32
		for name := range bytes.SplitSeq(p.value, []byte(",")) {
			n, ok := r.at[string(name)]
			if !ok {
				return foreign(RolesName)
			}
			list = append(list, n)
		}
		groups[string(p.key)] = list
	}
	r.own = make([][]topic.Grant, len(r.table.ids))
	for right, err := range eachOwnRight(r.src) {
		if err != nil {
			return err
		}
		one, ok := r.at[right.role]
		list := []int32{one}
		if !ok {
			list = groups[right.role]
		}
		if len(list) == 0 {
			return foreign(BrokerName)
		}
		for _, n := range list {
			if err := r.table.grant(n, right.grant); err != nil {
				return err
			}
			r.own[n] = append(r.own[n], right.grant)
		}
	}
	return nil
}

// An ownRight is a filter that the devices of a role have themselves.
type ownRight struct {
	role  string
	grant topic.Grant
}

func eachOwnRight(src fs.FS) iter.Seq2[ownRight, error] {
	return func(yield func(ownRight, error) bool) {
		var filter topic.Filter
		wider := false
		for line, err := range eachLine(src, BrokerName) {
			if err != nil {
				yield(ownRight{}, err)
				return
			}
			if text, ok := bytes.CutPrefix(line, []byte(`    <security-setting match="`)); ok {
				text, _ = bytes.CutSuffix(text, []byte(`">`))
				filter, wider = topic.Filter(xmlText(string(text))), false
				continue
			}
			wider = wider || len(line)+1 == len(byWider) && string(line)+"\n" == byWider
			if wider {
				continue
			}
			g := topic.Grant{Action: topic.Publish, Filter: filter}
			role, ok := bytes.CutPrefix(line, []byte(`      <permission type="send" roles="`))
			if !ok {
				g.Action = topic.Receive
				role, ok = bytes.CutPrefix(line, []byte(`      <permission type="consume" roles="`))
			}
			role, _ = bytes.CutSuffix(role, []byte(`"/>`))
			if ok && !yield(ownRight{string(role), g}, nil) {
				return
			}
		}
	}
}

// same writes the files again from what was read, but for the users, and compares.
func (r *reading) same() error {
	key, err := templates.ReadFile(r.src, templates.KeyFile)
	if err != nil {
		return err
	}
	sums := map[string]hash.Hash{CertificatesName: sha256.New(), RolesName: sha256.New(), BrokerName: sha256.New()}
	b := []byte(propertiesHead)
	for i, id := range r.table.ids {
		if b, err = appendCertificate(b, i, &templates.Entry{ID: id, Certificate: r.named[i]}, r.setting); err != nil {
			return err
		}
		_, _ = sums[CertificatesName].Write(b) // a hash takes everything
		b = b[:0]
	}
	if len(b) > 0 {
		_, _ = sums[CertificatesName].Write(b)
	}
	if err := r.table.complete(); err != nil {
		return err
	}
	if err := r.table.writeRoles(sums[RolesName]); err != nil {
		return err
	}
	out := bufio.NewWriterSize(sums[BrokerName], 1<<16)
	if err := errors.Join(r.table.writeBroker(out, r.setting, key), out.Flush()); err != nil {
		return err
	}
	for name, want := range sums {
		f, err := templates.OpenFile(r.src, name)
		if err != nil {
			return err
		}
		got := sha256.New()
		_, err = io.Copy(got, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
		if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			return foreign(name)
		}
	}
	r.table.rows, r.table.wild = nil, nil
	return nil
}

// yield yields the devices, with their passwords.
func (r *reading) yield(yield func(templates.Entry, error) bool) {
	users, stop := iter.Pull2(eachProperty(r.src, UsersName))
	defer stop()
	p, err, more := users()
	for n, id := range r.table.ids {
		e := templates.Entry{ID: id, Certificate: r.named[n], Grants: r.own[n]}
		if more && err == nil && string(p.key) == string(id) {
			v, ok := verifierOf(string(p.value))
			e.Verifiers = []inventory.Verifier{v}
			line, _ := appendUser(nil, n, &e, r.setting) // it has no error to return
			if !ok || strings.TrimSuffix(string(line), "\n") != string(p.key)+"="+string(p.value) {
				err = foreign(UsersName)
			} else {
				p, err, more = users()
			}
		}
		if err != nil {
			e = templates.Entry{}
		}
		if !yield(e, err) || err != nil {
			return
		}
	}
	if err != nil || more {
		yield(templates.Entry{}, errors.Join(err, foreign(UsersName)))
	}
}
