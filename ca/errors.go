package ca

import (
	"errors"
	"fmt"
)

// What a caller can do about a key or an issuer. They are wrapped with what was
// being done; compare with [errors.Is].
var (
	// ErrKeyUnavailable means that a private key could not be reached: the file
	// or the token is not there, or this build cannot speak to it.
	ErrKeyUnavailable = errors.New("private key is not available")

	// ErrPassphrase means that a key could not be opened with the passphrase or
	// PIN given. A damaged key file looks the same: PBES2 has no tag that would
	// tell the two apart. It is never retried here, because tokens lock.
	ErrPassphrase = errors.New("wrong passphrase, or the key is damaged")

	// ErrKeyRefused means that a key is there but must not be used as it is: its
	// file can be read by others, is a link, or was encrypted too cheaply.
	ErrKeyRefused = errors.New("private key refused")

	// ErrKeyExists means that a key was to be made where there is one. Nothing
	// was written.
	ErrKeyExists = errors.New("a key exists there already")

	// ErrExpired means that an issuer is outside its own validity: it signs no
	// certificates.
	ErrExpired = errors.New("issuer is outside its validity")

	// ErrSpent means that a draft was signed twice: a bug of the caller.
	ErrSpent = errors.New("draft has been signed already")
)

// A Reason says why a certification request was refused. Its text is API: it
// becomes a problem code.
type Reason string

// The reasons of a [RequestError].
const (
	Malformed        Reason = "malformed"         // not one strict DER request, or not one PEM block
	TooLarge         Reason = "too-large"         // above MaxRequestSize
	TooManyNames     Reason = "too-many-names"    // more than 8 subject alternative names
	KeyType          Reason = "key-type"          // an algorithm that the policy does not allow
	WeakKey          Reason = "weak-key"          // allowed by no policy
	BlockedKey       Reason = "blocked-key"       // on the caller's block list
	BadSignature     Reason = "bad-signature"     // no proof of possession
	WeakSignature    Reason = "weak-signature"    // proof made with MD5, SHA-1 and the like
	BadName          Reason = "bad-name"          // a name that two readers could read differently
	IdentityMismatch Reason = "identity-mismatch" // names somebody else
	PrivateKey       Reason = "private-key"       // a private key was sent: it is burnt
)

// A RequestError reports that a certification request did not pass the fence.
// Nothing was signed and nothing was stored.
type RequestError struct {
	Reason Reason
	Detail string // for the operator; of the request it holds a quoted name at most
}

func (e *RequestError) Error() string {
	return "certification request refused (" + string(e.Reason) + "): " + e.Detail
}

func refuse(r Reason, format string, args ...any) *RequestError {
	return &RequestError{Reason: r, Detail: fmt.Sprintf(format, args...)}
}

// A LintError reports that what was about to be signed is not what a
// certificate of imprint must be. Nothing was signed.
type LintError struct {
	Rule   string // short and stable, like "common-name"
	Detail string
}

func (e *LintError) Error() string {
	return "certificate not signed: rule " + e.Rule + ": " + e.Detail
}

func lintErr(rule, format string, args ...any) *LintError {
	return &LintError{Rule: rule, Detail: fmt.Sprintf(format, args...)}
}

// A ConfigError names the field at fault in a [Config], an [AuthorityConfig], a
// [CRLConfig] or a [Subject], and says what is wanted there.
type ConfigError struct {
	Field string // as a person writes it, like "crl-distribution-points"
	Value string // at most 128 bytes of what was written
	Want  string
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("%s %q: want %s", e.Field, e.Value, e.Want)
}

func badConfig(field, value, want string) *ConfigError {
	return &ConfigError{Field: field, Value: clip(value), Want: want}
}

// clip shortens s to what an error message may hold.
func clip(s string) string {
	if len(s) > 128 {
		return s[:128]
	}
	return s
}
