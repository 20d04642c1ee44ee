// Package mqtt opens a session at a broker and sees what becomes of it: CONNECT,
// CONNACK, PINGREQ and DISCONNECT of MQTT 3.1.1, which every broker speaks. It
// neither publishes nor subscribes, so it is what a device uses to try a new
// certificate, and what an administrator uses to see that an old one is refused.
package mqtt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// A Login is what a client says in CONNECT (MQTT 3.1.1 §3.1). The session is
// always a clean one.
type Login struct {
	ClientID string
	Username string // empty: none
	Password []byte // empty: none
}

// A RefusedError is a CONNACK other than "accepted" (§3.2.2.3).
type RefusedError struct{ Code byte }

// Error says why the broker refuses.
func (e *RefusedError) Error() string {
	switch e.Code {
	case 1:
		return "refused: unacceptable protocol version"
	case 2:
		return "refused: client identifier rejected"
	case 3:
		return "refused: server unavailable"
	case 4:
		return "refused: bad user name or password"
	case 5:
		return "refused: not authorized"
	}
	return fmt.Sprintf("refused with code %d", e.Code)
}

// ErrProtocol reports a peer that does not speak MQTT 3.1.1.
var ErrProtocol = errors.New("peer does not speak MQTT 3.1.1")

// keepAlive is what the client promises, in seconds. Sessions here are short.
const keepAlive = 60

// Types of packets, with their flags (§2.2).
const (
	packetConnect    = 0x10
	packetConnack    = 0x20
	packetDisconnect = 0xe0
)

// Connect opens a session on conn, which stays the caller's, and waits for the
// answer until the deadline. The error is a [*RefusedError] if the broker says no,
// and another one if it closes the connection or says nothing.
func Connect(conn net.Conn, l Login, deadline time.Time) error {
	packet, err := connectPacket(l)
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("setting deadline: %w", err)
	}
	if _, err := conn.Write(packet); err != nil {
		return fmt.Errorf("sending CONNECT: %w", err)
	}
	var ack [4]byte
	if _, err := io.ReadFull(conn, ack[:]); err != nil {
		return fmt.Errorf("waiting for CONNACK: %w", err)
	}
	switch {
	case ack[0] != packetConnack || ack[1] != 2 || ack[2] > 1:
		return ErrProtocol
	case ack[3] != 0:
		return &RefusedError{Code: ack[3]}
	}
	return conn.SetDeadline(time.Time{})
}

// Disconnect ends a session. That the broker is gone already is no error.
func Disconnect(conn net.Conn) {
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = conn.Write([]byte{packetDisconnect, 0})
}

// WaitEnd returns when the broker has closed the session, or the connection has
// been closed here.
func WaitEnd(conn net.Conn) {
	_, _ = io.Copy(io.Discard, conn)
}

// maxField is the longest text in a packet, in bytes (§1.5.3).
const maxField = 1<<16 - 1

func connectPacket(l Login) ([]byte, error) {
	for _, n := range []int{len(l.ClientID), len(l.Username), len(l.Password)} {
		if n > maxField {
			return nil, errors.New("a name or a password is longer than 65,535 bytes")
		}
	}
	flags := byte(0x02) // clean session
	if l.Username != "" {
		flags |= 0x80
	}
	if len(l.Password) > 0 {
		flags |= 0x40
	}
	body := []byte{0, 4, 'M', 'Q', 'T', 'T', 4, flags, 0, keepAlive}
	body = appendField(body, []byte(l.ClientID))
	if l.Username != "" {
		body = appendField(body, []byte(l.Username))
	}
	if len(l.Password) > 0 {
		body = appendField(body, l.Password)
	}
	return append(binary.AppendUvarint([]byte{packetConnect}, uint64(len(body))), body...), nil
}

func appendField(b, field []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(field)))
	return append(b, field...)
}
