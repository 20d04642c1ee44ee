package targettest

import (
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// A Memory is a [templates.View] held in memory. Fields may be changed between
// exports.
type Memory struct {
	PKI     *PKI
	Now     time.Time
	Rev     uint64
	Broker  templates.Node
	Models  []inventory.Profile // sorted by name
	Devices []templates.Entry   // in the order of canonical IDs
	Lists   []templates.CRL
	Trust   []byte
}

// NewFleet makes a fleet without devices, with a PKI of its own and a CRL that
// is good for a week from now.
func NewFleet(tb testing.TB, now time.Time) *Memory {
	tb.Helper()
	p := NewPKI(tb, now)
	return &Memory{
		PKI: p, Now: now, Rev: 1, Broker: p.Node(tb), Trust: p.TrustBundle(),
		Lists: []templates.CRL{p.CRL(tb, now.Add(-time.Minute), now.AddDate(0, 0, 7))},
	}
}

// Profile adds a device profile.
func (f *Memory) Profile(name string, rules ...topic.Rule) {
	f.Models = append(f.Models, inventory.Profile{Name: name, Policy: topic.Policy{Rules: rules}})
	slices.SortFunc(f.Models, func(a, b inventory.Profile) int { return strings.Compare(a.Name, b.Name) })
}

// Device adds a device with the rights of its profile. Without a password it has
// only a certificate.
func (f *Memory) Device(tb testing.TB, id, profile, group, password string, labels ...inventory.Label) {
	tb.Helper()
	e := templates.Entry{ID: inventory.DeviceID(id), Profile: profile, Group: group, Labels: labels, Certificate: password == "", Revision: f.Rev}
	if e.Certificate {
		e.Leafs = [][]byte{f.PKI.Client(tb, id).Leaf.Raw}
	}
	if password != "" {
		e.Verifiers = Verifiers(tb, id, password)
	}
	p := f.policy(tb, profile)
	grants, err := p.Resolve(Subject(e))
	if err != nil {
		tb.Fatal(err)
	}
	e.Grants = grants
	f.Devices = append(f.Devices, e)
	slices.SortFunc(f.Devices, func(a, b templates.Entry) int { return strings.Compare(a.ID.Canonical(), b.ID.Canonical()) })
}

func (f *Memory) policy(tb testing.TB, profile string) topic.Policy {
	tb.Helper()
	i := slices.IndexFunc(f.Models, func(p inventory.Profile) bool { return p.Name == profile })
	if i < 0 {
		tb.Fatalf("no profile %s", profile)
	}
	return f.Models[i].Policy
}

// Remove takes a device out of the fleet.
func (f *Memory) Remove(id string) {
	f.Devices = slices.DeleteFunc(f.Devices, func(e templates.Entry) bool { return string(e.ID) == id })
}

// Subject is the device of an entry as a policy sees it.
func Subject(e templates.Entry) topic.Subject {
	return topic.Subject{ID: string(e.ID), Group: e.Group, Labels: e.Labels.Get}
}

// Verifiers makes the verifiers of a password, one of each scheme, with salts made
// from the ID so that golden files stay. Of bcrypt, whose salt nobody can choose,
// the ones of the small fleet are fixed.
func Verifiers(tb testing.TB, id, password string) []inventory.Verifier {
	tb.Helper()
	sum := sha512.Sum512([]byte(id))
	salt := []byte(base64.RawURLEncoding.EncodeToString(sum[:9]))
	const iterations = 101
	stretched, err := pbkdf2.Key(sha512.New, password, sum[:12], iterations, 64)
	if err != nil {
		tb.Fatal(err)
	}
	mosca, err := pbkdf2.Key(sha1.New, password, salt, 10_000, 128)
	if err != nil {
		tb.Fatal(err)
	}
	crypted, ok := map[string][]byte{
		"correct horse":  []byte("$2a$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e"),
		"battery staple": []byte("$2a$04$abcdefghijklmnopqrstuuhfdSToe28Z2OzxmmHxfI3lnNDfjxoF6"),
	}[password]
	if !ok {
		if crypted, err = bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost); err != nil {
			tb.Fatal(err)
		}
	}
	b64 := base64.RawStdEncoding
	argon := fmt.Appendf(nil, "$argon2id$v=19$m=64,t=1,p=1$%s$%s", b64.EncodeToString(salt), b64.EncodeToString(argon2.IDKey([]byte(password), salt, 1, 64, 1, 32)))
	suffix512, suffix256 := sha512.Sum512(append([]byte(password), salt...)), sha256.Sum256(append([]byte(password), salt...))
	prefix512 := sha512.Sum512(append(salt[:len(salt):len(salt)], password...))
	rabbit := sha256.Sum256([]byte(id))
	rabbitHash := sha256.Sum256(append(rabbit[:4:4], password...))
	return []inventory.Verifier{
		{Scheme: inventory.PBKDF2SHA512, Iterations: iterations, Salt: sum[:12], Hash: stretched},
		{Scheme: inventory.SHA512Suffix, Salt: salt, Hash: suffix512[:]},
		{Scheme: inventory.SHA256Suffix, Salt: salt, Hash: suffix256[:]},
		{Scheme: inventory.RabbitSHA256, Salt: rabbit[:4], Hash: rabbitHash[:]},
		{Scheme: inventory.SHA512Prefix, Salt: salt, Hash: prefix512[:]},
		{Scheme: inventory.Bcrypt, Hash: crypted},
		{Scheme: inventory.Argon2id, Hash: argon},
		{Scheme: inventory.PBKDF2SHA1, Iterations: 10_000, Salt: salt, Hash: mosca},
	}
}

// Revision implements [templates.View].
func (f *Memory) Revision() uint64 { return f.Rev }

// Fleet implements [templates.View].
func (f *Memory) Fleet() templates.Fleet {
	return templates.Fleet{Name: "Acme", TrustDomain: TrustDomain}
}

// Node implements [templates.View].
func (f *Memory) Node() templates.Node { return f.Broker }

// Profiles implements [templates.View].
func (f *Memory) Profiles() iter.Seq2[inventory.Profile, error] { return values(f.Models) }

// Entries implements [templates.View].
func (f *Memory) Entries() iter.Seq2[templates.Entry, error] { return values(f.Devices) }

// TrustBundle implements [templates.View].
func (f *Memory) TrustBundle() []byte { return f.Trust }

// CRLs implements [templates.View].
func (f *Memory) CRLs() []templates.CRL { return f.Lists }

func values[T any](s []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, v := range s {
			if !yield(v, nil) {
				return
			}
		}
	}
}

// Small is the fleet of the golden files: two profiles that share some of their
// rules, and three devices, one of them without a password.
func Small(tb testing.TB, now time.Time) *Memory {
	tb.Helper()
	f := NewFleet(tb, now)
	shared := []topic.Rule{
		{Action: topic.Publish, Filter: "fleet/{id}/up/#"},
		{Action: topic.Receive, Filter: "fleet/{id}/down"},
		{Action: topic.Publish, Filter: "fleet/{id}/state"},
		{Action: topic.Receive, Filter: "fleet/{id}/state"},
		{Action: topic.Receive, Filter: "news/all", Shared: true},
	}
	f.Profile("sensor", shared...)
	f.Profile("valve", append(slices.Clone(shared),
		topic.Rule{Action: topic.Receive, Filter: "groups/{group}/cmd/+", Shared: true},
		topic.Rule{Action: topic.Publish, Filter: "sites/{label.site}/valves/{id}"})...)
	f.Device(tb, "dev-1", "sensor", "hall", "correct horse", inventory.Label{Key: "site", Value: "berlin"})
	f.Device(tb, "Dev-2", "valve", "hall", "battery staple", inventory.Label{Key: "owner", Value: "a\u2028b \"\\ <script>"}, inventory.Label{Key: "site", Value: "berlin"})
	f.Device(tb, "dev-3", "valve", "yard", "", inventory.Label{Key: "site", Value: "rome"})
	return f
}

// A Synthetic view has any number of devices, made as they are asked for. They
// share one password verifier but for its salt, so it costs nothing.
type Synthetic struct {
	*Memory
	N            int
	Certificates bool // they have certificates, too
}

// NewSynthetic makes a view of n devices of one profile, d-00000000 and on.
func NewSynthetic(tb testing.TB, n int, rules ...topic.Rule) *Synthetic {
	tb.Helper()
	f := NewFleet(tb, time.Now())
	if len(rules) == 0 {
		rules = []topic.Rule{{Action: topic.Publish, Filter: "fleet/{id}/up"}, {Action: topic.Receive, Filter: "fleet/{id}/down"}}
	}
	f.Profile("sensor", rules...)
	return &Synthetic{Memory: f, N: n}
}

// Entries implements [templates.View].
func (s *Synthetic) Entries() iter.Seq2[templates.Entry, error] {
	policy := s.Models[0].Policy
	hash := sha512.Sum512([]byte("password"))
	long := append(hash[:], hash[:]...)
	crypted := []byte("$2a$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e")
	argon := []byte("$argon2id$v=19$m=64,t=1,p=1$AAECAwQFBgcICQoLDA0ODw$KbpILTEzHuKZKsSEkaz0lDlca6LOqmCevy+EbDItFz0")
	return func(yield func(templates.Entry, error) bool) {
		for i := range s.N {
			id := fmt.Sprintf("d-%08d", i)
			salt := []byte(id + "..")[:12]
			e := templates.Entry{
				ID: inventory.DeviceID(id), Profile: s.Models[0].Name, Group: "g1", Certificate: s.Certificates,
				Verifiers: []inventory.Verifier{
					{Scheme: inventory.PBKDF2SHA512, Iterations: 101, Salt: salt, Hash: hash[:]},
					{Scheme: inventory.SHA512Suffix, Salt: salt, Hash: hash[:]},
					{Scheme: inventory.SHA256Suffix, Salt: salt, Hash: hash[:32]},
					{Scheme: inventory.RabbitSHA256, Salt: []byte(id)[:4], Hash: hash[:32]},
					{Scheme: inventory.SHA512Prefix, Salt: salt, Hash: hash[:]},
					{Scheme: inventory.Bcrypt, Hash: crypted},
					{Scheme: inventory.Argon2id, Hash: argon},
					{Scheme: inventory.PBKDF2SHA1, Iterations: 10_000, Salt: salt, Hash: long},
				},
			}
			var err error
			e.Grants, err = policy.Resolve(Subject(e))
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}
