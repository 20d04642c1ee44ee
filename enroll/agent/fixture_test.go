package agent_test

import (
	"crypto/x509"
	"net/netip"

	enrollment "github.com/imprint-iot/imprint/enroll"
)

// enroll is a peer that shows a certificate.
func enroll(leaf *x509.Certificate) enrollment.Peer {
	return enrollment.Peer{Addr: netip.MustParseAddr("127.0.0.1"), Chain: []*x509.Certificate{leaf}}
}
