package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/term"

	"github.com/imprint-iot/imprint/inventory/durable"
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

// passphraseFrom reads the first line of a file.
func passphraseFrom(path string) ([]byte, error) {
	dir, err := durable.OpenDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("reading passphrase: %w", err)
	}
	defer func() { _ = dir.Close() }()
	b, err := dir.ReadFile(filepath.Base(path), maxPassphrase)
	if err != nil {
		return nil, fmt.Errorf("reading passphrase: %w", err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 {
		return nil, configErrorf("passphrase file %s: its first line is empty", path)
	}
	return line, nil
}
