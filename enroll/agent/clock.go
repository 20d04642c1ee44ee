package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"sync"
	"time"

	"github.com/imprint-iot/imprint/inventory/durable"
)

// A clock is the time as far as the device can know it. Many have no battery and
// wake up in 1970, or somewhere else.
//
// What is certain is the latest time that was seen: it is never earlier than that.
// When the server's certificate is not valid at the device's time, it is judged
// again at the earliest time at which it can be: a wrong clock must not lock a
// device out for ever. What that gives up is only that an expired server
// certificate is noticed by a device that has no clock; names, chain and key are
// verified all the same. The date in the answer then corrects the clock.
type clock struct {
	system func() time.Time
	dir    *durable.Dir

	mu     sync.Mutex
	floor  time.Time     // it is not earlier than this
	offset time.Duration // of the true time to the system's, once a server has said it
	judged time.Time     // at which the server's certificate is judged; zero: now
}

func newClock(system func() time.Time, dir *durable.Dir) *clock {
	c := &clock{system: system, dir: dir}
	if b, err := dir.ReadFile(clockFile, 64); err == nil {
		_ = c.floor.UnmarshalText(b)
	}
	return c
}

// now is the best guess at the time.
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.system().Add(c.offset)
	if t.Before(c.floor) {
		return c.floor
	}
	return t
}

// tlsTime is when the server's certificate is judged.
func (c *clock) tlsTime() time.Time {
	c.mu.Lock()
	judged := c.judged
	c.mu.Unlock()
	if !judged.IsZero() {
		return judged
	}
	return c.now()
}

// wrongHour is how much a clock may differ from the server's before it is put
// right.
const wrongHour = 5 * time.Minute

// saw takes a date that an authenticated server has sent, or that a certificate
// has: it is not earlier now.
func (c *clock) saw(date time.Time) {
	if date.IsZero() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := date.Sub(c.system().Add(c.offset)); d > wrongHour || d < -wrongHour {
		c.offset = date.Sub(c.system())
	}
	if date.Sub(c.floor) > time.Hour { // not at every answer: a disk wears out
		if b, err := date.UTC().Truncate(time.Second).MarshalText(); err == nil {
			_ = c.dir.WriteFile(clockFile, b, 0o600) // a full disk costs only this
		}
	}
	if date.After(c.floor) {
		c.floor = date
	}
}

// try calls fn, and once more with another time if the server's certificate was not
// valid at the first.
func (c *clock) try(ctx context.Context, fn func(context.Context) error) error {
	err := fn(ctx)
	bad, ok := errors.AsType[x509.CertificateInvalidError](err)
	if !ok || bad.Reason != x509.Expired || bad.Cert == nil {
		return err
	}
	c.mu.Lock()
	at := bad.Cert.NotBefore
	if c.floor.After(at) {
		at = c.floor
	}
	if at.After(bad.Cert.NotAfter) {
		c.mu.Unlock()
		return err // it had ended before the latest time that was seen
	}
	c.judged = at.Add(time.Second)
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.judged = time.Time{}
		c.mu.Unlock()
	}()
	return fn(ctx)
}
