package mosquittotest

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
)

// MQTT 5 reason codes that tests look for.
const (
	Success         = 0x00
	NoSubscribers   = 0x10
	BadUserPassword = 0x86
	NotAuthorized   = 0x87
	TakenOver       = 0x8E
)

// A Login is how a client connects.
type Login struct {
	Addr     string      // "127.0.0.1:8883", or the path of a socket
	TLS      *tls.Config // nil for a socket
	ClientID string
	User     string
	Password string
	Keep     bool // the session: no clean start, and it outlives the connection
}

// A Client is an MQTT 5 client. Its methods fail the test when the connection
// fails; what the broker answers is returned.
type Client struct {
	tb       testing.TB
	mqtt     *paho.Client
	received chan *paho.Publish
	once     sync.Once
	Ended    chan struct{} // closed when the broker has closed the connection
	Assigned string        // the client identifier that the broker uses, if it says so
}

// Connect connects. The code is that of CONNACK; if there was none, as when the
// broker refuses a certificate, err says why.
func Connect(tb testing.TB, l Login) (c *Client, code byte, err error) {
	tb.Helper()
	conn, err := dial(l)
	if err != nil {
		return nil, 0, err
	}
	c = &Client{tb: tb, received: make(chan *paho.Publish, 1000), Ended: make(chan struct{})}
	c.mqtt = paho.NewClient(paho.ClientConfig{
		ClientID: l.ClientID,
		Conn:     packets.NewThreadSafeConn(conn), // a packet is one write: TLS records of two would mix
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			c.received <- p.Packet
			return true, nil
		}},
		OnClientError:      func(error) { c.end() },
		OnServerDisconnect: func(*paho.Disconnect) { c.end() },
	})
	quiet := log.New(io.Discard, "", 0)
	c.mqtt.SetErrorLogger(quiet)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cp := &paho.Connect{ClientID: l.ClientID, KeepAlive: 60, CleanStart: !l.Keep}
	if l.Keep {
		day := uint32(24 * 3600)
		cp.Properties = &paho.ConnectProperties{SessionExpiryInterval: &day}
	}
	if l.User != "" {
		cp.Username, cp.UsernameFlag = l.User, true
	}
	if l.Password != "" {
		cp.Password, cp.PasswordFlag = []byte(l.Password), true
	}
	ack, err := c.mqtt.Connect(ctx, cp)
	if ack != nil {
		if ack.Properties != nil {
			c.Assigned = ack.Properties.AssignedClientID
		}
		if ack.ReasonCode != Success {
			return nil, ack.ReasonCode, nil
		}
	}
	if err != nil {
		_ = conn.Close() // refused
		return nil, 0, err
	}
	tb.Cleanup(c.Close)
	return c, Success, nil
}

func (c *Client) end() { c.once.Do(func() { close(c.Ended) }) }

func dial(l Login) (net.Conn, error) {
	d := &net.Dialer{Timeout: patience}
	if l.TLS == nil {
		network := "tcp"
		if l.Addr != "" && l.Addr[0] == '/' {
			network = "unix"
		}
		return d.Dial(network, l.Addr)
	}
	return tls.DialWithDialer(d, "tcp", l.Addr, l.TLS)
}

// MustConnect is [Connect] that must succeed.
func MustConnect(tb testing.TB, l Login) *Client {
	tb.Helper()
	c, code, err := Connect(tb, l)
	if err != nil || code != Success {
		tb.Fatalf("connecting as %q to %s: code %#x, %v", l.User, l.Addr, code, err)
	}
	return c
}

// Close ends the connection.
func (c *Client) Close() {
	_ = c.mqtt.Disconnect(&paho.Disconnect{}) // it may have been closed by the broker
}

// Publish publishes with QoS 1 and returns the code of PUBACK.
func (c *Client) Publish(topic, payload string) byte {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := c.mqtt.Publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(payload)})
	if r == nil {
		c.tb.Fatalf("publishing to %q: %v", topic, err)
	}
	return r.ReasonCode
}

// Subscribe subscribes with QoS 1 and returns the code of SUBACK: the granted
// QoS, or why not.
func (c *Client) Subscribe(filter string) byte {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, err := c.mqtt.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}})
	if a == nil || len(a.Reasons) != 1 {
		c.tb.Fatalf("subscribing to %q: %v", filter, err)
	}
	return a.Reasons[0]
}

// Next returns the next message as "topic payload".
func (c *Client) Next() string {
	c.tb.Helper()
	select {
	case p := <-c.received:
		return fmt.Sprintf("%s %s", p.Topic, p.Payload)
	case <-time.After(patience):
		c.tb.Fatal("no message")
		return ""
	}
}

// Until returns the messages before the one with this payload.
func (c *Client) Until(payload string) []string {
	c.tb.Helper()
	var got []string
	for {
		select {
		case p := <-c.received:
			if string(p.Payload) == payload {
				return got
			}
			got = append(got, fmt.Sprintf("%s %s", p.Topic, p.Payload))
		case <-time.After(patience):
			c.tb.Fatalf("no message %q; got %q", payload, got)
		}
	}
}

// WaitEnded waits until the broker has closed the connection.
func (c *Client) WaitEnded() {
	c.tb.Helper()
	select {
	case <-c.Ended:
	case <-time.After(patience):
		c.tb.Fatal("the connection stays open")
	}
}
