package ca_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
)

// drawRevoked draws entries with serial numbers of all lengths, dates on both sides
// of 2050 and every reason.
func drawRevoked(t *rapid.T) []ca.Revoked {
	reasons := []int{0, 1, 2, 3, 4, 5, 6, 9, 10}
	seen := map[[16]byte]bool{}
	var list []ca.Revoked
	for range rapid.IntRange(0, 300).Draw(t, "entries") {
		r := ca.Revoked{Reason: rapid.SampledFrom(reasons).Draw(t, "reason")}
		n := rapid.IntRange(1, 16).Draw(t, "octets")
		copy(r.Serial[16-n:], rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "serial"))
		r.Serial[0] &= 0x7f
		if r.Serial == [16]byte{} || seen[r.Serial] {
			continue
		}
		seen[r.Serial] = true
		r.Time = time.Unix(rapid.Int64Range(-631152000+1, 4102444800).Draw(t, "time"), 0).UTC()
		list = append(list, r)
	}
	if rapid.Bool().Draw(t, "sorted") {
		slices.SortFunc(list, func(a, b ca.Revoked) int { return bytes.Compare(a.Serial[:], b.Serial[:]) })
	}
	return list
}

// Whatever is revoked, the CRL is octet for octet the one that crypto/x509 makes, and
// reads back as what it was made of. Ed25519 signs the same list the same way.
func TestCRLIsThatOfX509(t *testing.T) {
	issuer := catest.NewWith(t, ca.Ed25519, nil).Device
	rapid.Check(t, func(t *rapid.T) {
		entries := drawRevoked(t)
		cfg := ca.CRLConfig{
			Number:     rapid.Uint64Range(1, 1<<63).Draw(t, "number"),
			ThisUpdate: time.Unix(rapid.Int64Range(1, 2524607999).Draw(t, "this"), 0).UTC(),
		}
		cfg.NextUpdate = cfg.ThisUpdate.Add(time.Duration(rapid.IntRange(1, 1e6).Draw(t, "life")) * time.Second)
		got, err := issuer.CRL(cfg, list(entries...))
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := x509.ParseRevocationList(got)
		if err != nil {
			t.Fatal(err)
		}
		if err := parsed.CheckSignatureFrom(issuer.Certificate()); err != nil {
			t.Fatal(err)
		}
		want := &x509.RevocationList{Number: new(big.Int).SetUint64(cfg.Number), ThisUpdate: cfg.ThisUpdate, NextUpdate: cfg.NextUpdate}
		for _, e := range entries {
			want.RevokedCertificateEntries = append(want.RevokedCertificateEntries, x509.RevocationListEntry{
				SerialNumber: new(big.Int).SetBytes(e.Serial[:]), RevocationTime: e.Time, ReasonCode: e.Reason,
			})
		}
		_, other, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		// The same list under another key differs in nothing but the signature.
		twin := *issuer.Certificate()
		twin.PublicKey = other.Public()
		der, err := x509.CreateRevocationList(rand.Reader, want, &twin, other)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(parsed.RawTBSRevocationList, theirs.RawTBSRevocationList) {
			t.Fatalf("%d entries: the list is not the one that crypto/x509 makes", len(entries))
		}
		checkRead(t, got, cfg, entries, issuer)
	})
}

func checkRead(t *rapid.T, der []byte, cfg ca.CRLConfig, entries []ca.Revoked, issuer *ca.Issuer) {
	r, err := ca.ReadCRL(der)
	if err != nil {
		t.Fatal(err)
	}
	if r.Number != cfg.Number || !r.ThisUpdate.Equal(cfg.ThisUpdate) || !r.NextUpdate.Equal(cfg.NextUpdate) || r.Entries != len(entries) {
		t.Fatalf("read %+v", r)
	}
	if got := slices.Collect(r.All()); !slices.EqualFunc(got, entries, func(a, b ca.Revoked) bool {
		return a.Serial == b.Serial && a.Reason == b.Reason && a.Time.Equal(b.Time)
	}) {
		t.Fatalf("entries %v, want %v", got, entries)
	}
	if err := r.CheckSignatureFrom(issuer.Certificate()); err != nil {
		t.Fatal(err)
	}
	der[len(der)/2] ^= 1
	if r, err := ca.ReadCRL(der); err == nil && r.CheckSignatureFrom(issuer.Certificate()) == nil {
		t.Fatal("a changed list verifies")
	}
	der[len(der)/2] ^= 1
}

// FuzzReadCRL: what is read here, crypto/x509 reads as the same.
func FuzzReadCRL(f *testing.F) {
	pki := catest.New(f, nil)
	f.Add(makeCRL(f, pki.Device, 1))
	f.Add(makeCRL(f, pki.Device, 7, ca.Revoked{Serial: [16]byte{1, 2, 3}, Time: time.Unix(1e9, 0), Reason: 1}, ca.Revoked{Serial: [16]byte{15: 9}, Time: time.Unix(1e9, 0)}))
	f.Fuzz(func(t *testing.T, der []byte) {
		r, err := ca.ReadCRL(der)
		if err != nil {
			return
		}
		theirs, err := x509.ParseRevocationList(der)
		if err != nil {
			return // a name or the value of an extension: nobody reads those here, and no issuer of ours signs them
		}
		if theirs.Number.Uint64() != r.Number || len(theirs.RevokedCertificateEntries) != r.Entries || !theirs.NextUpdate.Equal(r.NextUpdate) {
			t.Fatalf("read %d entries, crypto/x509 %d", r.Entries, len(theirs.RevokedCertificateEntries))
		}
		i := 0
		for e := range r.All() {
			x := theirs.RevokedCertificateEntries[i]
			if x.SerialNumber.Cmp(new(big.Int).SetBytes(e.Serial[:])) != 0 || x.ReasonCode != e.Reason || !x.RevocationTime.Equal(e.Time) {
				t.Fatalf("entry %d is %v, crypto/x509 has %v", i, e, x)
			}
			i++
		}
	})
}

func BenchmarkCRL(b *testing.B) {
	pki := catest.New(b, nil)
	for _, n := range []int{1_000, 100_000, 1_000_000} {
		b.Run(big.NewInt(int64(n)).String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := pki.Device.CRL(crlConfig(1), manyRevoked(n)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/entry")
		})
	}
}
