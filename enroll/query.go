package enroll

import (
	"context"

	"github.com/imprint-iot/imprint/inventory"
)

// A DeviceRecord is a device with all credentials that it has, or has had.
type DeviceRecord struct {
	inventory.Device
	Credentials []inventory.Credential
}

// Device returns a device and its credentials. The error wraps
// [inventory.ErrNotFound].
func (r *Registrar) Device(ctx context.Context, id inventory.DeviceID) (DeviceRecord, error) {
	var rec DeviceRecord
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
		if rec.Device, err = in.Device(id); err != nil {
			return err
		}
		rec.Credentials, err = collect(in.Credentials(inventory.CredentialQuery{Device: id}), 0)
		return err
	})
	return rec, err
}

// Devices returns the devices that a query finds. q.Limit should be set.
func (r *Registrar) Devices(ctx context.Context, q inventory.Query) (found []inventory.Device, err error) {
	err = r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		found, err = collect(in.Devices(q), 0)
		return err
	})
	return found, err
}

// Tokens returns all tokens.
func (r *Registrar) Tokens(ctx context.Context) (found []inventory.Token, err error) {
	err = r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		found, err = collect(in.Tokens(""), 0)
		return err
	})
	return found, err
}

// Events returns at most limit entries of the audit log, from number from on.
func (r *Registrar) Events(ctx context.Context, from uint64, limit int) (found []inventory.Event, err error) {
	err = r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		found, err = collect(in.Events(from), limit)
		return err
	})
	return found, err
}

// collect reads a sequence, at most limit values if limit is not 0.
func collect[T any](seq func(func(T, error) bool), limit int) ([]T, error) {
	var all []T
	for v, err := range seq {
		if err != nil {
			return nil, err
		}
		if all = append(all, v); len(all) == limit {
			break
		}
	}
	return all, nil
}
