package emqx

import (
	"github.com/imprint-iot/imprint/templates"
)

// http is the kit of form "http". It has no list: the broker asks, and imprint answers
// from the live fleet, so that every rule can be expressed.
func http() templates.Kit {
	k := kit()
	k.ServiceForms = []string{HTTP}
	k.Enforced = append(k.Enforced,
		"all of it by imprint serve, from the live fleet, certificates too: without it nobody gets in, publishes or subscribes")
	k.NotEnforced = append(k.NotEnforced,
		"rights that were taken away, for up to a minute: the broker keeps decisions for each connection")
	return k
}
