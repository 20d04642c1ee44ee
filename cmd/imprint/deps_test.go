package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/imprint-iot/imprint"

// A goPackage is one package of the module, as go list describes it.
type goPackage struct {
	ImportPath   string
	Dir          string
	Doc          string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Deps         []string // direct and indirect, without those of tests
}

// name is the import path below the module: "ca", "inventory/topic".
func (p goPackage) name() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

// parse reads the files of p, without its tests.
func (p goPackage) parse(t *testing.T, fset *token.FileSet) []*ast.File {
	t.Helper()
	var files []*ast.File
	for _, name := range p.GoFiles {
		files = append(files, parse(t, fset, filepath.Join(p.Dir, name)))
	}
	return files
}

// listPackages describes every package of the module.
func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,GoFiles,TestGoFiles,XTestGoFiles,Deps", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.Bytes())
	}
	var packages []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages = append(packages, p)
	}
	if len(packages) == 0 {
		t.Fatal("go list names no package")
	}
	return packages
}

// What each package may reach in the module, itself not named, directly or
// through others. A package that is not here may reach nothing, so a new one has
// to be put in its place, here and in docs/architecture.md. A name that ends in
// "/*" stands for the packages below it.
var mayReach = map[string][]string{
	"ca":                                {"inventory/durable"},
	"ca/catest":                         {"ca", "inventory/durable"},
	"ca/ocsp":                           {},
	"inventory":                         {"inventory/topic"},
	"inventory/topic":                   {},
	"inventory/durable":                 {},
	"inventory/boltstore":               {"inventory", "inventory/topic", "inventory/durable"},
	"inventory/remote":                  {"inventory", "inventory/topic"},
	"inventory/storetest":               {"inventory", "inventory/topic"},
	"templates":                         {"templates/proof", "inventory", "inventory/topic", "inventory/durable"},
	"templates/*":                       {"templates", "templates/mqtt", "templates/proof", "templates/fleetfile", "inventory", "inventory/topic", "inventory/durable"},
	"templates/mqtt":                    {},
	"templates/proof":                   {"inventory/topic"},
	"templates/doctor":                  {"templates/mqtt"},
	"templates/mosquitto/mosquittotest": {},
	"enroll":                            {"ca", "inventory", "inventory/topic", "inventory/durable"},
	"enroll/api":                        {},
	"enroll/client":                     {"enroll/api"},
	"enroll/agent":                      {"enroll/client", "enroll/api", "templates/mqtt", "inventory/durable"},
	"enroll/server":                     {"enroll", "enroll/api", "ca", "ca/ocsp", "inventory", "inventory/topic", "inventory/durable"},
	"enroll/server/servertest":          {"enroll/server", "enroll", "enroll/api", "ca", "ca/catest", "ca/ocsp", "inventory", "inventory/topic", "inventory/durable", "inventory/boltstore"},
	"enroll/delivery":                   {"enroll", "templates", "templates/proof", "templates/bundle", "templates/mqtt", "ca", "inventory", "inventory/topic", "inventory/durable"},
	"enroll/campaign":                   {"enroll", "ca", "inventory", "inventory/topic", "inventory/durable"},
	"templates/rabbitmq/rabbitmqtest":   {},
	"enroll/intake/foreign":             {"enroll/intake", "enroll", "ca", "inventory", "inventory/topic", "inventory/durable"},
	"enroll/intake":                     {"enroll", "ca", "inventory", "inventory/topic", "inventory/durable"},
}

// What must not be reached at all, by whom, and why. A prefix is followed by
// "/...".
var neverReach = []struct{ who, what, why string }{
	{"ca", "net/http", "pure PKI: it has never heard of HTTP"},
	{"ca", "go.etcd.io/bbolt", "pure PKI: it keeps nothing"},
	{"ca", "os/exec", "pure PKI: it runs nothing"},
	{"inventory", "go.etcd.io/bbolt", "facts do no I/O"},
	{"inventory", "go.step.sm/crypto/...", "facts do not know how certificates are made"},
	{"inventory", "net/http", "facts do not travel"},
	{"inventory", "os/exec", "facts run nothing"},
	{"inventory/remote", "go.etcd.io/bbolt", "the way to a store does not depend on which one it is"},
	{"inventory/remote", "net/http", "it is a socket, and no door to the network"},
	{"templates", "go.etcd.io/bbolt", "an export reads a View, not a store"},
	{"templates", "net/http", "an export writes files"},
	{"templates/doctor", "net/http", "it speaks MQTT with brokers, and nothing with their dashboards"},
	{"templates/doctor", "os/exec", "it looks, and runs nothing"},
	{"enroll", "go.etcd.io/bbolt", "the registrar is given a Store"},
	{"enroll", "net/http", "the registrar does not know its doors"},
	{"ca/ocsp", "net/http", "it reads and signs; who asks, and how, is for others"},
	{"enroll/server", "go.etcd.io/bbolt", "a door does not know where the facts are kept"},
	{"enroll/agent", "go.etcd.io/bbolt", "the agent has no inventory"},
	{"cmd/imprint-agent", "github.com/spf13/cobra", "the agent is small"},
	{"cmd/imprint", "testing", "the test framework is not for production"},
	{"cmd/imprint", "go.step.sm/crypto/kms", "it links the SDK of every cloud"},
	{"cmd/imprint", "cloud.google.com/...", "no cloud's SDK"},
	{"cmd/imprint", "github.com/aws/...", "no cloud's SDK"},
	{"cmd/imprint", "github.com/Azure/...", "no cloud's SDK"},
}

// What a leaf may import besides the standard library.
var leaves = map[string][]string{
	"inventory/topic":   nil,
	"inventory/durable": {"golang.org/x/sys/unix"},
	"enroll/api":        nil,
}

// TestImportDirection keeps the rooms of docs/architecture.md apart, also
// through a third package, which a linter of imports does not see.
func TestImportDirection(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range listPackages(t) {
		seen[p.name()] = true
		for _, dep := range p.Deps {
			checkReach(t, p.name(), dep)
		}
	}
	for _, n := range neverReach {
		if !seen[n.who] {
			t.Errorf("there is no package %s: its rule holds nothing", n.who)
		}
	}
	for name := range mayReach {
		if !seen[name] && !strings.HasSuffix(name, "/*") {
			t.Errorf("there is no package %s: its rule holds nothing", name)
		}
	}
}

func checkReach(t *testing.T, who, dep string) {
	t.Helper()
	if below, ours := strings.CutPrefix(dep, module+"/"); ours && !strings.HasPrefix(who, "cmd/") && !strings.HasPrefix(who, "scripts/") {
		allowed, ok := mayReach[who]
		if !ok {
			allowed = mayReach[filepath.ToSlash(filepath.Dir(who))+"/*"]
		}
		if !slices.Contains(allowed, below) {
			t.Errorf("%s reaches %s, which is not among what it may know: %q", who, below, allowed)
		}
	}
	for _, n := range neverReach {
		prefix, isPrefix := strings.CutSuffix(n.what, "...")
		if n.who == who && (dep == n.what || isPrefix && strings.HasPrefix(dep, prefix)) {
			t.Errorf("%s reaches %s: %s", who, dep, n.why)
		}
	}
	host, _, _ := strings.Cut(dep, "/")
	if extra, leaf := leaves[who]; leaf && strings.Contains(host, ".") && !slices.Contains(extra, dep) {
		t.Errorf("%s reaches %s: a leaf needs only the standard library", who, dep)
	}
}

// A package comment is its design. One that cannot be said in a sentence belongs
// to a package that is two.
func TestEveryPackageHasAComment(t *testing.T) {
	for _, p := range listPackages(t) {
		if len(p.GoFiles) > 0 && strings.TrimSpace(p.Doc) == "" {
			t.Errorf("%s has no package comment", p.name())
		}
	}
}

func TestEveryExportedNameIsDocumented(t *testing.T) {
	for _, p := range listPackages(t) {
		fset := token.NewFileSet()
		files := p.parse(t, fset)
		if len(files) == 0 || files[0].Name.Name == "main" {
			continue
		}
		d, err := doc.NewFromFiles(fset, files, p.ImportPath)
		if err != nil {
			t.Fatalf("%s: %v", p.name(), err)
		}
		for _, name := range undocumented(d) {
			t.Errorf("%s.%s has no comment", p.name(), name)
		}
	}
}

// undocumented names what a reader of the package's page would find bare.
func undocumented(d *doc.Package) []string {
	var bare []string
	funcs := func(of string, list []*doc.Func) {
		for _, f := range list {
			// Error and Unwrap mean what package errors says.
			if f.Doc == "" && f.Name != "Error" && f.Name != "Unwrap" {
				bare = append(bare, of+f.Name)
			}
		}
	}
	values := func(list []*doc.Value) {
		for _, v := range list {
			for _, spec := range v.Decl.Specs {
				s, ok := spec.(*ast.ValueSpec)
				if ok && v.Doc == "" && s.Doc == nil && s.Comment == nil {
					bare = append(bare, s.Names[0].Name)
				}
			}
		}
	}
	funcs("", d.Funcs)
	values(d.Consts)
	values(d.Vars)
	for _, typ := range d.Types {
		if typ.Doc == "" {
			bare = append(bare, typ.Name)
		}
		funcs("", typ.Funcs)
		funcs(typ.Name+".", typ.Methods)
		values(typ.Consts)
		values(typ.Vars)
	}
	return bare
}

// Hard limits; what is usual is half of them. A test may be as long as its table.
const (
	maxFuncLines = 80
	maxFileLines = 600
)

// TestBudgets prints how long functions and files are, and fails above the
// limits: a function fits a screen or two, a file is read in one sitting.
func TestBudgets(t *testing.T) {
	var lengths []int
	for _, p := range listPackages(t) {
		fset := token.NewFileSet()
		for _, name := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
			f := parse(t, fset, filepath.Join(p.Dir, name))
			lines := fset.File(f.Pos()).LineCount()
			if lines > maxFileLines {
				t.Errorf("%s/%s has %d lines, at most %d", p.name(), name, lines, maxFileLines)
			}
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			for _, fn := range functions(fset, f) {
				lengths = append(lengths, fn.lines)
				if fn.lines > maxFuncLines {
					t.Errorf("%s: %s has %d lines, at most %d", p.name(), fn.name, fn.lines, maxFuncLines)
				}
			}
		}
	}
	slices.Sort(lengths)
	t.Logf("%d functions: half have at most %d lines, nine of ten at most %d, the longest %d",
		len(lengths), lengths[len(lengths)/2], lengths[len(lengths)*9/10], lengths[len(lengths)-1])
}

type function struct {
	name  string
	lines int
}

func functions(fset *token.FileSet, f *ast.File) []function {
	var list []function
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
			lines := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1
			list = append(list, function{fmt.Sprintf("func %s", fn.Name), lines})
		}
	}
	return list
}

func parse(t *testing.T, fset *token.FileSet, path string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
