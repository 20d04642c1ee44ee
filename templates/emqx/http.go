package emqx

import (
	"io/fs"
	"iter"

	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// http is the kit of form "http". It has no list: the broker asks, and imprint answers
// from the live fleet, so that every rule can be expressed.
func (t target) http() templates.Kit {
	k := t.kit()
	k.Rule = func(topic.Rule) (string, []string) { return "", nil }
	k.Devices = func(fs.FS, *templates.Setting) func(func(templates.Entry, error) bool) {
		return func(func(templates.Entry, error) bool) {}
	}
	k.Enforced = append(k.Enforced,
		"all of it by imprint serve, from the live fleet, certificates too: without it nobody gets in, publishes or subscribes")
	k.NotEnforced = append(k.NotEnforced,
		"rights that were taken away, for up to a minute: the broker keeps decisions for each connection")
	return k
}

// asked is the target of form "http": a kit whose files hold no devices.
type asked struct{ templates.Target }

// Write implements [templates.Target]. An export without devices is no shrinking here.
func (a asked) Write(dst *durable.Dir, v templates.View, o templates.Options) (templates.Summary, error) {
	o.AllowShrink = true
	return a.Target.Write(dst, nobody{v}, o)
}

// Parse implements [templates.Target].
func (a asked) Parse(src fs.FS) (templates.View, error) {
	v, err := a.Target.Parse(src)
	if err != nil {
		return nil, err
	}
	p, ok := v.(templates.Partial)
	if !ok {
		return v, nil
	}
	return untold{p}, nil
}

// nobody is a view without its devices.
type nobody struct{ templates.View }

// Entries implements [templates.View].
func (nobody) Entries() iter.Seq2[templates.Entry, error] {
	return func(func(templates.Entry, error) bool) {}
}

// untold is a view whose files hold no device.
type untold struct{ templates.Partial }

// Carry implements [templates.Partial].
func (untold) Carry(e templates.Entry) (templates.Entry, bool) { return e, false }
