package server

import (
	"errors"
	"log/slog"
	"strings"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
)

// recognise finds out who the peer is, as the door of the route has it. A token
// counts before a certificate: who sends one means it.
func (s *Server) recognise(c *call) error {
	switch c.route.door {
	case open:
		return nil
	case byDevice:
		return s.byCertificate(c)
	case byToken:
		return s.byToken(c)
	case byAny:
		if c.Header.Get("Authorization") == "" && len(c.peer.Chain) > 0 {
			return s.byCertificate(c)
		}
		return s.byToken(c)
	case byNewcomer:
		if c.Header.Get("Authorization") == "" && len(c.peer.Chain) > 0 {
			return s.byBirth(c)
		}
		return s.byToken(c)
	}
	return problemf(api.CodeRoleDenied, "")
}

// byToken takes a token from the Authorization header, as Bearer or as the
// password of Basic.
func (s *Server) byToken(c *call) error {
	values := c.Header.Values("Authorization")
	if len(values) == 0 {
		return problemf(api.CodeTokenMissing, "a token is required")
	}
	if len(values) > 1 {
		return problemf(api.CodeMalformed, "the Authorization header is there more than once")
	}
	text, ok := "", false
	if rest, bearer := strings.CutPrefix(values[0], "Bearer "); bearer {
		text, ok = rest, true
	} else {
		c.user, text, ok = c.BasicAuth()
	}
	if !ok {
		return s.refuse(c, enroll.ErrToken)
	}
	token, err := api.ParseToken(text)
	if err != nil {
		return s.refuse(c, enroll.ErrToken)
	}
	c.who, err = s.cfg.Registrar.Token(c.context(), token.Reveal(), c.peer)
	return s.refuse(c, err)
}

// byCertificate takes the device's own certificate from the TLS connection.
func (s *Server) byCertificate(c *call) (err error) {
	if len(c.peer.Chain) == 0 {
		return problemf(api.CodeCertMissing, "a client certificate is required")
	}
	c.who, err = s.cfg.Registrar.Certificate(c.context(), c.peer)
	if err == nil {
		if before, two := s.sightings.see(c.who.Serial(), c.peer.Addr, s.cfg.Now()); two {
			s.metrics.roaming.Inc()
			s.log.Warn("certificate is used from two networks within a minute", slog.Any("device", c.who.Device()), slog.Any("serial", c.who.Serial()), slog.Any("from", c.peer.Addr), slog.Any("before", before))
		}
	}
	return s.refuse(c, err)
}

// byBirth takes a certificate of the device's maker.
func (s *Server) byBirth(c *call) (err error) {
	c.who, err = s.cfg.Registrar.BirthCertificate(c.peer)
	return s.refuse(c, err)
}

// refuse counts a failure against the address of the peer, so that guessing is
// slow, and then limits what an identity asks for.
func (s *Server) refuse(c *call, err error) error {
	if err != nil {
		if (errors.Is(err, enroll.ErrToken) || errors.Is(err, enroll.ErrNoCertificate)) && c.route.no == nil {
			s.limits.Load().failure(c.peer.Addr)
		}
		if two, ok := errors.AsType[*enroll.CloneError](err); ok {
			s.metrics.conflicts.Inc()
			s.log.Warn("two hold keys of one device", slog.Any("device", two.Device), slog.Any("serial", two.Serial), slog.Any("from", c.peer.Addr))
		}
		return err
	}
	if c.who.Role() == inventory.StationRole || c.route.no != nil {
		return nil // many devices are behind it; a station's token says how many in a minute
	}
	return s.limits.Load().identity(c.who.Name())
}
