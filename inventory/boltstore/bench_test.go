package boltstore_test

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
)

// cpu is the CPU time of this process so far, in microseconds.
func cpu(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	us := func(t syscall.Timeval) float64 { return float64(t.Sec)*1e6 + float64(t.Usec) }
	return us(u.Utime) + us(u.Stime)
}

// quick is an enrolment whose certificate is none: it costs nothing to make.
func quick(id string) inventory.Change {
	h := sha256.Sum256([]byte(id))
	c := &inventory.Certificate{DER: make([]byte, 600), SPKI: h, Issuer: issuerID, NotBefore: day, NotAfter: day.AddDate(1, 0, 0)}
	copy(c.Serial[:], h[:])
	return inventory.Change{
		Event:   event("device.enroll"),
		Devices: []inventory.Device{device(id)},
		Credentials: []inventory.Credential{{
			Device: inventory.DeviceID(id), Kind: inventory.CertificateCredential, Generation: 1,
			State: inventory.CredentialActive, Certificate: c, Created: day,
		}},
	}
}

// BenchmarkApply enrols one device per operation, from 1, 16 and 64 goroutines.
func BenchmarkApply(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			s := create(b)
			var n atomic.Int64
			var wg sync.WaitGroup
			before := cpu(b)
			b.ResetTimer()
			for range writers {
				wg.Go(func() {
					for {
						i := n.Add(1)
						if i > int64(b.N) {
							return
						}
						if err := s.Apply(b.Context(), quick(fmt.Sprintf("dev-%07d", i))); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric((cpu(b)-before)/float64(b.N), "cpu-us/op")
		})
	}
}
