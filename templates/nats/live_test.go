package nats_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"github.com/imprint-iot/imprint/templates/nats"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// The server's own parser reads an export as what is meant.
func TestProcessConfigFile(t *testing.T) {
	for _, form := range forms() {
		f := fleet(t)
		s := &site{t: t, fleet: f, form: form, dir: t.TempDir()}
		s.export()
		o, err := natsserver.ProcessConfigFile(filepath.Join(s.dir, nats.ConfName))
		if err != nil {
			t.Fatal(err)
		}
		if !o.JetStream || o.MQTT.TLSMap != (form != nats.Password) || len(o.Users) != len(f.Devices)+2 || o.NoAuthUser != "" || o.MQTT.NoAuthUser != "" {
			t.Errorf("%s: %+v", form, o.MQTT)
		}
		for _, u := range o.Users {
			if u.Username == targettest.ObserverID || strings.HasSuffix(u.Username, "/"+targettest.ObserverID) {
				continue // ours
			}
			p := u.Permissions
			if p == nil || p.Publish == nil || p.Subscribe == nil || len(p.Publish.Allow)+len(p.Publish.Deny) == 0 || len(p.Subscribe.Allow)+len(p.Subscribe.Deny) == 0 {
				t.Errorf("%s: user %s may do everything", form, u.Username)
			}
			if len(u.AllowedConnectionTypes) != 1 {
				t.Errorf("%s: user %s may connect by %v", form, u.Username, u.AllowedConnectionTypes)
			}
		}
	}
}

// signed makes a client certificate of the device CA with a subject and SANs of one's
// own.
func signed(t *testing.T, p *targettest.PKI, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	change(c)
	der, err := x509.CreateCertificate(rand.Reader, c, p.Device.Certificate, key.Public(), p.Device.Key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, p.Device.Certificate.Raw}, PrivateKey: key}
}

// The name of a device is in the SAN of its certificate, whatever else is in there.
func TestCertificateIdentity(t *testing.T) {
	s := run(t, nats.Certificate, fleet(t))
	uri := func(text string) []*url.URL {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	id := "spiffe://" + targettest.TrustDomain + "/device/"
	for _, tt := range []struct {
		name   string
		change func(*x509.Certificate)
		is     string
	}{
		{"SAN before subject", func(c *x509.Certificate) {
			c.Subject, c.URIs = pkix.Name{Organization: []string{"Acme"}, CommonName: "Dev-2"}, uri(id+"dev-1")
		}, "dev-1"},
		{"no SAN", func(c *x509.Certificate) {
			c.Subject = pkix.Name{Organization: []string{"Acme"}, CommonName: "dev-1"}
		}, ""},
		{"the SAN as a common name", func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: id + "dev-1"} }, ""},
		{"another trust domain", func(c *x509.Certificate) { c.URIs = uri("spiffe://other.example/device/dev-1") }, ""},
		{"another case", func(c *x509.Certificate) { c.URIs = uri(id + "DEV-1") }, ""},
		{"more path", func(c *x509.Certificate) { c.URIs = uri(id + "dev-1/x") }, ""},
		{"an email address", func(c *x509.Certificate) { c.EmailAddresses = []string{"dev-1"} }, ""},
		{"the sentinel", func(c *x509.Certificate) { c.URIs = uri("imprint:nobody") }, ""},
		{"for servers", func(c *x509.Certificate) {
			c.URIs, c.ExtKeyUsage = uri(id+"dev-1"), []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}, ""},
		{"expired", func(c *x509.Certificate) { c.URIs, c.NotAfter = uri(id+"dev-1"), time.Now().Add(-time.Minute) }, ""},
	} {
		l := s.login("dev-10")
		l.cert, l.user = signed(t, s.fleet.PKI, tt.change), "Dev-2"
		c, err := dial(t, l)
		switch {
		case err != nil && tt.is != "":
			t.Errorf("%s: %v", tt.name, err)
		case err == nil && tt.is == "":
			t.Errorf("%s: it gets in", tt.name)
		case err == nil:
			if own, other := c.subscribe("fleet/"+tt.is+"/down", 0), c.subscribe("fleet/Dev-2/down", 0); own != 0 || other != 0x80 {
				t.Errorf("%s: its own topic %#x, that of another %#x", tt.name, own, other)
			}
			c.drop()
		}
	}
}

// In form "both" a certificate needs the password of the same device beside it, and
// in form "certificate" it stands alone.
func TestBoth(t *testing.T) {
	f := fleet(t)
	f.Devices[len(f.Devices)-1].Verifiers = nil // dev-3
	s := run(t, nats.Both, f)
	for _, tt := range []struct {
		id, user, password string
		cert, want         bool
	}{
		{"dev-1", "dev-1", "correct horse", true, true},
		{"dev-1", "Dev-2", "correct horse", true, true}, // the name in the certificate counts
		{"dev-1", "dev-1", "battery staple", true, false},
		{"dev-1", "dev-1", "", true, false},
		{"dev-1", "", "", true, false},
		{"dev-1", "dev-1", "correct horse", false, false},
		{"dev-3", "", "", true, true},
		{"dev-3", "dev-3", "x", true, false},
	} {
		l := s.login(tt.id)
		if l.user, l.password = tt.user, tt.password; !tt.cert {
			l.cert = nil
		}
		if _, err := dial(t, l); (err == nil) != tt.want {
			t.Errorf("%+v: %v", tt, err)
		}
	}

	s = run(t, nats.Certificate, fleet(t))
	l := s.login("dev-1")
	l.user, l.password = "dev-1", "correct horse"
	if _, err := dial(t, l); err == nil {
		t.Error(`a client with a password gets in, and the README says that it does not`)
	}
}

// A reload takes another certificate of the server and another trust bundle, and one
// that cannot be read changes nothing.
func TestReload(t *testing.T) {
	s := run(t, nats.Certificate, fleet(t))
	d := connect(t, s.login("dev-1"))
	before := serial(t, s)

	name := filepath.Join(s.dir, nats.UsersName)
	if err := os.WriteFile(name, []byte("users = ["), 0o600); err != nil {
		t.Fatal(err)
	}
	n := len(s.log.String())
	if err := s.cmd.Process.Signal(hup); err != nil {
		t.Fatal(err)
	}
	s.await(t, "Failed to reload", n)
	if code := d.subscribe("fleet/dev-1/down", 0); code != 0 {
		t.Errorf("%#x after a reload that failed", code)
	}
	connect(t, s.login("Dev-2")).drop()

	node := s.fleet.PKI.Node(t)
	s.fleet.Broker.ServerChain, s.fleet.Broker.ServerKey = node.ServerChain, node.ServerKey
	s.export()
	s.reload(t)
	if after := serial(t, s); after == before {
		t.Error("the server has its old certificate")
	}

	old := s.login("dev-1")
	p := targettest.NewPKI(t, time.Now())
	s.fleet.Trust, s.fleet.Lists = p.TrustBundle(), nil
	s.export()
	s.reload(t)
	if _, err := dial(t, old); err == nil {
		t.Error("a certificate of a CA that is not trusted any more gets in")
	}
	c := p.Client(t, "dev-1")
	old.cert = &c
	connect(t, old)
}

func serial(t *testing.T, s *site) string {
	t.Helper()
	l := s.login("dev-1")
	c, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.port), &tls.Config{RootCAs: l.roots, ServerName: "localhost", Certificates: []tls.Certificate{*l.cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }() // of a test
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// An earlier certificate of a device goes on: nothing in the server knows of serial
// numbers. The README says so.
func TestEarlierCertificate(t *testing.T) {
	s := run(t, nats.Certificate, fleet(t))
	stolen := s.login("dev-1")
	s.fleet.PKI.Revoke(*stolen.cert, time.Now())
	s.fleet.Lists[0] = s.fleet.PKI.CRL(t, time.Now(), time.Now().Add(time.Hour))
	s.export()
	s.reload(t)
	if _, err := dial(t, stolen); err != nil {
		t.Errorf("it is refused now, so the documentation is wrong: %v", err)
	}
}

// A session can be ended through the system account of one's own configuration, as
// the README says.
func TestKick(t *testing.T) {
	dir, port := t.TempDir(), freePort(t)
	f := fleet(t)
	f.Broker.Bind, f.Broker.CertificatePort, f.Broker.PasswordPort = "127.0.0.1", port, port+1
	s := &site{t: t, fleet: f, form: nats.Certificate, dir: dir, port: port}
	s.export()
	name := filepath.Join(dir, nats.ConfName)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	own := strings.Replace(string(text), "accounts {\n", "accounts {\n  $SYS { users: [ { user: \"ops\", password: \""+hash+"\" } ] }\n", 1)
	if err := os.WriteFile(name, []byte(own), 0o600); err != nil {
		t.Fatal(err)
	}
	s.server = start(t, dir, port)
	d := connect(t, s.login("dev-1"))

	o := newOps(t, s.clients)
	var list struct {
		Server struct {
			ID string `json:"id"`
		} `json:"server"`
		Data struct {
			Connections []struct {
				CID  uint64 `json:"cid"`
				MQTT string `json:"mqtt_client"`
			} `json:"connections"`
		} `json:"data"`
	}
	o.request("$SYS.REQ.SERVER.PING.CONNZ", `{"mqtt_client":"dev-1"}`, &list)
	if len(list.Data.Connections) != 1 || list.Data.Connections[0].MQTT != "dev-1" {
		t.Fatalf("%+v", list)
	}
	o.request("$SYS.REQ.SERVER."+list.Server.ID+".KICK", fmt.Sprintf(`{"cid":%d}`, list.Data.Connections[0].CID), &struct{}{})
	d.end("kicked")
	connect(t, s.login("dev-1")) // it may come back
}

// ops is a client of the server's own protocol.
type ops struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func newOps(t *testing.T, address string) *ops {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // of a test
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	o := &ops{t: t, conn: conn, r: bufio.NewReader(conn)}
	o.say("CONNECT {\"verbose\":false,\"user\":\"ops\",\"pass\":\"correct horse\"}\r\nSUB reply 1\r\nPING\r\n")
	for !strings.HasPrefix(o.line(), "PONG") {
	}
	return o
}

func (o *ops) say(text string) {
	o.t.Helper()
	if _, err := o.conn.Write([]byte(text)); err != nil {
		o.t.Fatal(err)
	}
}

func (o *ops) line() string {
	o.t.Helper()
	line, err := o.r.ReadString('\n')
	if err != nil {
		o.t.Fatal(err)
	}
	if strings.HasPrefix(line, "-ERR") {
		o.t.Fatal(line)
	}
	return line
}

// request waits for the answer. The server does nothing for who asks without one.
func (o *ops) request(subject, body string, into any) {
	o.t.Helper()
	o.say(fmt.Sprintf("PUB %s reply %d\r\n%s\r\n", subject, len(body), body))
	for {
		if strings.HasPrefix(o.line(), "MSG") {
			if err := json.Unmarshal([]byte(o.line()), into); err != nil {
				o.t.Fatal(err)
			}
			return
		}
	}
}

// The server's own protocol is closed to devices, and to those who say nothing.
func TestOwnProtocol(t *testing.T) {
	s := run(t, nats.Password, fleet(t))
	for _, who := range []string{`"user":"dev-1","pass":"correct horse"`, `"user":"imprint:nobody","pass":""`, `"verbose":false`} {
		conn, err := net.DialTimeout("tcp", s.clients, patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() }) // of a test
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "CONNECT {%s}\r\nPING\r\n", who); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(conn)
		for {
			line, err := r.ReadString('\n')
			if err != nil || strings.HasPrefix(line, "-ERR 'Authorization Violation'") {
				break
			}
			if strings.HasPrefix(line, "PONG") {
				t.Errorf("%s is let in", who)
				break
			}
		}
	}
}
