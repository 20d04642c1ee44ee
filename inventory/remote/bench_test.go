package remote_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/remote"
)

// BenchmarkDevices reads 100,000 devices, from a store at hand and at a distance.
func BenchmarkDevices(b *testing.B) {
	const devices = 100_000
	dir := b.TempDir()
	d, err := durable.OpenDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = d.Close() })
	near, err := boltstore.Open(b.Context(), boltstore.Config{Dir: d, Instance: [16]byte{1}, Key: [32]byte{2}, Create: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = near.Close() })
	now := inventory.UTC(time.Now())
	for n := 0; n < devices; n += 10_000 {
		c := inventory.Change{Event: inventory.Event{Time: now, Actor: "test", Action: "device.add"}}
		for i := range 10_000 {
			c.Devices = append(c.Devices, inventory.Device{
				ID: inventory.DeviceID(fmt.Sprintf("dev-%06d", n+i)), Kind: inventory.Equipment, Profile: "default", State: inventory.Active, Created: now, Updated: now,
			})
		}
		if err := near.Apply(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
	path := filepath.Join(dir, "s.sock")
	l, err := remote.Listen(path)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- remote.Serve(ctx, l, near, remote.Extra{}) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	far, err := remote.Dial(b.Context(), path)
	if err != nil {
		b.Fatal(err)
	}
	for _, way := range []struct {
		name  string
		store inventory.Store
	}{{"near", near}, {"far", far}} {
		b.Run(way.name, func(b *testing.B) {
			for b.Loop() {
				n := 0
				err := way.store.Read(b.Context(), func(r inventory.Reader) error {
					for _, err := range r.Devices(inventory.Query{}) {
						if err != nil {
							return err
						}
						n++
					}
					return nil
				})
				if err != nil || n != devices {
					b.Fatalf("%d devices, %v", n, err)
				}
			}
			b.ReportMetric(float64(devices)*float64(b.N)/b.Elapsed().Seconds(), "devices/s")
		})
	}
	b.Run("far lookup", func(b *testing.B) {
		err := far.Read(b.Context(), func(r inventory.Reader) error {
			for b.Loop() {
				if _, err := r.Device("dev-050000"); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	})
}
