package remote

import (
	"errors"

	"github.com/imprint-iot/imprint/inventory"
)

// encoder is what all records can do.
type encoder interface {
	AppendBinary(b []byte) ([]byte, error)
}

// writeChange sends a change but for the frame that ends it: its event, then its
// records in their stored form. Without the end it is no change.
func (x *wire) writeChange(c *inventory.Change) error {
	b, err := c.Event.AppendBinary(nil)
	if err != nil {
		return err
	}
	steps := []func() error{
		func() error { return x.write(frameEvents, b) },
		func() error { return writeAll(x, frameDevices, c.Devices) },
		func() error { return writeAll(x, frameCredentials, c.Credentials) },
		func() error { return writeAll(x, frameProfiles, c.Profiles) },
		func() error { return writeAll(x, frameIssuers, c.Issuers) },
		func() error { return writeAll(x, frameRevocations, c.Revocations) },
		func() error { return writeAll(x, frameTokens, c.Tokens) },
		func() error { return writeAll(x, frameApprovals, c.Approvals) },
		func() error { return writeAll(x, frameWorks, c.Works) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
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
	return nil
}

// writeAll sends records of one kind.
func writeAll[T any, P interface {
	*T
	encoder
}](x *wire, kind byte, records []T) error {
	for i := range records {
		b, err := P(&records[i]).AppendBinary(nil)
		if err != nil {
			return err
		}
		if err := x.write(kind, b); err != nil {
			return err
		}
	}
	return nil
}

// readChange reads what writeChange has sent, and its end. It is not validated: the
// store does that.
func readChange(next func() (byte, []byte, error)) (inventory.Change, error) {
	var c inventory.Change
	size := 0
	for first := true; ; first = false {
		kind, b, err := next()
		if err != nil {
			return c, err
		}
		if size += len(b); size > maxChange {
			return c, &inventory.InvalidError{Field: "change", Want: "at most 256 MiB"}
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
	case frameWorks:
		c.Works, err = add(c.Works, b, inventory.DecodeWork)
	case frameBlocked:
		if len(b) != len(inventory.SPKI{}) {
			return errors.New("a key has the wrong length")
		}
		c.BlockedKeys = append(c.BlockedKeys, inventory.SPKI(b))
	case frameUse:
		if len(b) != len(inventory.Hash{}) {
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
