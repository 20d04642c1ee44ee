package server

import (
	"log/slog"
	"net/http"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
)

func (s *Server) healthRoutes() []route {
	return []route{
		{method: http.MethodGet, pattern: "/healthz", plain: true, handle: s.healthz},
		{method: http.MethodGet, pattern: "/readyz", plain: true, handle: s.readyz},
	}
}

// healthz says that the process answers.
func (s *Server) healthz(c *call) error {
	return c.answer(http.StatusOK, "text/plain; charset=utf-8", []byte("ok\n"))
}

// readyz says whether devices can be served: the inventory can be read, there is
// an issuer, and no CRL has lapsed.
func (s *Server) readyz(c *call) error {
	if why := s.notReady(c); why != "" {
		return c.answer(http.StatusServiceUnavailable, "text/plain; charset=utf-8", []byte(why+"\n"))
	}
	return c.answer(http.StatusOK, "text/plain; charset=utf-8", []byte("ready\n"))
}

func (s *Server) notReady(c *call) string {
	if s.status.stopping.Load() {
		return "stopping"
	}
	issuers, err := s.cfg.Registrar.Issuers(c.context())
	if err != nil {
		s.log.Error("not ready", slog.Any("err", err))
		return "the inventory cannot be read"
	}
	active := false
	for i := range issuers {
		active = active || issuers[i].Purpose == inventory.DevicePurpose && issuers[i].State == inventory.IssuerActive
	}
	if !active {
		return "no issuer for devices"
	}
	if lapsed := s.status.lapsed(); len(lapsed) > 0 {
		return "CRL has lapsed: " + strings.Join(lapsed, ", ")
	}
	return ""
}
