package server

import (
	"crypto/tls"
	"net/http"
	"net/netip"

	"github.com/imprint-iot/imprint/enroll"
)

// OverLoopback reports whether a webhook may be asked from an address.
func OverLoopback(from string, secure bool) bool {
	c := &call{Request: &http.Request{}, peer: enroll.Peer{Addr: netip.MustParseAddr(from)}}
	if secure {
		c.TLS = &tls.ConnectionState{}
	}
	return c.overLoopback()
}

// RouteNames lists the routes of s as "METHOD pattern".
func RouteNames(s *Server) []string {
	var names []string
	for _, r := range s.routes {
		names = append(names, r.method+" "+r.pattern)
	}
	return names
}
