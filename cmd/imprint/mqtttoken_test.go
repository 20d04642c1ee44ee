package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/client"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
)

// A fleet that is told to makes tokens: its key is made when the server starts, only
// imprint can read it, and another start finds it again.
func TestServeMakesTokens(t *testing.T) {
	r := newFleet(t)
	config := filepath.Join(r.dir, "fleet", configFile)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(r.dir, "fleet", keysDir)
	r.start()
	if _, err := os.Stat(filepath.Join(keys, tokenKeyFile)); err == nil {
		t.Error("a key is made by a server that makes no tokens")
	}
	if status, body := r.get("https://" + r.https + api.PathJWKS); status != http.StatusNotImplemented {
		t.Errorf("keys of a server that makes no tokens: %d %s", status, body)
	}
	r.stop(syscall.SIGTERM)
	if err := os.WriteFile(config, append(text, "server:\n  mqtt-tokens: true\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	r.start()
	if info, err := os.Stat(filepath.Join(keys, tokenKeyFile)); err != nil || info.Mode() != 0o600 {
		t.Errorf("the key: %v, %v", info, err)
	}
	_, first := r.get("https://" + r.https + api.PathJWKS)
	if _, plain := r.get("http://" + r.http + api.PathJWKS); !bytes.Equal(plain, first) || !bytes.Contains(first, []byte(`"ES256"`)) {
		t.Errorf("keys %s, over plain HTTP %s", first, plain)
	}
	token := r.mqttToken()
	public, err := os.ReadFile(filepath.Join(keys, tokenPublicFile))
	if err != nil {
		t.Fatal(err)
	}
	if !signedBy(t, public, token) {
		t.Error("the token is not signed with the key of the file that brokers are given")
	}
	if strings.Contains(r.log.String(), token[strings.LastIndex(token, ".")+1:]) {
		t.Error("the token is in the log")
	}
	r.stop(syscall.SIGTERM)
	r.start()
	if _, again := r.get("https://" + r.https + api.PathJWKS); !bytes.Equal(again, first) {
		t.Errorf("keys after a restart: %s, before: %s", again, first)
	}
	r.stop(syscall.SIGTERM)
	for _, change := range []func() error{
		func() error { return os.Chmod(filepath.Join(keys, tokenKeyFile), 0o640) },
		func() error { return os.WriteFile(filepath.Join(keys, tokenKeyFile), []byte("nothing"), 0o600) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		cmd := r.command("serve", "--listen", "127.0.0.1:0")
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != exitConfig || !strings.Contains(string(out), tokenKeyFile) {
			t.Errorf("serve with a key that is not good: exit code %d, %v, %s", code, err, out)
		}
		if err := os.Chmod(filepath.Join(keys, tokenKeyFile), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// get returns status and body of a resource.
func (r *running) get(url string) (int, []byte) {
	r.t.Helper()
	resp, err := r.client(nil).Get(url)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, b
}

// mqttToken enrolls a device and gets a token for it.
func (r *running) mqttToken() string {
	r.t.Helper()
	var made struct{ Token string }
	out := r.imprint("token", "create", "--role", "device", "--device", "dev-jwt", "--profile", "default", "--output", "json")
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.Token == "" {
		r.t.Fatalf("%v: %s", err, out)
	}
	key := catest.Key(r.t, ca.P256)
	status, chain, err := r.post(r.client(nil), api.PathEnroll, made.Token, servertest.CSR(r.t, "dev-jwt", key))
	if err != nil || status != http.StatusOK {
		r.t.Fatalf("%d %s %v", status, chain, err)
	}
	pair := servertest.Pair(r.t, chain, key)
	roots, err := os.ReadFile(r.root())
	if err != nil {
		r.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	c, err := client.New(client.Config{URL: "https://" + r.https, Roots: pool, Certificate: func() (*tls.Certificate, error) { return pair, nil }})
	if err != nil {
		r.t.Fatal(err)
	}
	got, err := c.MQTTToken(r.t.Context(), "emqx")
	if err != nil {
		r.t.Fatal(err)
	}
	return got.Value.Token
}

// signedBy verifies a token with a public key in PEM.
func signedBy(t *testing.T, public []byte, token string) bool {
	t.Helper()
	block, _ := pem.Decode(public)
	if block == nil {
		t.Fatalf("not PEM: %s", public)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	end := strings.LastIndex(token, ".")
	sig, err := base64.RawURLEncoding.DecodeString(token[end+1:])
	if err != nil || len(sig) != 64 {
		t.Fatalf("%d octets, %v", len(sig), err)
	}
	sum := sha256.Sum256([]byte(token[:end]))
	return ecdsa.Verify(key.(*ecdsa.PublicKey), sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
}
