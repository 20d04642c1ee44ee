package mosquitto

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"crypto/pbkdf2"
	"crypto/sha512"
	"os"

	"github.com/imprint-iot/imprint/inventory"
)

// ascending returns the octets 0, 1, ... n-1.
func ascending(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// vectors are lines that mosquitto_passwd and the brokers agree on, for the
// password "correct horse".
var vectors = []struct {
	name, text string
	iterations uint32 // 0: $6$
	salt       int
	only21     bool
}{
	{"$6$", "$6$AAECAwQFBgcICQoL$5W8GCQ9GLgmhmQvoa8jmRaPnsh82mRigdSv6mQsK0sMIII/WznlQb1g+RWddfoAKTMzBJP1deJU+Rp/1QZ0zZg==", 0, 12, false},
	{"$7$ 101", "$7$101$AAECAwQFBgcICQoL$lp0Cm29zl+CI/RXyXDKvLye7OxM3OuE6RMzgXTX/f3imS/pFh2Ur7yarLDpKRUKpB0tOj6l0UrRv41zqxmD4tg==", 101, 12, false},
	{"$7$ 210000", "$7$210000$AAECAwQFBgcICQoL$XTOHkx2V0BX2iXoJ5H75wzr57p8LjIHHZOnuT1agThSpMUeJ4pHDa7H+u+D32LAkw0ukf2y3sNzY/GlS7B44vw==", 210000, 12, false},
	{"$7$ salt of 64", "$7$1000$AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw==$53KiEygVzVVEVUVTe4h79yMtYp0OxxoKFip82vf7OCrEbcm4/E88oGkCyN0NhQ7fLOSBIpiITuELG/0ldDPFMQ==", 1000, 64, true},
}

func TestVerifierVectors(t *testing.T) {
	const password = "correct horse"
	for _, tt := range vectors {
		t.Run(tt.name, func(t *testing.T) {
			v := inventory.Verifier{Scheme: inventory.SHA512Suffix, Salt: ascending(tt.salt)}
			if tt.iterations > 0 {
				v.Scheme, v.Iterations = inventory.PBKDF2SHA512, tt.iterations
				var err error
				if v.Hash, err = pbkdf2.Key(sha512.New, password, v.Salt, int(tt.iterations), 64); err != nil {
					t.Fatal(err)
				}
			} else {
				sum := sha512.Sum512(append([]byte(password), v.Salt...))
				v.Hash = sum[:]
			}
			if got := string(appendVerifier(nil, v)); got != tt.text {
				t.Errorf("got  %s\nwant %s", got, tt.text)
			}
			got, err := parseVerifier([]byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if got.Scheme != v.Scheme || got.Iterations != v.Iterations || !bytes.Equal(got.Salt, v.Salt) || !bytes.Equal(got.Hash, v.Hash) {
				t.Errorf("parsed %+v, want %+v", got, v)
			}
			if readable(v, V20) == tt.only21 || !readable(v, V21) {
				t.Errorf("readable by 2.0: %t, by 2.1: %t", readable(v, V20), readable(v, V21))
			}
		})
	}
}

func TestPick(t *testing.T) {
	hash := make([]byte, 64)
	v := func(s inventory.Scheme, iterations uint32, salt int) inventory.Verifier {
		return inventory.Verifier{Scheme: s, Iterations: iterations, Salt: make([]byte, salt), Hash: hash}
	}
	for _, tt := range []struct {
		name    string
		have    []inventory.Verifier
		version string
		want    inventory.Scheme // 0: none
	}{
		{"none", nil, V20, 0},
		{"best first", []inventory.Verifier{v(inventory.SHA512Suffix, 0, 12), v(inventory.PBKDF2SHA512, 101, 12)}, V20, inventory.PBKDF2SHA512},
		{"fallback", []inventory.Verifier{v(inventory.SHA256Suffix, 0, 12), v(inventory.SHA512Suffix, 0, 12)}, V20, inventory.SHA512Suffix},
		{"salt of 16", []inventory.Verifier{v(inventory.PBKDF2SHA512, 101, 16)}, V21, 0},
		{"salt of 64 on 2.0", []inventory.Verifier{v(inventory.PBKDF2SHA512, 101, 64)}, V20, 0},
		{"salt of 64 on 2.1", []inventory.Verifier{v(inventory.PBKDF2SHA512, 101, 64)}, V21, inventory.PBKDF2SHA512},
		{"salt of 64, then fallback", []inventory.Verifier{v(inventory.PBKDF2SHA512, 101, 64), v(inventory.SHA512Suffix, 0, 12)}, V20, inventory.SHA512Suffix},
		{"no iterations", []inventory.Verifier{v(inventory.PBKDF2SHA512, 0, 12)}, V20, 0},
		{"short hash", []inventory.Verifier{{Scheme: inventory.PBKDF2SHA512, Iterations: 1, Salt: make([]byte, 12), Hash: hash[:32]}}, V20, 0},
		{"bcrypt", []inventory.Verifier{{Scheme: inventory.Bcrypt, Hash: hash}}, V20, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := pick(tt.have, tt.version)
			if got.Scheme != tt.want || ok != (tt.want != 0) {
				t.Errorf("pick = %v, %t, want %v", got.Scheme, ok, tt.want)
			}
		})
	}
}

func TestReadPasswords(t *testing.T) {
	good := vectors[1].text
	for _, tt := range []struct {
		name, text string
		users      string // separated by spaces
		line       int    // of the error; 0: none
	}{
		{"empty", "", "", 0},
		{"comment and empty lines", "# x\n\n#\n", "", 0},
		{"two", "a:" + good + "\nb:" + vectors[0].text + "\n", "a b", 0},
		{"no final newline", "a:" + good, "a", 0},
		{"CRLF", "a:" + good + "\r\nb:" + good + "\r\n", "a b", 0},
		{"twice", "a:" + good + "\na:" + good + "\n", "a a", 0}, // refused by Parse
		{"admin", "imprint-admin:" + good, "imprint-admin", 0},
		{"no colon", "a\n", "", 1},
		{"plain password", "a:secret\n", "", 1},
		{"empty user", ":" + good, "", 1},
		{"empty hash", "a:", "", 1},
		{"space before #", "a:" + good + "\n #u:" + good, "a", 2},
		{"space around the name", "a :" + good, "", 1},
		{"third field", "a:" + good + ":x", "", 1},
		{"byte order mark", "\ufeffa:" + good, "", 1},
		{"NUL", "a:" + good + "\nb\x00:" + good, "a", 2},
		{"CR inside", "a:" + strings.Replace(good, "$lp", "$\rlp", 1), "", 1},
		{"unpadded", "a:" + strings.TrimRight(good, "="), "", 1},
		{"iterations 0", "a:" + strings.Replace(good, "$101$", "$0$", 1), "", 1},
		{"iterations 0101", "a:" + strings.Replace(good, "$101$", "$0101$", 1), "", 1},
		{"iterations -1", "a:" + strings.Replace(good, "$101$", "$-1$", 1), "", 1},
		{"iterations +1", "a:" + strings.Replace(good, "$101$", "$+1$", 1), "", 1},
		{"iterations of a week", "a:" + strings.Replace(good, "$101$", "$4000000000$", 1), "", 1},
		{"salt of 16", "a:" + strings.Replace(good, "AAECAwQFBgcICQoL", "AAECAwQFBgcICQoLDA0ODw==", 1), "", 1},
		{"argon2id", "a:$argon2id$v=19$m=47104,t=1,p=1$AAECAwQFBgcICQoLDA0ODw$xxuYwI+13bVHdUEt7P6fmkwDElhr3OQ1I9SEzZuLq9s", "", 1},
		{"name with colon in it", "a:b:" + good, "", 1},
		{"long line", "a:" + strings.Repeat("x", maxLine), "", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var users []string
			line := 0
			for p, err := range readPasswords(strings.NewReader(tt.text)) {
				if err != nil {
					line = lineOf(t, err)
					break
				}
				users = append(users, p.user)
			}
			if got := strings.Join(users, " "); got != tt.users || line != tt.line {
				t.Errorf("users %q, error in line %d; want %q, %d", got, line, tt.users, tt.line)
			}
		})
	}
}

func lineOf(t *testing.T, err error) int {
	t.Helper()
	e, ok := asLineError(err)
	if !ok {
		t.Fatalf("%v is not a lineError", err)
	}
	if len(err.Error()) > 500 {
		t.Errorf("the error is %d bytes long", len(err.Error()))
	}
	return e.line
}

// brk-015: what mosquitto_passwd writes is read, and what we write mosquitto_passwd
// can work on: it adds a user and leaves ours alone.
func TestMosquittoPasswd(t *testing.T) {
	tool, err := exec.LookPath("mosquitto_passwd")
	if err != nil {
		t.Fatal("mosquitto_passwd is not installed: apt-get install mosquitto")
	}
	file := filepath.Join(t.TempDir(), "passwd")
	ours := "dev-1:" + vectors[1].text + "\n"
	if err := os.WriteFile(file, []byte(ours), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool, "-b", file, "dev-2", "battery staple").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(text), ours) {
		t.Errorf("our line has changed: %s", text)
	}
	for p, err := range readPasswords(bytes.NewReader(text)) {
		if err != nil {
			t.Fatal(err)
		}
		if p.user != "dev-2" {
			continue
		}
		want, err := pbkdf2.Key(sha512.New, "battery staple", p.verifier.Salt, int(p.verifier.Iterations), 64)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p.verifier.Hash, want) {
			t.Error("the hash of mosquitto_passwd is not read as PBKDF2")
		}
		return
	}
	t.Error("dev-2 is not in the file")
}

func FuzzReadPasswords(f *testing.F) {
	for _, v := range vectors {
		f.Add([]byte("dev-1:" + v.text + "\n# x\ndev-2:" + v.text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for p, err := range readPasswords(bytes.NewReader(text)) {
			if err != nil {
				return
			}
			line := appendPassword(nil, p.user, p.verifier)
			if !bytes.Contains(text, bytes.TrimSuffix(line, []byte("\n"))) {
				t.Errorf("%q reads as %q, which is not in it", text, line)
			}
		}
	})
}
