package emqx_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/emqx"
)

// Whatever is read of lists is, to the octet, what would be written for it.
func fuzzLists(f *testing.F, form string, names ...string) {
	var seeds []any
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join("testdata", "golden", form, name))
		if err != nil {
			f.Fatal(err)
		}
		seeds = append(seeds, text)
	}
	if len(seeds) == 1 {
		seeds = append(seeds, []byte(nil))
	}
	f.Add(seeds...)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		src := fstest.MapFS{}
		for i, name := range names {
			src[name] = &fstest.MapFile{Data: [][]byte{a, b}[i]}
		}
		var entries []templates.Entry
		for e, err := range emqx.Devices(src, form) {
			if err != nil {
				return
			}
			entries = append(entries, e)
		}
		for name, again := range emqx.Lists(t, form, entries) {
			if !bytes.Equal(again, src[name].Data) {
				t.Errorf("%s: read\n%q\nwritten\n%q", name, src[name].Data, again)
			}
		}
	})
}

func FuzzFile(f *testing.F) { fuzzLists(f, emqx.File, emqx.ACLName, emqx.UsersName) }

func FuzzAPI(f *testing.F) { fuzzLists(f, emqx.API, emqx.RulesName, emqx.UsersName) }

func FuzzSQL(f *testing.F) { fuzzLists(f, emqx.PostgreSQL, emqx.SQLName) }

// The evaluator reads whatever there is without a panic.
func FuzzEvaluator(f *testing.F) {
	conf, err := os.ReadFile(filepath.Join("testdata", "golden", "file", emqx.ConfName))
	if err != nil {
		f.Fatal(err)
	}
	acl, err := os.ReadFile(filepath.Join("testdata", "golden", "file", emqx.ACLName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(conf, acl)
	f.Fuzz(func(t *testing.T, conf, acl []byte) {
		e, err := emqx.NewEvaluator(fstest.MapFS{
			emqx.ConfName: {Data: conf}, emqx.ACLName: {Data: acl}, emqx.UsersName: {Data: acl}, emqx.RulesName: {Data: acl}, emqx.SQLName: {Data: acl},
		})
		if (e == nil) == (err == nil) {
			t.Errorf("evaluator %v, error %v", e, err)
		}
	})
}
