package storetest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// A model is a store as simple as it can be: maps, copied for each change, and
// queries that look at everything.
type model struct {
	revision uint64
	devices  map[string]inventory.Device // by canonical ID
	creds    map[credentialName]inventory.Credential
	keys     map[inventory.SPKI]inventory.KeyUse
	revoked  map[revocationName]inventory.Revocation
	profiles map[string]inventory.Profile
	issuers  map[string]inventory.Issuer
	tokens   map[inventory.Hash]inventory.Token
	asked    map[inventory.SPKI]inventory.Approval
	works    map[string]inventory.Work // by name
}

type credentialName struct {
	device     string
	kind       inventory.CredentialKind
	generation uint32
}

type revocationName struct {
	issuer inventory.KeyID
	serial inventory.Serial
}

func newModel() *model {
	return &model{
		devices: map[string]inventory.Device{}, creds: map[credentialName]inventory.Credential{},
		keys: map[inventory.SPKI]inventory.KeyUse{}, revoked: map[revocationName]inventory.Revocation{},
		profiles: map[string]inventory.Profile{}, issuers: map[string]inventory.Issuer{},
		tokens: map[inventory.Hash]inventory.Token{}, asked: map[inventory.SPKI]inventory.Approval{}, works: map[string]inventory.Work{},
	}
}

func (m *model) clone() *model {
	n := *m
	n.devices, n.creds, n.keys = maps.Clone(m.devices), maps.Clone(m.creds), maps.Clone(m.keys)
	n.revoked, n.profiles, n.issuers = maps.Clone(m.revoked), maps.Clone(m.profiles), maps.Clone(m.issuers)
	n.tokens, n.asked, n.works = maps.Clone(m.tokens), maps.Clone(m.asked), maps.Clone(m.works)
	return &n
}

var errRefused = errors.New("refused")

// apply returns the model after c, or errRefused.
func (m *model) apply(c inventory.Change) (*model, error) {
	n := m.clone()
	n.revision++
	for _, d := range c.Devices {
		have, ok := n.devices[d.ID.Canonical()]
		if ok != (d.Revision != 0) || (ok && inventory.CheckDevice(&have, &d) != nil) {
			return m, errRefused
		}
		d.Revision = n.revision
		n.devices[d.ID.Canonical()] = d
	}
	for _, x := range c.Credentials {
		if !n.credential(x) {
			return m, errRefused
		}
	}
	for _, x := range n.creds {
		switch d := n.devices[x.Device.Canonical()]; d.State {
		case inventory.Registered, inventory.Active:
		default:
			if x.State == inventory.CredentialActive {
				return m, errRefused
			}
		}
	}
	for _, p := range c.Profiles {
		if n.profiles[p.Name].Revision != p.Revision {
			return m, errRefused
		}
		p.Revision = n.revision
		n.profiles[p.Name] = p
	}
	for _, i := range c.Issuers {
		have, ok := n.issuers[i.Name]
		if ok != (i.Revision != 0) || (ok && inventory.CheckIssuer(&have, &i) != nil) {
			return m, errRefused
		}
		i.Revision = n.revision
		n.issuers[i.Name] = i
	}
	for _, k := range c.BlockedKeys {
		n.keys[k] = inventory.KeyUse{Device: n.keys[k].Device, Blocked: true}
	}
	for _, r := range c.Revocations {
		if !n.foreign(r) {
			return m, errRefused
		}
	}
	if !n.sell(c) {
		return m, errRefused
	}
	return n, nil
}

func (m *model) credential(x inventory.Credential) bool {
	d, ok := m.devices[x.Device.Canonical()]
	if !ok || d.ID != x.Device {
		return false
	}
	name := credentialName{x.Device.Canonical(), x.Kind, x.Generation}
	have, ok := m.creds[name]
	if ok != (x.Revision != 0) || (ok && inventory.CheckCredential(&have, &x) != nil) {
		return false
	}
	if cert := x.Certificate; cert != nil && !ok {
		for _, other := range m.creds {
			if o := other.Certificate; o != nil && (o.Serial == cert.Serial && o.Issuer == cert.Issuer || o.SPKI == cert.SPKI && other.Device != x.Device) {
				return false
			}
		}
		if _, used := m.revoked[revocationName{cert.Issuer, cert.Serial}]; used || m.keys[cert.SPKI].Blocked {
			return false
		}
		m.keys[cert.SPKI] = inventory.KeyUse{Device: x.Device}
	}
	if r, is := x.Revocation(); is {
		m.revoked[revocationName{r.Issuer, r.Serial}] = r
	} else if x.Certificate != nil {
		delete(m.revoked, revocationName{x.Certificate.Issuer, x.Certificate.Serial})
	}
	x.Revision = m.revision
	m.creds[name] = x
	return true
}

func (m *model) foreign(r inventory.Revocation) bool {
	for _, x := range m.creds {
		if x.Certificate != nil && x.Certificate.Serial == r.Serial && x.Certificate.Issuer == r.Issuer {
			return false
		}
	}
	name := revocationName{r.Issuer, r.Serial}
	if have, ok := m.revoked[name]; ok {
		if r.Reason == inventory.KeyCompromise {
			have.Reason = r.Reason
		}
		r = have
	}
	m.revoked[name] = r
	return true
}

// sorted returns the values that keep wants, in the order of less.
func sorted[K comparable, V any](m map[K]V, keep func(V) bool, order func(a, b V) int) []V {
	var all []V
	for _, v := range m {
		if keep(v) {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, order)
	return all
}

func byID(a, b inventory.Device) int { return cmp.Compare(a.ID.Canonical(), b.ID.Canonical()) }

func byName(a, b inventory.Credential) int {
	return cmp.Or(cmp.Compare(a.Device.Canonical(), b.Device.Canonical()), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Generation, b.Generation))
}

func (m *model) queryDevices(q inventory.Query) []inventory.Device {
	return sorted(m.devices, func(d inventory.Device) bool {
		for _, l := range q.Labels {
			if v, ok := d.Labels.Get(l.Key); !ok || v != l.Value {
				return false
			}
		}
		return (q.State == 0 || q.State == d.State) && (q.Group == "" || q.Group == d.Group) && (q.Profile == "" || q.Profile == d.Profile)
	}, byID)
}

func (m *model) queryCredentials(q inventory.CredentialQuery) []inventory.Credential {
	return sorted(m.creds, func(c inventory.Credential) bool {
		if q.Device != "" && !strings.EqualFold(string(q.Device), string(c.Device)) || q.Kind != 0 && q.Kind != c.Kind || q.State != 0 && q.State != c.State {
			return false
		}
		bySerial, byKey, byTime := !q.Serial.IsZero(), !q.SPKI.IsZero(), !q.ExpiresBefore.IsZero() || !q.ExpiresAfter.IsZero()
		x := c.Certificate
		if x == nil {
			return !bySerial && !byKey && !byTime
		}
		return (!bySerial || x.Serial == q.Serial) && (!byKey || x.SPKI == q.SPKI) &&
			(q.ExpiresBefore.IsZero() || x.NotAfter.Before(q.ExpiresBefore)) && (q.ExpiresAfter.IsZero() || !x.NotAfter.Before(q.ExpiresAfter))
	}, byName)
}

// A machine drives a store and a model with the same random changes.
type machine struct {
	t     *testing.T
	f     Factory
	store inventory.Store
	model *model
	steps int
}

// testModel compares at least 2,000 random changes, accepted and refused, with
// the model, and the answers to random queries after each.
func testModel(t *testing.T, f Factory) {
	steps := 0
	for steps < 2000 && !t.Failed() {
		rapid.Check(t, func(r *rapid.T) {
			m := &machine{t: t, f: f, store: f.New(t), model: newModel()}
			defer func() { steps += m.steps }()
			n := rapid.IntRange(20, 120).Draw(r, "steps")
			for range n {
				m.step(r)
				if r.Failed() {
					return
				}
			}
			m.checkAll(r)
			m.store = f.Reopen(t, m.store)
			m.checkAll(r)
			if err := m.store.Close(); err != nil {
				r.Error(err)
			}
		})
	}
	t.Logf("%d changes", steps)
}

func (m *machine) step(r *rapid.T) {
	m.steps++
	c := inventory.Change{Event: event("test.step")}
	for range rapid.IntRange(1, 3).Draw(r, "records") {
		m.draw(r, &c)
	}
	next, want := m.model.apply(c)
	switch got := m.store.Apply(m.t.Context(), c); {
	case want == nil && got != nil:
		r.Fatalf("the store refused a good change: %v", got)
	case want != nil && !errors.Is(got, inventory.ErrConflict):
		if _, twice := errors.AsType[*inventory.InvalidError](got); !twice {
			r.Fatalf("the store answered %v to a change that does not fit", got)
		}
	}
	m.model = next
	m.checkSome(r)
}

// draw adds a random record to c. The pools are small, so that most changes
// meet something.
func (m *machine) draw(r *rapid.T, c *inventory.Change) {
	id := fmt.Sprintf("dev-%d", rapid.IntRange(0, 5).Draw(r, "id"))
	kind := rapid.IntRange(0, 13).Draw(r, "what")
	if contains(c, id, kind) {
		return // twice in one change is refused for that alone
	}
	switch kind {
	case 0, 1, 2:
		c.Devices = append(c.Devices, m.drawDevice(r, id))
	case 3, 4, 5, 6:
		c.Credentials = append(c.Credentials, m.drawCredential(r, id, kind == 6))
	case 7:
		c.BlockedKeys = append(c.BlockedKeys, hash("key k%d", rapid.IntRange(0, 30).Draw(r, "blocked")))
	case 8:
		x := certificate("", 1, fmt.Sprint("s", rapid.IntRange(0, 40).Draw(r, "serial")), "").Certificate
		c.Revocations = append(c.Revocations, inventory.Revocation{
			Issuer: x.Issuer, Serial: x.Serial, Time: day, NotAfter: x.NotAfter,
			Reason: rapid.SampledFrom([]inventory.Reason{inventory.Unspecified, inventory.KeyCompromise}).Draw(r, "reason"),
		})
	case 9, 10, 11, 12:
		m.drawToken(r, c, kind)
	default:
		name := rapid.SampledFrom([]string{"a", "b"}).Draw(r, "issuer")
		i, ok := m.model.issuers[name]
		if !ok {
			i = issuer(name)
		}
		i.CRLNumber += rapid.Uint64Range(0, 2).Draw(r, "number")
		i.CRLThisUpdate = day.Add(time.Duration(rapid.IntRange(0, 9).Draw(r, "hour")) * time.Hour)
		i.Revision = drawRevision(r, i.Revision)
		c.Issuers = append(c.Issuers, i)
		p := m.model.profiles["p"]
		p.Name = "p"
		p.Grace += time.Hour
		c.Profiles = append(c.Profiles, p)
	}
}

func contains(c *inventory.Change, id string, kind int) bool {
	return slices.ContainsFunc(c.Devices, func(d inventory.Device) bool { return d.ID.Canonical() == id }) && kind < 3 ||
		slices.ContainsFunc(c.Credentials, func(x inventory.Credential) bool { return x.Device.Canonical() == id }) && kind < 7 ||
		len(c.Issuers) > 0 && kind == 13
}

// drawRevision is mostly the right one.
func drawRevision(r *rapid.T, right uint64) uint64 {
	if rapid.IntRange(0, 9).Draw(r, "stale") == 0 {
		return rapid.Uint64Range(0, right+1).Draw(r, "revision")
	}
	return right
}

func (m *machine) drawDevice(r *rapid.T, id string) inventory.Device {
	d, ok := m.model.devices[id]
	if !ok {
		d = device(id)
		if rapid.Bool().Draw(r, "upper") {
			d.ID = inventory.DeviceID(strings.ToUpper(id))
		}
	}
	d.State = rapid.SampledFrom([]inventory.DeviceState{inventory.Registered, inventory.Active, inventory.Active, inventory.Suspended, inventory.Revoked, inventory.Retired}).Draw(r, "state")
	d.Group = rapid.SampledFrom([]string{"", "g", "h"}).Draw(r, "group")
	d.Profile = rapid.SampledFrom([]string{"p", "q"}).Draw(r, "profile")
	d.Labels = inventory.NewLabels(map[string]string{"l": rapid.SampledFrom([]string{"1", "2"}).Draw(r, "label")})
	d.Revision = drawRevision(r, d.Revision)
	return d
}

func (m *machine) drawCredential(r *rapid.T, id string, isPassword bool) inventory.Credential {
	if d, ok := m.model.devices[id]; ok {
		id = string(d.ID)
	}
	generation := rapid.Uint32Range(1, 4).Draw(r, "generation")
	fresh := password(id, generation)
	if !isPassword {
		n := rapid.IntRange(0, 40).Draw(r, "serial")
		fresh = certificate(id, generation, fmt.Sprint("s", n), fmt.Sprint("k", rapid.IntRange(0, 30).Draw(r, "key")))
	}
	c, ok := m.model.creds[credentialName{strings.ToLower(id), fresh.Kind, generation}]
	if !ok || rapid.IntRange(0, 9).Draw(r, "other") == 0 {
		c = fresh
	}
	switch rapid.IntRange(0, 3).Draw(r, "do") {
	case 0:
		c = revoke(c, rapid.SampledFrom([]inventory.Reason{inventory.Superseded, inventory.KeyCompromise}).Draw(r, "reason"))
	case 1:
		c = revoke(c, inventory.CertificateHold)
	case 2:
		c.State, c.Reason, c.RevokedAt = inventory.CredentialActive, 0, time.Time{}
	}
	c.Revision = drawRevision(r, c.Revision)
	return c
}

func differ[T any](r *rapid.T, what string, got, want T, err error) {
	if err != nil {
		r.Fatalf("%s: %v", what, err)
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		r.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// checkSome asks one random question of each kind.
func (m *machine) checkSome(r *rapid.T) {
	q := inventory.Query{
		State:   inventory.DeviceState(rapid.IntRange(0, 5).Draw(r, "q.state")),
		Group:   rapid.SampledFrom([]string{"", "g", "h"}).Draw(r, "q.group"),
		Profile: rapid.SampledFrom([]string{"", "p", "q"}).Draw(r, "q.profile"),
	}
	if rapid.IntRange(0, 3).Draw(r, "q.labels") == 0 {
		q.Labels = inventory.NewLabels(map[string]string{"l": "1"})
	}
	c := inventory.CredentialQuery{State: inventory.CredentialState(rapid.IntRange(0, 3).Draw(r, "c.state"))}
	switch rapid.IntRange(0, 4).Draw(r, "c.by") {
	case 0:
		c.Device = inventory.DeviceID(fmt.Sprintf("Dev-%d", rapid.IntRange(0, 6).Draw(r, "c.device")))
	case 1:
		c.Serial = certificate("", 1, fmt.Sprint("s", rapid.IntRange(0, 40).Draw(r, "c.serial")), "").Certificate.Serial
	case 2:
		c.SPKI = hash("key k%d", rapid.IntRange(0, 30).Draw(r, "c.key"))
	case 3:
		c.ExpiresBefore = day.AddDate(1, 0, rapid.IntRange(0, 255).Draw(r, "c.before"))
		c.ExpiresAfter = day.AddDate(1, 0, rapid.IntRange(0, 255).Draw(r, "c.after"))
	default:
		c.All = true
	}
	err := m.store.Read(m.t.Context(), func(s inventory.Reader) error {
		differ(r, "revision", s.Revision(), m.model.revision, nil)
		devices, err := collect(s.Devices(q))
		slices.SortFunc(devices, byID)
		differ(r, fmt.Sprintf("devices of %+v", q), devices, m.model.queryDevices(q), err)
		creds, err := collect(s.Credentials(c))
		if !c.ExpiresBefore.IsZero() && !slices.IsSortedFunc(creds, func(a, b inventory.Credential) int { return a.Certificate.NotAfter.Compare(b.Certificate.NotAfter) }) {
			r.Fatalf("credentials are not in the order of expiry")
		}
		slices.SortFunc(creds, byName)
		differ(r, fmt.Sprintf("credentials of %+v", c), creds, m.model.queryCredentials(c), err)
		return nil
	})
	if err != nil {
		r.Fatal(err)
	}
}

// checkAll compares everything that checkSome leaves out.
func (m *machine) checkAll(r *rapid.T) {
	err := m.store.Read(m.t.Context(), func(s inventory.Reader) error {
		for k, want := range m.model.keys {
			use, err := s.Key(k)
			differ(r, "key", use, want, err)
		}
		for _, name := range []string{"a", "b"} {
			got, err := collect(s.Revocations(keyID(name)))
			want := sorted(m.model.revoked, func(v inventory.Revocation) bool { return v.Issuer == keyID(name) },
				func(a, b inventory.Revocation) int { return slices.Compare(a.Serial[:], b.Serial[:]) })
			differ(r, "revocations", got, want, err)
		}
		profiles, err := collect(s.Profiles())
		differ(r, "profiles", profiles, sorted(m.model.profiles, func(inventory.Profile) bool { return true },
			func(a, b inventory.Profile) int { return cmp.Compare(a.Name, b.Name) }), err)
		issuers, err := collect(s.Issuers())
		differ(r, "issuers", issuers, sorted(m.model.issuers, func(inventory.Issuer) bool { return true },
			func(a, b inventory.Issuer) int { return cmp.Compare(a.Name, b.Name) }), err)
		m.checkTokens(r, s)
		n, _, err := inventory.VerifyChain(s.Events(0))
		differ(r, "events", n, m.model.revision, err)
		return nil
	})
	if err != nil {
		r.Fatal(err)
	}
}
