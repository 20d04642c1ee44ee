package server_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/client"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// tokens are servers that make tokens.
func tokens(t testing.TB, o servertest.Options) *servertest.Fleet {
	t.Helper()
	key := catest.Key(t, ca.P256)
	o.TokenSigner = func(context.Context) (crypto.Signer, error) { return key, nil }
	return servertest.Start(t, o)
}

// checkToken verifies a token with the keys that a server publishes, as a broker does,
// and returns its claims.
func checkToken(t *testing.T, keys []byte, text string) map[string]any {
	t.Helper()
	var set struct {
		Keys []struct{ Kty, Crv, Alg, Kid, X, Y string }
	}
	decode(t, keys, &set)
	part := strings.Split(text, ".")
	if len(set.Keys) != 1 || len(part) != 3 {
		t.Fatalf("%d keys, %d parts", len(set.Keys), len(part))
	}
	raw := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	k := set.Keys[0]
	var header struct{ Alg, Kid string }
	decode(t, raw(part[0]), &header)
	if header.Alg != "ES256" || header.Kid != k.Kid || k.Kty != "EC" || k.Crv != "P-256" || k.Alg != "ES256" {
		t.Fatalf("header %+v, key %+v", header, k)
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, append(raw(k.X), raw(k.Y)...)...))
	if err != nil {
		t.Fatal(err)
	}
	sum, sig := sha256.Sum256([]byte(part[0]+"."+part[1])), raw(part[2])
	if len(sig) != 64 || !ecdsa.Verify(pub, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		t.Fatal("the signature is not good")
	}
	var claims map[string]any
	decode(t, raw(part[1]), &claims)
	return claims
}

// A device gets a token with its certificate, and the broker checks it with what the
// server publishes, over TLS or without.
func TestMQTTToken(t *testing.T) {
	f := tokens(t, servertest.Options{Settings: noLimits()})
	err := f.PutProfile(t.Context(), "test", "", inventory.Profile{Name: "default", Policy: topic.Policy{Rules: []topic.Rule{
		{Action: topic.Publish, Filter: "d/{id}/up"}, {Action: topic.Receive, Filter: "d/{id}/down/#"}, {Action: topic.Receive, Filter: "d/{id}/cmd/+"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	pair := f.Enroll("dev-1")
	device, err := client.New(client.Config{URL: f.URL, Roots: f.Roots, Certificate: func() (*tls.Certificate, error) { return pair, nil }})
	if err != nil {
		t.Fatal(err)
	}
	got, err := device.MQTTToken(t.Context(), "emqx")
	if err != nil {
		t.Fatal(err)
	}
	keys := f.Do(call{Path: api.PathJWKS})
	if keys.Status != http.StatusOK || keys.Header.Get("Content-Type") != api.MediaJWKSet || keys.Header.Get("Cache-Control") != "public, max-age=300" {
		t.Fatalf("keys: %d %v %s", keys.Status, keys.Header, keys.Body)
	}
	claims := checkToken(t, keys.Body, got.Value.Token)
	acl, err := json.Marshal(claims["acl"])
	if err != nil || string(acl) != `{"pub":["d/dev-1/up"],"sub":["d/dev-1/down/#"]}` || claims["username"] != "dev-1" || claims["aud"] != "emqx" {
		t.Errorf("claims %v, %v", claims, err)
	}
	if left := time.Until(got.Value.Expires); left < 14*time.Minute || left > 15*time.Minute || claims["exp"] != float64(got.Value.Expires.Unix()) {
		t.Errorf("ends in %s, and exp is %v", left, claims["exp"])
	}
	if n := got.Value.Narrower; len(n) != 1 || n[0].Action != "receive" || n[0].Filter != "d/dev-1/cmd/+" || n[0].Reason == "" {
		t.Errorf("left out: %+v", n)
	}
	resp, err := http.Get(f.HTTP + api.PathJWKS)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil || string(plain) != string(keys.Body) {
		t.Errorf("over plain HTTP: %s, %v", plain, err)
	}
	if a := f.Do(call{Path: api.PathMQTTToken, Pair: pair, Body: []byte(`{"dialect":"hivemq"}`)}); a.Header.Get("Cache-Control") != "no-store" || !strings.Contains(string(a.Body), `"narrower":[]`) {
		t.Errorf("%d %v %s", a.Status, a.Header, a.Body)
	}
}

func TestMQTTTokenRefused(t *testing.T) {
	var ahead atomic.Int64 // how far ahead the clock of the server is
	f := tokens(t, servertest.Options{Settings: noLimits(), Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	pair := f.Enroll("dev-1")
	ask := func(body string) servertest.Answer {
		return f.Do(call{Path: api.PathMQTTToken, Pair: pair, Body: []byte(body)})
	}
	for _, tt := range []struct{ body, code string }{
		{`{"dialect":"nanomq"}`, api.CodeField},
		{`{"dialect":"none"}`, api.CodeField},
		{`{}`, api.CodeField},
		{`{"dialect":"emqx","sub":"dev-2"}`, api.CodeUnknownField},
		{`{"dialect":"emqx","dialect":"hivemq"}`, api.CodeDuplicateKey},
		{strings.Repeat(" ", 2000), api.CodeTooLarge},
	} {
		want(t, tt.body, ask(tt.body), tt.code)
	}
	const emqx = `{"dialect":"emqx"}`
	want(t, "no certificate", f.Do(call{Path: api.PathMQTTToken, Body: []byte(emqx)}), api.CodeCertMissing)
	want(t, "a token of an admin", f.Do(call{Path: api.PathMQTTToken, Body: []byte(emqx), Token: f.Token(inventory.Token{Role: inventory.AdminRole})}), api.CodeCertMissing)
	if _, err := f.Suspend(t.Context(), "test", "", "dev-1"); err != nil {
		t.Fatal(err)
	}
	want(t, "suspended", ask(emqx), api.CodeCertRevoked)
	if _, err := f.Resume(t.Context(), "test", "", "dev-1"); err != nil {
		t.Fatal(err)
	}
	if a := ask(emqx); a.Status != http.StatusOK {
		t.Errorf("resumed: %d %s", a.Status, a.Body)
	}
	ahead.Store(int64(time.Until(pair.Leaf.NotAfter) + time.Minute))
	want(t, "expired", ask(emqx), api.CodeCertExpired)
	ahead.Store(0)
	if _, err := f.Revoke(t.Context(), "test", "", inventory.KeyCompromise, "dev-1"); err != nil {
		t.Fatal(err)
	}
	want(t, "revoked", ask(emqx), api.CodeCertRevoked)
}

func TestNoTokenKey(t *testing.T) {
	f := servertest.Start(t, servertest.Options{})
	want(t, "a token", f.Do(call{Path: api.PathMQTTToken, Pair: f.Enroll("dev-1"), Body: []byte(`{"dialect":"emqx"}`)}), api.CodeNotImplemented)
	want(t, "keys", f.Do(call{Path: api.PathJWKS}), api.CodeNotImplemented)
}
