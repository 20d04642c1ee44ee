package agent

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"time"
)

// RenewAt is when a certificate is renewed: after 2/3 of its life, and then a part
// of a tenth of it that follows from the device's ID. Devices that were born in one
// minute so renew all over that tenth, each at its own moment, the same one
// whenever it is asked.
func RenewAt(device string, notBefore, notAfter time.Time) time.Time {
	life := notAfter.Sub(notBefore)
	return notBefore.Add(life / 3 * 2).Add(time.Duration(float64(life/10) * fraction(device)))
}

// fraction spreads IDs evenly over 0 to 1.
func fraction(id string) float64 {
	h := sha256.Sum256([]byte("imprint renew " + id))
	return float64(binary.BigEndian.Uint64(h[:8])>>11) / (1 << 53)
}

// Backoff between tries that fail.
const (
	firstWait = 5 * time.Second
	maxWait   = 6 * time.Hour
)

// backoff is how long to wait after so many tries in vain: twice as long each time,
// somewhere between half of that and all of it, and no less than the server asks
// for.
func backoff(tries int, asked time.Duration) time.Duration {
	wait := maxWait
	if tries < 14 {
		wait = min(maxWait, firstWait<<max(0, tries-1))
	}
	wait = wait/2 + rand.N(wait/2) //nolint:gosec // jitter
	if asked > 0 {
		asked += rand.N(asked/10 + 1) //nolint:gosec // jitter
	}
	return min(max(wait, asked), maxWait+maxWait/10)
}
