package mosquitto

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// A password file has one line for each user, "name:$TYPE$...":
//
//	$7$ITERATIONS$SALT$HASH   PBKDF2-HMAC-SHA512, 64 octets
//	$6$SALT$HASH              SHA-512 of password and salt
//
// with salt and hash in padded base64. Both versions read a salt of 12 octets;
// 2.1 reads one of 64 as well (mosquitto_passwd(1); src/security_default.c of
// 2.0, plugins/password-file of 2.1).
const (
	hashSize     = 64
	saltSize     = 12
	saltSize21   = 64
	maxLine      = 1 << 18 // bytes: a filter has at most 65,535
	maxIteration = 10_000_000
)

var b64 = base64.StdEncoding.Strict()

// readable reports whether a broker of this version can check v.
func readable(v inventory.Verifier, version string) bool {
	if len(v.Hash) != hashSize || len(v.Salt) != saltSize && (version != V21 || len(v.Salt) != saltSize21) {
		return false
	}
	switch v.Scheme {
	case inventory.PBKDF2SHA512:
		return v.Iterations > 0 && v.Iterations <= maxIteration
	case inventory.SHA512Suffix:
		return true
	default:
		return false
	}
}

// pick returns the best verifier that the broker can read.
func pick(verifiers []inventory.Verifier, version string) (inventory.Verifier, bool) {
	for _, s := range []inventory.Scheme{inventory.PBKDF2SHA512, inventory.SHA512Suffix} {
		for _, v := range verifiers {
			if v.Scheme == s && readable(v, version) {
				return v, true
			}
		}
	}
	return inventory.Verifier{}, false
}

// appendVerifier appends the form of a password file.
func appendVerifier(b []byte, v inventory.Verifier) []byte {
	if v.Scheme == inventory.PBKDF2SHA512 {
		b = append(b, "$7$"...)
		b = strconv.AppendUint(b, uint64(v.Iterations), 10)
		b = append(b, '$')
	} else {
		b = append(b, "$6$"...)
	}
	b = b64.AppendEncode(b, v.Salt)
	b = append(b, '$')
	return b64.AppendEncode(b, v.Hash)
}

var errVerifier = errors.New("want $7$ITERATIONS$SALT$HASH or $6$SALT$HASH with a salt of 12 octets (2.1: or 64), in padded base64")

// parseVerifier reads what appendVerifier writes. It accepts what both versions
// decode: a line that 2.0 drops and 2.1 refuses to start with is an error.
func parseVerifier(text []byte) (inventory.Verifier, error) {
	v := inventory.Verifier{Scheme: inventory.SHA512Suffix}
	rest, ok := bytes.CutPrefix(text, []byte("$6$"))
	if !ok {
		if rest, ok = bytes.CutPrefix(text, []byte("$7$")); !ok {
			return v, errVerifier
		}
		var iterations []byte
		if iterations, rest, ok = bytes.Cut(rest, []byte("$")); !ok {
			return v, errVerifier
		}
		n, err := strconv.ParseUint(string(iterations), 10, 32)
		if err != nil || n == 0 || n > maxIteration || iterations[0] < '1' {
			return v, errVerifier
		}
		v.Scheme, v.Iterations = inventory.PBKDF2SHA512, uint32(n)
	}
	salt, hash, ok := bytes.Cut(rest, []byte("$"))
	if !ok || bytes.ContainsAny(rest, "\r\n") { // base64 would skip line ends
		return v, errVerifier
	}
	both := make([]byte, 0, 2*hashSize)
	both, err := b64.AppendDecode(both, salt)
	if err != nil {
		return v, errVerifier
	}
	n := len(both)
	if both, err = b64.AppendDecode(both, hash); err != nil {
		return v, errVerifier
	}
	v.Salt, v.Hash = both[:n:n], both[n:]
	if !readable(v, V21) {
		return v, errVerifier
	}
	return v, nil
}

// A lineError reports a line of a file that is not in its grammar.
type lineError struct {
	line int
	why  string
}

func (e *lineError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.why) }

// A textLine is one line of a file, numbered from one, without its end. The text
// is valid until the next line.
type textLine struct {
	n    int
	text []byte
}

// lines yields the lines of a file. A NUL is an error: 2.0 stops reading there
// and says nothing.
func lines(r io.Reader) iter.Seq2[textLine, error] {
	return func(yield func(textLine, error) bool) {
		s := bufio.NewScanner(r)
		s.Buffer(make([]byte, 1<<14), maxLine)
		l := textLine{}
		for s.Scan() {
			l = textLine{l.n + 1, bytes.TrimSuffix(s.Bytes(), []byte("\r"))}
			if bytes.IndexByte(l.text, 0) >= 0 {
				yield(l, &lineError{l.n, "a NUL ends the file for Mosquitto 2.0"})
				return
			}
			if !yield(l, nil) {
				return
			}
		}
		if s.Err() != nil {
			yield(l, &lineError{l.n + 1, s.Err().Error()})
		}
	}
}

// A passwordLine is one user of a password file.
type passwordLine struct {
	user     string
	verifier inventory.Verifier
	line     int
}

// readPasswords yields the users of a password file in their order. It is as
// strict as the stricter of the two versions, and refuses what either of them
// skips in silence.
func readPasswords(r io.Reader) iter.Seq2[passwordLine, error] {
	return func(yield func(passwordLine, error) bool) {
		for l, err := range lines(r) {
			var p passwordLine
			if err == nil {
				p, err = parsePasswordLine(l)
			}
			if err == nil && p.user == "" {
				continue
			}
			if !yield(p, err) || err != nil {
				return
			}
		}
	}
}

// parsePasswordLine reads one line; a comment or an empty line has no user.
func parsePasswordLine(l textLine) (passwordLine, error) {
	if len(l.text) == 0 || l.text[0] == '#' {
		return passwordLine{}, nil
	}
	name, hash, ok := bytes.Cut(l.text, []byte(":"))
	if !ok {
		return passwordLine{}, &lineError{l.n, "want NAME:HASH"}
	}
	if err := checkUser(string(name)); err != nil {
		return passwordLine{}, &lineError{l.n, err.Error()}
	}
	v, err := parseVerifier(hash)
	if err != nil {
		return passwordLine{}, &lineError{l.n, err.Error()}
	}
	return passwordLine{string(name), v, l.n}, nil
}

// checkUser accepts the names that an export can have: device IDs and our own.
// All others mean something else to some part of Mosquitto.
func checkUser(name string) error {
	if name == templates.AdminName {
		return nil
	}
	_, err := inventory.ParseDeviceID(name)
	return err
}
