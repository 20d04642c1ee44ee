package bundle_test

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/templates/bundle"
)

var all = []bundle.Format{bundle.PKCS12, bundle.PKCS12Legacy, bundle.DER, bundle.CHeader}

func names(files []bundle.File) []string {
	out := make([]string, len(files))
	for i, f := range files {
		out[i] = f.Name
	}
	return out
}

// TestEveryFormat at once, some twice, makes each file once.
func TestEveryFormat(t *testing.T) {
	files, err := bundle.Files(material(t), slices.Concat(all, all)...)
	if err != nil {
		t.Fatal(err)
	}
	want := "[key.pem chain.pem trust.pem password device.p12 device-legacy.p12 cert.der trust.der issuers.der key.der identity.h device.json]"
	if got := fmt.Sprint(names(files)); got != want {
		t.Errorf("%v, want %v", got, want)
	}
	for _, f := range files {
		secret := slices.Contains([]string{"key.pem", "password", "device.p12", "device-legacy.p12", "key.der", "identity.h"}, f.Name)
		if want := map[bool]uint32{true: 0o600, false: 0o644}[secret]; uint32(f.Mode) != want {
			t.Errorf("%s has mode %o, want %o", f.Name, f.Mode, want)
		}
	}
}

// TestMixed: in a batch, devices with keys of their own get what there is for them.
func TestMixed(t *testing.T) {
	m := material(t)
	m.KeyPKCS8 = nil
	files, err := bundle.Files(m, all...)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(names(files)), "[chain.pem trust.pem password cert.der trust.der issuers.der identity.h device.json]"; got != want {
		t.Errorf("%v, want %v", got, want)
	}
	m = material(t)
	m.Password = nil
	for _, f := range []bundle.Format{bundle.PKCS12, bundle.PKCS12Legacy} {
		if _, err := bundle.Files(m, f); err == nil {
			t.Errorf("%s: a key was protected with no password", f)
		}
	}
}

// TestPKCS12GnuTLS has the files read by another library than OpenSSL.
func TestPKCS12GnuTLS(t *testing.T) {
	if _, err := exec.LookPath("certtool"); err != nil {
		t.Fatal("certtool is not installed: apt-get install gnutls-bin")
	}
	m := material(t)
	files, err := bundle.Files(m, bundle.PKCS12, bundle.PKCS12Legacy)
	if err != nil {
		t.Fatal(err)
	}
	dir := write(t, files)
	for _, file := range []string{"device.p12", "device-legacy.p12"} {
		out := tool(t, dir, "certtool", "--p12-info", "--inder", "--infile", file, "--password", string(m.Password))
		if strings.Count(out, "BEGIN CERTIFICATE") != 2 || strings.Count(out, "PRIVATE KEY-----") != 2 || strings.Contains(out, "failed") {
			t.Errorf("%s: certtool reads\n%s", file, out)
		}
	}
}

// TestStringsOfC: whatever a string holds, the compiler gives back the same octets.
func TestStringsOfC(t *testing.T) {
	var octets strings.Builder
	for c := 1; c < 256; c++ { // a NUL ends a string of C
		octets.WriteByte(byte(c))
		octets.WriteByte('7') // a digit, that must not join an escape before it
	}
	m := material(t)
	m.Host = octets.String() + `"; #include "/etc/passwd" /* */ ??= ??/ \u0041 %s`
	files, err := bundle.Files(m, bundle.CHeader)
	if err != nil {
		t.Fatal(err)
	}
	dir := write(t, append(files, bundle.File{Name: "main.c", Mode: 0o600, Data: []byte(`
#include <stdio.h>
#include "identity.h"
int main(void) { return fwrite(imprint_host, 1, sizeof imprint_host - 1, stdout) != sizeof imprint_host - 1; }`)}))
	for _, std := range []string{"c99", "c11", "c17"} {
		tool(t, dir, "gcc", "-std="+std, "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-trigraphs", "-o", "main", "main.c")
		if got := tool(t, dir, "./main"); got != m.Host {
			t.Errorf("%s: the program says %q", std, got)
		}
	}
	tool(t, dir, "gcc", "-x", "c++", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-o", "main", "main.c", "-lstdc++")
}

func FuzzParseFormat(f *testing.F) {
	f.Add("pkcs12")
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := bundle.ParseFormat(text); err == nil && (string(got) != text || !slices.Contains(all, got)) {
			t.Errorf("%q is read as %q", text, got)
		}
	})
}
