package doctor

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// defaultLogins are the users of installations and their passwords.
func defaultLogins() [][2]string {
	return [][2]string{{"admin", "public"}, {"guest", "guest"}, {"admin", "admin"}}
}

// adminLike reports whether a user says of itself that it may do everything.
func adminLike(user string) bool { return strings.Contains(strings.ToLower(user), "admin") }

// unsafe reports whether a name holds a character that some broker reads as
// something else than part of a name.
func unsafe(user string) bool { return strings.ContainsAny(user, "+#/%$*{}\"\\") }

// everything reports whether a filter has nothing of its own: each of its levels is
// a wildcard. $CONTROL is how the dynamic security plugin is administrated.
func everything(filter string) bool {
	if strings.HasPrefix(filter, "$CONTROL/") {
		return true
	}
	levels := strings.Split(strings.TrimPrefix(filter, "/"), "/")
	for _, l := range levels {
		if l != "#" && l != "+" {
			return false
		}
	}
	return true
}

// partial reports whether one of the placeholders is only part of a level.
func partial(filter string, placeholders ...string) bool {
	for level := range strings.SplitSeq(filter, "/") {
		for _, p := range placeholders {
			if level != p && strings.Contains(level, p) {
				return true
			}
		}
	}
	return false
}

// endsInPlus reports whether the last level is the wildcard for one level.
func endsInPlus(filter string) bool { return filter == "+" || strings.HasSuffix(filter, "/+") }

// loopback reports whether a listener at addr, which may have a port, is reached
// only from the machine itself. An empty host, and a port alone, mean everywhere.
func loopback(addr string) bool {
	addr = strings.Trim(addr, `"' `)
	if _, rest, ok := strings.Cut(addr, "://"); ok {
		addr = strings.TrimRight(rest, "/")
	}
	host := addr
	if h, _, err := net.SplitHostPort(addr); err == nil {
		host = h
	} else if _, err := strconv.Atoi(addr); err == nil {
		return false
	}
	host = strings.Trim(host, "[]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// oldTLS reports whether the name of a version, in whichever way brokers write it,
// is one before 1.2.
func oldTLS(version string) bool {
	v := strings.ToLower(strings.Trim(version, `"' `))
	v = strings.TrimPrefix(strings.TrimPrefix(v, "tls"), "v")
	switch strings.ReplaceAll(v, "_", ".") {
	case "1", "1.0", "1.1", "sslv3", "ssl3":
		return true
	}
	return false
}

// yes reads a switch of any broker.
func yes(value string) bool {
	switch strings.ToLower(strings.Trim(value, `"' `)) {
	case "true", "on", "yes", "1", "enabled":
		return true
	}
	return false
}
