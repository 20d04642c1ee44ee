package enroll

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// A CloneError reports a certificate that was replaced by one which has been used: two
// hold keys of one device, or the device was put back to an older state. It is refused
// like every revoked certificate, and wraps [ErrRevoked]; besides, somebody should look
// at the device, and may suspend it.
type CloneError struct {
	Device inventory.DeviceID
	Serial inventory.Serial // of the certificate that was shown
}

// Error names the device, and what to do about it.
func (e *CloneError) Error() string {
	return fmt.Sprintf("certificate %s of device %s was replaced, and its successor is in use: two hold keys of this device (imprint device suspend %s): %v", e.Serial, e.Device, e.Device, ErrRevoked)
}

// Unwrap returns [ErrRevoked].
func (e *CloneError) Unwrap() error { return ErrRevoked }

// clone reports whether a revoked certificate was replaced by one that has been seen in
// use.
func clone(in inventory.Reader, c *inventory.Credential) (bool, error) {
	if c.State != inventory.CredentialRevoked || c.Reason != inventory.Superseded || c.ReplacedBy == 0 {
		return false, nil
	}
	for next, err := range in.Credentials(inventory.CredentialQuery{Device: c.Device, Kind: inventory.CertificateCredential}) {
		if err != nil {
			return false, err
		}
		if next.Generation == c.ReplacedBy && !next.FirstSeen.IsZero() {
			return true, nil
		}
	}
	return false, nil
}

// alarms bounds how often the audit log is told of one device, so that whoever holds a
// stolen key cannot fill it.
type alarms struct {
	mu   sync.Mutex
	last map[inventory.DeviceID]time.Time
}

const (
	alarmEvery = time.Hour
	maxAlarms  = 10_000
)

// ring reports whether it is time to tell of a device again.
func (a *alarms) ring(id inventory.DeviceID, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if last, ok := a.last[id]; ok && now.Before(last.Add(alarmEvery)) {
		return false
	}
	if a.last == nil || len(a.last) >= maxAlarms {
		a.last = make(map[inventory.DeviceID]time.Time)
	}
	a.last[id] = now
	return true
}

// alarm records that two seem to hold keys of one device. That it cannot be recorded
// changes nothing for the peer, who is refused.
func (r *Registrar) alarm(ctx context.Context, e *CloneError) error {
	if !r.alarms.ring(e.Device, r.now()) {
		return nil
	}
	return r.cfg.Store.Apply(ctx, inventory.Change{
		Event: r.event("server", "device.conflict", "a certificate that was replaced is in use beside its successor",
			deviceObject(e.Device), inventory.Object{Kind: "certificate", ID: e.Serial.String(), Note: string(e.Device)}),
	})
}
