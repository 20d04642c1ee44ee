package hivemq

import (
	"encoding/base64"
	"fmt"
	"io"
	"strconv"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// credentials.xml has one user and one role of the same name for each device, all
// users first. The File RBAC extension takes a file without users, or a role without
// permissions, for a mistake, and goes on with the old file: the last device could not
// be revoked. So there is always a user whom it refuses by his name already, since "#"
// is no character of a user name to it, and whose password is nobody's.
const (
	lockedUser = "#imprint"

	usersHead = "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n<!-- Written by imprint. Do not edit: the next export replaces it. -->\n<file-rbac>\n<users>\n"
	rolesHead = "</users>\n<roles>\n"
	rolesTail = "</roles>\n</file-rbac>\n"
)

// manyDevices is above what one file should hold.
const manyDevices = 20_000

// nowhere is a topic that stands for no rights at all, since a role must have some.
// Nobody but a reader of the file can name it, and nobody may publish there.
func nowhere(serverKey []byte) (topic.Filter, error) {
	b, err := derive(serverKey, "no topic", 16)
	return topic.Filter(fmt.Sprintf("imprint-none/%x", b)), err
}

// locked is the password of the locked user: a hash of which nobody knows what of.
func locked(serverKey []byte) (inventory.Verifier, error) {
	b, err := derive(serverKey, "locked user", 80)
	if err != nil {
		return inventory.Verifier{}, err
	}
	return inventory.Verifier{Scheme: inventory.PBKDF2SHA512, Iterations: 1, Salt: b[:16], Hash: b[16:]}, nil
}

// A secretFile is what of credentials.xml comes from the server's key.
type secretFile struct {
	nowhere topic.Filter
	user    []byte // the line of the locked user
	role    []byte
}

func newSecretFile(serverKey []byte) (*secretFile, error) {
	none, err := nowhere(serverKey)
	if err != nil {
		return nil, err
	}
	v, err := locked(serverKey)
	if err != nil {
		return nil, err
	}
	f := &secretFile{nowhere: none, user: appendUser(nil, lockedUser, &v)}
	f.role, err = f.appendRole(nil, &templates.Entry{ID: lockedUser})
	return f, err
}

func appendUser(b []byte, name string, v *inventory.Verifier) []byte {
	b = append(append(b, "<user><name>"...), name...)
	b = append(b, "</name><password>"...)
	b = base64.StdEncoding.AppendEncode(b, v.Salt)
	b = strconv.AppendInt(append(b, ':'), int64(v.Iterations), 10)
	b = base64.StdEncoding.AppendEncode(append(b, ':'), v.Hash)
	b = append(append(b, "</password><roles><id>"...), name...)
	return append(b, "</id></roles></user>\n"...)
}

func (f *secretFile) appendRole(b []byte, e *templates.Entry) ([]byte, error) {
	b = append(append(b, "<role><id>"...), e.ID...)
	b = append(b, "</id><permissions>"...)
	grants := e.Grants
	if len(grants) == 0 {
		grants = []topic.Grant{{Action: topic.Receive, Filter: f.nowhere}}
	}
	for _, g := range grants {
		if err := checkText(e, g.Filter); err != nil {
			return nil, err
		}
		b = append(appendXML(append(b, "<permission><topic>"...), string(g.Filter)), "</topic><activity>"...)
		switch g.Action {
		case topic.Publish:
			b = append(b, activityPublish...)
		case topic.Receive:
			b = append(b, activitySubscribe...)
		default:
			return nil, &templates.EntryError{ID: e.ID, Why: "an action that is none"}
		}
		b = append(b, "</activity><shared-subscription>NOT_SHARED</shared-subscription></permission>"...)
	}
	return append(b, "</permissions></role>\n"...), nil
}

// What a permission is for (TopicPermission.MqttActivity).
const (
	activityPublish   = "PUBLISH"
	activitySubscribe = "SUBSCRIBE"
)

// appendXML appends character data (XML 1.0 §2.4).
func appendXML(b []byte, s string) []byte {
	for i := range len(s) {
		switch s[i] {
		case '&':
			b = append(b, "&amp;"...)
		case '<':
			b = append(b, "&lt;"...)
		case '>':
			b = append(b, "&gt;"...)
		default:
			b = append(b, s[i])
		}
	}
	return b
}

// writeCredentials writes the users and then the roles.
func writeCredentials(v templates.View, out *templates.Output) error {
	f, err := newSecretFile(v.Node().ServerKey.Reveal())
	if err != nil {
		return err
	}
	w := out.File(CredentialsName)
	if _, err := w.Write(append([]byte(usersHead), f.user...)); err != nil {
		return err
	}
	pick := kit(capabilities(FileRBAC, inventory.PBKDF2SHA512), nil).Pick
	var buf []byte
	n := 0
	err = passwordEntries(v, func(e *templates.Entry) error {
		p, ok := pick(e.Verifiers)
		if !ok {
			return nil // the kit says why not
		}
		n++
		buf = appendUser(buf[:0], string(e.ID), &p)
		_, err := w.Write(buf)
		return err
	})
	if err != nil {
		return err
	}
	if n > manyDevices {
		out.Warn(fmt.Sprintf("more than %d users in one file, all of which the extension reads again at each change: the form %s has rows for a database", manyDevices, ESESQL))
	}
	if _, err := w.Write(append([]byte(rolesHead), f.role...)); err != nil {
		return err
	}
	err = passwordEntries(v, func(e *templates.Entry) error {
		if _, ok := pick(e.Verifiers); !ok {
			return nil
		}
		var err error
		if buf, err = f.appendRole(buf[:0], e); err != nil {
			return err
		}
		_, err = w.Write(buf)
		return err
	})
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, rolesTail)
	return err
}

// passwordEntries calls fn with each entry that has a password, after the fence.
func passwordEntries(v templates.View, fn func(e *templates.Entry) error) error {
	var prev inventory.DeviceID
	for e, err := range v.Entries() {
		if err != nil {
			return err
		}
		if err := templates.CheckEntry(prev, &e); err != nil {
			return err
		}
		prev = e.ID
		if len(e.Verifiers) == 0 {
			continue
		}
		if err := fn(&e); err != nil {
			return err
		}
	}
	return nil
}
