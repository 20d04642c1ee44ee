package boltstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
)

func backup(t testing.TB, s *boltstore.Store) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Backup(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func restore(t testing.TB, cfg boltstore.Config, b []byte) {
	t.Helper()
	if err := boltstore.Restore(t.Context(), bytes.NewReader(b), cfg); err != nil {
		t.Fatal(err)
	}
}

// states is the state of all devices, credentials and CRL numbers, in words.
func states(t testing.TB, s inventory.Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := s.Read(t.Context(), func(r inventory.Reader) error {
		for d, err := range r.Devices(inventory.Query{}) {
			if err != nil {
				return err
			}
			all[string(d.ID)] = d.State.String()
		}
		for c, err := range r.Credentials(inventory.CredentialQuery{All: true}) {
			if err != nil {
				return err
			}
			all[fmt.Sprintf("%s %s %d", c.Device, c.Kind, c.Generation)] = fmt.Sprintf("%s %s %s", c.State, c.Reason, c.RevokedAt)
		}
		for i, err := range r.Issuers() {
			if err != nil {
				return err
			}
			all["CRL number"] = fmt.Sprint(i.CRLNumber)
		}
		for v, err := range r.Revocations(issuerID) {
			if err != nil {
				return err
			}
			all["entry "+v.Serial.String()] = fmt.Sprintf("%s %s", v.Reason, v.Time)
		}
		for i := range byte(3) {
			use, err := r.Key(inventory.SPKI{i})
			if err != nil {
				return err
			}
			all[fmt.Sprint("key ", i)] = fmt.Sprint(use.Blocked)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// fleet makes a store with six devices and a CRL number.
func fleet(t testing.TB, dir string) *boltstore.Store {
	t.Helper()
	cfg := config(t, dir)
	cfg.Create = true
	s := open(t, cfg)
	apply(t, s, inventory.Change{Event: event("fleet.init"), Issuers: []inventory.Issuer{issuer(5)}})
	for i := range 6 {
		c := enrol(t, fmt.Sprintf("dev-%d", i))
		c.Credentials = append(c.Credentials, password(fmt.Sprintf("dev-%d", i), 1))
		apply(t, s, c)
	}
	return s
}

// trouble is what a restore must not undo.
func trouble(t testing.TB, s *boltstore.Store) {
	t.Helper()
	end(t, s, "dev-0", inventory.Revoked, inventory.KeyCompromise)
	end(t, s, "dev-1", inventory.Suspended, inventory.CertificateHold)
	end(t, s, "dev-2", inventory.Retired, inventory.CessationOfOperation)
	end(t, s, "dev-3", inventory.Active, inventory.Superseded) // only its credentials
	later := enrol(t, "later-1")
	apply(t, s, later)
	end(t, s, "later-1", inventory.Revoked, inventory.KeyCompromise)
	i := issuer(9)
	i.Revision = 1
	apply(t, s, inventory.Change{Event: event("crl.publish"), Issuers: []inventory.Issuer{i}, BlockedKeys: []inventory.SPKI{{1}}})
}

// TestRestoreKeepsRevocations is rev-002 and rev-003: a backup that is older
// than revocations is restored, and they hold.
func TestRestoreKeepsRevocations(t *testing.T) {
	dir := t.TempDir()
	s := fleet(t, dir)
	old := backup(t, s)
	trouble(t, s)
	want := states(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := config(t, dir)
	restore(t, cfg, old)

	s = open(t, cfg)
	clean(t, s)
	got := states(t, s)
	// The device that came after the backup is gone with its certificate, but
	// not the CRL entry.
	maps.DeleteFunc(want, func(k, _ string) bool { return k == "later-1" || k == "later-1 certificate 1" })
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %s, before the restore: %s", k, got[k], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d facts after the restore, want %d: %v", len(got), len(want), got)
	}
	if _, err := os.Stat(filepath.Join(dir, "inventory.db.before-restore")); err != nil {
		t.Errorf("the replaced database is not kept: %v", err)
	}
	// The same certificate cannot come back under its serial number.
	err := s.Apply(t.Context(), enrol(t, "later-1"))
	if c, ok := errors.AsType[*inventory.ConflictError](err); !ok || c.Why != inventory.SerialTaken {
		t.Errorf("using a serial number again: %v", err)
	}
	// Once more, now with a journal that has more than one restore in it.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	restore(t, cfg, old)
	s = open(t, cfg)
	clean(t, s)
	if diff := states(t, s); !maps.Equal(diff, got) {
		t.Errorf("the second restore gives %v, the first %v", diff, got)
	}
}

// TestRestoreWithoutJournal is rev-003 where nothing is left but the backup: no
// CRL number is given away twice.
func TestRestoreWithoutJournal(t *testing.T) {
	s := fleet(t, t.TempDir())
	old := backup(t, s)
	trouble(t, s)
	cfg := config(t, t.TempDir())
	restore(t, cfg, old)
	s = open(t, cfg)
	clean(t, s)
	if got, want := states(t, s)["CRL number"], fmt.Sprint(5+1<<20); got != want {
		t.Errorf("CRL number %s, want %s", got, want)
	}
}

// TestRestoreOlderJournal restores over a directory that is older than the
// backup, and over one that went another way.
func TestRestoreOlderJournal(t *testing.T) {
	dir := t.TempDir()
	s := fleet(t, dir)
	first := backup(t, s)
	trouble(t, s)
	second := backup(t, s)
	want := states(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	other := config(t, t.TempDir())
	restore(t, other, first)
	restore(t, other, second)
	s = open(t, other)
	clean(t, s)
	got := states(t, s)
	if got["dev-0"] != want["dev-0"] || got["CRL number"] == want["CRL number"] {
		t.Errorf("restored: %v", got)
	}
	end(t, s, "dev-5", inventory.Revoked, inventory.KeyCompromise)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	restore(t, other, first) // its journal knows of dev-0 from the second, and of dev-5
	s = open(t, other)
	clean(t, s)
	if got := states(t, s); got["dev-0"] != "revoked" || got["dev-5"] != "revoked" || got["dev-4"] != "active" {
		t.Errorf("restored: %v", got)
	}
}

// TestDatabasePutBack is what people do without Restore: the old file is copied
// back. A reader refuses it, a writer replays the journal.
func TestDatabasePutBack(t *testing.T) {
	dir := t.TempDir()
	s := fleet(t, dir)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "inventory.db")
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s = open(t, config(t, dir))
	trouble(t, s)
	want := states(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config(t, dir)
	cfg.ReadOnly = true
	if s, err := boltstore.Open(t.Context(), cfg); !errors.Is(err, boltstore.ErrRecover) {
		t.Errorf("opening for reading: %v, %v", s, err)
	}
	s = open(t, config(t, dir))
	clean(t, s)
	got := states(t, s)
	for _, k := range []string{"dev-0", "dev-1", "dev-2", "dev-3 certificate 1", "dev-3 password 1", "CRL number", "key 1"} {
		if got[k] != want[k] {
			t.Errorf("%s: %s, before: %s", k, got[k], want[k])
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, cfg)
}

// TestJournalDamage cuts and changes the journal in many places. What was torn off
// by a crash is dropped; what the database relies on is missed; nothing else is
// taken for a torn end.
func TestJournalDamage(t *testing.T) {
	dir := t.TempDir()
	s := fleet(t, dir)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, path := filepath.Join(dir, "inventory.db"), filepath.Join(dir, "journal")
	read := func(name string) []byte {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	oldDB, oldJournal := read(db), read(path)
	s = open(t, config(t, dir))
	trouble(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	newDB, journal := read(db), read(path)
	attempt := func(database, journal []byte) error {
		t.Helper()
		if err := errors.Join(os.WriteFile(db, database, 0o600), os.WriteFile(path, journal, 0o600)); err != nil {
			t.Fatal(err)
		}
		s, err := boltstore.Open(t.Context(), config(t, dir))
		if err == nil {
			clean(t, s)
			err = s.Close()
		}
		return err
	}
	random := rand.New(rand.NewPCG(5, 6))
	for n := 0; n < len(journal); n += 1 + random.IntN(20) {
		if err := attempt(newDB, journal[:n]); !errors.Is(err, inventory.ErrCorrupt) {
			t.Errorf("journal of %d bytes of %d: %v", n, len(journal), err)
		}
		// In front of an older database the end may be torn anywhere.
		if err := attempt(oldDB, journal[:n]); n >= len(oldJournal) && err != nil || n < len(oldJournal) && !errors.Is(err, inventory.ErrCorrupt) {
			t.Errorf("older database, journal of %d bytes: %v", n, err)
		}
	}
	for range 100 {
		b := bytes.Clone(journal)
		at := len(oldJournal) + random.IntN(len(journal)-len(oldJournal)-400)
		b[at] ^= 1 << random.IntN(8)
		if err := attempt(oldDB, b); !errors.Is(err, inventory.ErrCorrupt) {
			t.Errorf("byte %d of the journal changed: %v", at, err)
		}
	}
	for range 50 {
		garbage := make([]byte, random.IntN(300))
		for i := range garbage {
			garbage[i] = byte(random.Uint32())
		}
		if err := attempt(newDB, append(bytes.Clone(journal), garbage...)); err != nil {
			t.Errorf("%d bytes of garbage at the end: %v", len(garbage), err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if s, err := boltstore.Open(t.Context(), config(t, dir)); !errors.Is(err, inventory.ErrCorrupt) {
		t.Errorf("opening without journal: %v, %v", s, err)
	}
}

// TestBackupWhileWriting is sto-019: every backup taken while 64 writers run
// verifies, and holds one moment.
func TestBackupWhileWriting(t *testing.T) {
	const writers, backups = 64, 30
	s := fleet(t, t.TempDir())
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				c := enrol(t, fmt.Sprintf("w-%d-%d", w, i))
				x := &c.Credentials[0]
				x.State, x.Reason, x.RevokedAt = inventory.CredentialRevoked, inventory.Superseded, day
				if err := s.Apply(t.Context(), c); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	scratch := config(t, t.TempDir())
	last := uint64(0)
	for range backups {
		report, err := boltstore.Verify(t.Context(), bytes.NewReader(backup(t, s)), scratch)
		if err != nil || len(report.Faults) > 0 || report.Events != report.Revision || report.Revision < last {
			t.Errorf("backup at revision %d: %v %v", report.Revision, report.Faults, err)
		}
		last = report.Revision
	}
	close(stop)
	wg.Wait()
	clean(t, s)
}

// TestBackupDamaged cuts and changes a backup: it is refused, and the fleet it
// was to replace stays.
func TestBackupDamaged(t *testing.T) {
	dir := t.TempDir()
	s := fleet(t, dir)
	good := backup(t, s)
	want := states(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := config(t, dir)
	random := rand.New(rand.NewPCG(7, 8))
	for i := range 200 {
		b := bytes.Clone(good)
		switch i % 3 {
		case 0:
			b = b[:random.IntN(len(b))]
		case 1:
			b[random.IntN(len(b))] ^= 1 << random.IntN(8)
		default:
			b = append(b, 0)
		}
		if err := boltstore.Restore(t.Context(), bytes.NewReader(b), cfg); !refusedAtOpen(err) {
			t.Errorf("damage %d: %v", i, err)
		}
	}
	foreign := cfg
	foreign.Instance[0]++
	if err := boltstore.Restore(t.Context(), bytes.NewReader(good), foreign); !errors.Is(err, inventory.ErrForeign) {
		t.Errorf("backup of another fleet: %v", err)
	}
	names, err := cfg.Dir.Names()
	if err != nil || len(names) != 3 {
		t.Errorf("the directory holds %v, %v", names, err)
	}
	s = open(t, cfg)
	if got := states(t, s); !maps.Equal(got, want) {
		t.Errorf("after the refused restores: %v", got)
	}
	if err := boltstore.Restore(t.Context(), bytes.NewReader(good), cfg); err == nil {
		t.Error("restored over an open store")
	}
}
