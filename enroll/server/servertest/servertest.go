// Package servertest starts enrollment servers for tests: a fleet of its own in a
// bbolt file, real keys, real TLS on the loopback.
package servertest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/ca/catest"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/server"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// Options say how a fleet differs from the usual one.
type Options struct {
	Settings server.Settings
	Makers   []enroll.Maker
	Now      func() time.Time // nil means time.Now
	Grace    time.Duration    // of the profile default
	Validity ca.Duration      // of device certificates

	// TokenSigner opens the key of tokens for brokers; nil means that none are made.
	TokenSigner func(context.Context) (crypto.Signer, error)

	Log *slog.Logger // nil means none

	// Wrap, if it is set, stands between the registrar and the store.
	Wrap func(inventory.Store) inventory.Store
}

// A Fleet is a server that runs, with all that is behind it. It has the profiles
// "default", with a password, and "quiet", without.
type Fleet struct {
	*enroll.Registrar
	Store  inventory.Store
	Server *server.Server

	URL      string // https://localhost:port
	Addr     string // 127.0.0.1:port, of TLS
	HTTP     string // http://127.0.0.1:port of CRLs and OCSP
	Metrics  string // http://127.0.0.1:port
	Roots    *x509.CertPool
	RootFile string // PEM

	// Stop ends the server, gracefully, and waits for it.
	Stop func()

	tb testing.TB
}

// crls keeps CRLs in memory.
type crls struct {
	mu  sync.Mutex
	der map[string][]byte
}

func (c *crls) Load(issuer string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.der[issuer], nil
}

func (c *crls) Save(issuer string, der []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.der[issuer] = der
	return nil
}

// watched tells the server of every change.
type watched struct {
	inventory.Store
	told func()
}

func (w *watched) Apply(ctx context.Context, c inventory.Change) error {
	err := w.Store.Apply(ctx, c)
	if err == nil && w.told != nil {
		w.told()
	}
	return err
}

// Start starts a server; it ends with the test.
func Start(tb testing.TB, o Options) *Fleet {
	tb.Helper()
	f := &Fleet{tb: tb}
	path := tb.TempDir()
	dir, err := durable.OpenDir(path)
	if err != nil {
		tb.Fatal(err)
	}
	store, err := boltstore.Open(context.Background(), boltstore.Config{Dir: dir, Instance: [16]byte{1}, Key: [32]byte{2}, Create: true})
	if err != nil {
		tb.Fatal(err)
	}
	f.Store = store
	if o.Wrap != nil {
		f.Store = o.Wrap(store)
	}
	told := &watched{Store: f.Store}
	keys := f.found(o)
	f.Registrar, err = enroll.New(enroll.Config{
		Store: told, Organization: "acme", TrustDomain: "acme", Now: o.Now, TokenSigner: o.TokenSigner,
		Open: func(_ context.Context, iss inventory.Issuer) (*ca.Issuer, error) {
			cert, err := x509.ParseCertificate(iss.Certificate)
			if err != nil {
				return nil, err
			}
			return ca.NewIssuer(cert, keys[iss.Name], o.Now)
		},
	})
	if err != nil {
		tb.Fatal(err)
	}
	f.SetMakers(o.Makers)
	f.trust(path)
	pair := f.own()
	f.Server, err = server.New(server.Config{
		Registrar: f.Registrar, Certificate: func() (*tls.Certificate, error) { return pair, nil },
		CRLs: &crls{der: map[string][]byte{}}, Settings: o.Settings, Now: o.Now, Log: o.Log,
	})
	if err != nil {
		tb.Fatal(err)
	}
	told.told = f.Server.Revoked
	f.serve(func() {
		if err := store.Close(); err != nil {
			tb.Error(err)
		}
		_ = dir.Close()
	})
	return f
}

// found makes the hierarchy and returns its keys by the name of the issuer.
func (f *Fleet) found(o Options) map[string]crypto.Signer {
	f.tb.Helper()
	keys := map[string]crypto.Signer{}
	ref := func(name string) enroll.KeyRef {
		keys[name] = catest.Key(f.tb, ca.P256)
		return enroll.KeyRef{URI: "test:" + name, Signer: keys[name]}
	}
	certificate, err := json.Marshal(ca.Config{Validity: o.Validity})
	if err != nil {
		f.tb.Fatal(err)
	}
	now := o.Now
	if now == nil {
		now = time.Now
	}
	policy := topic.Policy{Rules: []topic.Rule{{Action: topic.Publish, Filter: "d/{id}/up"}, {Action: topic.Receive, Filter: "d/{id}/down"}}}
	err = enroll.Found(context.Background(), f.Store, enroll.Foundation{
		Actor: "test", Organization: "acme", Now: now, Root: ref("root-1"), Device: ref("device-1"), Server: ref("server-1"),
		Profiles: []inventory.Profile{
			{Name: "default", Certificate: certificate, Policy: policy, Grace: o.Grace},
			{Name: "quiet", Certificate: certificate, Policy: policy, Password: inventory.PasswordRule{None: true}},
		},
	})
	if err != nil {
		f.tb.Fatal(err)
	}
	return keys
}

func (f *Fleet) trust(dir string) {
	f.tb.Helper()
	ders, err := f.TrustBundle(context.Background())
	if err != nil {
		f.tb.Fatal(err)
	}
	f.Roots = x509.NewCertPool()
	text := ca.CertificatePEM(ders...)
	f.Roots.AppendCertsFromPEM(text)
	f.RootFile = filepath.Join(dir, "root.pem")
	if err := os.WriteFile(f.RootFile, text, 0o600); err != nil {
		f.tb.Fatal(err)
	}
}

// own gets the server its own certificate.
func (f *Fleet) own() *tls.Certificate {
	f.tb.Helper()
	e, err := f.EnrollServer(context.Background(), "test", "imprint-server", []string{"localhost", "127.0.0.1"})
	if err != nil {
		f.tb.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(e.Key.Reveal())
	if err != nil {
		f.tb.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(e.Chain[0])
	if err != nil {
		f.tb.Fatal(err)
	}
	return &tls.Certificate{Certificate: e.Chain, PrivateKey: key, Leaf: leaf}
}

func (f *Fleet) serve(closed func()) {
	f.tb.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			f.tb.Fatal(err)
		}
		return l
	}
	l := server.Listeners{TLS: listen(), Plain: listen(), Metrics: listen()}
	f.Addr = l.TLS.Addr().String()
	_, port, _ := net.SplitHostPort(f.Addr)
	f.URL, f.HTTP, f.Metrics = "https://localhost:"+port, "http://"+l.Plain.Addr().String(), "http://"+l.Metrics.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Server.Serve(ctx, l) }()
	f.Stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			f.tb.Error(err)
		}
		closed()
	})
	f.tb.Cleanup(f.Stop)
}

// Token makes a token and returns its text form.
func (f *Fleet) Token(t inventory.Token) string {
	f.tb.Helper()
	if t.Role == 0 {
		t.Role = inventory.DeviceRole
	}
	secret, _, err := f.MakeToken(context.Background(), "test", "", t)
	if err != nil {
		f.tb.Fatal(err)
	}
	return api.TokenText(secret.Reveal())
}

// CSR makes a request for a name with a key, PEM.
func CSR(tb testing.TB, name string, key crypto.Signer) []byte {
	tb.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// Client returns an HTTP client that shows a pair, or none if it is nil.
func (f *Fleet) Client(pair *tls.Certificate) *http.Client {
	t := &tls.Config{RootCAs: f.Roots, MinVersion: tls.VersionTLS12}
	if pair != nil {
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	tr := &http.Transport{TLSClientConfig: t}
	f.tb.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// An Answer is a response that has been read.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Code is the code of a problem, or "".
func (a Answer) Code() string {
	var p api.Problem
	if json.Unmarshal(a.Body, &p) != nil {
		return ""
	}
	return p.Code
}

// A Call is a request to make.
type Call struct {
	Method string // GET, or POST if there is a body
	Path   string
	Token  string // Bearer
	Pair   *tls.Certificate
	Type   string // of the body; application/json if it is empty
	Accept string
	Body   []byte
	Header map[string]string
}

// Do makes a request and reads the answer.
func (f *Fleet) Do(c Call) Answer {
	f.tb.Helper()
	a, err := f.Try(c)
	if err != nil {
		f.tb.Fatal(err)
	}
	return a
}

// Try is Do for requests that may fail to get through.
func (f *Fleet) Try(c Call) (Answer, error) {
	if c.Method == "" {
		c.Method = http.MethodGet
		if c.Body != nil {
			c.Method = http.MethodPost
		}
	}
	req, err := http.NewRequestWithContext(context.Background(), c.Method, f.URL+c.Path, bytes.NewReader(c.Body))
	if err != nil {
		return Answer{}, err
	}
	if c.Body != nil {
		if c.Type == "" {
			c.Type = api.MediaJSON
		}
		req.Header.Set("Content-Type", c.Type)
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	if c.Accept != "" {
		req.Header.Set("Accept", c.Accept)
	}
	for k, v := range c.Header {
		req.Header.Set(k, v)
	}
	resp, err := f.Client(c.Pair).Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, resp.Header, b}, err
}

// Enroll enrolls a device over the API, registering it if need be, and returns its
// pair.
func (f *Fleet) Enroll(id string) *tls.Certificate {
	f.tb.Helper()
	key := catest.Key(f.tb, ca.P256)
	a := f.Do(Call{
		Path: api.PathEnroll, Token: f.Token(inventory.Token{Devices: []inventory.DeviceID{inventory.DeviceID(id)}, Profile: "default"}),
		Type: api.MediaPKCS10, Body: CSR(f.tb, id, key),
	})
	if a.Status != http.StatusOK {
		f.tb.Fatalf("enrolling %s: %d %s", id, a.Status, a.Body)
	}
	return Pair(f.tb, a.Body, key)
}

// Pair puts a chain in PEM and a key together.
func Pair(tb testing.TB, chain []byte, key crypto.Signer) *tls.Certificate {
	tb.Helper()
	certs, err := ca.ParseCertificatesPEM(chain)
	if err != nil {
		tb.Fatal(err)
	}
	out := &tls.Certificate{PrivateKey: key, Leaf: certs[0]}
	for _, c := range certs {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out
}
