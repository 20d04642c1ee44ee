package enroll

import (
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/sha1" //nolint:gosec // in PBKDF2, where two brokers know no other hash
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// A Login is what a broker says of a client that connects.
type Login struct {
	ClientID string
	Username string           // empty if CONNECT has none
	Password inventory.Secret // empty if CONNECT has none

	// CommonName is that of the client's certificate, which the broker has verified;
	// empty if it has shown none. Certificate is all of it, in DER, and Serial its
	// number, if the broker says so: then just this one has to be good.
	CommonName  string
	Certificate []byte
	Serial      inventory.Serial
}

// An Access is what a broker asks for a client that is connected.
type Access struct {
	ClientID   string // empty if the broker does not say
	Username   string
	CommonName string // as in [Login]

	Verb  AccessVerb
	Topic string // a name, or for AccessSubscribe a filter
}

// An AccessVerb is what a client wants to do with a topic.
type AccessVerb uint8

// The verbs. The zero value is none, and denied.
const (
	AccessPublish   AccessVerb = iota + 1 // also a last will, and a retained message
	AccessSubscribe                       // to a filter
	AccessReceive                         // one message
)

// A Verdict is the answer to a broker. The zero value is a denial.
type Verdict struct {
	Allowed bool
	Device  inventory.Device // if Allowed
	Expires time.Time        // of the certificate that was shown, if it is known
	Grants  []topic.Grant    // of the device, if Allowed and asked for by Admit
	Reason  string           // in words, for the log; never for the broker
}

// decideTimeout is how long the inventory may take. Brokers wait for 5 s.
const decideTimeout = 2 * time.Second

// Admit decides whether a client may connect to the broker that asks. It reads the
// inventory as it is now, so what has been revoked is denied from then on. A client
// identifier has to be the device's own, and where a certificate and a user name are
// given, they have to be one device's.
//
// There is no error: whatever goes wrong is a denial.
func (r *Registrar) Admit(ctx context.Context, broker Principal, l Login) Verdict {
	return r.verdict(ctx, func(in inventory.Reader) (Verdict, error) {
		name, reason := identity(l.ClientID, l.Username, l.CommonName)
		if reason != "" {
			return Verdict{Reason: reason}, nil
		}
		c, reason, err := r.clientOf(in, broker, name)
		if reason != "" || err != nil {
			if l.CommonName == "" {
				burn(l.Password) // who does not exist takes as long as who has another password
			}
			return Verdict{Reason: reason}, err
		}
		v := Verdict{Device: c.device}
		switch {
		case l.CommonName == "" && (len(l.Certificate) > 0 || !l.Serial.IsZero()):
			reason = "the certificate has no name"
		case l.CommonName != "":
			v.Expires, reason = c.certificate(l, r.now())
		default:
			reason = r.password(ctx, c, l.Password)
		}
		if reason != "" {
			return Verdict{Reason: reason}, nil
		}
		if v.Grants, err = c.policy.Resolve(Subject(c.device)); err != nil {
			return Verdict{}, err
		}
		v.Allowed, v.Reason = true, "a credential of the device is good"
		return v, nil
	})
}

// Allow decides whether a client that is connected may do something. Like Admit, it
// looks at the device as it is now.
func (r *Registrar) Allow(ctx context.Context, broker Principal, a Access) Verdict {
	return r.verdict(ctx, func(in inventory.Reader) (Verdict, error) {
		name, reason := identity(a.ClientID, a.Username, a.CommonName)
		if reason != "" {
			return Verdict{Reason: reason}, nil
		}
		c, reason, err := r.clientOf(in, broker, name)
		if reason != "" || err != nil {
			return Verdict{Reason: reason}, err
		}
		if !c.usable(r.now()) {
			return Verdict{Reason: "no credential of the device is good"}, nil
		}
		var d topic.Decision
		switch a.Verb {
		case AccessPublish:
			d = c.policy.Decide(Subject(c.device), topic.Publish, topic.Name(a.Topic))
		case AccessReceive:
			d = c.policy.Decide(Subject(c.device), topic.Receive, topic.Name(a.Topic))
		case AccessSubscribe:
			d = c.policy.DecideSubscribe(Subject(c.device), topic.Filter(unshared(a.Topic)))
		default:
			d.Reason = "this is no action"
		}
		return Verdict{Allowed: d.Allowed, Device: c.device, Reason: d.Reason}, nil
	})
}

// Standing decides whether a device may use the broker that asks at all.
func (r *Registrar) Standing(ctx context.Context, broker Principal, username string) Verdict {
	return r.verdict(ctx, func(in inventory.Reader) (Verdict, error) {
		name, reason := identity("", username, "")
		if reason != "" {
			return Verdict{Reason: reason}, nil
		}
		c, reason, err := r.clientOf(in, broker, name)
		if reason != "" || err != nil {
			return Verdict{Reason: reason}, err
		}
		if !c.usable(r.now()) {
			return Verdict{Reason: "no credential of the device is good"}, nil
		}
		return Verdict{Allowed: true, Device: c.device}, nil
	})
}

// unshared is the filter of a shared subscription, $share/GROUP/FILTER (MQTT 5
// §4.8.2), and any other filter as it is.
func unshared(filter string) string {
	rest, ok := strings.CutPrefix(filter, "$share/")
	if !ok {
		return filter
	}
	group, inner, ok := strings.Cut(rest, "/")
	if !ok || group == "" || strings.ContainsAny(group, "+#") {
		return filter
	}
	return inner
}

// identity is the one name that a client goes by, or the reason why it has none. What
// a broker does not say is not compared; a client identifier is always said by CONNECT.
func identity(clientID, username, commonName string) (inventory.DeviceID, string) {
	name := username
	switch {
	case commonName != "" && username != "" && username != commonName:
		return "", "the user name is not that of the certificate"
	case commonName != "":
		name = commonName
	}
	id, err := inventory.ParseDeviceID(name)
	switch {
	case err != nil:
		return "", "there is no name, or none that a device has"
	case clientID != "" && clientID != name:
		return "", "the client identifier is another one's"
	}
	return id, ""
}

// verdict runs a decision on one moment of the inventory, and denies if that fails,
// panics or takes too long.
func (r *Registrar) verdict(ctx context.Context, decide func(in inventory.Reader) (Verdict, error)) Verdict {
	ctx, cancel := context.WithTimeout(ctx, decideTimeout)
	defer cancel()
	done := make(chan Verdict, 1)
	go func() {
		var v Verdict
		defer func() {
			if fault := recover(); fault != nil {
				v = Verdict{Reason: fmt.Sprintf("fault: %.200v", fault)}
			}
			done <- v
		}()
		err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
			v, err = decide(in)
			return err
		})
		if err != nil {
			v = Verdict{Reason: err.Error()}
		}
	}()
	select {
	case v := <-done:
		return v
	case <-ctx.Done():
		return Verdict{Reason: "the inventory does not answer"}
	}
}

// client is a device at the moment of a decision.
type client struct {
	device      inventory.Device
	credentials []inventory.Credential
	policy      topic.Policy
	trusted     map[inventory.KeyID]bool // issuers whose certificates are good
}

// clientOf reads a device that may connect at all, in the eyes of the broker that
// asks, or the reason why it may not.
func (r *Registrar) clientOf(in inventory.Reader, broker Principal, id inventory.DeviceID) (*client, string, error) {
	if broker.role != inventory.BrokerRole {
		return nil, "who asks is not a broker", nil
	}
	token, err := in.Token(broker.token)
	if err != nil {
		return nil, "", err
	}
	if !token.RevokedAt.IsZero() {
		return nil, "the token of the broker is revoked", nil
	}
	c := &client{}
	c.device, err = in.Device(id)
	switch {
	case errors.Is(err, inventory.ErrNotFound):
		return nil, "there is no such device", nil
	case err != nil:
		return nil, "", err
	case c.device.ID != id:
		return nil, "the name is written in another case", nil
	case c.device.Kind != inventory.Equipment:
		return nil, "it is a server, not a device", nil
	case c.device.State != inventory.Active:
		return nil, "the device is " + c.device.State.String(), nil
	case !token.Covers(id) || token.Group != "" && token.Group != c.device.Group || token.Profile != "" && token.Profile != c.device.Profile:
		return nil, "the broker is not for this device", nil
	}
	for cred, err := range in.Credentials(inventory.CredentialQuery{Device: id}) {
		if err != nil {
			return nil, "", err
		}
		c.credentials = append(c.credentials, cred)
	}
	rules, err := r.fleetRules(in)
	if err != nil {
		return nil, "", err
	}
	var ok bool
	if c.policy, ok = rules.policies[c.device.Profile]; !ok {
		return nil, "the profile of the device is gone", nil
	}
	c.trusted = rules.trusted
	return c, "", nil
}

// fleetRules are what all devices have in common at one revision. Nothing in it is
// changed once it is made.
type fleetRules struct {
	revision uint64
	trusted  map[inventory.KeyID]bool // issuers whose certificates are good
	policies map[string]topic.Policy  // by the name of the profile
}

// fleetRules reads them again when anything has changed since the last time: between
// two changes there are many questions, and a fleet may have many profiles.
func (r *Registrar) fleetRules(in inventory.Reader) (*fleetRules, error) {
	have := r.rules.Load()
	if have != nil && have.revision == in.Revision() {
		return have, nil
	}
	f := &fleetRules{revision: in.Revision(), trusted: map[inventory.KeyID]bool{}, policies: map[string]topic.Policy{}}
	for iss, err := range in.Issuers() {
		if err != nil {
			return nil, err
		}
		f.trusted[iss.KeyID] = vouches(&iss)
	}
	for p, err := range in.Profiles() {
		if err != nil {
			return nil, err
		}
		f.policies[p.Name] = p.Policy
	}
	if have == nil || have.revision < f.revision {
		r.rules.CompareAndSwap(have, f) // who comes second has wasted a look
	}
	return f, nil
}

// good reports whether a credential opens the door now.
func (c *client) good(cred *inventory.Credential, now time.Time) bool {
	return cred.Usable(now) && (cred.Certificate == nil || !now.Before(cred.Certificate.NotBefore) && c.trusted[cred.Certificate.Issuer])
}

func (c *client) usable(now time.Time) bool {
	for i := range c.credentials {
		if c.good(&c.credentials[i], now) {
			return true
		}
	}
	return false
}

// certificate looks for the certificate that was shown. Where only its name is known,
// one that is good has to be there: which one it was, the broker has verified.
func (c *client) certificate(l Login, now time.Time) (expires time.Time, reason string) {
	for i := range c.credentials {
		cred := &c.credentials[i]
		if cred.Kind != inventory.CertificateCredential || !c.good(cred, now) {
			continue
		}
		if len(l.Certificate) > 0 && !bytes.Equal(l.Certificate, cred.Certificate.DER) {
			continue
		}
		if !l.Serial.IsZero() && l.Serial != cred.Certificate.Serial {
			continue
		}
		if len(l.Certificate) > 0 || !l.Serial.IsZero() {
			return cred.Certificate.NotAfter, ""
		}
		if expires.Before(cred.Certificate.NotAfter) {
			expires = cred.Certificate.NotAfter
		}
	}
	if expires.IsZero() {
		return expires, "the certificate is not one that is good"
	}
	return expires, ""
}

// password compares with every password that is good: while one replaces another,
// that is two. An adopted verifier may be dear; of these, few are tried at a time.
func (r *Registrar) password(ctx context.Context, c *client, given inventory.Secret) string {
	found, now := false, r.now()
	for i := range c.credentials {
		cred := &c.credentials[i]
		if cred.Kind != inventory.PasswordCredential || !c.good(cred, now) {
			continue
		}
		v, ok := cheapest(cred.Verifiers)
		if !ok {
			continue
		}
		if dear(v) {
			select {
			case r.comparing <- struct{}{}:
			case <-ctx.Done():
				return "too many passwords are being compared"
			}
		}
		if matches(v, given) {
			found = true
		}
		if dear(v) {
			<-r.comparing
		}
	}
	if !found {
		return "the password is wrong, or there is none"
	}
	return ""
}

// maxPassword is the longest password that is looked at, in bytes: MQTT's own limit
// would be hashed for nothing.
const maxPassword = 256

// cheapest returns the verifier that costs least to compare with.
func cheapest(verifiers []inventory.Verifier) (inventory.Verifier, bool) {
	for _, s := range []inventory.Scheme{inventory.SHA256Suffix, inventory.RabbitSHA256, inventory.SHA512Suffix, inventory.SHA512Prefix, inventory.PBKDF2SHA512, inventory.PBKDF2SHA1, inventory.Bcrypt} {
		for _, v := range verifiers {
			if v.Scheme == s {
				return v, true
			}
		}
	}
	return inventory.Verifier{}, false
}

// dear reports whether comparing with v takes more than some milliseconds.
func dear(v inventory.Verifier) bool {
	return v.Scheme == inventory.Bcrypt || v.Iterations > 1000
}

// matches reports whether a password is the one of a verifier.
func matches(v inventory.Verifier, given inventory.Secret) bool {
	pw := given.Reveal()
	return len(pw) > 0 && len(pw) <= maxPassword && compare(v, pw)
}

func compare(v inventory.Verifier, pw []byte) bool {
	var got []byte
	switch v.Scheme {
	case inventory.SHA256Suffix:
		sum := sha256.Sum256(join(pw, v.Salt))
		got = sum[:]
	case inventory.RabbitSHA256:
		sum := sha256.Sum256(join(v.Salt, pw))
		got = sum[:]
	case inventory.SHA512Suffix:
		sum := sha512.Sum512(join(pw, v.Salt))
		got = sum[:]
	case inventory.SHA512Prefix:
		sum := sha512.Sum512(join(v.Salt, pw))
		got = sum[:]
	case inventory.PBKDF2SHA512:
		got = stretch(sha512.New, v, pw)
	case inventory.PBKDF2SHA1:
		got = stretch(sha1.New, v, pw)
	case inventory.Bcrypt:
		return bcrypt.CompareHashAndPassword(v.Hash, pw) == nil
	case inventory.Argon2id:
		return false // it costs 47 MiB each time, and another verifier is always there
	}
	return len(got) > 0 && subtle.ConstantTimeCompare(got, v.Hash) == 1
}

func join(a, b []byte) []byte { return append(a[:len(a):len(a)], b...) }

func stretch[H hash.Hash](h func() H, v inventory.Verifier, pw []byte) []byte {
	got, err := pbkdf2.Key(h, string(pw), v.Salt, int(v.Iterations), len(v.Hash))
	if err != nil {
		return nil
	}
	return got
}

// burn does what comparing a password does.
func burn(given inventory.Secret) {
	sum := sha256.Sum256(given.Reveal())
	_ = subtle.ConstantTimeCompare(sum[:], sum[:])
}
