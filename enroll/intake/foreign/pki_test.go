package foreign

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// An authority is a folder that "openssl ca" works in, laid out as easy-rsa does.
type authority struct {
	t   testing.TB
	dir string
}

func openssl(t testing.TB, dir string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("openssl is not there: apt-get install openssl")
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

const opensslConf = `[ca]
default_ca = ours
[ours]
dir = .
database = index.txt
serial = serial
new_certs_dir = certs_by_serial
certificate = ca.crt
private_key = private/ca.key
default_md = sha256
default_days = 3650
policy = any
unique_subject = no
x509_extensions = client
copy_extensions = none
[any]
commonName = optional
serialNumber = optional
organizationName = optional
[client]
basicConstraints = CA:FALSE
extendedKeyUsage = clientAuth
authorityKeyIdentifier = keyid
[server]
basicConstraints = CA:FALSE
extendedKeyUsage = serverAuth
[req]
distinguished_name = dn
prompt = no
[dn]
CN = unused
`

func newAuthority(t testing.TB) *authority {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	for _, d := range []string{"private", "issued", "reqs", "certs_by_serial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"index.txt": "", "serial": "1001\n", "openssl.cnf": opensslConf} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := &authority{t, dir}
	openssl(t, dir, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "private/ca.key", "-out", "ca.crt", "-subj", "/CN=Old CA", "-days", "3650")
	return a
}

// issue signs a certificate for the key of another name, or for a new one of a kind.
func (a *authority) issue(file, subject, keyOf string, args ...string) {
	a.t.Helper()
	key := filepath.Join("private", keyOf+".key")
	if _, err := os.Stat(filepath.Join(a.dir, key)); err != nil {
		openssl(a.t, a.dir, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
	}
	openssl(a.t, a.dir, "req", "-new", "-config", "openssl.cnf", "-key", key, "-subj", subject, "-out", "reqs/"+file+".req")
	openssl(a.t, a.dir, append([]string{"ca", "-batch", "-config", "openssl.cnf", "-notext", "-in", "reqs/" + file + ".req", "-out", "issued/" + file + ".crt"}, args...)...)
}

func find(p *Plan, code, subject string) bool {
	return slices.ContainsFunc(p.Findings, func(f Finding) bool { return f.Code == code && f.Subject == subject })
}

func device(t testing.TB, p *Plan, name string) *Device {
	t.Helper()
	i := slices.IndexFunc(p.Devices, func(d Device) bool { return d.Name == name })
	if i < 0 {
		t.Fatalf("there is no device %q: %s", name, report(p))
	}
	return &p.Devices[i]
}

func TestOpenSSLFolder(t *testing.T) {
	a := newAuthority(t)
	a.issue("good", "/O=acme/CN=good/serialNumber=HW-1", "good")
	a.issue("stolen", "/CN=stolen", "stolen")
	openssl(t, a.dir, "ca", "-config", "openssl.cnf", "-revoke", "issued/stolen.crt", "-crl_reason", "keyCompromise")
	a.issue("again", "/CN=again", "again")
	openssl(t, a.dir, "ca", "-config", "openssl.cnf", "-revoke", "issued/again.crt", "-crl_reason", "superseded")
	a.issue("again2", "/CN=again", "again2")
	a.issue("twice", "/CN=twice", "twice")
	a.issue("twice2", "/CN=twice", "twice2")
	a.issue("copied", "/CN=copied", "good")
	a.issue("old", "/CN=old", "old", "-startdate", "20200101000000Z", "-enddate", "20210101000000Z")
	a.issue("broker", "/CN=broker.example", "broker", "-extensions", "server")
	a.issue("lost", "/CN=lost", "lost")
	openssl(t, a.dir, "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024", "-out", "private/weak.key")
	a.issue("weak", "/CN=weak", "weak", "-md", "sha1")
	a.issue("slash", "/CN=a\\/b=c", "slash")
	// what was never meant for others is gone, and so is one certificate
	for _, name := range []string{"issued/lost.crt", "certs_by_serial/100A.pem"} {
		if err := os.Remove(filepath.Join(a.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(filepath.Dir(a.dir))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()

	kinds, err := Detect(root.FS())
	if err != nil || !slices.Equal(kinds, []string{OpenSSL}) {
		t.Fatalf("Detect = %v, %v", kinds, err)
	}
	p, err := Read(t.Context(), root.FS(), OpenSSL, Options{Profile: "default", Now: moment()})
	if err != nil {
		t.Fatal(err)
	}
	checkPlan(t, p)
	for _, tt := range []struct {
		name         string
		certificates int
		problem      string
		codes        []string
	}{
		{"good", 1, "", nil},
		{"stolen", 1, "its certificate was revoked", []string{"revoked"}},
		{"again", 2, "", nil},
		{"twice", 2, "", []string{"duplicate-name"}},
		{"copied", 1, "", []string{"shared-key"}},
		{"old", 1, "", []string{"expired"}},
		{"lost", 1, "", nil},
		{"weak", 1, "", []string{"weak-key", "weak-signature"}},
		{"a/b=c", 1, "its name is no device id", []string{"name"}},
	} {
		d := device(t, p, tt.name)
		if len(d.Certificates) != tt.certificates {
			t.Errorf("%s: %d certificates, want %d", tt.name, len(d.Certificates), tt.certificates)
		}
		if got := strings.Join(d.Problems, "; "); tt.problem == "" && got != "" || !strings.HasPrefix(got, tt.problem) {
			t.Errorf("%s: problems %q, want %q", tt.name, got, tt.problem)
		}
		for _, code := range tt.codes {
			if !find(p, code, tt.name) {
				t.Errorf("%s: there is no finding %s:\n%s", tt.name, code, report(p))
			}
		}
	}
	if slices.ContainsFunc(p.Devices, func(d Device) bool { return d.Name == "broker.example" }) {
		t.Error("a server's certificate has become a device")
	}
	good := device(t, p, "good")
	if serial, _ := good.Labels.Get("foreign-serial"); serial != "1001" || good.HardwareSerial != "HW-1" {
		t.Errorf("good: serial number %q, hardware serial %q", serial, good.HardwareSerial)
	}
	want := strings.ToLower(strings.ReplaceAll(strings.TrimSpace(strings.SplitN(openssl(t, a.dir, "x509", "-in", "issued/good.crt", "-noout", "-fingerprint", "-sha256"), "=", 2)[1]), ":", ""))
	if got, _ := good.Labels.Get("foreign-fingerprint"); got != want {
		t.Errorf("good: fingerprint %s, want %s", got, want)
	}
	again := device(t, p, "again")
	if !again.Certificates[0].RevokedAt.IsZero() || again.Certificates[1].Reason != "superseded" {
		t.Errorf("again: the good certificate does not come first: %+v", again.Certificates)
	}
	if !find(p, "private-keys", "") || !find(p, "certificates", "") {
		t.Errorf("findings are missing:\n%s", report(p))
	}
}

func TestPEMFolder(t *testing.T) {
	a := newAuthority(t)
	a.issue("one", "/CN=one", "one")
	a.issue("two", "/O=nobody", "two")
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(a.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	der := openssl(t, a.dir, "x509", "-in", "issued/one.crt", "-outform", "DER")
	src := fstest.MapFS{
		"a/one.pem":     {Data: append(read("private/one.key"), read("issued/one.crt")...)},
		"b/one.crt":     {Data: []byte(der)}, // the same again
		"b/two.pem":     {Data: read("issued/two.crt")},
		"ca.pem":        {Data: read("ca.crt")},
		"b/garbage.pem": {Data: []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")},
	}
	p, err := Read(t.Context(), src, "", Options{Profile: "default", Now: moment()})
	if err != nil {
		t.Fatal(err)
	}
	checkPlan(t, p)
	if p.Kind != PEM || len(p.Devices) != 1 || len(device(t, p, "one").Certificates) != 1 {
		t.Errorf("plan:\n%s", report(p))
	}
	for _, code := range []string{"no-name", "certificate", "authorities", "no-revocations"} {
		if !find(p, code, "") {
			t.Errorf("there is no finding %s:\n%s", code, report(p))
		}
	}
}

func TestIndexLine(t *testing.T) {
	for _, tt := range []struct{ line, name, serial, revoked string }{
		{"V\t361121000000Z\t\t1000\tunknown\t/CN=dev-1", "dev-1", "1000", ""},
		{"R\t361121000000Z\t260102030405Z,keyCompromise\t0A\tunknown\t/C=DE/CN=dev-1/O=x", "dev-1", "0a", "2026-01-02"},
		{"R\t20501121000000Z\t260102030405Z,holdInstruction,1.2.3\t0A\tunknown\t/CN=a/b/emailAddress=x", "a/b", "0a", "2026-01-02"},
		{"E\t490101000000Z\t\t01\tunknown\t/O=x", "", "01", ""},
		{"X\t490101000000Z\t\t01\tunknown\t/O=x", "", "", ""},
		{"R\t490101000000Z\t\t01\tunknown\t/O=x", "", "", ""},
		{"V\t490101000000Z\t01\tunknown\t/O=x", "", "", ""},
		{"V\tyesterday\t\t01\tunknown\t/O=x", "", "", ""},
		{"V\t490101000000Z\t\t-1\tunknown\t/O=x", "", "", ""},
	} {
		e, err := readIndexLine(tt.line)
		if (err == nil) != (tt.serial != "") {
			t.Errorf("%q: %v", tt.line, err)
		}
		if err != nil {
			continue
		}
		revoked := ""
		if !e.revokedAt.IsZero() {
			revoked = e.revokedAt.Format("2006-01-02")
		}
		if got := fmt.Sprint(e.name, " ", e.serial, " ", revoked); got != fmt.Sprint(tt.name, " ", tt.serial, " ", tt.revoked) {
			t.Errorf("%q: %s", tt.line, got)
		}
	}
}
