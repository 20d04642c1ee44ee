package server

import (
	_ "embed"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
)

// Roles of the routes of /v1.
var (
	enrolling = []inventory.Role{inventory.DeviceRole, inventory.StationRole}
	device    = []inventory.Role{inventory.DeviceRole}
	everyone  = []inventory.Role{inventory.DeviceRole, inventory.StationRole, inventory.BrokerRole, inventory.OperatorRole, inventory.AuditorRole, inventory.AdminRole}
)

//go:embed openapi.yaml
var openAPI []byte

// deviceRoutes are for microcontrollers and scripts: what EST does, without its
// PKCS #7 and base64.
func (s *Server) deviceRoutes() []route {
	return []route{
		{method: http.MethodPost, pattern: api.PathEnroll, door: byNewcomer, roles: enrolling, body: enrollBody, handle: s.enroll},
		{method: http.MethodPost, pattern: api.PathRenew, door: byDevice, roles: device, body: enrollBody, handle: s.renew},
		{method: http.MethodPost, pattern: api.PathEnrollStatus, door: byDevice, roles: device, body: enrollBody, handle: s.enrollStatus},
		{method: http.MethodGet, pattern: api.PathOrders, door: byDevice, roles: device, handle: s.orders},
		{method: http.MethodGet, pattern: api.PathTrustBundle, handle: s.trustBundle},
		{method: http.MethodGet, pattern: api.PathWhoami, door: byAny, roles: everyone, handle: s.whoami},
		{method: http.MethodGet, pattern: api.PathOpenAPI, handle: s.openAPI},
	}
}

// askV1 reads a request to enroll or renew, in JSON or as a bare PKCS #10.
func (s *Server) askV1(c *call) (enroll.Ask, error) {
	a := enroll.Ask{Peer: c.peer, CSR: c.body}
	name := c.user
	switch c.mediaType() {
	case api.MediaPKCS10:
	case api.MediaJSON:
		var q api.EnrollRequest
		if err := c.decode(&q); err != nil {
			return a, err
		}
		if q.CSR == "" {
			return a, problemf(api.CodeField, "at /csr: a certification request in PEM is required")
		}
		a.CSR, a.Password = []byte(q.CSR), q.Password
		if q.Device != "" {
			if name != "" && name != q.Device {
				return a, problemf(api.CodeField, "at /device: another device than in the Authorization header")
			}
			name = q.Device
		}
	default:
		return a, problemf(api.CodeMediaType, "want %s or %s", api.MediaJSON, api.MediaPKCS10)
	}
	if name == "" {
		return a, nil
	}
	var err error
	a.Device, err = inventory.ParseDeviceID(name)
	return a, err
}

func (s *Server) enroll(c *call) error {
	a, err := s.askV1(c)
	if err != nil {
		return err
	}
	e, err := s.cfg.Registrar.EnrollFor(c.context(), c.who, a)
	if err != nil {
		return err
	}
	s.handedOut("v1", e)
	return s.answerEnrollment(c, e)
}

func (s *Server) renew(c *call) error {
	a, err := s.askV1(c)
	if err != nil {
		return err
	}
	e, err := s.cfg.Registrar.Renew(c.context(), c.who, a)
	if err != nil {
		return err
	}
	s.handedOut("v1-renew", e)
	return s.answerEnrollment(c, e)
}

// answerEnrollment writes what a device is handed in the form that it asks for.
// With no wish it is that of the request. A password is in the JSON form only.
func (s *Server) answerEnrollment(c *call, e *enroll.Enrollment) error {
	defer e.Password.Wipe()
	forms := []string{api.MediaChain, api.MediaCert, api.MediaJSON}
	if c.mediaType() == api.MediaJSON {
		forms = []string{api.MediaJSON, api.MediaChain, api.MediaCert}
	}
	switch c.accepts(forms...) {
	case api.MediaCert:
		return c.answer(http.StatusOK, api.MediaCert, e.Certificate.DER)
	case api.MediaChain:
		return c.answer(http.StatusOK, api.MediaChain, ca.CertificatePEM(e.Chain...))
	}
	roots, err := s.cfg.Registrar.TrustBundle(c.context())
	if err != nil {
		return err
	}
	return c.answerJSON(http.StatusOK, api.EnrollResponse{
		Device: string(e.Device.ID), Serial: e.Certificate.Serial.String(),
		NotBefore: e.Certificate.NotBefore, NotAfter: e.Certificate.NotAfter,
		RenewAfter:  api.RenewAfter(e.Certificate.NotBefore, e.Certificate.NotAfter),
		Certificate: string(ca.CertificatePEM(e.Certificate.DER)), Chain: string(ca.CertificatePEM(e.Chain...)),
		TrustBundle: string(ca.CertificatePEM(roots...)), Password: string(e.Password.Reveal()),
		Rights: api.Rights{Publish: e.Rights.Publish, Receive: e.Rights.Receive}, Unchanged: e.Unchanged,
	})
}

func (s *Server) enrollStatus(c *call) error {
	var report api.StatusReport
	if err := c.decode(&report); err != nil {
		return err
	}
	if report.Version != api.StatusVersion {
		return problemf(api.CodeField, "at /version: want %d", api.StatusVersion)
	}
	roots, err := fingerprints(report.Trust)
	if err != nil {
		return err
	}
	ended, err := s.cfg.Registrar.Confirm(c.context(), c.who, report.Status, report.Reason)
	if err != nil {
		return err
	}
	if report.Password {
		n, err := s.cfg.Registrar.ConfirmPassword(c.context(), c.who)
		if err != nil {
			return err
		}
		ended += n
	}
	if len(roots) > 0 {
		if _, err := s.cfg.Registrar.ConfirmTrust(c.context(), c.who.Name(), "", roots, c.who.Device()); err != nil {
			return err
		}
	}
	return c.answerJSON(http.StatusOK, api.StatusResponse{Device: string(c.who.Device()), Serial: c.who.Serial().String(), Ended: ended})
}

// orders says whether a device is to renew before it is due.
func (s *Server) orders(c *call) error {
	var o api.Orders
	if s.cfg.Orders != nil {
		var err error
		if o, err = s.cfg.Orders(c.context(), c.who.Device()); err != nil {
			return err
		}
	}
	c.w.Header().Set("Cache-Control", "no-store")
	return c.answerJSON(http.StatusOK, o)
}

// maxTrust is how many roots a device can say that it trusts.
const maxTrust = 16

// fingerprints reads what a device says that it trusts.
func fingerprints(texts []string) ([]inventory.Fingerprint, error) {
	if len(texts) > maxTrust {
		return nil, problemf(api.CodeField, "at /trust: at most %d fingerprints", maxTrust)
	}
	out := make([]inventory.Fingerprint, len(texts))
	for i, text := range texts {
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != len(out[i]) || text != strings.ToLower(text) {
			return nil, problemf(api.CodeField, "at /trust/%d: want 64 lower-case hexadecimal digits", i)
		}
		copy(out[i][:], b)
	}
	return out, nil
}

func (s *Server) trustBundle(c *call) error {
	ders, err := s.cfg.Registrar.TrustBundle(c.context())
	if err != nil {
		return err
	}
	bundle := ca.CertificatePEM(ders...)
	h := c.w.Header()
	h.Set("Cache-Control", "public, max-age=3600")
	h.Set("ETag", fmt.Sprintf("%q", ca.Fingerprint(bundle)[:32]))
	if noneMatch(c.Header.Get("If-None-Match"), h.Get("ETag")) {
		c.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return c.answer(http.StatusOK, api.MediaChain, bundle)
}

func (s *Server) whoami(c *call) error {
	return c.answerJSON(http.StatusOK, struct {
		Role   inventory.Role `json:"role"`
		Name   string         `json:"name"`
		Device string         `json:"device,omitempty"`
	}{c.who.Role(), c.who.Name(), string(c.who.Device())})
}

func (s *Server) openAPI(c *call) error {
	c.w.Header().Set("Cache-Control", "public, max-age=3600")
	return c.answer(http.StatusOK, api.MediaOpenAPI, openAPI)
}
