package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/imprint-iot/imprint/templates/mqtt"
)

// errBroker reports a broker that does not let the device in.
var errBroker = errors.New("broker")

// brokerTimeout is how long a broker may take.
const brokerTimeout = 20 * time.Second

// tryBroker connects to the broker with a pair and goes away again.
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
	deadline, _ := ctx.Deadline()
	if err := mqtt.Connect(conn, mqtt.Login{ClientID: clientID}, deadline); err != nil {
		return fmt.Errorf("%w: %w", errBroker, err)
	}
	mqtt.Disconnect(conn)
	return nil
}
