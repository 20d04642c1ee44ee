package nats

import (
	"bytes"
	"io/fs"
	"iter"
	"testing"

	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// FormTarget is one form as a target, with its own capabilities.
func FormTarget(form string) templates.Target { return templates.OfForm(Target(), form) }

// NewEvaluator reads an export as the server does.
var NewEvaluator = newEvaluator

// Subjects are the subjects of a filter, quoted, as they are written.
func Subjects(f topic.Filter) string { return string(appendSubjects(nil, f)) }

// ParseSubjects reads them back.
var ParseSubjects = parseSubjects

// MQTTSubject is the subject of a topic as the evaluator reads the server's source.
var MQTTSubject = subject

// Users writes the users of a form.
func Users(t testing.TB, form, trustDomain string, entries []templates.Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	b.WriteString(usersHead)
	for i := range entries {
		line, err := appendUser(nil, i, &entries[i], &templates.Setting{Form: form, TrustDomain: trustDomain})
		if err != nil {
			t.Fatal(err)
		}
		b.Write(line)
	}
	b.WriteString(usersTail)
	return b.Bytes()
}

// ReadUsers reads the users of a form, and holds them to the order of an export.
func ReadUsers(src fs.FS, form, trustDomain string) iter.Seq2[templates.Entry, error] {
	return readUsers(src, form, trustDomain)
}
