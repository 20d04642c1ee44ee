package inventory

import (
	"fmt"
	"log/slog"
)

// A Secret is a password or another text that must not be seen. Whatever prints
// it, marshals it or logs it gets "[redacted]"; only [Secret.Reveal] gives it
// away. Secrets cannot be compared with ==.
type Secret struct {
	_     [0]func() // not comparable
	value *[]byte   // fmt looks into fields without asking them, but follows no pointer
}

const redacted = "[redacted]"

// NewSecret takes over b: the caller keeps no other reference.
func NewSecret(b []byte) Secret { return Secret{value: &b} }

// Reveal returns the secret itself. The caller must not keep it longer than it
// is needed, and may not change it.
func (s Secret) Reveal() []byte {
	if s.value == nil {
		return nil
	}
	return *s.value
}

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return len(s.Reveal()) == 0 }

// Wipe overwrites the secret with zeros. Copies that the runtime made while
// moving memory are out of reach.
func (s Secret) Wipe() { clear(s.Reveal()) }

// String implements [fmt.Stringer].
func (s Secret) String() string { return redacted }

// Format implements [fmt.Formatter], so that no verb reaches the bytes.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText implements [encoding.TextMarshaler], for JSON and YAML as well.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue implements [slog.LogValuer].
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
