package remote

import (
	"encoding/json"
	"time"

	"github.com/imprint-iot/imprint/inventory"
)

// The queries as they travel. Labels has a JSON form of its own, which is an
// object and loses nothing but its order.
type deviceQuery struct {
	Kind    inventory.DeviceKind `json:"kind,omitempty"`
	State   uint8                `json:"state,omitempty"`
	Profile string               `json:"profile,omitempty"`
	Group   string               `json:"group,omitempty"`
	Labels  []inventory.Label    `json:"labels,omitempty"`
	After   inventory.DeviceID   `json:"after,omitempty"`
	Limit   int                  `json:"limit,omitempty"`
}

type credentialQuery struct {
	Device        inventory.DeviceID `json:"device,omitempty"`
	Kind          uint8              `json:"kind,omitempty"`
	State         uint8              `json:"state,omitempty"`
	SPKI          []byte             `json:"spki,omitempty"`
	Serial        []byte             `json:"serial,omitempty"`
	ExpiresAfter  time.Time          `json:"expires_after,omitzero"`
	ExpiresBefore time.Time          `json:"expires_before,omitzero"`
	All           bool               `json:"all,omitempty"`
}

func encodeQuery(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return nil // structs of plain fields: the other side refuses an empty query
	}
	return b
}

func wireDevices(q inventory.Query) []byte {
	return encodeQuery(deviceQuery{Kind: q.Kind, State: uint8(q.State), Profile: q.Profile, Group: q.Group, Labels: q.Labels, After: q.After, Limit: q.Limit})
}

func readDevices(b []byte) (inventory.Query, error) {
	var q deviceQuery
	err := json.Unmarshal(b, &q)
	return inventory.Query{Kind: q.Kind, State: inventory.DeviceState(q.State), Profile: q.Profile, Group: q.Group, Labels: q.Labels, After: q.After, Limit: q.Limit}, err
}

func wireCredentials(q inventory.CredentialQuery) []byte {
	w := credentialQuery{
		Device: q.Device, Kind: uint8(q.Kind), State: uint8(q.State), ExpiresAfter: q.ExpiresAfter, ExpiresBefore: q.ExpiresBefore, All: q.All,
	}
	if !q.SPKI.IsZero() {
		w.SPKI = q.SPKI[:]
	}
	if !q.Serial.IsZero() {
		w.Serial = q.Serial[:]
	}
	return encodeQuery(w)
}

func readCredentials(b []byte) (inventory.CredentialQuery, error) {
	var w credentialQuery
	if err := json.Unmarshal(b, &w); err != nil {
		return inventory.CredentialQuery{}, err
	}
	q := inventory.CredentialQuery{
		Device: w.Device, Kind: inventory.CredentialKind(w.Kind), State: inventory.CredentialState(w.State),
		ExpiresAfter: w.ExpiresAfter, ExpiresBefore: w.ExpiresBefore, All: w.All,
	}
	copy(q.SPKI[:], w.SPKI)
	copy(q.Serial[:], w.Serial)
	return q, nil
}
