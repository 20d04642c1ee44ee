package main

import (
	"crypto"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imprint-iot/imprint/ca"
)

// bundles DIR N: there are N bundles, each with a certificate for its key, and no
// spool.
func bundlesCmd(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(entries) != want {
		ts.Fatalf("%d entries in %s, want %d bundles: %v", len(entries), args[0], want, entries)
	}
	for _, e := range entries {
		dir := filepath.Join(ts.MkAbs(args[0]), e.Name())
		chain, err := os.ReadFile(filepath.Join(dir, "chain.pem"))
		ts.Check(err)
		certs, err := ca.ParseCertificatesPEM(chain)
		ts.Check(err)
		text, err := os.ReadFile(filepath.Join(dir, "key.pem"))
		ts.Check(err)
		key, err := parseKey(text)
		ts.Check(err)
		if pub, ok := certs[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
			ts.Fatalf("%s: the certificate is not for the key", e.Name())
		}
		var device struct{ ID string }
		text, err = os.ReadFile(filepath.Join(dir, "device.json"))
		ts.Check(err)
		ts.Check(json.Unmarshal(text, &device))
		if certs[0].Subject.CommonName != e.Name() || device.ID != e.Name() {
			ts.Fatalf("%s: the bundle is that of %s and %s", e.Name(), certs[0].Subject.CommonName, device.ID)
		}
	}
}
