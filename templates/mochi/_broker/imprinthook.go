package main

import (
	"context"
	"crypto/pbkdf2"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// A Hook holds the clients of a mochi server to an export of imprint: who they are,
// what they publish, what they subscribe to and what they are sent. Everything that
// goes wrong is a no.
//
// No other hook of the server may answer OnConnectAuthenticate or OnACLCheck: the
// server takes the first yes of any of them.
type Hook struct {
	mqtt.HookBase
	server *mqtt.Server
	dir    string
	fleet  atomic.Pointer[Fleet]

	loading sync.Mutex // held while the export is read, so that the last one counts

	mu     sync.Mutex
	logins map[string]login // by client identifier
}

// A login is how a client got in.
type login struct {
	client *mqtt.Client
	chain  []*x509.Certificate // nil: by password
	hash   string              // of its password
}

// NewHook loads the export in a directory, for a server that has no listeners yet.
func NewHook(server *mqtt.Server, dir string) (*Hook, error) {
	h := &Hook{server: server, dir: dir, logins: map[string]login{}}
	f, err := LoadFleet(dir)
	if err != nil {
		return nil, err
	}
	h.fleet.Store(f)
	return h, nil
}

// ID implements [mqtt.Hook].
func (h *Hook) ID() string { return "imprint" }

// Provides implements [mqtt.Hook].
func (h *Hook) Provides(b byte) bool {
	switch b {
	case mqtt.OnConnectAuthenticate, mqtt.OnSessionEstablished, mqtt.OnACLCheck, mqtt.OnPublish, mqtt.OnWill, mqtt.OnDisconnect:
		return true
	}
	return false
}

// Certificates is the TLS configuration of a listener that asks for certificates. It
// follows every reload.
func (h *Hook) Certificates() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		f := h.fleet.Load()
		return &tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{f.certificate}, SessionTicketsDisabled: true,
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: f.trust,
			VerifyConnection: func(s tls.ConnectionState) error { return f.checkChains(s.VerifiedChains, time.Now()) },
		}, nil
	}}
}

// Passwords is the TLS configuration of a listener that asks for passwords.
func (h *Hook) Passwords() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{h.fleet.Load().certificate}, SessionTicketsDisabled: true}, nil
	}}
}

// OnConnectAuthenticate implements [mqtt.Hook]. A client is the device that its
// certificate names or whose password it has, over TLS, under a client identifier
// that is the ID of the device. A will that the device may not publish is refused
// here: the server itself would publish it unseen.
func (h *Hook) OnConnectAuthenticate(cl *mqtt.Client, pk packets.Packet) bool {
	l, ok := h.authenticate(cl, pk)
	if ok {
		h.mu.Lock()
		h.logins[cl.ID] = l
		h.mu.Unlock()
		return true
	}
	h.log().Info("client is refused", "listener", cl.Net.Listener, "remote", cl.Net.Remote)
	return false
}

func (h *Hook) authenticate(cl *mqtt.Client, pk packets.Packet) (login, bool) {
	f := h.fleet.Load()
	d := f.devices[cl.ID]
	conn, secure := cl.Net.Conn.(*tls.Conn)
	if d == nil || !secure || pk.Connect.ClientIdentifier != cl.ID {
		return login{}, false
	}
	if pk.Connect.WillFlag && !d.mayPublish(pk.Connect.WillTopic) {
		return login{}, false
	}
	l := login{client: cl}
	user := string(pk.Connect.Username)
	if chains := conn.ConnectionState().VerifiedChains; len(chains) > 0 {
		l.chain = chains[0]
		ok := d.Certificate && identity(l.chain[0]) == cl.ID && (user == "" || user == cl.ID)
		return l, ok && f.checkChains(chains, time.Now()) == nil
	}
	if user != cl.ID || d.Password == nil || len(pk.Connect.Password) == 0 {
		return login{}, false
	}
	p := d.Password
	key, err := pbkdf2.Key(sha512.New, string(pk.Connect.Password), p.Salt, p.Iterations, len(p.Hash))
	l.hash = string(p.Hash)
	return l, err == nil && subtle.ConstantTimeCompare(key, p.Hash) == 1
}

// valid reports whether a login would be let in again.
func (f *Fleet) valid(id string, l login) bool {
	d := f.devices[id]
	switch {
	case d == nil:
		return false
	case l.chain != nil:
		return d.Certificate && f.checkChains([][]*x509.Certificate{l.chain}, time.Now()) == nil
	}
	return d.Password != nil && string(d.Password.Hash) == l.hash
}

// OnSessionEstablished implements [mqtt.Hook]. A reload may have come between the
// check of the client and its session.
func (h *Hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) { h.check(cl) }

// check ends the session of a client that would not be let in again.
func (h *Hook) check(cl *mqtt.Client) {
	f := h.fleet.Load()
	h.mu.Lock()
	l, ok := h.logins[cl.ID]
	h.mu.Unlock()
	if ok && l.client == cl && f.valid(cl.ID, l) {
		return
	}
	atomic.StoreUint32(&cl.Properties.Will.Flag, 0) // it may say nothing more
	_ = h.server.DisconnectClient(cl, packets.ErrNotAuthorized)
	h.log().Info("session is ended", "client", cl.ID)
}

// OnDisconnect implements [mqtt.Hook]. Nothing is kept for a device that is gone.
func (h *Hook) OnDisconnect(cl *mqtt.Client, _ error, _ bool) {
	h.mu.Lock()
	if h.logins[cl.ID].client == cl {
		delete(h.logins, cl.ID)
	}
	h.mu.Unlock()
	if h.fleet.Load().devices[cl.ID] == nil && !cl.IsTakenOver() {
		h.forget(cl)
	}
}

func (h *Hook) forget(cl *mqtt.Client) {
	cl.ClearInflights()
	h.server.UnsubscribeClient(cl)
	h.server.Clients.Delete(cl.ID)
}

// OnACLCheck implements [mqtt.Hook]. The server asks before a PUBLISH, and without
// write before a SUBSCRIBE, with the filter, and before each delivery, with the topic.
func (h *Hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	d := h.fleet.Load().devices[cl.ID]
	switch {
	case d == nil:
		return false
	case !write:
		return d.mayReceive(topic)
	case topic == "" && cl.Properties.ProtocolVersion == 5:
		return true // the topic is that of an alias, which OnPublish sees
	}
	return d.mayPublish(topic)
}

// OnPublish implements [mqtt.Hook]. By now the server has put the topic in the place
// of its alias.
func (h *Hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Inline {
		return pk, nil // the program's own
	}
	if d := h.fleet.Load().devices[cl.ID]; d != nil && d.mayPublish(pk.TopicName) {
		return pk, nil
	}
	if cl.Properties.ProtocolVersion == 5 && pk.FixedHeader.Qos > 0 {
		return pk, packets.ErrNotAuthorized
	}
	return pk, packets.ErrRejectPacket // after any other error the server goes on
}

// OnWill implements [mqtt.Hook]. A will without a topic reaches nobody.
func (h *Hook) OnWill(cl *mqtt.Client, will mqtt.Will) (mqtt.Will, error) {
	if d := h.fleet.Load().devices[cl.ID]; d != nil && d.mayPublish(will.TopicName) {
		return will, nil
	}
	return mqtt.Will{}, nil
}

// Reload reads the export again and ends the sessions of all that would not be let in
// any more. If it cannot be read, what was read before goes on.
func (h *Hook) Reload() error {
	h.loading.Lock()
	defer h.loading.Unlock()
	f, err := LoadFleet(h.dir)
	if err != nil {
		return err
	}
	h.fleet.Store(f)
	for _, cl := range h.server.Clients.GetAll() {
		switch {
		case cl.Net.Inline:
		case !cl.Closed():
			h.check(cl)
		case f.devices[cl.ID] == nil:
			h.forget(cl) // a session without a connection
		}
	}
	h.log().Info("fleet is loaded", "devices", len(f.devices))
	return nil
}

// Watch reloads when a file of the export is another one than before, until ctx ends.
// An export replaces its files one by one, so what is read is looked at once more
// after an interval.
func (h *Hook) Watch(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	last := h.fleet.Load().mark
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := markOf(h.dir)
		if now == last {
			continue
		}
		if err := h.Reload(); err != nil {
			h.log().Error("fleet is not loaded", "error", err)
			continue // and tries again
		}
		last = now
	}
}

func (h *Hook) log() *slog.Logger {
	if h.Log != nil {
		return h.Log
	}
	return slog.Default()
}
