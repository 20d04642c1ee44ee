package server

import (
	"net/http"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
)

// EMQX, HTTP authentication and authorization: the body is the template of the
// export. No is 200 with "deny"; 204, an error status, or another body are not.

func noEMQX(c *call) { c.sayNo(http.StatusOK, api.MediaJSON, `{"result":"deny"}`) }

// An emqxYes is EMQX's answer to a client that may connect. A super-user would pass
// by all rights: there is none.
type emqxYes struct {
	Result    string            `json:"result"`
	Superuser bool              `json:"is_superuser"`
	Attrs     map[string]string `json:"client_attrs,omitempty"`
	Expires   int64             `json:"expire_at,omitempty"` // Unix seconds
}

func askEMQXAuth(c *call) error {
	f, err := c.question()
	if err != nil {
		return err
	}
	t, err := f.texts("username", "clientid", "password", "cn", "cert")
	if err != nil {
		return err
	}
	der, err := certificate(t[4])
	if err != nil {
		return err
	}
	v, err := c.admit(enroll.Login{Username: given(t[0]), ClientID: t[1], Password: secret(t[2]), CommonName: given(t[3]), Certificate: der})
	if err != nil {
		return err
	}
	yes := emqxYes{Result: "allow", Attrs: map[string]string{"profile": v.Device.Profile}}
	if v.Device.Group != "" {
		yes.Attrs["group"] = v.Device.Group
	}
	if !v.Expires.IsZero() {
		yes.Expires = v.Expires.Unix()
	}
	return c.say(yes)
}

func askEMQXACL(c *call) error {
	f, err := c.question()
	if err != nil {
		return err
	}
	t, err := f.texts("username", "clientid", "cn", "topic", "action")
	if err != nil {
		return err
	}
	if err := c.allow(enroll.Access{Username: given(t[0]), ClientID: t[1], CommonName: given(t[2]), Topic: t[3], Verb: verb(t[4])}); err != nil {
		return err
	}
	return c.say(map[string]string{"result": "allow"})
}

// verb reads an action by its name; what is none is denied.
func verb(action string) enroll.AccessVerb {
	switch action {
	case "publish":
		return enroll.AccessPublish
	case "subscribe":
		return enroll.AccessSubscribe
	case "receive":
		return enroll.AccessReceive
	}
	return 0
}

// VerneMQ, vmq_webhooks: one address for all hooks, named in a header; those of MQTT 5
// end in _m5. Answers have no max-age, so VerneMQ does not keep them.

func noVerneMQ(c *call) {
	c.sayNo(http.StatusOK, api.MediaJSON, `{"result":{"error":"not_allowed"}}`)
}

func askVerneMQ(c *call) error {
	f, err := c.question()
	if err != nil {
		return err
	}
	t, err := f.texts("username", "client_id", "password", "topic")
	if err != nil {
		return err
	}
	a := enroll.Access{Username: t[0], ClientID: t[1], Topic: t[3]}
	switch strings.TrimSuffix(c.Header.Get("vernemq-hook"), "_m5") {
	case "auth_on_register":
		if _, err := c.admit(enroll.Login{Username: t[0], ClientID: t[1], Password: secret(t[2])}); err != nil {
			return err
		}
	case "auth_on_publish":
		a.Verb = enroll.AccessPublish
		if err := c.allow(a); err != nil {
			return err
		}
	case "auth_on_subscribe":
		return c.verneSubscribe(f, a)
	default:
		return problemf(api.CodeField, "a hook that is not asked here")
	}
	return c.say(map[string]string{"result": "ok"})
}

// A verneTopic is one subscription of several; QoS 128 denies it.
type verneTopic struct {
	Topic string `json:"topic"`
	QoS   int    `json:"qos"`
}

// verneSubscribe answers for each filter apart, as SUBACK does.
func (c *call) verneSubscribe(f fields, a enroll.Access) error {
	list, ok := f["topics"].([]any)
	if !ok || len(list) == 0 || len(list) > maxFilters {
		return problemf(api.CodeField, "at topics: want 1 to %d", maxFilters)
	}
	const denied = 128
	out := make([]verneTopic, 0, len(list))
	for _, item := range list {
		m, ok := item.(map[string]any)
		if !ok {
			return problemf(api.CodeField, "at topics: want objects")
		}
		name, err := fields(m).text("topic")
		if err != nil {
			return err
		}
		qos, ok := m["qos"].(float64)
		if !ok || qos < 0 || qos > 2 {
			return problemf(api.CodeField, "at topics: want a qos")
		}
		a.Verb, a.Topic = enroll.AccessSubscribe, name
		t := verneTopic{name, int(qos)}
		if c.allow(a) != nil {
			t.QoS = denied
		}
		out = append(out, t)
	}
	if !slices.ContainsFunc(out, func(t verneTopic) bool { return t.QoS != denied }) {
		return errNo
	}
	return c.say(map[string]any{"result": "ok", "topics": out})
}

// maxFilters is how many filters one SUBSCRIBE may have: each costs a look at the
// inventory.
const maxFilters = 64

// RabbitMQ, rabbitmq_auth_backend_http: forms, and one word. Further words would be
// tags of the user, "administrator" among them, so there never are any.

func noRabbit(c *call) { c.sayNo(http.StatusOK, "text/plain; charset=utf-8", "deny") }

func (c *call) yesRabbit() error {
	return c.answer(http.StatusOK, "text/plain; charset=utf-8", []byte("allow"))
}

// askRabbitUser: without a password the plugin for MQTT has taken the name from the
// certificate, which the broker has verified.
func askRabbitUser(c *call) error {
	f, err := c.question()
	if err != nil {
		return err
	}
	t, err := f.texts("username", "client_id", "password")
	if err != nil {
		return err
	}
	l := enroll.Login{Username: t[0], ClientID: t[1], Password: secret(t[2])}
	if _, has := f["password"]; !has {
		l.CommonName = t[0]
	}
	if _, err := c.admit(l); err != nil {
		return err
	}
	return c.yesRabbit()
}

// The virtual host and the exchange of MQTT.
const (
	rabbitVhost    = "/"
	rabbitExchange = "amq.topic"
)

// known asks whether a device may do anything at all.
func (c *call) known(username string) error {
	v := c.srv.cfg.Registrar.Standing(c.Request.Context(), c.who, username)
	c.srv.metrics.decided(v.Allowed)
	if !v.Allowed {
		c.reason = v.Reason
		return errNo
	}
	return nil
}

func askRabbitVhost(c *call) error {
	f, err := c.question()
	if err != nil {
		return err
	}
	t, err := f.texts("username", "vhost")
	if err != nil {
		return err
	}
	if t[1] != rabbitVhost {
		return errNo
	}
	if err := c.known(t[0]); err != nil {
		return err
	}
	return c.yesRabbit()
}

// askRabbitResource lets a device use the exchange of MQTT, and the queues of its own
// sessions: the client identifier is part of their names.
func askRabbitResource(c *call) error {
	f, err := c.question()
	if err != nil {
		return err
	}
	t, err := f.texts("username", "vhost", "resource", "name", "permission")
	if err != nil {
		return err
	}
	own := "mqtt-subscription-" + t[0] + "qos"
	queue := t[2] == "queue" && (t[3] == own+"0" || t[3] == own+"1")
	shared := t[2] == "exchange" && t[3] == rabbitExchange && (t[4] == "read" || t[4] == "write")
	if t[1] != rabbitVhost || !queue && !shared {
		return errNo
	}
	if err := c.known(t[0]); err != nil {
		return err
	}
	return c.yesRabbit()
}

// askRabbitTopic reads a routing key, in which "." is a slash and "*" a plus. A read is
// asked when a queue is bound, with the whole filter.
func askRabbitTopic(c *call) error {
	f, err := c.question()
	if err != nil {
		return err
	}
	t, err := f.texts("username", "vhost", "resource", "name", "permission", "routing_key")
	if err != nil {
		return err
	}
	if t[1] != rabbitVhost || t[2] != "topic" || t[3] != rabbitExchange {
		return errNo
	}
	a := enroll.Access{Username: t[0], Topic: strings.NewReplacer(".", "/", "*", "+").Replace(t[5])}
	switch t[4] {
	case "read":
		a.Verb = enroll.AccessSubscribe
	case "write":
		a.Verb = enroll.AccessPublish
	}
	if id, ok := f["variable_map.client_id"].(string); ok {
		a.ClientID = id
	}
	if err := c.allow(a); err != nil {
		return err
	}
	return c.yesRabbit()
}

// The HTTP backend of mosquitto-go-auth, aMQTT and NanoMQ: the status is the answer. A
// body that says so as well serves the modes of the first two that read it.

func noOK(c *call) { c.sayNo(http.StatusForbidden, api.MediaJSON, `{"ok":false,"error":"denied"}`) }

func (c *call) yesOK() error { return c.say(map[string]any{"ok": true, "error": ""}) }

func askOKUser(c *call) error {
	f, err := c.question()
	if err != nil {
		return err
	}
	t, err := f.texts("username", "password")
	if err != nil {
		return err
	}
	id, err := clientID(f)
	if err != nil {
		return err
	}
	if _, err := c.admit(enroll.Login{Username: t[0], Password: secret(t[1]), ClientID: id}); err != nil {
		return err
	}
	return c.yesOK()
}

// clientID is spelt with and without an underscore. A client always has one.
func clientID(f fields) (string, error) {
	t, err := f.texts("clientid", "client_id")
	if err != nil {
		return "", err
	}
	if id := t[0] + t[1]; id != "" && (t[0] == "" || t[1] == "") {
		return id, nil
	}
	return "", problemf(api.CodeField, "at clientid: want one")
}

// askOKACL: acc is 1 for a message, 2 for a publication, 4 for a subscription.
func askOKACL(c *call) error {
	f, err := c.question()
	if err != nil {
		return err
	}
	t, err := f.texts("username", "topic")
	if err != nil {
		return err
	}
	id, err := clientID(f)
	if err != nil {
		return err
	}
	a := enroll.Access{Username: t[0], Topic: t[1], ClientID: id}
	switch f["acc"] {
	case float64(1), "1":
		a.Verb = enroll.AccessReceive
	case float64(2), "2":
		a.Verb = enroll.AccessPublish
	case float64(4), "4":
		a.Verb = enroll.AccessSubscribe
	}
	if err := c.allow(a); err != nil {
		return err
	}
	return c.yesOK()
}

// nano reads a question of NanoMQ: JSON, and nothing in it but names. Some releases
// write topics into a form as they are, so that a client could write a field of its
// own, as "&access=2".
func (c *call) nano(names ...string) ([]string, error) {
	if c.mediaType() != api.MediaJSON {
		return nil, problemf(api.CodeMediaType, "want %s", api.MediaJSON)
	}
	f, err := c.question()
	if err != nil {
		return nil, err
	}
	for name := range f {
		if !slices.Contains(names, name) {
			return nil, problemf(api.CodeUnknownField, "at %.100s", name)
		}
	}
	return f.texts(names...)
}

func askNanoAuth(c *call) error {
	t, err := c.nano("username", "clientid", "password", "cn")
	if err != nil {
		return err
	}
	if _, err := c.admit(enroll.Login{Username: t[0], ClientID: t[1], Password: secret(t[2]), CommonName: given(t[3])}); err != nil {
		return err
	}
	return c.yesOK()
}

// askNanoACL: access is 1 for a subscription and 2 for a publication. The filters of
// one SUBSCRIBE are joined by commas: one with a comma is read as two, and each has to
// be allowed. The topic of a publication is one.
func askNanoACL(c *call) error {
	t, err := c.nano("username", "clientid", "cn", "access", "topic")
	if err != nil {
		return err
	}
	a := enroll.Access{Username: t[0], ClientID: t[1], CommonName: given(t[2]), Topic: t[4]}
	if t[3] == "2" {
		a.Verb = enroll.AccessPublish
		if err := c.allow(a); err != nil {
			return err
		}
		return c.yesOK()
	}
	if t[3] != "1" {
		return errNo
	}
	filters := strings.Split(t[4], ",")
	if len(filters) > maxFilters {
		return errNo
	}
	a.Verb = enroll.AccessSubscribe
	for _, a.Topic = range filters {
		if err := c.allow(a); err != nil {
			return err
		}
	}
	return c.yesOK()
}

// The dialect of imprint itself, for brokers whose hooks are one's own code: HiveMQ
// extensions, Aedes, mochi-mqtt.

func noJSON(c *call) { c.sayNo(http.StatusOK, api.MediaJSON, `{"allowed":false}`) }

func askConnect(c *call) error {
	var q api.WebhookConnect
	if err := c.decode(&q); err != nil {
		return err
	}
	der, err := certificate(q.Certificate)
	if err != nil {
		return err
	}
	l := enroll.Login{Username: q.Username, ClientID: q.ClientID, Password: secret(q.Password), CommonName: q.CommonName, Certificate: der}
	if q.Serial != "" {
		if l.Serial, err = inventory.ParseSerial(q.Serial); err != nil {
			return err
		}
	}
	if q.CommonName == "" && (len(der) > 0 || q.Serial != "") {
		return problemf(api.CodeField, "at commonName: want that of the certificate")
	}
	v, err := c.admit(l)
	if err != nil {
		return err
	}
	yes := api.WebhookAllowed{Allowed: true, Device: string(v.Device.ID), Profile: v.Device.Profile, Group: v.Device.Group, Publish: []string{}, Receive: []string{}}
	for _, g := range v.Grants {
		if g.Action.String() == "publish" {
			yes.Publish = append(yes.Publish, string(g.Filter))
		} else {
			yes.Receive = append(yes.Receive, string(g.Filter))
		}
	}
	if !v.Expires.IsZero() {
		yes.Expires = &v.Expires
	}
	return c.say(yes)
}

func askAccess(c *call) error {
	var q api.WebhookAccess
	if err := c.decode(&q); err != nil {
		return err
	}
	if err := c.allow(enroll.Access{Username: q.Username, ClientID: q.ClientID, CommonName: q.CommonName, Topic: q.Topic, Verb: verb(q.Action)}); err != nil {
		return err
	}
	return c.say(map[string]bool{"allowed": true})
}
