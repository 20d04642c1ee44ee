package rumqttd

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/imprint-iot/imprint/templates/proof"
)

// evaluator reads an export as rumqttd does (router/routing.rs): apart from the tenant of
// the certificate, nothing counts. It takes the fleet's name from a comment, where
// rumqttd takes it from the certificate.
type evaluator struct{ prefix string }

func newEvaluator(src fs.FS) (proof.Evaluator, error) {
	config, err := fs.ReadFile(src, "rumqttd.toml")
	if err != nil {
		return nil, err
	}
	if !strings.Contains(string(config), "\n[v4.devices.tls]\ncapath = ") {
		return nil, errors.New("rumqttd.toml: certificates are not asked for")
	}
	_, rest, _ := strings.Cut(string(config), "\n# Tenant: ")
	name, _, ok := strings.Cut(rest, "\n")
	if !ok || name == "" {
		return nil, errors.New("rumqttd.toml: the name of the tenant is missing")
	}
	return evaluator{"/tenants/" + name + "/"}, nil
}

// Answer implements [proof.Evaluator]: topics and filters are held to the prefix as texts
// (append_to_commitlog, append_will_message, validate_subscription). Who has subscribed to
// all that it may is sent the topic without its last slash, too (protocol::matches).
func (e evaluator) Answer(q proof.Question) (proof.Answer, error) {
	if strings.HasPrefix(q.Topic, e.prefix) || q.Verb == proof.Receive && q.Topic+"/" == e.prefix {
		return proof.Allowed, nil
	}
	return proof.Denied, nil
}
