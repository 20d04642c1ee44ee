package enroll

import (
	"context"
	"errors"
	"net"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
)

// serverProfile is what a [inventory.Server] follows. Its name is outside the
// alphabet of profile names, so it can never be taken for a device profile.
var serverProfile = inventory.Profile{Name: "/server", Certificate: []byte(`{"kind":"server"}`), Password: inventory.PasswordRule{None: true}}

// EnrollServer issues a server certificate to a broker node or another server
// that is reached at hosts, DNS names or IP addresses. A node that is not known
// yet is registered in the same change; the hosts of one that is are replaced.
// Certificates that the node has stay valid: a server may still be using them.
func (r *Registrar) EnrollServer(ctx context.Context, actor string, id inventory.DeviceID, hosts []string) (*Enrollment, error) {
	if len(hosts) == 0 {
		return nil, &inventory.InvalidError{Field: "hosts", Value: string(id), Want: "at least one DNS name or IP address"}
	}
	return decide(func() (*Enrollment, error) {
		f, err := r.serverFacts(ctx, id)
		if err != nil {
			return nil, err
		}
		f.device.Hosts = hosts
		if err := f.mayEnroll(); err != nil {
			return nil, err
		}
		key, err := newKey(f.rule)
		if err != nil {
			return nil, err
		}
		issuer, err := r.open(ctx, f.issuer)
		if err != nil {
			return nil, err
		}
		made, err := r.issue(f, issuer, key, r.now())
		if err != nil {
			return nil, err
		}
		c := inventory.Change{Event: r.event(actor, "server.enroll", "")}
		made.addTo(&c)
		return &made.Enrollment, r.apply(ctx, c)
	})
}

func (r *Registrar) serverFacts(ctx context.Context, id inventory.DeviceID) (*facts, error) {
	var f *facts
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		dev, err := in.Device(id)
		if errors.Is(err, inventory.ErrNotFound) {
			now := r.now()
			dev, err = inventory.Device{ID: id, Kind: inventory.Server, State: inventory.Registered, Created: now, Updated: now}, nil
		}
		if err != nil {
			return err
		}
		if dev.Kind != inventory.Server {
			return &inventory.ConflictError{Why: inventory.Exists, Record: "device " + string(id), Detail: "it is no server"}
		}
		x, err := r.at(in)
		if err != nil {
			return err
		}
		f, err = x.facts(dev)
		return err
	})
	return f, err
}

// subject says what a certificate of d names.
func (r *Registrar) subject(d inventory.Device) ca.Subject {
	s := ca.Subject{ID: string(d.ID), Organization: r.cfg.Organization, TrustDomain: r.cfg.TrustDomain, HardwareSerial: d.HardwareSerial}
	for _, h := range d.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			s.IPAddresses = append(s.IPAddresses, ip)
		} else {
			s.DNSNames = append(s.DNSNames, h)
		}
	}
	return s
}
