package rabbitmq

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/imprint-iot/imprint/inventory/topic"
)

// drawFilter draws a filter out of few levels, so that near ones come up often.
func drawFilter(t *rapid.T, label string, wild bool) string {
	words := []string{"a", "b", "dev-1", "dev-10", "", "x(y", "$SYS", "a|b", "é"}
	if wild {
		words = append(words, "+", "+")
	}
	levels := rapid.SliceOfN(rapid.SampledFrom(words), 1, 4).Draw(t, label)
	if wild && rapid.Bool().Draw(t, "tail") {
		levels = append(levels, "#")
	}
	return strings.Join(levels, "/")
}

// matches is what PCRE says. Go's expressions have no (?!...), which stands only where
// an alternative begins and is taken out and looked at here.
func matches(t *rapid.T, regex, key string) bool {
	body := strings.TrimSuffix(strings.TrimPrefix(regex, open), shut)
	if regex == nothing {
		return key == ""
	}
	for _, alternative := range strings.Split(strings.ReplaceAll(body, `\|`, "\x00"), "|") {
		alternative = strings.ReplaceAll(alternative, "\x00", `\|`)
		rest, hides := strings.CutPrefix(alternative, noDollar)
		if hides && strings.HasPrefix(key, "$") {
			continue
		}
		re, err := regexp.Compile("^(?:" + rest + ")$")
		if err != nil {
			t.Fatalf("%q: %v", rest, err)
		}
		if re.MatchString(key) {
			return true
		}
	}
	return false
}

// routingKey is what the MQTT plugin makes of a topic or a filter.
func routingKey(s string) string { return strings.NewReplacer("/", ".", "+", "*").Replace(s) }

// A topic passes exactly if the filter matches it; the filter of a SUBSCRIBE passes
// only if the rule covers it; and an expression reads back as what it was made of.
func TestRegexMeansTheFilter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := drawFilter(t, "filter", true)
		if _, err := topic.ParseFilter(f); err != nil {
			return
		}
		regex, err := regexOf([]topic.Filter{topic.Filter(f)})
		if err != nil {
			t.Fatal(err)
		}
		back, err := parseRegex(regex)
		if err != nil || len(back) != 1 || string(back[0]) != f {
			t.Fatalf("%q reads back as %q, %v", f, back, err)
		}
		name := drawFilter(t, "topic", false)
		if _, err := topic.ParseName(name); err == nil {
			if got, want := matches(t, regex, routingKey(name)), topic.Filter(f).Match(topic.Name(name)); got != want {
				t.Fatalf("filter %q, topic %q: %t, want %t (%s)", f, name, got, want, regex)
			}
		}
		other := drawFilter(t, "subscription", true)
		if _, err := topic.ParseFilter(other); err == nil && matches(t, regex, routingKey(other)) && !topic.Filter(f).Covers(topic.Filter(other)) {
			t.Fatalf("rule %q lets a SUBSCRIBE to %q pass (%s)", f, other, regex)
		}
	})
}

func TestRegexRefuses(t *testing.T) {
	for _, filters := range [][]topic.Filter{{"a.b"}, {topic.Filter(strings.Repeat("a", maxRegex))}} {
		if got, err := regexOf(filters); err == nil {
			t.Errorf("%.20q becomes %.40q", filters, got)
		}
	}
	for _, s := range []string{"", ".*", "^.*$", "a", "^(?:a)", "^(?:)$", "^(?:a||b)$", "^(?:b|a)$", "^(?:a|a)$", "^(?:a+)$", `^(?:a\)$`, "^(?:a.b)$", `^(?:(?!\$)a)$`, "^(?:[^.]*)$", "^(?:#)$"} {
		if got, err := parseRegex(s); err == nil {
			t.Errorf("%q reads as %q", s, got)
		}
	}
}

func FuzzParseRegex(f *testing.F) {
	f.Add(`^(?:a\.b(?:\..*)?|c)$`)
	f.Add(`^(?:(?!\$)[^.#]*\.x)$`)
	f.Fuzz(func(t *testing.T, s string) {
		filters, err := parseRegex(s)
		if err != nil {
			return
		}
		if again, err := regexOf(filters); err != nil || again != s {
			t.Fatalf("%q reads as %q, which is written %q, %v", s, filters, again, err)
		}
	})
}

// The name of a CRL's file is the one that OpenSSL gives it, whatever the issuer's
// name is made of.
func TestCRLName(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("openssl is not installed: apt-get install openssl")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []pkix.Name{
		{CommonName: "Acme Device CA D1", Organization: []string{"Acme"}},
		{CommonName: "  Two   spaces\tand MORE ", Organization: []string{"Ä Ö ü"}, Country: []string{"DE"}},
		{CommonName: "x", OrganizationalUnit: []string{"b", "a"}},
	} {
		cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: name, NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true, SubjectKeyId: []byte{1}}
		der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		if cert, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, cert, key)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "crl.pem")
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl}), 0o600); err != nil {
			t.Fatal(err)
		}
		want, err := exec.Command(openssl, "crl", "-in", path, "-hash", "-noout").Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := crlName(crl); err != nil || got != strings.TrimSpace(string(want))+crlSuffix {
			t.Errorf("%s: %s, %v; openssl says %s", name, got, err, want)
		}
	}
}
