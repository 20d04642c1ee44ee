package enroll

import "github.com/imprint-iot/imprint/inventory/topic"

// EMQXRights returns what a token has of rights, and what it leaves out.
func EMQXRights(grants []topic.Grant) (publish, subscribe []string, lost []LostRight) {
	acl, lost := emqxRights(grants)
	return acl.Publish, acl.Subscribe, lost
}
