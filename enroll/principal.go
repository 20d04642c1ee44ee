package enroll

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// Why a peer is not who it says, or may not do what it asks. A door tells the
// peer which of these it is and no more; the text is for the operator.
var (
	// ErrToken reports a token that is unknown, spent, expired, not yet valid,
	// revoked, or used from elsewhere: all one to whoever holds it.
	ErrToken = errors.New("token is not valid")

	// ErrScope reports a token, or a birth certificate, that is not for this
	// device. It wraps [ErrDenied].
	ErrScope = fmt.Errorf("not for this device: %w", ErrDenied)

	// ErrNoCertificate reports a peer without a certificate of this fleet.
	ErrNoCertificate = errors.New("no certificate of this fleet")

	// ErrRevoked reports a certificate that is revoked or held.
	ErrRevoked = errors.New("certificate is revoked")

	// ErrTooOld reports a certificate that has expired, longer ago than the
	// profile lets it be renewed.
	ErrTooOld = errors.New("certificate has expired")
)

// A Peer is what a door knows of who is at the other end of a TLS connection.
type Peer struct {
	Addr netip.Addr

	// Chain is what the peer presented, its own certificate first. TLS has proved
	// that it holds the private key, and nothing else has been verified.
	Chain []*x509.Certificate
}

// A Principal is a peer that has been recognised. Only a [Registrar] makes one
// that may do anything; the zero Principal may do nothing.
type Principal struct {
	role    inventory.Role
	name    string
	token   inventory.Hash // of a token
	device  inventory.DeviceID
	serial  inventory.Serial // of the device's own certificate
	expired bool
	maker   *Maker // of a birth certificate
	born    birth
}

// Role is what the principal may do.
func (p Principal) Role() inventory.Role { return p.role }

// Name is the principal in the audit log: "token 0123456789abcdef", "device
// dev-1". It holds no secret.
func (p Principal) Name() string { return p.name }

// Device is the device whose own certificate the peer has shown, or "".
func (p Principal) Device() inventory.DeviceID { return p.device }

// Serial is that of the certificate the peer has shown, or zero.
func (p Principal) Serial() inventory.Serial { return p.serial }

// UsesToken reports whether the principal is the holder of a token.
func (p Principal) UsesToken() bool { return p.token != inventory.Hash{} }

// birth is what a birth certificate says of its device.
type birth struct {
	id     inventory.DeviceID
	serial string // X.520 serialNumber
}

// A Maker is somebody else's CA whose birth certificates (IDevID, IEEE 802.1AR)
// or factory certificates let devices enroll. Its certificates never reach a
// broker: they buy one of this fleet's.
type Maker struct {
	Name  string
	Roots *x509.CertPool
	CAs   *x509.CertPool // intermediate CAs that devices may not send; may be nil

	// IDFrom says which attribute of the subject names the device: IDFromCN or
	// IDFromSerial.
	IDFrom IDSource

	// Profile and Group are those of devices that are not known yet. Without a
	// profile only devices that are registered may enroll.
	Profile string
	Group   string

	Approve bool // an operator has to approve each device
	Replace bool // a device may replace its certificate, as after a factory reset
}

// An IDSource says where in a birth certificate the device ID is.
type IDSource uint8

// The sources.
const (
	IDFromCN     IDSource = iota // the common name
	IDFromSerial                 // the X.520 serialNumber
)

// Token recognises the holder of a token. secret is the 32 octets. The error
// wraps [ErrToken].
//
// What the token is for is checked when it is used, on the facts of that moment.
func (r *Registrar) Token(ctx context.Context, secret []byte, peer Peer) (Principal, error) {
	hash := inventory.Hash(sha256.Sum256(secret))
	var t inventory.Token
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
		t, err = r.validToken(in, hash, peer)
		return err
	})
	if err != nil {
		return Principal{}, err
	}
	return Principal{role: t.Role, name: "token " + string(t.ID()), token: hash}, nil
}

// validToken reads a token and checks all but how often it has been used.
func (r *Registrar) validToken(in inventory.Reader, hash inventory.Hash, peer Peer) (inventory.Token, error) {
	t, err := in.Token(hash)
	if errors.Is(err, inventory.ErrNotFound) {
		return t, fmt.Errorf("unknown: %w", ErrToken)
	}
	if err != nil {
		return t, err
	}
	now := r.now()
	why := ""
	switch {
	case !t.RevokedAt.IsZero():
		why = "revoked"
	case now.Before(t.NotBefore):
		why = "not valid yet"
	case now.After(t.Expires):
		why = "expired"
	case len(t.Networks) > 0 && !slices.ContainsFunc(t.Networks, func(p netip.Prefix) bool { return p.Contains(peer.Addr.Unmap()) }):
		why = "not valid in the network of the peer"
	case t.Station != "":
		return t, r.atStation(in, t, peer)
	}
	if why != "" {
		return t, fmt.Errorf("token %s is %s: %w", t.ID(), why, ErrToken)
	}
	return t, nil
}

// atStation checks that a token which is bound to a station comes from it.
func (r *Registrar) atStation(in inventory.Reader, t inventory.Token, peer Peer) error {
	p, err := r.recognise(in, peer)
	switch {
	case err == nil && p.expired:
		err = ErrTooOld
	case err == nil && p.device.Canonical() != t.Station.Canonical():
		err = fmt.Errorf("the certificate is that of %s", p.device)
	}
	if err != nil {
		return fmt.Errorf("token %s is only valid at station %s: %w: %w", t.ID(), t.Station, err, ErrToken)
	}
	return nil
}

// Certificate recognises a device by its own certificate. That imprint has issued
// it is proved by the inventory, which holds it octet for octet, and that it is
// good is read there too: no CRL is in between. A certificate that has expired is
// recognised; see [Registrar.Renew].
//
// The error wraps [ErrNoCertificate] or [ErrRevoked].
func (r *Registrar) Certificate(ctx context.Context, peer Peer) (Principal, error) {
	var p Principal
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
		p, err = r.recognise(in, peer)
		return err
	})
	if two, ok := errors.AsType[*CloneError](err); ok {
		err = errors.Join(err, r.alarm(ctx, two))
	}
	return p, err
}

func (r *Registrar) recognise(in inventory.Reader, peer Peer) (Principal, error) {
	if len(peer.Chain) == 0 {
		return Principal{}, ErrNoCertificate
	}
	leaf := peer.Chain[0]
	if leaf.SerialNumber.Sign() <= 0 || leaf.SerialNumber.BitLen() > 8*len(inventory.Serial{}) {
		return Principal{}, ErrNoCertificate
	}
	var serial inventory.Serial
	leaf.SerialNumber.FillBytes(serial[:])
	for c, err := range in.Credentials(inventory.CredentialQuery{Serial: serial}) {
		if err != nil {
			return Principal{}, err
		}
		if string(c.Certificate.DER) != string(leaf.Raw) {
			continue
		}
		dev, err := in.Device(c.Device)
		if err == nil {
			err = issuerIsGood(in, c.Certificate.Issuer)
		}
		switch {
		case err != nil:
			return Principal{}, err
		case dev.Kind != inventory.Equipment:
			return Principal{}, fmt.Errorf("%s is a server: %w", dev.ID, ErrNoCertificate)
		case c.State != inventory.CredentialActive || dev.State != inventory.Active:
			if two, err := clone(in, &c); two || err != nil {
				return Principal{}, errors.Join(err, &CloneError{Device: dev.ID, Serial: serial})
			}
			return Principal{}, fmt.Errorf("device %s is %s, its certificate %s is %s: %w", dev.ID, dev.State, serial, c.State, ErrRevoked)
		}
		return Principal{
			role: inventory.DeviceRole, name: "device " + string(dev.ID), device: dev.ID, serial: serial,
			expired: !c.Usable(r.now()),
		}, nil
	}
	return Principal{}, ErrNoCertificate
}

// issuerIsGood reports an issuer that is retired, and all of its certificates with it.
func issuerIsGood(in inventory.Reader, key inventory.KeyID) error {
	for iss, err := range in.Issuers() {
		if err != nil {
			return err
		}
		if iss.KeyID == key && vouches(&iss) {
			return nil
		}
	}
	return fmt.Errorf("the issuer of the certificate is retired: %w", ErrRevoked)
}

// BirthCertificate recognises a device by the certificate of its maker. The error
// wraps [ErrNoCertificate].
func (r *Registrar) BirthCertificate(peer Peer) (Principal, error) {
	if len(peer.Chain) == 0 {
		return Principal{}, ErrNoCertificate
	}
	leaf := peer.Chain[0]
	if leaf.IsCA || !forClients(leaf) {
		return Principal{}, fmt.Errorf("it is not a client's: %w", ErrNoCertificate)
	}
	var makers []Maker
	if p := r.makers.Load(); p != nil {
		makers = *p
	}
	for i := range makers {
		m := &makers[i]
		if m.vouchesFor(peer.Chain, r.now()) != nil {
			continue
		}
		b := birth{serial: leaf.Subject.SerialNumber}
		name := leaf.Subject.CommonName
		if m.IDFrom == IDFromSerial {
			name = b.serial
		}
		id, err := inventory.ParseDeviceID(name)
		if err != nil {
			return Principal{}, fmt.Errorf("birth certificate of %s: %v: %w", m.Name, err, ErrNoCertificate) //nolint:errorlint // to the peer it is a certificate that is not known
		}
		b.id = id
		return Principal{role: inventory.DeviceRole, name: "birth certificate " + m.Name + "/" + string(id), maker: m, born: b}, nil
	}
	return Principal{}, ErrNoCertificate
}

// forClients reports whether a certificate may be used by a TLS client. Birth
// certificates often have no extended key usage at all (RFC 8995 §2.3).
func forClients(leaf *x509.Certificate) bool {
	if len(leaf.ExtKeyUsage) == 0 && len(leaf.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// maxPeerChain bounds the work of verifying a chain that somebody sent.
const maxPeerChain = 5

func (m *Maker) vouchesFor(chain []*x509.Certificate, now time.Time) error {
	if len(chain) > maxPeerChain {
		return errors.New("the chain is too long")
	}
	between := x509.NewCertPool()
	if m.CAs != nil {
		between = m.CAs.Clone()
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: m.Roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}
