package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// errBroker reports a broker that does not let the device in.
var errBroker = errors.New("broker")

// brokerTimeout is how long a broker may take.
const brokerTimeout = 20 * time.Second

// tryBroker connects to the broker with a pair and goes away again: CONNECT with a
// clean session, CONNACK, DISCONNECT (MQTT 3.1.1 §3.1, §3.2, §3.14). It neither
// publishes nor subscribes.
func tryBroker(ctx context.Context, addr, clientID string, pair *tls.Certificate, roots *x509.CertPool, at func() time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, brokerTimeout)
	defer cancel()
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%w: %w", errBroker, err)
	}
	d := &tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: host, Time: at,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil },
	}}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("%w: %w", errBroker, err)
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := conn.Write(connectPacket(clientID)); err != nil {
		return fmt.Errorf("%w: %w", errBroker, err)
	}
	var ack [4]byte
	if _, err := io.ReadFull(conn, ack[:]); err != nil {
		return fmt.Errorf("%w: it has closed the connection: %w", errBroker, err)
	}
	if ack[0] != 0x20 || ack[1] != 2 {
		return fmt.Errorf("%w: it does not speak MQTT 3.1.1", errBroker)
	}
	if ack[3] != 0 {
		return fmt.Errorf("%w: it refuses the device with code %d", errBroker, ack[3])
	}
	_, _ = conn.Write([]byte{0xe0, 0}) // DISCONNECT; it has let us in
	return nil
}

// connectPacket is a CONNECT with a clean session and no user name.
func connectPacket(clientID string) []byte {
	body := []byte{0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 30}
	body = binary.BigEndian.AppendUint16(body, uint16(len(clientID)))
	body = append(body, clientID...)
	return append(binary.AppendUvarint([]byte{0x10}, uint64(len(body))), body...)
}
