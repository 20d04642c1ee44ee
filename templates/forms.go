package templates

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/templates/proof"
)

// Forms are the forms of a target that have little in common: each is a target of
// its own, most often a [Kit].
type Forms struct {
	// Caps are those of all forms together, with their names in Forms, the default
	// first. The manifest of an export says what its own form enforces.
	Caps Capabilities

	// Of returns the target of a form by its name.
	Of map[string]Target

	// Marked is a file that every form has, with the stamp of its setting in it.
	Marked string

	// Evaluator is that of all forms; see [Kit].
	Evaluator func(src fs.FS) (proof.Evaluator, error)
}

// NewTargetOf returns the target that forms are.
func NewTargetOf(f Forms) Target { return formsTarget{f} }

// OfForm returns t with a form as its only one, if its forms are targets of their
// own; otherwise it is t itself. What a broker can express may depend on the form.
func OfForm(t Target, form string) Target {
	if of, ok := t.(interface{ OfForm(form string) Target }); ok && form != "" {
		return of.OfForm(form)
	}
	return t
}

type formsTarget struct{ forms Forms }

// Capabilities implements [Target].
func (t formsTarget) Capabilities() Capabilities { return t.forms.Caps }

// OfForm returns the target of a form, or the default one.
func (t formsTarget) OfForm(form string) Target {
	if of, ok := t.forms.Of[form]; ok {
		return of
	}
	return t.forms.Of[t.forms.Caps.Forms[0]]
}

// Check implements [Target], for the default form.
func (t formsTarget) Check(p inventory.Profile) error { return t.OfForm("").Check(p) }

// Write implements [Target].
func (t formsTarget) Write(dst *durable.Dir, v View, o Options) (Summary, error) {
	o.Form = cmp.Or(o.Form, t.forms.Caps.Forms[0])
	of, ok := t.forms.Of[o.Form]
	if !ok {
		return Summary{}, &inventory.InvalidError{Field: t.forms.Caps.Name + " form", Value: o.Form, Want: "one of " + strings.Join(t.forms.Caps.Forms, ", ")}
	}
	return of.Write(dst, v, o)
}

// Parse implements [Target]. The form is what the marked file says, and its target
// holds all of the files to it.
func (t formsTarget) Parse(src fs.FS) (View, error) {
	form, err := FormOf(src, t.forms.Marked)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(t.forms.Caps.Forms, form) {
		return nil, fmt.Errorf("reading %s: there is no form %.64q", t.forms.Marked, form)
	}
	return t.forms.Of[form].Parse(src)
}

// Evaluator reads an export as its broker would; see [Kit].
func (t formsTarget) Evaluator(src fs.FS) (proof.Evaluator, error) { return t.forms.Evaluator(src) }

// FormOf reads the form of an export from a file that has its stamp.
func FormOf(src fs.FS, name string) (string, error) {
	text, err := ReadFile(src, name)
	if err != nil {
		return "", err
	}
	s, err := parseStamp(text)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", name, err)
	}
	return s.Form, nil
}
