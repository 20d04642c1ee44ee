package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// A Fleet is an export of imprint, as it is read.
type Fleet struct {
	devices     map[string]*Device
	certificate tls.Certificate // of the server
	trust       *x509.CertPool
	lists       map[string]*revocations // by issuer
	mark        string
}

// A Device is one that may connect.
type Device struct {
	ID          string    `json:"id"`
	Certificate bool      `json:"certificate"`        // it has one
	Password    *Password `json:"password,omitempty"` // nil: it has none
	Publish     []string  `json:"publish"`            // topic filters
	Receive     []string  `json:"receive"`            // topic filters
}

// A Password is checked with PBKDF2-HMAC-SHA-512.
type Password struct {
	Salt       []byte `json:"salt"`
	Iterations int    `json:"iterations"`
	Hash       []byte `json:"hash"`
}

// revocations are what a CRL says.
type revocations struct {
	number  *big.Int
	until   time.Time
	serials map[string]bool
}

// The files of an export.
const (
	fleetFile = "imprint.json"
	trustFile = "trust.pem"
	crlFile   = "crl.pem"
	chainFile = "server-chain.pem"
	keyFile   = "server.key"
)

// LoadFleet reads an export, all of it or nothing.
func LoadFleet(dir string) (*Fleet, error) {
	f := &Fleet{mark: markOf(dir)}
	var err error
	if f.certificate, err = tls.LoadX509KeyPair(filepath.Join(dir, chainFile), filepath.Join(dir, keyFile)); err != nil {
		return nil, fmt.Errorf("reading the server's certificate: %w", err)
	}
	if err := f.loadTrust(dir); err != nil {
		return nil, err
	}
	if err := f.loadDevices(filepath.Join(dir, fleetFile)); err != nil {
		return nil, fmt.Errorf("reading %s: %w", fleetFile, err)
	}
	return f, nil
}

// markOf tells one state of the files from another.
func markOf(dir string) string {
	var b strings.Builder
	for _, name := range []string{crlFile, trustFile, fleetFile, chainFile, keyFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil {
			fmt.Fprintln(&b, name, info.Size(), info.ModTime().UnixNano())
		}
	}
	return b.String()
}

func (f *Fleet) loadDevices(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // read only
	dec := json.NewDecoder(file)
	dec.DisallowUnknownFields()
	for _, want := range []any{json.Delim('{'), "imprint", 1.0, "devices", json.Delim('[')} {
		if t, err := dec.Token(); err != nil || t != want {
			return errors.Join(errors.New("it is no fleet of imprint, version 1"), err)
		}
	}
	f.devices = map[string]*Device{}
	for dec.More() {
		d := &Device{}
		if err := dec.Decode(d); err != nil {
			return err
		}
		if !d.check() || f.devices[d.ID] != nil {
			return fmt.Errorf("device %.64q is not as it should be, or is there twice", d.ID)
		}
		f.devices[d.ID] = d
	}
	for range 2 { // the end of the list and of the file
		if _, err := dec.Token(); err != nil {
			return err
		}
	}
	return nil
}

func (d *Device) check() bool {
	for _, filters := range [][]string{d.Publish, d.Receive} {
		for _, f := range filters {
			if !valid(f) {
				return false
			}
		}
	}
	p := d.Password
	return d.ID != "" && (p == nil || p.Iterations > 0 && p.Iterations <= 1<<24 && len(p.Hash) >= 32 && len(p.Salt) > 0)
}

// loadTrust reads the CAs, and the CRLs that they have signed.
func (f *Fleet) loadTrust(dir string) error {
	f.trust, f.lists = x509.NewCertPool(), map[string]*revocations{}
	var cas []*x509.Certificate
	err := eachPEM(filepath.Join(dir, trustFile), "CERTIFICATE", func(der []byte) error {
		c, err := x509.ParseCertificate(der)
		if err == nil {
			f.trust.AddCert(c)
			cas = append(cas, c)
		}
		return err
	})
	if err != nil {
		return err
	}
	return eachPEM(filepath.Join(dir, crlFile), "X509 CRL", func(der []byte) error {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return err
		}
		r := &revocations{number: list.Number, until: list.NextUpdate, serials: map[string]bool{}}
		for _, e := range list.RevokedCertificateEntries {
			r.serials[string(e.SerialNumber.Bytes())] = true
		}
		for _, ca := range cas {
			key := issuerKey(ca)
			if list.CheckSignatureFrom(ca) != nil {
				continue
			}
			if have := f.lists[key]; have == nil || r.number != nil && (have.number == nil || have.number.Cmp(r.number) < 0) {
				f.lists[key] = r
			}
			return nil
		}
		return errors.New("a CRL is signed by no CA of " + trustFile)
	})
}

func eachPEM(name, kind string, do func(der []byte) error) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	n := 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if n++; block.Type != kind {
			return fmt.Errorf("reading %s: it has a %.32q", name, block.Type)
		}
		if err := do(block.Bytes); err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
	}
	if n == 0 {
		return fmt.Errorf("reading %s: it is empty", name)
	}
	return nil
}

// issuerKey is name and key of a CA: what its certificates have in common.
func issuerKey(ca *x509.Certificate) string {
	return string(ca.RawSubject) + string(ca.RawSubjectPublicKeyInfo)
}

// checkChains refuses a device without a chain in which nobody is revoked. Of its own
// issuer there must be a CRL that has not expired; of those above there may be none.
func (f *Fleet) checkChains(chains [][]*x509.Certificate, now time.Time) error {
	err := errors.New("there is no certificate")
	for _, chain := range chains {
		if err = f.checkChain(chain, now); err == nil {
			return nil
		}
	}
	return err
}

func (f *Fleet) checkChain(chain []*x509.Certificate, now time.Time) error {
	if len(chain) < 2 || now.After(chain[0].NotAfter) {
		return errors.New("the certificate has no issuer, or has expired")
	}
	for i, c := range chain[:len(chain)-1] {
		list := f.lists[issuerKey(chain[i+1])]
		switch {
		case list == nil && i == 0:
			return errors.New("there is no CRL of the issuer")
		case list == nil:
		case now.After(list.until):
			return errors.New("the CRL of the issuer has expired")
		case list.serials[string(c.SerialNumber.Bytes())]:
			return errors.New("the certificate is revoked")
		}
	}
	return nil
}

// identity is the common name of a certificate that has one and no more.
func identity(c *x509.Certificate) string {
	n := 0
	for _, a := range c.Subject.Names {
		if a.Type.String() == "2.5.4.3" {
			n++
		}
	}
	if n != 1 {
		return ""
	}
	return c.Subject.CommonName
}

func (d *Device) mayPublish(name string) bool {
	return !strings.ContainsAny(name, "+#") && anyCovers(d.Publish, name)
}

// mayReceive takes the filter of a subscription as well as the topic of a message,
// which is a filter that only it matches. Shared subscriptions begin with $share, in
// any case, and no filter has that.
func (d *Device) mayReceive(filter string) bool { return anyCovers(d.Receive, filter) }

func anyCovers(rules []string, filter string) bool {
	if !valid(filter) {
		return false
	}
	for _, r := range rules {
		if covers(r, filter) {
			return true
		}
	}
	return false
}

// valid reports whether text is a topic or filter as imprint knows them.
func valid(text string) bool {
	if text == "" || len(text) > 65535 || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) || strings.Count(text, "/") >= 200 {
		return false
	}
	for rest, more := text, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if len(level) > 1 && strings.ContainsAny(level, "+#") || level == "#" && more {
			return false
		}
	}
	return true
}

// covers reports whether every topic that filter matches is matched by rule (MQTT 5.0
// section 4.7): the + and # of a filter are not topics, and a wildcard at the start
// matches no topic that begins with $.
func covers(rule, filter string) bool {
	if (rule[0] == '+' || rule[0] == '#') && filter[0] == '$' {
		return false
	}
	for {
		a, restA, moreA := strings.Cut(rule, "/")
		b, restB, moreB := strings.Cut(filter, "/")
		switch {
		case a == "#":
			return true
		case b == "#", a != "+" && a != b:
			return false
		case !moreA && !moreB:
			return true
		case !moreB:
			return restA == "#" // a/# matches a
		case !moreA:
			return false
		}
		rule, filter = restA, restB
	}
}
