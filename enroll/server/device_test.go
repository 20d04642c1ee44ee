package server_test

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
	"github.com/imprint-iot/imprint/inventory"
)

type call = servertest.Call

func enrollBody(t testing.TB, id string, key crypto.Signer, password bool) []byte {
	t.Helper()
	b, err := json.Marshal(api.EnrollRequest{Device: id, CSR: string(servertest.CSR(t, id, key)), Password: password})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readAnswer(t *testing.T, a servertest.Answer) api.EnrollResponse {
	t.Helper()
	var out api.EnrollResponse
	if a.Status != http.StatusOK {
		t.Fatalf("status %d: %s", a.Status, a.Body)
	}
	if err := json.Unmarshal(a.Body, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// want fails the test unless an answer is a problem with this code.
func want(t *testing.T, what string, a servertest.Answer, code string) {
	t.Helper()
	if a.Code() != code || a.Status != api.StatusOf(code) {
		t.Errorf("%s: %d %s, want %s", what, a.Status, a.Body, code)
	}
}

func devices(ids ...string) (out []inventory.DeviceID) {
	for _, id := range ids {
		out = append(out, inventory.DeviceID(id))
	}
	return out
}

func TestLifeOfADevice(t *testing.T) {
	f := servertest.Start(t, servertest.Options{})
	key := catest.Key(t, ca.P256)
	token := f.Token(inventory.Token{Devices: devices("dev-1"), Profile: "default"})
	body := enrollBody(t, "dev-1", key, true)
	first := readAnswer(t, f.Do(call{Path: api.PathEnroll, Token: token, Body: body}))
	if first.Device != "dev-1" || len(first.Password) < 22 || first.Unchanged || len(first.Rights.Publish) != 1 {
		t.Errorf("first answer: %+v", first)
	}
	if !first.RenewAfter.After(first.NotBefore) || !first.RenewAfter.Before(first.NotAfter) {
		t.Errorf("renew after %s", first.RenewAfter)
	}

	// iss-004: the answer was lost. The certificate is the same; the password is
	// another one, because nobody knows the first.
	again := readAnswer(t, f.Do(call{Path: api.PathEnroll, Token: token, Body: body}))
	if again.Serial != first.Serial || again.Certificate != first.Certificate || !again.Unchanged {
		t.Errorf("the same request got serial %s, then %s", first.Serial, again.Serial)
	}
	if again.Password == "" || again.Password == first.Password {
		t.Errorf("the lost password is given out again, or none is")
	}
	rec, err := f.Device(t.Context(), "dev-1")
	if err != nil || len(rec.Credentials) != 3 {
		t.Fatalf("%d credentials, %v: want a certificate and two passwords", len(rec.Credentials), err)
	}
	live := 0
	for _, c := range rec.Credentials {
		if c.Kind == inventory.PasswordCredential && c.State == inventory.CredentialActive {
			live++
		}
	}
	if live != 1 {
		t.Errorf("%d passwords are good, want the last one only", live)
	}

	pair := servertest.Pair(t, []byte(first.Chain), key)
	next := catest.Key(t, ca.P256)
	renewed := readAnswer(t, f.Do(call{Path: api.PathRenew, Pair: pair, Body: enrollBody(t, "dev-1", next, false)}))
	if renewed.Serial == first.Serial || renewed.Password != "" {
		t.Errorf("renewal: %+v", renewed)
	}
	lost := readAnswer(t, f.Do(call{Path: api.PathRenew, Pair: pair, Body: enrollBody(t, "dev-1", next, false)}))
	if lost.Serial != renewed.Serial || !lost.Unchanged {
		t.Errorf("the same renewal got %s, then %s", renewed.Serial, lost.Serial)
	}
	// Both work until the new one has been used.
	if a := f.Do(call{Path: api.PathWhoami, Pair: pair}); a.Status != http.StatusOK {
		t.Errorf("the old certificate before the new one is confirmed: %d", a.Status)
	}
	report := []byte(`{"version":1,"status":true}`)
	newPair := servertest.Pair(t, []byte(renewed.Chain), next)
	a := f.Do(call{Path: api.PathEnrollStatus, Pair: newPair, Body: report})
	if a.Status != http.StatusOK || !strings.Contains(string(a.Body), `"ended":1`) {
		t.Errorf("report: %d %s", a.Status, a.Body)
	}
	a = f.Do(call{Path: api.PathEnrollStatus, Pair: newPair, Body: report})
	if a.Status != http.StatusOK || !strings.Contains(string(a.Body), `"ended":0`) {
		t.Errorf("second report: %d %s", a.Status, a.Body)
	}
	want(t, "tok-020: the old certificate after that", f.Do(call{Path: api.PathRenew, Pair: pair, Body: enrollBody(t, "dev-1", next, false)}), api.CodeCertRevoked)

	// Its successor is in use, so two hold keys of the device: somebody is told, once.
	want(t, "the old certificate again", f.Do(call{Path: api.PathRenew, Pair: pair, Body: enrollBody(t, "dev-1", next, false)}), api.CodeCertRevoked)
	alarms := 0
	events, err := f.Events(t.Context(), 1, 1000)
	for _, e := range events {
		if e.Action == "device.conflict" {
			alarms++
		}
	}
	if err != nil || alarms != 1 {
		t.Errorf("%d alarms of a cloned key, %v, want one", alarms, err)
	}

	// tok-019: the certificate of one device does not renew another.
	want(t, "tok-019", f.Do(call{Path: api.PathRenew, Pair: newPair, Body: enrollBody(t, "dev-2", catest.Key(t, ca.P256), false)}), api.CodeTokenScope)

	// tok-021: after a compromise nothing of it can be renewed.
	if _, err := f.Revoke(t.Context(), "test", "", inventory.KeyCompromise, "dev-1"); err != nil {
		t.Fatal(err)
	}
	want(t, "tok-021", f.Do(call{Path: api.PathRenew, Pair: newPair, Body: enrollBody(t, "dev-1", catest.Key(t, ca.P256), false)}), api.CodeCertRevoked)
	fresh := f.Token(inventory.Token{Devices: devices("dev-1"), Replace: true})
	want(t, "iss-025: a revoked device with a fresh token", f.Do(call{Path: api.PathEnroll, Token: fresh, Body: enrollBody(t, "dev-1", catest.Key(t, ca.P256), false)}), api.CodeDeviceState)
}

func TestMediaTypes(t *testing.T) {
	f := servertest.Start(t, servertest.Options{})
	key := catest.Key(t, ca.P256)
	token := f.Token(inventory.Token{Devices: devices("dev-1"), Profile: "quiet"})
	csr := servertest.CSR(t, "dev-1", key)
	ask := func(accept string) servertest.Answer {
		return f.Do(call{Path: api.PathEnroll, Token: token, Type: api.MediaPKCS10, Accept: accept, Body: csr})
	}
	chain := ask("")
	if chain.Header.Get("Content-Type") != api.MediaChain || len(servertest.Pair(t, chain.Body, key).Certificate) != 2 {
		t.Errorf("by default: %s", chain.Header.Get("Content-Type"))
	}
	der := ask(api.MediaCert)
	if c, err := x509.ParseCertificate(der.Body); err != nil || c.Subject.CommonName != "dev-1" {
		t.Errorf("as DER: %v", err)
	}
	if got := readAnswer(t, ask("application/json")); got.Password != "" || got.TrustBundle == "" {
		t.Errorf("as JSON: %+v", got)
	}
	if got := ask("text/html, application/pkix-cert;q=0.5, */*;q=0.1").Header.Get("Content-Type"); got != api.MediaCert {
		t.Errorf("with weights: %s", got)
	}
	for _, media := range []string{"text/plain", "application/json; charset=utf-7", "x"} {
		want(t, "api-006 "+media, f.Do(call{Path: api.PathEnroll, Token: token, Type: media, Body: csr}), api.CodeMediaType)
	}
	bundle := f.Do(call{Path: api.PathTrustBundle})
	again := f.Do(call{Path: api.PathTrustBundle, Header: map[string]string{"If-None-Match": bundle.Header.Get("ETag")}})
	if again.Status != http.StatusNotModified || len(again.Body) > 0 {
		t.Errorf("a bundle that has not changed: %d", again.Status)
	}
}

// tok-002: one token, many at once.
func TestTokenRace(t *testing.T) {
	f := servertest.Start(t, servertest.Options{Settings: noLimits()})
	token := f.Token(inventory.Token{Devices: devices("dev-1"), Profile: "quiet"})
	const askers = 64
	var wg sync.WaitGroup
	var ok, refused atomic.Int32
	for range askers {
		body := servertest.CSR(t, "dev-1", catest.Key(t, ca.P256))
		wg.Go(func() {
			a := f.Do(call{Path: api.PathEnroll, Token: token, Type: api.MediaPKCS10, Body: body})
			switch a.Status {
			case http.StatusOK:
				ok.Add(1)
			case http.StatusUnauthorized, http.StatusConflict:
				refused.Add(1)
			default:
				t.Errorf("%d %s", a.Status, a.Body)
			}
		})
	}
	wg.Wait()
	rec, err := f.Device(t.Context(), "dev-1")
	if ok.Load() != 1 || refused.Load() != askers-1 || err != nil || len(rec.Credentials) != 1 {
		t.Errorf("%d got a certificate, %d were refused, %d certificates on record, %v", ok.Load(), refused.Load(), len(rec.Credentials), err)
	}
}

// iss-005: a storm of the same request gets one certificate, and all get it.
func TestSameRequestManyTimes(t *testing.T) {
	f := servertest.Start(t, servertest.Options{Settings: noLimits()})
	token := f.Token(inventory.Token{Devices: devices("dev-1"), Profile: "quiet"})
	body := servertest.CSR(t, "dev-1", catest.Key(t, ca.P256))
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]int{}
	for range 32 {
		wg.Go(func() {
			a := f.Do(call{Path: api.PathEnroll, Token: token, Type: api.MediaPKCS10, Accept: api.MediaCert, Body: body})
			mu.Lock()
			defer mu.Unlock()
			seen[fmt.Sprintf("%d %x", a.Status, a.Body)]++
		})
	}
	wg.Wait()
	if len(seen) != 1 {
		t.Errorf("%d different answers to one request", len(seen))
	}
	for s := range seen {
		if !strings.HasPrefix(s, "200 ") {
			t.Errorf("answer %.200s", s)
		}
	}
}

func TestTokenScope(t *testing.T) {
	var moved atomic.Int64
	f := servertest.Start(t, servertest.Options{Now: func() time.Time { return time.Now().Add(time.Duration(moved.Load())) }, Settings: noLimits()})
	ask := func(token, id string) servertest.Answer {
		return f.Do(call{Path: api.PathEnroll, Token: token, Body: enrollBody(t, id, catest.Key(t, ca.P256), false)})
	}
	one := f.Token(inventory.Token{Devices: devices("dev-a"), Profile: "default"})
	want(t, "tok-006", ask(one, "dev-b"), api.CodeTokenScope)
	prefix := f.Token(inventory.Token{Role: inventory.StationRole, Prefix: "acme-", Profile: "default", Limit: 3})
	want(t, "another prefix", ask(prefix, "other-1"), api.CodeTokenScope)
	if a := ask(prefix, "ACME-1"); a.Status != http.StatusOK {
		t.Errorf("a prefix in another case: %d %s", a.Status, a.Body)
	}
	want(t, "a device that is not known, without a profile", ask(f.Token(inventory.Token{Devices: devices("dev-x")}), "dev-x"), api.CodeUnknown)
	quiet := f.Token(inventory.Token{Prefix: "acme-", Profile: "quiet", Limit: 3})
	want(t, "a device of another profile", ask(quiet, "acme-1"), api.CodeTokenScope)
	elsewhere := f.Token(inventory.Token{Devices: devices("dev-a"), Profile: "default", Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	want(t, "another network", ask(elsewhere, "dev-a"), api.CodeTokenInvalid)
	here := f.Token(inventory.Token{Devices: devices("dev-n"), Profile: "default", Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if a := ask(here, "dev-n"); a.Status != http.StatusOK {
		t.Errorf("the right network: %d %s", a.Status, a.Body)
	}
	want(t, "a station token without its station", ask(f.Token(inventory.Token{Role: inventory.StationRole, Prefix: "s-", Profile: "default", Station: "dev-n", Limit: 9}), "s-1"), api.CodeTokenInvalid)

	// tok-012: the quota of a station.
	for _, id := range []string{"acme-2", "acme-3"} {
		if a := ask(prefix, id); a.Status != http.StatusOK {
			t.Errorf("%s: %d %s", id, a.Status, a.Body)
		}
	}
	over := ask(prefix, "acme-4")
	want(t, "tok-012", over, api.CodeQuota)
	if over.Header.Get("Retry-After") == "" {
		t.Error("tok-012: no Retry-After")
	}
	slow := f.Token(inventory.Token{Role: inventory.StationRole, Prefix: "slow-", Profile: "default", Limit: 9, PerMinute: 1})
	if a := ask(slow, "slow-1"); a.Status != http.StatusOK {
		t.Errorf("the first in a minute: %d", a.Status)
	}
	want(t, "the second in a minute", ask(slow, "slow-2"), api.CodeQuota)

	// tok-007: time.
	now := inventory.UTC(time.Now())
	soon := f.Token(inventory.Token{Devices: devices("t-1"), Profile: "default", NotBefore: now.Add(10 * time.Second), Expires: now.Add(60 * time.Second)})
	want(t, "tok-007: not yet", ask(soon, "t-1"), api.CodeTokenInvalid)
	moved.Store(int64(61 * time.Second))
	want(t, "tok-007: a second too late", ask(soon, "t-1"), api.CodeTokenInvalid)
	// clk-003: what has expired stays so when the clock steps back.
	moved.Store(int64(30 * time.Second))
	want(t, "clk-003", ask(soon, "t-1"), api.CodeTokenInvalid)
}

func TestBadTokens(t *testing.T) {
	f := servertest.Start(t, servertest.Options{Settings: noLimits()})
	good := f.Token(inventory.Token{Devices: devices("dev-1"), Profile: "quiet"})
	body := enrollBody(t, "dev-1", catest.Key(t, ca.P256), false)
	want(t, "no token", f.Do(call{Path: api.PathEnroll, Body: body}), api.CodeTokenMissing)
	for name, header := range map[string]string{
		"tok-009: dots": "Bearer a.b.c", "tok-009: 12 KB": "Bearer " + strings.Repeat("a", 12<<10), "another scheme": "Digest x",
		"tok-018: space": "Bearer  " + good, "tok-018: a zero in front": "Bearer 0" + good, "not canonical": "Bearer " + good[:len(good)-1] + "_",
		"tok-014: Basic without colon": "Basic ZGV2", "tok-014: NUL": "Basic ZGV2LTE6AAA=", "unknown": "Bearer " + api.TokenText(make([]byte, 32)),
		"tok-014: not base64": "Basic !!!",
	} {
		want(t, name, f.Do(call{Path: api.PathEnroll, Body: body, Header: map[string]string{"Authorization": header}}), api.CodeTokenInvalid)
	}
	want(t, "tok-013", f.Do(call{Path: api.PathEnroll + "?token=" + good, Body: body}), api.CodeTokenInURL)
	tokens, err := f.Tokens(t.Context())
	if err != nil || len(tokens) != 1 {
		t.Fatal(err)
	}
	if _, err := f.RevokeToken(t.Context(), "test", "", tokens[0].ID()); err != nil {
		t.Fatal(err)
	}
	want(t, "a revoked token", f.Do(call{Path: api.PathEnroll, Token: good, Body: body}), api.CodeTokenInvalid)
}

// tok-027: what a proxy would say of a peer is not listened to.
func TestForgedHeaders(t *testing.T) {
	f := servertest.Start(t, servertest.Options{})
	for _, name := range []string{"X-Forwarded-For", "X-Ssl-Client-Cn", "X_SSL_CLIENT_CN", "X-Client-Cert", "Forwarded"} {
		want(t, name, f.Do(call{Path: api.PathWhoami, Header: map[string]string{name: "dev-1"}}), api.CodeTokenMissing)
	}
}

func TestExpiredCertificate(t *testing.T) {
	for name, tc := range map[string]struct {
		grace time.Duration
		late  time.Duration
		code  string
	}{
		"tok-022: no grace":        {0, time.Minute, api.CodeCertExpired},
		"within grace":             {24 * time.Hour, 23 * time.Hour, ""},
		"beyond grace":             {24 * time.Hour, 25 * time.Hour, api.CodeCertExpired},
		"clk-008: the last moment": {0, -2 * time.Second, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var moved atomic.Int64
			f := servertest.Start(t, servertest.Options{
				Grace: tc.grace, Validity: ca.Duration(48 * time.Hour),
				Now: func() time.Time { return time.Now().Add(time.Duration(moved.Load())) },
			})
			pair := f.Enroll("dev-1")
			moved.Store(int64(time.Until(pair.Leaf.NotAfter) + tc.late))
			a := f.Do(call{Path: api.PathRenew, Pair: pair, Body: enrollBody(t, "dev-1", catest.Key(t, ca.P256), false)})
			if tc.code != "" {
				want(t, name, a, tc.code)
			} else if a.Status != http.StatusOK {
				t.Errorf("%d %s", a.Status, a.Body)
			}
			if tc.late > 0 {
				want(t, "a report with it", f.Do(call{Path: api.PathEnrollStatus, Pair: pair, Body: []byte(`{"version":1,"status":true}`)}), api.CodeCertExpired)
			}
		})
	}
}

func TestApproval(t *testing.T) {
	f := servertest.Start(t, servertest.Options{})
	token := f.Token(inventory.Token{Prefix: "dev-", Profile: "quiet", Limit: 2, Approve: true})
	key := catest.Key(t, ca.P256)
	body := enrollBody(t, "dev-1", key, false)
	a := f.Do(call{Path: api.PathEnroll, Token: token, Body: body})
	if a.Status != http.StatusAccepted || a.Header.Get("Retry-After") == "" {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	waiting, err := f.Approvals(t.Context())
	if err != nil || len(waiting) != 1 || waiting[0].Device != "dev-1" {
		t.Fatalf("%+v, %v", waiting, err)
	}
	// Another request for the same key is the same request; another key is not.
	if a := f.Do(call{Path: api.PathEnroll, Token: token, Body: enrollBody(t, "dev-1", key, false)}); a.Status != http.StatusAccepted {
		t.Errorf("%d", a.Status)
	}
	if _, err := f.Approve(t.Context(), "test", "", waiting[0].Key, true); err != nil {
		t.Fatal(err)
	}
	if a := f.Do(call{Path: api.PathEnroll, Token: token, Body: enrollBody(t, "dev-1", catest.Key(t, ca.P256), false)}); a.Status != http.StatusAccepted {
		t.Errorf("another key than the one approved: %d %s", a.Status, a.Body)
	}
	if got := readAnswer(t, f.Do(call{Path: api.PathEnroll, Token: token, Body: body})); got.Device != "dev-1" {
		t.Errorf("%+v", got)
	}
	other := enrollBody(t, "dev-2", catest.Key(t, ca.P256), false)
	f.Do(call{Path: api.PathEnroll, Token: token, Body: other})
	waiting, err = f.Approvals(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range waiting {
		if w.State == inventory.ApprovalPending {
			if _, err := f.Approve(t.Context(), "test", "", w.Key, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	want(t, "denied", f.Do(call{Path: api.PathEnroll, Token: token, Body: other}), api.CodeNotApproved)
	left, err := f.Tokens(t.Context())
	if err != nil || left[0].Uses != 1 {
		t.Errorf("the token was used %d times, want once: %v", left[0].Uses, err)
	}
}

// A maker is somebody else's CA.
type maker struct {
	cert *x509.Certificate
	key  crypto.Signer
	pool *x509.CertPool
}

func newMaker(t *testing.T) *maker {
	t.Helper()
	key := catest.Key(t, ca.P256)
	der, err := ca.NewRoot(key, ca.AuthorityConfig{Organization: "Chips", Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	m := &maker{cert: cert, key: key, pool: x509.NewCertPool()}
	m.pool.AddCert(cert)
	return m
}

func (m *maker) born(t *testing.T, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	key := catest.Key(t, ca.P256)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "chip-1", SerialNumber: "SN-1"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, m.cert, key.Public(), m.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func TestBirthCertificate(t *testing.T) {
	m, stranger := newMaker(t), newMaker(t)
	f := servertest.Start(t, servertest.Options{Settings: noLimits(), Makers: []enroll.Maker{{Name: "chips", Roots: m.pool, Profile: "quiet", Group: "born"}}})
	body := enrollBody(t, "chip-1", catest.Key(t, ca.P256), false)
	for name, pair := range map[string]*tls.Certificate{
		"another maker":            stranger.born(t, nil),
		"tok-024: serverAuth only": m.born(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"tok-024: CA:TRUE":         m.born(t, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }),
		"expired":                  m.born(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
		"a name that is no ID":     m.born(t, func(c *x509.Certificate) { c.Subject.CommonName = "chip 1/#" }),
	} {
		want(t, name, f.Do(call{Path: api.PathEnroll, Pair: pair, Body: body}), api.CodeCertUnknown)
	}
	pair := m.born(t, nil)
	want(t, "for another device", f.Do(call{Path: api.PathEnroll, Pair: pair, Body: enrollBody(t, "chip-2", catest.Key(t, ca.P256), false)}), api.CodeTokenScope)
	if got := readAnswer(t, f.Do(call{Path: api.PathEnroll, Pair: pair, Body: body})); got.Device != "chip-1" {
		t.Errorf("%+v", got)
	}
	rec, err := f.Device(t.Context(), "chip-1")
	if err != nil || rec.HardwareSerial != "SN-1" || rec.Group != "born" {
		t.Errorf("%+v, %v", rec.Device, err)
	}
	want(t, "for another key", f.Do(call{Path: api.PathEnroll, Pair: pair, Body: enrollBody(t, "chip-1", catest.Key(t, ca.P256), false)}), api.CodeCertified)
	want(t, "to renew with it", f.Do(call{Path: api.PathRenew, Pair: pair, Body: body}), api.CodeCertUnknown)
}

// tok-028: a connection that is open sees a revocation with its next request.
func TestRevokedOnOpenConnection(t *testing.T) {
	f := servertest.Start(t, servertest.Options{})
	pair := f.Enroll("dev-1")
	client := f.Client(pair)
	get := func() int {
		resp, err := client.Get(f.URL + api.PathWhoami)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	if got := get(); got != http.StatusOK {
		t.Fatal(got)
	}
	if _, err := f.Suspend(t.Context(), "test", "", "dev-1"); err != nil {
		t.Fatal(err)
	}
	if got := get(); got != http.StatusForbidden {
		t.Errorf("held: %d", got)
	}
	if _, err := f.Resume(t.Context(), "test", "", "dev-1"); err != nil {
		t.Fatal(err)
	}
	if got := get(); got != http.StatusOK {
		t.Errorf("resumed: %d", got)
	}
}
