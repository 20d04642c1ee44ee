package doctor

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/imprint-iot/imprint/templates/mqtt"
)

// defaultTimeout is how long each of the connections of an audit may take.
const defaultTimeout = 5 * time.Second

// EndpointOptions say how to look at a live endpoint. The zero value works.
type EndpointOptions struct {
	// Roots are what devices trust; nil: the roots of the system.
	Roots *x509.CertPool

	// ServerName is the name that devices use; empty: the host of the address.
	ServerName string

	// Timeout is for each connection, of which there are at most ten; 0: 5 s.
	Timeout time.Duration

	// Now is the date the certificate is checked at; nil: [time.Now].
	Now func() time.Time
}

// ErrNoEndpoint reports that nobody answers at the address.
var ErrNoEndpoint = errors.New("endpoint does not answer")

// Endpoint audits what listens at address, HOST:PORT, as a stranger sees it: is it
// TLS, which versions, whose certificate, and whom it lets in without a name or
// with the names and passwords of an installation: admin/public, guest/guest and
// admin/admin, each tried once. It connects to that address and nothing else, ten
// times at most, never publishes, and subscribes only if it was let in without a
// name. A plaintext endpoint is a finding also on the loopback address.
//
// The error wraps [ErrNoEndpoint] if there is no connection at all.
func Endpoint(ctx context.Context, address string, o EndpointOptions) (Report, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return Report{}, fmt.Errorf("address %.128q: want HOST:PORT", address)
	}
	o.Timeout = cmp.Or(o.Timeout, defaultTimeout)
	o.ServerName = cmp.Or(o.ServerName, host)
	if o.Now == nil {
		o.Now = time.Now
	}
	p := &probe{audit: newAudit(nil, FileOptions{Now: o.Now}), ctx: ctx, address: address, opts: o}
	p.rep.Subject, p.rep.Kind = address, KindEndpoint
	if err := p.run(); err != nil {
		return Report{}, err
	}
	return p.report(), nil
}

// A probe is one audit of an endpoint.
type probe struct {
	*audit
	ctx     context.Context
	address string
	opts    EndpointOptions
	tls     bool

	requested bool // a client certificate
}

func (p *probe) run() error {
	conn, err := p.dial()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoEndpoint, err)
	}
	code, err := p.connect(conn, mqtt.Login{})
	p.checked("MQTT without TLS")
	if err == nil {
		p.add(rulePlainEndpoint, place{}, "CONNECT without TLS was answered with CONNACK code %d", code)
	} else {
		if !p.handshakes() {
			p.unknown("all of it: it speaks neither MQTT nor TLS with us (%s)", brief(err))
			return nil
		}
		p.tls = true
		if conn, err = p.open(); err == nil {
			code, err = p.connect(conn, mqtt.Login{})
		}
	}
	if err != nil && p.requested && p.required() {
		p.checked("a client certificate: it is required")
		p.unknown("whom it lets in with a certificate, and what it allows them")
		return nil
	}
	p.logins(conn, code, err)
	return nil
}

// required reports whether the server ends a handshake without a client certificate
// with an alert. In TLS 1.3 it comes after our part is over: a CONNECT that crosses
// it may be answered by a reset of the connection, so nothing is sent here.
func (p *probe) required() bool {
	conn, err := p.open()
	if err == nil {
		if err = conn.SetDeadline(time.Now().Add(p.opts.Timeout)); err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		_ = conn.Close() // asked and answered
	}
	var alert *net.OpError // how crypto/tls tells of an alert of the peer
	return errors.As(err, &alert) && alert.Op == "remote error"
}

// logins audits who is let in, given what came of a CONNECT without a name.
func (p *probe) logins(conn net.Conn, code byte, err error) {
	p.checked("CONNECT without a name")
	switch {
	case err != nil:
		p.unknown("whom it lets in: no CONNACK to a client without a name and a certificate (%s)", brief(err))
		return
	case code == 0:
		p.add(ruleAnonymous, place{}, "CONNECT without user name and password was accepted")
		p.subscriptions(conn)
	}
	if p.tls {
		p.add(ruleNoClientCert, place{}, "a client without a certificate got as far as CONNACK")
	}
	for _, l := range defaultLogins() {
		conn, err := p.open()
		if err != nil {
			p.unknown("whether it accepts %s/%s: %s", l[0], l[1], brief(err))
			continue
		}
		code, err := p.connect(conn, mqtt.Login{Username: l[0], Password: []byte(l[1])})
		_ = conn.Close() // asked and answered
		if err != nil {
			p.unknown("whether it accepts %s/%s: %s", l[0], l[1], brief(err))
			continue
		}
		p.checked("CONNECT as " + l[0] + "/" + l[1])
		if code == 0 {
			p.add(ruleDefaultUser, place{}, "CONNECT as %s with the password %s was accepted", l[0], l[1])
		}
	}
}

// subscriptions audits what a client without a name may hear. It takes over conn.
func (p *probe) subscriptions(conn net.Conn) {
	defer func() { _ = conn.Close() }() // asked and answered
	for i, filter := range []string{"#", "$SYS/#"} {
		granted, err := subscribe(conn, uint16(i+1), filter, time.Now().Add(p.opts.Timeout))
		if err != nil {
			p.unknown("whether a client without a name may subscribe to %s: %s", filter, brief(err))
			return
		}
		p.checked("SUBSCRIBE to " + filter + " without a name")
		if granted {
			p.add(ruleAnonymousReads, place{}, "SUBSCRIBE to %s was granted", filter)
		}
	}
	mqtt.Disconnect(conn)
}

// dial opens a connection to the address.
func (p *probe) dial() (net.Conn, error) {
	d := net.Dialer{Timeout: p.opts.Timeout}
	return d.DialContext(p.ctx, "tcp", p.address)
}

// open opens a connection, with TLS if the endpoint has it.
func (p *probe) open() (net.Conn, error) {
	conn, err := p.dial()
	if err != nil || !p.tls {
		return conn, err
	}
	c := tls.Client(conn, p.config(tls.VersionTLS12, tls.VersionTLS13))
	ctx, cancel := context.WithTimeout(p.ctx, p.opts.Timeout)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // of no use
		return nil, err
	}
	return c, nil
}

// connect sends CONNECT under an identifier that nobody has, so that no session is
// taken over, and returns the code of CONNACK. If it was not accepted conn is closed.
func (p *probe) connect(conn net.Conn, l mqtt.Login) (code byte, err error) {
	stop := context.AfterFunc(p.ctx, func() { _ = conn.Close() })
	defer stop()
	l.ClientID = clientID()
	err = mqtt.Connect(conn, l, time.Now().Add(p.opts.Timeout))
	var refused *mqtt.RefusedError
	if errors.As(err, &refused) {
		code, err = refused.Code, nil
	}
	if err != nil || code != 0 {
		_ = conn.Close() // it has said what it has to say
	}
	return code, err
}

// brief is an error in few words: addresses and ports are known.
func brief(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	return fmt.Sprintf("%.128s", text)
}
