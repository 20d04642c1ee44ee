package campaign

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
)

// A Step is how far a device is in a campaign.
type Step string

// The steps of a device.
const (
	Waiting Step = "waiting" // has nothing new yet
	Issued  Step = "issued"  // has new credentials and was not seen to use them
	Done    Step = "done"    // uses them; the old ones have ended
)

// A Standing counts how far the devices of a campaign are.
type Standing struct {
	Devices  int `json:"devices"`  // that are meant
	Released int `json:"released"` // whose turn it is
	Waiting  int `json:"waiting"`  // of the released
	Issued   int `json:"issued"`   // of the released
	Done     int `json:"done"`     // of all
	Faults   int `json:"faults"`   // have reported that they cannot work with what they got

	Late []inventory.DeviceID `json:"late"` // released and not done: the first 1,000
}

const maxLate = 1000

// Standing counts how far a campaign is. It reads the fleet once, in memory that does
// not grow with it.
func (b *Book) Standing(ctx context.Context, c *Campaign) (Standing, error) {
	s := Standing{Late: []inventory.DeviceID{}}
	faulty, err := b.faults(ctx, c)
	if err != nil {
		return s, err
	}
	err = b.each(ctx, c, func(d *enroll.Holding, step Step, released bool) error {
		s.Devices++
		if step == Done {
			s.Done++
		} else if faulty[d.Device.ID.Canonical()] {
			s.Faults++
		}
		if !released {
			return nil
		}
		s.Released++
		switch step {
		case Waiting:
			s.Waiting++
		case Issued:
			s.Issued++
		case Done:
			return nil
		}
		if len(s.Late) < maxLate {
			s.Late = append(s.Late, d.Device.ID)
		}
		return nil
	})
	return s, err
}

// faults are the devices that have reported, since the campaign began, that they
// cannot work with what they got.
func (b *Book) faults(ctx context.Context, c *Campaign) (map[string]bool, error) {
	faulty := map[string]bool{}
	err := b.store.Read(ctx, func(in inventory.Reader) error {
		for e, err := range in.Events(c.From + 1) {
			if err != nil {
				return err
			}
			if e.Action != "device.fault" || e.Time.Before(c.Began) {
				continue
			}
			for _, o := range e.Objects {
				if o.Kind == "device" {
					faulty[inventory.DeviceID(o.ID).Canonical()] = true
				}
			}
		}
		return nil
	})
	return faulty, err
}

// each calls fn for every device that is meant, with how far it is and whether its
// turn has come.
func (b *Book) each(ctx context.Context, c *Campaign, fn func(d *enroll.Holding, step Step, released bool) error) error {
	now := inventory.UTC(b.now())
	return b.store.Read(ctx, func(in inventory.Reader) error {
		m, err := newMatcher(in, c)
		if err != nil {
			return err
		}
		for d, err := range enroll.Holdings(in) {
			if err != nil {
				return err
			}
			step, meant := m.step(&d, now)
			if !meant {
				continue
			}
			if err := fn(&d, step, c.place(d.Device.ID) < c.Released); err != nil {
				return err
			}
		}
		return nil
	})
}

// A matcher says which devices a campaign means.
type matcher struct {
	*Campaign
	issuer inventory.KeyID // of the scope; zero: any
}

func newMatcher(in inventory.Reader, c *Campaign) (*matcher, error) {
	m := &matcher{Campaign: c}
	if c.Scope.Issuer == "" {
		return m, nil
	}
	for iss, err := range in.Issuers() {
		if err != nil {
			return nil, err
		}
		if iss.Name == c.Scope.Issuer {
			m.issuer = iss.KeyID
			return m, nil
		}
	}
	return nil, &inventory.InvalidError{Field: "issuer", Value: c.Scope.Issuer, Want: "the name of an issuer"}
}

// step says how far a device is, and whether it is meant at all. What was made since
// the campaign began is not held against the scope: it is what the campaign has made.
func (m *matcher) step(d *enroll.Holding, now time.Time) (Step, bool) {
	if !m.names(&d.Device) {
		return "", false
	}
	var oldCert, newCert, oldPass, newPass *inventory.Credential
	for i := range d.Credentials {
		c := &d.Credentials[i]
		fresh := m.made(c)
		switch {
		case c.Kind == inventory.CertificateCredential && fresh && c.Usable(now):
			newCert = c
		case c.Kind == inventory.CertificateCredential && !fresh:
			oldCert = c
		case c.Kind == inventory.PasswordCredential && fresh && c.Usable(now):
			newPass = c
		case c.Kind == inventory.PasswordCredential && !fresh:
			oldPass = c
		}
	}
	if !m.suits(oldCert, oldPass) {
		return "", false
	}
	needCert, needPass := m.Certificate && oldCert != nil, m.Password && oldPass != nil
	if !needCert && !needPass {
		return "", false
	}
	switch {
	case needCert && newCert == nil, needPass && newPass == nil:
		return Waiting, true
	case needCert && newCert.FirstSeen.IsZero(), needPass && newPass.FirstSeen.IsZero():
		return Issued, true
	}
	return Done, true
}

// made reports whether a credential was made since the campaign began. Times are in
// seconds; within the first one the revision tells, unless the credential was changed
// since: then it has been replaced.
func (m *matcher) made(c *inventory.Credential) bool {
	return c.Created.After(m.Began) || c.Created.Equal(m.Began) && c.Revision > m.From && c.ReplacedBy == 0
}

// names holds the device itself to the scope.
func (m *matcher) names(d *inventory.Device) bool {
	s := &m.Scope
	if d.State != inventory.Active || s.Profile != "" && d.Profile != s.Profile || s.Group != "" && d.Group != s.Group {
		return false
	}
	for k, want := range s.Labels {
		if got, ok := d.Labels.Get(k); !ok || got != want {
			return false
		}
	}
	if len(s.Devices) > 0 && !slices.ContainsFunc(s.Devices, func(id inventory.DeviceID) bool { return id.Canonical() == d.ID.Canonical() }) {
		return false
	}
	return true
}

// suits holds what the device had when the campaign began to the scope.
func (m *matcher) suits(cert, password *inventory.Credential) bool {
	s := &m.Scope
	switch {
	case s.Issuer != "" && (cert == nil || cert.Certificate.Issuer != m.issuer):
		return false
	case !s.ExpiringBefore.IsZero() && (cert == nil || !cert.Certificate.NotAfter.Before(s.ExpiringBefore)):
		return false
	case !s.PasswordBefore.IsZero() && (password == nil || !password.Created.Before(s.PasswordBefore)):
		return false
	}
	return true
}

// Orders are what a device is to do now.
type Orders struct {
	Campaign    string
	Certificate bool // renew
	Password    bool // ask for another password as well
}

// OrdersFor says what a device is to do: of the first running campaign that means it,
// whose turn it is and that it is not done with. At most so many devices are told in
// a minute as the campaign allows; the others hear of it when they ask again.
func (b *Book) OrdersFor(ctx context.Context, id inventory.DeviceID) (Orders, error) {
	now := inventory.UTC(b.now())
	var orders Orders
	err := b.store.Read(ctx, func(in inventory.Reader) error {
		list, err := campaigns(in)
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(c *Campaign) bool { return c.State != Running || c.place(id) >= c.Released })
		if len(list) == 0 {
			return nil
		}
		d := enroll.Holding{}
		if d.Device, err = in.Device(id); err != nil {
			return err
		}
		for cred, err := range in.Credentials(inventory.CredentialQuery{Device: d.Device.ID}) {
			if err != nil {
				return err
			}
			d.Credentials = append(d.Credentials, cred)
		}
		for _, c := range list {
			m, err := newMatcher(in, c)
			if err != nil {
				return err
			}
			if step, meant := m.step(&d, now); meant && step == Waiting && b.tell(c, d.Device.ID, now) {
				orders = Orders{Campaign: c.Name, Certificate: c.Certificate, Password: c.Password}
				return nil
			}
		}
		return nil
	})
	return orders, err
}

// tell reports whether a device may be told in this minute.
func (b *Book) tell(c *Campaign, id inventory.DeviceID, now time.Time) bool {
	if c.Rate == 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.paces[c.Name]
	if minute := now.Truncate(time.Minute); p == nil || !p.minute.Equal(minute) {
		p = &pace{minute: minute, told: map[inventory.DeviceID]bool{}}
		b.paces[c.Name] = p
	}
	if len(p.told) >= c.Rate && !p.told[id] {
		return false
	}
	p.told[id] = true
	return true
}

// A Plan says what a campaign would do.
type Plan struct {
	Devices      int   `json:"devices"`
	Certificates int   `json:"certificates"` // that would be replaced
	Passwords    int   `json:"passwords"`
	Waves        []int `json:"waves"` // how many devices each wave has, the canaries first
}

// Plan counts what c would do, and changes nothing. It reads the fleet once.
func (b *Book) Plan(ctx context.Context, c Campaign) (Plan, error) {
	if err := c.check(); err != nil {
		return Plan{}, err
	}
	c.Began, c.Key, c.Released = inventory.UTC(b.now()).Add(time.Second), "plan", 1 // all there is was made before
	waves := 1
	for share := c.Canary; share < 1; share += c.Wave {
		waves++
	}
	p := Plan{Waves: make([]int, waves)}
	err := b.each(ctx, &c, func(d *enroll.Holding, _ Step, _ bool) error {
		p.Devices++
		has := func(kind inventory.CredentialKind) bool {
			return slices.ContainsFunc(d.Credentials, func(x inventory.Credential) bool { return x.Kind == kind })
		}
		if c.Certificate && has(inventory.CertificateCredential) {
			p.Certificates++
		}
		if c.Password && has(inventory.PasswordCredential) {
			p.Passwords++
		}
		wave, share := 0, c.Canary
		for place := c.place(d.Device.ID); place >= share && wave < waves-1; share += c.Wave {
			wave++
		}
		p.Waves[wave]++
		return nil
	})
	return p, err
}

// Turn returns the devices whose turn it is and that have nothing new yet. The error
// wraps [ErrOver] if the campaign does not run.
func (b *Book) Turn(ctx context.Context, c *Campaign) ([]inventory.DeviceID, error) {
	if c.State != Running {
		return nil, fmt.Errorf("rotation %s is %s: %w", c.Name, c.State, ErrOver)
	}
	var ids []inventory.DeviceID
	err := b.each(ctx, c, func(d *enroll.Holding, step Step, released bool) error {
		if released && step == Waiting {
			ids = append(ids, d.Device.ID)
		}
		return nil
	})
	return ids, err
}
