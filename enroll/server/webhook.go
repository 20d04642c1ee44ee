package server

import (
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
)

// Brokers that ask somebody else who may do what ask here, each in its own dialect.
// A dialect reads a question and says yes; everything else, whatever went wrong and
// wherever, is no, in the words that this broker takes for no: EMQX, for one, takes
// an HTTP error for "ask the next one".
//
// A broker proves itself with a token of the role broker, in the Authorization
// header, as Bearer or as the password of Basic, which every client library can send
// by a URL such as https://broker:TOKEN@host/. What the token is bound to, a group, a
// profile, a prefix, are the devices that the broker is for.

// webhookBody is the size of the largest question, in bytes.
const webhookBody = 64 << 10

// webhookTimeout is how long an answer may take. Brokers wait for 5 s.
const webhookTimeout = 2 * time.Second

// errNo is a denial: the answer to a question that could be read.
var errNo = errors.New("denied")

// A hook is one question of one dialect.
type hook struct {
	path string // below /v1/webhook/
	ask  func(*call) error
	no   func(*call)
}

func (s *Server) webhookRoutes() []route {
	var routes []route
	for _, h := range []hook{
		{"emqx/auth", askEMQXAuth, noEMQX},
		{"emqx/acl", askEMQXACL, noEMQX},
		{"vernemq", askVerneMQ, noVerneMQ},
		{"rabbitmq/user", askRabbitUser, noRabbit},
		{"rabbitmq/vhost", askRabbitVhost, noRabbit},
		{"rabbitmq/resource", askRabbitResource, noRabbit},
		{"rabbitmq/topic", askRabbitTopic, noRabbit},
		{"mosquitto-go-auth/user", askOKUser, noOK},
		{"mosquitto-go-auth/superuser", func(*call) error { return errNo }, noOK},
		{"mosquitto-go-auth/acl", askOKACL, noOK},
		{"amqtt/auth", askOKUser, noOK},
		{"amqtt/acl", askOKACL, noOK},
		{"nanomq/auth", askNanoAuth, noOK},
		{"nanomq/acl", askNanoACL, noOK},
		{"json/connect", askConnect, noJSON},
		{"json/access", askAccess, noJSON},
	} {
		routes = append(routes, route{
			method: http.MethodPost, pattern: api.PathWebhook + h.path, door: byToken, roles: []inventory.Role{inventory.BrokerRole},
			body: webhookBody, chunked: true, plain: true, handle: h.ask, no: h.no,
		})
	}
	return routes
}

// overLoopback reports whether a webhook may be asked here: over plain HTTP only from
// the same host, because questions have passwords in them.
func (c *call) overLoopback() bool { return c.TLS != nil || c.peer.Addr.Unmap().IsLoopback() }

func (c *call) admit(l enroll.Login) (enroll.Verdict, error) {
	v := c.srv.cfg.Registrar.Admit(c.Request.Context(), c.who, l)
	c.srv.metrics.decided(v.Allowed)
	if !v.Allowed {
		c.reason = v.Reason
		return v, errNo
	}
	return v, nil
}

func (c *call) allow(a enroll.Access) error {
	v := c.srv.cfg.Registrar.Allow(c.Request.Context(), c.who, a)
	c.srv.metrics.decided(v.Allowed)
	if !v.Allowed {
		c.reason = v.Reason
		return errNo
	}
	return nil
}

// question reads the body as JSON, or as a form: brokers send either. It reads only
// members of type string, number, boolean and null, by name, and takes the strict
// view of all else. Members that are not asked for are not looked at: each release
// of a broker adds some.
func (c *call) question() (fields, error) {
	if c.mediaType() == "application/x-www-form-urlencoded" {
		v, err := url.ParseQuery(string(c.body))
		if err != nil {
			return nil, err
		}
		f := fields{}
		for name, values := range v {
			if len(values) != 1 {
				return nil, problemf(api.CodeDuplicateKey, "at %.100s", name)
			}
			f[name] = values[0]
		}
		return f, nil
	}
	if depth(c.body) > maxDepth {
		return nil, problemf(api.CodeJSON, "nested deeper than %d", maxDepth)
	}
	f := fields{}
	if err := jsonv2.Unmarshal(c.body, (*map[string]any)(&f)); err != nil {
		return nil, err // two members of one name, and what is not UTF-8, among others
	}
	return f, nil
}

// fields are the members of a question.
type fields map[string]any

// text returns a member, or "" if it is missing or null; another type is an error.
func (f fields) text(name string) (string, error) {
	switch v := f[name].(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	}
	return "", problemf(api.CodeField, "at %.100s: not a string", name)
}

// texts returns several members.
func (f fields) texts(names ...string) ([]string, error) {
	out := make([]string, len(names))
	for i, n := range names {
		var err error
		if out[i], err = f.text(n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// given is the value of a placeholder, which some brokers write as "undefined" where
// they have none.
func given(v string) string {
	if v == "undefined" {
		return ""
	}
	return v
}

// certificate reads a certificate in PEM, or in DER as base64.
func certificate(text string) ([]byte, error) {
	if text = given(text); text == "" {
		return nil, nil
	}
	if b, _ := pem.Decode([]byte(text)); b != nil {
		if b.Type != "CERTIFICATE" {
			return nil, problemf(api.CodeField, "want a certificate")
		}
		return b.Bytes, nil
	}
	der, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		return nil, problemf(api.CodeField, "want a certificate in PEM")
	}
	return der, nil
}

// say answers yes in JSON.
func (c *call) say(v any) error { return c.answerJSON(http.StatusOK, v) }

// sayNo writes a denial.
func (c *call) sayNo(status int, mediaType, body string) {
	_ = c.answer(status, mediaType, []byte(body))
}

func secret(text string) inventory.Secret { return inventory.NewSecret([]byte(text)) }
