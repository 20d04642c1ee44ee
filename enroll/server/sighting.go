package server

import (
	"net/netip"
	"sync"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// sightings remembers from where certificates were used last. One that is used from two
// networks within a minute is on two devices, or on one that roams; only a person can
// tell, so it is reported and no more.
type sightings struct {
	mu   sync.Mutex
	last map[inventory.Serial]sighting
}

type sighting struct {
	network netip.Prefix
	at      time.Time
	told    time.Time
}

const (
	sameTime     = time.Minute
	tellEvery    = time.Hour
	maxSightings = 100_000
)

// networkOf is what an address has in common with its neighbours.
func networkOf(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// see notes a use, and reports the other network if there is something to tell.
func (s *sightings) see(serial inventory.Serial, from netip.Addr, now time.Time) (netip.Prefix, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil || len(s.last) >= maxSightings {
		s.last = make(map[inventory.Serial]sighting)
	}
	old := s.last[serial]
	next := sighting{network: networkOf(from), at: now, told: old.told}
	two := old.network.IsValid() && next.network.IsValid() && old.network != next.network && now.Sub(old.at) < sameTime && now.Sub(old.told) >= tellEvery
	if two {
		next.told = now
	}
	s.last[serial] = next
	return old.network, two
}
