package server

import (
	"encoding/json"
	"net/http"

	"github.com/imprint-iot/imprint/enroll/api"
)

// tokenBody is the size of the largest question for a token, in bytes.
const tokenBody = 1 << 10

// mqttTokenRoutes are for brokers that take short-lived tokens: one where devices get
// them, and the keys that brokers check them with. The keys are no secret, but whoever
// can change them on their way is any device: over plain HTTP they are for the same
// host.
func (s *Server) mqttTokenRoutes() []route {
	return []route{
		{method: http.MethodPost, pattern: api.PathMQTTToken, door: byDevice, roles: device, body: tokenBody, handle: s.mqttToken},
		{method: http.MethodGet, pattern: api.PathJWKS, plain: true, handle: s.jwks},
	}
}

func (s *Server) mqttToken(c *call) error {
	var q api.MQTTTokenRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	t, err := s.cfg.Registrar.MQTTToken(c.context(), c.who, q.Dialect)
	if err != nil {
		return err
	}
	defer t.Text.Wipe()
	out := api.MQTTTokenResponse{Token: string(t.Text.Reveal()), Expires: t.Expires, Narrower: []api.LostRight{}}
	for _, l := range t.Narrower {
		out.Narrower = append(out.Narrower, api.LostRight{Action: l.Action.String(), Filter: string(l.Filter), Reason: l.Reason})
	}
	return c.answerJSON(http.StatusOK, out)
}

// jwks sends the public keys. A broker may keep them for five minutes, a third of the
// life of a token.
func (s *Server) jwks(c *call) error {
	if !c.overLoopback() {
		return problemf(api.CodeRoleDenied, "over plain HTTP for the same host only")
	}
	set, err := s.cfg.Registrar.TokenKeys(c.context())
	if err != nil {
		return err
	}
	b, err := json.Marshal(set)
	if err != nil {
		return err
	}
	c.w.Header().Set("Cache-Control", "public, max-age=300")
	return c.answer(http.StatusOK, api.MediaJWKSet, append(b, '\n'))
}
