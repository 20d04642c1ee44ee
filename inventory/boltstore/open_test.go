package boltstore_test

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
	"github.com/imprint-iot/imprint/inventory/durable"

	"github.com/google/go-cmp/cmp"
)

// TestInUse is sto-016: another process has the store. Whoever wants it is told
// which, within the time it waits; readers share it.
func TestInUse(t *testing.T) {
	dir := t.TempDir()
	s := fleet(t, dir)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	child, _ := crashChild(t, dir, crashDir+"_WAIT=1")
	for _, readOnly := range []bool{false, true} {
		cfg := config(t, dir)
		cfg.ReadOnly = readOnly
		start := time.Now()
		_, err := boltstore.Open(t.Context(), cfg)
		busy, ok := errors.AsType[*durable.InUseError](err)
		if !ok || busy.PID != child.Process.Pid {
			t.Errorf("opening what process %d has: %v", child.Process.Pid, err)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("it took %v to say so", took)
		}
	}
	cfg := config(t, dir)
	cfg.Wait = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := boltstore.Open(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting with a context that ends: %v", err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed

	cfg = config(t, dir)
	cfg.ReadOnly = true
	first, second := open(t, cfg), open(t, cfg)
	clean(t, first)
	clean(t, second)
	if err := first.Apply(t.Context(), enrol(t, "dev-9")); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("changing a store opened for reading: %v", err)
	}
	if _, err := boltstore.Open(t.Context(), config(t, dir)); err == nil {
		t.Error("a writer opened the store beside readers")
	}
}

// TestConfig names what is missing.
func TestConfig(t *testing.T) {
	good := config(t, t.TempDir())
	for name, edit := range map[string]func(*boltstore.Config){
		"no directory":         func(c *boltstore.Config) { c.Dir = nil },
		"no key":               func(c *boltstore.Config) { c.Key = [32]byte{} },
		"no instance":          func(c *boltstore.Config) { c.Instance = [16]byte{} },
		"created and readonly": func(c *boltstore.Config) { c.Create, c.ReadOnly = true, true },
	} {
		cfg := good
		edit(&cfg)
		if _, err := boltstore.Open(t.Context(), cfg); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	names, err := good.Dir.Names()
	if err != nil || len(names) > 0 {
		t.Errorf("the refused stores left %v, %v", names, err)
	}
}

// TestModes checks that nobody else can read the files.
func TestModes(t *testing.T) {
	dir := t.TempDir()
	fleet(t, dir)
	for _, name := range []string{"inventory.db", "journal", "lock"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// TestNewerSchema is sto-025: the database of a newer imprint is refused and not
// touched.
func TestNewerSchema(t *testing.T) {
	dir := t.TempDir()
	s := fleet(t, dir)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := config(t, dir)
	if err := boltstore.SetSchema(cfg, 2); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "inventory.db")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, readOnly := range []bool{false, true} {
		cfg.ReadOnly = readOnly
		if _, err := boltstore.Open(t.Context(), cfg); !errors.Is(err, inventory.ErrVersion) {
			t.Errorf("got %v, want ErrVersion", err)
		}
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the refused database has been written to, %v", err)
	}
}

// TestSchema1 opens a store that an earlier imprint wrote (sto-024): the fleet of
// journal_test.go after trouble, with all that it held then. The files in
// testdata are never made anew; a later schema gets files of its own.
func TestSchema1(t *testing.T) {
	dir := t.TempDir()
	for from, to := range map[string]string{"schema1.db": "inventory.db", "schema1.journal": "journal"} {
		b, err := os.ReadFile(filepath.Join("testdata", from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, to), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := config(t, dir)
	cfg.ReadOnly = true
	s := open(t, cfg)
	want := boltstore.Report{Revision: 14, Devices: 7, Credentials: 13, Issuers: 1, Keys: 8, Revocations: 5, Events: 14}
	head, err := hex.DecodeString("731d9b28ab3a11fa0ef79c1a5ef4c25f78303ed2435350446fd93246ebdaf40f")
	if err != nil {
		t.Fatal(err)
	}
	copy(want.Head[:], head)
	if diff := cmp.Diff(want, clean(t, s)); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	got := states(t, s)
	for k, want := range map[string]string{
		"dev-0": "revoked", "dev-1": "suspended", "dev-2": "retired", "dev-3": "active", "CRL number": "9", "key 1": "true",
		"dev-1 password 1":    "held certificateHold 2026-01-02 04:04:05 +0000 UTC",
		"dev-3 certificate 1": "revoked superseded 2026-01-02 04:04:05 +0000 UTC",
	} {
		if got[k] != want {
			t.Errorf("%s: %s, want %s", k, got[k], want)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.ReadOnly = false
	s = open(t, cfg)
	apply(t, s, enrol(t, "new-1"))
	// It was written before there were tokens, by an imprint whose journal did not
	// tell commits apart.
	apply(t, s, inventory.Change{Event: event("token.make"), Tokens: []inventory.Token{token(1, 1)}, Approvals: []inventory.Approval{approval(1)}})
	if err := buy(s, t, 1); err != nil {
		t.Error(err)
	}
	end(t, s, "new-1", inventory.Revoked, inventory.KeyCompromise)
	clean(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	clean(t, s)
	if got := tokens(t, s); got != "1:1/1 " {
		t.Errorf("tokens %s", got)
	}
}
