package mochi_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/imprint-iot/imprint/templates/brokertest"
)

const patience = 10 * time.Second

// binary is the broker of _broker, as the README has one build it.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "mochi")
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "broker")
	if out, err := exec.Command("go", "build", "-o", name, "./_broker").CombinedOutput(); err != nil {
		return "", errors.Join(err, errors.New(string(out)), os.RemoveAll(dir))
	}
	built.Lock()
	defer built.Unlock()
	built.dir = dir
	return name, nil
})

var built struct {
	sync.Mutex
	dir string
}

func TestMain(m *testing.M) {
	code := m.Run()
	built.Lock()
	if built.dir != "" {
		if err := os.RemoveAll(built.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(code)
}

// A server is a running broker.
type server struct {
	cmd   *exec.Cmd
	ended chan struct{}

	log brokertest.Log
}

// start runs a broker with an export, and ends it with the test.
func start(t *testing.T, dir string) *server {
	t.Helper()
	name, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{ended: make(chan struct{})}
	s.cmd = exec.Command(name, dir)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
		<-s.ended
		if text := s.log.String(); t.Failed() || strings.Contains(text, "panic") || strings.Contains(text, "DATA RACE") {
			t.Errorf("log: %.20000s", text)
		}
	})
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait() // it is killed
	}()
	s.await(t, "msg=ready", 0)
	return s
}

// await waits for a line in the log after the first n bytes.
func (s *server) await(t *testing.T, line string, n int) {
	t.Helper()
	eventually(t, line, func() bool {
		select {
		case <-s.ended:
			t.Fatalf("the broker has ended:\n%s", s.log.String())
		default:
		}
		return strings.Contains(s.log.String()[n:], line)
	})
}

// hup sends SIGHUP and waits for a line in the log.
func (s *server) hup(t *testing.T, line string) {
	t.Helper()
	n := len(s.log.String())
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.await(t, line, n)
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("%s has not come about", what)
		}
		<-tick.C
	}
}

// freePorts returns two ports.
func freePorts(t *testing.T) (uint16, uint16) {
	t.Helper()
	var out [2]uint16
	for i := range out {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }() // of a test; both are held until both are known
		out[i] = uint16(l.Addr().(*net.TCPAddr).Port)
	}
	return out[0], out[1]
}

// A login is how a device connects.
type login struct {
	port     uint16
	roots    *x509.CertPool
	cert     *tls.Certificate
	plain    bool // no TLS
	clientID string
	user     string
	password string
	keep     bool // the session
	will     string
}

// A session is one of MQTT 5.
type session struct {
	t        *testing.T
	conn     net.Conn
	present  bool // it was there before
	next     uint16
	acks     chan any
	messages chan *packets.Publish
	ended    chan struct{}
}

// dial opens a session. The error says why there is none.
func dial(t *testing.T, l login) (*session, error) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", l.port), patience)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if !l.plain {
		cfg := &tls.Config{RootCAs: l.roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}
		if l.cert != nil {
			cfg.Certificates = []tls.Certificate{*l.cert}
		}
		conn = tls.Client(conn, cfg)
	}
	s := &session{t: t, conn: conn, acks: make(chan any, 8), messages: make(chan *packets.Publish, 100), ended: make(chan struct{})}
	p := packets.NewControlPacket(packets.CONNECT)
	c := p.Content.(*packets.Connect)
	c.ProtocolName, c.ProtocolVersion, c.KeepAlive, c.CleanStart, c.ClientID = "MQTT", 5, 600, !l.keep, l.clientID
	if l.keep {
		day := uint32(24 * 3600)
		c.Properties = &packets.Properties{SessionExpiryInterval: &day}
	}
	c.UsernameFlag, c.Username, c.PasswordFlag, c.Password = l.user != "", l.user, l.password != "", []byte(l.password)
	if l.will != "" {
		c.WillFlag, c.WillTopic, c.WillMessage, c.WillProperties = true, l.will, []byte("will of "+l.clientID), &packets.Properties{}
	}
	r := bufio.NewReader(conn)
	if err := s.send(p); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	ack, err := packets.ReadPacket(r)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	connack, ok := ack.Content.(*packets.Connack)
	if !ok || connack.ReasonCode != 0 {
		return nil, errors.Join(fmt.Errorf("%v", ack), conn.Close())
	}
	s.present = connack.SessionPresent
	if err := conn.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go s.listen(r)
	t.Cleanup(s.drop)
	return s, nil
}

func connect(t *testing.T, l login) *session {
	t.Helper()
	s, err := dial(t, l)
	if err != nil {
		t.Fatalf("connecting as %s: %v", l.clientID, err)
	}
	return s
}

// send writes a packet as one record.
func (s *session) send(p *packets.ControlPacket) error {
	var b bytes.Buffer
	if _, err := p.WriteTo(&b); err != nil {
		return err
	}
	_, err := s.conn.Write(b.Bytes())
	return err
}

func (s *session) listen(r io.Reader) {
	defer close(s.ended)
	for {
		p, err := packets.ReadPacket(r)
		if err != nil {
			return
		}
		switch c := p.Content.(type) {
		case *packets.Publish:
			s.messages <- c
		case *packets.Disconnect:
			return
		default:
			s.acks <- c
		}
	}
}

func (s *session) ask(p *packets.ControlPacket, what string) any {
	s.t.Helper()
	if err := s.send(p); err != nil {
		s.t.Fatal(err)
	}
	select {
	case c := <-s.acks:
		return c
	case <-s.ended:
		s.t.Fatalf("%s: the session has ended", what)
	case <-time.After(patience):
		s.t.Fatalf("%s: no answer", what)
	}
	return nil
}

// subscribe returns the code of SUBACK.
func (s *session) subscribe(filter string, qos byte) byte {
	s.t.Helper()
	p := packets.NewControlPacket(packets.SUBSCRIBE)
	c := p.Content.(*packets.Subscribe)
	s.next++
	c.PacketID, c.Subscriptions = s.next, []packets.SubOptions{{Topic: filter, QoS: qos}}
	a, ok := s.ask(p, filter).(*packets.Suback)
	if !ok || len(a.Reasons) != 1 {
		s.t.Fatalf("subscribing to %q: %v", filter, a)
	}
	return a.Reasons[0]
}

// publish returns the code of PUBACK.
func (s *session) publish(m packets.Publish) byte {
	s.t.Helper()
	p := packets.NewControlPacket(packets.PUBLISH)
	s.next++
	m.PacketID, m.QoS = s.next, 1
	if m.Properties == nil {
		m.Properties = &packets.Properties{}
	}
	*p.Content.(*packets.Publish) = m
	a, ok := s.ask(p, m.Topic).(*packets.Puback)
	if !ok {
		s.t.Fatalf("publishing to %q: %v", m.Topic, a)
	}
	return a.ReasonCode
}

// say publishes a text.
func (s *session) say(name, payload string) byte {
	s.t.Helper()
	return s.publish(packets.Publish{Topic: name, Payload: []byte(payload)})
}

// receive returns the payload of the next message.
func (s *session) receive() string {
	s.t.Helper()
	select {
	case m := <-s.messages:
		if m.QoS > 0 {
			p := packets.NewControlPacket(packets.PUBACK)
			p.Content.(*packets.Puback).PacketID = m.PacketID
			if err := s.send(p); err != nil {
				s.t.Fatal(err)
			}
		}
		return string(m.Payload)
	case <-s.ended:
		s.t.Fatal("the session has ended")
	case <-time.After(patience):
		s.t.Fatal("no message")
	}
	return ""
}

func (s *session) end(what string) {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.t.Fatalf("%s: the session goes on", what)
	}
}

func (s *session) drop() {
	_ = s.conn.Close() // it may be closed
	<-s.ended
}
