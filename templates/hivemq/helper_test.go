package hivemq_test

import (
	"encoding/base64"
	"testing"

	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/hivemq"
)

func writeTo(tb testing.TB, dir string, v templates.View, form string) {
	tb.Helper()
	d, err := durable.OpenDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	if _, err := hivemq.Lenient().Write(d, v, templates.Options{Form: form, Now: start(), Dest: "/etc/imprint/hivemq"}); err != nil {
		tb.Fatal(err)
	}
}

func decode(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}
