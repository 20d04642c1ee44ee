package vernemq

import (
	"io/fs"
	"iter"

	"github.com/imprint-iot/imprint/inventory/durable"
	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
)

// webhooks is the kit of form "webhooks". It has no list: the broker asks, and
// imprint answers from the live fleet, so that every rule can be expressed.
func (t target) webhooks() templates.Kit {
	k := t.kit()
	k.Rule = func(topic.Rule) (string, []string) { return "", nil }
	k.Devices = func(fs.FS, *templates.Setting) func(func(templates.Entry, error) bool) {
		return func(func(templates.Entry, error) bool) {}
	}
	k.Enforced = append(k.Enforced,
		"all of it by imprint serve, from the live fleet: without it nobody gets in with a password, and nobody publishes or subscribes",
		"client identifier equals user name, on the certificate listener at the first message or subscription")
	k.NotEnforced = append(k.NotEnforced,
		"client identifiers at the connection on the certificate listener: one device can end the session of another there")
	return k
}

// hooks is the target of form "webhooks": a kit whose files hold no devices.
type hooks struct{ templates.Target }

// Write implements [templates.Target]. An export without devices is no shrinking
// here.
func (h hooks) Write(dst *durable.Dir, v templates.View, o templates.Options) (templates.Summary, error) {
	o.AllowShrink = true
	return h.Target.Write(dst, nobody{v}, o)
}

// Parse implements [templates.Target].
func (h hooks) Parse(src fs.FS) (templates.View, error) {
	v, err := h.Target.Parse(src)
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
