package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/boltstore"
	"github.com/imprint-iot/imprint/inventory/durable"
)

// A backup is a tar file, encrypted with age: the files of the fleet directory,
// and the inventory as the last of them.
const backupInventory = "inventory.backup"

// maxBackupFile is the largest of the small files in a backup, in bytes.
const maxBackupFile = maxCRLFile

func newBackupCommand(a *app) *cobra.Command {
	var recipient string
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write the whole fleet into one encrypted file",
		Long: `Backup writes keys, configuration and inventory as they are at one moment into one
file, encrypted with age: with the passphrase of the CA keys, or for --recipient,
which asks for no passphrase. What has been written is read back and checked.

A copy of inventory.db made in another way while imprint runs is damaged more often
than not.`,
		Example: `  imprint backup /backup/acme-2026-11-20.age
  imprint backup /backup/acme.age --recipient age1...`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if recipient != "" {
				if _, err := parseRecipient(recipient); err != nil {
					return err // before the fleet is opened
				}
			}
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			to, err := f.backupRecipient(cmd.Context(), recipient)
			if err != nil {
				return err
			}
			return f.backup(cmd.Context(), args[0], to)
		},
	}
	cmd.Flags().StringVar(&recipient, "recipient", "", "age `key` (age1...) that can open the backup")
	return cmd
}

func (f *fleet) backupRecipient(ctx context.Context, text string) (age.Recipient, error) {
	if text != "" {
		return parseRecipient(text)
	}
	p, err := f.knownPassphrase(ctx)
	if err != nil {
		return nil, err
	}
	return age.NewScryptRecipient(string(p))
}

func (f *fleet) backup(ctx context.Context, file string, to age.Recipient) (err error) {
	out, err := createOut(file, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.close()) }()
	work, err := f.dir.Mkdir(backupWork)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, work.Close(), f.dir.RemoveAll(backupWork)) }()
	report, err := f.backupInventory(ctx, work)
	if err != nil {
		return err
	}
	sealed, err := age.Encrypt(out, to)
	if err != nil {
		return fmt.Errorf("encrypting backup: %w", err)
	}
	if err := f.archive(sealed, work); err != nil {
		return err
	}
	if err := sealed.Close(); err != nil {
		return fmt.Errorf("encrypting backup: %w", err)
	}
	if err := out.Commit(); err != nil {
		return err
	}
	return f.app.print(map[string]any{"file": file, "revision": report.Revision, "devices": report.Devices, "head": fmt.Sprintf("%d:%s", report.Revision, report.Head)}, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "%d devices at revision %d in %s, read back and checked; head %d:%s\n", report.Devices, report.Revision, file, report.Revision, report.Head)
	})
}

// backupWork is where the inventory waits, in the clear beside itself, for its
// length to be known.
const backupWork = "backup.tmp"

// backupInventory writes the inventory into work and checks what it has written.
func (f *fleet) backupInventory(ctx context.Context, work *durable.Dir) (boltstore.Report, error) {
	out, err := work.Create(backupInventory, 0o600)
	if err != nil {
		return boltstore.Report{}, err
	}
	defer out.Abort()
	if err := f.store.Backup(ctx, out); err != nil {
		return boltstore.Report{}, err
	}
	if err := out.Commit(); err != nil {
		return boltstore.Report{}, err
	}
	in, err := work.Open(backupInventory)
	if err != nil {
		return boltstore.Report{}, err
	}
	defer func() { _ = in.Close() }()
	cfg := f.storeConfig
	cfg.Dir = work
	report, err := boltstore.Verify(ctx, in, cfg)
	if err == nil && len(report.Faults) > 0 {
		err = fmt.Errorf("%d faults, the first: %s: %w", len(report.Faults), report.Faults[0], inventory.ErrCorrupt)
	}
	return report, err
}

// archive writes the tar: every file of the fleet directory but those of the
// store, then the inventory.
func (f *fleet) archive(w io.Writer, work *durable.Dir) error {
	tw := tar.NewWriter(w)
	err := fs.WalkDir(f.dir.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !inBackup(name, d) {
			if d != nil && d.IsDir() && name != "." && err == nil {
				return fs.SkipDir
			}
			return err
		}
		if d.IsDir() {
			return nil
		}
		return addFile(tw, f.dir, name, name)
	})
	if err == nil {
		err = addFile(tw, work, backupInventory, backupInventory)
	}
	if err := errors.Join(err, tw.Close()); err != nil {
		return fmt.Errorf("writing backup: %w", err)
	}
	return nil
}

// inBackup says what a backup holds besides the inventory.
func inBackup(name string, d fs.DirEntry) bool {
	top, _, _ := strings.Cut(name, "/")
	switch top {
	case ".", keysDir, rootDir, nodesDir, crlDir:
		return d.IsDir() || d.Type().IsRegular() && !strings.HasSuffix(name, ".tmp")
	}
	return name == configFile
}

func addFile(tw *tar.Writer, dir *durable.Dir, name, as string) error {
	in, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := tw.WriteHeader(&tar.Header{Name: as, Mode: int64(info.Mode().Perm()), Size: info.Size(), ModTime: info.ModTime().Truncate(time.Second)}); err != nil {
		return err
	}
	_, err = io.Copy(tw, in)
	return err
}

// A backupError is a file that is no backup, or a damaged one.
type backupError struct{ why string }

func (e backupError) Error() string { return "the backup cannot be read: " + e.why }

func newRestoreCommand(a *app) *cobra.Command {
	var identity string
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a backup in the place of the fleet, or of its inventory",
		Long: `Restore reads a file that backup has written.

If the fleet directory is not there, all of it is made from the backup. If it is
there, and is the same fleet, only its inventory is replaced: keys and
configuration stay, and so does what its journal knows. What was revoked after the
backup stays revoked, and CRL numbers go on where they were. The inventory that was
there is kept as inventory.db.before-restore.`,
		Example: `  imprint restore /backup/acme-2026-11-20.age
  imprint --fleet /srv/acme restore /backup/acme.age --identity key.txt`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runRestore(cmd.Context(), args[0], identity)
		},
	}
	cmd.Flags().StringVar(&identity, "identity", "", "`file` with the age key that opens the backup")
	return cmd
}

func (a *app) backupIdentity(file string) (age.Identity, error) {
	if file == "" {
		p, err := a.askPassphrase()
		if err != nil {
			return nil, err
		}
		return age.NewScryptIdentity(string(p))
	}
	text, err := a.readIn(file, maxPEM)
	if err != nil {
		return nil, err
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "AGE-SECRET-KEY-") {
			id, err := age.ParseX25519Identity(line)
			if err != nil {
				return nil, configErrorf("identity file %s: its key cannot be read", file)
			}
			return id, nil
		}
	}
	return nil, configErrorf("identity file %s: it has no age key", file)
}

func (a *app) runRestore(ctx context.Context, file, identityFile string) (err error) {
	in, err := os.Open(file)
	if err != nil {
		return fileError(file, err)
	}
	defer func() { _ = in.Close() }()
	id, err := a.backupIdentity(identityFile)
	if err != nil {
		return err
	}
	plain, err := age.Decrypt(in, id)
	if err != nil {
		_, other := errors.AsType[*age.NoIdentityMatchError](err)
		switch {
		case other && identityFile != "":
			return fmt.Errorf("opening %s: it is not encrypted for the key in %s: %w", file, identityFile, ca.ErrKeyRefused)
		case other:
			return fmt.Errorf("opening %s: %w", file, ca.ErrPassphrase)
		}
		return backupError{"it is none, or its beginning is damaged"}
	}
	full, err := filepath.Abs(a.dir)
	if err != nil {
		return err
	}
	defer tidyOut(filepath.Dir(full))()
	parent, err := durable.CreateDir(filepath.Dir(full))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parent.Close()) }()
	tmp := "." + filepath.Base(full) + ".restore"
	if err := parent.RemoveAll(tmp); err != nil { // of a restore that was interrupted
		return err
	}
	stage, err := parent.Mkdir(tmp)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stage.Close(), parent.RemoveAll(tmp)) }()
	if err := unpack(stage, tar.NewReader(plain)); err != nil {
		return err
	}
	if _, err := parent.Stat(filepath.Base(full)); errors.Is(err, fs.ErrNotExist) {
		return a.restoreAll(ctx, parent, stage, tmp, filepath.Base(full))
	}
	return a.restoreInventory(ctx, stage)
}

// unpack writes the files of a backup into a directory. A name that leads out of
// it, a link, or anything else that backup does not write is refused.
func unpack(to *durable.Dir, in *tar.Reader) error {
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return backupError{"it is damaged, or was cut off"}
		}
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(h.Name) || path.Clean(h.Name) != h.Name || h.Name != backupInventory && h.Size > maxBackupFile {
			return backupError{fmt.Sprintf("%.128q does not belong into one", h.Name)}
		}
		if err := unpackFile(to, h, in); err != nil {
			return err
		}
	}
}

func unpackFile(to *durable.Dir, h *tar.Header, in io.Reader) error {
	for at, c := range h.Name {
		if c != '/' {
			continue
		}
		sub, err := to.Mkdir(h.Name[:at])
		if err != nil {
			return err
		}
		if err := sub.Close(); err != nil {
			return err
		}
	}
	out, err := to.Create(h.Name, fs.FileMode(h.Mode)&0o644)
	if err != nil {
		return err
	}
	defer out.Abort()
	if _, err := io.Copy(out, in); err != nil {
		if is[*fs.PathError](err) { // of the file that is written
			return err
		}
		return backupError{"it is damaged, or was cut off"}
	}
	return out.Commit()
}

// restoreAll makes the fleet directory of the unpacked backup.
func (a *app) restoreAll(ctx context.Context, parent, stage *durable.Dir, tmp, name string) error {
	cfg, instance, err := loadConfig(stage)
	if err != nil {
		return err
	}
	keys, err := stage.Sub(keysDir)
	if err != nil {
		return err
	}
	key, err := readStoreKey(keys)
	if err = errors.Join(err, keys.Close()); err != nil {
		return err
	}
	if err := restoreStore(ctx, stage, stage, boltstore.Config{Dir: stage, Instance: instance, Key: key}); err != nil {
		return err
	}
	if err := parent.Swap(tmp, name); err != nil {
		return err
	}
	a.warn("what was revoked after the backup was made is unknown here: revoke it again, then run imprint ca crl and imprint export")
	return a.reportRestore(ctx, cfg.Name)
}

// restoreInventory replaces the inventory of the fleet that is there.
func (a *app) restoreInventory(ctx context.Context, stage *durable.Dir) error {
	dir, err := durable.OpenDir(a.dir)
	if err != nil {
		return configErrorf("no fleet: %w", err)
	}
	defer func() { _ = dir.Close() }()
	cfg, instance, err := loadConfig(dir)
	if err != nil {
		return err
	}
	keys, err := dir.Sub(keysDir)
	if err != nil {
		return configError{err}
	}
	defer func() { _ = keys.Close() }()
	key, err := readStoreKey(keys)
	if err != nil {
		return err
	}
	if err := restoreStore(ctx, stage, dir, boltstore.Config{Dir: dir, Instance: instance, Key: key}); err != nil {
		return err
	}
	return a.reportRestore(ctx, cfg.Name)
}

func restoreStore(ctx context.Context, stage, dir *durable.Dir, cfg boltstore.Config) error {
	in, err := stage.Open(backupInventory)
	if err != nil {
		return backupError{"it holds no inventory"}
	}
	err = boltstore.Restore(ctx, in, cfg)
	if err = errors.Join(err, in.Close()); err != nil || stage != dir {
		return err
	}
	return stage.Remove(backupInventory)
}

func (a *app) reportRestore(ctx context.Context, name string) error {
	f, err := a.openFleet(ctx) // for writing: what the journal knows is applied
	if err != nil {
		return err
	}
	defer f.Close()
	report, err := f.store.Check(ctx)
	if err != nil {
		return err
	}
	return a.print(map[string]any{"fleet": f.dir.Path(), "revision": report.Revision, "devices": report.Devices}, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "fleet %s restored: %d devices at revision %d; sign CRLs and export next\n", name, report.Devices, report.Revision)
	})
}

func newCheckCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Read everything in the inventory and prove that it is right",
		Long: `Check reads every record and index, the audit log and the journal, and compares
each certificate with what is noted of it. The exit code is 74 if anything is wrong.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.readFleet(cmd.Context())
			if err != nil {
				return err
			}
			defer f.Close()
			report, err := f.store.Check(cmd.Context())
			if err != nil {
				return err
			}
			return errors.Join(a.printCheck(report), checkError(report))
		},
	}
}

func checkError(r boltstore.Report) error {
	if len(r.Faults) == 0 {
		return nil
	}
	return fmt.Errorf("%d faults: %w", len(r.Faults), inventory.ErrCorrupt)
}

func (a *app) printCheck(r boltstore.Report) error {
	faults := []string{}
	for _, x := range r.Faults {
		faults = append(faults, x.String())
	}
	v := map[string]any{
		"revision": r.Revision, "head": fmt.Sprintf("%d:%s", r.Revision, r.Head), "devices": r.Devices, "credentials": r.Credentials,
		"revocations": r.Revocations, "events": r.Events, "faults": faults, "truncated": r.Truncated,
	}
	return a.print(v, func(w io.Writer) {
		for _, x := range faults {
			_, _ = fmt.Fprintln(w, printable(x))
		}
		if len(faults) == 0 {
			_, _ = fmt.Fprintf(w, "%d devices, %d credentials, %d revocations, %d audit entries: all right; head %d:%s\n", r.Devices, r.Credentials, r.Revocations, r.Events, r.Revision, r.Head)
		}
	})
}
