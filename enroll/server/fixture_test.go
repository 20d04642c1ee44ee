package server_test

import (
	"encoding/json"
	"testing"

	"github.com/imprint-iot/imprint/enroll/server"
)

func decode(t *testing.T, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
}

// noLimits is for tests that ask more than anybody should.
func noLimits() server.Settings {
	return server.Settings{Limits: server.Limits{PeerRate: -1, IdentityRate: -1, FailureRate: -1}}
}
