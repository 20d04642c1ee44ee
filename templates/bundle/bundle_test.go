package bundle_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/templates/bundle"
)

// material is that of a device, with a name that tries to get out of every string
// it is written into.
func material(t testing.TB) bundle.Material {
	t.Helper()
	pki := catest.New(t, time.Now)
	leaf := pki.DeviceLeaf("dev-1")
	key, err := x509.MarshalPKCS8PrivateKey(leaf.Key)
	if err != nil {
		t.Fatal(err)
	}
	return bundle.Material{
		ID: "dev-1", KeyPKCS8: key, Chain: [][]byte{leaf.DER, pki.Device.Certificate().Raw}, TrustBundle: pki.RootPEM(), Password: []byte("abcdefghijklmnopqrstuvwxyz012345"),
		Host: `mqtt"; int x = 1; //\x41` + "\n??/", Port: 8883, PasswordPort: 8884, Publish: []string{"devices/dev-1/up/#"},
	}
}

// write puts files into a directory and returns its path.
func write(t testing.TB, files []bundle.File) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f.Name), f.Data, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// tool runs a program and returns what it writes.
func tool(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestFiles(t *testing.T) {
	m := material(t)
	files, err := bundle.Files(m)
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]fs.FileMode{}
	for _, f := range files {
		modes[f.Name] = f.Mode
	}
	want := map[string]fs.FileMode{"key.pem": 0o600, "chain.pem": 0o644, "trust.pem": 0o644, "password": 0o600, "device.json": 0o644}
	if fmt.Sprint(modes) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", modes, want)
	}
	dir := write(t, files)
	tool(t, dir, "openssl", "verify", "-x509_strict", "-CAfile", "trust.pem", "-untrusted", "chain.pem", "chain.pem")
	if a, b := tool(t, dir, "openssl", "pkey", "-in", "key.pem", "-pubout"), tool(t, dir, "openssl", "x509", "-in", "chain.pem", "-noout", "-pubkey"); a != b {
		t.Error("the key is not that of the certificate")
	}
	text, err := os.ReadFile(filepath.Join(dir, "device.json"))
	if err != nil {
		t.Fatal(err)
	}
	var device struct {
		ID, Host, ClientID, Username string
		Port                         uint16
		Topics                       struct{ Publish, Receive []string }
		Files                        []string
	}
	if err := json.Unmarshal(text, &device); err != nil {
		t.Fatal(err)
	}
	if device.ID != m.ID || device.Host != m.Host || device.ClientID != m.ID || device.Username != m.ID || device.Port != 8883 ||
		!slices.Equal(device.Topics.Publish, m.Publish) || device.Topics.Receive == nil || !slices.Contains(device.Files, "key.pem") {
		t.Errorf("%s", text)
	}
	if bytes.Contains(text, m.Password) {
		t.Error("device.json holds the password")
	}
}

// TestOwnKey: a device that has its key, and no password, gets neither.
func TestOwnKey(t *testing.T) {
	m := material(t)
	m.KeyPKCS8, m.Password = nil, nil
	files, err := bundle.Files(m, bundle.DER, bundle.CHeader)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Mode != 0o644 || strings.HasPrefix(f.Name, "key") || f.Name == "password" {
			t.Errorf("%s, mode %o", f.Name, f.Mode)
		}
	}
	if _, err := bundle.Files(m, "jks"); err == nil {
		t.Error("an unknown format was made")
	}
	m.Chain = nil
	if _, err := bundle.Files(m); err == nil {
		t.Error("a bundle without a certificate was made")
	}
}

func TestPKCS12(t *testing.T) {
	m := material(t)
	for _, tt := range []struct {
		format bundle.Format
		file   string
		args   []string
	}{{bundle.PKCS12, "device.p12", nil}, {bundle.PKCS12Legacy, "device-legacy.p12", []string{"-legacy"}}} {
		files, err := bundle.Files(m, tt.format)
		if err != nil {
			t.Fatal(err)
		}
		dir := write(t, files)
		out := tool(t, dir, "openssl", append([]string{"pkcs12", "-in", tt.file, "-passin", "file:password", "-nodes"}, tt.args...)...)
		if strings.Count(out, "BEGIN CERTIFICATE") != 2 || strings.Count(out, "BEGIN PRIVATE KEY") != 1 {
			t.Errorf("%s: openssl reads\n%s", tt.format, out)
		}
	}
}

func TestDER(t *testing.T) {
	files, err := bundle.Files(material(t), bundle.DER)
	if err != nil {
		t.Fatal(err)
	}
	dir := write(t, files)
	if subject := tool(t, dir, "openssl", "x509", "-inform", "DER", "-in", "cert.der", "-noout", "-subject"); !strings.Contains(subject, "dev-1") {
		t.Errorf("cert.der: %s", subject)
	}
	tool(t, dir, "openssl", "pkey", "-inform", "DER", "-in", "key.der", "-noout")
	tool(t, dir, "openssl", "x509", "-inform", "DER", "-in", "trust.der", "-noout")
	tool(t, dir, "openssl", "x509", "-inform", "DER", "-in", "issuers.der", "-noout")
}

// TestHeader compiles identity.h and lets the program say what is in it.
func TestHeader(t *testing.T) {
	m := material(t)
	files, err := bundle.Files(m, bundle.CHeader)
	if err != nil {
		t.Fatal(err)
	}
	dir := write(t, append(files, bundle.File{Name: "main.c", Mode: 0o600, Data: []byte(`
#include <stdio.h>
#include "identity.h"
int main(void) {
	fwrite(imprint_host, 1, sizeof imprint_host - 1, stdout);
	printf("|%s|%s|%d|%d|", imprint_id, imprint_password, IMPRINT_PORT, IMPRINT_PASSWORD_PORT);
	printf("%u %u %u %zu %u", imprint_cert_der_len, imprint_key_der_len, imprint_trust_der_len, sizeof imprint_cert_der, imprint_cert_der[0]);
	printf("|%s|%u|%s|%u", imprint_chain_pem, imprint_chain_pem_len, imprint_trust_pem, imprint_key_pem_len);
	return 0;
}`)}))
	tool(t, dir, "gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused-variable", "-trigraphs", "-o", "main", "main.c")
	got := tool(t, dir, "./main")
	chain := ca.CertificatePEM(m.Chain...)
	der := len(m.Chain[0])
	trust, err := ca.ParseCertificatesPEM(m.TrustBundle)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%s|%s|%s|8883|8884|%d %d %d %d 48|%s|%d|%s|%d", m.Host, m.ID, m.Password,
		der, len(m.KeyPKCS8), len(trust[0].Raw), der, chain, len(chain)+1, m.TrustBundle, len(keyPEM)+1)
	if got != want {
		t.Errorf("the program says\n%s\nwant\n%s", got, want)
	}
}

func BenchmarkFiles(b *testing.B) {
	m := material(b)
	for b.Loop() {
		if _, err := bundle.Files(m); err != nil {
			b.Fatal(err)
		}
	}
}
