package emqx

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// imprint-users.csv has a line for each user (emqx_authn_mnesia:import_users):
//
//	user_id,password_hash,salt,is_superuser
//	NAME,HEX,SALT,false      HEX = SHA-256(password, salt), the salt as text
//
// The reader splits at commas and knows no quotes: a comma too many would shift "true"
// into the last column, and a superuser is held to no rule. So every field is of
// letters that cannot do that.
const (
	usersHead = "user_id,password_hash,salt,is_superuser\n"
	userTail  = ",false"
	maxLine   = 1 << 22 // bytes: a device has up to 64 filters of up to 65,535
)

// pick returns the verifier that EMQX reads with salt_position = suffix.
func pick(verifiers []inventory.Verifier) (inventory.Verifier, bool) {
	i := slices.IndexFunc(verifiers, isSHA256)
	if i < 0 {
		return inventory.Verifier{}, false
	}
	return verifiers[i], true
}

func isSHA256(v inventory.Verifier) bool {
	return v.Scheme == inventory.SHA256Suffix && len(v.Hash) == sha256.Size && isSalt(string(v.Salt))
}

// isSalt reports whether a salt is text of letters that no format of EMQX gives a
// meaning to.
func isSalt(s string) bool {
	return s != "" && len(s) <= 128 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
}

func appendUser(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	if len(e.Verifiers) == 0 {
		return b, nil
	}
	v := e.Verifiers[0]
	b = append(b, e.ID...)
	b = append(b, ',')
	b = hex.AppendEncode(b, v.Hash)
	b = append(b, ',')
	b = append(b, v.Salt...)
	return append(b, userTail+"\n"...), nil
}

// A lineError reports a line of a file that imprint does not write.
type lineError struct {
	file string
	line int
	why  string
}

func (e *lineError) Error() string {
	return fmt.Sprintf("reading %s: line %d: %s", e.file, e.line, e.why)
}

const notOurs = "it is not what imprint writes"

// readUsers yields the names and verifiers of imprint-users.csv.
func readUsers(src fs.FS) iter.Seq2[templates.Entry, error] {
	return func(yield func(templates.Entry, error) bool) {
		n := 0
		for text, err := range templates.Lines(src, UsersName, maxLine) {
			n++
			var e templates.Entry
			switch {
			case err != nil:
			case n == 1:
				if string(text)+"\n" == usersHead {
					continue
				}
				err = &lineError{UsersName, n, notOurs}
			default:
				e, err = parseUser(text, n)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
		if n == 0 {
			yield(templates.Entry{}, &lineError{UsersName, 1, "the names of the columns are missing"})
		}
	}
}

func parseUser(text []byte, n int) (templates.Entry, error) {
	f := strings.Split(string(text), ",")
	if len(f) != 4 || f[3] != "false" {
		return templates.Entry{}, &lineError{UsersName, n, "want four columns, the last one false"}
	}
	id, err := inventory.ParseDeviceID(f[0])
	if err != nil {
		return templates.Entry{}, &lineError{UsersName, n, err.Error()}
	}
	v, ok := verifier(f[1], f[2])
	if !ok {
		return templates.Entry{}, &lineError{UsersName, n, "want a hash of 64 lower-case hexadecimal digits, and a salt of letters and digits"}
	}
	return templates.Entry{ID: id, Verifiers: []inventory.Verifier{v}}, nil
}

// verifier reads a hash and a salt as they are written.
func verifier(hash, salt string) (inventory.Verifier, bool) {
	sum, err := hex.DecodeString(hash)
	v := inventory.Verifier{Scheme: inventory.SHA256Suffix, Salt: []byte(salt), Hash: sum}
	return v, err == nil && isSHA256(v) && hex.EncodeToString(sum) == hash
}

// withUsers yields the devices of a list of rules with their passwords, both files side
// by side.
func withUsers(src fs.FS, rules iter.Seq2[templates.Entry, error]) iter.Seq2[templates.Entry, error] {
	return templates.WithPasswords(rules, readUsers(src), UsersName)
}
