package server

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"

	"github.com/imprint-iot/imprint/enroll/api"
)

// cursors seals where a list goes on, so that a cursor is one that was given out,
// for the same list. The key is made at start: a list that is read across a
// restart is read again.
type cursors struct{ key [32]byte }

func newCursors() *cursors {
	c := &cursors{}
	_, _ = rand.Read(c.key[:]) // never fails
	return c
}

const cursorMAC = 16 // octets

func (c *cursors) mac(list, at string) []byte {
	m := hmac.New(sha256.New, c.key[:])
	m.Write([]byte(list + "\x00" + at))
	return m.Sum(nil)[:cursorMAC]
}

func (c *cursors) seal(list, at string) string {
	return base64.RawURLEncoding.EncodeToString(append(c.mac(list, at), at...))
}

func (c *cursors) open(list, text string) (string, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) <= cursorMAC || !hmac.Equal(b[:cursorMAC], c.mac(list, string(b[cursorMAC:]))) {
		return "", problemf(api.CodeCursor, "")
	}
	return string(b[cursorMAC:]), nil
}
