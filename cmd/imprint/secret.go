package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/term"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/inventory"
)

// credentialName is the name of the passphrase among the credentials that systemd
// hands a service (systemd.exec(5), LoadCredential=).
const credentialName = "imprint-passphrase"

// minPassphrase is the shortest passphrase for new keys, in bytes.
const minPassphrase = 12

// askPassphrase returns the passphrase of the CA keys: from --passphrase-file,
// from $CREDENTIALS_DIRECTORY, or from whoever sits at the terminal. It is asked
// for once. The caller gets a copy and may overwrite it.
//
// It is never taken from an argument or an environment variable: other users of
// the machine can read those.
func (a *app) askPassphrase() ([]byte, error) {
	if a.passphrase == nil {
		p, err := a.readPassphrase(false)
		if err != nil {
			return nil, err
		}
		a.passphrase = p
	}
	return bytes.Clone(a.passphrase), nil
}

// newPassphrase is askPassphrase for keys that are about to be made: it asks
// twice and refuses a short one.
func (a *app) newPassphrase() ([]byte, error) {
	if a.passphrase == nil {
		p, err := a.readPassphrase(true)
		if err != nil {
			return nil, err
		}
		if len(p) < minPassphrase {
			return nil, configErrorf("passphrase: want at least %d characters", minPassphrase)
		}
		a.passphrase = p
	}
	return bytes.Clone(a.passphrase), nil
}

func (a *app) readPassphrase(twice bool) ([]byte, error) {
	if a.passphraseFile != "" {
		return passphraseFrom(a.passphraseFile)
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		p, err := passphraseFrom(filepath.Join(dir, credentialName))
		if !errors.Is(err, fs.ErrNotExist) {
			return p, err
		}
	}
	f, ok := a.in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, configErrorf("the CA keys need a passphrase: give --passphrase-file, or a credential named %s, or run on a terminal", credentialName)
	}
	p, err := a.prompt(f, "Passphrase of the CA keys: ")
	if err != nil || !twice {
		return p, err
	}
	again, err := a.prompt(f, "Once more: ")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(p, again) {
		return nil, usageErrorf("the two passphrases differ")
	}
	return p, nil
}

func (a *app) prompt(f *os.File, text string) ([]byte, error) {
	_, _ = fmt.Fprint(a.err, text)
	p, err := term.ReadPassword(int(f.Fd()))
	_, _ = fmt.Fprintln(a.err)
	if err != nil {
		return nil, fmt.Errorf("reading passphrase: %w", err)
	}
	return p, nil
}

// maxPassphrase is the longest file a passphrase is read from, in bytes.
const maxPassphrase = 1024

// passphraseFrom reads the first line of a file. One that cannot be read is a wrong
// configuration.
func passphraseFrom(path string) ([]byte, error) {
	b, err := readFile(path, maxPassphrase)
	if err != nil {
		return nil, configErrorf("passphrase file %w", err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 {
		return nil, configErrorf("passphrase file %s: its first line is empty", path)
	}
	return line, nil
}

// knownPassphrase is the passphrase that opens the keys of the fleet's issuers: what
// is encrypted with it can be opened later. A fleet that keeps no such key, as one
// with a token, gets a new one.
func (f *fleet) knownPassphrase(ctx context.Context) ([]byte, error) {
	issuers, err := f.issuers(ctx)
	if err != nil {
		return nil, err
	}
	for _, iss := range issuers {
		file, ok := strings.CutPrefix(iss.Key, relativeKey)
		if !ok || iss.State == inventory.IssuerPending.String() {
			continue
		}
		if _, err := f.dir.Stat(file); errors.Is(err, fs.ErrNotExist) {
			continue // as the root's, which is kept offline
		}
		key, err := ca.OpenKey(ctx, f.keyURI(iss.Key), f.app.askPassphrase)
		if err != nil {
			return nil, err
		}
		if err := key.Close(); err != nil {
			return nil, err
		}
		return f.app.askPassphrase()
	}
	return f.app.newPassphrase()
}
