package enroll

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// ErrNoTokenKey reports that no tokens for brokers are made here: Config.TokenSigner
// is not set.
var ErrNoTokenKey = errors.New("no tokens for brokers are made here")

// The dialects of tokens for brokers. Each is the audience (aud) of its tokens too.
const (
	TokenEMQX   = "emqx"   // the rights are in the claim acl, in the form that denies what is not in it
	TokenHiveMQ = "hivemq" // says who the device is; its rights are in a realm of the Enterprise Security Extension
)

// maxTokenValidity is how long a token is good: nothing takes one back, so this is
// how long a device that is revoked can still log in with one.
const maxTokenValidity = 15 * time.Minute

// tokenSkew is how far behind the clock of a broker may be.
const tokenSkew = 30 * time.Second

// maxTokenSize is in bytes. A password of MQTT has at most 65535.
const maxTokenSize = 32 << 10

// An MQTTToken is a JSON Web Token (RFC 7519) with which a device logs in to a broker.
// It is recorded nowhere, and cannot be revoked.
type MQTTToken struct {
	Text    inventory.Secret // the MQTT password: a JWS in its compact form (RFC 7515 §7.1)
	Expires time.Time        // to the second

	// Narrower are the rights of the device that the token leaves out, because the
	// broker would read more into them.
	Narrower []LostRight
}

// A LostRight is a right that a token leaves out.
type LostRight struct {
	Action topic.Action
	Filter topic.Filter
	Reason string // in words
}

// tokenClaims are the claims of a token. is_superuser, client_attrs and
// clientid_override, which EMQX would follow, are never among them.
type tokenClaims struct {
	Issuer   string   `json:"iss"`
	Subject  string   `json:"sub"`
	Audience string   `json:"aud"`
	Username string   `json:"username"`
	Client   string   `json:"clientid"`
	ClientID string   `json:"client_id"` // as RFC 9068 spells it
	Issued   int64    `json:"iat"`
	From     int64    `json:"nbf"`
	Expires  int64    `json:"exp"`
	ID       string   `json:"jti"`
	ACL      tokenACL `json:"acl"`
}

// tokenACL are the rights in a token, as EMQX reads them (emqx_authz_client_info).
// What none of the filters matches is denied. The other form that it reads, a list of
// rules, hands on what no rule matches to whatever the operator has configured.
type tokenACL struct {
	Publish   []string `json:"pub"`
	Subscribe []string `json:"sub"`
}

// MQTTToken makes a token for a device that has shown its own certificate, with the
// rights that it has now, in a dialect: [TokenEMQX] or [TokenHiveMQ]. The user name
// and the client identifier of the device are its ID.
//
// The token ends after 15 minutes or Config.TokenValidity, and never later than the
// certificate. Its nbf and iat are 30 s in the past, for brokers that are slow.
//
// The error is an [*inventory.InvalidError] for an unknown dialect, or wraps
// [ErrDenied], [ErrNoCertificate], [ErrRevoked], [ErrTooOld] or [ErrNoTokenKey].
func (r *Registrar) MQTTToken(ctx context.Context, p Principal, dialect string) (MQTTToken, error) {
	if p.role != inventory.DeviceRole || p.device == "" {
		return MQTTToken{}, fmt.Errorf("%s has shown no certificate of a device: %w", p.name, ErrDenied)
	}
	if dialect != TokenEMQX && dialect != TokenHiveMQ {
		return MQTTToken{}, &inventory.InvalidError{Field: "dialect", Value: dialect, Want: "emqx or hivemq, brokers that check tokens of MQTT clients"}
	}
	key, err := r.tokenKey(ctx)
	if err != nil {
		return MQTTToken{}, err
	}
	now := r.now()
	var grants []topic.Grant
	var ends time.Time
	err = r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
		grants, ends, err = tokenRights(in, p, now)
		return err
	})
	if err != nil {
		return MQTTToken{}, err
	}
	if end := now.Add(r.cfg.TokenValidity); end.Before(ends) {
		ends = end
	}
	id := string(p.device)
	claims := tokenClaims{
		Issuer: "imprint:" + r.cfg.TrustDomain, Subject: id, Audience: dialect, Username: id, Client: id, ClientID: id,
		Issued: now.Add(-tokenSkew).Unix(), From: now.Add(-tokenSkew).Unix(), Expires: ends.Unix(),
		ID: newTokenID(), ACL: tokenACL{Publish: []string{}, Subscribe: []string{}},
	}
	t := MQTTToken{Expires: time.Unix(claims.Expires, 0).UTC()}
	if dialect == TokenEMQX {
		claims.ACL, t.Narrower = emqxRights(grants)
	}
	t.Text, err = key.sign(claims)
	if err != nil {
		return MQTTToken{}, fmt.Errorf("token of %s: %w", p.device, err)
	}
	return t, nil
}

// tokenRights reads, at one moment, what a device may do and when the certificate that
// it has shown ends. What has happened since it was recognised counts.
func tokenRights(in inventory.Reader, p Principal, now time.Time) ([]topic.Grant, time.Time, error) {
	var shown *inventory.Certificate
	for c, err := range in.Credentials(inventory.CredentialQuery{Serial: p.serial}) {
		switch {
		case err != nil:
			return nil, time.Time{}, err
		case c.Kind != inventory.CertificateCredential || c.Device != p.device:
		case c.State != inventory.CredentialActive:
			return nil, time.Time{}, fmt.Errorf("certificate %s of device %s is %s: %w", p.serial, p.device, c.State, ErrRevoked)
		case !c.Usable(now):
			return nil, time.Time{}, fmt.Errorf("certificate %s of device %s is good until %s: %w", p.serial, p.device, c.Certificate.NotAfter.Format(time.RFC3339), ErrTooOld)
		default:
			shown = c.Certificate
		}
	}
	if shown == nil {
		return nil, time.Time{}, ErrNoCertificate
	}
	if err := issuerIsGood(in, shown.Issuer); err != nil {
		return nil, time.Time{}, err
	}
	dev, err := in.Device(p.device)
	if err != nil {
		return nil, time.Time{}, err
	}
	if dev.Kind != inventory.Equipment || dev.State != inventory.Active {
		return nil, time.Time{}, fmt.Errorf("device %s is %s: %w", dev.ID, dev.State, ErrRevoked)
	}
	profile, err := findProfile(in, dev.Profile)
	if err != nil {
		return nil, time.Time{}, err
	}
	grants, err := profile.Policy.Resolve(Subject(dev))
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("device %s: %w", dev.ID, err)
	}
	return grants, shown.NotAfter, nil
}

// emqxRights puts rights into the form of EMQX, and returns those that it would make
// wider and that nothing else allows either.
func emqxRights(grants []topic.Grant) (tokenACL, []LostRight) {
	acl := tokenACL{Publish: []string{}, Subscribe: []string{}}
	var kept []topic.Grant
	var out []LostRight
	for _, g := range grants {
		if reason := widerInEMQX(g); reason != "" {
			out = append(out, LostRight{Action: g.Action, Filter: g.Filter, Reason: reason})
			continue
		}
		kept = append(kept, g)
		if g.Action == topic.Publish {
			acl.Publish = append(acl.Publish, string(g.Filter))
		} else {
			acl.Subscribe = append(acl.Subscribe, string(g.Filter))
		}
	}
	return acl, slices.DeleteFunc(out, func(lost LostRight) bool {
		return slices.ContainsFunc(kept, func(g topic.Grant) bool { return g.Action == lost.Action && g.Filter.Covers(lost.Filter) })
	})
}

// widerInEMQX says why EMQX would allow more than a right. It holds the filter of a
// subscription against a rule level by level (emqx_topic:match), and its # is then
// one more level that a + matches: a/# goes through a/+, and through a/+/#.
func widerInEMQX(g topic.Grant) string {
	f := string(g.Filter)
	first, _, _ := strings.Cut(f, "/")
	switch {
	case strings.HasPrefix(f, "eq "):
		return "EMQX takes eq and a space at the start for a word of its own"
	case first == "+", first == "#":
		return "a wildcard at the start reaches topics that begin with $ in some versions of EMQX"
	case strings.HasPrefix(f, "$"):
		return "EMQX has meanings of its own for topics that begin with $"
	}
	if parent, ok := strings.CutSuffix(strings.TrimSuffix(f, "/#"), "/+"); ok && g.Action == topic.Receive {
		return "EMQX would allow a subscription to " + parent + "/# by it"
	}
	return ""
}

// newTokenID is a jti: 128 random bits.
func newTokenID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

// A tokenKey signs tokens.
type tokenKey struct {
	signer jose.Signer
	public jose.JSONWebKey
}

// tokenKeyring opens the key once.
type tokenKeyring struct {
	mu  sync.Mutex
	key *tokenKey
}

// tokenKey returns the key, opening it the first time.
func (r *Registrar) tokenKey(ctx context.Context) (*tokenKey, error) {
	if r.cfg.TokenSigner == nil {
		return nil, ErrNoTokenKey
	}
	r.tokens.mu.Lock()
	defer r.tokens.mu.Unlock()
	if r.tokens.key != nil {
		return r.tokens.key, nil
	}
	signer, err := r.cfg.TokenSigner(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening the key of tokens: %w", err)
	}
	key, err := newTokenKey(signer)
	if err != nil {
		return nil, fmt.Errorf("key of tokens: %w", err)
	}
	r.tokens.key = key
	return key, nil
}

// newTokenKey takes P-256 only: one algorithm, ES256 (RFC 7518 §3.4), that is never
// negotiated. Its name is its thumbprint (RFC 7638).
func newTokenKey(signer crypto.Signer) (*tokenKey, error) {
	pub, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("want a key on the curve P-256")
	}
	k := &tokenKey{public: jose.JSONWebKey{Key: pub, Algorithm: string(jose.ES256), Use: "sig"}}
	thumbprint, err := k.public.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("thumbprint: %w", err)
	}
	k.public.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	opts := new(jose.SignerOptions).WithType("JWT").WithHeader("kid", k.public.KeyID)
	k.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: cryptosigner.Opaque(signer)}, opts)
	return k, err
}

func (k *tokenKey) sign(claims tokenClaims) (inventory.Secret, error) {
	body, err := json.Marshal(claims)
	if err != nil {
		return inventory.Secret{}, fmt.Errorf("encoding claims: %w", err)
	}
	signed, err := k.signer.Sign(body)
	if err != nil {
		return inventory.Secret{}, fmt.Errorf("signing: %w", err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		return inventory.Secret{}, fmt.Errorf("encoding: %w", err)
	}
	if len(text) > maxTokenSize {
		return inventory.Secret{}, fmt.Errorf("%d bytes, more than the %d that are made: its rights are too many: %w", len(text), maxTokenSize, ErrDenied)
	}
	return inventory.NewSecret([]byte(text)), nil
}

// TokenKeys returns the public keys that tokens are verified with (RFC 7517 §5),
// opening the private one if that has not been done. The error wraps
// [ErrNoTokenKey].
func (r *Registrar) TokenKeys(ctx context.Context) (jose.JSONWebKeySet, error) {
	key, err := r.tokenKey(ctx)
	if err != nil {
		return jose.JSONWebKeySet{}, err
	}
	return jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.public}}, nil
}
