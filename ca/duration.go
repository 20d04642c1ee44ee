package ca

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// A Duration is a [time.Duration] that a person writes as "24h", "90d" or "2y":
// whole numbers with the units y (365 days), w, d, h, m and s, the longer first,
// like "1y30d". The word "never" is [Never].
type Duration time.Duration

// Never as a validity means 99991231235959Z: no well-defined expiration date
// (RFC 5280 §4.1.2.5, IEEE 802.1AR §8.7).
const Never Duration = math.MaxInt64

const day = 24 * time.Hour

// A unit of a [Duration].
type unit struct {
	name string
	size time.Duration
}

// units are in the order in which they may follow each other.
func units() []unit {
	return []unit{{"y", 365 * day}, {"w", 7 * day}, {"d", day}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}
}

// UnmarshalText implements [encoding.TextUnmarshaler]. The error is a
// [*ConfigError].
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	if s == "never" {
		*d = Never
		return nil
	}
	bad := badConfig("duration", s, `a text like "24h", "90d", "2y" or "never"`)
	var sum time.Duration
	rest, order := s, units()
	for rest != "" {
		end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if end < 1 {
			return bad
		}
		n, err := strconv.ParseInt(rest[:end], 10, 32)
		if err != nil {
			return bad
		}
		for len(order) > 0 && order[0].name != rest[end:end+1] {
			order = order[1:]
		}
		if len(order) == 0 || n > int64((math.MaxInt64-1-sum)/order[0].size) {
			return bad
		}
		sum += time.Duration(n) * order[0].size
		order, rest = order[1:], rest[end+1:]
	}
	if s == "" {
		return bad
	}
	*d = Duration(sum)
	return nil
}

// MarshalText implements [encoding.TextMarshaler]. Parts of a second are cut off.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String returns the form that a person writes: days, then hours, minutes and
// seconds, so that "2y" and "730d" have one form.
func (d Duration) String() string {
	if d == Never {
		return "never"
	}
	rest := time.Duration(d)
	if rest < 0 {
		return rest.String()
	}
	var b strings.Builder
	for _, u := range units()[2:] {
		if n := rest / u.size; n > 0 {
			b.WriteString(strconv.FormatInt(int64(n), 10) + u.name)
			rest -= n * u.size
		}
	}
	if b.Len() == 0 {
		return "0s"
	}
	return b.String()
}
