package artemis

import "github.com/imprint-iot/imprint/templates"

// Lenient is the target without its doubts about rules: the fleet of the contract has
// one that Artemis cannot keep to, and the contract is about files.
func Lenient() templates.Target { return newTarget(nil) }
