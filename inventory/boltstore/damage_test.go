package boltstore_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"

	"github.com/imprint-iot/imprint/inventory/durable"
	bolt "go.etcd.io/bbolt"
)

// populate makes a fleet with some of everything in a new directory, closes it
// and returns the directory.
func populate(t testing.TB, devices int) string {
	t.Helper()
	dir := t.TempDir()
	cfg := config(t, dir)
	cfg.Create = true
	s := open(t, cfg)
	apply(t, s, inventory.Change{Event: event("fleet.init"), Issuers: []inventory.Issuer{issuer(1)}, Profiles: []inventory.Profile{{Name: "sensor", Certificate: make([]byte, 300)}}})
	for i := range devices {
		c := enrol(t, fmt.Sprintf("dev-%d", i))
		c.Credentials = append(c.Credentials, password(fmt.Sprintf("dev-%d", i), 1))
		apply(t, s, c)
	}
	for i := 0; i < devices; i += 3 {
		state, why := inventory.Revoked, inventory.KeyCompromise
		if i%2 == 0 {
			state, why = inventory.Suspended, inventory.CertificateHold
		}
		end(t, s, fmt.Sprintf("dev-%d", i), state, why)
	}
	apply(t, s, inventory.Change{
		Event: event("token.make"), Tokens: []inventory.Token{token(1, 2), token(2, 0), token(3, 1)},
		Approvals: []inventory.Approval{approval(1), approval(2)},
	})
	apply(t, s, inventory.Change{Event: event("device.enroll"), TokenUses: []inventory.TokenUse{{Token: inventory.Hash{1}}, {Token: inventory.Hash{3}}}})
	apply(t, s, inventory.Change{
		Event: event("key.block"), BlockedKeys: []inventory.SPKI{{1}, {2}},
		Revocations: []inventory.Revocation{{Issuer: issuerID, Serial: inventory.Serial{15: 1}, Time: day, NotAfter: day}},
	})
	clean(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// answers asks a store everything, in one text for each question; an answer
// that is an error is left out. Only damage may be an error.
func answers(t *testing.T, s *boltstore.Store, certs []*inventory.Certificate) map[string]string {
	t.Helper()
	all := map[string]string{}
	note := func(question string, answer any, err error) {
		switch {
		case errors.Is(err, inventory.ErrNotFound):
			all[question] = "not found"
		case errors.Is(err, inventory.ErrCorrupt):
		case err != nil:
			t.Fatalf("%s: %v", question, err)
		default:
			b, err := json.Marshal(answer)
			if err != nil {
				t.Fatal(err)
			}
			all[question] = string(b)
		}
	}
	err := s.Read(t.Context(), func(r inventory.Reader) error {
		note("revision", r.Revision(), nil)
		for i, cert := range certs {
			id := inventory.DeviceID(fmt.Sprintf("dev-%d", i))
			d, err := r.Device(id)
			note("device "+string(id), d, err)
			creds, err := collect(r.Credentials(inventory.CredentialQuery{Device: id}))
			note("credentials of "+string(id), creds, err)
			use, err := r.Key(cert.SPKI)
			note("key of "+string(id), use, err)
			creds, err = collect(r.Credentials(inventory.CredentialQuery{Serial: cert.Serial}))
			note("serial of "+string(id), creds, err)
		}
		for _, q := range []inventory.Query{{}, {State: inventory.Revoked}, {State: inventory.Suspended}, {Group: "hall-1"}, {Profile: "sensor"}, {Group: "none"}} {
			devices, err := collect(r.Devices(q))
			note(fmt.Sprintf("devices of %+v", q), devices, err)
		}
		creds, err := collect(r.Credentials(inventory.CredentialQuery{ExpiresBefore: day.AddDate(1, 6, 0)}))
		note("expiring", creds, err)
		revoked, err := collect(r.Revocations(issuerID))
		note("revocations", revoked, err)
		events, err := collect(r.Events(0))
		note("events", events, err)
		profiles, err := collect(r.Profiles())
		note("profiles", profiles, err)
		issuers, err := collect(r.Issuers())
		note("issuers", issuers, err)
		for i := range byte(4) {
			use, err := r.Key(inventory.SPKI{i})
			note(fmt.Sprint("key ", i), use, err)
			k, err := r.Token(inventory.Hash{i})
			note(fmt.Sprint("token ", i), k, err)
			a, err := r.Approval(inventory.SPKI{i})
			note(fmt.Sprint("approval ", i), a, err)
		}
		tokens, err := collect(r.Tokens(""))
		note("tokens", tokens, err)
		tokens, err = collect(r.Tokens("0100000000000000"))
		note("tokens by ID", tokens, err)
		approvals, err := collect(r.Approvals())
		note("approvals", approvals, err)
		return nil
	})
	if err != nil && !errors.Is(err, inventory.ErrCorrupt) {
		t.Fatal(err)
	}
	return all
}

func collect[T any](seq func(func(T, error) bool)) ([]T, error) {
	var all []T
	for x, err := range seq {
		if err != nil {
			return nil, err
		}
		all = append(all, x)
	}
	return all, nil
}

// refusedAtOpen reports whether err is one of the clean refusals of damage.
func refusedAtOpen(err error) bool {
	return errors.Is(err, inventory.ErrCorrupt) || errors.Is(err, inventory.ErrVersion) || errors.Is(err, inventory.ErrForeign)
}

// TestBitFlips flips 10,000 random bits, one at a time, in the database and in
// the journal. Every question then has the true answer or an error: never
// another answer, and never "not found" for what is there. Of the flips in the
// records, Check must find every one.
func TestBitFlips(t *testing.T) {
	const devices, flips = 20, 10_000
	dir := populate(t, devices)
	compact(t, filepath.Join(dir, "inventory.db"))
	var certs []*inventory.Certificate // two more than there are
	for i := range devices + 2 {
		certs = append(certs, certificate(t, fmt.Sprintf("dev-%d", i), 1).Certificate)
	}
	s := open(t, config(t, dir))
	truth := answers(t, s, certs)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	cfg := config(t, dir)
	cfg.ReadOnly = true
	var atOpen, asked, unseen int
	for _, name := range []string{"inventory.db", "journal"} {
		path := filepath.Join(dir, name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		used := len(good)
		if name == "inventory.db" {
			used = usedBytes(good)
		}
		n := flips
		if name == "journal" {
			n = flips / 10
		}
		for range n {
			bit := random.IntN(8 * used)
			flip(t, path, good, bit)
			s, err := boltstore.Open(t.Context(), cfg)
			switch {
			case err != nil && !refusedAtOpen(err):
				t.Fatalf("bit %d of %s: %v", bit, name, err)
			case err != nil:
				atOpen++
			default:
				got := answers(t, s, certs)
				for q, a := range got {
					if a != truth[q] {
						t.Errorf("bit %d of %s: %s:\n got %.300s\nwant %.300s", bit, name, q, a, truth[q])
					}
				}
				if len(got) < len(truth) {
					asked++
					if r, err := s.Check(t.Context()); err != nil || len(r.Faults) == 0 {
						t.Errorf("bit %d of %s: an answer is refused, and Check finds nothing: %v", bit, name, err)
					}
				} else {
					unseen++
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			restoreByte(t, path, good, bit)
		}
	}
	t.Logf("refused when opened: %d, when asked: %d, without effect: %d", atOpen, asked, unseen)
}

// compact writes a database anew, without the free pages in which older versions of
// other pages are still: a flipped page number that leads to one of those cannot be told
// from a page that was put back (see seal.go).
func compact(t *testing.T, path string) {
	t.Helper()
	src, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	dst, err := bolt.Open(path+".new", 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(bolt.Compact(dst, src, 0), dst.Close(), src.Close(), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// usedBytes is how much of a database is in use: the number of pages is in the
// meta record.
func usedBytes(b []byte) int {
	n := uint64(0)
	for _, meta := range []int{16, 4096 + 16} {
		pages := uint64(0)
		for i := range 8 {
			pages |= uint64(b[meta+40+i]) << (8 * i)
		}
		n = max(n, pages)
	}
	return min(len(b), int(n)*4096)
}

func flip(t *testing.T, path string, good []byte, bit int) {
	t.Helper()
	writeAt(t, path, []byte{good[bit/8] ^ 1<<(bit%8)}, bit/8)
}

func restoreByte(t *testing.T, path string, good []byte, bit int) {
	t.Helper()
	writeAt(t, path, good[bit/8:bit/8+1], bit/8)
}

func writeAt(t *testing.T, path string, b []byte, at int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, int64(at)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedFiles is sto-010, 012, 014, 025 and 028: files that are not what
// they should be are refused when the store is opened, and left as they are.
func TestDamagedFiles(t *testing.T) {
	dir := populate(t, 60)
	path := filepath.Join(dir, "inventory.db")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	cut := func(permille int) func(*boltstore.Config) {
		return func(*boltstore.Config) { truncate(t, path, int64(usedBytes(good)*permille/1000)) }
	}
	tests := []struct {
		name   string
		want   error
		damage func(*boltstore.Config)
	}{
		{"sto-010 empty", inventory.ErrCorrupt, cut(0)},
		{"sto-012 0.1%", inventory.ErrCorrupt, cut(1)},
		{"sto-012 1%", inventory.ErrCorrupt, cut(10)},
		{"sto-012 25%", inventory.ErrCorrupt, cut(250)},
		{"sto-012 50%", inventory.ErrCorrupt, cut(500)},
		{"sto-012 99%", inventory.ErrCorrupt, cut(990)},
		{"sto-014 both meta pages", inventory.ErrCorrupt, func(*boltstore.Config) {
			writeAt(t, path, make([]byte, 64), 16)
			writeAt(t, path, make([]byte, 64), 4096+16)
		}},
		{"one meta page", inventory.ErrCorrupt, func(*boltstore.Config) { writeAt(t, path, make([]byte, 64), 4096+16) }},
		{"wrong magic", inventory.ErrCorrupt, func(*boltstore.Config) { writeAt(t, path, []byte("SQLite format 3\x00"), 16) }},
		{"a directory", durable.ErrNotRegular, func(*boltstore.Config) {
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		}},
		{"missing", inventory.ErrNotFound, func(*boltstore.Config) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}},
		{"sto-028 key of another fleet", inventory.ErrCorrupt, func(c *boltstore.Config) { c.Key[0]++ }},
		{"sto-028 instance of another fleet", inventory.ErrForeign, func(c *boltstore.Config) { c.Instance[0]++ }},
		{"exists", fs.ErrExist, func(c *boltstore.Config) { c.Create = true }},
		{"empty, and to be created", fs.ErrExist, func(c *boltstore.Config) { cut(0)(c); c.Create = true }},
	}
	for _, test := range tests {
		for _, readOnly := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%t", test.name, readOnly), func(t *testing.T) {
				cfg := config(t, dir)
				test.damage(&cfg)
				cfg.ReadOnly = readOnly && !cfg.Create
				before, _ := os.ReadFile(path)
				s, err := boltstore.Open(t.Context(), cfg)
				if err == nil {
					t.Fatal(s.Close())
				}
				if !errors.Is(err, test.want) {
					t.Errorf("got %v, want %v", err, test.want)
				}
				if after, _ := os.ReadFile(path); string(after) != string(before) {
					t.Error("the refused database has been written to")
				}
				if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, good, 0o600)); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
	clean(t, open(t, config(t, dir)))
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// TestFlipsWhileWriting writes to a damaged database. Whatever is accepted or
// refused, no read afterwards gives a wrong answer and no damage is sealed again.
func TestFlipsWhileWriting(t *testing.T) {
	const devices = 40
	dir := populate(t, devices)
	path := filepath.Join(dir, "inventory.db")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	journal, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		bit := random.IntN(8 * usedBytes(good))
		flip(t, path, good, bit)
		cfg := config(t, dir)
		s, err := boltstore.Open(t.Context(), cfg)
		if err == nil {
			stored := map[string]bool{}
			for i := range 5 {
				id := fmt.Sprintf("new-%d", random.IntN(1000))
				if err := s.Apply(t.Context(), enrol(t, id)); err == nil {
					stored[id] = true
				} else if !errors.Is(err, inventory.ErrCorrupt) && !errors.Is(err, inventory.ErrStopped) && !errors.Is(err, inventory.ErrConflict) {
					t.Errorf("bit %d, change %d: %v", bit, i, err)
				}
			}
			err := s.Read(t.Context(), func(r inventory.Reader) error {
				for i := range devices {
					id := inventory.DeviceID(fmt.Sprintf("dev-%d", i))
					want := inventory.Active
					if i%6 == 3 {
						want = inventory.Revoked
					} else if i%3 == 0 {
						want = inventory.Suspended
					}
					if d, err := r.Device(id); err == nil && d.State != want || errors.Is(err, inventory.ErrNotFound) {
						t.Errorf("bit %d: device %s: %v, %v", bit, id, d, err)
					}
				}
				for id := range stored {
					if _, err := r.Device(inventory.DeviceID(id)); errors.Is(err, inventory.ErrNotFound) {
						t.Errorf("bit %d: device %s was stored and is gone", bit, id)
					}
				}
				return nil
			})
			if err != nil && !errors.Is(err, inventory.ErrCorrupt) {
				t.Errorf("bit %d: %v", bit, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(os.WriteFile(path, good, 0o600), os.WriteFile(filepath.Join(dir, "journal"), journal, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}
