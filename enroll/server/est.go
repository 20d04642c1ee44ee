package server

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"mime/multipart"
	"net/http"
	"net/textproto"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
)

// EST is RFC 7030 as RFC 8951 and RFC 9908 have mended it, in the form that its
// clients really read. Strict about what comes in where it says who somebody is,
// to the letter in what goes out, because libest compares headers octet for octet
// and strongSwan reads one TLS record.

// operations are the last path segments of EST; no label may be called so
// (RFC 7030 §3.2.2).
var operations = []string{"cacerts", "simpleenroll", "simplereenroll", "csrattrs", "serverkeygen", "fullcmc"}

func (s *Server) estRoutes() []route {
	newcomers := []inventory.Role{inventory.DeviceRole, inventory.StationRole}
	devices := []inventory.Role{inventory.DeviceRole}
	var all []route
	for _, at := range []string{api.PathEST, api.PathEST + "/{label}"} {
		all = append(all,
			route{method: http.MethodGet, pattern: at + "/cacerts", est: true, handle: s.cacerts},
			route{method: http.MethodGet, pattern: at + "/csrattrs", est: true, handle: s.csrattrs},
			route{method: http.MethodPost, pattern: at + "/simpleenroll", est: true, door: byNewcomer, roles: newcomers, body: enrollBody, chunked: true, handle: s.simpleEnroll},
			route{method: http.MethodPost, pattern: at + "/simplereenroll", est: true, door: byDevice, roles: devices, body: enrollBody, chunked: true, handle: s.simpleReenroll},
			route{method: http.MethodPost, pattern: at + "/serverkeygen", est: true, door: byNewcomer, roles: newcomers, body: enrollBody, chunked: true, handle: s.serverKeygen},
			route{method: http.MethodPost, pattern: at + "/fullcmc", est: true, body: enrollBody, chunked: true, handle: func(*call) error {
				return problemf(api.CodeNotImplemented, "Full CMC is not offered")
			}},
		)
	}
	return all
}

// label returns the settings of the path's label.
func (s *Server) label(c *call) (Label, error) {
	name := c.PathValue("label")
	l, ok := (*s.labels.Load())[name]
	if !ok && name != "" {
		return l, problemf(api.CodeRouteUnknown, "there is no such label")
	}
	return l, nil
}

// failEST writes an error as RFC 8951 §5 has it: text, and none at all with 401,
// which Bouncy Castle cannot read otherwise.
func (c *call) failEST(status int, p *problem) {
	var body []byte
	switch {
	case status == http.StatusUnauthorized:
	case p.detail != "":
		body = []byte(p.code + ": " + p.detail + "\n")
	default:
		body = []byte(p.code + ": " + api.TitleOf(p.code) + "\n")
	}
	_ = c.answer(status, "text/plain; charset=utf-8", body)
}

// answerCerts writes certificates as certs-only PKCS #7.
func (c *call) answerCerts(ders ...[]byte) error {
	p7, err := api.CertsOnly(ders...)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Transfer-Encoding", "base64") // RFC 8951 §3: ignored by those who read it
	return c.answer(http.StatusOK, api.MediaCertsOnly, api.EncodeLine(p7))
}

// cacerts needs no authentication: a device that has nothing yet compares the
// fingerprint of the root (RFC 7030 §4.1.2).
func (s *Server) cacerts(c *call) error {
	if _, err := s.label(c); err != nil {
		return err
	}
	ders, err := s.cfg.Registrar.CACertificates(c.context())
	if err != nil {
		return err
	}
	return c.answerCerts(ders...)
}

// csr reads the certification request of an enrollment.
func (c *call) csr() ([]byte, error) {
	if c.mediaType() != api.MediaPKCS10 {
		return nil, problemf(api.CodeMediaType, "want %s", api.MediaPKCS10)
	}
	text := bytes.TrimSpace(c.body)
	if block, rest := pem.Decode(text); block != nil && len(bytes.TrimSpace(rest)) == 0 {
		return text, nil // not EST, but what a hurried script sends
	}
	der, err := api.DecodeLine(text)
	if err != nil {
		return nil, problemf(api.CodeMalformed, "the body is not base64")
	}
	return der, nil
}

// bindings are what links a request to this TLS connection: tls-unique in TLS 1.2
// (RFC 5929), the exporter of RFC 9266 in TLS 1.3, both in base64.
func bindings(state *tls.ConnectionState) []string {
	none := []string{}
	if state == nil {
		return none
	}
	if state.Version == tls.VersionTLS13 {
		b, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
		if err != nil {
			return none
		}
		return []string{base64.StdEncoding.EncodeToString(b)}
	}
	if len(state.TLSUnique) == 0 {
		return none
	}
	return []string{base64.StdEncoding.EncodeToString(state.TLSUnique)}
}

// ask is what a request over EST asks of the registrar.
func (s *Server) ask(c *call) (enroll.Ask, error) {
	a := enroll.Ask{Peer: c.peer, Bindings: bindings(c.TLS)}
	label, err := s.label(c)
	if err != nil {
		return a, err
	}
	a.Profile = label.Profile
	if c.user != "" {
		if a.Device, err = inventory.ParseDeviceID(c.user); err != nil {
			return a, err
		}
	}
	a.CSR, err = c.csr()
	return a, err
}

func (s *Server) simpleEnroll(c *call) error {
	a, err := s.ask(c)
	if err != nil {
		return err
	}
	e, err := s.cfg.Registrar.EnrollFor(c.context(), c.who, a)
	if err != nil {
		return err
	}
	s.handedOut("est", e)
	return c.answerCerts(e.Certificate.DER)
}

func (s *Server) simpleReenroll(c *call) error {
	a, err := s.ask(c)
	if err != nil {
		return err
	}
	a.SameNames = true
	e, err := s.cfg.Registrar.Renew(c.context(), c.who, a)
	if err != nil {
		return err
	}
	s.handedOut("est-reenroll", e)
	return c.answerCerts(e.Certificate.DER)
}

func (s *Server) handedOut(how string, e *enroll.Enrollment) {
	if e.Unchanged {
		how = "again"
	}
	s.metrics.issued.WithLabelValues(how).Inc()
}

// serverKeygen makes the key here (RFC 7030 §4.4). It is off unless the label
// allows it: what has been seen twice is not a secret of the device. Key and
// signature of the request are ignored; what counts in it is the name.
func (s *Server) serverKeygen(c *call) error {
	label, err := s.label(c)
	if err != nil {
		return err
	}
	if !label.ServerKeygen {
		return problemf(api.CodeNotImplemented, "keys are made by devices here")
	}
	a, err := s.ask(c)
	if err != nil {
		return err
	}
	a.Bindings, a.MakeKey = nil, true
	e, err := s.cfg.Registrar.EnrollFor(c.context(), c.who, a)
	if err != nil {
		return err
	}
	defer e.Key.Wipe()
	s.handedOut("est-serverkeygen", e)
	return c.answerKey(e)
}

// answerKey writes the key and then the certificate, in that order, each with its
// own transfer encoding.
func (c *call) answerKey(e *enroll.Enrollment) error {
	p7, err := api.CertsOnly(e.Certificate.DER)
	if err != nil {
		return err
	}
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for _, part := range []struct {
		media string
		der   []byte
	}{{api.MediaPKCS8, e.Key.Reveal()}, {api.MediaCertsOnly, p7}} {
		h := textproto.MIMEHeader{}
		h.Set("Content-Type", part.media)
		h.Set("Content-Transfer-Encoding", "base64")
		pw, err := w.CreatePart(h)
		if err != nil {
			return err
		}
		if _, err := pw.Write(api.EncodeLine(part.der)); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	defer clear(body.Bytes())
	return c.answer(http.StatusOK, "multipart/mixed; boundary="+w.Boundary(), body.Bytes())
}

// csrattrs says which key a device should make (RFC 7030 §4.5, RFC 8951 §4,
// RFC 9908 §3.2), and that it may link its request to the connection.
func (s *Server) csrattrs(c *call) error {
	label, err := s.label(c)
	if err != nil {
		return err
	}
	keys, err := s.cfg.Registrar.KeysOf(c.context(), label.Profile)
	if err != nil {
		return err
	}
	der, err := attributesFor(keys)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Transfer-Encoding", "base64")
	return c.answer(http.StatusOK, api.MediaCSRAttrs, api.EncodeLine(der))
}
