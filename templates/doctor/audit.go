package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"
)

const (
	maxFile  = 256 << 20 // bytes of one file: an access list of some million rules
	maxSame  = 20        // findings of one rule in one file; one, if it is only a note
	maxFiles = 1000      // in a directory that is included
)

// An audit is one configuration being looked at.
type audit struct {
	src  fs.FS
	dir  string // of the configuration file
	opts FileOptions
	now  time.Time
	rep  Report

	table map[string]Rule
	same  map[[2]string]int // findings by rule and file
	last  map[[2]string]int // index of the last of them
	seen  map[string]bool   // what Checked and Unknown have
	files map[string]bool   // that were read
	trust []certificate     // CA certificates for clients, to check CRLs with
}

func newAudit(src fs.FS, o FileOptions) *audit {
	a := &audit{
		src: src, opts: o, now: o.Now(), table: map[string]Rule{},
		same: map[[2]string]int{}, last: map[[2]string]int{}, seen: map[string]bool{}, files: map[string]bool{},
		rep: Report{Findings: []Finding{}, Checked: []string{}, Unknown: []string{}},
	}
	for _, r := range Rules() {
		a.table[r.ID] = r
	}
	return a
}

// A place is where something stands.
type place struct {
	file string
	line int
}

// add reports that a rule does not hold. Of one rule in one file only the first
// ones are reported each by itself: a fleet has one mistake a hundred thousand
// times.
func (a *audit) add(id ruleID, at place, format string, args ...any) {
	key := [2]string{string(id), at.file}
	r := a.table[string(id)]
	a.same[key]++
	if a.same[key] > most(r.Severity) {
		return
	}
	a.last[key] = len(a.rep.Findings)
	a.rep.Findings = append(a.rep.Findings, Finding{
		Rule: string(id), Severity: r.Severity, Title: r.Title, Why: r.Why, Fix: r.Fix,
		Detail: fmt.Sprintf(format, args...), File: at.file, Line: at.line,
	})
}

// most is how many findings of a rule are reported of one file.
func most(s Severity) int {
	if s == Note {
		return 1
	}
	return maxSame
}

func (a *audit) checked(what string) { a.tell(&a.rep.Checked, what) }

func (a *audit) unknown(format string, args ...any) {
	a.tell(&a.rep.Unknown, fmt.Sprintf(format, args...))
}

func (a *audit) tell(list *[]string, what string) {
	if !a.seen[what] {
		a.seen[what] = true
		*list = append(*list, what)
	}
}

// report puts the findings in order and says how many were left out.
func (a *audit) report() Report {
	for key, n := range a.same {
		if most := most(a.table[key[0]].Severity); n > most {
			a.rep.Findings[a.last[key]].Detail += fmt.Sprintf("; and %d more like it in this file", n-most)
		}
	}
	slices.SortStableFunc(a.rep.Findings, func(x, y Finding) int {
		return cmp.Or(cmp.Compare(y.Severity.rank(), x.Severity.rank()), cmp.Compare(x.Rule, y.Rule),
			cmp.Compare(x.File, y.File), cmp.Compare(x.Line, y.Line))
	})
	return a.rep
}

var errTooLarge = errors.New("file is too large")

// read reads a file of src.
func (a *audit) read(name string) ([]byte, error) {
	a.files[name] = true
	// Opening a FIFO waits for a writer, so this looks before it opens, and after.
	if info, err := fs.Stat(a.src, name); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := a.src.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s: %w", name, errTooLarge)
	}
	return text, err
}

// find returns the name in src of the file or directory that a configuration calls
// ref. If there is none, missing reports whether there is none for the broker
// either.
func (a *audit) find(ref string) (name string, missing bool) {
	if _, after, ok := strings.Cut(ref, "}/"); ok && strings.HasPrefix(ref, "${") {
		return a.bySuffix(after), false // a variable of the environment
	}
	ref = strings.ReplaceAll(ref, `\`, "/")
	if !path.IsAbs(ref) {
		// From where the broker was started, which is not known: beside the
		// configuration, or beside the folder it is in (etc/acl.conf).
		for _, dir := range []string{a.dir, path.Dir(a.dir), "."} {
			if name := path.Join(dir, ref); a.exists(name) {
				return name, false
			}
		}
		if a.opts.Root == "" {
			return a.bySuffix(ref), false
		}
		return "", false
	}
	if a.opts.Root == "" {
		return a.bySuffix(ref), false
	}
	root := path.Clean(a.opts.Root)
	rel, ok := strings.CutPrefix(path.Clean(ref), strings.TrimSuffix(root, "/")+"/")
	switch {
	case !ok:
		return "", false // elsewhere
	case a.exists(rel):
		return rel, false
	}
	return "", true
}

// bySuffix finds a file by the end of its path, the longest first, from the folder
// of the configuration and from the top.
func (a *audit) bySuffix(ref string) string {
	parts := strings.Split(strings.Trim(path.Clean(ref), "/"), "/")
	for i := range parts {
		for _, dir := range []string{a.dir, "."} {
			if name := path.Join(dir, path.Join(parts[i:]...)); a.exists(name) {
				return name
			}
		}
	}
	return ""
}

func (a *audit) exists(name string) bool {
	if !fs.ValidPath(name) {
		return false
	}
	_, err := fs.Stat(a.src, name)
	return err == nil
}

// open reads the file that the configuration calls ref. If it cannot, that is
// reported: as a finding of the rule whenMissing if the broker cannot either, and
// as unknown if not.
func (a *audit) open(what, ref string, at place, whenMissing ruleID) (text []byte, name string, ok bool) {
	name, missing := a.find(ref)
	if missing {
		a.add(whenMissing, at, "%s is %.128q, which is not there", what, ref)
		return nil, "", false
	}
	if name == "" {
		a.unknown("%s %.128q cannot be read: it is not among the files given", what, ref)
		return nil, "", false
	}
	text, err := a.read(name)
	if err != nil {
		a.unknown("%s %.128q cannot be read: %v", what, ref, err)
		return nil, "", false
	}
	if strings.HasSuffix(ref, name) || path.Join(a.dir, ref) == name {
		a.checked(name)
	} else {
		a.checked(fmt.Sprintf("%s, taken for %.128q", name, ref))
	}
	return text, name, true
}

// secrets reports a file that everybody on the machine can read. The bits mean
// nothing where there are none.
func (a *audit) secrets(id ruleID, what, name string) {
	if runtime.GOOS == "windows" || name == "" {
		return
	}
	if info, err := fs.Stat(a.src, name); err == nil && info.Mode().Perm()&0o007 != 0 {
		a.add(id, place{name, 0}, "%s has mode %04o", what, info.Mode().Perm())
	}
}

// privateKey looks at who may read a key, and not into it.
func (a *audit) privateKey(ref string, at place) {
	if ref == "" {
		return
	}
	switch name, missing := a.find(ref); {
	case missing:
		a.add(ruleMissingFile, at, "the private key is %.128q, which is not there", ref)
	case name == "":
		a.unknown("who may read the private key %.128q: it is not among the files given", ref)
	default:
		a.checked(name + " (its mode only)")
		a.secrets(ruleKeyReadable, "the private key", name)
	}
}

// lines yields the lines of a text without their ends, counted from 1.
func lines(text []byte) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		n := 0
		for line := range strings.Lines(string(text)) {
			n++
			if !yield(n, strings.TrimRight(line, "\r\n")) {
				return
			}
		}
	}
}
