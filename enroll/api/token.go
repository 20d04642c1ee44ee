package api

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// TokenPrefix is what the text form of a token starts with, so that who finds one
// knows what it is.
const TokenPrefix = "imp_"

// tokenSize is the number of random octets in a token.
const tokenSize = 32

// ErrToken reports a text that is not a token.
var ErrToken = errors.New("not a token: want " + TokenPrefix + " and 43 characters")

// strict refuses what decodes to the same octets in another way.
var strict = base64.RawURLEncoding.Strict()

// A Token is a secret that buys an enrollment, or shows a role. Whatever prints it
// gets "[redacted]"; only [Token.Reveal] and [Token.Text] give it away.
type Token struct{ secret *[tokenSize]byte }

// ParseToken reads the text form: TokenPrefix and 43 characters of unpadded
// base64url. Nothing is trimmed. The error is ErrToken; it never quotes the text.
func ParseToken(text string) (Token, error) {
	rest, ok := strings.CutPrefix(text, TokenPrefix)
	if !ok || len(rest) != strict.EncodedLen(tokenSize) || strings.ContainsAny(rest, "\r\n") {
		return Token{}, ErrToken
	}
	b, err := strict.DecodeString(rest)
	if err != nil {
		return Token{}, ErrToken
	}
	t := Token{new([tokenSize]byte)}
	copy(t.secret[:], b)
	return t, nil
}

// TokenText returns the text form of the 32 octets of a token.
func TokenText(secret []byte) string { return TokenPrefix + strict.EncodeToString(secret) }

// Redact removes tokens from a text, wherever somebody has put them: into a path, a
// name, a body. It is for what is logged and for what is answered.
func Redact(text string) string {
	if !strings.Contains(text, TokenPrefix) {
		return text
	}
	parts := strings.Split(text, TokenPrefix)
	for i, p := range parts[1:] {
		end := strings.IndexFunc(p, func(r rune) bool { return !strings.ContainsRune(alphabet, r) })
		if end < 0 {
			end = len(p)
		}
		parts[i+1] = redacted + p[end:]
	}
	return strings.Join(parts, TokenPrefix)
}

// alphabet is that of base64url.
const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// Reveal returns the 32 octets.
func (t Token) Reveal() []byte {
	if t.secret == nil {
		return nil
	}
	return t.secret[:]
}

// Text returns the text form.
func (t Token) Text() string { return TokenText(t.Reveal()) }

// Hash is what a server keeps of a token: SHA-256 of the octets.
func (t Token) Hash() [sha256.Size]byte { return sha256.Sum256(t.Reveal()) }

const redacted = "[redacted]"

// Format implements [fmt.Formatter], so that no verb reaches the octets.
func (t Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// String implements [fmt.Stringer].
func (t Token) String() string { return redacted }

// LogValue implements [slog.LogValuer].
func (t Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements [encoding.TextMarshaler].
func (t Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }
