//go:build !linux

package remote

import "net"

// checkPeer leaves it to the mode of the socket and of its directory, which only
// the owner can pass.
func checkPeer(net.Conn) error { return nil }
