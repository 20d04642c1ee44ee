package api

import (
	"net/http"
	"strings"
)

// A Problem is an error as a peer is told of it (RFC 9457).
type Problem struct {
	Type   string `json:"type"` // ProblemType and the code
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Code   string `json:"code"`
}

// ProblemType is what the type of every problem starts with.
const ProblemType = "urn:imprint:problem:"

// The codes of problems. They are API: a client may rely on them. A refused
// certification request has the code CodeCSR and the reason, as "csr.key-type".
const (
	CodeMalformed      = "request.malformed"
	CodeMediaType      = "request.media-type"
	CodeTooLarge       = "request.too-large"
	CodeLengthRequired = "request.length-required"
	CodeEncoding       = "request.encoding"
	CodeMethod         = "request.method"
	CodeRouteUnknown   = "route.unknown"
	CodeJSON           = "json.malformed"
	CodeDuplicateKey   = "json.duplicate_key"
	CodeUnknownField   = "json.unknown_field"
	CodeField          = "json.field"
	CodeCursor         = "cursor.invalid"
	CodeIdempotency    = "idempotency.mismatch"
	CodeTokenMissing   = "token.missing"
	CodeTokenInvalid   = "token.invalid"
	CodeTokenScope     = "token.scope"
	CodeTokenInURL     = "token.in-url" //nolint:gosec // the name of a fault, and no token
	CodeQuota          = "token.quota"
	CodeCertMissing    = "cert.missing"
	CodeCertUnknown    = "cert.unknown"
	CodeCertRevoked    = "cert.revoked"
	CodeCertExpired    = "cert.expired"
	CodeCSR            = "csr."
	CodeDeviceState    = "device.state"
	CodeUnknown        = "record.unknown"
	CodeExists         = "record.exists"
	CodeCertified      = "device.certified"
	CodeKeyTaken       = "device.key-taken"
	CodeRoleDenied     = "role.denied"
	CodeRateLimited    = "rate.limited"
	CodePending        = "approval.pending"
	CodeNotApproved    = "approval.denied"
	CodeFull           = "store.full"
	CodeBusy           = "store.busy"
	CodeNotImplemented = "request.not-implemented"
	CodeInternal       = "internal"
)

type meaning struct {
	status int
	title  string
}

// meaningOf is the one table of codes. What is not in it is a fault of the server.
func meaningOf(code string) meaning {
	switch code {
	case CodeMalformed:
		return meaning{http.StatusBadRequest, "The request cannot be read"}
	case CodeMediaType:
		return meaning{http.StatusUnsupportedMediaType, "The body has a media type that is not taken here"}
	case CodeTooLarge:
		return meaning{http.StatusRequestEntityTooLarge, "The body is too large"}
	case CodeLengthRequired:
		return meaning{http.StatusLengthRequired, "A Content-Length is required"}
	case CodeEncoding:
		return meaning{http.StatusUnsupportedMediaType, "The body is compressed"}
	case CodeMethod:
		return meaning{http.StatusMethodNotAllowed, "Not with this method"}
	case CodeRouteUnknown, CodeUnknown:
		return meaning{http.StatusNotFound, "There is nothing here"}
	case CodeJSON:
		return meaning{http.StatusBadRequest, "The body is not one JSON value"}
	case CodeDuplicateKey:
		return meaning{http.StatusBadRequest, "A member of the JSON object is there twice"}
	case CodeUnknownField:
		return meaning{http.StatusBadRequest, "A member of the JSON object is not known"}
	case CodeField:
		return meaning{http.StatusBadRequest, "A value is not what it must be"}
	case CodeCursor:
		return meaning{http.StatusBadRequest, "The cursor is not one that was given out here"}
	case CodeIdempotency:
		return meaning{http.StatusUnprocessableEntity, "The Idempotency-Key was used for another request"}
	case CodeTokenMissing, CodeCertMissing:
		return meaning{http.StatusUnauthorized, "Nothing says who asks"}
	case CodeTokenInvalid:
		return meaning{http.StatusUnauthorized, "The token is not valid"}
	case CodeTokenScope:
		return meaning{http.StatusForbidden, "Not for this device"}
	case CodeTokenInURL:
		return meaning{http.StatusBadRequest, "A token does not belong into a URL"}
	case CodeQuota, CodeRateLimited:
		return meaning{http.StatusTooManyRequests, "Too many requests"}
	}
	return deviceMeaning(code)
}

func deviceMeaning(code string) meaning {
	switch code {
	case CodeCertUnknown:
		return meaning{http.StatusUnauthorized, "The client certificate is not known here"}
	case CodeCertRevoked:
		return meaning{http.StatusForbidden, "The client certificate is revoked"}
	case CodeCertExpired:
		return meaning{http.StatusForbidden, "The client certificate has expired"}
	case CodeDeviceState:
		return meaning{http.StatusForbidden, "Not in the state the device is in"}
	case CodeExists:
		return meaning{http.StatusConflict, "It exists already"}
	case CodeCertified:
		return meaning{http.StatusConflict, "The device has a certificate already"}
	case CodeKeyTaken:
		return meaning{http.StatusConflict, "The key belongs to another device"}
	case CodeRoleDenied:
		return meaning{http.StatusForbidden, "Not with this role"}
	case CodePending:
		return meaning{http.StatusAccepted, "Waits for approval"}
	case CodeNotApproved:
		return meaning{http.StatusForbidden, "The enrollment was not approved"}
	case CodeFull, CodeBusy:
		return meaning{http.StatusServiceUnavailable, "Not now"}
	case CodeNotImplemented:
		return meaning{http.StatusNotImplemented, "This is not offered"}
	}
	if strings.HasPrefix(code, CodeCSR) {
		return meaning{http.StatusBadRequest, "The certification request was refused"}
	}
	return meaning{http.StatusInternalServerError, "A fault of the server"}
}

// StatusOf is the HTTP status of a code.
func StatusOf(code string) int { return meaningOf(code).status }

// TitleOf says in words what a code means.
func TitleOf(code string) string { return meaningOf(code).title }
