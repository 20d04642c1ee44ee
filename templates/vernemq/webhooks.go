package vernemq

import (
	"github.com/imprint-iot/imprint/templates"
)

// webhooks is the kit of form "webhooks". It has no list: the broker asks, and
// imprint answers from the live fleet, so that every rule can be expressed.
func webhooks() templates.Kit {
	k := kit()
	k.ServiceForms = []string{Webhooks}
	k.Enforced = append(k.Enforced,
		"all of it by imprint serve, from the live fleet: without it nobody gets in with a password, and nobody publishes or subscribes",
		"client identifier equals user name, on the certificate listener at the first message or subscription")
	k.NotEnforced = append(k.NotEnforced,
		"client identifiers at the connection on the certificate listener: one device can end the session of another there")
	return k
}
