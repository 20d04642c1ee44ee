package enroll

import (
	"context"
	"fmt"

	"github.com/imprint-iot/imprint/inventory"
)

// RevokeCertificates ends single certificates for good; the devices keep their
// other credentials and may have new ones. All are revoked, or none; it returns how
// many were not revoked before.
//
// With KeyCompromise everything that the thief may have made of the key goes with
// it: the certificates that were renewed from this one, each renewed from the one
// before, all certificates for the same key, and the passwords that came with
// them. Their keys are blocked.
//
// The error wraps [inventory.ErrNotFound] if no certificate of this fleet has one
// of the serial numbers.
func (r *Registrar) RevokeCertificates(ctx context.Context, actor, why string, reason inventory.Reason, serials ...inventory.Serial) (int, error) {
	return decide(func() (int, error) {
		c := inventory.Change{Event: r.event(actor, "certificate.revoke", why)}
		n := 0
		err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
			owners, order, err := ownersOf(in, serials)
			if err != nil {
				return err
			}
			for _, id := range order {
				f, err := credentialsOf(in, id)
				if err != nil {
					return err
				}
				n += f.cut(&c, owners[id], reason)
			}
			return nil
		})
		if err != nil || n == 0 {
			return 0, err
		}
		return n, r.cfg.Store.Apply(ctx, c)
	})
}

// ownersOf finds the devices that certificates belong to, in the order in which
// they are named.
func ownersOf(in inventory.Reader, serials []inventory.Serial) (map[inventory.DeviceID][]inventory.Serial, []inventory.DeviceID, error) {
	owners := map[inventory.DeviceID][]inventory.Serial{}
	var order []inventory.DeviceID
	for _, s := range serials {
		found := false
		for cred, err := range in.Credentials(inventory.CredentialQuery{Serial: s}) {
			if err != nil {
				return nil, nil, err
			}
			found = true
			if owners[cred.Device] == nil {
				order = append(order, cred.Device)
			}
			owners[cred.Device] = append(owners[cred.Device], s)
		}
		if !found {
			return nil, nil, fmt.Errorf("certificate %s: %w", s, inventory.ErrNotFound)
		}
	}
	return owners, order, nil
}

func credentialsOf(in inventory.Reader, id inventory.DeviceID) (*facts, error) {
	dev, err := in.Device(id)
	if err != nil {
		return nil, err
	}
	f := &facts{device: dev}
	for cred, err := range in.Credentials(inventory.CredentialQuery{Device: dev.ID}) {
		if err != nil {
			return nil, err
		}
		f.credentials = append(f.credentials, cred)
	}
	return f, nil
}

// cut revokes the certificates with these serial numbers, and with KeyCompromise
// what descends from them. It returns how many credentials have changed.
func (f *facts) cut(c *inventory.Change, serials []inventory.Serial, reason inventory.Reason) int {
	doomed := f.lineage(serials, reason == inventory.KeyCompromise)
	n := 0
	for i := range f.credentials {
		if !doomed[i] {
			continue
		}
		cred := f.credentials[i]
		if reason == inventory.KeyCompromise && cred.Kind == inventory.CertificateCredential {
			c.BlockedKeys = append(c.BlockedKeys, cred.Certificate.SPKI)
		}
		raise := cred.State == inventory.CredentialRevoked && reason == inventory.KeyCompromise && cred.Reason != reason
		if cred.State == inventory.CredentialRevoked && !raise {
			continue
		}
		end(&cred, inventory.CredentialRevoked, reason, c.Event.Time)
		f.put(c, cred)
		n++
	}
	if n > 0 {
		c.Event.Objects = append(c.Event.Objects, inventory.Object{Kind: "device", ID: string(f.device.ID), Note: noteCut})
	}
	return n
}

// lineage marks the credentials to be ended. A renewal is made with the certificate
// before it, so ReplacedBy leads from a stolen key to everything that was obtained
// with it; so does the time, for a password that came with a renewal.
func (f *facts) lineage(serials []inventory.Serial, descend bool) []bool {
	doomed := make([]bool, len(f.credentials))
	keys := map[inventory.SPKI]bool{}
	next := map[uint32]bool{} // generations of certificates
	for i := range f.credentials {
		cred := &f.credentials[i]
		if cred.Kind != inventory.CertificateCredential {
			continue
		}
		named := false
		for _, s := range serials {
			named = named || cred.Certificate.Serial == s
		}
		doomed[i] = named || descend && (next[cred.Generation] || keys[cred.Certificate.SPKI])
		if !doomed[i] || !descend {
			continue
		}
		keys[cred.Certificate.SPKI] = true
		if cred.ReplacedBy != 0 {
			next[cred.ReplacedBy] = true
		}
	}
	if !descend {
		return doomed
	}
	for i := range f.credentials { // a key seen late may be that of an earlier certificate
		if cred := &f.credentials[i]; cred.Kind == inventory.CertificateCredential && keys[cred.Certificate.SPKI] {
			doomed[i] = true
		}
	}
	for i := range f.credentials {
		if f.credentials[i].Kind == inventory.PasswordCredential && f.cameWith(i, doomed) {
			doomed[i] = true
		}
	}
	return doomed
}

// cameWith reports whether a password was issued together with a doomed
// certificate: both were made by one change, at one time.
func (f *facts) cameWith(password int, doomed []bool) bool {
	for i := range f.credentials {
		if doomed[i] && f.credentials[i].Kind == inventory.CertificateCredential && f.credentials[i].Created.Equal(f.credentials[password].Created) {
			return true
		}
	}
	return false
}
