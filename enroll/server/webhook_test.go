package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/server"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
	"github.com/imprint-iot/imprint/inventory"
)

// A hooked is a fleet with a broker that asks: dev-1 has a certificate and a password,
// dev-2 a certificate.
type hooked struct {
	*servertest.Fleet
	t        testing.TB
	token    string
	password string
	pem      string // of dev-1's certificate
	other    string // of dev-2's
}

func newHooked(t testing.TB, o servertest.Options) *hooked {
	t.Helper()
	h := &hooked{Fleet: servertest.Start(t, o), t: t}
	key := catest.Key(t, ca.P256)
	a := h.Do(call{Path: api.PathEnroll, Token: h.Token(inventory.Token{Profile: "default", Group: "hall"}), Body: enrollBody(t, "dev-1", key, true), Accept: api.MediaJSON})
	var got api.EnrollResponse
	if err := json.Unmarshal(a.Body, &got); err != nil || got.Password == "" {
		t.Fatalf("enrolling: %d %s, %v", a.Status, a.Body, err)
	}
	h.password, h.pem = got.Password, got.Certificate
	pair := h.Enroll("dev-2")
	h.other = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Leaf.Raw}))
	h.token = h.Token(inventory.Token{Role: inventory.BrokerRole, Name: "a broker"})
	return h
}

// ask puts a question: a map is sent as JSON, url.Values as a form.
func (h *hooked) ask(path string, question any, header ...string) servertest.Answer {
	h.t.Helper()
	c := call{Path: api.PathWebhook + path, Token: h.token, Header: map[string]string{}}
	if form, ok := question.(url.Values); ok {
		c.Type, c.Body = "application/x-www-form-urlencoded", []byte(form.Encode())
	} else {
		var err error
		if c.Body, err = json.Marshal(question); err != nil {
			h.t.Fatal(err)
		}
	}
	for i := 0; i+1 < len(header); i += 2 {
		c.Header[header[i]] = header[i+1]
	}
	return h.Do(c)
}

type m = map[string]any

// A dialectCase is how one broker asks, and what it takes for yes.
type dialectCase struct {
	name    string
	path    string
	header  []string
	connect func(user, id, password string) any
	access  func(user, id, action, topic string) (path string, question any, header []string)
	yes, no string // the whole body
	noCode  int
}

func dialects() []dialectCase {
	acc := map[string]int{"receive": 1, "publish": 2, "subscribe": 4}
	goAuth := func(path string) dialectCase {
		return dialectCase{
			name: path, path: path + map[string]string{"mosquitto-go-auth": "/user", "amqtt": "/auth"}[path],
			connect: func(user, id, password string) any { return m{"username": user, "clientid": id, "password": password} },
			access: func(user, id, action, topic string) (string, any, []string) {
				return path + "/acl", m{"username": user, "clientid": id, "topic": topic, "acc": acc[action]}, nil
			},
			yes: `{"error":"","ok":true}`, no: `{"ok":false,"error":"denied"}`, noCode: http.StatusForbidden,
		}
	}
	return []dialectCase{
		goAuth("mosquitto-go-auth"), goAuth("amqtt"),
		{
			name: "emqx", path: "emqx/auth",
			connect: func(user, id, password string) any {
				return m{"username": user, "clientid": id, "password": password, "cn": "undefined"}
			},
			access: func(user, id, action, topic string) (string, any, []string) {
				return "emqx/acl", m{"username": user, "clientid": id, "topic": topic, "action": action}, nil
			},
			no: `{"result":"deny"}`, noCode: http.StatusOK,
		},
		{
			name: "vernemq", path: "vernemq", header: []string{"vernemq-hook", "auth_on_register_m5"},
			connect: func(user, id, password string) any {
				return m{"username": user, "client_id": id, "password": password, "mountpoint": "", "clean_start": true, "properties": m{}}
			},
			access: func(user, id, action, topic string) (string, any, []string) {
				q := m{"username": user, "client_id": id, "mountpoint": ""}
				if action == "subscribe" {
					q["topics"] = []m{{"topic": topic, "qos": 1}}
				} else {
					q["topic"], q["payload"], q["qos"], q["retain"] = topic, "eA==", 1, false
				}
				return "vernemq", q, []string{"vernemq-hook", "auth_on_" + action}
			},
			no: `{"result":{"error":"not_allowed"}}`, noCode: http.StatusOK,
		},
		{
			name: "rabbitmq", path: "rabbitmq/user",
			connect: func(user, id, password string) any {
				return url.Values{"username": {user}, "client_id": {id}, "password": {password}, "vhost": {"/"}}
			},
			access: func(user, id, action, topic string) (string, any, []string) {
				q := url.Values{"username": {user}, "vhost": {"/"}, "resource": {"topic"}, "name": {"amq.topic"}, "variable_map.client_id": {id}, "tags": {""}}
				q.Set("permission", map[string]string{"publish": "write", "subscribe": "read"}[action])
				q.Set("routing_key", strings.NewReplacer("/", ".", "+", "*").Replace(topic))
				return "rabbitmq/topic", q, nil
			},
			yes: "allow", no: "deny", noCode: http.StatusOK,
		},
		{
			name: "nanomq", path: "nanomq/auth",
			connect: func(user, id, password string) any {
				return m{"username": user, "clientid": id, "password": password, "cn": ""}
			},
			access: func(user, id, action, topic string) (string, any, []string) {
				return "nanomq/acl", m{"username": user, "clientid": id, "access": map[string]string{"subscribe": "1", "publish": "2"}[action], "topic": topic}, nil
			},
			yes: `{"error":"","ok":true}`, no: `{"ok":false,"error":"denied"}`, noCode: http.StatusForbidden,
		},
		{
			name: "json", path: "json/connect",
			connect: func(user, id, password string) any { return m{"username": user, "clientId": id, "password": password} },
			access: func(user, id, action, topic string) (string, any, []string) {
				return "json/access", m{"username": user, "clientId": id, "action": action, "topic": topic}, nil
			},
			no: `{"allowed":false}`, noCode: http.StatusOK,
		},
	}
}

// check holds an answer to what its broker takes for yes or no.
func (d *dialectCase) check(t *testing.T, what string, a servertest.Answer, want bool) {
	t.Helper()
	body := strings.TrimSpace(string(a.Body))
	isNo := body == d.no && a.Status == d.noCode
	isYes := a.Status == http.StatusOK && body != d.no && (d.yes == "" || body == d.yes)
	if isYes == isNo || isYes != want {
		t.Errorf("%s: %d %s, want %t", what, a.Status, body, want)
	}
}

// Every dialect answers every question as the inventory and the policy say, and in
// words that its broker takes for just that.
func TestWebhooks(t *testing.T) {
	h := newHooked(t, servertest.Options{Settings: noLimits()})
	for _, d := range dialects() {
		t.Run(d.name, func(t *testing.T) {
			for _, tt := range []struct {
				user, id, password string
				want               bool
			}{
				{"dev-1", "dev-1", h.password, true},
				{"dev-1", "dev-1", h.password + "x", false},
				{"dev-1", "dev-1", "", false},
				{"dev-1", "dev-2", h.password, false}, // brk-007
				{"dev-1", "", h.password, d.name != "mosquitto-go-auth" && d.name != "amqtt"},
				{"DEV-1", "DEV-1", h.password, false},
				{"dev-2", "dev-2", h.password, false},
				{"nobody", "nobody", h.password, false},
				{"", "", "", false},
				{"admin", "admin", "public", false},
				{"dev-1\x00", "dev-1", h.password, false},
				{"imprint-server", "imprint-server", "x", false},
			} {
				d.check(t, fmt.Sprintf("connect %q as %q", tt.user, tt.id), h.ask(d.path, d.connect(tt.user, tt.id, tt.password), d.header...), tt.want)
			}
			for _, tt := range []struct {
				action, topic string
				want          bool
			}{
				{"publish", "d/dev-1/up", true},
				{"publish", "d/dev-2/up", false},
				{"publish", "d/dev-1/down", false},
				{"publish", "d/dev-1/up/", false},
				{"publish", "d//dev-1/up", false},
				{"publish", "d/dev-1/../dev-1/up", false}, // brk-009
				{"publish", "d/+/up", false},
				{"publish", "$SYS/x", false},
				{"subscribe", "d/dev-1/down", true},
				{"subscribe", "d/dev-2/down", false},
				{"subscribe", "#", false}, // brk-010
				{"subscribe", "+/#", false},
				{"subscribe", "d/+/down", false},
				{"subscribe", "$share/g/d/dev-2/down", false},
				{"subscribe", "", false},
			} {
				path, q, header := d.access("dev-1", "dev-1", tt.action, tt.topic)
				d.check(t, tt.action+" "+tt.topic, h.ask(path, q, header...), tt.want)
			}
			path, q, header := d.access("dev-1", "dev-2", "publish", "d/dev-1/up")
			d.check(t, "publish with another's client identifier", h.ask(path, q, header...), false)
		})
	}
}

// What has been revoked or suspended is denied at the next question.
func TestWebhookRevoked(t *testing.T) {
	h := newHooked(t, servertest.Options{Settings: noLimits()})
	all := dialects()
	for i := range all {
		d := &all[i]
		path, q, header := d.access("dev-1", "dev-1", "publish", "d/dev-1/up")
		both := func(want bool) {
			t.Helper()
			d.check(t, d.name+" connect", h.ask(d.path, d.connect("dev-1", "dev-1", h.password), d.header...), want)
			d.check(t, d.name+" publish", h.ask(path, q, header...), want)
		}
		both(true)
		if _, err := h.Suspend(t.Context(), "test", "", "dev-1"); err != nil {
			t.Fatal(err)
		}
		both(false)
		if _, err := h.Resume(t.Context(), "test", "", "dev-1"); err != nil {
			t.Fatal(err)
		}
		both(true)
	}
	if _, err := h.Revoke(t.Context(), "test", "", inventory.KeyCompromise, "dev-1"); err != nil {
		t.Fatal(err)
	}
	for i := range all {
		d := &all[i]
		path, q, header := d.access("dev-1", "dev-1", "publish", "d/dev-1/up")
		d.check(t, d.name+" connect", h.ask(d.path, d.connect("dev-1", "dev-1", h.password), d.header...), false)
		d.check(t, d.name+" publish", h.ask(path, q, header...), false)
	}
}

// brk-024: where the broker passes the certificate, it is this one that has to be
// good, and the name in it is the only one there is.
func TestWebhookCertificate(t *testing.T) {
	h := newHooked(t, servertest.Options{Settings: noLimits()})
	for _, tt := range []struct {
		name string
		q    m
		want bool
	}{
		{"its own", m{"clientId": "dev-1", "commonName": "dev-1", "certificate": h.pem}, true},
		{"its own, with a user name", m{"clientId": "dev-1", "username": "dev-1", "commonName": "dev-1", "certificate": h.pem}, true},
		{"by name alone", m{"clientId": "dev-1", "commonName": "dev-1"}, true},
		{"another's", m{"clientId": "dev-1", "commonName": "dev-1", "certificate": h.other}, false},
		{"another user name", m{"clientId": "dev-1", "username": "dev-1", "commonName": "dev-2", "certificate": h.other}, false},
		{"another client identifier", m{"clientId": "dev-1", "commonName": "dev-2", "certificate": h.other}, false},
		{"a number that is none", m{"clientId": "dev-1", "commonName": "dev-1", "serial": "00"}, true}, // zero is "not said"
		{"a wrong number", m{"clientId": "dev-1", "commonName": "dev-1", "serial": "01"}, false},
		{"a certificate without a name", m{"clientId": "dev-1", "username": "dev-1", "password": h.password, "certificate": h.pem}, false},
		{"not a certificate", m{"clientId": "dev-1", "commonName": "dev-1", "certificate": "-----BEGIN"}, false},
	} {
		a := h.ask("json/connect", tt.q)
		var got api.WebhookAllowed
		if err := json.Unmarshal(a.Body, &got); err != nil || a.Status != http.StatusOK || got.Allowed != tt.want {
			t.Errorf("%s: %d %s, want %t", tt.name, a.Status, a.Body, tt.want)
		}
		if tt.want && (got.Device != "dev-1" || got.Group != "hall" || len(got.Publish) != 1 || got.Publish[0] != "d/dev-1/up" || got.Expires == nil || got.Expires.Before(time.Now())) {
			t.Errorf("%s: %s", tt.name, a.Body)
		}
	}
	a := h.ask("emqx/auth", m{"username": "dev-1", "clientid": "dev-1", "password": "", "cn": "dev-1", "cert": h.pem})
	var yes map[string]any
	if err := json.Unmarshal(a.Body, &yes); err != nil || yes["result"] != "allow" || yes["is_superuser"] != false {
		t.Errorf("EMQX: %s, %v", a.Body, err)
	}
	// RabbitMQ says nothing of a password if the name is that of a certificate.
	if a := h.ask("rabbitmq/user", url.Values{"username": {"dev-2"}, "client_id": {"dev-2"}}); string(a.Body) != "allow" {
		t.Errorf("RabbitMQ: %s", a.Body)
	}
	if a := h.ask("rabbitmq/user", url.Values{"username": {"dev-2"}, "client_id": {"dev-2"}, "password": {""}}); string(a.Body) != "deny" {
		t.Errorf("RabbitMQ with an empty password: %s", a.Body)
	}
}

// A subscription to several filters is answered for each of them.
func TestWebhookVerneMQTopics(t *testing.T) {
	h := newHooked(t, servertest.Options{Settings: noLimits()})
	a := h.ask("vernemq", m{"username": "dev-1", "client_id": "dev-1", "topics": []m{{"topic": "d/dev-1/down", "qos": 1}, {"topic": "#", "qos": 0}}}, "vernemq-hook", "auth_on_subscribe")
	if want := `{"result":"ok","topics":[{"topic":"d/dev-1/down","qos":1},{"topic":"#","qos":128}]}`; strings.TrimSpace(string(a.Body)) != want {
		t.Errorf("%s, want %s", a.Body, want)
	}
	for name, q := range map[string]any{
		"one of two filters":        m{"username": "dev-1", "clientid": "dev-1", "access": "1", "topic": "d/dev-1/down,#"},
		"a topic with a comma":      m{"username": "dev-1", "clientid": "dev-1", "access": "2", "topic": "d/dev-1/up,d/dev-1/up"},
		"a field that is not asked": m{"username": "dev-1", "clientid": "dev-1", "access": "1", "topic": "d/dev-1/down", "z": ",#"},
		"a form":                    url.Values{"username": {"dev-1"}, "clientid": {"dev-1"}, "access": {"1"}, "topic": {"d/dev-1/down"}},
	} {
		if a := h.ask("nanomq/acl", q); a.Status != http.StatusForbidden {
			t.Errorf("NanoMQ, %s: %d %s", name, a.Status, a.Body)
		}
	}
}

// brk-002, brk-003, brk-005, brk-006: whatever goes wrong, the answer is the broker's
// own no, and soon.
func TestWebhookFails(t *testing.T) {
	var mode atomic.Value // string
	mode.Store("")
	h := newHooked(t, servertest.Options{Settings: noLimits(), Wrap: func(s inventory.Store) inventory.Store { return &brokenReads{s, &mode} }})
	all := dialects()
	for i := range all {
		d := &all[i]
		path, q, header := d.access("dev-1", "dev-1", "publish", "d/dev-1/up")
		no := func(what string, c call) {
			t.Helper()
			if c.Header == nil {
				c.Header = map[string]string{}
			}
			for i := 0; i+1 < len(header); i += 2 {
				c.Header[header[i]] = header[i+1]
			}
			c.Path = api.PathWebhook + path
			began := time.Now()
			d.check(t, d.name+": "+what, h.Do(c), false)
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("%s: %s takes %s", d.name, what, took)
			}
		}
		good, err := json.Marshal(q)
		kind := api.MediaJSON
		if form, ok := q.(url.Values); ok {
			good, kind = []byte(form.Encode()), "application/x-www-form-urlencoded"
		}
		if err != nil {
			t.Fatal(err)
		}
		d.check(t, d.name+": as it should be", h.Do(call{Path: api.PathWebhook + path, Token: h.token, Type: kind, Body: good, Header: headers(header)}), true)
		no("no token", call{Type: kind, Body: good})
		no("no such token", call{Token: api.TokenText(make([]byte, 32)), Type: kind, Body: good})
		no("the token of an operator", call{Token: h.Token(inventory.Token{Role: inventory.OperatorRole}), Type: kind, Body: good})
		no("the token of a device", call{Token: h.Token(inventory.Token{}), Type: kind, Body: good})
		no("a broker of another group", call{Token: h.Token(inventory.Token{Role: inventory.BrokerRole, Group: "yard"}), Type: kind, Body: good})
		no("a broker of other names", call{Token: h.Token(inventory.Token{Role: inventory.BrokerRole, Prefix: "x-"}), Type: kind, Body: good})
		for name, body := range map[string][]byte{
			"nothing": {}, "an array": []byte("[]"), "null": []byte("null"), "half": []byte(`{"username":"dev-1"`), "twice": []byte(`{"username":"dev-1","username":"dev-1"}`),
			"a number for a name": []byte(`{"username":1,"clientid":2,"client_id":3,"clientId":4}`), "not UTF-8": []byte("{\"username\":\"\xff\"}"),
			"deep": []byte(strings.Repeat(`{"a":`, 1000) + "1" + strings.Repeat("}", 1000)), "1 MB": bytes.Repeat([]byte("a"), 1<<20),
		} {
			no(name, call{Token: h.token, Body: body})
		}
		for _, fault := range []string{"error", "panic", "slow"} {
			mode.Store(fault)
			no("a store with "+fault, call{Token: h.token, Type: kind, Body: good})
			mode.Store("")
		}
	}
}

func headers(list []string) map[string]string {
	out := map[string]string{}
	for i := 0; i+1 < len(list); i += 2 {
		out[list[i]] = list[i+1]
	}
	return out
}

// brokenReads is a store whose reads fail as mode says, except those that find out
// about a token.
type brokenReads struct {
	inventory.Store
	mode *atomic.Value
}

func (b *brokenReads) Read(ctx context.Context, fn func(inventory.Reader) error) error {
	switch b.mode.Load() {
	case "error":
		return errors.New("the disk is gone")
	case "panic":
		panic("a fault in the store")
	case "slow":
		if _, ok := ctx.Deadline(); ok {
			<-ctx.Done()
			return ctx.Err()
		}
	}
	return b.Store.Read(ctx, fn)
}

// A webhook over plain HTTP is answered on the same host only; here it is one.
func TestWebhookPlain(t *testing.T) {
	h := newHooked(t, servertest.Options{})
	u, err := url.Parse(h.HTTP + api.PathWebhook + "rabbitmq/user")
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("broker", h.token) // as in a URL in a broker's configuration
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, u.String(), strings.NewReader(url.Values{"username": {"dev-1"}, "client_id": {"dev-1"}, "password": {h.password}}.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b := make([]byte, 100)
	n, _ := resp.Body.Read(b)
	if string(b[:n]) != "allow" {
		t.Errorf("%d %s", resp.StatusCode, b[:n])
	}
	if server.OverLoopback("192.0.2.1", false) || server.OverLoopback("::ffff:192.0.2.1", false) || !server.OverLoopback("::ffff:127.0.0.1", false) || !server.OverLoopback("192.0.2.1", true) {
		t.Error("a question with a password may cross the network in the clear")
	}
}
