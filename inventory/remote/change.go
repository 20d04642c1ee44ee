package remote

import (
	"errors"

	"github.com/imprint-iot/imprint/inventory"
)

// encoder is what all records can do.
type encoder interface {
	AppendBinary(b []byte) ([]byte, error)
}

// writeChange sends a change: its event, then its records in their stored form.
func (x *wire) writeChange(c *inventory.Change) error {
	record := func(kind byte, r encoder) error {
		b, err := r.AppendBinary(nil)
		if err != nil {
			return err
		}
		return x.write(kind, b)
	}
	if err := record(frameEvents, &c.Event); err != nil {
		return err
	}
	var errs []error
	each := func(kind byte, n int, at func(int) encoder) {
		for i := 0; i < n && errs == nil; i++ {
			if err := record(kind, at(i)); err != nil {
				errs = append(errs, err)
			}
		}
	}
	each(frameDevices, len(c.Devices), func(i int) encoder { return &c.Devices[i] })
	each(frameCredentials, len(c.Credentials), func(i int) encoder { return &c.Credentials[i] })
	each(frameProfiles, len(c.Profiles), func(i int) encoder { return &c.Profiles[i] })
	each(frameIssuers, len(c.Issuers), func(i int) encoder { return &c.Issuers[i] })
	each(frameRevocations, len(c.Revocations), func(i int) encoder { return &c.Revocations[i] })
	each(frameTokens, len(c.Tokens), func(i int) encoder { return &c.Tokens[i] })
	each(frameApprovals, len(c.Approvals), func(i int) encoder { return &c.Approvals[i] })
	if errs != nil {
		return errors.Join(errs...)
	}
	for _, k := range c.BlockedKeys {
		if err := x.write(frameBlocked, k[:]); err != nil {
			return err
		}
	}
	for _, u := range c.TokenUses {
		if err := x.write(frameUse, u.Token[:]); err != nil {
			return err
		}
	}
	return x.write(frameEnd, nil)
}

// readChange reads what writeChange has sent.
func readChange(next func() (byte, []byte, error)) (inventory.Change, error) {
	var c inventory.Change
	size := 0
	for first := true; ; first = false {
		kind, b, err := next()
		if err != nil {
			return c, err
		}
		if size += len(b); size > maxChange {
			return c, errors.New("the change is too large")
		}
		if first != (kind == frameEvents) {
			return c, errors.New("a change is one event and its records")
		}
		if kind == frameEnd {
			return c, nil
		}
		if err := addRecord(&c, kind, b); err != nil {
			return c, err
		}
	}
}

func addRecord(c *inventory.Change, kind byte, b []byte) (err error) {
	switch kind {
	case frameEvents:
		c.Event, err = inventory.DecodeEvent(b)
	case frameDevices:
		c.Devices, err = add(c.Devices, b, inventory.DecodeDevice)
	case frameCredentials:
		c.Credentials, err = add(c.Credentials, b, inventory.DecodeCredential)
	case frameProfiles:
		c.Profiles, err = add(c.Profiles, b, inventory.DecodeProfile)
	case frameIssuers:
		c.Issuers, err = add(c.Issuers, b, inventory.DecodeIssuer)
	case frameRevocations:
		c.Revocations, err = add(c.Revocations, b, inventory.DecodeRevocation)
	case frameTokens:
		c.Tokens, err = add(c.Tokens, b, inventory.DecodeToken)
	case frameApprovals:
		c.Approvals, err = add(c.Approvals, b, inventory.DecodeApproval)
	case frameBlocked:
		var k inventory.SPKI
		if len(b) != len(k) {
			return errors.New("a key has the wrong length")
		}
		c.BlockedKeys = append(c.BlockedKeys, inventory.SPKI(b))
	case frameUse:
		var h inventory.Hash
		if len(b) != len(h) {
			return errors.New("a token has the wrong length")
		}
		c.TokenUses = append(c.TokenUses, inventory.TokenUse{Token: inventory.Hash(b)})
	default:
		return errors.New("a record of an unknown kind")
	}
	return err
}

func add[T any](list []T, b []byte, decode func([]byte) (T, error)) ([]T, error) {
	v, err := decode(b)
	return append(list, v), err
}
