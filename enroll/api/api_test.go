package api_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll/api"
)

func TestToken(t *testing.T) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	text := api.TokenText(secret)
	tok, err := api.ParseToken(text)
	if err != nil || !bytes.Equal(tok.Reveal(), secret) || tok.Text() != text {
		t.Fatalf("%v", err)
	}
	for _, bad := range []string{"", "imp_", text + "A", text[:len(text)-1], " " + text, text + "\n", strings.ToUpper(text), "xyz_" + text[4:], text[:len(text)-1] + "=", text[:10] + "\n" + text[11:], strings.Repeat("imp_", 1<<18)} {
		if _, err := api.ParseToken(bad); !errors.Is(err, api.ErrToken) {
			t.Errorf("%.40q is a token", bad)
		}
	}
	// 43 characters have two bits to spare: only one way to write them counts.
	last := text[len(text)-1]
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") {
		if c == last {
			continue
		}
		if other, err := api.ParseToken(text[:len(text)-1] + string(c)); err == nil && bytes.Equal(other.Reveal(), secret) {
			t.Errorf("a token has two forms: ...%c and ...%c", last, c)
		}
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", slog.Any("token", tok))
	b, err := json.Marshal(tok)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{fmt.Sprint(tok), fmt.Sprintf("%+v %#v %s %x %d", tok, tok, tok, tok, tok), log.String(), string(b)} {
		if strings.Contains(shown, text[4:20]) || !strings.Contains(shown, "redacted") {
			t.Errorf("a token is shown: %s", shown)
		}
	}
}

func TestCertsOnly(t *testing.T) {
	a, b := catest.New(t, nil).DeviceLeaf("dev-a"), catest.New(t, nil).DeviceLeaf("dev-b")
	der, err := api.CertsOnly(a.DER, b.DER)
	if err != nil {
		t.Fatal(err)
	}
	got, err := api.ParseCertsOnly(der)
	if err != nil || len(got) != 2 || !bytes.Equal(got[0], a.DER) || !bytes.Equal(got[1], b.DER) {
		t.Errorf("%d certificates, %v", len(got), err)
	}
	line := api.EncodeLine(der)
	if bytes.Count(line, []byte("\n")) != 1 || line[len(line)-1] != '\n' {
		t.Errorf("%q", line)
	}
	for _, text := range []string{string(line), strings.TrimSpace(string(line)), "\r\n" + string(line[:64]) + "\r\n\t " + string(line[64:])} {
		if back, err := api.DecodeLine([]byte(text)); err != nil || !bytes.Equal(back, der) {
			t.Errorf("%.80q: %v", text, err)
		}
	}
	if _, err := api.DecodeLine([]byte("not base64!")); err == nil {
		t.Error("anything is base64")
	}
}

// Every code that is used says what it means.
func TestCodes(t *testing.T) {
	for _, code := range []string{
		api.CodeMalformed, api.CodeMediaType, api.CodeTooLarge, api.CodeLengthRequired, api.CodeEncoding, api.CodeMethod, api.CodeRouteUnknown, api.CodeJSON,
		api.CodeDuplicateKey, api.CodeUnknownField, api.CodeField, api.CodeCursor, api.CodeIdempotency, api.CodeTokenMissing, api.CodeTokenInvalid, api.CodeTokenScope,
		api.CodeTokenInURL, api.CodeQuota, api.CodeCertMissing, api.CodeCertUnknown, api.CodeCertRevoked, api.CodeCertExpired, api.CodeDeviceState, api.CodeUnknown, api.CodeExists,
		api.CodeCertified, api.CodeKeyTaken, api.CodeRoleDenied, api.CodeRateLimited, api.CodePending, api.CodeNotApproved, api.CodeFull, api.CodeBusy, api.CodeNotImplemented,
		api.CodeCSR + string(ca.WeakKey),
	} {
		if s := api.StatusOf(code); s < 200 || s == 500 || s > 503 || api.TitleOf(code) == "" {
			t.Errorf("%s: status %d, %q", code, s, api.TitleOf(code))
		}
	}
	if api.StatusOf("anything else") != 500 {
		t.Error("what nobody knows is not a fault of the server")
	}
}

func FuzzParseCertsOnly(f *testing.F) {
	der, err := api.CertsOnly([]byte{0x30, 0})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, err := api.ParseCertsOnly(b)
		if err == nil && len(certs) > 64 {
			t.Errorf("%d certificates", len(certs))
		}
		_, _ = api.DecodeLine(b)
		_, _ = api.ParseToken(string(b))
	})
}

func TestRedact(t *testing.T) {
	text := api.TokenText(make([]byte, 32))
	for in, want := range map[string]string{
		"nothing": "nothing", "/v1/" + text + "/x": "/v1/imp_[redacted]/x", text + text: "imp_[redacted]imp_[redacted]", "imp_": "imp_[redacted]",
	} {
		if got := api.Redact(in); strings.Contains(got, text[4:]) || in != text+text && got != want {
			t.Errorf("%q becomes %q", in, got)
		}
	}
}
