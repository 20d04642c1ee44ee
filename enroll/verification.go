package enroll

import (
	"context"
	"errors"
	"fmt"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
)

// verificationProfile is what a proof of possession follows.
var verificationProfile = inventory.Profile{Name: "/verification", Certificate: []byte(`{"kind":"ca-verification"}`), Password: inventory.PasswordRule{None: true}}

// SignVerification proves to somebody with whom an issuer is being registered, as
// AWS IoT Core or Azure IoT Hub, that this fleet has its key. It returns a
// certificate of the issuer whose common name is exactly code, which they gave: 1 to
// 64 letters, digits, '.', '-' or '_'.
//
// Nobody can log in with it: it is good for 24 hours and for no use that TLS knows,
// its key is made here and forgotten, and code may not be the ID of a device. The one
// that was made for the issuer before is revoked as superseded.
//
// Without a name the issuer is the newest active one for devices. Others may be
// registered before they are used, and so may a root whose key is at hand; the error
// wraps [inventory.ErrNotFound] if there is none, [ErrDenied] if it is not trusted
// (pending or retired) and [ca.ErrKeyUnavailable] if its key is elsewhere. A code that
// cannot be used is an [*inventory.InvalidError] or a [*ca.ConfigError].
func (r *Registrar) SignVerification(ctx context.Context, actor, code, issuer string) (*inventory.Certificate, inventory.Issuer, error) {
	if err := ca.CheckCode(code); err != nil {
		return nil, inventory.Issuer{}, err
	}
	type proof struct {
		cert   *inventory.Certificate
		issuer inventory.Issuer
	}
	p, err := decide(func() (proof, error) {
		f, err := r.verificationFacts(ctx, code, issuer)
		if err != nil {
			return proof{}, err
		}
		made, err := r.prove(ctx, f, code)
		if err != nil {
			return proof{}, err
		}
		c := inventory.Change{Event: r.event(actor, "ca.verification", "", inventory.Object{Kind: "issuer", ID: f.issuer.Name})}
		supersede(&c, f, made, r.now())
		made.addTo(&c)
		return proof{made.Certificate, f.issuer}, r.apply(ctx, c)
	})
	if err != nil {
		return nil, inventory.Issuer{}, err // it has not been recorded, so it does not leave
	}
	return p.cert, p.issuer, nil
}

// prove signs the certificate, in memory. The private key ends here.
func (r *Registrar) prove(ctx context.Context, f *facts, code string) (*issued, error) {
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
	made, err := r.certifyAs(f, ca.Subject{ID: code}, issuer, key, r.now())
	if err != nil {
		return nil, err
	}
	made.Key = inventory.Secret{}
	return made, nil
}

func (r *Registrar) verificationFacts(ctx context.Context, code, name string) (*facts, error) {
	var issuer inventory.Issuer
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
		if issuer, err = r.registrable(in, name); err != nil {
			return err
		}
		return notADevice(in, code)
	})
	if err != nil {
		return nil, err
	}
	f, err := r.serverFacts(ctx, inventory.DeviceID("verify-"+issuer.Name))
	if err != nil {
		return nil, err
	}
	f.issuer = issuer
	f.rule, err = r.rule(verificationProfile)
	return f, err
}

// registrable returns the issuer with a name, or the one that signs for devices.
func (r *Registrar) registrable(in inventory.Reader, name string) (inventory.Issuer, error) {
	x, err := r.at(in)
	if err != nil {
		return inventory.Issuer{}, err
	}
	if name == "" {
		return x.issuer(inventory.DevicePurpose)
	}
	for i := range x.issuers {
		switch iss := &x.issuers[i]; {
		case iss.Name != name:
		case !vouches(iss):
			return inventory.Issuer{}, fmt.Errorf("issuer %s is %s: %w", name, iss.State, ErrDenied)
		default:
			return *iss, nil
		}
	}
	return inventory.Issuer{}, fmt.Errorf("issuer %.64q: %w", name, inventory.ErrNotFound)
}

// notADevice refuses a code that names a device: a broker that looks at nothing but
// the common name would take the certificate for the device's.
func notADevice(in inventory.Reader, code string) error {
	id, err := inventory.ParseDeviceID(code)
	if err != nil {
		return nil //nolint:nilerr // what cannot be an ID is none
	}
	_, err = in.Device(id)
	switch {
	case errors.Is(err, inventory.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return &inventory.InvalidError{Field: "code", Value: code, Want: "what was given for this purpose, and not the id of a device"}
}
