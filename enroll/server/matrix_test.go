package server_test

import (
	"crypto"
	"crypto/rand"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"crypto/sha256"
	"crypto/x509"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/server"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
	"github.com/imprint-iot/imprint/inventory"
)

// challengeCSR makes a request with a challengePassword, or without one if it is
// nil, DER. crypto/x509 cannot.
func challengeCSR(t *testing.T, name string, challenge []byte) []byte {
	t.Helper()
	key := catest.Key(t, ca.P256)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	var info cryptobyte.Builder
	info.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{2, 5, 4, 3})
					b.AddASN1(cbasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(name)) })
				})
			})
		})
		b.AddBytes(spki)
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			if challenge == nil {
				return
			}
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7})
				b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.PrintableString, func(b *cryptobyte.Builder) {
						b.AddBytes([]byte(base64.StdEncoding.EncodeToString(challenge)))
					})
				})
			})
		})
	})
	tbs, err := info.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(tbs)
	sig, err := key.Sign(rand.Reader, hash[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	var out cryptobyte.Builder
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2})
		})
		b.AddASN1BitString(sig)
	})
	der, err := out.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// roleMatrix is who may do what, said once more and independently of the routes.
var roleMatrix = map[string]string{
	"GET /v1/devices": "operator auditor admin", "POST /v1/devices": "operator admin", "GET /v1/devices/{id}": "operator auditor admin",
	"POST /v1/devices/{id}/revoke": "operator admin", "POST /v1/devices/{id}/suspend": "operator admin",
	"POST /v1/devices/{id}/resume": "operator admin", "POST /v1/devices/{id}/retire": "operator admin",
	"GET /v1/tokens": "operator auditor admin", "POST /v1/tokens": "operator admin", "GET /v1/tokens/{id}": "operator auditor admin",
	"POST /v1/tokens/{id}/revoke": "operator admin", "GET /v1/approvals": "operator auditor admin",
	"POST /v1/approvals/{key}/approve": "operator admin", "POST /v1/approvals/{key}/deny": "operator admin",
	"GET /v1/audit": "auditor admin", "GET /v1/whoami": "device station broker operator auditor admin",
	"POST /v1/enroll":                    "device station",
	"POST /.well-known/est/simpleenroll": "device station", "POST /.well-known/est/{label}/simpleenroll": "device station",
	"POST /.well-known/est/serverkeygen": "device station", "POST /.well-known/est/{label}/serverkeygen": "device station",
	// With a certificate only, whatever the token.
	"POST /v1/renew": "", "POST /v1/enrollstatus": "", "GET /v1/orders": "", "POST /v1/mqtt-token": "", "POST /.well-known/est/simplereenroll": "", "POST /.well-known/est/{label}/simplereenroll": "",
	// For everybody.
	"GET /v1/trust-bundle": "*", "GET /v1/jwks.json": "*", "GET /v1/openapi.yaml": "*", "GET /healthz": "*", "GET /readyz": "*", "GET /crl/{file}": "*",
	"POST /ocsp": "*", "GET /ocsp/{request...}": "*", "GET /.well-known/est/cacerts": "*", "GET /.well-known/est/{label}/cacerts": "*",
	"GET /.well-known/est/csrattrs": "*", "GET /.well-known/est/{label}/csrattrs": "*",
	"POST /.well-known/est/fullcmc": "*", "POST /.well-known/est/{label}/fullcmc": "*",
}

// Every route with every role, as it really answers: who is not named is denied.
func TestRoleMatrix(t *testing.T) {
	settings := noLimits()
	settings.Labels = map[string]server.Label{"x": {}}
	f := servertest.Start(t, servertest.Options{Settings: settings})
	f.Enroll("dev-1")
	roles := []inventory.Role{inventory.DeviceRole, inventory.StationRole, inventory.BrokerRole, inventory.OperatorRole, inventory.AuditorRole, inventory.AdminRole}
	tokens := make(map[inventory.Role]string)
	for _, r := range roles {
		tok := inventory.Token{Role: r}
		if r.Enrolls() {
			tok.Limit = 100
		}
		tokens[r] = f.Token(tok)
	}
	// A webhook tells nobody why it denies: see TestWebhookFails.
	names := slices.DeleteFunc(server.RouteNames(f.Server), func(n string) bool { return strings.Contains(n, api.PathWebhook) })
	if len(names) != len(roleMatrix) {
		t.Errorf("%d routes, the matrix has %d", len(names), len(roleMatrix))
	}
	fill := strings.NewReplacer("{id}", "dev-1", "{key}", "spki-sha256:"+strings.Repeat("0", 64), "{label}", "x", "{file}", "device-1.crl", "{request...}", "MA==")
	for _, name := range names {
		allowed, ok := roleMatrix[name]
		if !ok {
			t.Errorf("%s is not in the matrix", name)
			continue
		}
		method, pattern, _ := strings.Cut(name, " ")
		for _, r := range append(roles, 0) {
			c := call{Method: method, Path: fill.Replace(pattern), Token: tokens[r]}
			if method == http.MethodPost {
				c.Body = []byte(`{}`)
			}
			a := f.Do(c)
			denied := a.Status == http.StatusForbidden && (a.Code() == api.CodeRoleDenied || strings.HasPrefix(string(a.Body), api.CodeRoleDenied))
			unknown := a.Status == http.StatusUnauthorized
			may := allowed == "*" || r != 0 && strings.Contains(" "+allowed+" ", " "+r.String()+" ")
			if may == (denied || unknown) {
				t.Errorf("%s with role %s: %d %s, may: %t", name, r, a.Status, a.Body, may)
			}
		}
	}
}

func TestStrictJSON(t *testing.T) {
	f := servertest.Start(t, servertest.Options{Settings: noLimits()})
	admin := f.Token(inventory.Token{Role: inventory.AdminRole})
	for _, tt := range []struct{ name, body, code string }{
		{"api-001: a name twice", `{"id":"a1","id":"b1"}`, api.CodeDuplicateKey},
		{"api-001: another case", `{"id":"a1","ID":"admin"}`, api.CodeUnknownField},
		{"api-002", `{"id":"a1","color":"red"}`, api.CodeUnknownField},
		{"api-003: a second value", `{"id":"a1"} {"id":"b1"}`, api.CodeJSON},
		{"api-003: garbage", `{"id":"a1"}x`, api.CodeJSON},
		{"api-004: not UTF-8", "{\"id\":\"a\xff\"}", api.CodeJSON},
		{"api-004: half a pair", `{"id":"\ud800"}`, api.CodeJSON},
		{"api-005: depth", `{"id":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}`, api.CodeJSON},
		{"api-005: a long text", `{"id":"` + strings.Repeat("a", 70_000) + `"}`, api.CodeTooLarge},
		{"api-005: a number", `{"id":1e999}`, api.CodeField},
		{"api-007: null", `null`, api.CodeField}, {"api-007: array", `[]`, api.CodeField}, {"api-007: text", `""`, api.CodeField},
		{"api-007: null for a text", `{"id":"a1","group":null}`, api.CodeField},
		{"empty", ``, api.CodeField}, {"no id", `{}`, api.CodeField}, {"a wild id", `{"id":"#"}`, api.CodeField},
		{"an unknown profile", `{"id":"a1","profile":"none"}`, api.CodeUnknown},
	} {
		want(t, tt.name, f.Do(call{Path: "/v1/devices", Token: admin, Body: []byte(tt.body), Method: http.MethodPost, Header: map[string]string{"Content-Type": "application/json"}}), tt.code)
	}
	if found, err := f.Devices(t.Context(), inventory.Query{}); err != nil || len(found) > 0 {
		t.Errorf("%d devices were registered, %v", len(found), err)
	}
}

func TestOperators(t *testing.T) {
	f := servertest.Start(t, servertest.Options{Settings: noLimits()})
	operator, admin := f.Token(inventory.Token{Role: inventory.OperatorRole}), f.Token(inventory.Token{Role: inventory.AdminRole})
	post := func(token, path, body string) servertest.Answer {
		return f.Do(call{Path: path, Token: token, Body: []byte(body)})
	}
	want(t, "an operator makes an admin", post(operator, "/v1/tokens", `{"role":"admin"}`), api.CodeRoleDenied)
	if a := post(admin, "/v1/tokens", `{"role":"auditor","name":"ann"}`); a.Status != http.StatusCreated || !strings.Contains(string(a.Body), `"token":"imp_`) {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	for i := range 5 {
		if a := post(operator, "/v1/devices", fmt.Sprintf(`{"id":"dev-%d","labels":{"site":"bonn"}}`, i)); a.Status != http.StatusCreated {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
	}
	want(t, "a device twice", post(operator, "/v1/devices", `{"id":"DEV-1"}`), api.CodeExists)
	first := f.Do(call{Path: "/v1/devices?limit=3", Token: operator})
	var list struct {
		Items []struct{ ID string } `json:"items"`
		Next  string                `json:"next"`
	}
	decode(t, first.Body, &list)
	if len(list.Items) != 3 || list.Next == "" {
		t.Fatalf("%s", first.Body)
	}
	next := list.Next
	list.Next, list.Items = "", nil
	decode(t, f.Do(call{Path: "/v1/devices?limit=3&after=" + next, Token: operator}).Body, &list)
	if len(list.Items) != 2 || list.Items[0].ID != "dev-3" || list.Next != "" {
		t.Errorf("second page: %+v", list)
	}
	want(t, "api-010: a forged cursor", f.Do(call{Path: "/v1/devices?after=" + next[:len(next)-2] + "AA", Token: operator}), api.CodeCursor)
	auditor := f.Token(inventory.Token{Role: inventory.AuditorRole})
	want(t, "api-010: the cursor of another list", f.Do(call{Path: "/v1/audit?after=" + next, Token: auditor}), api.CodeCursor)
	want(t, "a parameter that is not known", f.Do(call{Path: "/v1/devices?profil=x", Token: operator}), api.CodeField)

	f.Enroll("dev-live")
	want(t, "no reason", post(operator, "/v1/devices/dev-live/revoke", `{}`), api.CodeField)
	for range 2 { // rev-005
		if a := post(operator, "/v1/devices/dev-live/revoke", `{"reason":"superseded"}`); a.Status != http.StatusOK || !strings.Contains(string(a.Body), `"state":"revoked"`) {
			t.Errorf("rev-005: %d %s", a.Status, a.Body)
		}
	}
	want(t, "rev-006", post(operator, "/v1/devices/dev-live/resume", `{}`), api.CodeDeviceState)
	want(t, "an unknown device", post(operator, "/v1/devices/nobody/suspend", `{}`), api.CodeUnknown)
	// tok-026: a role that has been taken away is gone with the next request.
	tokens, err := f.Tokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range tokens {
		if x.Role == inventory.OperatorRole {
			if _, err := f.RevokeToken(t.Context(), "test", "", x.ID()); err != nil {
				t.Fatal(err)
			}
		}
	}
	want(t, "tok-026", f.Do(call{Path: "/v1/devices", Token: operator}), api.CodeTokenInvalid)
	// api-009: what was asked once is done once.
	once := func(path, body, key string) servertest.Answer {
		return f.Do(call{Path: path, Token: admin, Body: []byte(body), Header: map[string]string{"Idempotency-Key": key}})
	}
	made, again := once("/v1/tokens", `{"role":"device","devices":["dev-1"]}`, "k1"), once("/v1/tokens", `{"role":"device","devices":["dev-1"]}`, "k1")
	if made.Status != http.StatusCreated || again.Status != made.Status || string(again.Body) != string(made.Body) {
		t.Errorf("api-009: %d %s, then %d %s", made.Status, made.Body, again.Status, again.Body)
	}
	want(t, "api-009: another body", once("/v1/tokens", `{"role":"device","devices":["dev-2"]}`, "k1"), api.CodeIdempotency)
	if other := once("/v1/devices", `{"id":"dev-once"}`, "k1"); other.Status != http.StatusCreated {
		t.Errorf("api-009: the same key elsewhere: %d %s", other.Status, other.Body)
	}
	want(t, "api-009: what failed may be tried again", once("/v1/devices", `{"id":"DEV-ONCE"}`, "k2"), api.CodeExists)
	if other := once("/v1/devices", `{"id":"dev-twice"}`, "k2"); other.Status != http.StatusCreated {
		t.Errorf("api-009: after a failure: %d %s", other.Status, other.Body)
	}
	audit := f.Do(call{Path: "/v1/audit?limit=1000", Token: auditor})
	if audit.Status != http.StatusOK || !strings.Contains(string(audit.Body), `"action":"device.revoke"`) || strings.Contains(string(audit.Body), api.TokenPrefix) {
		t.Errorf("audit: %d %.300s", audit.Status, audit.Body)
	}
}
