package hivemq

import "github.com/imprint-iot/imprint/templates"

// Lenient is the target without its doubts about rules: the fleet of the contract has
// one that HiveMQ cannot keep to, and the contract is about files.
func Lenient() templates.Target { return newTarget(nil) }

// DeriveLocked is the verifier of the locked user.
var DeriveLocked = locked
