package delivery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates/mqtt"
)

// A prober connects to a broker as a device does.
type prober struct {
	address    string // host or IP address
	serverName string
	roots      *x509.CertPool
	certPort   uint16
	passPort   uint16
	timeout    time.Duration
}

// A verdict is what a broker made of a login.
type verdict uint8

const (
	accepted verdict = iota + 1
	refused          // by the broker, in the handshake or in CONNACK
	unclear          // the broker cannot be reached, or is not the one it should be
)

// certificate logs in with a certificate.
func (p *prober) certificate(ctx context.Context, e *enroll.Enrollment) (verdict, error) {
	key, err := x509.ParsePKCS8PrivateKey(e.Key.Reveal())
	if err != nil {
		return unclear, errors.New("the canary's key cannot be read")
	}
	pair := tls.Certificate{Certificate: e.Chain, PrivateKey: key}
	return p.login(ctx, p.certPort, &pair, mqtt.Login{ClientID: string(e.Device.ID)})
}

// password logs in with a password.
func (p *prober) password(ctx context.Context, id inventory.DeviceID, password inventory.Secret) (verdict, error) {
	return p.login(ctx, p.passPort, nil, mqtt.Login{ClientID: string(id), Username: string(id), Password: password.Reveal()})
}

func (p *prober) login(ctx context.Context, port uint16, pair *tls.Certificate, l mqtt.Login) (verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", net.JoinHostPort(p.address, strconv.Itoa(int(port))))
	if err != nil {
		return unclear, err
	}
	defer func() { _ = raw.Close() }() // nothing is left to be said
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: p.roots, ServerName: p.serverName}
	if pair != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return judge(err), err
	}
	deadline, _ := ctx.Deadline()
	if err := mqtt.Connect(conn, l, deadline); err != nil {
		return judge(err), err
	}
	mqtt.Disconnect(conn)
	return accepted, nil
}

// judge tells a refusal from a broker that is not there. Only what the broker says
// itself is one: an alert, a CONNACK, or that it hangs up on what it was sent (with
// TLS 1.3 a client certificate is judged after the handshake, and Mosquitto answers
// a bad one by closing the connection).
func judge(err error) verdict {
	var alert tls.AlertError
	var op *net.OpError
	var no *mqtt.RefusedError
	switch {
	case errors.As(err, &no), errors.As(err, &alert):
		return refused
	case errors.As(err, &op) && op.Op == "remote error":
		return refused
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return refused
	}
	return unclear
}

// pool makes a pool of CA certificates.
func pool(pem []byte) (*x509.CertPool, error) {
	certs, err := ca.ParseCertificatesPEM(pem)
	if err != nil {
		return nil, fmt.Errorf("reading the fleet's roots: %w", err)
	}
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p, nil
}
