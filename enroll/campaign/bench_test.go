package campaign_test

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/enroll/campaign"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
	"github.com/imprint-iot/imprint/inventory"
)

// fill registers n devices with a certificate, of the size that ours have, and a
// password.
func fill(b *testing.B, store inventory.Store, n int) {
	b.Helper()
	at := inventory.UTC(time.Now().Add(-time.Hour))
	for from := 0; from < n; from += 5000 {
		c := inventory.Change{Event: inventory.Event{Time: at, Actor: "bench", Action: "device.add"}}
		for i := from; i < min(n, from+5000); i++ {
			id := inventory.DeviceID(fmt.Sprintf("dev-%07d", i))
			cert := &inventory.Certificate{DER: make([]byte, 620), NotBefore: at, NotAfter: at.AddDate(2, 0, 0)}
			binary.BigEndian.PutUint64(cert.Serial[:], uint64(i)*0x9E3779B97F4A7C15>>1|1)
			binary.BigEndian.PutUint64(cert.SPKI[:], uint64(i)*0x9E3779B97F4A7C15+1)
			c.Devices = append(c.Devices, inventory.Device{ID: id, Kind: inventory.Equipment, State: inventory.Active, Profile: "default", Created: at, Updated: at})
			c.Credentials = append(c.Credentials,
				inventory.Credential{Device: id, Kind: inventory.CertificateCredential, Generation: 1, State: inventory.CredentialActive, Certificate: cert, Created: at},
				inventory.Credential{Device: id, Kind: inventory.PasswordCredential, Generation: 1, State: inventory.CredentialActive, Created: at, Verifiers: []inventory.Verifier{
					{Scheme: inventory.PBKDF2SHA512, Iterations: 101, Salt: make([]byte, 12), Hash: make([]byte, 64)}, {Scheme: inventory.SHA512Suffix, Salt: make([]byte, 12), Hash: make([]byte, 64)},
					{Scheme: inventory.SHA256Suffix, Salt: make([]byte, 12), Hash: make([]byte, 32)}, {Scheme: inventory.RabbitSHA256, Salt: make([]byte, 4), Hash: make([]byte, 32)},
				}})
		}
		if err := store.Apply(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPlan counts what a rotation of a whole fleet would do.
func BenchmarkPlan(b *testing.B) {
	const n = 100_000
	f := servertest.Start(b, servertest.Options{})
	fill(b, f.Store, n)
	book := campaign.NewBook(f.Registrar, f.Store, nil)
	b.ReportAllocs()
	for b.Loop() {
		p, err := book.Plan(b.Context(), campaign.Campaign{Name: "x", Certificate: true, Password: true, Canary: 0.05, Wave: 0.25})
		if err != nil || p.Devices != n {
			b.Fatalf("%+v, %v", p, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/device")
}
