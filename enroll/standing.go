package enroll

import (
	"context"
	"iter"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// A Standing counts how far the devices of a fleet are in a rollover. Only devices
// that may connect now or once they are resumed count.
type Standing struct {
	Devices int `json:"devices"`
	Trust   int `json:"trust"`   // known to trust the new root
	Issued  int `json:"issued"`  // have a good certificate under the new root
	Seen    int `json:"seen"`    // have been seen to use it
	Without int `json:"without"` // have no good certificate at all: a password only

	noTrust strandedList // do not trust the new root, as far as is known
	onlyOld strandedList // have a certificate under the old root, and none in use under the new
	onlyNew strandedList // have a certificate under the new root, and none under the old
}

// maxStranded is how many devices a [StrandedError] names.
const maxStranded = 10_000

// A strandedList counts devices and names the first.
type strandedList struct {
	count int
	ids   []inventory.DeviceID
}

func (l *strandedList) add(id inventory.DeviceID) {
	if l.count++; l.count <= maxStranded {
		l.ids = append(l.ids, id)
	}
}

// strandedIn returns the devices that a phase would cut off. The phase issue needs
// every device to trust the new root, because brokers show certificates under it;
// done needs every device to have left the old one as well.
func (s *Standing) strandedIn(p RolloverPhase) *StrandedError {
	var l strandedList
	switch p {
	case PhaseIssue:
		l = s.noTrust
	case PhaseDone:
		l = s.noTrust
		if s.onlyOld.count > 0 {
			l = s.onlyOld.with(s.noTrust)
		}
	case PhaseAborted:
		l = s.onlyNew
	case PhaseTrust, PhaseBack:
	}
	return &StrandedError{Phase: p, Count: l.count, Devices: l.ids}
}

// with is the union of two lists, each in the order of IDs.
func (l strandedList) with(other strandedList) strandedList {
	out := strandedList{}
	a, b := l.ids, other.ids
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].Canonical() < b[0].Canonical():
			out.add(a[0])
			a = a[1:]
		case len(a) == 0 || b[0].Canonical() < a[0].Canonical():
			out.add(b[0])
			b = b[1:]
		default:
			out.add(a[0])
			a, b = a[1:], b[1:]
		}
	}
	out.count = max(out.count, l.count, other.count)
	return out
}

// StandingOf counts how far the devices are in the rollover v, and returns what the
// next phase would cut off. It reads the fleet once, whatever its size.
func (r *Registrar) StandingOf(ctx context.Context, v *Rollover) (Standing, *StrandedError, error) {
	var s Standing
	err := r.cfg.Store.Read(ctx, func(in inventory.Reader) (err error) {
		s, err = r.standing(in, v)
		return err
	})
	return s, s.strandedIn(v.next()), err
}

// next is the phase that comes after this one, or "".
func (v *Rollover) next() RolloverPhase {
	switch v.Phase {
	case PhaseTrust:
		return PhaseIssue
	case PhaseIssue:
		return PhaseDone
	case PhaseBack:
		return PhaseAborted
	case PhaseDone, PhaseAborted:
	}
	return ""
}

func (r *Registrar) standing(in inventory.Reader, v *Rollover) (Standing, error) {
	var s Standing
	old, fresh, err := v.keys(in)
	if err != nil {
		return s, err
	}
	now := r.now()
	for d, err := range Holdings(in) {
		if err != nil {
			return s, err
		}
		if d.Device.State != inventory.Active && d.Device.State != inventory.Suspended {
			continue
		}
		var hasOld, hasNew, seen bool
		for i := range d.Credentials {
			c := &d.Credentials[i]
			if c.Kind != inventory.CertificateCredential || c.State == inventory.CredentialRevoked || now.After(c.Certificate.NotAfter) {
				continue
			}
			hasOld = hasOld || old[c.Certificate.Issuer]
			if fresh[c.Certificate.Issuer] {
				hasNew, seen = true, seen || !c.FirstSeen.IsZero()
			}
		}
		s.count(&d.Device, v.Generation, hasOld, hasNew, seen)
	}
	return s, nil
}

func (s *Standing) count(d *inventory.Device, generation uint32, hasOld, hasNew, seen bool) {
	s.Devices++
	if d.Trust >= generation {
		s.Trust++
	} else {
		s.noTrust.add(d.ID)
	}
	switch {
	case hasNew:
		s.Issued++
	case !hasOld:
		s.Without++
	}
	if seen {
		s.Seen++
	}
	if hasOld && !seen {
		s.onlyOld.add(d.ID)
	}
	if hasNew && !hasOld {
		s.onlyNew.add(d.ID)
	}
}

// keys returns the key identifiers of the device issuers on both sides: those that
// were there before, of any generation, and the new one.
func (v *Rollover) keys(in inventory.Reader) (old, fresh map[inventory.KeyID]bool, err error) {
	old, fresh = map[inventory.KeyID]bool{}, map[inventory.KeyID]bool{}
	for iss, err := range in.Issuers() {
		if err != nil {
			return nil, nil, err
		}
		if iss.Purpose != inventory.DevicePurpose {
			continue
		}
		under := old
		for _, name := range v.New {
			if iss.Name == name {
				under = fresh
			}
		}
		under[iss.KeyID] = true
	}
	return old, fresh, nil
}

// A Holding is a device with all credentials that it ever had, in the order of kind
// and generation.
type Holding struct {
	Device      inventory.Device
	Credentials []inventory.Credential
}

// Holdings yields all devices with their credentials: one pass over each, in the
// order of IDs, in memory that does not grow with the fleet. What it yields is good
// until the next.
func Holdings(in inventory.Reader) iter.Seq2[Holding, error] {
	return func(yield func(Holding, error) bool) {
		next, stop := iter.Pull2(in.Credentials(inventory.CredentialQuery{All: true}))
		defer stop()
		cred, err, more := next()
		var d Holding
		for dev, devErr := range in.Devices(inventory.Query{}) {
			if devErr != nil {
				yield(d, devErr)
				return
			}
			d.Device, d.Credentials = dev, d.Credentials[:0]
			id := dev.ID.Canonical()
			for more && err == nil && cred.Device.Canonical() <= id {
				if cred.Device.Canonical() == id {
					d.Credentials = append(d.Credentials, cred)
				}
				cred, err, more = next()
			}
			if err != nil {
				yield(d, err)
				return
			}
			if !yield(d, nil) {
				return
			}
		}
	}
}

// ConfirmTrust notes that a device trusts roots, by their fingerprints: it has said
// so, or whoever has given it a new bundle has. What is not a root of this fleet does
// not count. It returns how many devices are known to trust a newer root than before.
func (r *Registrar) ConfirmTrust(ctx context.Context, actor, why string, roots []inventory.Fingerprint, ids ...inventory.DeviceID) (int, error) {
	return decide(func() (int, error) {
		c := inventory.Change{Event: r.event(actor, "device.trust", why)}
		err := r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
			generation, err := newestOf(in, roots)
			if err != nil || generation == 0 {
				return err
			}
			for _, id := range ids {
				dev, err := in.Device(id)
				if err != nil {
					return err
				}
				if dev.Trust >= generation {
					continue
				}
				dev.Trust, dev.Updated = generation, c.Event.Time
				c.Devices = append(c.Devices, dev)
				c.Event.Objects = append(c.Event.Objects, inventory.Object{Kind: "device", ID: string(dev.ID), Note: "trusts " + issuerName(inventory.RootPurpose, generation)})
			}
			return nil
		})
		if err != nil || len(c.Devices) == 0 {
			return 0, err
		}
		return len(c.Devices), r.cfg.Store.Apply(ctx, c)
	})
}

// newestOf is the newest generation of the root among certificates.
func newestOf(in inventory.Reader, roots []inventory.Fingerprint) (uint32, error) {
	var newest uint32
	for iss, err := range in.Issuers() {
		if err != nil {
			return 0, err
		}
		if iss.Purpose != inventory.RootPurpose || iss.Generation <= newest {
			continue
		}
		cert := inventory.Certificate{DER: iss.Certificate}
		for _, f := range roots {
			if f == cert.Fingerprint() {
				newest = iss.Generation
			}
		}
	}
	return newest, nil
}

// A RolloverPlan says what a rollover would do.
type RolloverPlan struct {
	Old          []string  `json:"old"`
	New          []string  `json:"new"` // the root first
	Devices      int       `json:"devices"`
	Certificates int       `json:"certificates"` // devices that have a good certificate, which is to be replaced
	OldEnds      time.Time `json:"oldEnds"`
}

// PlanRollover says what StartRollover would begin. The error wraps [ErrDenied] if a
// rollover is under way.
func (r *Registrar) PlanRollover(ctx context.Context) (RolloverPlan, error) {
	var p RolloverPlan
	old, names, generations, err := r.beforeRollover(ctx)
	if err != nil {
		return p, err
	}
	p.Old, p.OldEnds = names, old[inventory.RootPurpose].NotAfter
	for _, purpose := range rolledPurposes() {
		p.New = append(p.New, issuerName(purpose, generations[purpose]+1))
	}
	err = r.cfg.Store.Read(ctx, func(in inventory.Reader) error {
		s, err := r.standing(in, &Rollover{Generation: generations[inventory.RootPurpose] + 1})
		p.Devices, p.Certificates = s.Devices, s.Devices-s.Without
		return err
	})
	return p, err
}
