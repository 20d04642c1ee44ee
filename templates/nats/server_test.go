package nats_test

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

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/imprint-iot/imprint/templates/brokertest"
)

const patience = 10 * time.Second

// hup lets the server read its configuration again.
const hup = syscall.SIGHUP

// binary is the server, built from the module that go.mod names.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "nats-server")
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "nats-server")
	if out, err := exec.Command("go", "build", "-o", name, "github.com/nats-io/nats-server/v2").CombinedOutput(); err != nil {
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

// A server is a running nats-server.
type server struct {
	cmd     *exec.Cmd
	clients string // address of its own protocol
	ended   chan struct{}

	log brokertest.Log
}

// start runs a server with the configuration in a directory, and ends it with the
// test. Addresses and places that are the same for all are other ones here: the last
// of two values counts.
func start(t *testing.T, dir string, mqtt uint16) *server {
	t.Helper()
	name, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	s := &server{clients: fmt.Sprintf("127.0.0.1:%d", port), ended: make(chan struct{})}
	conf := filepath.Join(dir, "main.conf")
	text := fmt.Sprintf("include \"nats-server.conf\"\nlisten: %q\njetstream { store_dir: %q }\n", s.clients, t.TempDir())
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.cmd = exec.Command(name, "-c", conf)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
		<-s.ended
		if t.Failed() {
			t.Log(s.log.String())
		}
	})
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait() // it is killed
	}()
	s.await(t, "Server is ready", 0)
	eventually(t, "the listener of MQTT", func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", mqtt))
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
	return s
}

// await waits for a line in the log after the first n bytes.
func (s *server) await(t *testing.T, line string, n int) {
	t.Helper()
	eventually(t, line, func() bool {
		select {
		case <-s.ended:
			t.Fatalf("the server has ended:\n%s", s.log.String())
		default:
		}
		return strings.Contains(s.log.String()[n:], line)
	})
}

// reload lets the server read its configuration again.
func (s *server) reload(t *testing.T) {
	t.Helper()
	n := len(s.log.String())
	if err := s.cmd.Process.Signal(hup); err != nil {
		t.Fatal(err)
	}
	s.await(t, "Reloaded server configuration", n)
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

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // of a test
	return uint16(l.Addr().(*net.TCPAddr).Port)
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
}

// A session is one of MQTT 3.1.1.
type session struct {
	t        *testing.T
	conn     net.Conn
	present  bool // it was there before
	next     uint16
	acks     chan packets.ControlPacket
	messages chan *packets.PublishPacket
	ended    chan struct{}
}

// dial opens a session. The error says why there is none.
func dial(t *testing.T, l login) (*session, error) {
	t.Helper()
	address := fmt.Sprintf("127.0.0.1:%d", l.port)
	conn, err := net.DialTimeout("tcp", address, patience)
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
	p := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	p.ProtocolName, p.ProtocolVersion, p.CleanSession, p.ClientIdentifier, p.Keepalive = "MQTT", 4, !l.keep, l.clientID, 600
	p.UsernameFlag, p.Username = l.user != "", l.user
	p.PasswordFlag, p.Password = l.password != "", []byte(l.password)
	s := &session{t: t, conn: conn, acks: make(chan packets.ControlPacket, 8), messages: make(chan *packets.PublishPacket, 100), ended: make(chan struct{})}
	r := bufio.NewReader(conn)
	if err := s.send(p); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	ack, err := packets.ReadPacket(r)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	connack := ack.(*packets.ConnackPacket)
	if connack.ReturnCode != 0 {
		return nil, errors.Join(fmt.Errorf("CONNACK with code %d", connack.ReturnCode), conn.Close())
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
		t.Fatalf("connecting as %s%s: %v", l.clientID, l.user, err)
	}
	return s
}

// send writes a packet as one record.
func (s *session) send(p packets.ControlPacket) error {
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
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
		if m, ok := p.(*packets.PublishPacket); ok {
			s.messages <- m
			continue
		}
		s.acks <- p
	}
}

func (s *session) ack(what string) packets.ControlPacket {
	s.t.Helper()
	select {
	case p := <-s.acks:
		return p
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
	p := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	s.next++
	p.MessageID, p.Topics, p.Qoss = s.next, []string{filter}, []byte{qos}
	if err := s.send(p); err != nil {
		s.t.Fatal(err)
	}
	a, ok := s.ack(filter).(*packets.SubackPacket)
	if !ok || len(a.ReturnCodes) != 1 {
		s.t.Fatalf("subscribing to %q: %v", filter, a)
	}
	return a.ReturnCodes[0]
}

// publish waits for PUBACK.
func (s *session) publish(name, payload string, retain bool) {
	s.t.Helper()
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	s.next++
	p.MessageID, p.TopicName, p.Payload, p.Qos, p.Retain = s.next, name, []byte(payload), 1, retain
	if err := s.send(p); err != nil {
		s.t.Fatal(err)
	}
	s.ack(name)
}

// receive returns the payload of the next message, or nothing if none comes before
// the one that says so.
func (s *session) receive() string {
	s.t.Helper()
	select {
	case m := <-s.messages:
		if m.Qos > 0 {
			a := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
			a.MessageID = m.MessageID
			if err := s.send(a); err != nil {
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
