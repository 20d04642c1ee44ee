package main

import (
	"context"
	"fmt"

	"github.com/imprint-iot/imprint/enroll/delivery"
	"github.com/imprint-iot/imprint/templates/bundle"
)

// openOutbox opens an outbox for bundles, and delivers what an earlier command
// has left in it.
func (f *fleet) openOutbox(ctx context.Context, o bundleOptions, to delivery.Destination) (*delivery.Outbox, error) {
	formats, err := parseFormats(o.formats)
	if err != nil {
		return nil, err
	}
	trust, err := f.bundleTrust(ctx)
	if err != nil {
		return nil, err
	}
	b := f.cfg.Broker
	material := func(item delivery.Item) bundle.Material {
		return bundle.Material{
			ID: string(item.ID), KeyPKCS8: item.Key, Chain: item.Chain, TrustBundle: trust, Password: item.Password,
			Host: b.Hosts[0], Port: b.CertificatePort, PasswordPort: b.PasswordPort,
			Publish: item.Rights.Publish, Receive: item.Rights.Receive,
		}
	}
	return delivery.OpenOutbox(ctx, delivery.OutboxConfig{
		Store: f.store, Keys: f.keys, To: to,
		Bundle: func(item delivery.Item) ([]bundle.File, error) { return bundle.Files(material(item), formats...) },
		Check:  func(item delivery.Item) error { return bundle.Check(material(item), formats...) },
	})
}

func parseFormats(names []string) ([]bundle.Format, error) {
	var out []bundle.Format
	for _, name := range names {
		f, err := bundle.ParseFormat(name)
		if err != nil {
			return nil, usageError{fmt.Errorf("--format: %w", err)}
		}
		out = append(out, f)
	}
	return out, nil
}
