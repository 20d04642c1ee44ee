package awsiot

import "github.com/imprint-iot/imprint/inventory"

// Documents are the policies of a profile.
func Documents(p inventory.Profile) (map[string][]byte, error) { return documents(p) }

// Template is the provisioning template.
func Template(names []string) ([]byte, error) { return template(names) }
