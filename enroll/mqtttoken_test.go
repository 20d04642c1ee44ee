package enroll_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// tokenBench is a bench that makes tokens with a key.
func tokenBench(t testing.TB, key crypto.Signer, validity time.Duration, devices ...string) *bench {
	t.Helper()
	b := newBench(t, devices...)
	var err error
	b.Registrar, err = enroll.New(enroll.Config{
		Store: b.store, Open: b.open, Organization: "acme", TrustDomain: "acme", Now: b.clock,
		TokenSigner: func(context.Context) (crypto.Signer, error) { return key, nil }, TokenValidity: validity,
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// shows is what the registrar takes a device for that shows its certificate.
func (b *bench) shows(e *enroll.Enrollment) enroll.Principal {
	b.t.Helper()
	leaf, err := x509.ParseCertificate(e.Certificate.DER)
	if err != nil {
		b.t.Fatal(err)
	}
	p, err := b.Certificate(b.t.Context(), enroll.Peer{Chain: []*x509.Certificate{leaf}})
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// A jwks is a set of keys as a broker reads it, by hand.
type jwks struct {
	Keys []struct {
		Kty, Crv, X, Y, Alg, Use, Kid string
		D                             *string
	}
}

// verifyToken verifies a token with the standard library alone, and returns its claims.
func verifyToken(t testing.TB, keys []byte, text string) map[string]any {
	t.Helper()
	var set jwks
	if err := json.Unmarshal(keys, &set); err != nil || len(set.Keys) != 1 {
		t.Fatalf("%s: %v", keys, err)
	}
	k := set.Keys[0]
	if k.Kty != "EC" || k.Crv != "P-256" || k.Alg != "ES256" || k.Use != "sig" || k.D != nil {
		t.Fatalf("the key is published as %s", keys)
	}
	thumb := sha256.Sum256(fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, k.X, k.Y)) // RFC 7638 §3
	if k.Kid != base64.RawURLEncoding.EncodeToString(thumb[:]) {
		t.Errorf("kid %q is not the thumbprint", k.Kid)
	}
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	var header map[string]any
	unbase64JSON(t, parts[0], &header)
	if want := map[string]any{"alg": "ES256", "kid": k.Kid, "typ": "JWT"}; !reflect.DeepEqual(header, want) {
		t.Errorf("header %v, want %v", header, want)
	}
	point := append([]byte{4}, append(unbase64(t, k.X), unbase64(t, k.Y)...)...)
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		t.Fatal(err)
	}
	sig := unbase64(t, parts[2])
	hash := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if len(sig) != 64 || !ecdsa.Verify(pub, hash[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		t.Fatalf("the signature of %d octets is not good", len(sig))
	}
	var claims map[string]any
	unbase64JSON(t, parts[1], &claims)
	return claims
}

func unbase64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unbase64JSON(t testing.TB, s string, v any) {
	t.Helper()
	if err := json.Unmarshal(unbase64(t, s), v); err != nil {
		t.Fatal(err)
	}
}

// published are the keys as they are sent.
func published(t testing.TB, r *enroll.Registrar) []byte {
	t.Helper()
	set, err := r.TokenKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// put gives a profile rules.
func (b *bench) put(rules ...topic.Rule) {
	b.t.Helper()
	if err := b.PutProfile(b.t.Context(), "test", "", inventory.Profile{Name: "default", Policy: topic.Policy{Rules: rules}}); err != nil {
		b.t.Fatal(err)
	}
}

func TestMQTTTokenClaims(t *testing.T) {
	b := tokenBench(t, catest.Key(t, ca.P256), 0, "dev-1")
	b.put(
		topic.Rule{Action: topic.Publish, Filter: "d/{id}/up/+"},
		topic.Rule{Action: topic.Receive, Filter: "d/{id}/down/#"},
		topic.Rule{Action: topic.Receive, Filter: "d/{id}/down/+"}, // the rule before allows all of it
		topic.Rule{Action: topic.Receive, Filter: "d/{id}/cmd/+"},
		topic.Rule{Action: topic.Receive, Filter: "d/{id}/cfg/+/#"},
	)
	p, before := b.shows(b.enroll("dev-1")), b.revision()
	now := float64(b.now.Unix())
	for _, tt := range []struct {
		dialect  string
		acl      map[string]any
		narrower []topic.Filter
	}{
		{enroll.TokenEMQX, map[string]any{"pub": []any{"d/dev-1/up/+"}, "sub": []any{"d/dev-1/down/#"}}, []topic.Filter{"d/dev-1/cmd/+", "d/dev-1/cfg/+/#"}},
		{enroll.TokenHiveMQ, map[string]any{"pub": []any{}, "sub": []any{}}, nil},
	} {
		got, err := b.MQTTToken(t.Context(), p, tt.dialect)
		if err != nil {
			t.Fatal(err)
		}
		claims := verifyToken(t, published(t, b.Registrar), string(got.Text.Reveal()))
		if id, _ := claims["jti"].(string); len(id) != 32 {
			t.Errorf("%s: jti %q", tt.dialect, id)
		}
		delete(claims, "jti")
		want := map[string]any{
			"iss": "imprint:acme", "sub": "dev-1", "aud": tt.dialect, "username": "dev-1", "clientid": "dev-1", "client_id": "dev-1",
			"iat": now - 30, "nbf": now - 30, "exp": now + 900, "acl": tt.acl,
		}
		if !reflect.DeepEqual(claims, want) {
			t.Errorf("%s: claims\n%v\nwant\n%v", tt.dialect, claims, want)
		}
		if !got.Expires.Equal(b.now.Add(15 * time.Minute)) {
			t.Errorf("%s: ends %s", tt.dialect, got.Expires)
		}
		var lost []topic.Filter
		for _, l := range got.Narrower {
			lost = append(lost, l.Filter)
			if l.Action != topic.Receive || l.Reason == "" {
				t.Errorf("%s: left out: %+v", tt.dialect, l)
			}
		}
		if !slices.Equal(lost, tt.narrower) {
			t.Errorf("%s: left out: %q, want %q", tt.dialect, lost, tt.narrower)
		}
		if shown := fmt.Sprintf("%v %+v", got, got); strings.Contains(shown, string(got.Text.Reveal())) {
			t.Error("a token is printed")
		}
	}
	if b.revision() != before {
		t.Error("a token is recorded")
	}
}

// No two tokens are the same, and one that has been changed is not good: this is what
// the verifier of these tests is worth.
func TestMQTTTokenIsSigned(t *testing.T) {
	b := tokenBench(t, catest.Key(t, ca.P256), 0, "dev-1")
	p := b.shows(b.enroll("dev-1"))
	one, err := b.MQTTToken(t.Context(), p, enroll.TokenEMQX)
	if err != nil {
		t.Fatal(err)
	}
	two, err := b.MQTTToken(t.Context(), p, enroll.TokenEMQX)
	if err != nil {
		t.Fatal(err)
	}
	keys := published(t, b.Registrar)
	if verifyToken(t, keys, string(one.Text.Reveal()))["jti"] == verifyToken(t, keys, string(two.Text.Reveal()))["jti"] {
		t.Error("two tokens have one jti")
	}
	parts := strings.Split(string(one.Text.Reveal()), ".")
	body := strings.Replace(string(unbase64(t, parts[1])), `"sub":"dev-1"`, `"sub":"dev-2"`, 1)
	sum := sha256.Sum256([]byte(parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(body))))
	sig := unbase64(t, parts[2])
	pub := tokenPublic(t, keys)
	if ecdsa.Verify(pub, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		t.Error("the signature is good for other claims")
	}
}

func tokenPublic(t *testing.T, keys []byte) *ecdsa.PublicKey {
	t.Helper()
	var set jwks
	if err := json.Unmarshal(keys, &set); err != nil {
		t.Fatal(err)
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, append(unbase64(t, set.Keys[0].X), unbase64(t, set.Keys[0].Y)...)...))
	if err != nil {
		t.Fatal(err)
	}
	return pub
}

// A token never outlives the certificate, and no certificate that has ended buys one.
func TestMQTTTokenEnds(t *testing.T) {
	b := tokenBench(t, catest.Key(t, ca.P256), 5*time.Minute, "dev-1")
	e := b.enroll("dev-1")
	p := b.shows(e)
	ends := e.Certificate.NotAfter
	for _, tt := range []struct {
		before time.Duration // the end of the certificate
		good   time.Duration
	}{{time.Hour, 5 * time.Minute}, {5 * time.Minute, 5 * time.Minute}, {299 * time.Second, 299 * time.Second}, {time.Second, time.Second}} {
		b.now = ends.Add(-tt.before)
		got, err := b.MQTTToken(t.Context(), p, enroll.TokenEMQX)
		if err != nil {
			t.Fatal(err)
		}
		exp, _ := verifyToken(t, published(t, b.Registrar), string(got.Text.Reveal()))["exp"].(float64)
		if want := b.now.Add(tt.good); int64(exp) != want.Unix() || !got.Expires.Equal(want) {
			t.Errorf("%s before the end: good until %s, want %s", tt.before, got.Expires, want)
		}
	}
	b.now = ends.Add(time.Second)
	for name, p := range map[string]enroll.Principal{"recognised before": p, "recognised now": b.shows(e)} {
		if got, err := b.MQTTToken(t.Context(), p, enroll.TokenEMQX); !errors.Is(err, enroll.ErrTooOld) || !got.Text.IsZero() {
			t.Errorf("%s: %v, want ErrTooOld", name, err)
		}
	}
}

// Who was recognised and is revoked since then gets nothing.
func TestMQTTTokenRefused(t *testing.T) {
	b := tokenBench(t, catest.Key(t, ca.P256), 0, "dev-1", "dev-2", "dev-3", "dev-4")
	ctx := t.Context()
	for _, tt := range []struct {
		id  string
		act func() error
	}{
		{"dev-1", func() error { _, err := b.Suspend(ctx, "test", "", "dev-1"); return err }},
		{"dev-2", func() error { _, err := b.Revoke(ctx, "test", "", inventory.Unspecified, "dev-2"); return err }},
		{"dev-3", func() error { _, err := b.Retire(ctx, "test", "", "dev-3"); return err }},
	} {
		p := b.shows(b.enroll(tt.id))
		if _, err := b.MQTTToken(ctx, p, enroll.TokenEMQX); err != nil {
			t.Fatalf("%s: %v", tt.id, err)
		}
		if err := tt.act(); err != nil {
			t.Fatal(err)
		}
		if got, err := b.MQTTToken(ctx, p, enroll.TokenEMQX); !errors.Is(err, enroll.ErrRevoked) || !got.Text.IsZero() {
			t.Errorf("%s: %v, want ErrRevoked", tt.id, err)
		}
	}
	good := b.shows(b.enroll("dev-4"))
	for _, dialect := range []string{"", "EMQX", "nanomq", "none", "mosquitto"} {
		if _, err := b.MQTTToken(ctx, good, dialect); err == nil {
			t.Errorf("dialect %q is taken", dialect)
		} else if _, ok := errors.AsType[*inventory.InvalidError](err); !ok {
			t.Errorf("dialect %q: %v, want an InvalidError", dialect, err)
		}
	}
	secret, _, err := b.MakeToken(ctx, "test", "", inventory.Token{Role: inventory.DeviceRole, Limit: 1, Profile: "default"})
	if err != nil {
		t.Fatal(err)
	}
	byToken, err := b.Token(ctx, secret.Reveal(), enroll.Peer{})
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]enroll.Principal{"nobody": {}, "the holder of a token": byToken} {
		if _, err := b.MQTTToken(ctx, p, enroll.TokenEMQX); !errors.Is(err, enroll.ErrDenied) {
			t.Errorf("%s: %v, want ErrDenied", name, err)
		}
	}
}

func TestMQTTTokenKey(t *testing.T) {
	b := newBench(t, "dev-1")
	p := b.shows(b.enroll("dev-1"))
	if _, err := b.MQTTToken(t.Context(), p, enroll.TokenEMQX); !errors.Is(err, enroll.ErrNoTokenKey) {
		t.Errorf("without a key: %v", err)
	}
	if _, err := b.TokenKeys(t.Context()); !errors.Is(err, enroll.ErrNoTokenKey) {
		t.Errorf("keys without a key: %v", err)
	}
	for _, alg := range []ca.KeyAlgorithm{ca.P384, ca.RSA3072, ca.Ed25519} {
		wrong := tokenBench(t, catest.Key(t, alg), 0)
		if _, err := wrong.TokenKeys(t.Context()); err == nil || errors.Is(err, enroll.ErrNoTokenKey) {
			t.Errorf("a key of %v signs tokens: %v", alg, err)
		}
	}
	asked := 0
	cfg := enroll.Config{
		Store: b.store, Open: b.open, Organization: "acme", TrustDomain: "acme", Now: b.clock,
		TokenSigner: func(context.Context) (crypto.Signer, error) {
			if asked++; asked == 1 {
				return nil, errors.New("the disk is slow")
			}
			return catest.Key(t, ca.P256), nil
		},
	}
	r, err := enroll.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.TokenKeys(t.Context()); err == nil {
		t.Error("a key that could not be opened")
	}
	if first, second := published(t, r), published(t, r); string(first) != string(second) || asked != 2 {
		t.Errorf("the key was opened %d times", asked)
	}
	for _, bad := range []time.Duration{-time.Second, time.Millisecond, 16 * time.Minute} {
		cfg.TokenValidity = bad
		if _, err := enroll.New(cfg); err == nil {
			t.Errorf("tokens may be good for %s", bad)
		}
	}
}

// emqxMatch is emqx_topic:match of EMQX 5 and 6, said once more: a filter that is
// subscribed to, or a topic, against the filter of a rule.
func emqxMatch(topic, rule []string) bool {
	switch {
	case len(rule) == 1 && rule[0] == "#":
		return true
	case len(topic) == 0 || len(rule) == 0:
		return len(topic) == len(rule)
	}
	return (rule[0] == "+" || rule[0] == topic[0]) && emqxMatch(topic[1:], rule[1:])
}

// emqxAllows is emqx_authz_client_info for rights in the form {"pub":[],"sub":[]}.
func emqxAllows(rules []string, what string) bool {
	return slices.ContainsFunc(rules, func(rule string) bool {
		if rest, ok := strings.CutPrefix(rule, "eq "); ok {
			return rest == what
		}
		return emqxMatch(strings.Split(what, "/"), strings.Split(rule, "/"))
	})
}

// What EMQX allows by a token is what the policy allows, or less; and it is less by no
// more than the rights that the answer says.
func TestMQTTTokenNeverWider(t *testing.T) {
	levels := []string{"a", "b", "", "+", "#", "eq a", "$SYS", "{id}"}
	asked := []string{"a", "b", "", "+", "#", "$SYS", "dev-1", "dev-10"}
	draw := func(rt *rapid.T, from []string, label string) string {
		return strings.Join(rapid.SliceOfN(rapid.SampledFrom(from), 1, 4).Draw(rt, label), "/")
	}
	wider, allowed := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		var p topic.Policy
		for range rapid.IntRange(1, 3).Draw(rt, "rules") {
			r := topic.Rule{Action: rapid.SampledFrom([]topic.Action{topic.Publish, topic.Receive}).Draw(rt, "action"), Filter: draw(rt, levels, "rule")}
			if (topic.Policy{Rules: []topic.Rule{r}}).Validate() == nil {
				p.Rules = append(p.Rules, r)
			}
		}
		s := topic.Subject{ID: "dev-1"}
		grants, err := p.Resolve(s)
		if err != nil {
			rt.Fatal(err)
		}
		publish, subscribe, lost := enroll.EMQXRights(grants)
		for range 20 {
			what := draw(rt, asked, "asked")
			if topic.Name(what) != "" && !strings.ContainsAny(what, "+#") {
				yes, want := emqxAllows(publish, what), p.Decide(s, topic.Publish, topic.Name(what)).Allowed
				if yes && !want || !yes && want && !slices.ContainsFunc(lost, func(l enroll.LostRight) bool { return l.Action == topic.Publish && l.Filter.Match(topic.Name(what)) }) {
					rt.Fatalf("publish %q by %q: EMQX says %t, the policy %t; left out: %v", what, publish, yes, want, lost)
				}
			}
			if _, err := topic.ParseFilter(what); err != nil {
				continue
			}
			yes, want := emqxAllows(subscribe, what), p.DecideSubscribe(s, topic.Filter(what)).Allowed
			if yes && !want || !yes && want && !slices.ContainsFunc(lost, func(l enroll.LostRight) bool { return l.Action == topic.Receive && l.Filter.Covers(topic.Filter(what)) }) {
				rt.Fatalf("subscribe %q by %q: EMQX says %t, the policy %t; left out: %v", what, subscribe, yes, want, lost)
			}
			if yes {
				allowed++
			}
			// What would be if nothing were left out: the reason for all this.
			var all []string
			for _, g := range grants {
				if g.Action == topic.Receive {
					all = append(all, string(g.Filter))
				}
			}
			if emqxAllows(all, what) && !want {
				wider++
			}
		}
	})
	if wider == 0 || allowed == 0 {
		t.Errorf("%d subscriptions that would be too wide were tried, and %d that are allowed: the test proves nothing", wider, allowed)
	}
}
