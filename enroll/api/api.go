// Package api is the wire between the enrollment server and those who talk to it:
// the JSON bodies and problem codes of /v1, and the forms in which EST (RFC 7030,
// RFC 8951) carries requests and certificates. Both ends share it. It decides
// nothing and does no I/O.
package api

import "time"

// Paths of the API for devices.
const (
	PathEnroll       = "/v1/enroll"
	PathRenew        = "/v1/renew"
	PathEnrollStatus = "/v1/enrollstatus"
	PathOrders       = "/v1/orders"
	PathTrustBundle  = "/v1/trust-bundle"
	PathWhoami       = "/v1/whoami"
	PathOpenAPI      = "/v1/openapi.yaml"
	PathWebhook      = "/v1/webhook/" // and a dialect, and what it asks
	PathEST          = "/.well-known/est"
)

// Media types.
const (
	MediaJSON      = "application/json"
	MediaProblem   = "application/problem+json"                      // RFC 9457
	MediaPKCS10    = "application/pkcs10"                            // RFC 5967
	MediaCert      = "application/pkix-cert"                         // RFC 2585: one certificate, DER
	MediaChain     = "application/pem-certificate-chain"             // RFC 8555 §9.1
	MediaCRL       = "application/pkix-crl"                          // RFC 2585
	MediaPEM       = "application/x-pem-file"                        // a CRL in PEM; nothing is registered for it
	MediaOCSP      = "application/ocsp-response"                     // RFC 6960 appendix A
	MediaOCSPAsk   = "application/ocsp-request"                      // RFC 6960 appendix A
	MediaCSRAttrs  = "application/csrattrs"                          // RFC 7030 §4.5.2
	MediaPKCS8     = "application/pkcs8"                             // RFC 5958
	MediaOpenAPI   = "application/vnd.oai.openapi+yaml"              // as the OpenAPI Initiative registers it
	MediaCertsOnly = "application/pkcs7-mime; smime-type=certs-only" // to the letter: libest compares it so
)

// An EnrollRequest asks for a certificate.
type EnrollRequest struct {
	// Device is the device the certificate is for. Empty: the CSR names it, or the
	// client certificate.
	Device string `json:"device,omitempty"`

	CSR string `json:"csr"` // PKCS #10, PEM

	// Password asks for an MQTT password as well.
	Password bool `json:"password,omitempty"`
}

// An EnrollResponse is what a device is handed.
type EnrollResponse struct {
	Device      string    `json:"device"`
	Serial      string    `json:"serial"` // 32 hexadecimal digits
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	RenewAfter  time.Time `json:"renew_after"`        // 2/3 of the life is over
	Certificate string    `json:"certificate"`        // PEM: the leaf
	Chain       string    `json:"chain"`              // PEM: the leaf, then the issuing CA
	TrustBundle string    `json:"trust_bundle"`       // PEM: the roots
	Password    string    `json:"password,omitempty"` // shown once
	Rights      Rights    `json:"rights"`

	// Unchanged says that the device had this certificate already: the request
	// was a repetition.
	Unchanged bool `json:"unchanged"`
}

// Rights are MQTT topic filters.
type Rights struct {
	Publish []string `json:"publish"`
	Receive []string `json:"receive"`
}

// A StatusReport is what a device says once it has tried its new certificate,
// after the enrollment status telemetry of RFC 8995 §5.9.4.
type StatusReport struct {
	Version int    `json:"version"`          // 1
	Status  bool   `json:"status"`           // it has connected to the broker with it
	Reason  string `json:"reason,omitempty"` // why not; at most 256 bytes

	// Trust are the SHA-256 fingerprints of the certificates with which the device
	// verifies the broker and the server, in hexadecimal; at most 16. While a root is
	// being replaced this is how it is known that the device is ready.
	Trust []string `json:"trust,omitempty"`

	// Password says that the device holds the password that it was given last.
	// Until then brokers take the one before.
	Password bool `json:"password,omitempty"`
}

// StatusVersion is the version of [StatusReport].
const StatusVersion = 1

// Orders are what the server wants a device to do now.
type Orders struct {
	Renew    bool   `json:"renew"`              // get the next certificate, without waiting until it is due
	Password bool   `json:"password"`           // and another password with it
	Rotation string `json:"rotation,omitempty"` // the campaign that this is part of
}

// A StatusResponse says what a report has brought about.
type StatusResponse struct {
	Device string `json:"device"`
	Serial string `json:"serial"` // of the certificate that was confirmed
	Ended  int    `json:"ended"`  // older certificates that were revoked as superseded
}

// A Pending is the body of 202: an operator has to approve the device. It asks
// again after Retry-After, with the same key.
type Pending struct {
	Status string `json:"status"` // "pending"
	Key    string `json:"key"`    // "spki-sha256:...", for the operator
}

// RenewAfter is when a certificate should be renewed: after 2/3 of its life.
func RenewAfter(notBefore, notAfter time.Time) time.Time {
	return notBefore.Add(notAfter.Sub(notBefore) / 3 * 2)
}

// A WebhookConnect asks whether a client may connect, at PathWebhook +
// "json/connect". What the client did not say is empty; ClientID is what the session
// will have.
type WebhookConnect struct {
	ClientID string `json:"clientId"`
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`

	// Of the certificate that the broker has verified. Certificate is PEM; Serial is
	// hexadecimal.
	CommonName  string `json:"commonName,omitempty"`
	Certificate string `json:"certificate,omitempty"`
	Serial      string `json:"serial,omitempty"`
}

// A WebhookAllowed is the answer to a client that may connect. A denial has Allowed
// alone, which is false.
type WebhookAllowed struct {
	Allowed bool       `json:"allowed"`
	Device  string     `json:"device"`
	Profile string     `json:"profile"`
	Group   string     `json:"group,omitempty"`
	Publish []string   `json:"publish"` // topic filters
	Receive []string   `json:"receive"`
	Expires *time.Time `json:"expires,omitempty"` // of the certificate
}

// A WebhookAccess asks whether a client may do something, at PathWebhook +
// "json/access". The answer is WebhookAllowed with Allowed alone.
type WebhookAccess struct {
	ClientID   string `json:"clientId"`
	Username   string `json:"username,omitempty"`
	CommonName string `json:"commonName,omitempty"`
	Action     string `json:"action"` // "publish", "subscribe" or "receive"
	Topic      string `json:"topic"`  // a name, or for subscribe a filter
}
