package server

import (
	"container/list"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/imprint-iot/imprint/enroll/api"
)

// Limits bound what peers may ask for. Zero means the default, a negative number
// no limit. Peers are told apart by IPv4 address or IPv6 /64: whoever has one
// address of a /64 has them all.
type Limits struct {
	// Connections is how many there may be at a time on each listener. Beyond it
	// new ones wait. Default 20,000.
	Connections int

	// PeerRate is how many requests in a second one network may make, on
	// average. Default 500: behind one address there may be a whole site.
	PeerRate float64

	// IdentityRate is how many requests in a second one token or one device may
	// make. Default 5; a station has a line of devices behind it and a token that
	// says how many in a minute.
	IdentityRate float64

	// FailureRate is how often in a second one network may present what is not
	// valid, before it is not listened to. Default 1.
	FailureRate float64
}

// Each limit lets a burst of so many seconds' worth pass.
const burstSeconds = 20

// maxTracked is how many peers, or identities, are told apart. The one seen
// longest ago makes room: it gets a full burst again, which a limit in all by
// connections makes harmless.
const maxTracked = 50_000

type limiter struct {
	connections int
	peers       *buckets
	identities  *buckets
	failures    *buckets
}

func newLimiter(l Limits, now func() time.Time) *limiter {
	or := func(v, otherwise float64) float64 {
		if v == 0 {
			return otherwise
		}
		return v
	}
	return &limiter{
		connections: int(or(float64(l.Connections), 20_000)),
		peers:       newBuckets(or(l.PeerRate, 500), now),
		identities:  newBuckets(or(l.IdentityRate, 5), now),
		failures:    newBuckets(or(l.FailureRate, 1), now),
	}
}

// request admits a request from an address.
func (l *limiter) request(from netip.Addr) error {
	key := network(from)
	if wait := l.failures.peek(key); wait > 0 {
		return limited(wait)
	}
	return limited(l.peers.take(key))
}

// failure counts what an address has presented in vain.
func (l *limiter) failure(from netip.Addr) { l.failures.take(network(from)) }

// identity admits a request of somebody who has been recognised.
func (l *limiter) identity(name string) error { return limited(l.identities.take(name)) }

// limited tells a peer to come back, not all of them at once.
func limited(wait time.Duration) error {
	if wait <= 0 {
		return nil
	}
	wait += time.Second
	return &problem{code: api.CodeRateLimited, retry: wait + rand.N(wait)} //nolint:gosec // jitter
}

// network is what addresses are counted by.
func network(a netip.Addr) string {
	if a.Is4() {
		return a.String()
	}
	p, err := a.Prefix(64)
	if err != nil {
		return ""
	}
	return p.String()
}

// buckets holds one token bucket for each key.
type buckets struct {
	limit rate.Limit
	burst int
	now   func() time.Time

	mu     sync.Mutex
	byKey  map[string]*list.Element
	oldest *list.List // of *bucket, the one used last in front
}

type bucket struct {
	key   string
	limit *rate.Limiter
}

func newBuckets(perSecond float64, now func() time.Time) *buckets {
	b := &buckets{limit: rate.Limit(perSecond), burst: max(1, int(perSecond*burstSeconds)), now: now, byKey: map[string]*list.Element{}, oldest: list.New()}
	if perSecond < 0 {
		b.limit = rate.Inf
	}
	return b
}

// take takes one from the bucket of key, or returns how long to wait.
func (b *buckets) take(key string) time.Duration {
	if b.limit == rate.Inf {
		return 0
	}
	now := b.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.get(key).ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

// peek returns how long to wait, and takes nothing.
func (b *buckets) peek(key string) time.Duration {
	if b.limit == rate.Inf {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.byKey[key]
	if e == nil {
		return 0
	}
	left := e.Value.(*bucket).limit.TokensAt(b.now())
	if left >= 1 {
		return 0
	}
	return time.Duration((1 - left) / float64(b.limit) * float64(time.Second))
}

func (b *buckets) get(key string) *rate.Limiter {
	if e := b.byKey[key]; e != nil {
		b.oldest.MoveToFront(e)
		return e.Value.(*bucket).limit
	}
	if b.oldest.Len() >= maxTracked {
		last := b.oldest.Back()
		delete(b.byKey, last.Value.(*bucket).key)
		b.oldest.Remove(last)
	}
	n := &bucket{key, rate.NewLimiter(b.limit, b.burst)}
	b.byKey[key] = b.oldest.PushFront(n)
	return n.limit
}

// listen makes connections beyond the limit wait in the kernel's queue.
func (l *limiter) listen(inner net.Listener) net.Listener {
	if l.connections < 0 {
		return inner
	}
	return &boundedListener{Listener: inner, slots: make(chan struct{}, l.connections), done: make(chan struct{})}
}

// A boundedListener accepts a bounded number of connections at a time.
type boundedListener struct {
	net.Listener
	slots chan struct{}
	done  chan struct{}
	once  sync.Once
}

// Accept implements [net.Listener].
func (b *boundedListener) Accept() (net.Conn, error) {
	select {
	case b.slots <- struct{}{}:
	case <-b.done:
		return nil, net.ErrClosed
	}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
		return nil, err
	}
	return &boundedConn{Conn: c, release: sync.OnceFunc(func() { <-b.slots })}, nil
}

// Close implements [net.Listener].
func (b *boundedListener) Close() error {
	b.once.Do(func() { close(b.done) })
	return b.Listener.Close()
}

type boundedConn struct {
	net.Conn
	release func()
}

// Close implements [net.Conn].
func (c *boundedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
