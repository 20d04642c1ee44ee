package main

import (
	"context"
	"crypto"
	"errors"
	"io/fs"
	"path/filepath"
)

// Files of the key that signs tokens for brokers, in keys. Whoever has the private one
// can log in to those brokers as any device.
const (
	tokenKeyFile    = "mqtt-token.key"     //nolint:gosec // a name; PKCS #8, not encrypted, like the key of exports
	tokenPublicFile = "mqtt-token.pub.pem" //nolint:gosec // a name
)

// tokenSigner returns what opens the key of tokens, or nil if the fleet makes none.
func (f *fleet) tokenSigner() func(context.Context) (crypto.Signer, error) {
	if !f.cfg.Server.MQTTTokens {
		return nil
	}
	return func(context.Context) (crypto.Signer, error) { return f.tokenKey() }
}

// tokenKey opens the key that signs tokens. A fleet that has none gets one.
func (f *fleet) tokenKey() (crypto.Signer, error) {
	path := filepath.Join(f.keys.Path(), tokenKeyFile)
	info, err := f.keys.Stat(tokenKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeSigningKey(f.keys, tokenKeyFile, tokenPublicFile); err != nil {
			return nil, err
		}
		info, err = f.keys.Stat(tokenKeyFile)
	}
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, configErrorf("%s can be read by others: chmod 600 it", path)
	}
	text, err := f.keys.ReadFile(tokenKeyFile, maxPEM)
	if err != nil {
		return nil, err
	}
	signer, err := parseKey(text)
	if err != nil {
		return nil, configErrorf("%s: %w", path, err)
	}
	return signer, nil
}
