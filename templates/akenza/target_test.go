package akenza_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"io/fs"
	"iter"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/akenza"
	"github.com/imprint-iot/imprint/templates/proof"
	"github.com/imprint-iot/imprint/templates/targettest"
)

var update = flag.Bool("update", false, "write the golden files")

func start() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func TestTarget(t *testing.T) {
	for _, form := range []string{akenza.CSV, akenza.JSON} {
		t.Run(form, func(t *testing.T) {
			targettest.Run(t, targettest.Case{
				Name: form, Target: &fixed{Target: akenza.Target(), rights: map[inventory.DeviceID][]topic.Grant{}}, Options: templates.Options{Form: form},
				Golden: filepath.Join("testdata", "golden", form), Update: *update, Volatile: []string{akenza.CSVName, akenza.JSONName},
			})
		})
	}
}

// Fixed is a target for which every device has the rights that Akenza gives. What rights
// it had is remembered, and is what is read back if those are.
type fixed struct {
	templates.Target
	rights map[inventory.DeviceID][]topic.Grant
}

func rules() []topic.Rule {
	return []topic.Rule{
		{Action: topic.Publish, Filter: "/up/device/id/{id}/#"},
		{Action: topic.Receive, Filter: "/down/device/id/{id}/#"},
	}
}

func (f *fixed) Write(dst *durable.Dir, v templates.View, o templates.Options) (templates.Summary, error) {
	return f.Target.Write(dst, fixedView{v, f}, o)
}

func (f *fixed) Parse(src fs.FS) (templates.View, error) {
	v, err := f.Target.Parse(src)
	if err != nil {
		return nil, err
	}
	return remembered{v.(templates.Partial), f}, nil
}

type fixedView struct {
	templates.View
	fixed *fixed
}

func (v fixedView) Profiles() iter.Seq2[inventory.Profile, error] {
	return func(yield func(inventory.Profile, error) bool) {
		for p, err := range v.View.Profiles() {
			p.Policy.Rules = rules()
			if !yield(p, err) {
				return
			}
		}
	}
}

func (v fixedView) Entries() iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		for e, err := range v.View.Entries() {
			if err == nil {
				err = templates.CheckEntry("", &e) // whose filters are replaced
			}
			if len(v.fixed.rights) < 100 {
				v.fixed.rights[e.ID] = slices.Clone(e.Grants)
			}
			if err == nil {
				e.Grants, err = topic.Policy{Rules: rules()}.Resolve(targettest.Subject(e))
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

type remembered struct {
	templates.Partial
	fixed *fixed
}

func (v remembered) Entries() iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		for e, err := range v.Partial.Entries() {
			want, resolveErr := topic.Policy{Rules: rules()}.Resolve(targettest.Subject(e))
			if err == nil && resolveErr == nil && slices.EqualFunc(want, e.Grants, templates.SameGrant) {
				e.Grants = v.fixed.rights[e.ID]
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func fleet(t *testing.T) *targettest.Memory {
	t.Helper()
	f := targettest.NewFleet(t, start())
	f.Profile("sensor", rules()...)
	for _, id := range []string{"dev-1", "dev-10", "Dev-2", "dev-3"} {
		f.Device(t, id, "sensor", "hall", "")
	}
	return f
}

func write(t *testing.T, v templates.View, form string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	d, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // of a test
	_, err = akenza.Target().Write(d, v, templates.Options{Now: start(), Form: form})
	return dir, err
}

// golden compares a file with a golden one, or writes that.
func golden(t *testing.T, file, want string) {
	t.Helper()
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(want, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != string(got) {
		t.Errorf("%s is not as in %s:\n%s", file, want, got)
	}
}

// The keys of the list are those of the newest certificates.
func TestKeys(t *testing.T) {
	f := fleet(t)
	f.Devices[0].Leafs = append(f.Devices[0].Leafs, f.PKI.Client(t, "dev-1").Leaf.Raw)
	for _, form := range []string{akenza.CSV, akenza.JSON} {
		dir, err := write(t, f, form)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, map[string]string{akenza.CSV: akenza.CSVName, akenza.JSON: akenza.JSONName}[form]))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), `\n`, "\n")
		for _, d := range f.Devices {
			for i, der := range d.Leafs {
				c, err := x509.ParseCertificate(der)
				if err != nil {
					t.Fatal(err)
				}
				key := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: c.RawSubjectPublicKeyInfo}))
				if newest := i == len(d.Leafs)-1; strings.Contains(text, key) != newest {
					t.Errorf("%s: certificate %d of %d of %s: its key is in the list: %v", form, i+1, len(d.Leafs), d.ID, !newest)
				}
			}
		}
		if n := strings.Count(text, "ES256"); n != len(f.Devices) {
			t.Errorf("%s: %d keys for ES256, want %d", form, n, len(f.Devices))
		}
	}
}

// The lists are as in the golden files, but for keys.
func TestLists(t *testing.T) {
	for form, name := range map[string]string{akenza.CSV: akenza.CSVName, akenza.JSON: akenza.JSONName} {
		f := fleet(t)
		for i := range f.Devices {
			f.Devices[i].Leafs = nil
		}
		dir, err := write(t, f, form)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, filepath.Join(dir, name), filepath.Join("testdata", "golden", form, name))
	}
}

func TestKeyTypes(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	edPub, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name     string
		pub, key any
		ok       bool
	}{
		{"P-384", p384.Public(), p384, false},
		{"RSA", rsaKey.Public(), rsaKey, true},
		{"Ed25519", edPub, ed, false},
	} {
		f := fleet(t)
		c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "dev-1"}}
		der, err := x509.CreateCertificate(rand.Reader, c, c, tt.pub, tt.key)
		if err != nil {
			t.Fatal(err)
		}
		f.Devices[0].Leafs = [][]byte{der}
		if _, err := write(t, f, akenza.CSV); (err == nil) != tt.ok {
			t.Errorf("%s: Write = %v, want ok: %v", tt.name, err, tt.ok)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	for name, r := range map[string][]topic.Rule{
		"less":  {rules()[0], rules()[0]},
		"more":  append(rules(), topic.Rule{Action: topic.Publish, Filter: "fleet/{id}/up"}),
		"other": {{Action: topic.Publish, Filter: "/down/device/id/{id}/#"}, {Action: topic.Receive, Filter: "/down/device/id/{id}/#"}},
		"none":  nil,
	} {
		_, ok := errors.AsType[*templates.InexpressibleError](akenza.Target().Check(inventory.Profile{Name: "p", Policy: topic.Policy{Rules: r}}))
		if !ok {
			t.Errorf("%s than Akenza gives is accepted", name)
		}
	}
}

// A device with one of the two rights would get both.
func TestLess(t *testing.T) {
	for i := range rules() {
		f := targettest.NewFleet(t, start())
		f.Profile("p", rules()[i])
		f.Device(t, "dev-1", "p", "", "")
		_, err := write(t, f, akenza.CSV)
		if _, ok := errors.AsType[*templates.InexpressibleError](err); !ok {
			t.Errorf("Write = %v, want an *InexpressibleError", err)
		}
	}
}

func TestProof(t *testing.T) {
	for _, form := range []string{akenza.CSV, akenza.JSON} {
		f := fleet(t)
		dir, err := write(t, f, form)
		if err != nil {
			t.Fatal(err)
		}
		e, err := akenza.Target().(interface {
			Evaluator(src fs.FS) (proof.Evaluator, error)
		}).Evaluator(os.DirFS(dir))
		if err != nil {
			t.Fatal(err)
		}
		r, err := proof.Evaluate("akenza "+form, e, proof.Questions(f.ProofDevices(t)))
		if err != nil {
			t.Fatal(err)
		}
		// Only the one subscription is documented.
		targettest.Report(t, r, func(q proof.Question) bool { return q.Verb == proof.Subscribe })
		if r.Asked-len(r.Narrower) < 100 {
			t.Errorf("%d decisions as by the policy, want more", r.Asked-len(r.Narrower))
		}
	}
}

func FuzzLists(f *testing.F) {
	key := `-----BEGIN PUBLIC KEY-----` + "\n" + `MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEbYAS3jhpIwJBsJebXfxAWtFNe2PP` + "\n" + `4ZG4XEV+j60l8ALcLZT8Q6Y2u+ruOU+o7kv/qzEgLpgb2qxnFjFm8xIB7Q==` + "\n" + `-----END PUBLIC KEY-----` + "\n"
	f.Add([]byte("deviceId,name,profile,group,algorithm,publicKey\ndev-1,dev-1,sensor,hall,ES256,\""+key+"\"\n"), false)
	f.Add([]byte(`{"format":"generic list of devices, no import format of Akenza","devices":[`+"\n"+`{"deviceId":"dev-1","name":"dev-1","profile":"sensor","group":"","algorithm":"","publicKey":""}`+"\n]}\n"), true)
	f.Fuzz(func(t *testing.T, list []byte, asJSON bool) {
		form, name := akenza.CSV, akenza.CSVName
		if asJSON {
			form, name = akenza.JSON, akenza.JSONName
		}
		s := &templates.Setting{Version: "v3", Form: form, Dest: "/x", CertificatePort: 1, PasswordPort: 2}
		v, err := akenza.Target().Parse(fstest.MapFS{
			name:               {Data: list},
			akenza.SettingName: {Data: []byte(`{"format":"generic list of devices, no import format of Akenza","form":"` + form + `","imprint":"` + s.Stamp() + `"}` + "\n")},
		})
		if err != nil {
			t.Fatal(err) // the devices are read by Entries
		}
		for e, err := range v.Entries() {
			if err != nil {
				return
			}
			if err := templates.CheckEntry("", &e); err != nil {
				t.Error(err)
			}
		}
	})
}
