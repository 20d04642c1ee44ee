package main

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/token"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"testing"

	"github.com/imprint-iot/imprint/ca"
	"github.com/imprint-iot/imprint/enroll"
	"github.com/imprint-iot/imprint/enroll/intake"
	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/doctor"
)

// Errors that exitCode does not name, and why it gives the right answer all the
// same.
var answeredBy = map[string]string{
	"boltstore.ErrRecover":      "the store is then opened for writing",
	"ca.ErrSpent":               "a fault of imprint",
	"ca.LintError":              "a fault of imprint",
	"api.ErrToken":              "the server's answer to a peer",
	"enroll.CertifiedError":     "unwraps to enroll.ErrDenied",
	"enroll.ErrNoCertificate":   "the server's answer to a peer",
	"enroll.ErrNoTokenKey":      "the server's answer to a peer",
	"enroll.ErrNotApproved":     "wraps enroll.ErrDenied",
	"enroll.ErrQueueFull":       "the server's answer to a peer",
	"enroll.ErrRevoked":         "the server's answer to a peer",
	"enroll.CloneError":         "the server's answer to a peer",
	"enroll.ErrScope":           "wraps enroll.ErrDenied",
	"enroll.StrandedError":      "unwraps to enroll.ErrDenied",
	"mqtt.RefusedError":         "wrapped by what was tried",
	"proof.RefusedError":        "wrapped by what was tried",
	"mqtt.ErrProtocol":          "wrapped by what was tried",
	"enroll.ErrToken":           "the server's answer to a peer",
	"enroll.ErrTooOld":          "the server's answer to a peer",
	"enroll.PendingError":       "the server's answer to a peer",
	"enroll.QuotaError":         "the server's answer to a peer",
	"enroll.RowError":           "unwraps to its cause",
	"ocsp.ErrRequest":           "the server's answer to a peer",
	"remote.ErrNoServer":        "the store is then opened without one",
	"enroll.StateError":         "unwraps to enroll.ErrDenied",
	"inventory.ChainError":      "unwraps to inventory.ErrCorrupt",
	"inventory.ConflictError":   "unwraps to inventory.ErrConflict",
	"templates.DifferenceError": "comes with templates.ErrParseBack",
	"templates.ErrParseBack":    "a fault of imprint",
}

// TestEveryErrorHasAnExitCode finds the exported errors that would end a command
// as "a fault of imprint" because nobody thought of them.
func TestEveryErrorHasAnExitCode(t *testing.T) {
	named := namedIn(t, "main.go", "exitCode")
	exists := map[string]bool{}
	for _, p := range listPackages(t) {
		if strings.HasSuffix(p.name(), "test") || strings.HasPrefix(p.name(), "cmd/") {
			continue // what only tests see
		}
		for _, name := range exportedErrors(t, p) {
			name = path.Base(p.ImportPath) + "." + name
			exists[name] = true
			switch why := answeredBy[name]; {
			case named[name] && why != "":
				t.Errorf("%s is named in exitCode: it needs no excuse", name)
			case !named[name] && why == "":
				t.Errorf("exitCode does not name %s", name)
			}
		}
	}
	for name := range answeredBy {
		if !exists[name] {
			t.Errorf("there is no %s", name)
		}
	}
}

// namedIn returns the qualified names in one function: "ca.ErrSpent".
func namedIn(t *testing.T, file, function string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, d := range parse(t, token.NewFileSet(), file).Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Name.Name != function {
			continue
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok {
					names[x.Name+"."+sel.Sel.Name] = true
				}
			}
			return true
		})
	}
	if len(names) == 0 {
		t.Fatalf("there is no func %s in %s", function, file)
	}
	return names
}

// exportedErrors returns the variables ErrX and the types XError of a package.
func exportedErrors(t *testing.T, p goPackage) []string {
	t.Helper()
	var names []string
	for _, f := range p.parse(t, token.NewFileSet()) {
		for _, d := range f.Decls {
			gen, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range gen.Specs {
				switch s := spec.(type) {
				case *ast.ValueSpec:
					if name := s.Names[0].Name; gen.Tok == token.VAR && strings.HasPrefix(name, "Err") {
						names = append(names, name)
					}
				case *ast.TypeSpec:
					if name := s.Name.Name; s.Name.IsExported() && strings.HasSuffix(name, "Error") {
						names = append(names, name)
					}
				}
			}
		}
	}
	return names
}

// TestExitCodes holds the table of exitHelp, through whatever an error is wrapped in.
func TestExitCodes(t *testing.T) {
	for want, errs := range map[int][]error{
		exitFound: {foundError{errors.New("x")}},
		exitUsage: {usageErrorf("x")},
		exitData: {
			enroll.ErrRejected, &intake.ImportError{}, &inventory.InvalidError{}, &ca.RequestError{}, &ca.ConfigError{}, &topic.PolicyError{},
			&topic.SyntaxError{}, &templates.InexpressibleError{}, &templates.EntryError{}, inventory.ErrNotFound, durable.ErrTooLarge, durable.ErrNotRegular,
			doctor.ErrUnknownKind,
		},
		exitUnavailable: {ca.ErrKeyUnavailable, ca.ErrExpired, enroll.ErrNoIssuer, templates.ErrStale, doctor.ErrNoEndpoint},
		exitInternal:    {errors.New("nobody thought of it"), &ca.LintError{}, ca.ErrSpent, templates.ErrParseBack},
		exitIO: {
			inventory.ErrFull, inventory.ErrStopped, inventory.ErrCorrupt, templates.ErrManifest, backupError{}, syscall.ENOSPC,
			&fs.PathError{Err: syscall.EROFS}, &os.LinkError{Err: syscall.EIO}, &inventory.ChainError{},
		},
		exitBusy:        {&durable.InUseError{PID: 1}},
		exitRefused:     {enroll.ErrDenied, inventory.ErrConflict, templates.ErrShrink, ca.ErrPassphrase, ca.ErrKeyRefused, ca.ErrKeyExists, enroll.ErrNotRecorded, fs.ErrExist},
		exitConfig:      {configErrorf("x"), inventory.ErrForeign, inventory.ErrVersion},
		exitInterrupted: {context.Canceled},
	} {
		for _, err := range errs {
			wrapped := fmt.Errorf("doing it: %w", errors.Join(err, errors.New("closing it")))
			if got := exitCode(wrapped); got != want {
				t.Errorf("%T (%v): exit code %d, want %d", err, err, got, want)
			}
			if want != exitInternal && !strings.Contains(exitHelp, fmt.Sprintf(" %d ", want)) {
				t.Errorf("exit code %d is not in the help", want)
			}
		}
	}
}
