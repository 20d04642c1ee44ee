package api

import "time"

// Paths of tokens for brokers.
const (
	PathMQTTToken = "/v1/mqtt-token" //nolint:gosec // a path, and no token
	PathJWKS      = "/v1/jwks.json"
)

// MediaJWKSet is the type of a set of public keys (RFC 7517 §8.5.2).
const MediaJWKSet = "application/jwk-set+json"

// An MQTTTokenRequest asks for a token with which a device logs in to a broker.
type MQTTTokenRequest struct {
	Dialect string `json:"dialect"` // "emqx" or "hivemq": the broker that reads it
}

// An MQTTTokenResponse is a JSON Web Token (RFC 7519). It is the MQTT password; user
// name and client identifier are the device's ID.
type MQTTTokenResponse struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`

	// Narrower are rights that the token leaves out, because the broker would read
	// more into them.
	Narrower []LostRight `json:"narrower"`
}

// A LostRight is a right that a token leaves out.
type LostRight struct {
	Action string `json:"action"` // "publish" or "receive"
	Filter string `json:"filter"`
	Reason string `json:"reason"` // in words
}
