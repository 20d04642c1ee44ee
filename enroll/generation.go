package enroll

import (
	"context"
	"fmt"

	"github.com/imprint-iot/imprint/inventory"
)

// ActivateIssuer lets an issuer that stands by take over from the one before it. That
// one goes on to sign CRLs, and what it has issued stays good. By then every broker
// should have the CRL of the new one. To activate what is active is no error.
func (r *Registrar) ActivateIssuer(ctx context.Context, actor, why, name string) (inventory.Issuer, error) {
	return decide(func() (inventory.Issuer, error) {
		rec, err := r.issuerNamed(ctx, name)
		switch {
		case err != nil:
			return rec, err
		case rec.State == inventory.IssuerActive:
			return rec, nil
		case rec.State != inventory.IssuerStandby:
			return rec, fmt.Errorf("issuer %s is %s: %w", name, rec.State, ErrDenied)
		}
		rec.State = inventory.IssuerActive
		return rec, r.cfg.Store.Apply(ctx, inventory.Change{
			Event:   r.event(actor, "issuer.activate", why, inventory.Object{Kind: "issuer", ID: name, Note: rec.KeyID.String()}),
			Issuers: []inventory.Issuer{rec},
		})
	})
}

func (r *Registrar) issuerNamed(ctx context.Context, name string) (inventory.Issuer, error) {
	var rec inventory.Issuer
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		for iss, err := range in.Issuers() {
			if err != nil {
				return err
			}
			if iss.Name == name {
				rec = iss
				return nil
			}
		}
		return fmt.Errorf("issuer %s: %w", name, inventory.ErrNotFound)
	})
	return rec, err
}

// RollIfFull activates the issuer of devices that stands by if the CRL of the active
// one has more than budget entries, so that CRLs stay small: brokers pay for every
// entry at every handshake. An issuer of a rollover under way is left alone. It returns
// the name of the issuer that has taken over, or "".
func (r *Registrar) RollIfFull(ctx context.Context, actor string, budget int) (string, error) {
	var full bool
	var standby string
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		full, standby = false, ""
		x, err := r.at(in)
		if err != nil {
			return err
		}
		if x.rollover != nil && !x.rollover.Over() {
			return nil
		}
		active, err := x.issuer(inventory.DevicePurpose)
		if err != nil {
			return err
		}
		for _, iss := range x.issuers {
			if iss.Purpose == inventory.DevicePurpose && iss.State == inventory.IssuerStandby && iss.Generation > active.Generation && iss.CRLNumber > 0 {
				standby = iss.Name
			}
		}
		n := 0
		for _, err := range in.Revocations(active.KeyID) {
			if err != nil {
				return err
			}
			if n++; n > budget {
				full = true
				return nil
			}
		}
		return nil
	})
	if err != nil || !full || standby == "" {
		return "", err
	}
	rec, err := r.ActivateIssuer(ctx, actor, fmt.Sprintf("the CRL has more than %d entries", budget), standby)
	return rec.Name, err
}

// RetireIssuer ends an issuer for good, and with it every certificate that it has
// issued, as when its key was stolen or a lot is recalled: nobody is told to trust it any
// more, and brokers have no CRL of it, without which they refuse. Unless force is set
// the error is a [*StrandedError] if devices have no other way in: no certificate of
// another issuer, and no password.
func (r *Registrar) RetireIssuer(ctx context.Context, actor, why, name string, force bool) (int, error) {
	return decide(func() (int, error) {
		c := inventory.Change{Event: r.event(actor, "issuer.retire", why)}
		var lost strandedList
		err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
			lost = strandedList{}
			x, err := r.at(in)
			if err != nil {
				return err
			}
			var rec inventory.Issuer
			others := false
			for _, iss := range x.issuers {
				if iss.Name == name {
					rec = iss
				}
			}
			for _, iss := range x.issuers {
				others = others || iss.Purpose == rec.Purpose && iss.Name != name && iss.State == inventory.IssuerActive
			}
			switch {
			case rec.Name == "":
				return fmt.Errorf("issuer %s: %w", name, inventory.ErrNotFound)
			case rec.Purpose == inventory.RootPurpose:
				return fmt.Errorf("issuer %s is a root: replace it (imprint rollover): %w", name, ErrDenied)
			case rec.State == inventory.IssuerRetired:
				return nil
			case !others:
				return fmt.Errorf("issuer %s is the only one that issues %s certificates: make another first (imprint ca roll): %w", name, rec.Purpose, ErrDenied)
			}
			rec.State = inventory.IssuerRetired
			c.Issuers = []inventory.Issuer{rec}
			c.Event.Objects = []inventory.Object{{Kind: "issuer", ID: name, Note: rec.State.String()}}
			lost, err = r.onlyUnder(in, rec.KeyID, &c)
			return err
		})
		if err != nil || len(c.Issuers) == 0 {
			return 0, err
		}
		if lost.count > 0 && !force {
			return lost.count, &StrandedError{Phase: "retire", Count: lost.count, Devices: lost.ids}
		}
		return lost.count, r.cfg.Store.Apply(ctx, c)
	})
}

// onlyUnder lists the devices that have no way in without an issuer. Those that have a
// certificate under it are named in the event, so that their sessions end.
func (r *Registrar) onlyUnder(in inventory.Reader, key inventory.KeyID, c *inventory.Change) (strandedList, error) {
	var lost strandedList
	now := r.now()
	for d, err := range Holdings(in) {
		if err != nil {
			return lost, err
		}
		if d.Device.State != inventory.Active && d.Device.State != inventory.Suspended {
			continue
		}
		under, other := false, false
		for i := range d.Credentials {
			cred := &d.Credentials[i]
			switch {
			case cred.State == inventory.CredentialRevoked:
			case cred.Kind == inventory.PasswordCredential:
				other = true
			case now.After(cred.Certificate.NotAfter):
			case cred.Certificate.Issuer == key:
				under = true
			default:
				other = true
			}
		}
		if !under {
			continue
		}
		c.Event.Objects = append(c.Event.Objects, inventory.Object{Kind: "device", ID: string(d.Device.ID), Note: noteCut})
		if !other {
			lost.add(d.Device.ID)
		}
	}
	return lost, nil
}

// OnlyUnder returns the devices that RetireIssuer would strand, at most 10,000 of them,
// and how many they are.
func (r *Registrar) OnlyUnder(ctx context.Context, name string) ([]inventory.DeviceID, int, error) {
	rec, err := r.issuerNamed(ctx, name)
	if err != nil {
		return nil, 0, err
	}
	var lost strandedList
	err = r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		lost, err = r.onlyUnder(in, rec.KeyID, &inventory.Change{})
		return err
	})
	return lost.ids, lost.count, err
}
