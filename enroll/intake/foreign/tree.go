package foreign

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Fences around what a source may cost.
const (
	maxDepth    = 4         // folders below the top
	maxEntries  = 500_000   // files and folders
	maxFile     = 256 << 20 // bytes of a file that is read as a stream
	maxWhole    = 1 << 20   // bytes of a file that is held: a certificate, a configuration
	maxLine     = 1 << 18   // bytes: a topic filter has at most 65,535
	sniffLength = 64 << 10
)

// A role is what a file is to a source.
type role string

const (
	rolePasswords   role = "password file"
	roleACL         role = "access list"
	roleConf        role = "mosquitto.conf"
	roleDynsec      role = "dynamic security file"
	roleDefinitions role = "definitions"
	roleEMQX        role = "user export"
	roleIndex       role = "index.txt"
	roleStep        role = "ca.json"
	roleCertificate role = "certificate"
	roleKey         role = "private key"
	roleCSV         role = "list of devices"
)

// A tree is the files of a source, by what they are.
type tree struct {
	src     fs.FS
	byRole  map[role][]string
	skipped []string // links that lead nowhere or outside, and what may not be read
}

// scan looks at the beginning of every file. Private keys are known by their
// names and not opened, and neither is what is not a regular file.
func scan(src fs.FS, only []string) (*tree, error) {
	t := &tree{src: src, byRole: make(map[role][]string)}
	entries := 0
	head := make([]byte, sniffLength)
	err := fs.WalkDir(src, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entries++; entries > maxEntries {
			return fmt.Errorf("more than %d files", maxEntries)
		}
		if d.IsDir() {
			if strings.Count(name, "/") >= maxDepth {
				return fs.SkipDir
			}
			return nil
		}
		if len(only) > 0 && !slices.Contains(only, name) || len(only) == 0 && isBackup(name) {
			return nil
		}
		if isKeyFile(name) {
			t.byRole[roleKey] = append(t.byRole[roleKey], name)
			return nil
		}
		err = t.sniffFile(name, head)
		if errors.Is(err, errNotRegular) {
			return nil
		}
		if err != nil && (d.Type()&fs.ModeSymlink != 0 || errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist)) {
			t.skipped = append(t.skipped, name)
			return nil
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("looking through the source: %w", err)
	}
	return t, nil
}

func (t *tree) sniffFile(name string, head []byte) error {
	f, err := t.open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	if r := sniff(name, head[:n]); r != "" {
		t.byRole[r] = append(t.byRole[r], name)
	}
	return nil
}

var errNotRegular = errors.New("not a regular file")

// open opens a regular file; a link is followed as far as src lets it be.
func (t *tree) open(name string) (fs.File, error) {
	info, err := fs.Stat(t.src, name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("opening %s: %w", name, errNotRegular)
	}
	return t.src.Open(name)
}

// stream opens a file of at most maxFile bytes.
func (t *tree) stream(name string, read func(io.Reader) error) error {
	f, err := t.open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	if err := read(&fence{r: bufio.NewReaderSize(f, 1<<16), left: maxFile}); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	return nil
}

// whole reads a small file.
func (t *tree) whole(name string) ([]byte, error) {
	var all []byte
	err := t.stream(name, func(r io.Reader) (err error) {
		all, err = io.ReadAll(&fence{r: r, left: maxWhole})
		return err
	})
	return all, err
}

// one returns the only file with a role; "" if there is none.
func (t *tree) one(r role) (string, error) {
	names := t.byRole[r]
	switch len(names) {
	case 0:
		return "", nil
	case 1:
		return names[0], nil
	}
	return "", fmt.Errorf("%s: %.128q and %.128q: %w", r, names[0], names[1], ErrAmbiguous)
}

var errTooLong = errors.New("the file is too long")

// fence fails where a limit is passed, so that a file is not taken for whole.
type fence struct {
	r    io.Reader
	left int64
}

// Read implements [io.Reader].
func (f *fence) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if f.left -= int64(n); f.left < 0 {
		return 0, errTooLong
	}
	return n, err
}

// isKeyFile knows private keys by where they are and what they are called.
func isKeyFile(name string) bool {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if base := path.Base(dir); base == "private" || base == "secrets" {
			return true
		}
	}
	base := strings.ToLower(path.Base(name))
	return strings.HasSuffix(base, ".key") || strings.HasSuffix(base, "_key") || strings.HasSuffix(base, ".p12") || strings.HasSuffix(base, ".pfx")
}

// isBackup knows what editors, packagers and openssl ca leave behind.
func isBackup(name string) bool {
	for _, end := range []string{"~", ".bak", ".old", ".orig", ".example", ".dpkg-dist", ".rpmnew", ".attr", ".tmp", ".swp"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}

var (
	indexLine    = regexp.MustCompile(`^[VRE]\t[0-9]{10,14}Z\t[^\t]*\t[0-9A-Fa-f]+\t`)
	passwordLine = regexp.MustCompile(`(?m)^[^:\n]+:\$(6|7|argon2id)\$`)
)

// sniff says what a file is by its beginning, and where that is not enough by its
// name.
func sniff(name string, head []byte) role {
	base := strings.ToLower(path.Base(name))
	text := bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\ufeff")), " \r\n")
	has := func(words ...string) bool {
		for _, w := range words {
			if !bytes.Contains(text, []byte(w)) {
				return false
			}
		}
		return true
	}
	switch {
	case bytes.IndexByte(head, 0) >= 0:
		return sniffDER(base, head)
	case len(text) > 0 && (text[0] == '{' || text[0] == '['):
		return sniffJSON(has)
	case indexLine.Match(text):
		return roleIndex
	case has("-----BEGIN CERTIFICATE-----"), has("-----BEGIN TRUSTED CERTIFICATE-----"):
		return roleCertificate
	case has("-----BEGIN "):
		return ""
	case strings.HasSuffix(base, ".conf") && (has("password_file") || has("acl_file") || has("listener ") || has("allow_anonymous")):
		return roleConf
	case passwordLine.Match(text):
		return rolePasswords
	case isACL(text):
		return roleACL
	}
	if r := sniffCSV(text); r != "" {
		return r
	}
	switch base {
	case "passwd", "password_file", "passwordfile", "passwords", "pwfile", "mosquitto.passwd", "passwd.txt":
		return rolePasswords
	}
	return ""
}

func sniffDER(base string, head []byte) role {
	if head[0] == 0x30 && (strings.HasSuffix(base, ".crt") || strings.HasSuffix(base, ".cer") || strings.HasSuffix(base, ".der")) {
		return roleCertificate
	}
	return ""
}

func sniffJSON(has func(...string) bool) role {
	switch {
	case has(`"defaultACLAccess"`), has(`"clients"`, `"rolename"`), has(`"clients"`, `"username"`):
		return roleDynsec
	case has(`"topic_permissions"`), has(`"hashing_algorithm"`), has(`"rabbit_version"`), has(`"users"`, `"vhosts"`):
		return roleDefinitions
	case has(`"user_id"`):
		return roleEMQX
	case has(`"authority"`, `"provisioners"`):
		return roleStep
	}
	return ""
}

// isACL looks at the first line that is no comment.
func isACL(text []byte) bool {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		for _, word := range []string{"user ", "topic ", "pattern "} {
			if bytes.HasPrefix(line, []byte(word)) {
				return true
			}
		}
		return false
	}
	return false
}

func sniffCSV(text []byte) role {
	line, _, _ := bytes.Cut(text, []byte("\n"))
	var columns []string
	for _, c := range strings.Split(string(line), ",") {
		columns = append(columns, strings.ToLower(strings.Trim(strings.TrimSpace(c), `"`)))
	}
	switch {
	case slices.Contains(columns, "user_id"):
		return roleEMQX
	case slices.Contains(columns, "id"):
		return roleCSV
	}
	return ""
}
