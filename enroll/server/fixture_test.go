package server_test

import "github.com/imprint-iot/imprint/enroll/server"

// noLimits is for tests that ask more than anybody should.
func noLimits() server.Settings {
	return server.Settings{Limits: server.Limits{PeerRate: -1, IdentityRate: -1, FailureRate: -1}}
}
