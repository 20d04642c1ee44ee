package azureiot

import "github.com/imprint-iot/imprint/inventory"

// Namespace is the template of a namespace.
func Namespace(profiles map[string]inventory.Profile, issuers [][]byte) ([]byte, error) {
	return namespace(profiles, issuers)
}
