package server_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
	"github.com/imprint-iot/imprint/inventory"
)

// Clients that nobody here wrote.

// tool runs a program that a Debian package brings, and returns its standard
// output.
func tool(t *testing.T, pkg, dir string, in []byte, name string, args ...string) ([]byte, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is required: install the Debian package %s", name, pkg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Logf("%s: %v\n%s%s", name, err, out, stderr.Bytes())
	}
	return append(out, stderr.Bytes()...), err
}

func mustTool(t *testing.T, pkg, dir string, name string, args ...string) string {
	t.Helper()
	out, err := tool(t, pkg, dir, nil, name, args...)
	if err != nil {
		t.Fatalf("%s failed", name)
	}
	return string(out)
}

func write(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestStrongSwan(t *testing.T) {
	f := servertest.Start(t, servertest.Options{})
	dir := t.TempDir()
	const pkg = "strongswan-pki and libstrongswan-extra-plugins"
	mustTool(t, pkg, dir, "pki", "--estca", "--url", f.URL, "--cacert", f.RootFile, "--caout", "ca", "--outform", "pem")
	got, err := filepath.Glob(filepath.Join(dir, "ca*"))
	if err != nil || len(got) < 2 {
		t.Errorf("CA certificates in %v, %v: want the root and an issuer", got, err)
	}

	key := mustTool(t, "openssl", dir, "openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
	write(t, dir, "key.pem", []byte(key[strings.Index(key, "-----BEGIN"):]))
	mustTool(t, "openssl", dir, "openssl", "req", "-new", "-key", "key.pem", "-subj", "/CN=dev-1", "-out", "dev.csr")
	// It sends Basic unasked, with 202 it asks again: one approval in between.
	token := f.Token(inventory.Token{Devices: devices("dev-1"), Profile: "quiet", Approve: true})
	approved := make(chan error, 1)
	go func() {
		for range 600 {
			waiting, err := f.Approvals(context.Background())
			if err == nil && len(waiting) > 0 {
				_, err = f.Approve(context.Background(), "test", "", waiting[0].Key, true)
				approved <- err
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		approved <- context.DeadlineExceeded
	}()
	ca0 := got[0]
	for _, c := range got {
		if text, err := os.ReadFile(c); err == nil && bytes.Equal(text, mustRead(t, f.RootFile)) {
			ca0 = c
		}
	}
	args := []string{"--est", "--url", f.URL, "--in", "dev.csr", "--cacert", f.RootFile, "--userpass", "dev-1:" + token, "--interval", "1", "--maxpolltime", "30", "--outform", "pem"}
	for _, c := range got {
		if c != ca0 {
			args = append(args, "--cacert", c)
		}
	}
	cert, err := tool(t, pkg, dir, nil, "pki", args...)
	if err != nil {
		t.Fatal("enrolling with strongSwan failed")
	}
	if err := <-approved; err != nil {
		t.Fatal(err)
	}
	write(t, dir, "dev.pem", onlyPEM(cert))
	if subject := mustTool(t, "openssl", dir, "openssl", "x509", "-in", "dev.pem", "-noout", "-subject"); !strings.Contains(subject, "dev-1") {
		t.Errorf("subject %s", subject)
	}

	// Renewal, with the names of the certificate in the request.
	mustTool(t, "openssl", dir, "openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "new.pem")
	mustTool(t, "openssl", dir, "openssl", "req", "-new", "-key", "new.pem", "-subj", "/O=acme/CN=dev-1", "-addext", "subjectAltName=URI:spiffe://acme/device/dev-1", "-out", "new.csr")
	renew := []string{"--est", "--url", f.URL, "--in", "new.csr", "--cert", "dev.pem", "--key", "key.pem", "--outform", "pem", "--cacert", f.RootFile}
	for _, c := range got {
		if c != ca0 {
			renew = append(renew, "--cacert", c)
		}
	}
	cert, err = tool(t, pkg, dir, nil, "pki", renew...)
	if err != nil {
		t.Fatal("renewing with strongSwan failed")
	}
	if block, _ := pem.Decode(onlyPEM(cert)); block == nil {
		t.Errorf("renewed: %s", cert)
	}
	// With other names it is refused.
	mustTool(t, "openssl", dir, "openssl", "req", "-new", "-key", "new.pem", "-subj", "/CN=dev-1", "-out", "bare.csr")
	renew[4] = "bare.csr"
	if _, err := tool(t, pkg, dir, nil, "pki", renew...); err == nil {
		t.Error("a request with another subject than the certificate was renewed over EST")
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// onlyPEM cuts off what a program has said besides.
func onlyPEM(b []byte) []byte {
	i, j := bytes.Index(b, []byte("-----BEGIN")), bytes.LastIndex(b, []byte("-----END CERTIFICATE-----"))
	if i < 0 || j < i {
		return nil
	}
	return append(b[i:j], "-----END CERTIFICATE-----\n"...)
}

func TestBouncyCastle(t *testing.T) {
	f := servertest.Start(t, servertest.Options{})
	dir := t.TempDir()
	const jars = "/usr/share/java/bcprov.jar:/usr/share/java/bcpkix.jar:/usr/share/java/bcutil.jar"
	for jar := range strings.SplitSeq(jars, ":") {
		if _, err := os.Stat(jar); err != nil {
			t.Fatalf("%s is required: install the Debian package libbcpkix-java", jar)
		}
	}
	source, err := filepath.Abs("testdata/EstClient.java")
	if err != nil {
		t.Fatal(err)
	}
	mustTool(t, "default-jdk-headless", dir, "javac", "-nowarn", "-cp", jars, "-d", dir, source)
	token := f.Token(inventory.Token{Devices: devices("dev-bc"), Profile: "quiet"})
	out := mustTool(t, "default-jdk-headless", dir, "java", "-cp", jars+":"+dir, "EstClient", strings.TrimPrefix(f.URL, "https://"), f.RootFile, "dev-bc", token)
	for _, want := range []string{"cacerts 3", "csrattrs 2", "certificate O=acme,CN=dev-bc"} {
		if !strings.Contains(out, want) {
			t.Errorf("Bouncy Castle says %q, want %q in it", out, want)
		}
	}
}

// The commands of a hurried person: curl and openssl.
func TestCurl(t *testing.T) {
	f := servertest.Start(t, servertest.Options{})
	dir := t.TempDir()
	curl := func(args ...string) string {
		return mustTool(t, "curl", dir, "curl", append([]string{"-sS", "--fail-with-body", "--cacert", f.RootFile}, args...)...)
	}
	mustTool(t, "openssl", dir, "openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "dev.key", "-subj", "/CN=dev-1", "-out", "dev.csr")
	token := f.Token(inventory.Token{Devices: devices("dev-1"), Profile: "quiet"})
	curl("-H", "Authorization: Bearer "+token, "-H", "Content-Type: application/pkcs10", "--data-binary", "@dev.csr", f.URL+"/v1/enroll", "-o", "dev.pem")
	if out := mustTool(t, "openssl", dir, "openssl", "verify", "-CAfile", f.RootFile, "-untrusted", "dev.pem", "dev.pem"); !strings.Contains(out, "OK") {
		t.Errorf("openssl verify: %s", out)
	}
	// EST's own form.
	curl(f.URL+"/.well-known/est/cacerts", "-o", "cacerts")
	mustTool(t, "openssl", dir, "openssl", "base64", "-d", "-A", "-in", "cacerts", "-out", "cacerts.p7")
	if out := mustTool(t, "openssl", dir, "openssl", "pkcs7", "-inform", "DER", "-in", "cacerts.p7", "-print_certs", "-noout"); strings.Count(out, "subject=") != 3 {
		t.Errorf("cacerts: %s", out)
	}
	who := curl("--cert", "dev.pem", "--key", "dev.key", f.URL+"/v1/whoami")
	if !strings.Contains(who, `"device":"dev-1"`) {
		t.Errorf("whoami: %s", who)
	}
	// One TLS policy: what is old is not spoken, and 0-RTT is not offered.
	for _, arg := range []string{"-tls1_1", "-tls1"} {
		if _, err := tool(t, "openssl", dir, nil, "openssl", "s_client", "-connect", f.Addr, arg, "-cipher", "DEFAULT@SECLEVEL=0", "-brief"); err == nil {
			t.Errorf("net-016: %s is spoken", arg)
		}
	}
	if _, err := tool(t, "openssl", dir, nil, "openssl", "s_client", "-connect", f.Addr, "-tls1_2", "-cipher", "AES128-GCM-SHA256", "-brief"); err == nil {
		t.Error("net-016: RSA key exchange is spoken")
	}
	out, _ := tool(t, "openssl", dir, []byte("x"), "openssl", "s_client", "-connect", f.Addr, "-tls1_3", "-CAfile", f.RootFile, "-verify_return_error")
	if !bytes.Contains(out, []byte("TLSv1.3")) || bytes.Contains(out, []byte("Max Early Data: 16384")) || bytes.Contains(out, []byte("Session Ticket")) {
		t.Errorf("net-019, tok-028: %s", out)
	}
	for _, name := range []string{"localhost", "LOCALHOST", "other.example", "*"} { // net-018
		out, _ := tool(t, "openssl", dir, []byte("x"), "openssl", "s_client", "-connect", f.Addr, "-servername", name, "-tls1_3")
		if !bytes.Contains(out, []byte("Acceptable client certificate CA names")) && !bytes.Contains(out, []byte("Requested Signature Algorithms")) {
			t.Errorf("net-018: with the name %s no certificate is asked for", name)
		}
	}
}

// Readers of CRLs and OCSP answers that others wrote.
func TestStatusReaders(t *testing.T) {
	f := servertest.Start(t, servertest.Options{})
	dir := t.TempDir()
	good, bad := f.Enroll("dev-good"), f.Enroll("dev-bad")
	if _, err := f.Revoke(t.Context(), "test", "", inventory.KeyCompromise, "dev-bad"); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "good.pem", ca.CertificatePEM(good.Certificate[0]))
	write(t, dir, "bad.pem", ca.CertificatePEM(bad.Certificate[0]))
	write(t, dir, "issuer.pem", ca.CertificatePEM(good.Certificate[1]))
	other := catest.New(t, nil).DeviceLeaf("dev-x")
	write(t, dir, "other.pem", other.PEM)

	ocsp := func(args ...string) string {
		return mustTool(t, "openssl", dir, "openssl", append([]string{"ocsp", "-issuer", "issuer.pem", "-CAfile", f.RootFile, "-verify_other", "issuer.pem", "-url", f.HTTP + "/ocsp"}, args...)...)
	}
	both := ocsp("-cert", "good.pem", "-cert", "bad.pem")
	for _, want := range []string{"Response verify OK", "good.pem: good", "bad.pem: revoked", "Reason: keyCompromise"} {
		if !strings.Contains(both, want) {
			t.Errorf("openssl ocsp says %q, want %q", both, want)
		}
	}
	sha256 := ocsp("-sha256", "-no_nonce", "-cert", "good.pem")
	if !strings.Contains(sha256, "good.pem: good") || !strings.Contains(sha256, "Response verify OK") {
		t.Errorf("with SHA-256: %s", sha256)
	}
	// rev-014: a serial number that was never given out is unknown.
	if out := ocsp("-serial", "0x1234567890abcdef1234567890abcdef"); !strings.Contains(out, ": unknown") {
		t.Errorf("rev-014: %s", out)
	}
	// What was signed before a revocation is not sent after it.
	if out := ocsp("-no_nonce", "-cert", "good.pem"); !strings.Contains(out, "good.pem: good") {
		t.Errorf("before: %s", out)
	}
	if _, err := f.Suspend(t.Context(), "test", "", "dev-good"); err != nil {
		t.Fatal(err)
	}
	if out := ocsp("-no_nonce", "-cert", "good.pem"); !strings.Contains(out, "good.pem: revoked") || !strings.Contains(out, "certificateHold") {
		t.Errorf("after: %s", out)
	}
	if _, err := f.Resume(t.Context(), "test", "", "dev-good"); err != nil {
		t.Fatal(err)
	}
	if out := ocsp("-no_nonce", "-cert", "good.pem"); !strings.Contains(out, "good.pem: good") {
		t.Errorf("resumed: %s", out)
	}
	gnutls := mustTool(t, "gnutls-bin", dir, "ocsptool", "--ask="+f.HTTP+"/ocsp", "--load-issuer", "issuer.pem", "--load-cert", "bad.pem", "--load-trust", "issuer.pem")
	if !strings.Contains(gnutls, "Certificate Status: revoked") || !strings.Contains(gnutls, "Verifying OCSP Response: Success") {
		t.Errorf("ocsptool: %s", gnutls)
	}

	// The CRL follows by itself.
	deadline := time.Now().Add(10 * time.Second)
	for {
		mustTool(t, "curl", dir, "curl", "-sS", "--fail", f.HTTP+"/crl/device-1.pem", "-o", "crl.pem")
		text := mustTool(t, "openssl", dir, "openssl", "crl", "-in", "crl.pem", "-noout", "-text", "-CAfile", "issuer.pem")
		if !strings.Contains(text, "verify OK") {
			t.Fatalf("openssl crl: %s", text)
		}
		serial := strings.ToUpper(bad.Leaf.SerialNumber.Text(16))
		if strings.Contains(text, serial[len(serial)-16:]) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no CRL names the revoked certificate: %s", text)
		}
		time.Sleep(50 * time.Millisecond)
	}
	block, _ := pem.Decode(mustRead(t, filepath.Join(dir, "crl.pem")))
	if _, err := x509.ParseRevocationList(block.Bytes); err != nil {
		t.Error(err)
	}
}
