package doctor

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"github.com/imprint-iot/imprint/templates/mqtt"
)

// config is that of a client that looks at everything: the certificate is captured
// and then checked by [probe.certificate], whose findings say more than an aborted
// handshake, and every version and suite is offered, because accepting it is what
// is looked for. Nothing that is worth protecting is sent over such a connection.
func (p *probe) config(lowest, highest uint16) *tls.Config {
	c := &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // verified explicitly by probe.certificate: the audit reports instead of hanging up
		MinVersion:         lowest,
		MaxVersion:         highest,
		Time:               p.opts.Now,
	}
	if net.ParseIP(p.opts.ServerName) == nil {
		c.ServerName = p.opts.ServerName
	}
	if highest < tls.VersionTLS12 {
		for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
			c.CipherSuites = append(c.CipherSuites, s.ID)
		}
	}
	return c
}

// A greeting is what a server shows of itself in a handshake.
type greeting struct {
	chain     []*x509.Certificate // nil: it did not get so far
	requested bool                // a client certificate
	err       error               // how the handshake ended
}

// greet starts a handshake with one range of versions. A server that insists on a
// client certificate aborts it, but has shown its own by then.
func (p *probe) greet(lowest, highest uint16) greeting {
	conn, err := p.dial()
	if err != nil {
		return greeting{err: err}
	}
	defer func() { _ = conn.Close() }() // only looked at
	var g greeting
	c := p.config(lowest, highest)
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		g.chain = cs.PeerCertificates
		return nil
	}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		g.requested = true
		return &tls.Certificate{}, nil
	}
	ctx, cancel := context.WithTimeout(p.ctx, p.opts.Timeout)
	defer cancel()
	g.err = tls.Client(conn, c).HandshakeContext(ctx)
	return g
}

// handshakes audits TLS, and reports whether there is any.
func (p *probe) handshakes() bool {
	now := p.greet(tls.VersionTLS12, tls.VersionTLS13)
	answered := now.chain != nil
	for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		g := p.greet(v, v)
		if g.chain != nil {
			answered = true
			p.add(ruleOldTLS, place{}, "the server negotiates %s", tls.VersionName(v))
			if now.chain == nil {
				now = g
			}
		}
	}
	if !answered {
		return false
	}
	p.checked("TLS 1.0 and 1.1: whether they are negotiated with the suites that Go has")
	p.certificate(now.chain)
	if p.requested = now.requested; p.requested {
		p.checked("a client certificate: it is asked for")
	} else {
		p.checked("a client certificate: it is not asked for")
	}
	return true
}

// certificate checks the server's chain as a device would.
func (p *probe) certificate(chain []*x509.Certificate) {
	p.checked("the server's certificate")
	leaf := chain[0]
	rest := x509.NewCertPool()
	for _, c := range chain[1:] {
		rest.AddCert(c)
	}
	for _, c := range chain {
		p.weak(c, place{})
	}
	p.leafDates(leaf, place{})
	for _, c := range chain[1:] {
		p.caDates(certificate{c, 0}, place{})
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: p.opts.Roots, Intermediates: rest, CurrentTime: p.opts.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	var invalid x509.CertificateInvalidError
	if err != nil && !(errors.As(err, &invalid) && invalid.Reason == x509.Expired) { // that is said already
		p.add(ruleUntrusted, place{}, "%s does not lead to a root: %s", subject(leaf), brief(err))
	}
	if err := leaf.VerifyHostname(p.opts.ServerName); err != nil {
		p.add(ruleWrongHost, place{}, "%s is not for %.128q", subject(leaf), p.opts.ServerName)
	}
}

func clientID() string { return "doctor-" + rand.Text()[:13] } // 20 characters, which every server takes

// Packets and sizes of MQTT 3.1.1.
const (
	packetPublish   = 0x30
	packetSubscribe = 0x82
	packetSuback    = 0x90
	maxPackets      = 1000    // that are read while waiting for SUBACK
	maxPacket       = 1 << 20 // bytes of each of them
)

var errNoSuback = errors.New("SUBACK does not come")

// subscribe asks for a filter with QoS 0 and reports whether it was granted
// (§3.8, §3.9). Messages that come first are thrown away unread.
func subscribe(conn net.Conn, id uint16, filter string, deadline time.Time) (granted bool, err error) {
	if err := conn.SetDeadline(deadline); err != nil {
		return false, err
	}
	body := binary.BigEndian.AppendUint16(nil, id)
	body = binary.BigEndian.AppendUint16(body, uint16(len(filter)))
	body = append(append(body, filter...), 0)
	packet := append(binary.AppendUvarint([]byte{packetSubscribe}, uint64(len(body))), body...)
	if _, err := conn.Write(packet); err != nil {
		return false, err
	}
	for range maxPackets {
		kind, body, err := readPacket(conn)
		switch {
		case err != nil:
			return false, err
		case kind == packetSuback && len(body) == 3 && binary.BigEndian.Uint16(body) == id:
			return body[2] < 0x80, nil
		case kind&0xf0 != packetPublish:
			return false, mqtt.ErrProtocol
		}
	}
	return false, errNoSuback
}

// readPacket reads one packet; of long ones only the start, which is enough to
// know that they are no SUBACK.
func readPacket(r io.Reader) (kind byte, body []byte, err error) {
	var head [1]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	kind = head[0]
	size := 0
	for shift := 0; ; shift += 7 {
		if shift > 21 {
			return 0, nil, mqtt.ErrProtocol
		}
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return 0, nil, err
		}
		size |= int(head[0]&0x7f) << shift
		if head[0] < 0x80 {
			break
		}
	}
	if size > maxPacket {
		return 0, nil, mqtt.ErrProtocol
	}
	body = make([]byte, min(size, 16))
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, err
	}
	_, err = io.CopyN(io.Discard, r, int64(size-len(body)))
	return kind, body, err
}
