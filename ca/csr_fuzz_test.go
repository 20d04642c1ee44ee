package ca_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
)

// FuzzParseRequest: whatever comes, it is refused with a reason or gives an
// allowed key, and what is accepted crypto/x509 reads the same way.
func FuzzParseRequest(f *testing.F) {
	key := catest.Key(f, ca.P256)
	f.Add(catest.CSR(f, key, "dev-1"))
	f.Add(toPEM("CERTIFICATE REQUEST", catest.CSR(f, key, "dev-1")))
	f.Add(hostile{key: key, subject: name(cn("a"), cn("b")), attrs: extensionRequest(san(dns("a")))}.der(f))
	f.Add(hostile{key: key, spki: rsaSPKI(oddNumber(f, 2048), 65537)}.der(f))
	f.Add(catest.CSR(f, catest.Key(f, ca.Ed25519), "dev-1"))
	f.Add(hostile{key: key, attrs: bytes.Join([][]byte{challenge(utf8("secret")), changeName(seq()), extensionRequest(san(dns("a")))}, nil)}.der(f))
	policy := ca.AnyKey()
	f.Fuzz(func(t *testing.T, data []byte) {
		var der []byte
		if len(data) > 0 && data[0] == 0x30 {
			der = bytes.Clone(data)
		}
		req, err := ca.ParseRequest(data, policy)
		if err != nil {
			if refused, ok := errors.AsType[*ca.RequestError](err); !ok || refused.Reason == "" {
				t.Fatalf("ParseRequest = %v, want a *RequestError with a reason", err)
			}
			return
		}
		if again, err := ca.NewRequest(req.PublicKey, policy); err != nil || again.SPKI != req.SPKI {
			t.Fatalf("accepted a key that is not allowed: %v", err)
		}
		if der == nil {
			return
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatalf("accepted what crypto/x509 refuses: %v", err)
		}
		if err := csr.CheckSignature(); err != nil {
			t.Fatalf("accepted a signature that crypto/x509 refuses: %v", err)
		}
		if h, err := ca.SPKIHash(csr.PublicKey); err != nil || h != req.SPKI {
			t.Fatalf("crypto/x509 reads another key: %v", err)
		}
		if csr.Subject.CommonName != "" && !slices.Contains(req.Names, csr.Subject.CommonName) {
			t.Fatalf("crypto/x509 reads common name %q, Names is %q", csr.Subject.CommonName, req.Names)
		}
		if err := req.Allowed(policy); err != nil {
			t.Fatalf("what was accepted is not allowed: %v", err)
		}
		checkSays(t, req, csr)
	})
}

// checkSays checks what a request says besides its key against crypto/x509, which
// drops the attributes that it does not know.
func checkSays(t *testing.T, req *ca.Request, csr *x509.CertificateRequest) {
	t.Helper()
	if !bytes.Equal(req.Subject, csr.RawSubject) {
		t.Fatalf("crypto/x509 reads subject %x, Subject is %x", csr.RawSubject, req.Subject)
	}
	for _, e := range csr.Extensions {
		if e.Id.String() == "2.5.29.17" && !bytes.Equal(e.Value, req.SAN) {
			t.Fatalf("crypto/x509 reads names %x, SAN is %x", e.Value, req.SAN)
		}
	}
	hidden := func(r rune) bool { return r < ' ' || r > '~' }
	if len(req.Challenge) > 255 || strings.ContainsFunc(req.Challenge, hidden) {
		t.Fatalf("challenge %q", req.Challenge)
	}
}
